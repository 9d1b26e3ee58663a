"""The program that the worker's interpreter runs; written so that even Python 2 can read it and say that it is too old.

Arguments: descriptor to read requests from, descriptor to write replies to, 1 where the kernel shall end this process with
its parent, the module to serve, and a folder to look for that module in (may be empty).

Neither the folder of this file nor the one that holds the package ``exporter`` is put on ``sys.path``: what lies beside the
package (a numpy built for another Python, say) would be found by this interpreter. The packages are made known by hand
instead, and their ``__init__`` modules do not run on this side.
"""

# ruff: noqa: ANN001, ANN003, ANN201, PTH100, PTH120 - Python 2 has neither annotations nor pathlib
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False

import json
import os
import struct
import sys


def greet(write_fd, **facts):
    """Write a first message; the same frame as ``protocol.encode`` makes."""
    facts.update(type="hello", python=".".join(str(part) for part in sys.version_info[:3]), sizes=[])
    text = json.dumps(facts).encode("ascii")
    os.write(write_fd, struct.pack("<4sIQ", b"EXW1", len(text), 0) + text)


def end_with_parent():
    """Ask the kernel to kill this process when its parent is gone."""
    import ctypes

    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL


def main(arguments):
    """Check the interpreter, make the packages known, serve."""
    read_fd, write_fd = int(arguments[0]), int(arguments[1])
    if sys.version_info < (3, 10):  # noqa: UP036 - another interpreter than the package's runs this
        greet(write_fd, refused="python")
        return
    if arguments[2] == "1" and sys.platform == "linux":
        end_with_parent()
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if folder and os.path.abspath(folder) != here]
    import types

    for name, folder in (("exporter", os.path.dirname(os.path.dirname(here))), ("exporter.trt_worker", os.path.dirname(here))):
        package = types.ModuleType(name)
        package.__path__ = [folder]
        sys.modules[name] = package
    if arguments[4]:
        sys.path.append(arguments[4])
    import importlib

    loop = importlib.import_module("exporter.trt_worker.serving.loop")
    greet(write_fd, protocol=loop.PROTOCOL, pid=os.getpid())
    loop.serve(read_fd, write_fd, importlib.import_module(arguments[3]).make_handlers())


if __name__ == "__main__":
    main(sys.argv[1:])
