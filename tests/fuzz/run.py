"""Fuzzes every target in turn: ``python tests/fuzz/run.py --minutes 30``. Seeds are made, findings stay in the work folder.

Each target has the same share of the time, in a process of its own with limits of memory and time. The exit status is 1 if
anything was found; a table of what was run, and ``summary.json`` in the work folder, say how much.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
MAX_INPUT_BYTES = 1 << 18


def seeds_in(work: Path, python: str) -> Path:
    """Make the seeds, in a process that imports the libraries which write them."""
    folder = work / "seeds"
    if not folder.is_dir():
        subprocess.run([python, str(HERE / "seeds.py"), str(folder)], check=True, cwd=work)
    return folder


def fuzz(name: str, prefixes: tuple[str, ...], seeds: Path, work: Path, seconds: int) -> dict[str, Any]:
    """Fuzz one target for ``seconds`` and return its numbers; a finding stays in ``work/findings``."""
    place = name.replace(" ", "-")
    corpus, findings = work / "corpus" / place, work / "findings"
    for folder in (corpus, findings):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds.iterdir():
        if seed.name.startswith(prefixes):
            shutil.copy(seed, corpus)
    scratch = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else work
    sandbox = scratch / f"exporter-fuzz-{os.getpid()}-{place}" / "w"
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", "-rss_limit_mb=512", "-timeout=30", "-print_final_stats=1"]
    options += [f"-dict={work / 'dictionary'}", f"-artifact_prefix={findings}/{place}-", "-len_control=0", "-use_value_profile=0", "-reload=0"]
    command = [sys.executable, str(HERE / "fuzz_one.py"), name, str(sandbox), *options, str(corpus), str(seeds)]
    began = time.monotonic()
    log = work / f"{place}.log"
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False, cwd=work)
    shutil.rmtree(sandbox.parent, ignore_errors=True)
    text = log.read_text(errors="replace")
    edges = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", text)
    numbers = dict(re.findall(r"stat::(\w+):\s+(\d+)", text))
    return {
        "target": name,
        "status": done.returncode,
        "seconds": round(time.monotonic() - began),
        "executions": int(numbers.get("number_of_executed_units", 0)),
        "edges": int(edges[-1][0]) if edges else 0,
        "features": int(edges[-1][1]) if edges else 0,
        "inputs_kept": int(edges[-1][2]) if edges else 0,
        "peak_rss_mb": int(numbers.get("peak_rss_mb", 0)),
    }


def main() -> int:
    """Run all targets, or those named; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="for all targets together")
    parser.add_argument("--target", action="append", help="only this one; may be given several times")
    parser.add_argument("--work", type=Path, default=ROOT / ".fuzz", help="corpus, logs and findings")
    parser.add_argument("--seeds-python", default=sys.executable, help="interpreter that has the libraries which write seeds")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("EXPORTER_STATE_DIR", str(work / "state"))
    sys.path.insert(0, str(ROOT))
    from tests.fuzz.targets import TARGETS
    from tests.fuzz.words import dictionary

    (work / "dictionary").write_text("\n".join(dictionary()) + "\n")
    seeds = seeds_in(work, arguments.seeds_python)
    chosen = [target for target in TARGETS if not arguments.target or target.name in arguments.target]
    rows = []
    for target in chosen:
        rows.append(fuzz(target.name, target.seeds, seeds, work, int(60 * arguments.minutes / len(chosen))))
        print(
            "{target:14} status {status}  {seconds:5} s  {executions:9} runs  {edges:6} edges  {inputs_kept:5} kept  {peak_rss_mb} MB".format(
                **rows[-1]
            ),
            flush=True,
        )
    (work / "summary.json").write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(row["status"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
