"""How long `exporter bake-ema` and `exporter inspect` take as whole processes, against `cp` of the bytes that baking writes.

    python bench/bake.py [MEGABYTES [ROUNDS [CHECKPOINT]]]

Builds a checkpoint (raw weights, their average, Adam's two slots: a quarter of the bytes each) in a temporary folder, on the
file system that TMPDIR names. In every round `cp`, `cp` followed by a sync, which is what baking does too, `bake-ema` and `inspect`
run one after the other in fresh processes, so that a busy machine is busy for all of them; the file cache is warm, and the modules
are compiled, as those of an installed program are. `inspect` of CHECKPOINT is measured too where one is named. Prints wall times, the
processor time of the cheapest run, the peak memory, the ratios of the medians, and all samples. Figures hold for the machine that printed them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from common import print_machine, print_table

ROOT = Path(__file__).resolve().parent.parent
MAIN = "from exporter.cli.app import main; main()"
BUILD = """
import sys, torch
path, megabytes = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
count, shape = megabytes // 16, (1024, 1024)
base = torch.randn(shape)
raw = {f"layer{i}.weight": base + i for i in range(count)}
ema = {name: value + 0.01 * base for name, value in raw.items()}
slots = {i: {"exp_avg": base * 0.1 + i, "exp_avg_sq": base * base + i} for i in range(count)}
torch.save({"state_dict": raw, "state_dict_ema": ema, "optimizer": {"state": slots, "param_groups": [{"params": list(range(count))}]}}, path)
"""


def run(*command: str | Path) -> tuple[float, float, float]:
    """Run a command; return its wall time and processor time in seconds and its peak resident memory in MB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as child:
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    if child.returncode:
        raise SystemExit(f"{command} ended with {child.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    """Build, measure, print."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    others = [Path(name).absolute() for name in sys.argv[3:]]
    exporter = (sys.executable, "-c", MAIN)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["EXPORTER_STATE_DIR"] = str(folder / "state")
        checkpoint, baked, copy = folder / "large.pt", folder / "out.safetensors", folder / "copy"
        subprocess.run([sys.executable, "-c", BUILD, checkpoint, str(megabytes)], check=True)
        os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "compiled")
        bake = (*exporter, "bake-ema", checkpoint, "-o", baked)
        run(*bake)
        written = folder / "written.safetensors"
        baked.rename(written)
        commands = {
            "cp": ("cp", "--reflink=never", written, copy),
            "cp and sync": ("sh", "-c", 'cp --reflink=never "$1" "$2" && sync "$2"', "sh", written, copy),
            "bake-ema": bake,
            "inspect": (*exporter, "inspect", checkpoint),
            **{f"inspect {path.name}": (*exporter, "inspect", path) for path in others},
        }
        for command in commands.values():
            run(*command)
            for path in (copy, baked, baked.with_name(f"{baked.name}.json")):
                path.unlink(missing_ok=True)
        samples: dict[str, list[tuple[float, float, float]]] = {what: [] for what in commands}
        for _ in range(rounds):
            for what, command in commands.items():
                samples[what].append(run(*command))
                for path in (copy, baked, baked.with_name(f"{baked.name}.json")):
                    path.unlink(missing_ok=True)
        print_machine("isal", "numpy", "click")
        print(f"checkpoint {checkpoint.stat().st_size / 1e6:.0f} MB, baked {written.stat().st_size / 1e6:.0f} MB, median of {rounds}\n")
    seconds = {what: median(taken for taken, _, _ in values) for what, values in samples.items()}
    rows = [
        [
            what,
            seconds[what],
            min(taken for taken, _, _ in values),
            min(used for _, used, _ in values),
            seconds[what] / seconds["cp"],
            seconds[what] / seconds["cp and sync"],
            max(peak for _, _, peak in values) if what.startswith(("bake-ema", "inspect")) else "",
            ", ".join(f"{taken:.2f}" for taken, _, _ in values),
        ]
        for what, values in samples.items()
    ]
    header = ["process", "median s", "fastest s", "processor s", "of cp", "of cp and sync", "peak MB", "all samples, seconds"]
    print_table(header, rows)


if __name__ == "__main__":
    main()
