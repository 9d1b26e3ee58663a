"""Folded program -> ONNX model, through ``torch.onnx.export(dynamo=True)``.

The exporter's own optimiser stays off: it folds BatchNorms by its own rules, also those that the plan refused or that the user
wants kept, and says nothing about it. What it would tidy otherwise is done by ``tidying.py``, in the open.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import onnx
import onnx_ir
import torch
from onnx_ir.passes import common
from torch._ops import OpOverload

from exporter.artifacts import EIGHT_BIT, Graph, OnnxModel, Provenance, RangeEvidence
from exporter.config import OnnxConfig
from exporter.errors import ConfigError, ExportError
from exporter.factories import installed_version
from exporter.onnx_export.checking import check_against_graph
from exporter.onnx_export.keys import LIBRARIES
from exporter.onnx_export.lowering.converting import lower_onnx
from exporter.onnx_export.precision import HalfValues, check_patterns, half_values, halve_, precision_shares, shares_text
from exporter.onnx_export.precision.measuring import TOO_LARGE, checked_range, on_float32
from exporter.onnx_export.quantising import FIRST_OPSET, find_products, quantise_
from exporter.onnx_export.removing import remove_onnx
from exporter.onnx_export.shapes import fix_batch_, name_axes_
from exporter.onnx_export.tidying import tidy_
from exporter.onnx_export.writing import INLINE_LIMIT_BYTES, weight_bytes, write_onnx

__all__ = ["export_onnx"]

Calibrate: TypeAlias = Callable[[OnnxModel, Sequence[str]], tuple[Mapping[str, float], Mapping[str, str]]]

OLDEST_OPSET = 18
"""torch's exporter writes none older; opset 17 is made from it."""
_TRAINING_CALLS = {"aten::batch_norm", "aten::native_batch_norm", "aten::_native_batch_norm_legit", "aten::cudnn_batch_norm"}


def export_onnx(
    graph: Graph,
    path: Path,
    config: OnnxConfig,
    *,
    key: str,
    check_lowered: Callable[[OnnxModel, OnnxModel], Mapping[str, str]] | None = None,
    check_range: Callable[[OnnxModel, HalfValues], RangeEvidence] | None = None,
    calibrate: Calibrate | None = None,
) -> OnnxModel:
    """Write the folded program of ``graph`` to ``path``.

    Inputs and outputs keep their names and order; a dynamic axis keeps its name. With ``dynamic_batch = false`` the axis called
    ``batch`` is fixed at 1. The same graph gives the same bytes.

    Args:
        graph: the folded graph.
        path: an ``.onnx``; beyond 2 GiB the weights go to a file beside it, named by their digest.
        config: the opset and whether the batch is dynamic.
        key: cache key for the record, from ``onnx_key``.
        check_lowered: for opset 17, which is made from opset 18: given both models, before the older one is written; it returns facts
            for the lineage, or raises.
        check_range: for float16: given the float32 model and what of it will be in float16; it returns what it measured, or raises.
        calibrate: for int8 and fp8: given the float32 model and names of its values, it returns the largest magnitude to keep of each, and facts
            for the lineage.

    Raises:
        ConfigError: the opset lacks the precision (E455, E483), or a pattern of what stays in float32 matches nothing (E456).
        ExportError: the program has a BatchNorm in training mode (E401), an operator has no ONNX form (E402) or none in opset 17
            (E451, E452), or the model does not pass ONNX's checker and strict shape inference (E403); nothing can be quantised
            (E484 to E486). Nothing was written.
        InternalError: the model has a BatchNorm that the plan folded, or other inputs and outputs (E491).
        ArtifactError: the file could not be written (E711).
    """
    _refuse_training(graph)
    _refuse_8_bits(config, is_measured=calibrate is not None)
    if config.opset < OLDEST_OPSET:
        return _export_lowered(graph, path, config, key=key, check=check_lowered, check_range=check_range, calibrate=calibrate)
    model = _exported(graph, config)
    name_axes_(model, graph.inputs)
    if not config.dynamic_batch:
        fix_batch_(model)
    tidy_(model, inputs=[spec.name for spec in graph.inputs], outputs=[spec.name for spec in graph.outputs])
    islands: dict[str, str] = {}
    in_range: Mapping[str, str] = {}
    ranges: RangeEvidence | None = None
    if config.precision in EIGHT_BIT and calibrate is not None:
        islands, in_range = _quantise_(model, path, config, calibrate)
    elif config.precision != "float32":
        check = check_range if config.precision == "float16" else None
        wide = None
        if check is not None and weight_bytes(model) <= INLINE_LIMIT_BYTES:
            wide = onnx.shape_inference.infer_shapes(onnx_ir.to_proto(model))
        islands = halve_(model, config.precision, config.float32)
        common.RemoveUnusedNodesPass()(model)
        if check is not None:
            ranges = TOO_LARGE if wide is None else checked_range(wide, path, half_values(model, islands), check)
    provenance = _provenance(graph, config, shares_text(precision_shares(model)))
    provenance = dataclasses.replace(provenance, lineage={**provenance.lineage, **in_range})
    _label_(model, graph, provenance, islands)
    check_against_graph(model, graph, opset=config.opset)
    return write_onnx(model, path, provenance, key=key, ranges=ranges)


