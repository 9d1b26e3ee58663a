"""Error rates and power of the latency gate on simulated noise: how often races PASS, FAIL or stay INCONCLUSIVE.

    python bench/race_power.py [REPETITIONS]

Nothing is timed: the calls of two contestants are drawn from one noisy machine (see ``simulate``) and judged by the statistics that
``exporter bench`` uses, at its defaults: 2 % margin, 1 false alarm in 1000, 20 rounds, at most three looks.
"""

from __future__ import annotations

import math
import sys

import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import Outcome
from exporter.verify.race_statistics import LOOKS, decide, trimmed_interval

__all__ = ["ROUNDS", "gate", "simulate"]

CALLS = 12
ROUNDS = 20
MARGIN, FALSE_ALARM_RATE = 0.02, 0.001
MACHINES = {
    "quiet": {},
    "4 % drift": {"drift": 0.04},
    "5 % of blocks disturbed": {"disturbed": 0.05},
    "15 % of blocks disturbed": {"disturbed": 0.15},
}
RATIOS = (0.5, 1.0, 1.01, 1.02, 1.03, 1.05, 2.0)


def simulate(
    rng: np.random.Generator, repetitions: int, rounds: int, *, ratio: float = 1.0, drift: float = 0.0, disturbed: float = 0.0
) -> NDArray[np.float64]:
    """Return log ratios of rounds, shape ``(repetitions, rounds)``, of two contestants that share a noisy machine.

    Calls have AR(1) noise (rho 0.7, sd 0.4 %), 1 % of them an outlier of 30 % on average; the machine slows down by
    ``drift`` over the race; a block is ``disturbed`` as a whole with that probability, by 20 % on average.
    """
    blocks = 2 * rounds
    log_times = np.empty((repetitions, blocks, CALLS))
    state = rng.standard_normal(repetitions) * 0.004
    for block in range(blocks):
        for call in range(CALLS):
            state = 0.7 * state + rng.standard_normal(repetitions) * 0.004 * math.sqrt(1 - 0.49)
            log_times[:, block, call] = state
    log_times += np.linspace(0, math.log1p(drift), blocks)[None, :, None]
    log_times += (rng.random(log_times.shape) < 0.01) * rng.exponential(0.3, log_times.shape)
    log_times += ((rng.random((repetitions, blocks)) < disturbed) * rng.exponential(0.2, (repetitions, blocks)))[:, :, None]
    medians = np.median(log_times, axis=2)
    first, second = medians[:, 0::2], medians[:, 1::2]
    pair_starts = np.repeat(rng.random((repetitions, (rounds + 1) // 2)) < 0.5, 2, axis=1)[:, :rounds]
    swapped: NDArray[np.bool_] = pair_starts ^ (np.arange(rounds) % 2 == 1)
    return np.where(swapped, first - second, second - first) + math.log(ratio)


def gate(log_ratios: NDArray[np.float64], *, limit: float, false_alarm_rate: float) -> Outcome:
    """Return the outcome of a whole race: up to three looks at R, 2 R and 4 R rounds."""
    outcome = Outcome.INCONCLUSIVE
    for look in range(LOOKS):
        outcome = decide(trimmed_interval(log_ratios[: ROUNDS * 2**look], false_alarm_rate / LOOKS), limit)
        if outcome is not Outcome.INCONCLUSIVE:
            break
    return outcome


def main() -> None:
    """Print a table: machine and true ratio of the times -> share of the races with each outcome, and the mean number of rounds."""
    from common import print_machine, print_table

    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print_machine("numpy", "scipy")
    rows: list[list[object]] = []
    for machine, noise in MACHINES.items():
        for ratio in RATIOS:
            races = simulate(np.random.default_rng(1), repetitions, ROUNDS * 2 ** (LOOKS - 1), ratio=ratio, **noise)
            outcomes = [gate(race, limit=math.log1p(MARGIN), false_alarm_rate=FALSE_ALARM_RATE) for race in races]
            rows.append([machine, ratio, *(outcomes.count(outcome) / repetitions for outcome in (Outcome.PASS, Outcome.FAIL, Outcome.INCONCLUSIVE))])
    print_table(["machine", "candidate / reference", "PASS", "FAIL", "INCONCLUSIVE"], rows)


if __name__ == "__main__":
    main()
