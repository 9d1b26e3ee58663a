"""How long baking takes, against copying the same file; how much memory; and how long looking takes.

    python bench/bake.py [MEGABYTES]

Builds a checkpoint (raw weights, their average, Adam's two slots: a quarter of the bytes each) in a temporary folder, on the
file system that TMPDIR names, and prints wall times of fresh processes, best of three with the file cache warm, and their
peak memory. Figures hold for the machine that printed them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 3

BUILD = """
import sys, torch
path, megabytes = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
count, shape = megabytes // 16, (1024, 1024)
raw = {f"layer{i}.weight": torch.randn(shape) for i in range(count)}
ema = {name: value + 0.01 * torch.randn(shape) for name, value in raw.items()}
slots = {i: {"exp_avg": torch.randn(shape), "exp_avg_sq": torch.rand(shape)} for i in range(count)}
torch.save({"state_dict": raw, "state_dict_ema": ema, "optimizer": {"state": slots, "param_groups": [{"params": list(range(count))}]}}, path)
"""
MEASURED = """
import json, resource, sys, time
start = time.perf_counter()
from pathlib import Path
from exporter.checkpoint import open_checkpoint
from exporter.weights import bake, read_layout
imported = time.perf_counter()
checkpoint = open_checkpoint(Path(sys.argv[1]))
read_layout(checkpoint)
read = time.perf_counter()
seconds = {"import": imported - start, "open and read layout": read - imported}
if len(sys.argv) > 2:
    from exporter.config import BakeConfig
    begin, cpu = time.perf_counter(), time.process_time()
    bake(checkpoint, BakeConfig(choice=sys.argv[3]), Path(sys.argv[2]))
    seconds["bake"], seconds["bake cpu"] = time.perf_counter() - begin, time.process_time() - cpu
print(json.dumps({"seconds": seconds, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def measured(*args: str | Path) -> dict[str, dict[str, float]]:
    """Run the measured program in a fresh process and return what it says."""
    command = [sys.executable, "-c", MEASURED, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return json.loads(done.stdout)


def copied(source: Path, target: Path) -> float:
    """Return the seconds that ``cp`` and a sync of the copy take, as baking syncs too."""
    begin = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    with target.open("rb") as file:
        os.fsync(file.fileno())
    return time.perf_counter() - begin


def main() -> None:
    """Build, measure, print."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    fixture = ROOT / "fixtures" / "digits" / "digits.pt"
    looks = [measured(fixture) for _ in range(REPEATS)]
    best = min(looks, key=lambda look: look["seconds"]["open and read layout"])
    print(f"fixture        open + layout {1e3 * best['seconds']['open and read layout']:.1f} ms (imports {1e3 * best['seconds']['import']:.0f} ms)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "large.pt"
        subprocess.run([sys.executable, "-c", BUILD, checkpoint, str(megabytes)], check=True)
        size_mb = checkpoint.stat().st_size / 1e6
        copy_s = min(copied(checkpoint, folder / "copy.pt") for _ in range(REPEATS))
        print(f"checkpoint     {size_mb:.0f} MB; cp {copy_s:.2f} s")
        for choice in ("raw", "ema"):
            runs = [measured(checkpoint, folder / "out.safetensors", choice) for _ in range(REPEATS)]
            bake_s = min(run["seconds"]["bake"] for run in runs)
            cpu_s = min(run["seconds"]["bake cpu"] for run in runs)
            peak = max(run["peak_mib"] for run in runs)
            written_mb = (folder / "out.safetensors").stat().st_size / 1e6
            print(f"bake {choice}       {bake_s:.2f} s = {bake_s / copy_s:.2f} x cp ({cpu_s:.2f} s of processor time)")
            print(f"               {written_mb:.0f} MB written; peak memory {peak:.0f} MiB")
        look = min(measured(checkpoint)["seconds"]["open and read layout"] for _ in range(REPEATS))
        print(f"large          open + layout {1e3 * look:.1f} ms")


if __name__ == "__main__":
    main()
