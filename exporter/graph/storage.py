"""Keep a graph on disk: two ``.pt2`` files, each with a keyed record.

``torch.export.load`` executes what is in a file, so it only ever gets bytes whose digest stands in a record that this machine
signed with its own secret. There is no way around that check.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from exporter.artifacts import Cost, Digest, Folded, Graph, Provenance, Refusal, RefusalReason, Sketch, SketchNode, Steep, TensorSpec, to_json
from exporter.errors import ArtifactError
from exporter.files import atomic_write
from exporter.records import read_record, record_path, recorded_digest, write_record

__all__ = ["load_graph", "save_graph", "unfused_path"]


_STORED = (
    "inputs",
    "outputs",
    "folded",
    "refusals",
    "absorbed",
    "num_batch_norms",
    "ops_before",
    "ops_after",
    "cost_before",
    "cost_after",
    "provenance",
)
"""What the record keeps of a graph, beside its programs."""


def unfused_path(path: Path) -> Path:
    """Return where the unfolded program lies beside the folded one at ``path``: ``net.fused.pt2`` -> ``net.fused.unfused.pt2``."""
    return path.with_name(f"{path.stem}.unfused{path.suffix}")


def save_graph(graph: Graph, path: Path, *, key: str) -> Graph:
    """Write the folded program to ``path`` and the unfolded one beside it; the record of ``path`` comes last.

    Returns:
        ``graph`` with ``path`` and ``digest`` set.

    Raises:
        ArtifactError: a file could not be written; an older graph at ``path`` is no longer valid then, and made again.
    """
    record_path(path).unlink(missing_ok=True)  # until all is written, there is no graph
    _save_program(graph.unfused, unfused_path(path))
    unfused = write_record(unfused_path(path), key=key, content={})
    _save_program(graph.folded_program, path)
    content = {
        "unfused_sha256": unfused.hex,
        **{name: to_json(getattr(graph, name)) for name in _STORED},
        "sketch": [_brief(node) for node in graph.sketch.nodes],
    }
    digest = write_record(path, key=key, content=content)
    return dataclasses.replace(graph, path=path, digest=digest)


def load_graph(path: Path, *, key: str | None = None) -> Graph | None:
    """Return the graph at ``path``; None where it has to be made again (missing, altered, not ours, or made from something else)."""
    content = read_record(path, key=key)
    if content is None or not {*_STORED, "sketch"} <= content.keys() or read_record(unfused_path(path), key=key) is None:
        return None
    folded, digest = _load_program(path)
    unfused, unfused_digest = _load_program(unfused_path(path))
    if folded is None or unfused is None or unfused_digest != content.get("unfused_sha256"):
        return None
    return Graph(
        unfused=unfused,
        folded_program=folded,
        inputs=_specs(content["inputs"]),
        outputs=_specs(content["outputs"]),
        folded=_folds(content["folded"]),
        refusals=tuple(
            Refusal(entry["batch_norm"], RefusalReason(entry["reason"]), tuple(entry["culprits"]), entry["detail"]) for entry in content["refusals"]
        ),
        num_batch_norms=content["num_batch_norms"],
        ops_before=content["ops_before"],
        ops_after=content["ops_after"],
        cost_before=Cost(**content["cost_before"]),
        cost_after=Cost(**content["cost_after"]),
        absorbed=_folds(content["absorbed"]),
        provenance=Provenance(**content["provenance"]),
        sketch=Sketch(tuple(SketchNode(**{**entry, "reads": tuple(entry.get("reads", ()))}) for entry in content["sketch"])),
        path=path,
        digest=Digest(digest, "file"),
    )


def _folds(entries: Iterable[Mapping[str, Any]]) -> tuple[Folded, ...]:
    return tuple(map(_folded, entries))


def _folded(entry: Mapping[str, Any]) -> Folded:
    steep = entry.get("steep")
    numbers = {} if steep is None else {name: float(steep[name]) for name in ("variance", "factor", "typical")}
    changed = {"max_scale": float(entry["max_scale"]), "changed": tuple(entry["changed"])}
    return Folded(**{**entry, **changed, "steep": None if steep is None else Steep(**{**steep, **numbers})})


def _save_program(program: ExportedProgram, path: Path) -> None:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def _load_program(path: Path) -> tuple[ExportedProgram | None, str]:
    """Load exactly the bytes whose digest the record of ``path`` states; None where they are not those."""
    try:
        content = path.read_bytes()
    except OSError as err:
        raise ArtifactError("E341", "a stored graph cannot be read", facts={"file": path, "found": err.strerror or err}) from err
    digest = hashlib.sha256(content).hexdigest()
    if read_record(path) is None or recorded_digest(path).hex != digest:
        return None, digest
    return torch.export.load(io.BytesIO(content)), digest


def _brief(node: SketchNode) -> dict[str, Any]:
    """Return a node as JSON without what is as it is by default: there are many of them."""
    defaults = {field.name: field.default for field in dataclasses.fields(SketchNode)}
    return {name: to_json(value) for name in defaults if (value := getattr(node, name)) != defaults[name]}


def _specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(entry["name"], tuple(entry["shape"]), entry["dtype"]) for entry in entries)
