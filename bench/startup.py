"""How long ``exporter -h`` and ``exporter inspect`` take, as multiples of Python's own start, and what they import.

    python bench/startup.py [CHECKPOINT]

Every command is started in turn, round by round, so that a busy machine is busy for all; the figure is the median. The last column
lists heavy libraries found among the imported modules: there should be none.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import print_machine, print_table

ROOT = Path(__file__).resolve().parent.parent
ROUNDS = 15
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "tensorrt", "matplotlib", "scipy", "pandas", "sklearn")
BUDGET_S = {"exporter -h": 0.15}
RUN = "import sys; from exporter.cli.app import main; sys.argv = ['exporter', *sys.argv[1:]]; sys.exit(main())"
PROBE = """
import sys
from exporter.cli.app import main
sys.argv = ['exporter', *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
print('\\x1e' + ' '.join(sorted({name.partition('.')[0] for name in sys.modules})))
"""


def main() -> None:
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else str(ROOT / "fixtures" / "digits" / "digits.pt")
    commands = {
        "python -c pass": ["-c", "pass"],
        "python -c 'import numpy'": ["-c", "import numpy"],
        "exporter -h": ["-c", RUN, "-h"],
        "exporter inspect": ["-c", RUN, "inspect", checkpoint],
        "exporter inspect --json": ["-c", RUN, "inspect", checkpoint, "--json"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, arguments in commands.items():
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
            )
            times[name].append(time.perf_counter() - start)
    print_machine("exporter", "click", "numpy")
    yardstick = statistics.median(times["python -c pass"])
    rows = []
    for name, arguments in commands.items():
        median = statistics.median(times[name])
        loaded = heavy_imports(arguments) if "exporter" in name else ""
        rows.append(
            [name, 1e3 * median, 1e3 * min(times[name]), median / yardstick, 1e3 * BUDGET_S[name] if name in BUDGET_S else "", loaded or "none"]
        )
    print_table(["command", "median ms", "fastest ms", "x python", "budget ms", "heavy imports"], rows)


def heavy_imports(arguments: list[str]) -> str:
    """Return which of the heavy libraries the command has imported by its end."""
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments[2:]], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    modules = set(done.stdout.rpartition("\x1e")[2].split())
    return " ".join(sorted(modules & set(HEAVY)))


def environment() -> dict[str, str]:
    """Return the environment of the commands: their modules are compiled, as those of an installed program are."""
    own = {"PYTHONPATH": str(ROOT), "NO_COLOR": "1", "PYTHONPYCACHEPREFIX": str(Path(tempfile.gettempdir()) / "exporter-startup")}
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | own


if __name__ == "__main__":
    main()
