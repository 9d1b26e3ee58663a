from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "contract"))

from bindings import CACHE, PIP_DOWNLOAD, alone, lacking

from exporter.artifacts import Digest, OnnxModel, Plan, Profile, Provenance, TensorSpec
from exporter.records import write_record

TRITON_CLIENT = "tritonclient==2.73.0"
"""Only the generated module of Triton's own model_config.proto is taken from it."""


@pytest.fixture(scope="session")
def schema():
    """Triton's own protobuf message for a model's configuration."""
    folder = CACHE / TRITON_CLIENT.replace("==", "-")
    source = folder / "model_config_pb2.py"
    with alone(folder.name):
        if not source.exists():
            done = subprocess.run([*PIP_DOWNLOAD, "--dest", str(folder), TRITON_CLIENT], capture_output=True, text=True, check=False)
            if done.returncode:
                lacking(f"{TRITON_CLIENT} could not be downloaded: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
            with zipfile.ZipFile(next(folder.glob("tritonclient-*.whl"))) as archive:
                content = archive.read("tritonclient/grpc/model_config_pb2.py")
            temporary = folder / "model_config_pb2.tmp"
            temporary.write_bytes(content)
            temporary.replace(source)
    spec = importlib.util.spec_from_file_location("model_config_pb2", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(schema):
    """Return a function that reads a ``config.pbtxt`` with Triton's own message; a field that it does not have is an error."""
    from google.protobuf import text_format

    return lambda path: text_format.Parse(path.read_text(), schema.ModelConfig())


BATCHED = (TensorSpec("image", ("batch", 1, 8, 8), "float32"),)
LOGITS = (TensorSpec("logits", ("batch", 10), "float32"),)
ONE = ({"image": ((1, 1, 8, 8), (32, 1, 8, 8), (64, 1, 8, 8))},)


@pytest.fixture
def make_plan(tmp_path):
    """Return a function that writes a plan with its sidecar, as a build does; the bytes are none of TensorRT's."""

    def make(content=b"plan", *, inputs=BATCHED, outputs=LOGITS, profiles=ONE, dtypes=None, name="digits.plan"):
        path = tmp_path / name
        path.write_bytes(content)
        names = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
        dtypes = dtypes or {spec.name: names[spec.dtype] for spec in (*inputs, *outputs)}
        write_record(path, key="0" * 64, content={"kind": "plan", "engine_tensors": [{"name": n, "dtype": d} for n, d in dtypes.items()]})
        provenance = Provenance("engine", {"onnx": f"sha256:{'a' * 64}"}, {}, {}, {"checkpoint": 'a "quoted"\npath\\é.pt', "weights": "ema"})
        found = tuple(Profile(shapes) for shapes in profiles)
        digest = Digest(hashlib.sha256(content).hexdigest())
        return Plan(
            path, path.with_name(f"{name}.json"), digest, "fp32", {"fp32": 1.0}, "11.4.0.106", "a GPU", inputs, outputs, found, 1.0, provenance
        )

    return make


@pytest.fixture
def make_onnx(tmp_path):
    """Return a function that writes a real ONNX model, of one Identity for each input."""
    import onnx

    def make(inputs=BATCHED, *, external=False, name="digits.onnx"):
        nodes, outputs, constants, types = [], [], [], {"float32": 1, "int64": 7, "float16": 10, "bool": 9}
        for spec in inputs:
            nodes.append(onnx.helper.make_node("Identity", [spec.name], [f"{spec.name}_out"]))
            outputs.append(TensorSpec(f"{spec.name}_out", spec.shape, spec.dtype))
        if external:
            constants.append(onnx.numpy_helper.from_array(__import__("numpy").arange(4, dtype="float32"), "w"))
            nodes.append(onnx.helper.make_node("Identity", ["w"], ["w_out"]))
        values = {
            side: [onnx.helper.make_tensor_value_info(s.name, types[s.dtype], s.shape) for s in specs]
            for side, specs in (("i", inputs), ("o", outputs))
        }
        graph = onnx.helper.make_graph(nodes, "g", values["i"], values["o"], constants)
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
        path = tmp_path / name
        if external:
            onnx.save_model(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
        else:
            path.write_bytes(model.SerializeToString())
        digest = Digest(hashlib.sha256(path.read_bytes()).hexdigest())
        return OnnxModel(path, digest, 20, 10, inputs, tuple(outputs), len(nodes), 0, {}, Provenance("onnx_export"))

    return make
