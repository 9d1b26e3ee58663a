"""Race a candidate against a reference: interleaved blocks, a verdict on their ratio with a stated false-alarm rate."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import LatencyEvidence, Outcome, Verdict
from exporter.config import LatencyConfig
from exporter.errors import InternalError
from exporter.runners.base import Feed, PreparedCall, Runner
from exporter.verify.race_statistics import LOOKS, bootstrap_interval, decide, percentiles_ms, trimmed_interval

__all__ = ["Contestant", "race", "run_rounds"]

AGREEMENT = 0.05
"""Three warm-up windows agree where their medians lie within 5 % of each other."""
WARMUP_LIMIT = 4.0
"""Warm-up ends after this many times ``warmup_ms``, agreed or not."""
P99_ITERATIONS = 34
"""Calls per block that bring 20 rounds to the 662 samples of a p99."""
P99_STRETCH = 5.0
"""A block may become this much longer for the sake of the p99."""
MAX_ITERATIONS = 20_000


@dataclass(slots=True)
class Contestant:
    """A prepared call, how many calls make a block, and what was timed; times in milliseconds."""

    call: PreparedCall
    iterations: int = 1
    first_call_ms: float = 0.0
    is_warm: bool = True
    blocks: list[NDArray[np.float64]] = field(default_factory=list)

    def run_block(self) -> float:
        """Time one block, keep its samples and return their median."""
        self.blocks.append(self.call.run_block(self.iterations))
        return float(np.median(self.blocks[-1]))

    @property
    def samples_ms(self) -> NDArray[np.float64]:
        """Return the pooled raw samples of all blocks."""
        return np.concatenate(self.blocks)


def race(reference: Runner, candidate: Runner, feed: Feed, config: LatencyConfig, *, progress: Callable[[int, int], object] | None = None) -> Verdict:
    """Decide whether ``candidate`` is as fast as required.

    Args:
        reference: the unfused model, entered, on the device of the candidate.
        candidate: entered.
        feed: one batch.
        config: what is required, rounds, blocks, warm-up and seed.
        progress: told rounds done and rounds of this look.

    Returns:
        ``check="latency"``: PASS, FAIL, or INCONCLUSIVE where even 4 times the configured rounds do not decide.

    Raises:
        InternalError: E965, the contestants run with different numbers of threads.
    """
    start = time.perf_counter()
    if reference.device == candidate.device == "cpu" and reference.threads != candidate.threads:
        facts = {reference.name: reference.threads, candidate.name: candidate.threads}
        raise InternalError("E965", "the contestants of a race run with different numbers of threads", facts=facts)
    contestants = Contestant(reference.prepare(feed)), Contestant(candidate.prepare(feed))
    with _collector_off():
        for contestant in contestants:
            warm_up(contestant, config)
        outcome, log_ratios = run_rounds(*contestants, config, progress=progress)
    evidence = _evidence(reference, candidate, contestants, log_ratios, config, batch=len(next(iter(feed.values()))))
    return Verdict(
        "latency",
        candidate.name,
        outcome,
        _reason(outcome, evidence, config),
        required=config.required,
        evidence=evidence,
        seconds=time.perf_counter() - start,
    )


def warm_up(contestant: Contestant, config: LatencyConfig) -> None:
    """Time the first call, run until warm, and set the number of calls per block.

    Warm means ``warmup_ms`` of calls and three windows in a row whose medians agree.
    """
    contestant.first_call_ms = float(contestant.call.run_block(1)[0])
    window_ms = max(config.warmup_ms / 10.0, config.block_ms / 4.0)
    probe = contestant.call.run_block(3)
    spent_ms, medians = float(probe.sum()), [float(np.median(probe))]
    contestant.is_warm = False
    while spent_ms < WARMUP_LIMIT * config.warmup_ms or len(medians) < LOOKS + 1:
        times = contestant.call.run_block(_iterations(window_ms, medians[-1]))
        spent_ms += float(times.sum())
        medians.append(float(np.median(times)))
        last = medians[-3:]
        contestant.is_warm = len(last) == 3 and max(last) <= (1.0 + AGREEMENT) * min(last)
        if contestant.is_warm and spent_ms >= config.warmup_ms:
            break
    needed = _iterations(config.block_ms, medians[-1])
    contestant.iterations = max(needed, min(P99_ITERATIONS, int(P99_STRETCH * needed)))


def run_rounds(
    reference: Contestant, candidate: Contestant, config: LatencyConfig, *, progress: Callable[[int, int], object] | None = None
) -> tuple[Outcome, NDArray[np.float64]]:
    """Run rounds until the interval decides, at most 4 times as many as configured; return the log ratio of each round.

    Rounds come in pairs, one in either order, and which order comes first is drawn: ABBA or BAAB. So a drift that is steady
    over a pair cancels.
    """
    rng = np.random.default_rng(config.seed)
    alpha = config.false_alarm_rate / LOOKS
    limit = _limit(config)
    log_ratios: list[float] = []
    reference_first = True
    outcome = Outcome.INCONCLUSIVE
    for look in range(LOOKS):
        total = config.rounds * 2**look
        while len(log_ratios) < total:
            reference_first = not reference_first if len(log_ratios) % 2 else bool(rng.integers(2))
            first, second = (reference, candidate) if reference_first else (candidate, reference)
            medians = first.run_block(), second.run_block()
            median_reference, median_candidate = medians if reference_first else medians[::-1]
            log_ratios.append(math.log(median_candidate / median_reference))
            if progress is not None:
                progress(len(log_ratios), total)
        outcome = decide(trimmed_interval(np.asarray(log_ratios), alpha), limit)
        if outcome is not Outcome.INCONCLUSIVE:
            break
    return outcome, np.asarray(log_ratios)


def _limit(config: LatencyConfig) -> float:
    """Return the largest log of candidate / reference that passes."""
    return -math.log(config.min_speedup) if config.min_speedup is not None else math.log1p(config.margin)


def _iterations(wanted_ms: float, call_ms: float) -> int:
    return min(max(math.ceil(wanted_ms / max(call_ms, 1e-6)), 1), MAX_ITERATIONS)


@contextlib.contextmanager
def _collector_off() -> Iterator[None]:
    """Keep Python's garbage collector out of the blocks."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _evidence(
    reference: Runner,
    candidate: Runner,
    contestants: tuple[Contestant, Contestant],
    log_ratios: NDArray[np.float64],
    config: LatencyConfig,
    *,
    batch: int,
) -> LatencyEvidence:
    ours, theirs = contestants[1], contestants[0]
    alpha = config.false_alarm_rate / LOOKS
    interval = trimmed_interval(log_ratios, alpha)
    bootstrap = bootstrap_interval(log_ratios, alpha, np.random.default_rng([config.seed, 1]))
    return LatencyEvidence(
        candidate=candidate.name,
        reference=reference.name,
        device=candidate.device,
        batch=batch,
        threads=candidate.threads,
        rounds=len(log_ratios),
        iterations_per_block=ours.iterations,
        required=f"speedup >= {config.min_speedup:.2f}" if config.min_speedup is not None else f"no more than {100 * config.margin:.3g} % slower",
        speedup=math.exp(-interval.estimate),
        speedup_low=math.exp(-interval.high),
        speedup_high=math.exp(-interval.low),
        bootstrap_low=math.exp(-bootstrap.high),
        bootstrap_high=math.exp(-bootstrap.low),
        confidence=1.0 - 2.0 * alpha,
        false_alarm_rate=config.false_alarm_rate,
        percentiles_ms=percentiles_ms(ours.samples_ms),
        reference_percentiles_ms=percentiles_ms(theirs.samples_ms),
        first_call_ms=ours.first_call_ms,
        load_ms=candidate.load_ms,
        round_log_ratios=tuple(map(float, log_ratios)),
        samples_ms=tuple(map(float, ours.samples_ms)),
        reference_samples_ms=tuple(map(float, theirs.samples_ms)),
        clock=ours.call.clock,
        launch=_launch_of(ours),
        reference_launch=_launch_of(theirs),
        remarks=tuple(_remarks(reference, candidate, contestants, decide(interval, _limit(config)), decide(bootstrap, _limit(config)))),
    )


