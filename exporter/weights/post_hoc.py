"""Post-hoc EMA: an average of a width that was not kept while training, from snapshots of averages of other widths.

A power-function average at step T weighs what training passed at step t by p(t) = (gamma + 1) / T^(gamma + 1) * t^gamma; its width,
sigma_rel, is the standard deviation of p divided by T. The profile that is wanted is fitted by the profiles of the snapshots, with least
squares (Karras et al. 2024, arXiv:2312.02696, sections 3.1, 3.2 and C.2). Everything is computed with profiles divided by their norm,
and powers of T from the ratio of two steps, so that large steps and large gammas stay finite.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import LayoutError
from exporter.locations import Location
from exporter.weights.averaging import Combination

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["MAX_PROFILE_ERROR", "Fit", "Snapshot", "fit_profile", "gamma_of", "post_hoc", "snapshots_of"]

MAX_PROFILE_ERROR = 0.05
"""Relative error of a fitted profile, in the norm of the squares, from which on it is no longer the average that was asked for."""
MAX_SIGMA_REL = 0.3
"""Just below the widest that any power-function average is."""
_NAME = re.compile(r"([0-9]{1,3})\.([0-9]{1,15})\.pt")
_EXPECTED = "<index>.<step>.pt, as ema_pytorch.PostHocEMA writes them"
_NUM_SHOWN = 4
_REMARK = "the profiles are those of training with update_every=1, which the snapshots do not say"
_SMALLEST_GAMMA = -0.38
"""Above the gamma of the widest profile, gamma falls as the width grows."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An average that was saved while training: which of the widths it has, and at which step it was saved; both are in its name."""

    path: Location
    index: int
    step: int


@dataclass(frozen=True, slots=True)
class Fit:
    """Coefficients of the snapshots, in their order, and the error of the profile that they make, relative to the one wanted."""

    coefficients: tuple[float, ...]
    error: float


def gamma_of(sigma_rel: float) -> float:
    """Return the exponent of the profile of width ``sigma_rel``: sigma_rel^2 (gamma + 2)^2 (gamma + 3) = gamma + 1.

    Raises:
        LayoutError: ``sigma_rel`` is not above 0 and at most 0.3 (E266).
    """
    if not 1e-6 <= sigma_rel <= MAX_SIGMA_REL:
        facts = {"found": f"{sigma_rel:g}", "expected": f"a number above 0 and at most {MAX_SIGMA_REL:g}"}
        help_text = "sigma_rel is the standard deviation of the profile divided by the steps of training"
        raise LayoutError("E266", "the width is not one of a power-function average", facts=facts, help=help_text)
    low, high = _SMALLEST_GAMMA, 1.0 / sigma_rel
    while low < (middle := (low + high) / 2.0) < high:
        if middle + 1.0 > sigma_rel**2 * (middle + 2.0) ** 2 * (middle + 3.0):
            low = middle
        else:
            high = middle
    return low


def snapshots_of(paths: Sequence[Location]) -> tuple[Snapshot, ...]:
    """Return the snapshots at ``paths``, the files or one folder of them, in the order of their steps.

    Raises:
        LayoutError: a name is not one of a snapshot, two have the same index and step, or there are none (E265).
    """
    files, folder = list(paths), paths[0]
    if len(files) == 1 and isinstance(folder, Path) and folder.is_dir():
        files = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
        if not files:
            facts = {"folder": folder, "found": "no snapshot", "expected": _EXPECTED}
            raise LayoutError("E265", "the snapshots cannot be told by their names", facts=facts)
    found: dict[tuple[int, int], Snapshot] = {}
    for path in files:
        match = _NAME.fullmatch(path.name)
        index, step = (int(match[1]), int(match[2])) if match is not None else (0, 0)
        if match is None or step == 0:
            facts = {"file": path, "found": path.name, "expected": _EXPECTED}
            help_text = "the step that the file counts is a number in half precision: the name alone says it"
            raise LayoutError("E265", "the snapshots cannot be told by their names", facts=facts, help=help_text)
        if (index, step) in found:
            facts = {"file": path, "found": f"index {index} at step {step} twice", "first": found[index, step].path}
            help_text = "name the snapshots of one training run, each once"
            raise LayoutError("E265", "the snapshots cannot be told by their names", facts=facts, help=help_text)
        found[index, step] = Snapshot(path, index, step)
    return tuple(sorted(found.values(), key=lambda snapshot: (snapshot.step, snapshot.index)))


def fit_profile(steps: Sequence[int], gammas: Sequence[float], step: int, gamma: float) -> Fit:
    """Return the least-squares fit of the profile of ``gamma`` at ``step`` by those of ``gammas`` at ``steps``."""
    import numpy as np

    at, of = np.array(steps, np.float64), np.array(gammas, np.float64)
    gram = _cosines(at[:, None], of[:, None], at, of)
    wanted = _cosines(at, of, np.array(step, np.float64), np.array(gamma, np.float64))
    solution = np.linalg.lstsq(gram, wanted, rcond=None)[0]
    error = math.sqrt(max(0.0, float(1.0 - 2.0 * wanted @ solution + solution @ gram @ solution)))
    scale = (gamma + 1.0) / (of + 1.0) * np.sqrt((2.0 * of + 1.0) / (2.0 * gamma + 1.0) * (at / step))
    return Fit(tuple(map(float, solution * scale)), error)


