"""How long folding takes: planning with the float64 algebra and rounding, and all of it, beside tracing and one forward pass.

    python bench/fold.py [WIDTH or NETWORK ...]

A width is one of the digits fixture's network; a network is one of torchvision, or of timm where it begins with `timm:`. Processor times
of one thread, since other programs may be running. What all of a fold takes beyond planning is torch's copy of the graph, its code for
it and its verifier, and the record of the plan.
"""

from __future__ import annotations

import importlib
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
from exporter.graph import Traced, fold, trace
from exporter.graph.aten.constants import compute_constants
from exporter.graph.aten.reading import ProgramConstants, abstract_graph
from exporter.graph.planning import make_plan
from exporter.graph.rewrites.late_weight import rounded

MODEL = Path(__file__).resolve().parent.parent / "fixtures" / "digits" / "model.py"
ROUNDS = 5


def median_ms(work: Callable[[], object]) -> float:
    """Return the median of ROUNDS runs."""
    times = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def planned(traced: Traced) -> None:
    """Do what a fold does of its own: read the graph, plan, compute the new numbers and round them."""
    computed = compute_constants(traced.program)
    plan = make_plan(abstract_graph(computed.program), ProgramConstants(computed.program, computed.exact), FoldConfig())
    for new in plan.numbers:
        rounded(new.given, "float32")


def network_of(name: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """Return a network in eval mode and the shape of what it reads, but for the batch."""
    if name.isdecimal():
        spec = importlib.util.spec_from_file_location("digits_model", MODEL)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{MODEL}: the fixture is missing")
        model = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(model)
        return model.build(width=int(name)).eval(), (1, 8, 8)
    if name.startswith("timm:"):
        return importlib.import_module("timm").create_model(name.removeprefix("timm:")).eval(), (3, 64, 64)
    return importlib.import_module("torchvision").models.get_model(name, weights=None).eval(), (3, 64, 64)


def main() -> None:
    """Print one row per network."""
    torch.set_num_threads(1)
    rows: list[list[object]] = []
    for name in sys.argv[1:] or ("24", "96", "384"):
        module, shape = network_of(name)
        example = InputConfig(name="image", shape=(2, *shape))
        traced = trace(module, (example,))
        graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
        image = torch.rand(32, *shape)
        with torch.inference_mode():
            forward = median_ms(lambda: module(image))  # noqa: B023 - called at once
        parameters = sum(parameter.numel() for parameter in module.parameters())
        tracing = median_ms(lambda: trace(module, (example,)))  # noqa: B023
        planning = median_ms(lambda: planned(traced))  # noqa: B023
        folding = median_ms(lambda: fold(traced, FoldConfig(), provenance=Provenance("graph")))  # noqa: B023
        rows.append([name, parameters, len(graph.folded), tracing, planning, folding, folding / tracing, forward])
    print_machine("torch")
    print_table(["network", "parameters", "folds", "trace ms", "plan ms", "fold ms", "fold / trace", "forward, batch 32, ms"], rows)


if __name__ == "__main__":
    main()
