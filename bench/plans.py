"""How much faster a plan folds new weights than tracing and planning do, in one run; needs torchvision.

python bench/plans.py [MODEL ...]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision
from common import print_machine, print_table

import exporter
from exporter.artifacts import Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import fold, trace

ROUNDS = 5
INPUT = InputConfig(name="x", shape=(2, 3, 224, 224))


def timed_ms(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the time of one run and what came of it."""
    start = time.perf_counter()
    result = work()
    return 1e3 * (time.perf_counter() - start), result


def main() -> None:
    """Print one row per network; tracing, folding and applying take turns, so that a busy machine slows all of them."""
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    for name in sys.argv[1:] or ("resnet18", "resnet50", "densenet121", "mobilenet_v2", "vgg16_bn"):
        network = torchvision.models.get_model(name, weights=None).eval()
        plan = exporter.fold(network, torch.zeros(INPUT.shape)).plan
        weights = {key: tensor.detach().numpy() for key, tensor in network.state_dict().items()}
        times: list[tuple[float, float, float]] = []
        for _ in range(ROUNDS):
            tracing, traced = timed_ms(lambda: trace(network, (INPUT,)))  # noqa: B023 - called at once
            folding, graph = timed_ms(lambda: fold(traced, FoldConfig(), provenance=Provenance("graph")))  # noqa: B023
            applying, folded = timed_ms(lambda: exporter.apply_plan(plan, weights))  # noqa: B023
            expected = {key: tensor.detach().numpy() for key, tensor in graph.folded_program.state_dict.items()}
            if sorted(folded) != sorted(expected) or any(not np.array_equal(folded[key], expected[key]) for key in expected):
                raise SystemExit(f"{name}: the plan gives other bits")
            times.append((tracing, folding, applying))
        tracing, folding, applying = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median((one + two) / three for one, two, three in times)
        millions = sum(array.size for array in weights.values()) / 1e6
        rows.append([name, millions, len(graph.folded), len(plan.to_json()), tracing, folding, applying, ratio])
    print_machine("torch", "torchvision", "numpy")
    print_table(["network", "million weights", "folds", "plan bytes", "trace ms", "fold ms", "plan ms", "(trace + fold) / plan"], rows)


if __name__ == "__main__":
    main()