def post_hoc(snapshots: Sequence[Snapshot], sigma_rel: float, sigma_rels: Sequence[float]) -> Combination:
    """Return the combination of the snapshots that makes the average of width ``sigma_rel`` at the last of their steps.

    Args:
        snapshots: from ``snapshots_of``.
        sigma_rel: the width that is wanted.
        sigma_rels: the widths that training kept, by the index of the snapshots; no file holds them.

    Raises:
        LayoutError: the widths are not known, not different, or not one for each index (E266), the one wanted lies outside of them (E267),
            or the snapshots do not make its profile (E268).
    """
    indices = sorted({snapshot.index for snapshot in snapshots})
    if indices != list(range(len(sigma_rels))) or len(set(sigma_rels)) < len(sigma_rels):
        facts = {
            "found": ", ".join(f"{width:g}" for width in sigma_rels) or "no widths",
            "expected": f"a different width for each of the {len(indices)} indices that begin the names: {', '.join(map(str, indices))}",
        }
        help_text = "--sigma-rels with what PostHocEMA was given as sigma_rels, in its order, as in 0.05,0.28; the snapshots do not say it"
        raise LayoutError("E266", "the widths of the snapshots are not known", facts=facts, help=help_text)
    gammas, gamma = [gamma_of(width) for width in sigma_rels], gamma_of(sigma_rel)
    if not min(sigma_rels) <= sigma_rel <= max(sigma_rels):
        facts = {"found": f"{sigma_rel:g}", "expected": f"{min(sigma_rels):g} to {max(sigma_rels):g}, the widths of the snapshots"}
        raise LayoutError("E267", "the width lies outside of what the snapshots cover", facts=facts, help="--post-hoc with a width between theirs")
    step = max(snapshot.step for snapshot in snapshots)
    fit = fit_profile([snapshot.step for snapshot in snapshots], [gammas[snapshot.index] for snapshot in snapshots], step, gamma)
    if fit.error > MAX_PROFILE_ERROR:
        facts = {
            "found": f"a profile with a relative error of {fit.error:.1%}, from {len(snapshots)} snapshots",
            "expected": f"at most {MAX_PROFILE_ERROR:.0%}",
        }
        help_text = "add the earlier snapshots of every width, or ask for a width nearer to one that was kept"
        raise LayoutError("E268", "the snapshots do not make an average of this width", facts=facts, help=help_text)
    profiles = (
        ("sigma_rel", repr(sigma_rel)),
        ("sigma_rels", ", ".join(map(repr, sigma_rels))),
        ("step", str(step)),
        ("profile_error", f"{fit.error:.3e}"),
    )
    return Combination(
        fit.coefficients, kind="post-hoc", facts=profiles, remarks=_remarks(snapshots, fit, sigma_rel, gamma, step), keeps_constants=True
    )


def _remarks(snapshots: Sequence[Snapshot], fit: Fit, sigma_rel: float, gamma: float, step: int) -> tuple[str, ...]:
    largest = sorted(zip(fit.coefficients, snapshots, strict=True), key=lambda pair: -abs(pair[0]))
    parts = [f"{snapshot.path.name} {coefficient:+.4f}" for coefficient, snapshot in largest[:_NUM_SHOWN]]
    more = f", ... {len(largest) - _NUM_SHOWN} more" if len(largest) > _NUM_SHOWN else ""
    total, magnitude = math.fsum(fit.coefficients), math.fsum(map(abs, fit.coefficients))
    return (
        f"post-hoc EMA: sigma_rel {sigma_rel:g} (gamma {gamma:.4g}) at step {step}; relative error of the profile {fit.error:.1e}",
        f"coefficients of {len(largest)} snapshots: {', '.join(parts)}{more}; sum {total:.4f}, of magnitudes {magnitude:.4g}",
        _REMARK,
    )


def _cosines(at: NDArray[Any], of: NDArray[Any], other_at: NDArray[Any], other_of: NDArray[Any]) -> NDArray[Any]:
    """Return the dot products of profiles divided by their norms: the norm of one is (gamma + 1) / sqrt((2 gamma + 1) T)."""
    import numpy as np

    earlier = np.where(at < other_at, other_of, of)
    ratio = np.minimum(at, other_at) / np.maximum(at, other_at)
    cosines: NDArray[Any] = np.sqrt((2.0 * of + 1.0) * (2.0 * other_of + 1.0)) / (of + other_of + 1.0) * np.exp((earlier + 0.5) * np.log(ratio))
    return cosines
