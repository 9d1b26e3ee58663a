"""HDF5 files are listed in a process of its own each; a fuzzer forks it from one that has imported the library already.

The program, its limits and what is made of its answer are the real ones: only starting Python anew, 0.3 s each time, is spared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from exporter.checkpoint import hdf5_file
from tests.fuzz.targets import OWN_FOLDERS

__all__ = ["fork_listings"]

_SERVER = """
import json, os, sys, traceback
import h5py
for line in sys.stdin:
    source, path, arguments, *answers = json.loads(line)
    ends = [os.pipe(), os.pipe()]
    child = os.fork()
    if not child:
        status = 1
        try:
            for number, descriptor in enumerate((os.open(path, os.O_RDONLY), ends[0][1], ends[1][1])):
                os.dup2(descriptor, number)
            for descriptor in (*ends[0], *ends[1]):
                os.close(descriptor)
            sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
            sys.argv = ["-c", *arguments]
            exec(compile(source, "listing", "exec"), {"__name__": "__main__"})
            sys.stdout.flush()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(status)
    for (read_end, write_end), answer in zip(ends, answers):
        os.close(write_end)
        with open(read_end, "rb") as source_file, open(answer, "wb") as file:
            while part := source_file.read(1 << 16):
                file.write(part)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime]), flush=True)
"""


class _Forked:
    """Stands for the module ``subprocess`` in ``hdf5_file``."""

    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self) -> None:
        self._server = subprocess.Popen([sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)  # noqa: PTH112
        OWN_FOLDERS.append(self._folder)
        self._paths = [os.path.join(self._folder, name) for name in ("out", "err")]  # noqa: PTH118

    def run(self, command: Sequence[str], *, stdin: int, **_: Any) -> subprocess.CompletedProcess[bytes]:
        """Do what ``subprocess.run(command, stdin=stdin, capture_output=True)`` does."""
        contents = []
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        request = [command[2], f"/proc/{os.getpid()}/fd/{stdin}", list(command[3:]), *self._paths]
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        status, rss_bytes, seconds = json.loads(self._server.stdout.readline())
        for path in self._paths:
            with open(path, "rb") as file:  # noqa: PTH123
                contents.append(file.read())
        if rss_bytes > 512 << 20 or seconds > 5:
            raise AssertionError(f"listing an HDF5 file took {rss_bytes} bytes and {seconds} s")
        return subprocess.CompletedProcess(list(command), status, *contents)


def fork_listings() -> None:
    """Let ``exporter.checkpoint.hdf5_file`` list files through forks of one process."""
    hdf5_file.subprocess = _Forked()  # type: ignore[assignment]