def _refuse_8_bits(config: OnnxConfig, *, is_measured: bool) -> None:
    first = FIRST_OPSET.get(config.precision, 0)
    if config.opset < first:
        facts = {"found": f"opset {config.opset}", "expected": f"{first} or newer"}
        raise ConfigError("E483", f"the opset has no pairs of QuantizeLinear and DequantizeLinear in {config.precision}", facts=facts)
    if config.precision in EIGHT_BIT and not is_measured:
        help_text = "export_onnx(..., calibrate=exporter.calibration.calibration_of(config, samples))"
        raise ExportError("E484", "8 bits need ranges, and nothing was given to measure them", facts={"precision": config.precision}, help=help_text)


def _quantise_(model: onnx_ir.Model, path: Path, config: OnnxConfig, calibrate: Calibrate) -> tuple[dict[str, str], Mapping[str, str]]:
    """Bring the model into 8 bits; return node -> why it stays in float32, and facts for the lineage."""
    if weight_bytes(model) > INLINE_LIMIT_BYTES:
        raise ExportError(
            "E485", "the model is too large to be calibrated", facts={"found": "over 2 GiB of weights"}, help='[onnx] precision = "float16"'
        )
    common.ShapeInferencePass()(model)
    check_patterns(model, config.float32)
    products, islands = find_products(model, config.float32)
    if not products:
        facts = {"found": "; ".join(f"{node.name}: {reason}" for node, reason in islands.items()) or "no product with a constant weight"}
        raise ExportError("E486", "nothing in the network can compute in 8 bits", facts=facts, help="[onnx] float32 may keep too much out")
    wide = onnx.shape_inference.infer_shapes(onnx_ir.to_proto(model))
    names = list(dict.fromkeys(product.data.name or "" for product in products))
    ranges, measured = on_float32(wide, path, lambda between: calibrate(between, names))
    islands |= {product.node: "always zero" for product in products if not ranges[product.data.name or ""]}
    quantise_(model, config.precision, [product for product in products if product.node not in islands], ranges)
    return {node.name or "": reason for node, reason in islands.items()}, measured


def _export_lowered(
    graph: Graph,
    path: Path,
    config: OnnxConfig,
    *,
    key: str,
    check: Callable[[OnnxModel, OnnxModel], Mapping[str, str]] | None,
    check_range: Callable[[OnnxModel, HalfValues], RangeEvidence] | None,
    calibrate: Calibrate | None,
) -> OnnxModel:
    between = path.with_name(f".{path.stem}.opset{OLDEST_OPSET}.onnx")
    try:
        newer = export_onnx(graph, between, config.replace(opset=OLDEST_OPSET), key=key, check_range=check_range, calibrate=calibrate)
        return lower_onnx(newer, path, key=key, provenance=_provenance(graph, config, newer.provenance.lineage["precision_shares"]), check=check)
    finally:
        remove_onnx(between)


