"""Judge one output over one feed: the rule of ``docs/verdicts.md`` in numbers.

For sample ``i`` of the output, with the reference ``r``, the candidate ``c`` and the unfused model ``u`` in the candidate's
precision (all flattened to ``n`` elements), and the output's typical size ``A``:

    A      max(RMS of r over the recorded samples, RMS of r over this feed)
    d_i    max(||r_i||, sqrt(n) A)
    e_i    ||c_i - r_i|| / d_i                                        relative L2 error
    own_i  max(||u_i - r_i|| / d_i, its RMS over this feed, its RMS over the recorded samples)
    pass   e_i <= factor * own_i + floor   and   |c - r| <= atol * A + rtol * |r|   for every sample and element

The RMS terms keep the rule from hanging on a sample whose own error or whose norm is small by luck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exporter.artifacts import Outcome, OutputParity
from exporter.runners.base import Array
from exporter.verify.error_numbers import OutputScale, Values, finite_difference, histogram, measure_scale, ratio, relative_l2
from exporter.verify.output_values import is_exact, structure_mismatch, values_by_sample
from exporter.verify.tolerance import Tolerance

__all__ = ["judge_output", "unmatched_output"]


def unmatched_output(output: str, references: Sequence[Array], reason: str) -> OutputParity:
    """Return the FAIL of an output that is missing or cannot be compared: all numbers are infinite or NaN."""
    shape, dtype = (references[0].shape, references[0].dtype.name) if references else ((), "")
    inf, nan = math.inf, math.nan
    return OutputParity(output, shape, dtype, Outcome.FAIL, reason, inf, inf, inf, nan, nan, nan, -inf, nan, nan, inf, inf)


def judge_output(
    output: str,
    references: Sequence[Array],
    owns: Sequence[Array],
    candidates: Sequence[Array],
    *,
    batch: int,
    precision: str,
    tolerance: Tolerance,
    typical: OutputScale,
) -> OutputParity:
    """Compare one output over the batches of one feed.

    Args:
        output: its name.
        references: of the float64 reference, one array per batch.
        owns: of the unfused model in ``precision``.
        candidates: of the candidate.
        batch: rows per batch.
        precision: declared by the candidate.
        tolerance: of this output.
        typical: scale over the recorded samples.
    """
    mismatch = structure_mismatch(references, candidates, precision)
    if mismatch:
        return unmatched_output(output, references, mismatch)
    limits = _limits(measure_scale(references, owns, batch), typical, tolerance, exact=is_exact(references[0]))
    values = values_by_sample(candidates, batch)
    if limits.is_exact:  # float64 does not tell large integers apart
        unequal = values_by_sample([c != r for r, c in zip(references, candidates, strict=True)], batch)
        values = [
            np.where((n > 0) & (c == r), np.nextafter(r, np.inf), c)
            for n, r, c in zip(unequal, values_by_sample(references, batch), values, strict=True)
        ]
    blocks = zip(values_by_sample(references, batch), values_by_sample(owns, batch), values, strict=True)
    parts = [_Part.measure(r, u, c, limits) for r, u, c in blocks]
    return _summarise(output, references, candidates, parts, limits, batch=batch)


@dataclass(frozen=True, slots=True)
class _Limits:
    """The tolerance of one output in its own units.

    Attributes:
        scale: typical size ``A``.
        atol: absolute.
        own_typical: RMS of the own relative L2 error.
    """

    scale: float
    atol: float = 0.0
    rtol: float = 0.0
    factor: float = 0.0
    floor: float = 0.0
    own_typical: float = 0.0
    is_exact: bool = False


def _limits(here: OutputScale, typical: OutputScale, tolerance: Tolerance, *, exact: bool) -> _Limits:
    scale = max(typical.rms, here.rms)
    if exact:
        return _Limits(scale, is_exact=True)
    own_max_abs = max(typical.own_max_abs, here.own_max_abs)
    scale = scale or own_max_abs  # where the reference is zero everywhere, what rounding alone makes of it is the scale
    atol = tolerance.atol * scale
    if not tolerance.is_atol_fixed:
        atol = max(atol, tolerance.factor * own_max_abs)
    return _Limits(scale, atol, tolerance.rtol, tolerance.factor, tolerance.floor, max(typical.own_error, here.own_error))


@dataclass(frozen=True, slots=True)
class _Part:
    """The numbers of one block of samples."""

    reference: Values
    candidate: Values
    difference: Values
    """``|c - r|`` where both are finite, else 0."""
    violation: Values
    """``|c - r| / (atol + rtol |r|)``."""
    unscaled: Values
    """``|c - r| / (A + |r|)``: the atol = rtol that would just pass."""
    errors: Values
    owns: Values
    allowed: Values
    missing_floor: Values
    """``e_i - factor own_i``: the floor that would just pass."""
    num_nonfinite: int

    @classmethod
    def measure(cls, r: Values, u: Values, c: Values, limits: _Limits) -> _Part:
        """Compare the candidate ``c`` and the unfused model ``u`` with the reference ``r``, all ``(samples, elements)``."""
        is_same = (np.isnan(r) & np.isnan(c)) | (np.isinf(r) & (r == c))
        difference = finite_difference(r, c)
        size = np.where(np.isfinite(r), np.abs(r), 0.0)
        errors = relative_l2(r, c, limits.scale)
        owns = np.maximum(relative_l2(r, u, limits.scale), limits.own_typical)
        return cls(
            reference=r,
            candidate=c,
            difference=difference,
            violation=ratio(difference, limits.atol + limits.rtol * size),
            unscaled=ratio(difference, limits.scale + size),
            errors=errors,
            owns=owns,
            allowed=limits.factor * owns + limits.floor,
            missing_floor=np.maximum(errors - limits.factor * owns, 0.0),
            num_nonfinite=int(((~np.isfinite(r) | ~np.isfinite(c)) & ~is_same).sum()),
        )


def _summarise(
    output: str, references: Sequence[Array], candidates: Sequence[Array], parts: list[_Part], limits: _Limits, *, batch: int
) -> OutputParity:
    atol, rtol = limits.atol, limits.rtol
    differences = np.concatenate([part.difference.ravel() for part in parts])
    violations = np.concatenate([part.violation.ravel() for part in parts])
    errors, owns, allowed = (np.concatenate([getattr(part, name) for part in parts]) for name in ("errors", "owns", "allowed"))
    sample = int(np.argmax(ratio(errors, allowed))) if errors.size else 0
    num_nonfinite = sum(part.num_nonfinite for part in parts)
    max_violation = float(violations.max(initial=0.0))
    relative_l2, own_error, limit = (float(values[sample]) if values.size else 0.0 for values in (errors, owns, allowed))
    smallest = max(
        max((float(part.unscaled.max(initial=0.0)) for part in parts), default=0.0), *(float(part.missing_floor.max(initial=0.0)) for part in parts)
    )
    worst = int(np.argmax(violations)) if violations.size else 0
    worst_index = _index(references, worst, len(parts)) if max_violation > 0 else ()
    problems = []
    if num_nonfinite:
        problems.append(f"NaN or infinity at {num_nonfinite} of {differences.size} positions where the reference has another value")
    if relative_l2 > limit and not limits.is_exact:
        problems.append(f"relative L2 {relative_l2:.1e} (own error {own_error:.1e}, allowed {limit:.1e}) at sample {sample}")
    if max_violation > 1.0 and limits.is_exact:
        problems.append(f"{int((differences > 0).sum())} of {differences.size} integers differ; integers and booleans must be equal")
    elif max_violation > 1.0:
        problems.append(f"element {worst_index} off by {differences[worst]:.1e}, {max_violation:.3g} x its tolerance")
    total, equal, ties = _argmax(parts, references, batch, atol, rtol) if not limits.is_exact else (None, None, None)
    is_batched = len(parts) == 1 and references[0].ndim > 0 and references[0].shape[0] == batch
    norm_d = math.sqrt(float((differences * differences).sum()))
    norm_r, cosine = _norm_and_cosine(parts)
    return OutputParity(
        output=output,
        shape=(sum(a.shape[0] for a in references), *references[0].shape[1:]) if is_batched else references[0].shape,
        dtype=candidates[0].dtype.name,
        outcome=Outcome.FAIL if problems else Outcome.PASS,
        reason="; ".join(problems),
        max_abs=float(differences.max(initial=0.0)),
        p999_abs=float(np.quantile(differences, 0.999)) if differences.size else 0.0,
        relative_l2=relative_l2,
        own_error=own_error,
        allowed=limit,
        cosine=cosine,
        sqnr_db=(20 * math.log10(norm_r / norm_d) if norm_r else -math.inf) if norm_d else math.inf,
        atol=atol,
        rtol=rtol,
        max_violation=max_violation,
        smallest_rtol=math.inf if num_nonfinite else smallest,
        num_nonfinite=num_nonfinite,
        argmax_total=total,
        argmax_equal=equal,
        argmax_ties=ties,
        worst_index=worst_index,
        histogram=histogram(differences, limits.scale),
    )


def _norm_and_cosine(parts: list[_Part]) -> tuple[float, float]:
    """Return the reference's norm and its cosine with the candidate, over the elements where both are finite."""
    masks = [np.isfinite(part.reference) & np.isfinite(part.candidate) for part in parts]
    r = np.concatenate([part.reference[mask] for part, mask in zip(parts, masks, strict=True)])
    c = np.concatenate([part.candidate[mask] for part, mask in zip(parts, masks, strict=True)])
    norm_r, norm_c = float(np.linalg.norm(r)), float(np.linalg.norm(c))
    return norm_r, float(r @ c) / (norm_r * norm_c) if norm_r and norm_c else float(norm_r == norm_c)


