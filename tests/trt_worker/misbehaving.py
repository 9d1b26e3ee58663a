"""A service for the worker that does, in a real process, everything that a builder can do wrong."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

from exporter.errors import EngineBuildError, SampleError
from exporter.trt_worker.protocol import pack_arrays, unpack_arrays


def make_handlers():
    """Return verb -> handler."""
    return {
        "abort": lambda call: os.abort(),
        "double": double,
        "echo": lambda call: (call.arguments, call.buffers),
        "exhaust": exhaust,
        "exit": lambda call: os._exit(int(call.arguments["status"])),
        "freeze": lambda call: os.kill(os.getpid(), signal.SIGSTOP),
        "garbage": garbage,
        "imports": lambda call: ({"modules": sorted(sys.modules), "path": sys.path}, ()),
        "noise": noise,
        "raise": raise_,
        "refuse": refuse,
        "segfault": segfault,
        "sleep": sleep,
        "steps": steps,
        "stubborn": stubborn,
    }


def segfault(call):
    """Read address zero."""
    print("about to read address zero", flush=True)
    ctypes.string_at(0)


def exhaust(call):
    """Ask for more memory than this process may have, in Python or in NumPy."""
    import resource

    import numpy as np

    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, before[1]))
    try:
        if call.arguments["by"] == "numpy":
            return {"bytes": np.ones(8 << 30, np.uint8).nbytes}, ()
        return {"bytes": len(bytearray(8 << 30))}, ()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def garbage(call):
    """Write to every descriptor that is open, as a broken library might."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"this is no message at all, not by far")
        except OSError:
            continue
    time.sleep(60)


def noise(call):
    """Print to both streams, from Python and from C, while answering."""
    os.write(1, b"\x00\xffEXW1 binary noise\n")
    for number in range(2000):
        print(f"line {number} on standard output")
        print(f"line {number} on standard error", file=sys.stderr)
    libc = ctypes.CDLL(None)
    libc.puts(b"from C")
    libc.fflush(None)
    return {"ok": True}, ()


def raise_(call):
    """Raise what nobody foresees."""
    raise ZeroDivisionError("a bug of the worker")


def refuse(call):
    """Raise what a person can act on."""
    raise SampleError("E525", "an input does not fit the engine", facts={"input": "x"}, help="feed another")


def sleep(call):
    """Work for a while."""
    time.sleep(float(call.arguments["seconds"]))
    return {}, ()


def steps(call):
    """Work in steps until cancelled, as a builder with a progress monitor does."""
    for number in range(2000):
        call.progress("timing tactics", number, 2000)
        if call.cancelled.wait(0.01):
            raise EngineBuildError("E503", "the build was cancelled; nothing was written", facts={"step": number})
    return {}, ()


def stubborn(call):
    """Tell of progress once and then never look up again, as a builder without a progress monitor does."""
    call.progress("build", 0, 0)
    time.sleep(60)
    return {}, ()


def double(call):
    """Return every array doubled."""
    arrays = unpack_arrays(call.arguments["arrays"], call.buffers)
    specs, buffers = pack_arrays({name: array * 2 for name, array in arrays.items()})
    return {"arrays": specs}, buffers
