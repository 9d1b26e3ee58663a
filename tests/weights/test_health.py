"""The share of initial weights in an average, checked by running the average itself."""

from __future__ import annotations

import math

import pytest

from exporter.weights.health import (
    COLD_SHARE,
    SETTLED_SHARE,
    Schedule,
    decay_at,
    decay_of_half_life,
    effective_window,
    initial_share,
    state_of,
)

CONSTANT, FIRST, RAMP = Schedule("constant", 0.97), Schedule("first copies", 0.97), Schedule("ramp", 0.9999, 50.0)


TENSORFLOW, DIFFUSERS = Schedule("tensorflow", 0.97), Schedule("tensorflow", 0.97, minimum=0.4, start=3)
TIMM, K_DIFFUSION = Schedule("power", 0.8, start=1), Schedule("power", 0.9, inv_gamma=2.0, power=0.75, minimum=0.1, start=5)
MEAN = Schedule("mean")
EVERY = (CONSTANT, FIRST, RAMP, TENSORFLOW, DIFFUSERS, TIMM, K_DIFFUSION, MEAN)


def library_decay(schedule: Schedule, n: int) -> float:
    """Return the decay of update ``n`` as the libraries compute it, written independently of the code; 0 copies the weights."""
    if schedule is RAMP:  # ultralytics ModelEMA: updates is counted up first
        return 0.9999 * (1 - math.exp(-n / 50))
    if schedule is FIRST:  # torch AveragedModel: n_averaged is 0 at the first update
        return 0.0 if n - 1 == 0 else 0.97
    if schedule is TENSORFLOW:  # torch_ema: num_updates is counted up first
        return min(0.97, (1 + n) / (10 + n))
    if schedule is DIFFUSERS:  # diffusers EMAModel.get_decay with update_after_step=2, min_decay=0.4
        step = max(0, n - 2 - 1)
        return 0.0 if step <= 0 else max(min((1 + step) / (10 + step), 0.97), 0.4)
    if schedule is TIMM:  # timm ModelEmaV3.get_decay with use_warmup
        step = max(0, n - 0 - 1)
        return 0.0 if step <= 0 else max(min(1 - (1 + step / 1.0) ** -(2 / 3), 0.8), 0.0)
    if schedule is K_DIFFUSION:  # k-diffusion EMAWarmup.get_value with start_at=4; the epoch of the first update is 0
        epoch = max(0, (n - 1) - 4)
        return 0.0 if epoch == 0 else max(0.1, min(0.9, 1 - (1 + epoch / 2.0) ** -0.75))
    if schedule is MEAN:  # torch AveragedModel without avg_fn: avg + (w - avg) / (n_averaged + 1)
        return 1 - 1 / n
    return 0.97


@pytest.mark.parametrize("schedule", EVERY, ids=str)
@pytest.mark.parametrize("updates", [1, 2, 3, 6, 10, 57])
def test_share_and_window_are_those_of_an_average(schedule: Schedule, updates: int) -> None:
    """Averages of indicators: of the start, which a copy replaces, and of the age of what is averaged."""
    share, age = 1.0, 0.0
    for n in range(1, updates + 1):
        decay = library_decay(schedule, n)
        assert decay_at(schedule, n) == pytest.approx(decay, rel=1e-12)
        share = decay * share if decay else 1.0
        age = decay * (age + 1) + (1 - decay) * 1
    assert initial_share(schedule, updates) == pytest.approx(share, rel=1e-9)
    assert effective_window(schedule, updates) == pytest.approx(age, rel=1e-6)


def test_worked_example_of_the_schedule_of_tensorflow() -> None:
    """Values 5, 10, 10 at steps 0, 10000, 10000 with decay 0.99, beginning with 0, give 4.5, 4.555, 4.60945."""
    schedule, average, seen = Schedule("tensorflow", 0.99), 0.0, []
    for value, step in ((5.0, 0), (10.0, 10_000), (10.0, 10_000)):
        decay = decay_at(schedule, step)
        assert decay is not None
        average = decay * average + (1 - decay) * value
        seen.append(average)
    assert seen == pytest.approx([4.5, 4.555, 4.60945], rel=1e-12)


def test_half_lives_are_decays() -> None:
    """After one half-life half of it is gone, however many updates that takes; EDM's form for its first batch forgets everything."""
    decay = decay_of_half_life(100, interval=10)
    assert decay**10 == pytest.approx(0.5)
    assert initial_share(Schedule("constant", decay), 10) == pytest.approx(0.5)
    assert decay_of_half_life(0, interval=512) == 0.0


@pytest.mark.parametrize("schedule", [CONSTANT, FIRST, RAMP, TENSORFLOW, TIMM], ids=str)
def test_a_settled_average_looks_back_as_far_as_its_decay_says(schedule: Schedule) -> None:
    """In the end the mean age is 1 / (1 - d)."""
    assert effective_window(schedule, 10**7) == pytest.approx(1 / (1 - schedule.decay), rel=1e-3)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule("power", 1 - 1e-15, inv_gamma=1e30, power=1e-30, start=1),
        Schedule("power", 0.9, inv_gamma=-1.0),
        Schedule("power", 1 - 1e-15, power=1.0),
        Schedule("tensorflow", 1 - 1e-15),
        Schedule("tensorflow", 0.5, minimum=2.0, start=10**30),
        Schedule("ramp", 1 - 1e-15, 1e300),
        Schedule("ramp", 1 - 1e-15, 1e-300),
        Schedule("ramp", 1 - 1e-15, 0.0),
        Schedule("constant", 1e-300),
        Schedule("constant", 1 - 1e-15),
    ],
    ids=str,
)
@pytest.mark.parametrize("updates", [0, 1, 10, 10**18])
def test_no_numbers_in_a_file_take_long(schedule: Schedule, updates: int) -> None:
    """Whatever a file says, there is an answer, or none, soon."""
    share, window = initial_share(schedule, updates), effective_window(schedule, updates)
    assert share is None or 0 <= share <= 1
    assert window is None or window >= 0
    assert state_of(schedule, updates) in {"settled", "warming", "cold", "unknown"}


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
        (Schedule("tensorflow", 0.9999), 0, "cold"),
        (Schedule("tensorflow", 0.9999), 20, "warming"),
        (Schedule("tensorflow", 0.9999), 44_000, "warming"),
        (Schedule("tensorflow", 0.9999), 46_000, "settled"),
        (Schedule("tensorflow", 0.9999), None, "unknown"),
        (Schedule("power", 0.9999, start=1), 1, "cold"),
        (Schedule("power", 0.9999, start=1), 1000, "warming"),
        (Schedule("power", 0.9999, start=1), 300_000, "warming"),
        (Schedule("power", 0.9999, start=1), 700_000, "settled"),
        (Schedule("mean"), 0, "cold"),
        (Schedule("mean"), 1, "warming"),
        (Schedule("mean"), 5, "settled"),
        (Schedule("mean"), None, "unknown"),
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