def _index(references: Sequence[Array], flat: int, num_parts: int) -> tuple[int, ...]:
    """Return the index of element ``flat`` over all batches; the first axis counts rows of the feed."""
    for array in references:
        if flat < array.size:
            break
        flat -= array.size
    else:
        return ()
    if array.dtype.kind == "c":
        flat //= 2
    before = 0
    if num_parts == 1 and array.ndim:
        for other in references:
            if other is array:
                break
            before += other.shape[0]
    first, *rest = (int(i) for i in np.unravel_index(flat, array.shape)) if array.ndim else (0,)
    return (first + before, *rest) if array.ndim else ()


def _argmax(parts: list[_Part], references: Sequence[Array], batch: int, atol: float, rtol: float) -> tuple[int | None, int | None, int | None]:
    """Return rows, rows with the same argmax, and differing rows whose margin both entries' tolerances can bridge."""
    if len(parts) != 1 or not parts[0].reference.size or any(a.ndim != 2 or a.shape[0] != batch or a.shape[1] < 2 for a in references):
        return None, None, None
    r, c = np.nan_to_num(parts[0].reference), np.nan_to_num(parts[0].candidate)
    differs = r.argmax(1) != c.argmax(1)
    top = np.sort(r, axis=1)[:, -2:]
    is_tie = top[:, 1] - top[:, 0] <= 2 * atol + rtol * np.abs(top).sum(1)
    return len(r), int((~differs).sum()), int((differs & is_tie).sum())
