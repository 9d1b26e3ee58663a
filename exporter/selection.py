"""Choosing among the copies of the weights by the task metric: every one is measured on the same samples, and all values are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from exporter.artifacts import Selection
from exporter.config import Config
from exporter.errors import LayoutError, SampleError
from exporter.samples import Samples

__all__ = ["RAW", "copy_named", "require_labelled", "select"]

RAW = "raw"
"""What the raw weights are called in the table."""


def copy_named(name: str) -> dict[str, str]:
    """Return the settings that take the copy of this name."""
    return {"choice": RAW} if name == RAW else {"ema": name}


def require_labelled(config: Config, samples: Samples | None) -> Samples:
    """Return the samples that a choice by metric needs.

    Raises:
        SampleError: none are configured, or they have no labels (E620).
        LayoutError: the configuration names the weights besides (E251).
    """
    if config.weights.choice == "raw" or config.weights.ema:
        found = "--weights raw" if config.weights.choice == "raw" else f"--ema {config.weights.ema}"
        facts = {"found": f"{found} beside --select best"}
        raise LayoutError("E251", "the weights are to be named and selected at once", facts=facts, help="leave out one of the two")
    if samples is None or samples.labels is None:
        facts = {
            "found": "no samples" if samples is None else "samples without labels",
            "expected": "labelled samples, which the metric is measured on",
        }
        help_text = '[samples] path = "samples.npz" and labels = "label" in exporter.toml'
        raise SampleError("E620", "selecting weights by a metric needs labelled samples", facts=facts, help=help_text)
    return samples


def select(names: Iterable[str], measure: Callable[[str], tuple[str, float]], *, num_samples: int) -> Selection:
    """Return which of the copies has the largest metric; of equal ones the first, so that ``names`` gives averages before the raw weights.

    A copy that cannot be baked, as a cold average, is left out with the reason.

    Args:
        names: of the averages in the order of the file, then ``raw``.
        measure: returns name and value of the metric for one copy.
        num_samples: that it is measured on.

    Raises:
        LayoutError: no copy has a value (E252).
    """
    values: dict[str, float] = {}
    left_out: dict[str, str] = {}
    metric = ""
    for name in names:
        try:
            metric, value = measure(name)
        except LayoutError as err:
            left_out[name] = f"{err.code}: {err.problem}"
            continue
        if math.isnan(value):
            left_out[name] = "the metric is not a number"
        else:
            values[name] = value
    if not values:
        facts = {"found": "\n".join(f"{name}: {reason}" for name, reason in left_out.items()) or "no weights"}
        raise LayoutError(
            "E252", "none of the checkpoint's weights could be measured", facts=facts, help="name the weights: --ema NAME, or --weights raw"
        )
    return Selection(metric, num_samples, values, max(values, key=values.__getitem__), left_out)
