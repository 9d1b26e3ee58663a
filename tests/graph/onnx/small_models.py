"""Small ONNX models in float64, made by hand, and how they are folded and run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from exporter.artifacts import FoldedOnnx
from exporter.config import FoldConfig
from exporter.graph import fold_onnx

IMAGE = (2, 3, 8, 8)
BOUND = 1e-10


def node(op_type: str, inputs: str, outputs: str, **attributes: object) -> onnx.NodeProto:
    """Return a node; the names of its inputs and outputs stand in one text, ``-`` for one that is left out."""
    names = [["" if name == "-" else name for name in text.split()] for text in (inputs, outputs)]
    return helper.make_node(op_type, *names, name=f"node_{names[1][0]}", **attributes)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """Return random numbers of both signs."""
    return np.random.default_rng(seed).standard_normal(shape)


def norm_constants(channels: int, name: str = "bn", seed: int = 0) -> dict[str, np.ndarray]:
    """Return the constants of a trained BatchNorm: some gamma negative, one near zero, variances over decades."""
    generator = np.random.default_rng(seed + 100)
    gamma = generator.standard_normal(channels)
    gamma[0], gamma[1] = 1e-8, -1.5
    arrays = (gamma, generator.standard_normal(channels), generator.standard_normal(channels), generator.uniform(0.05, 4.0, channels))
    return {f"{name}.{part}": array for part, array in zip(("weight", "bias", "running_mean", "running_var"), arrays, strict=True)}


def norm(data: str, output: str, name: str = "bn", **attributes: object) -> onnx.NodeProto:
    """Return a BatchNormalization with the constants of ``norm_constants``."""
    return node("BatchNormalization", f"{data} {name}.weight {name}.bias {name}.running_mean {name}.running_var", output, **attributes)


def model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    *,
    shape: tuple[int | str, ...] = IMAGE,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 20,
    dtype: int = TensorProto.DOUBLE,
    **given: object,
) -> onnx.ModelProto:
    """Return a model with the input ``x``; constants in float64 become ``dtype``, others stay as they are."""
    tensors = []
    for name, array in constants.items():
        kept = array if array.dtype != np.float64 else array.astype(helper.tensor_dtype_to_np_dtype(dtype))
        tensors.append(numpy_helper.from_array(kept, name))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, dtype, None) for name in outputs],
        tensors,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], **{"ir_version": 10, **given})
    inferred = onnx.shape_inference.infer_shapes(made, data_prop=True)
    for output, known in zip(made.graph.output, inferred.graph.output, strict=True):
        output.CopyFrom(known)
    return made


def folded(
    given: onnx.ModelProto,
    *,
    keep: tuple[str, ...] = (),
    base: Path = Path(),
    level: Literal["conservative", "default", "aggressive"] = "default",
) -> FoldedOnnx:
    """Fold a model."""
    return fold_onnx(given, FoldConfig(keep=keep, level=level), base=base)


def run(given: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    """Run a model with ONNX's own evaluator, which computes in the dtype of the model.

    Its BatchNormalization of the opsets before 14 normalises with the batch's statistics; so such a model runs as one of opset 15.
    """
    if given.opset_import[0].version < 14:
        given = onnx.ModelProto.FromString(given.SerializeToString())
        given.opset_import[0].version = 15
    return [np.asarray(array) for array in ReferenceEvaluator(given).run(None, {given.graph.input[0].name: x})]


def error_of(given: onnx.ModelProto, fold: FoldedOnnx, shape: tuple[int, ...] = IMAGE) -> float:
    """Return the largest ``max|folded - given| / max|given|`` over all outputs, on random numbers."""
    x = numbers(*shape, seed=7)
    worst = 0.0
    for reference, candidate in zip(run(given, x), run(fold.model, x), strict=True):
        assert reference.shape == candidate.shape
        worst = max(worst, float(np.abs(candidate - reference).max() / max(np.abs(reference).max(), 1e-300)))
    return worst


def ops_of(given: onnx.ModelProto) -> list[str]:
    """Return the kinds of the nodes of a model, without constants."""
    return [each.op_type for each in given.graph.node if each.op_type != "Constant"]


def constant_of(given: onnx.ModelProto, name: str) -> np.ndarray:
    """Return the numbers of an initializer."""
    return next(numpy_helper.to_array(tensor) for tensor in given.graph.initializer if tensor.name == name)
