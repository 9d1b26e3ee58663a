"""An ONNX model as onnx-ir has it, in the form that the adapter reads, and back."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import InvariantError, PassError, common

from exporter.errors import ArtifactError, FoldError

__all__ = ["closed", "opened"]

_OLDEST_OPSET = 7
_FIRST_WITH_FREE_INITIALIZERS = 4
"""Up to version 3 of the file format every initializer is an input too, whether or not anybody means to replace it."""


def opened(model: onnx.ModelProto, base: Path) -> ir.Model:
    """Return ``model`` with its functions inlined and sums of many terms written as sums of two.

    Args:
        model: checked; it is left as it is.
        base: the folder of its external data.

    Raises:
        FoldError: the version of the standard is not one that is read (E381), the file has something that would be lost (E382), or its
            functions cannot be inlined (E383).
        ArtifactError: external data cannot be read (E385).
    """
    _refuse_what_is_lost(model)
    _refuse_other_opsets(model)
    opened_ = ir.from_proto(model)
    opened_.opset_imports.setdefault("", opened_.opset_imports.get("ai.onnx", 1))
    ir.external_data.set_base_dir(opened_.graph, base)
    _refuse_unreadable(opened_, base)
    if opened_.functions:
        _inline_(opened_)
    if opened_.ir_version < _FIRST_WITH_FREE_INITIALIZERS:
        common.RemoveInitializersFromInputsPass()(opened_)
    _split_sums_(opened_)
    return opened_


def closed(model: ir.Model) -> onnx.ModelProto:
    """Return the message of a model that ``opened`` returned."""
    if model.ir_version < _FIRST_WITH_FREE_INITIALIZERS:
        common.AddInitializersToInputsPass()(model)
    return ir.to_proto(model)


def _refuse_what_is_lost(model: onnx.ModelProto) -> None:
    found = [name for name, there in (("training_info", model.training_info), ("sparse_initializer", model.graph.sparse_initializer)) if there]
    if found:
        raise FoldError("E382", "the ONNX file has parts that the fold would lose; nothing was folded", facts={"found": ", ".join(found)})


def _refuse_other_opsets(model: onnx.ModelProto) -> None:
    version = next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 0)
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= version <= newest:
        facts = {"found": f"opset {version}", "expected": f"{_OLDEST_OPSET} to {newest}"}
        raise FoldError("E381", "the opset of the ONNX file is not one that is read", facts=facts)


def _refuse_unreadable(model: ir.Model, base: Path) -> None:
    """Refuse external data outside the folder, and such that are not there."""
    home = base.resolve()
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        path = (base / tensor.location).resolve()
        end = (tensor.offset or 0) + tensor.nbytes
        if not path.is_relative_to(home) or not path.is_file() or path.stat().st_size < end:
            facts = {"tensor": repr(name), "found": repr(str(tensor.location)), "expected": f"a file in {home} with at least {end} bytes"}
            raise ArtifactError("E385", "external data of the ONNX file cannot be read", facts=facts)


def _inline_(model: ir.Model) -> None:
    try:
        common.InlinePass()(model)
    except (InvariantError, PassError, ValueError) as err:
        raise FoldError("E383", "the functions of the ONNX file cannot be inlined", facts={"found": str(err.__cause__ or err)[:600]}) from err


def _split_sums_(model: ir.Model) -> None:
    """Write a Sum of many terms as sums of two, added in the same order: a sum can then lose one of its terms."""
    taken = {value.name for node in model.graph.all_nodes() for value in node.outputs}
    for node in list(model.graph):
        if node.op_type != "Sum" or node.domain not in {"", "ai.onnx"} or len(node.inputs) < 3:
            continue
        total = node.inputs[0]
        for number, term in enumerate(node.inputs[1:-1], 1):
            name = f"{node.outputs[0].name}_part{number}"
            while name in taken:
                name += "_"
            taken.add(name)
            added = ir.Node("", "Add", [total, term], name=f"{node.name or name}_{number}", metadata_props=dict(node.metadata_props))
            added.outputs[0].name = name
            model.graph.insert_before(node, added)
            total = added.outputs[0]
        last = node.inputs[-1]
        node.resize_inputs(2)
        node.replace_input_with(0, total)
        node.replace_input_with(1, last)
