"""How much memory folding takes beyond the network: peak and what stays, as a multiple of its weights; Linux, needs torchvision.

    python bench/fold_memory.py [MODEL ...]

Each network is folded in a process of its own, after a small one has loaded the libraries.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import torch
import torchvision
from common import print_machine, print_table

from exporter.artifacts import Provenance
from exporter.config import FoldConfig, InputConfig
from exporter.graph import fold, trace

NAMES = ("resnet18", "resnet50", "resnet152", "vgg16_bn", "densenet201")


def _status(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def measure(name: str) -> tuple[int, int, int]:
    """Return bytes of the weights, of the peak and of what stays."""
    torch.set_num_threads(1)
    shape = InputConfig(name="x", shape=(2, 3, 64, 64))
    fold(trace(torchvision.models.resnet18(weights=None).eval(), (shape,)), FoldConfig(), provenance=Provenance("graph"))
    network = torchvision.models.get_model(name, weights=None).eval()
    traced = trace(network, (shape,))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # begins the peak anew
    before = _status("VmRSS")
    graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
    peak, after = _status("VmHWM"), _status("VmRSS")
    weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    return weights, peak - before, after - before if graph.folded else 0


def main() -> None:
    """Print one row per network."""
    if sys.argv[1:2] == ["--one"]:
        print(*measure(sys.argv[2]))
        return
    rows: list[list[object]] = []
    for name in sys.argv[1:] or NAMES:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
        weights, peak, after = map(int, done.stdout.split())
        rows.append([name, weights / 1e6, peak / 1e6, peak / weights, after / weights])
    print_machine("torch", "torchvision", "numpy")
    print_table(["network", "weights MB", "peak MB", "peak / weights", "stays / weights"], rows)


if __name__ == "__main__":
    main()
