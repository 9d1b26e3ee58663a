"""The statistics of a race on simulated noise: what the false-alarm rate says is what happens."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.race_power import ROUNDS, gate, simulate
from exporter.artifacts import Outcome
from exporter.verify.race_statistics import LOOKS, RatioInterval, bootstrap_interval, decide, percentiles_ms, trimmed_interval

REPETITIONS = 3000


def outcomes(seed, *, limit, false_alarm_rate, repetitions=REPETITIONS, **noise):
    """Outcome -> share of the simulated races."""
    rows = simulate(np.random.default_rng(seed), repetitions, ROUNDS * 2 ** (LOOKS - 1), **noise)
    results = [gate(row, limit=limit, false_alarm_rate=false_alarm_rate) for row in rows]
    return {outcome: results.count(outcome) / repetitions for outcome in Outcome}


@pytest.mark.parametrize("noise", [{}, {"drift": 0.04}, {"disturbed": 0.05}, {"drift": 0.04, "disturbed": 0.15}], ids=str)
def test_false_alarms_stay_at_the_stated_rate(noise):
    """A candidate exactly at the limit fails no more often than stated: at most 5 % of 3000 races and three standard errors."""
    rate = outcomes(11, limit=math.log1p(0.02), false_alarm_rate=0.05, ratio=1.02, **noise)[Outcome.FAIL]
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / REPETITIONS)


@pytest.mark.parametrize("noise", [{}, {"drift": 0.04}, {"disturbed": 0.15}], ids=str)
def test_equal_contestants_do_not_fail(noise):
    """A/A at the default rate of 1 in 1000 with 2 % margin: none of 3000 races fails."""
    rates = outcomes(12, limit=math.log1p(0.02), false_alarm_rate=0.001, **noise)
    assert rates[Outcome.FAIL] == 0
    assert rates[Outcome.PASS] > (0.97 if noise.get("disturbed") else 0.999)


def test_candidate_of_twice_the_time_always_fails():
    """So does one that is 5 % slower, also where one block in twenty is disturbed."""
    for ratio in (2.0, 1.05):
        rates = outcomes(13, limit=math.log1p(0.02), false_alarm_rate=0.001, ratio=ratio, disturbed=0.05, repetitions=500)
        assert rates[Outcome.FAIL] > 0.99


def test_interval_is_students_on_rounds_without_outliers():
    """With nothing to trim (four rounds) the bounds are the textbook's t interval."""
    values = np.array([0.01, 0.03, 0.02, 0.06])
    interval = trimmed_interval(values, 0.05)  # at half the rate
    reach = 3.182446305284263 * values.std(ddof=1) / 2
    assert interval.estimate == pytest.approx(0.03)
    assert (interval.low, interval.high) == pytest.approx((0.03 - reach, 0.03 + reach))


@pytest.mark.parametrize("rounds", [8, 20, 80])
def test_bound_errs_no_more_often_than_stated_far_out_in_the_tail(rounds):
    """1 in 1000 means 1 in 1000: 60 000 samples of normal rounds, within three standard errors, either side counted."""
    rows = np.random.default_rng(21).standard_normal((30_000, rounds))
    wrong = sum((interval.low > 0) + (interval.high < 0) for interval in (trimmed_interval(row, 0.001) for row in rows))
    assert wrong <= 60 + 3 * math.sqrt(60)


def test_a_few_wild_rounds_do_not_move_the_interval_much():
    """Three rounds of twenty in which something else took the machine: the bounds stay within a percent."""
    rounds = np.random.default_rng(5).normal(0.0, 0.002, 20)
    wild = rounds.copy()
    wild[[3, 9, 15]] = 0.9, -0.7, 1.4
    interval = trimmed_interval(wild, 0.001 / 3)
    assert -0.01 < interval.low < interval.high < 0.01


@pytest.mark.parametrize(
    ("interval", "outcome"),
    [
        pytest.param(RatioInterval(-0.1, 0.0, 0.01), Outcome.PASS, id="below"),
        pytest.param(RatioInterval(0.03, 0.05, 0.07), Outcome.FAIL, id="above"),
        pytest.param(RatioInterval(0.01, 0.02, 0.03), Outcome.INCONCLUSIVE, id="across"),
    ],
)
def test_decision(interval, outcome):
    """The whole interval has to lie on one side of the limit."""
    assert decide(interval, 0.02) is outcome


def test_bootstrap_agrees_roughly_and_is_seeded():
    """The check by resampling lies near the t interval and is the same every time."""
    rounds = np.random.default_rng(6).normal(0.1, 0.01, 40)
    first, second = (bootstrap_interval(rounds, 0.01, np.random.default_rng(1)) for _ in range(2))
    t = trimmed_interval(rounds, 0.01)
    assert first == second
    assert first.estimate == pytest.approx(t.estimate)
    assert (first.high - first.low) == pytest.approx(t.high - t.low, rel=0.4)


def test_p99_needs_662_samples():
    """Percentiles are of raw samples, by nearest rank; too few samples have no p99."""
    samples = np.arange(1.0, 662.0)
    assert set(percentiles_ms(samples)) == {"p50", "p90"}
    assert percentiles_ms(np.arange(1.0, 1001.0)) == {"p50": 500.0, "p90": 900.0, "p99": 990.0}
