"""Files whose name alone says that they hold an average: nothing in them can tell, so each is taken only by name.

guided-diffusion and its kin write ``modelN.pt`` and, of the same step, ``ema_<rate>_N.pt``; ignite's Checkpoint writes an average alone
as ``ema_model_N.pt``; NeMo writes the pair ``x.ckpt`` and ``x-EMA.ckpt``. To add one: a row of ``_NAMES``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from exporter.artifacts import Checkpoint
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

REMARK = "the file's name says that this is an average, which the file itself cannot tell"
STATE = "state_dict"


@dataclass(frozen=True, slots=True)
class _Named:
    """How a trainer names a file; the pattern may have the groups ``rate`` and ``step``."""

    layout: str
    pattern: re.Pattern[str]
    average: str
    raw: str


_NAMES = (
    _Named("guided-diffusion", re.compile(r"ema_(?P<rate>[01]\.\d{1,12})_(?P<step>\d{1,12})\.pt"), "ema_{rate}", "model{step}.pt"),
    _Named("ignite", re.compile(r"(?P<before>.*?)ema_model_(?P<after>.*)\.pt"), "ema_model", "{before}model_{after}.pt"),
    _Named("nemo", re.compile(r"(?P<before>.+)-EMA\.ckpt"), "EMA", "{before}.ckpt"),
)


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise the name of the file, and a bare state dict or ``state_dict`` in it."""
    found = _named(checkpoint.path.name)
    at = STATE if as_weights(child(checkpoint.root, STATE), STATE) is not None else ""
    weights = as_weights(child(checkpoint.root, STATE) if at else checkpoint.root, at)
    if found is None or weights is None:
        return None
    kind, groups = found
    rate, step = groups.get("rate"), groups.get("step")
    schedule = Schedule("constant", float(rate)) if rate is not None and 0 < float(rate) < 1 else Schedule()
    remark = f"{REMARK}; the raw weights are in {kind.raw.format(**groups)}, where that was kept"
    named = own_names(weights)
    average = Average(kind.average.format(**groups), named, schedule, int(step) if step is not None else None, on_request=True)
    return Match(kind.layout, (average,), remarks=(remark,))


def _named(name: str) -> tuple[_Named, dict[str, str]] | None:
    for kind in _NAMES:
        match = kind.pattern.fullmatch(name)
        if match is not None and name.isprintable():
            return kind, match.groupdict()
    return None


LAYOUT = Layout("file names", (), read)
