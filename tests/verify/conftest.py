"""The digits network with its averaged weights, unfused and folded by torch's own functions, and runners for both."""

from __future__ import annotations

import ast
import copy
import dataclasses
import importlib.util
import warnings
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from exporter.artifacts import Digest, Folded, Graph, OnnxModel, Provenance, TensorSpec
from exporter.onnx_export.precision import halve_
from exporter.samples import Samples, read_samples

DIGITS = Path(__file__).resolve().parents[2] / "fixtures" / "digits"
INPUTS = (TensorSpec("image", ("batch", 1, 8, 8), "float32"),)
OUTPUTS = (TensorSpec("logits", ("batch", 10), "float32"),)
EXAMPLE = (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),)
FOLDS = {
    "stem.0": "stem.1",
    **{f"stages.block{n}.{conv}": f"stages.block{n}.bn{k}" for n in (1, 2, 3) for k, conv in ((1, "depthwise"), (2, "grouped"), (3, "pointwise"))},
    "stages.block2.shortcut.0": "stages.block2.shortcut.1",
    "hidden": "hidden_bn",
}


def fold_by_torch(module: nn.Module, disturb: str = "", factor: float = 1.01) -> nn.Module:
    """Return a copy with every pair of FOLDS folded; the folded weight of ``disturb`` is multiplied by ``factor``."""
    folded = copy.deepcopy(module)
    for producer, norm in FOLDS.items():
        linear, bn = folded.get_submodule(producer), folded.get_submodule(norm)
        fused = (fuse_linear_bn_eval if isinstance(linear, nn.Linear) else fuse_conv_bn_eval)(linear, bn)
        if producer == disturb:
            with torch.no_grad():
                fused.weight.mul_(factor)
        folded.set_submodule(producer, fused)
        folded.set_submodule(norm, nn.Identity())
    return folded.eval()


def export_program(module: nn.Module) -> torch.export.ExportedProgram:
    """Trace with a dynamic batch."""
    return torch.export.export(module, EXAMPLE, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def make_graph(unfused: torch.export.ExportedProgram, folded: nn.Module) -> Graph:
    """Return a graph value as the fold would make it."""
    folds = tuple(Folded(norm, producer, "conv2d+bn", 1, 1.0) for producer, norm in FOLDS.items())
    return Graph(unfused, export_program(folded), INPUTS, OUTPUTS, folds, (), 13, 0, 0, Provenance("graph"))


def export_onnx(module: nn.Module, path: Path, inputs=INPUTS, outputs=OUTPUTS, example=EXAMPLE, *, opset=20) -> OnnxModel:
    """Write ``module`` by torch's own exporter, with the messages that it prints kept quiet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = {"input_names": [spec.name for spec in inputs], "output_names": [spec.name for spec in outputs]}
        shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in example)
        program = torch.onnx.export(module, example, dynamo=True, opset_version=opset, dynamic_shapes=shapes, verbose=False, **names)
        program.save(str(path))
    return OnnxModel(path, Digest("0" * 64), 20, 10, inputs, outputs, 0, 0, {}, Provenance("onnx"))


def halved(model: OnnxModel, precision: str, path: Path, *, wrong: str = "", factor: float = 1.0, patterns: tuple[str, ...] = ()) -> OnnxModel:
    """Write ``model`` in half precision, as the export does, with the weight of the module ``wrong`` multiplied by ``factor``."""
    made = onnx_ir.load(model.path)
    for node in made.graph:
        module = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "['', '']"))[-2]
        node.metadata_props["exporter.module"] = module
        if module == wrong and node.op_type in {"Conv", "Gemm"}:
            weight = node.inputs[1]
            weight.const_value = onnx_ir.tensor(weight.const_value.numpy() * np.float32(factor), name=weight.name)
    halve_(made, precision, patterns)
    path.write_bytes(onnx_ir.to_proto(made).SerializeToString())
    return dataclasses.replace(model, path=path, metadata={"exporter.precision": precision}, precision=precision)


@pytest.fixture(scope="session")
def unfused() -> nn.Module:
    """The digits network with the averaged weights, in eval mode."""
    spec = importlib.util.spec_from_file_location("digits_model", DIGITS / "model.py")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    state = torch.load(DIGITS / "digits.pt", weights_only=True)["model_ema"]
    module = model.build()
    module.load_state_dict({name.removeprefix("module."): value for name, value in state.items() if name.startswith("module.")})
    return module.eval()


@pytest.fixture(scope="session")
def unfused_program(unfused: nn.Module) -> torch.export.ExportedProgram:
    """The unfused network, traced."""
    return export_program(unfused)


@pytest.fixture(scope="session")
def folded(unfused: nn.Module) -> nn.Module:
    """The same, folded."""
    return fold_by_torch(unfused)


@pytest.fixture(scope="session")
def samples() -> Samples:
    """360 labelled digits."""
    return read_samples(DIGITS / "samples.npz", labels="label")


@pytest.fixture(scope="session")
def onnx_model(folded: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The folded network as an ONNX file."""
    return export_onnx(folded, tmp_path_factory.mktemp("onnx") / "digits.onnx")


@pytest.fixture(scope="session")
def onnx_model_22(folded: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    """The same in opset 22, which has bfloat16."""
    return dataclasses.replace(export_onnx(folded, tmp_path_factory.mktemp("onnx") / "digits.onnx", opset=22), opset=22)
