"""One float32 model, made again and again in half precision with other nodes kept in float32: what a search for islands tries."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from exporter.artifacts import OnnxModel, Provenance
from exporter.files import digest_of_file, write_bytes
from exporter.onnx_export.precision.halving import halve_
from exporter.onnx_export.precision.islands import find_islands, is_float
from exporter.onnx_export.precision.shares import half_values
from exporter.onnx_export.reading import describe
from exporter.onnx_export.writing import INLINE_LIMIT_BYTES, weight_bytes, write_onnx

__all__ = ["HalfNode", "Trial", "Trials"]


@dataclass(frozen=True, slots=True)
class HalfNode:
    """A node that computes in half precision unless it is kept.

    Attributes:
        module: that it comes from; empty where it is of the model's own forward.
    """

    name: str
    op: str
    module: str


@dataclass(frozen=True, slots=True)
class Trial:
    """A model in half precision.

    Attributes:
        stored: the values that it stores in half precision, by their names in the float32 model.
    """

    model: OnnxModel
    stored: frozenset[str]


class Trials:
    """The models in half precision that one float32 model has.

    Args:
        model: in float32, of ours.
        precision: ``float16`` or ``bfloat16``.
        patterns: of modules and nodes that stay in float32 in any case.
    """

    def __init__(self, model: OnnxModel, precision: str, patterns: tuple[str, ...]) -> None:
        self._given, self._precision, self._patterns = model, precision, patterns
        loaded = ir.load(model.path)
        common.ShapeInferencePass()(loaded)
        islands = find_islands(loaded, precision, patterns)
        free = [node for node in loaded.graph if node not in islands and any(is_float(value) for value in (*node.inputs, *node.outputs))]
        self.nodes = tuple(HalfNode(node.name or "", node.op_type, node.metadata_props.get("exporter.module", "")) for node in free)
        self._values = {node.name or "": {value.name for value in (*node.inputs, *node.outputs) if value is not None} for node in free}
        self._is_inline = weight_bytes(loaded) <= INLINE_LIMIT_BYTES

    def touching(self, values: Iterable[str]) -> tuple[str, ...]:
        """Return the nodes that make or read one of these values, in the order of the graph."""
        wanted = set(values)
        return tuple(name for name, own in self._values.items() if own & wanted)

    def typed(self, path: Path) -> OnnxModel | None:
        """Write the float32 model with the dtypes of all values, for ``measure_ranges``; None where its weights are beyond 2 GiB."""
        if not self._is_inline:
            return None
        proto = onnx.shape_inference.infer_shapes(onnx.load(str(self._given.path)))
        write_bytes(path, proto.SerializeToString())
        return describe(proto, path, digest_of_file(path), Provenance("onnx_export"))

    def without(self, kept: AbstractSet[str]) -> frozenset[str]:
        """Return the values that are stored in half precision with these nodes kept in float32."""
        return half_values(self._halved(kept), {}).stored

    def make(self, kept: AbstractSet[str], path: Path) -> Trial:
        """Write the model with these nodes kept in float32.

        Raises:
            ConfigError: as ``halve_`` (E455, E456).
            ExportError: it does not pass ONNX's checks (E403).
        """
        model = self._halved(kept)
        model.metadata_props["exporter.precision"] = self._precision
        return Trial(write_onnx(model, path, self._given.provenance, key=""), half_values(model, {}).stored)

    def _halved(self, kept: AbstractSet[str]) -> ir.Model:
        model = ir.load(self._given.path)
        halve_(model, self._precision, self._patterns, kept)
        common.RemoveUnusedNodesPass()(model)
        return model
