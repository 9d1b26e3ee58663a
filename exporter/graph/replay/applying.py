"""A plan and new weights -> folded weights, without torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - makes bfloat16 a dtype of NumPy
import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import Refusal, TensorSpec
from exporter.errors import FoldError, LayoutError
from exporter.files import atomic_write
from exporter.graph.abstract import BatchNorm, Operator
from exporter.graph.algebra import Float64, rounded_once, with_input_of_ones
from exporter.graph.attempts import Attempt, num_not_finite, outline_of
from exporter.graph.replay.document import FoldPlan, Result, Value, read_plan
from exporter.graph.replay.origins import Stored, evaluated
from exporter.graph.rewrites import REWRITES, WITH_WORK
from exporter.graph.rewrites.contract import Rewritten, linear_of, numbers_given
from exporter.graph.rewrites.late_weight import rounded
from exporter.graph.rewrites.linear_numbers import LinearNumbers
from exporter.tensors import header_bytes, numpy_dtype, ordered_specs, read_header
from exporter.tensors.sources import open_regular

__all__ = ["apply_plan"]

_REWRITES = {type(rewrite).__name__: rewrite for rewrite in (*REWRITES, *WITH_WORK)}
_WIDER = {("float16", "float32"), ("bfloat16", "float32"), ("float16", "float64"), ("bfloat16", "float64"), ("float32", "float64")}
_SHOWN = 8


def apply_plan(
    plan: FoldPlan | Path | str, weights: Mapping[str, NDArray[Any]] | Path | str, *, output: Path | str | None = None
) -> dict[str, NDArray[Any]]:
    """Fold new weights of a network as ``plan`` says: bit for bit what folding the network with them anew would give.

    Args:
        plan: from ``exporter.fold(...).plan``, or the file that ``exporter fuse-bn --plan`` wrote.
        weights: name in the network's state dict -> array, or a safetensors file.
        output: safetensors file to write the folded weights to as well.

    Returns:
        Name in the folded network's state dict -> array. Arrays that no fold changes are those of ``weights``.

    Raises:
        ArtifactError: the plan cannot be read (E361), or is damaged or of another version (E362).
        LayoutError: the weights are not those of the network (E363).
        FoldError: these weights need another plan (E364).
    """
    document = plan if isinstance(plan, FoldPlan) else read_plan(Path(plan))
    given = weights if isinstance(weights, Mapping) else _read(Path(weights))
    fitting = _fitting(document, given)
    results = _folded(document, fitting)
    if output is not None:
        _write(results, Path(output))
    return results


def _folded(plan: FoldPlan, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the folded state dict; float64 arrays are let go where nothing reads them any more."""
    numbers = _Numbers(plan.values, weights)
    of_operator: dict[str, list[Result]] = {}
    for result in plan.results:
        of_operator.setdefault(result.operator, []).append(result)
    last = {name: number for number, attempt in enumerate(plan.attempts) for name in _touched(attempt)}
    rounded: dict[str, NDArray[Any]] = {}
    for number, attempt in enumerate(plan.attempts):
        _try_again(attempt, numbers)
        for name in _touched(attempt):
            if last[name] == number and name in numbers.new:
                rounded.update({result.name: _rounded(result, numbers.new[name]) for result in of_operator.get(name, ())})
                del numbers.new[name]
    return {result.name: rounded[result.name] if result.operator else _unchanged(result, weights) for result in plan.results}


def _touched(attempt: Attempt) -> set[str]:
    """Return the operators whose numbers an attempt reads or writes."""
    names = {attempt.match.affine.name, *(product.name for product in attempt.match.absorbers)}
    return names | set(attempt.outline.parts) if attempt.outline is not None else names


@dataclass(slots=True)
class _Numbers:
    """The new weights with the folds so far in them, as rewrites read them."""

    values: Mapping[str, Value]
    weights: Mapping[str, NDArray[Any]]
    new: dict[str, LinearNumbers]

    def __init__(self, values: Mapping[str, Value], weights: Mapping[str, NDArray[Any]]) -> None:
        self.values, self.weights, self.new = values, weights, {}

    def read(self, value: str) -> Float64:
        exact: Float64 = self.kept(value).astype(np.float64, copy=False)
        return exact

    def kept(self, value: str) -> NDArray[Any]:
        origin = self.values[value].origin
        return self.weights[origin.name] if isinstance(origin, Stored) else evaluated(origin, self.weights)

    def dtype(self, value: str) -> str:
        return self.values[value].dtype

    def of(self, operator: Operator) -> LinearNumbers:
        if operator.name in self.new:
            return self.new[operator.name]
        return numbers_given(operator, self)


