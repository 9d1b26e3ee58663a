"""The plan, and its JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from exporter import __version__
from exporter.artifacts import TensorSpec
from exporter.errors import ArtifactError
from exporter.files import atomic_write
from exporter.graph.attempts import Attempt
from exporter.graph.replay.coding import Decoder, Encoder, Undecodable
from exporter.graph.replay.origins import Origin
from exporter.tensors.bounded_json import MalformedJson, parse_json

__all__ = ["FORMAT", "SCHEMA", "FoldPlan", "Result", "Value", "read_plan", "write_plan"]

FORMAT = "exporter fold plan"
SCHEMA = 1
"""Raised when a plan of the version before would be read wrongly."""

Part: TypeAlias = Literal["weight", "bias", "border"]


@dataclass(frozen=True, slots=True)
class Value:
    """The numbers of a constant of the traced graph, and the dtype that it has there."""

    origin: Origin
    dtype: str


@dataclass(frozen=True, slots=True)
class Result:
    """A tensor of the folded network; without a source it is what it was.

    Attributes:
        dtype: that it is rounded to.
        operator, part: the operator whose numbers it is, and which of them.
        groups, is_transposed: of the operator, where its weight gets one more input channel in each group.
        origin: of a constant that no fold changed.
    """

    name: str
    dtype: str
    operator: str = ""
    part: Part = "weight"
    groups: int = 1
    is_transposed: bool = False
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, eq=False)
class FoldPlan:
    """How a network is folded, so that it can be done again for other weights: ``exporter.apply_plan``.

    Attributes:
        weights: the state dict of the network, name -> dtype and shape.
        values: name in the traced graph -> its numbers.
        attempts: what the planner tried, in order.
        results: the state dict of the folded network.
    """

    weights: Mapping[str, TensorSpec]
    values: Mapping[str, Value]
    attempts: tuple[Attempt, ...]
    results: tuple[Result, ...]

    def to_json(self) -> str:
        """Return the plan as JSON; the same plan gives the same text."""
        encoder = Encoder()
        attempts = [
            {
                "rewrite": attempt.rewrite,
                "affine": encoder.encode(attempt.match.affine),
                "absorbers": encoder.encode(attempt.match.absorbers),
                "route": encoder.encode(attempt.match.route),
                "outline": encoder.encode(attempt.outline),
                "is_finite": attempt.is_finite,
                "is_taken": attempt.is_taken,
            }
            for attempt in self.attempts
        ]
        plan = {
            "made_by": {"exporter": __version__},
            "weights": {name: [spec.dtype, list(spec.shape)] for name, spec in self.weights.items()},
            "values": {name: {"origin": encoder.encode(value.origin), "dtype": value.dtype} for name, value in self.values.items()},
            "operators": encoder.operators,
            "attempts": attempts,
            "results": {result.name: _result_json(result, encoder) for result in self.results},
        }
        body = _canonical(plan)
        return f'{{"format":"{FORMAT}","schema":{SCHEMA},"sha256":"{_sha256(body)}","plan":{body}}}\n'


def write_plan(plan: FoldPlan, path: Path) -> None:
    """Write ``plan`` to ``path``, whole or not at all.

    Raises:
        ArtifactError: it cannot be written.
    """
    with atomic_write(path) as file:
        file.write(plan.to_json().encode())


def read_plan(path: Path) -> FoldPlan:
    """Return the plan in the file at ``path``.

    Raises:
        ArtifactError: it is missing or cannot be read (E361), no plan, damaged, or one of another version (E362).
    """
    try:
        text = path.read_bytes()
    except OSError as err:
        raise ArtifactError("E361", "the fold plan cannot be read", facts={"file": path, "found": err.strerror or err}) from err
    try:
        return _plan_of(parse_json(text))
    except (MalformedJson, Undecodable, KeyError, TypeError, ValueError, AttributeError) as err:
        found = str(err) if isinstance(err, (MalformedJson, Undecodable)) else f"{type(err).__name__}: {err}"
        help_text = "make it again: exporter fuse-bn --plan PATH"
        raise ArtifactError("E362", "this is no fold plan that can be applied", facts={"file": path, "found": found}, help=help_text) from err


def _plan_of(document: Any) -> FoldPlan:  # noqa: ANN401 - any JSON
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Undecodable("no fold plan")
    if document.get("schema") != SCHEMA:
        raise Undecodable(f"a plan of schema {document.get('schema')!r}; this version reads {SCHEMA}")
    plan = document["plan"]
    if _sha256(_canonical(plan)) != document.get("sha256"):
        raise Undecodable("a plan that was changed after it was written: its digest differs")
    decoder = Decoder(plan["operators"])
    return FoldPlan(
        {name: TensorSpec(name, tuple(shape), dtype) for name, (dtype, shape) in plan["weights"].items()},
        {name: Value(decoder.decode(entry["origin"]), entry["dtype"]) for name, entry in plan["values"].items()},
        tuple(_attempt(entry, decoder) for entry in plan["attempts"]),
        tuple(Result(name, **{**entry, "origin": decoder.decode(entry.get("origin"))}) for name, entry in plan["results"].items()),
    )


def _attempt(entry: dict[str, Any], decoder: Decoder) -> Attempt:
    from exporter.graph.rewrites.contract import Match

    match = Match(decoder.decode(entry["affine"]), decoder.decode(entry["absorbers"]), decoder.decode(entry["route"]))
    return Attempt(entry["rewrite"], match, decoder.decode(entry["outline"]), entry["is_finite"], entry["is_taken"])


def _result_json(result: Result, encoder: Encoder) -> dict[str, Any]:
    found: dict[str, Any] = {"dtype": result.dtype}
    if result.operator:
        found.update({"operator": result.operator, "part": result.part})
        if result.groups != 1 or result.is_transposed:
            found.update({"groups": result.groups, "is_transposed": result.is_transposed})
    if result.origin is not None:
        found["origin"] = encoder.encode(result.origin)
    return found


def _canonical(plan: Any) -> str:  # noqa: ANN401 - any JSON
    return json.dumps(plan, separators=(",", ":"), allow_nan=False)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
