"""Float32 islands before TensorRT 10: which layers are held, on the real class ``ILayer`` of each release; from 10 on nothing is touched."""

from __future__ import annotations

import pytest

PROFILES = [{"image": [[1, 1, 8, 8], [32, 1, 8, 8], [32, 1, 8, 8]]}]
NODES = {"outputs": {"soft": ["p"], "norm": ["n"], "mean": ["m"], "gone": ["g"]}, "namesakes": ["mean_2"]}
LAYERS = [
    {"name": "conv", "outputs": [["c", "HALF"]], "kind": "CONVOLUTION"},
    {"name": "soft", "outputs": [["p", "FLOAT"]], "kind": "SOFTMAX"},
    {"name": "norm", "outputs": [["inner", "FLOAT"], ["sizes", "INT32"]], "kind": "REDUCE"},
    {"name": "norm_7", "outputs": [["inner2", "FLOAT"]], "kind": "ELEMENTWISE"},
    {"name": "(Unnamed Layer* 4) [ElementWise]", "outputs": [["n", "FLOAT"]], "kind": "ELEMENTWISE"},
    {"name": "norm_8", "outputs": [["scale", "FLOAT"]], "kind": "CONSTANT"},
    {"name": "mean", "outputs": [["m", "FLOAT"]], "kind": "REDUCE"},
    {"name": "mean_2", "outputs": [["m2", "FLOAT"]], "kind": "REDUCE"},
    {"name": "conv_1", "outputs": [["c1", "FLOAT"]], "kind": "CONVOLUTION"},
]
FLOAT = "DataType.FLOAT"


@pytest.fixture
def build(tmp_path):
    """Return a function that builds a float16 model with islands."""
    onnx = tmp_path / "a.onnx"
    onnx.write_bytes(b"onnx")
    given = {"onnx_path": str(onnx), "profiles": PROFILES, "tf32": False, "workspace_bytes": 1 << 20, "optimization_level": 2, "timing_iterations": 8}

    def ask(worker, nodes):
        reply = worker.request("build", {**given, "precision": "fp16", "float32_nodes": nodes}, limit_s=60)
        return reply.value["float32_layers"], worker.request("record", limit_s=60).value

    return ask


def test_islands_are_held_in_float32(release, start, build):
    """Layers are found by the node's name, with a number behind it, or by its outputs; only floating outputs are told, and the builder obeys."""
    with start(layers=LAYERS, layer_dtype="FP16") as worker:
        told, record = build(worker, NODES)
    if release.number >= (10, 0):
        assert told == {}
        assert "constraints" not in record
        assert not [name for name in record["flags"] if "PRECISION_CONSTRAINTS" in name]
        return
    assert told == {"layers": 5, "not_found": ["gone"]}
    held = {"soft", "norm", "norm_7", "(Unnamed Layer* 4) [ElementWise]", "mean"}
    assert record["constraints"] == {name: [FLOAT, f"0: {FLOAT}"] for name in held}
    assert record["flags"]["BuilderFlag.OBEY_PRECISION_CONSTRAINTS"] is True


def test_metadata_names_the_node_where_a_release_has_it(release, start, build):
    """From 8.6 on the parser writes the node into each layer's metadata, which counts more than a name that looks like one."""
    layers = [
        {"name": "whatever", "outputs": [["x", "FLOAT"]], "metadata": "[ONNX Layer: soft]"},
        {"name": "norm", "outputs": [["y", "FLOAT"]], "metadata": "[ONNX Layer: conv]"},
        {"name": "both", "outputs": [["z", "FLOAT"]], "metadata": "[ONNX Layer: conv]\x1f[ONNX Layer: mean]"},
    ]
    if release.number >= (10, 0):
        pytest.skip("from TensorRT 10 on a network is strongly typed, which test_islands_are_held_in_float32 shows")
    with start(layers=layers, layer_dtype="FP16") as worker:
        told, record = build(worker, NODES)
    expected = {"whatever", "both"} if release.number >= (8, 6) else {"norm"}
    assert set(record["constraints"]) == expected
    assert set(told["not_found"]) == set(NODES["outputs"]) - ({"soft", "mean"} if release.number >= (8, 6) else {"norm"})


def test_nothing_is_obeyed_where_no_layer_was_found(release, start, build):
    """A model without islands, and islands without layers, leave the builder as it is."""
    with start(layers=LAYERS[:1], layer_dtype="FP16") as worker:
        assert build(worker, {})[0] == {}
        told, record = build(worker, NODES)
    assert told == ({} if release.number >= (10, 0) else {"layers": 0, "not_found": ["gone", "mean", "norm", "soft"]})
    assert not [name for name in record["flags"] if "PRECISION_CONSTRAINTS" in name]