def _try_again(attempt: Attempt, numbers: _Numbers) -> None:
    """Carry an attempt out again; refuse where it comes to something else than when the plan was made."""
    outcome = _REWRITES[attempt.rewrite].apply(attempt.match, numbers)
    if isinstance(outcome, Refusal):
        if attempt.outline is not None:
            raise _other_plan(attempt, f"{outcome.reason.value}; {outcome.detail}")
        return
    lost = _num_lost(attempt, outcome, numbers)
    if (lost == 0) != attempt.is_finite and attempt.outline is not None:
        raise _other_plan(attempt, f"{lost} folded numbers do not fit the dtype of the weights" if lost else "all folded numbers fit the dtype now")
    if attempt.outline is None:
        raise _other_plan(attempt, "it can be folded with these weights, and could not with those that the plan was made with")
    if outline_of(outcome) != attempt.outline:
        raise _other_plan(attempt, "a shift is zero with these weights and was not, or the other way round, so other tensors change")
    if attempt.is_taken:
        numbers.new.update(outcome.numbers)


def _num_lost(attempt: Attempt, outcome: Rewritten, numbers: _Numbers) -> int:
    originals = {copied.name: copied.operator for copied in outcome.copies}
    operators = {operator.name: operator for operator in attempt.match.absorbers}
    lost = 0
    for name, new in outcome.numbers.items():
        operator = operators.get(originals.get(name, name), attempt.match.affine)
        lost += num_not_finite(new, _dtype_of(operator, numbers))[0]
    return lost


def _dtype_of(operator: Operator, numbers: _Numbers) -> str:
    return numbers.dtype(operator.role.parameters[0] if isinstance(operator.role, BatchNorm) else linear_of(operator).weight)


def _other_plan(attempt: Attempt, found: str) -> FoldError:
    facts = {"batch norm": attempt.match.affine.module, "found": found, "note": "nothing was folded"}
    return FoldError("E364", "these weights need another plan", facts=facts, help="fold the network with them anew: exporter fuse-bn --plan PATH")


def _rounded(result: Result, own: LinearNumbers) -> NDArray[Any]:
    exact = own.given if result.part == "weight" else getattr(own, result.part)
    if result.part == "weight" and own.ones is not None:
        exact = with_input_of_ones(own.weight, own.ones, result.groups, is_transposed=result.is_transposed)
    return np.ascontiguousarray(rounded(exact, result.dtype))


def _unchanged(result: Result, weights: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    return weights[result.name] if result.origin is None else rounded_once(evaluated(result.origin, weights), result.dtype)


def _fitting(plan: FoldPlan, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the weights in the dtypes of the network; they fit, or are widened, which is exact, or are refused."""
    needed = {result.name for result in plan.results if not result.operator and result.origin is None}
    problems = [f"{name}: missing" for name in plan.weights if name not in weights and (name in needed or not name.endswith("num_batches_tracked"))]
    found = {}
    for name, array in weights.items():
        spec = plan.weights.get(name)
        if spec is None:
            near = difflib.get_close_matches(name, [name for name in plan.weights if name not in weights], n=1)
            problems.append(f"{name}: the network has no such tensor{f'; it has {near[0]}' if near else ''}")
        elif tuple(array.shape) != spec.shape:
            problems.append(f"{name}: got {tuple(array.shape)}, expected {spec.shape}")
        elif array.dtype.name != spec.dtype and (array.dtype.name, spec.dtype) not in _WIDER:
            problems.append(f"{name}: got {array.dtype.name}, expected {spec.dtype}")
        else:
            found[name] = array.astype(numpy_dtype(spec.dtype), copy=False)
    if problems:
        more = [f"... and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
        raise LayoutError("E363", "the weights are not those of the plan's network", facts={"found": "\n".join(problems[:_SHOWN] + more)})
    return found


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with open_regular(path) as file:
        entries = read_header(file, path).entries
        return {
            entry.name: np.frombuffer(file.read(entry.end - entry.begin, entry.begin), numpy_dtype(entry.dtype.name)).reshape(entry.shape)
            for entry in entries
        }


def _write(arrays: Mapping[str, NDArray[Any]], path: Path) -> None:
    specs = ordered_specs(TensorSpec(name, tuple(array.shape), array.dtype.name) for name, array in arrays.items())
    with atomic_write(path) as file:
        file.write(header_bytes(specs, {"made_by": "exporter"}))
        for spec in specs:
            file.write(np.ascontiguousarray(arrays[spec.name]).tobytes())