def _refuse_training(graph: Graph) -> None:
    """Refuse a BatchNorm that normalises with the batch's statistics although it has running ones.

    The exporter would write it as if it used the running ones, which is another function, and would not say so.
    """
    found = []
    for module in graph.folded_program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            if _is_in_training_mode(node):
                stack = node.meta.get("nn_module_stack") or {"": (node.name, "")}
                found += [str(list(stack.values())[-1][0])]
    if found:
        help_text = "put it in eval mode; a train() that ignores its argument keeps it in training mode, and so does training=True in forward"
        raise ExportError(
            "E401",
            "a BatchNorm is in training mode, which ONNX would silently turn into eval mode",
            facts={"BatchNorm": ", ".join(found)},
            help=help_text,
        )


def _is_in_training_mode(node: torch.fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    schema = node.target._schema  # noqa: SLF001 - torch has no public name for it
    names = [argument.name for argument in schema.arguments] if schema.name in _TRAINING_CALLS else []
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    return given.get("training") is True and given.get("running_mean") is not None


def _exported(graph: Graph, config: OnnxConfig) -> onnx_ir.Model:
    names = [spec.name for spec in graph.inputs], [spec.name for spec in graph.outputs]
    with _quiet():
        try:
            program = torch.onnx.export(
                graph.folded_program,
                (),
                None,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=config.opset,
                input_names=names[0],
                output_names=names[1],
            )
        except torch.onnx.errors.OnnxExporterError as err:
            cause: BaseException = err
            while cause.__cause__ is not None:
                cause = cause.__cause__
            said = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
            raise ExportError("E402", "a part of the network has no ONNX form", facts={"torch says": said[:400], "opset": config.opset}) from err
    if program is None:
        raise ExportError("E402", "a part of the network has no ONNX form", facts={"opset": config.opset})
    return program.model


def _provenance(graph: Graph, config: OnnxConfig, shares: str) -> Provenance:
    versions = {**graph.provenance.versions, **{name: installed_version(name) for name in LIBRARIES}}
    lineage = {**graph.provenance.lineage, "opset": str(config.opset), "precision": config.precision, "precision_shares": shares}
    made_from = {"graph": str(graph.digest)} if graph.digest is not None else dict(graph.provenance.made_from)
    return dataclasses.replace(
        graph.provenance, stage="onnx_export", made_from=made_from, settings=config.to_json(), versions=versions, lineage=lineage
    )


def _label_(model: onnx_ir.Model, graph: Graph, provenance: Provenance, islands: Mapping[str, str]) -> None:
    """Write the lineage into the file: every key begins with ``exporter.``."""
    model.producer_name, model.producer_version = "exporter", provenance.versions["exporter"]
    model.graph.name = "main"
    facts = {f"exporter.{name}": str(text) for name, text in provenance.lineage.items()}
    facts |= {f"exporter.version.{name}": text for name, text in provenance.versions.items()}
    facts |= {f"exporter.made_from.{name}": text for name, text in graph.provenance.made_from.items()}
    facts["exporter.folds"] = json.dumps({fold.batch_norm: fold.producer for fold in graph.folded}, sort_keys=True)
    facts["exporter.refusals"] = json.dumps({refusal.batch_norm: refusal.reason.name for refusal in graph.refusals}, sort_keys=True)
    if islands:
        facts["exporter.float32"] = json.dumps(islands, sort_keys=True)
    model.metadata_props.clear()
    model.metadata_props.update(dict(sorted(facts.items())))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence two things that a user can do nothing about, and nothing else.

    The exporter deep-copies the program; rebuilding its pytree specs instantiates a class that torch itself deprecates. And it
    notes that torchvision's operators are not registered where torchvision is not installed.
    """
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")

    def is_news(record: logging.LogRecord) -> bool:
        return "torchvision is not installed" not in record.getMessage()

    registration.addFilter(is_news)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning)
            yield
    finally:
        registration.removeFilter(is_news)
