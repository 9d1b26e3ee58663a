"""The worker's main loop: one thread reads requests, one sends heartbeats, the main thread does the work.

An error that a person can act on (an ``ExporterError``) goes back as a message. Anything else is a bug or a crash: it ends the
process, its traceback is the last lines of the log, and the other side says so.
"""

from __future__ import annotations

import faulthandler
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from exporter.errors import EngineBuildError, ExporterError
from exporter.trt_worker.protocol import PROTOCOL, Buffer, Message, ProtocolError, encode, read_message

__all__ = ["PROTOCOL", "Call", "Handler", "serve"]

_HEARTBEAT_S = 1.0
_PROGRESS_S = 0.05
_GONE = 75
"""Exit status where the other side is gone."""


class Call:
    """A request in work: its arguments and buffers, its progress, and whether it was cancelled."""

    def __init__(
        self, arguments: Mapping[str, Any], buffers: Sequence[memoryview], cancelled: threading.Event, send: Callable[[Mapping[str, Any]], None]
    ) -> None:
        self.arguments = arguments
        self.buffers = buffers
        self.cancelled = cancelled
        self._send = send
        self._sent_at_s: dict[str, float] = {}
        self._lock = threading.Lock()

    def progress(self, phase: str, done: int, total: int) -> None:
        """Tell how far ``phase`` is (``total`` 0: unknown); thread-safe, and at most twenty times a second per phase."""
        now = time.monotonic()
        with self._lock:
            if 0 < done < total and now < self._sent_at_s.get(phase, 0.0) + _PROGRESS_S:
                return
            self._sent_at_s[phase] = now
        self._send({"type": "progress", "phase": phase, "done": done, "total": total})


Handler: TypeAlias = Callable[[Call], "tuple[dict[str, Any], Sequence[Buffer]]"]


def serve(read_fd: int, write_fd: int, handlers: Mapping[str, Handler]) -> None:
    """Answer requests until the other side closes its pipe."""
    faulthandler.enable(all_threads=False)
    lock = threading.Lock()

    def send(header: Mapping[str, Any], buffers: Sequence[Buffer] = ()) -> None:
        with lock:
            try:
                for view in encode(header, buffers):
                    rest = view
                    while rest.nbytes:
                        rest = rest[os.write(write_fd, rest[: 1 << 20]) :]
            except BrokenPipeError:
                os._exit(_GONE)

    requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
    cancelled: dict[int, threading.Event] = {}
    threading.Thread(target=_read_requests, args=(read_fd, requests, cancelled), name="requests", daemon=True).start()
    threading.Thread(target=_beat, args=(send,), name="heartbeat", daemon=True).start()
    while True:
        message = requests.get()
        number = int(message.header["id"])
        call = Call(message.header.get("arguments") or {}, message.buffers, cancelled[number], send)
        try:
            value, buffers = handlers[str(message.header["verb"])](call)
        except ExporterError as err:
            send(_error(number, err))
        except MemoryError as err:  # also what std::bad_alloc of a library becomes
            send(_error(number, _no_memory(str(message.header["verb"]), err)))
        else:
            send({"type": "result", "id": number, "value": value}, buffers)
        cancelled.pop(number, None)


def _error(number: int, err: ExporterError) -> dict[str, Any]:
    facts = {"code": err.code, "problem": err.problem, "facts": err.facts, "help": err.help}
    return {"type": "error", "id": number, "class": type(err).__name__, **facts}


def _no_memory(verb: str, err: MemoryError) -> EngineBuildError:
    facts = {"during": verb, "found": str(err) or "no room for what was asked of the machine"}
    help_text = "give the machine more memory, or lower [tensorrt] workspace_mib"
    return EngineBuildError("E545", "the TensorRT worker ran out of the machine's memory", facts=facts, help=help_text)


def _beat(send: Callable[[Mapping[str, Any]], None]) -> None:
    while True:
        time.sleep(_HEARTBEAT_S)
        send({"type": "heartbeat"})


def _read_requests(descriptor: int, requests: queue.SimpleQueue[Message], cancelled: dict[int, threading.Event]) -> None:
    def read_exact(count: int) -> bytearray | None:
        content = bytearray(count)
        view = memoryview(content)
        filled = 0
        while filled < count:
            got = os.readv(descriptor, [view[filled : filled + (1 << 20)]])
            if not got:
                return None
            filled += got
        return content

    while True:
        try:
            message = read_message(read_exact)
        except (ProtocolError, EOFError, OSError):
            message = None
        if message is None:  # the other side closed the pipe, or is gone: whatever is in work is of no use any more
            os._exit(0)
        number = int(message.header.get("id", 0))
        if message.type == "request":
            cancelled[number] = threading.Event()
            requests.put(message)
        elif message.type == "cancel" and number in cancelled:
            cancelled[number].set()
