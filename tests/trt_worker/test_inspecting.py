from __future__ import annotations

import json

import pytest

from exporter.trt_worker.serving.inspecting import layer_precisions, precision_shares

OLD = {
    "Layers": [
        {"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Outputs": [{"Name": "a", "Format/Datatype": "Row major linear FP32"}]},
        {
            "Name": "conv1",
            "LayerType": "CaskConvolution",
            "Outputs": [{"Name": "b", "Format/Datatype": "Two wide channel vectorized row major FP16 format"}],
        },
        {
            "Name": "conv2",
            "LayerType": "CaskConvolution",
            "Outputs": [{"Name": "c", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
        },
        {"Name": "topk", "LayerType": "TopK", "Outputs": [{"Name": "d", "Format/Datatype": "Row major linear INT32"}]},
    ],
    "Bindings": ["image", "logits"],
}
NEW = {
    "Layers": [
        {"Name": "conv1", "LayerType": "Conv", "Outputs": [{"Name": "b", "Format": "Row major linear", "Datatype": "Half"}]},
        {"Name": "conv2", "LayerType": "Conv", "Outputs": [{"Name": "c", "Format": "Row major linear", "Datatype": "BFloat16"}]},
        {"Name": "head", "LayerType": "Gemm", "Outputs": [{"Name": "d", "Format": "Row major linear", "Datatype": "Float"}]},
        {"Name": "no outputs", "LayerType": "Signal", "Outputs": []},
    ],
    "I/O Tensors": [{"Name": "image", "IOMode": "Input", "DataType": "Float"}],
}


def test_the_shape_up_to_10():
    """Format and datatype in one sentence are told apart."""
    assert layer_precisions(json.dumps(OLD)) == {"Reformatting CopyNode": "fp32", "conv1": "fp16", "conv2": "int8", "topk": "int32"}
    assert precision_shares(json.dumps(OLD)) == {"fp16": 0.25, "fp32": 0.25, "int32": 0.25, "int8": 0.25}


def test_the_shape_from_11_on():
    """Datatype stands alone; a layer that tells nothing is counted as unknown, not left out."""
    assert layer_precisions(json.dumps(NEW)) == {"conv1": "fp16", "conv2": "bf16", "head": "fp32", "no outputs": "unknown"}


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"Layers": ["conv1", "conv2"], "Bindings": []}', '{"Layers": {"a": 1}}'])
def test_an_inspector_that_tells_nothing(text):
    """Bare layer names, or no layers, give no shares: nothing is claimed."""
    assert precision_shares(text) == {}


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("Row major linear FP32", "fp32"),
        ("Row major linear FP16 format", "fp16"),
        ("Channel major FP16 format where channel % 8 == 0", "fp16"),
        ("Row major linear BF16", "bf16"),
        ("BFloat16", "bf16"),
        ("Row major linear BOOL", "bool"),
        ("Row major Int8 format", "int8"),
        ("FP8 E4M3", "fp8"),
        ("Int64", "int64"),
        ("UInt8", "uint8"),
        ("something new", "unknown"),
    ],
)
def test_words_for_dtypes(text, precision):
    """The words that TensorRT has used for a dtype, and one that it has not."""
    document = {"Layers": [{"Name": "l", "Outputs": [{"Format/Datatype": text}]}]}
    assert layer_precisions(json.dumps(document)) == {"l": precision}
