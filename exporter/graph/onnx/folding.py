"""An ONNX model -> the same with every BatchNorm folded that has an exact fold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from exporter.artifacts import Folded, FoldedOnnx, Refusal, RefusalReason
from exporter.config import FoldConfig
from exporter.errors import FoldError, InternalError
from exporter.graph.explaining import sketch_of
from exporter.graph.onnx.constants import compute_constants_, drop_zero_biases_
from exporter.graph.onnx.nodes import name_of
from exporter.graph.onnx.opening import closed, opened
from exporter.graph.onnx.reading import Reading, nested_batch_norms, read_model
from exporter.graph.onnx.shapes import light_proto, types_of
from exporter.graph.onnx.surgery import folded_model
from exporter.graph.planning import Plan, make_plan

__all__ = ["fold_onnx"]

_NESTED = "it stands in a subgraph, which runs only at times: a branch of an If, the body of a Loop or Scan"


def fold_onnx(model: onnx.ModelProto, config: FoldConfig, *, base: Path) -> FoldedOnnx:
    """Fold the BatchNorms of ``model``, which may come from anywhere; what is not folded is refused by name.

    Functions of the model's own are inlined first, and constants are computed that are weights or numbers per channel.

    Args:
        model: checked; it is left as it is.
        config: ``enabled`` and the patterns of what to ``keep``.
        base: the folder of its external data. Tensors there that the fold leaves as they are stay there.

    Raises:
        FoldError: the version of the standard is not one that is read (E381), the file has something that would be lost (E382), its
            functions cannot be inlined (E383), or its shapes not be inferred (E384); or an input is to be normalised (E365).
        ArtifactError: external data cannot be read (E385).
        InternalError: the folded model does not pass ONNX's checks although the given one does (E388), or differs from the plan (E389).
    """
    if config.input:
        facts = {"found": ", ".join(config.input), "because": "the input of an ONNX file is what its exporter made it"}
        help_text = "fold it where the network is traced, with --fold-input; leave [fold] input out for ONNX files"
        raise FoldError("E365", "the normalisation of an input cannot be folded exactly", facts=facts, help=help_text)
    working = opened(model, base)
    num_nodes, nested = _count_nodes(working), nested_batch_norms(working)
    types = types_of(working)
    drop_zero_biases_(working, types)
    computed = compute_constants_(working, types)
    reading = read_model(working, types, computed.exact)
    norms = _norm_nodes(reading)
    sketch = sketch_of(reading.graph)
    plan = make_plan(reading.graph, reading.constants, config)
    folded_model(reading, plan)
    _check_against_plan(reading, plan, norms)
    _check_with_onnx(working, model, base)
    ahead = tuple(Folded(name, "a constant", "constant", 0, 1.0, "constant") for name in computed.batch_norms)
    kept = (
        *(Refusal(name, RefusalReason.NOT_LINEAR, (), why) for name, why in reading.unread),
        *(Refusal(name, RefusalReason.NOT_LINEAR, (), _NESTED) for name in nested),
    )
    return FoldedOnnx(
        model=closed(working),
        folded=(*ahead, *plan.folded),
        refusals=(*plan.refusals, *kept),
        num_batch_norms=len(norms) + len(kept) + len(ahead) + plan.num_affine,
        ops_before=num_nodes,
        ops_after=_count_nodes(working),
        sketch=sketch,
        cost_before=plan.cost_before,
        cost_after=plan.cost_after,
        absorbed=plan.absorbed,
    )


def _count_nodes(model: ir.Model) -> int:
    """Return the number of nodes, without those that are constants."""
    return sum(node.op_type != "Constant" for node in model.graph)


def _norm_nodes(reading: Reading) -> dict[str, ir.Node]:
    """Return operator -> the node that makes its output, for every BatchNorm."""
    names = {operator.name for operator in reading.graph.batch_norms()}
    return {name: node for node in reading.model.graph if (name := name_of(node)) in names}


def _check_against_plan(reading: Reading, plan: Plan, norms: Mapping[str, ir.Node]) -> None:
    """Compare the BatchNorms that are left in the model with those that the plan keeps."""
    left = {name for name, node in norms.items() if node.graph is not None}
    kept = {name for name in norms if name in reading.graph.operators}
    num_folded = len(plan.folded) - plan.num_affine
    if left != kept or len(left) != len(plan.refusals) or len(norms) != len(left) + num_folded:
        found = f"{len(norms)} BatchNorms before, {len(left)} after, {num_folded} folded, {len(plan.refusals)} refused"
        raise InternalError("E389", "the folded ONNX model differs from the plan", facts={"found": found})


def _check_with_onnx(folded: ir.Model, given: onnx.ModelProto, base: Path) -> None:
    """Run ONNX's checker and strict shape inference; what the given model does not pass either is no fault of the fold."""
    objection = _objection_of_onnx(folded)
    if objection and not _objection_of_onnx(opened(given, base)):
        raise InternalError("E388", "the folded ONNX model does not pass ONNX's own checks", facts={"found": objection})


def _objection_of_onnx(model: ir.Model) -> str:
    try:
        onnx.checker.check_model(light_proto(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        return str(err).strip()[:600] or "no reason given"
    return ""
