"""Choosing which copy of the weights leaves the checkpoint: the user's decision, never a fallback."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from exporter.artifacts import Checkpoint, EmaCandidate
from exporter.errors import LayoutError
from exporter.weights.layout import Average, Match, WeightSet
from exporter.weights.naming import near_misses
from exporter.weights.reading import candidate_of, looked_at, top_keys

if TYPE_CHECKING:
    from exporter.config import BakeConfig

__all__ = ["check_health", "choose_average", "choose_raw", "refuse_unreadable"]

_MAX_CALLS_SHOWN = 8
_MAX_AVERAGES_SHOWN = 16
_BY_DECAY = "decay="


def refuse_unreadable(checkpoint: Checkpoint, match: Match) -> None:
    """Refuse a file that calls what trainers do not call, and a layout whose copies cannot be told apart by name.

    Raises:
        LayoutError: E203 or E202.
    """
    if checkpoint.calls:
        calls = [f"{callee} at {place}" for place, callee in list(checkpoint.calls.items())[:_MAX_CALLS_SHOWN]]
        left = len(checkpoint.calls) - len(calls)
        facts = {
            "file": checkpoint.path,
            "found": "\n".join([*calls, *([f"... {left} more"] if left else [])]),
            "meaning": "loading this file with pickle would run these; nothing was run, and nothing was written",
        }
        raise LayoutError("E203", "the checkpoint calls code that no trainer writes", facts=facts)
    if match.refusal:
        facts = {"file": checkpoint.path, "layout": match.layout, "meaning": match.refusal}
        help_text = "save the copy that you want by itself: torch.save(model.state_dict(), ...), and bake that with --weights raw"
        raise LayoutError("E202", "the layout of this checkpoint is recognised and not supported yet", facts=facts, help=help_text)


def choose_average(checkpoint: Checkpoint, match: Match, config: BakeConfig) -> Average:
    """Return the average to bake.

    Raises:
        LayoutError: there is none (E204), there are several (E205), none has the name asked for (E206), or the only one is taken by name
            alone (E225).
    """
    names = [average.name for average in match.averages]
    more = len(names) - _MAX_AVERAGES_SHOWN
    shown = [*names[:_MAX_AVERAGES_SHOWN], *([f"... {more} more"] if more > 0 else [])]
    if not match.averages:
        facts = {"file": checkpoint.path, "looked at": ", ".join(looked_at()), "found": ", ".join(top_keys(checkpoint))}
        if match.raw is not None and match.raw.remark:
            facts["meaning"] = match.raw.remark
        help_text = "pass --weights raw to export the raw weights on purpose" if match.raw is not None else ""
        raise LayoutError("E204", "EMA weights requested, but this checkpoint has none", facts=facts, help=help_text)
    if config.ema.startswith(_BY_DECAY):
        return _of_decay(checkpoint, match, config)
    if config.ema:
        for average in match.averages:
            if average.name == config.ema:
                return average
        near = near_misses(config.ema, names)
        facts = {"file": checkpoint.path, "found": ", ".join(shown), "expected": config.ema}
        raise LayoutError("E206", f"no EMA in this checkpoint is called {config.ema!r}", facts=facts, help=f"--ema {(near or names)[0]}")
    named = tuple(average for average in match.averages if not average.on_request)
    if not named:
        facts = {"file": checkpoint.path, "found": ", ".join(shown), "meaning": match.averages[0].weights.remark}
        help_text = f"--ema {names[0]} takes it on purpose, --weights raw the weights that were trained"
        raise LayoutError("E225", "the only average here is one that is taken only by name", facts=facts, help=help_text)
    if len(named) > 1:
        rows = [_row(candidate_of(average, decay=config.decay)) for average in match.averages[:_MAX_AVERAGES_SHOWN]]
        facts = {"file": checkpoint.path, "found": "\n".join(rows)}
        help_text = f"choose one: {'  or  '.join(f'--ema {name}' for name in names[:_MAX_AVERAGES_SHOWN])}"
        raise LayoutError("E205", "this checkpoint has several EMAs, and none was chosen", facts=facts, help=help_text)
    return named[0]


def _of_decay(checkpoint: Checkpoint, match: Match, config: BakeConfig) -> Average:
    """Return the one average whose decay is known to be the one asked for: from its schedule, or the ``--decay`` of training.

    Raises:
        LayoutError: no number is named, none has that decay, or several have (E254).
    """
    try:
        wanted = float(config.ema.removeprefix(_BY_DECAY))
    except ValueError:
        wanted = math.nan
    known = [(average, candidate_of(average, decay=config.decay).decay) for average in match.averages]
    found = [average for average, decay in known if decay is not None and math.isclose(decay, wanted, rel_tol=1e-9)]
    if len(found) == 1:
        return found[0]
    rows = [f"{average.name}: decay {'unknown' if decay is None else f'{decay:.9g}'}" for average, decay in known[:_MAX_AVERAGES_SHOWN]]
    facts = {"file": checkpoint.path, "found": "\n".join(rows), "expected": config.ema}
    problem = "several averages have the decay that was asked for" if found else "no average is known to have the decay that was asked for"
    raise LayoutError(
        "E254", problem, facts=facts, help=f"name one: {'  or  '.join(f'--ema {average.name}' for average, _ in known[:_MAX_AVERAGES_SHOWN])}"
    )


def choose_raw(checkpoint: Checkpoint, match: Match) -> WeightSet:
    """Return the raw weights.

    Raises:
        LayoutError: there are none (E201).
    """
    if match.raw is None:
        facts = {"file": checkpoint.path, "layout": match.layout, "found": ", ".join(top_keys(checkpoint))}
        help_text = f"its averaged weights are there: --weights ema --ema {match.averages[0].name}" if match.averages else ""
        raise LayoutError("E201", "raw weights requested, but this checkpoint has none", facts=facts, help=help_text)
    return match.raw


def check_health(checkpoint: Checkpoint, candidate: EmaCandidate, config: BakeConfig) -> None:
    """Refuse a cold average unless that is asked for.

    Raises:
        LayoutError: E211.
    """
    if candidate.state != "cold" or config.allow_cold:
        return
    share = 100 * (candidate.initial_share or 0.0)
    facts = {
        "file": f"{checkpoint.path} ({candidate.name}: decay {candidate.schedule}, {candidate.updates} updates)",
        "meaning": f"after {candidate.updates} updates the average has not left initialisation; its outputs will be near random",
    }
    help_text = "train longer, lower the decay, or take the raw weights: --weights raw   (to insist: --allow-cold)"
    raise LayoutError("E211", f"the average is cold: {share:.1f} % of it is still the initial weights", facts=facts, help=help_text)


def _row(candidate: EmaCandidate) -> str:
    updates = "unknown" if candidate.updates is None else candidate.updates
    return f"{candidate.name}: {candidate.num_tensors} tensors, {', '.join(candidate.dtypes)}, updates {updates}, {candidate.state}"
