"""A whole race, against a simulated clock and once for real."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import Outcome, TensorSpec, to_json
from exporter.config import LatencyConfig
from exporter.errors import InternalError
from exporter.runners import TorchRunner
from exporter.verify import race

FEED = {"x": np.zeros((4, 2), np.float32)}


class SimulatedCall:
    """A test double for a clock: times are drawn instead of measured, nothing runs."""

    clock = "simulated"

    def __init__(self, log, name, rng, milliseconds, first_ms):
        self.log, self.name, self.rng, self.milliseconds, self.first_ms = log, name, rng, milliseconds, first_ms

    def run_block(self, iterations):
        self.log.append((self.name, iterations))
        times = self.milliseconds * np.exp(0.01 * self.rng.standard_normal(iterations))
        if self.first_ms is not None:
            times[0], self.first_ms = self.first_ms, None
        return times


class SimulatedRunner:
    precision, device, load_ms = "float32", "cpu", 12.5

    def __init__(self, log, name, milliseconds, *, seed=0, first_ms=100.0, threads=1):
        self.name, self.threads = name, threads
        self.call = SimulatedCall(log, name, np.random.default_rng(seed), milliseconds, first_ms)

    def prepare(self, feed):
        return self.call


def run(reference_ms, candidate_ms, **settings):
    """Race two simulated runners; return the verdict and the log of blocks."""
    log = []
    runners = SimulatedRunner(log, "reference", reference_ms, seed=1), SimulatedRunner(log, "candidate", candidate_ms, seed=2)
    return race(*runners, FEED, LatencyConfig(threads=1, **settings)), log


@pytest.mark.parametrize(
    ("reference_ms", "candidate_ms", "settings", "outcome"),
    [
        pytest.param(2.0, 2.0, {}, Outcome.PASS, id="equal"),
        pytest.param(2.0, 4.0, {}, Outcome.FAIL, id="twice-as-slow"),
        pytest.param(2.0, 2.0 * 1.05, {}, Outcome.FAIL, id="5-percent-slower"),
        pytest.param(2.0, 2.0 * 1.05, {"margin": 0.1}, Outcome.PASS, id="within-margin"),
        pytest.param(4.0, 2.0, {"min_speedup": 1.8}, Outcome.PASS, id="fast-enough"),
        pytest.param(4.0, 2.0, {"min_speedup": 2.2}, Outcome.FAIL, id="not-fast-enough"),
    ],
)
def test_verdicts(reference_ms, candidate_ms, settings, outcome):
    """The gate goes by the ratio, in both directions."""
    verdict, _ = run(reference_ms, candidate_ms, **settings)
    evidence = verdict.evidence
    assert (verdict.check, verdict.subject, verdict.outcome) == ("latency", "candidate", outcome)
    assert evidence.speedup == pytest.approx(reference_ms / candidate_ms, rel=0.01)
    assert evidence.speedup_low < evidence.speedup < evidence.speedup_high
    assert evidence.bootstrap_low < evidence.speedup < evidence.bootstrap_high
    assert evidence.confidence == pytest.approx(1 - 0.002 / 3)
    assert to_json(verdict)


def test_undecided_race_is_looked_at_three_times():
    """Exactly at the limit: 4 times the rounds, then INCONCLUSIVE."""
    verdict, _ = run(2.0, 2.0, margin=0.0)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert verdict.evidence.rounds == 80
    assert "after 80 rounds" in verdict.reason


def test_blocks_are_interleaved_in_pairs_of_either_order():
    """Every pair of rounds is ABBA or BAAB, both occur, and the order is drawn from the seed."""
    orders = {}
    for seed in (0, 0, 1):
        _, log = run(2.0, 1.0, seed=seed)
        blocks = "".join(name[0] for name, _ in log[-40:])
        assert all(blocks[i : i + 4] in {"rccr", "crrc"} for i in range(0, 40, 4))
        orders.setdefault(seed, set()).add(blocks)
    assert len(orders[0]) == 1
    assert orders[0] != orders[1]
    assert {"rccr", "crrc"} <= {block for blocks in orders[0] for block in (blocks[i : i + 4] for i in range(0, 40, 4))}


def test_a_block_lasts_as_long_as_asked_and_warm_up_too():
    """Iterations are calibrated per contestant; warm-up is not among the samples; the first call is kept apart."""
    verdict, log = run(2.0, 0.5, block_ms=50.0, warmup_ms=300.0)
    evidence = verdict.evidence
    assert evidence.iterations_per_block >= 98
    assert dict(log[-2:])["reference"] >= 24
    for name, milliseconds in (("reference", 2.0), ("candidate", 0.5)):
        warm_up = [count for contestant, count in log[:-40] if contestant == name]
        assert sum(warm_up) * milliseconds >= 300
    assert evidence.first_call_ms == 100.0
    assert evidence.load_ms == 12.5
    assert len(evidence.samples_ms) == 20 * evidence.iterations_per_block
    assert max(evidence.samples_ms) < 1.0


def test_percentiles_are_of_all_raw_samples():
    """p99 is there because blocks are long enough for 662 samples."""
    verdict, _ = run(2.0, 2.0)
    evidence = verdict.evidence
    assert evidence.percentiles_ms["p99"] == np.percentile(evidence.samples_ms, 99, method="inverted_cdf")
    assert set(evidence.reference_percentiles_ms) == {"p50", "p90", "p99"}


def test_slow_calls_have_no_p99():
    """A call of 300 ms is not repeated 662 times for the sake of a percentile."""
    verdict, _ = run(300.0, 300.0)
    assert set(verdict.evidence.percentiles_ms) == {"p50", "p90"}


def test_different_thread_counts_are_refused():
    """Two threads against one is no race."""
    runners = SimulatedRunner([], "reference", 1.0, threads=2), SimulatedRunner([], "candidate", 1.0, threads=1)
    with pytest.raises(InternalError, match="numbers of threads"):
        race(*runners, FEED, LatencyConfig())


def test_progress_is_told_each_round():
    """Rounds done and rounds of this look."""
    told = []
    log = []
    runners = SimulatedRunner(log, "reference", 2.0), SimulatedRunner(log, "candidate", 1.0)
    race(*runners, FEED, LatencyConfig(), progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 20) for done in range(1, 21)]


class Work(nn.Module):
    def __init__(self, times):
        super().__init__()
        self.times = times
        self.weight = nn.Parameter(torch.eye(96))

    def forward(self, x):
        for _ in range(self.times):
            x = x @ self.weight
        return x


INPUTS = (TensorSpec("x", ("batch", 96), "float32"),)
REAL_FEED = {"x": np.ones((96, 96), np.float32)}


@pytest.mark.parametrize(
    ("times", "expected"), [(40, {Outcome.PASS, Outcome.INCONCLUSIVE}), (200, {Outcome.FAIL})], ids=["itself", "five-times-the-work"]
)
def test_real_race(times, expected):
    """A real module does not lose against itself on a busy machine, and five times the work is seen."""
    settings = LatencyConfig(threads=1, warmup_ms=50.0, block_ms=5.0, margin=0.1)
    with TorchRunner("reference", Work(40), INPUTS, ("y",)) as reference, TorchRunner("candidate", Work(times), INPUTS, ("y",)) as candidate:
        verdict = race(reference, candidate, REAL_FEED, settings)
    assert verdict.outcome in expected, verdict.reason
    assert verdict.evidence.clock == "perf_counter"
    assert verdict.evidence.threads == 1
    assert all(math.isfinite(ratio) for ratio in verdict.evidence.round_log_ratios)
