"""What a model of ours must satisfy before it is written."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from exporter.artifacts import Graph
from exporter.errors import ExportError, InternalError

__all__ = ["check_against_graph", "check_with_onnx", "count_batch_norms"]


def check_against_graph(model: ir.Model, graph: Graph, *, opset: int) -> None:
    """Raise unless ``model`` has the inputs, outputs, opset and at most the BatchNorms that ``graph`` says.

    Raises:
        InternalError: it has not (E491).
    """
    found = [value.name for value in model.graph.inputs], [value.name for value in model.graph.outputs]
    expected = [spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs]
    if found != expected:
        raise InternalError("E491", "the ONNX model has other inputs or outputs than the graph", facts={"found": found, "expected": expected})
    if model.opset_imports.get("") != opset:
        raise InternalError(
            "E491", "the ONNX model has another opset than was asked for", facts={"found": model.opset_imports.get(""), "expected": opset}
        )
    folded = {fold.batch_norm for fold in graph.folded}
    kept = [node for node in model.graph.all_nodes() if node.op_type == "BatchNormalization"]
    again = [name for node in kept if (name := node.metadata_props.get("exporter.module", "")) in folded and not graph.refusals]
    if len(kept) > len(graph.refusals) or again:
        facts = {"found": f"{len(kept)} BatchNormalization", "expected": f"at most {len(graph.refusals)}, those that were refused"}
        raise InternalError("E491", "the ONNX model has a BatchNorm that was folded", facts=facts)


def check_with_onnx(model: onnx.ModelProto | str) -> None:
    """Run ONNX's full checker and strict shape inference on a model or, with external data, on the file at a path.

    Raises:
        ExportError: the model does not pass (E403).
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        if isinstance(model, onnx.ModelProto):
            onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise ExportError(
            "E403", "the ONNX model does not pass ONNX's own checks; nothing was written", facts={"found": str(err).strip()[:600]}
        ) from err


def count_batch_norms(model: onnx.ModelProto) -> int:
    """Return the number of BatchNormalization nodes of a model, subgraphs and functions included."""

    def count(nodes: list[onnx.NodeProto]) -> int:
        inner = sum(count(list(graph.node)) for node in nodes for attribute in node.attribute for graph in [attribute.g, *attribute.graphs])
        return inner + sum(node.op_type == "BatchNormalization" for node in nodes)

    return count(list(model.graph.node)) + sum(count(list(function.node)) for function in model.functions)
