"""What the contract fetches and compiles is made once, however many processes of a test run ask for it at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bindings import CACHE, fetch
from releases import RELEASES

HERE = Path(__file__).parent
NUM_PROCESSES = 4
LOAD = """
import os, sys
from bindings import fake_driver, fetch
from releases import RELEASES
folder = fetch(RELEASES[-1])
os.environ["LD_LIBRARY_PATH"] = f"{folder / 'stubs'}:{fake_driver()}"
os.environ["PYTHONPATH"] = str(folder / "site")
os.execv(sys.executable, [sys.executable, "-c", "import tensorrt_bindings; print(tensorrt_bindings.__version__)"])
"""


def test_processes_that_begin_together_find_it_whole(tmp_path):
    """On a machine that has nothing yet, each of them imports the bindings; the wheel is that of the cache folder."""
    fetch(RELEASES[-1])
    (tmp_path / "wheels").symlink_to(CACHE / "wheels")
    environment = {**os.environ, "EXPORTER_CONTRACT_CACHE": str(tmp_path), "PYTHONPATH": f"{HERE}:{HERE.parent.parent}"}
    started = [
        subprocess.Popen([sys.executable, "-c", LOAD], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(NUM_PROCESSES)
    ]
    for process in started:
        out, err = process.communicate(timeout=200)
        assert (process.returncode, out.strip()) == (0, RELEASES[-1].version), err
