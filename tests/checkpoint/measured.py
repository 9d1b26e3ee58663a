"""Looks at files in a process of its own each, and tells what that took: ``python measured.py``, one path for every line of input.

The processes are forked from this one, which has imported what is needed; each has limits, so that a test ends.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import traceback
from pathlib import Path

__all__ = ["main"]

LIMIT_S, LIMIT_BYTES = 30, 3 << 30


def look(path: Path) -> str:
    """Do what ``exporter inspect --tree`` and ``bake-ema --weights raw`` do; return how that ended."""
    from exporter.checkpoint import open_checkpoint
    from exporter.cli import inspect
    from exporter.config import BakeConfig
    from exporter.errors import ExporterError
    from exporter.weights import bake, read_layout

    ended = "ok"
    try:
        checkpoint = open_checkpoint(path)
        reading = read_layout(checkpoint)
        for lines in (inspect._header(checkpoint, reading, None), inspect._weights(reading), inspect._other(reading), inspect._code(checkpoint)):
            assert lines is not None
        for depth in (None, 1):
            inspect._tree(checkpoint, depth)
        inspect._as_json(checkpoint, reading)
        bake(checkpoint, BakeConfig(choice="raw"), path.with_suffix(".out"))
    except ExporterError as err:
        ended = f"{err.code} {err.exit_status} {len(str(err))}"
    return ended


def main() -> None:
    """Answer every path with ``{"ended": ..., "seconds": ..., "bytes": ...}``."""
    import ml_dtypes  # noqa: F401 - imported before the processes are forked
    import numpy as np  # noqa: F401

    look(Path(os.devnull))
    for line in sys.stdin:
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
            try:
                ended = look(Path(line.rstrip("\n")))
            except BaseException as err:  # noqa: BLE001 - told
                ended = f"{type(err).__name__}: {traceback.format_exc(limit=-3)[:600]}"
            os.write(write_end, ended.encode()[:4000])
            os._exit(0)
        os.close(write_end)
        with open(read_end, "rb") as file:  # noqa: PTH123
            ended = file.read().decode()
        _, status, usage = os.wait4(child, 0)
        seconds = usage.ru_utime + usage.ru_stime
        answer = {"ended": ended or f"killed by signal {os.WTERMSIG(status)}", "seconds": seconds, "bytes": usage.ru_maxrss * 1024}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