def _remarks(reference: Runner, candidate: Runner, contestants: tuple[Contestant, Contestant], by_t: Outcome, by_bootstrap: Outcome) -> list[str]:
    theirs, ours = contestants
    remarks = []
    for runner, contestant in ((reference, theirs), (candidate, ours)):
        settings = ", ".join(f"{key} {value}" for key, value in getattr(runner, "settings", {}).items())
        launch = _launch_of(contestant)
        details = "".join(f", {detail}" for detail in (settings, f"launched by {launch}" if launch else "") if detail)
        remarks.append(f"{runner.name}: {runner.precision} on {runner.device}, {contestant.iterations} calls a block{details}")
        if not contestant.is_warm:
            remarks.append(f"{runner.name} did not settle in its warm-up: three windows never agreed to {AGREEMENT:.0%}")
    if reference.device != candidate.device:
        remarks.append(f"different devices: {reference.name} on {reference.device}, {candidate.name} on {candidate.device}")
    if theirs.call.clock != ours.call.clock:
        remarks.append(f"different clocks: {reference.name} by {theirs.call.clock}, {candidate.name} by {ours.call.clock}")
    kinds = {_launch_of(contestant).partition(" (")[0] == "cuda graph" for contestant in contestants}
    if len(kinds) > 1 and reference.device == candidate.device == "cuda":
        remarks.append(f"different launches: {reference.name} by {_launch_of(theirs)}, {candidate.name} by {_launch_of(ours)}")
    if by_t is not by_bootstrap:
        remarks.append(f"the bootstrap over rounds alone would say {by_bootstrap.value}")
    return remarks


def _launch_of(contestant: Contestant) -> str:
    return str(getattr(contestant.call, "launch", ""))


def _reason(outcome: Outcome, evidence: LatencyEvidence, config: LatencyConfig) -> str:
    interval = f"{100 * evidence.confidence:.4g} % interval {evidence.speedup_low:.2f} to {evidence.speedup_high:.2f}"
    times = "  ".join(f"{name} {value:.3g} ms" for name, value in evidence.percentiles_ms.items())
    speed = f"{evidence.speedup:.2f} x the speed of {evidence.reference}"
    if outcome is Outcome.PASS:
        return f"{speed}   {interval}   {times}"
    wanted = (
        f"at least {config.min_speedup:.2f} x required" if config.min_speedup is not None else f"{1 / (1 + config.margin):.3f} x is the least allowed"
    )
    if outcome is Outcome.FAIL:
        return f"{speed}, {wanted}; the {interval} excludes it"
    return f"{speed}, {wanted}; the {interval} holds it after {evidence.rounds} rounds"
