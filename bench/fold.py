"""How long folding takes: planning with the float64 algebra and the surgery, beside tracing and one forward pass.

    python bench/fold.py [WIDTH ...]

The network is the digits fixture's at several widths.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import print_machine, print_table

from exporter.artifacts import Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import fold, trace

MODEL = Path(__file__).resolve().parent.parent / "fixtures" / "digits" / "model.py"
ROUNDS = 5


def median_ms(work: Callable[[], object]) -> float:
    """Return the median of ROUNDS runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Print one row per width."""
    spec = importlib.util.spec_from_file_location("digits_model", MODEL)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{MODEL}: the fixture is missing")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    torch.set_num_threads(1)
    example = InputConfig(name="image", shape=(2, 1, 8, 8))
    rows: list[list[object]] = []
    for width in map(int, sys.argv[1:] or ("24", "96", "384")):
        module = model.build(width=width).eval()
        traced = trace(module, (example,), outputs=("logits",))
        graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
        image = torch.rand(32, 1, 8, 8)
        with torch.inference_mode():
            forward = median_ms(lambda: module(image))  # noqa: B023 - called at once
        parameters = sum(parameter.numel() for parameter in module.parameters())
        tracing = median_ms(lambda: trace(module, (example,), outputs=("logits",)))  # noqa: B023
        folding = median_ms(lambda: fold(traced, FoldConfig(), provenance=Provenance("graph")))  # noqa: B023
        rows.append([width, parameters, len(graph.folded), tracing, folding, folding / tracing, forward])
    print_machine("torch")
    print_table(["width", "parameters", "folds", "trace ms", "fold ms", "fold / trace", "forward, batch 32, ms"], rows)


if __name__ == "__main__":
    main()
