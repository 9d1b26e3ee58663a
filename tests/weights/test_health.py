"""The share of initial weights in an average, checked by running the average itself."""

from __future__ import annotations

import math

import pytest

from exporter.weights.health import COLD_SHARE, SETTLED_SHARE, Schedule, initial_share, state_of

CONSTANT, FIRST, RAMP = Schedule("constant", 0.97), Schedule("first copies", 0.97), Schedule("ramp", 0.9999, 50.0)


def decay_at(schedule: Schedule, n: int) -> float:
    """Return the decay of update ``n``, written independently of the code."""
    if schedule.kind == "ramp":
        return schedule.decay * (1 - math.exp(-n / schedule.tau))
    return schedule.decay


@pytest.mark.parametrize("schedule", [CONSTANT, FIRST, RAMP], ids=lambda s: s.kind)
@pytest.mark.parametrize("updates", [2, 3, 10, 57])
def test_share_is_what_an_average_keeps(schedule: Schedule, updates: int) -> None:
    """Averaging 1 (the start) with 0 (everything later) leaves exactly the share."""
    average = 1.0
    for n in range(1, updates + 1):
        if not (schedule.kind == "first copies" and n == 1):  # the first copy takes the place of the start
            average = decay_at(schedule, n) * average
    assert initial_share(schedule, updates) == pytest.approx(average, rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "updates", "state"),
    [
        (Schedule("constant", 0.9999), 2000, "cold"),
        (Schedule("constant", 0.9999), 23_024, "cold"),
        (Schedule("constant", 0.9999), 23_025, "warming"),
        (Schedule("constant", 0.9999), 46_049, "warming"),
        (Schedule("constant", 0.9999), 46_050, "settled"),
        (Schedule("first copies", 0.98), 540, "settled"),
        (Schedule("first copies", 0.98), 0, "cold"),
        (Schedule("first copies", None), 0, "cold"),
        (Schedule("first copies", None), 1, "cold"),
        (Schedule("first copies", None), 9, "unknown"),
        (Schedule("constant", 0.98), None, "unknown"),
        (Schedule("constant", None), 10, "unknown"),
        (Schedule(), 10, "unknown"),
        (Schedule("ramp", 0.9999), 5, "warming"),
        (Schedule("ramp", 0.9999), 12_400, "settled"),
        (Schedule("ramp", 0.9999), 10**15, "settled"),
    ],
)
def test_states(schedule: Schedule, updates: int | None, state: str) -> None:
    """The states change where ``docs/ema.md`` says."""
    assert state_of(schedule, updates) == state


def test_thresholds_are_in_order() -> None:
    """Settled is less than cold."""
    assert 0 < SETTLED_SHARE < COLD_SHARE < 1


def test_share_of_the_example_on_the_screen() -> None:
    """2000 updates at 0.9999 leave 81.9 %."""
    assert f"{initial_share(Schedule('constant', 0.9999), 2000):.1%}" == "81.9%"


def test_decay_given_counts_only_where_the_file_says_none() -> None:
    """The file's own decay stays; one given to an unknown schedule is constant."""
    assert CONSTANT.with_decay(0.5) == CONSTANT
    assert Schedule("first copies").with_decay(0.5) == Schedule("first copies", 0.5)
    assert Schedule().with_decay(0.5) == Schedule("constant", 0.5)
