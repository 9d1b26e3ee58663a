"""This side of the worker: start it, ask it, time it, and say clearly how it ended."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from typing_extensions import Self

from exporter import errors
from exporter.errors import EngineBuildError, ExporterError, MissingLibrary, VersionMismatch
from exporter.trt_worker.protocol import PROTOCOL, Buffer, Message, ProtocolError, encode, read_message

__all__ = ["Progress", "Reply", "Service", "Worker"]

Progress = Callable[[str, int, int], bool]

_logger = logging.getLogger(__name__)
_BOOT = Path(__file__).parent / "serving" / "boot.py"
_PIECE = 1 << 20
_KEPT_LINES = 200
_SHOWN_LINES = 12
_CANCEL_GRACE_S = 10.0
_OLDEST_PYTHON = "3.10"


@dataclass(frozen=True, slots=True)
class Service:
    """What the worker serves: a module with ``make_handlers()``, and a folder that it is looked for in besides."""

    module: str = "exporter.trt_worker.serving.engine_service"
    path: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request."""

    value: dict[str, Any]
    buffers: tuple[memoryview, ...] = ()


class Worker:
    """A worker process; used in ``with``. One request at a time.

    Args:
        python: interpreter, by path or by name; empty: the one that runs this.
        service: what the worker serves.
        start_limit_s: time that the interpreter has to start.
        silence_limit_s: a worker that sends nothing, not even a heartbeat, for so long is taken for hung.

    Raises:
        EnvironmentLacking: the interpreter cannot be started (E853) or is too old (E854).
    """

    def __init__(self, python: str = "", *, service: Service | None = None, start_limit_s: float = 60.0, silence_limit_s: float = 300.0) -> None:
        self.python = python or sys.executable
        self.python_version = ""
        self._service = service or Service()
        self._start_limit_s = start_limit_s
        self._silence_limit_s = silence_limit_s
        self._process: subprocess.Popen[bytes] | None = None
        self._requests_fd = -1
        self._inbox: queue.SimpleQueue[Message | ProtocolError | None] = queue.SimpleQueue()
        self._log: deque[str] = deque(maxlen=_KEPT_LINES)
        self._threads: list[threading.Thread] = []
        self._number = 0
        self._last_heard_s = 0.0
        self._end: ExporterError | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the process and wait for its first message."""
        program = shutil.which(self.python)
        if program is None:
            raise self._no_interpreter("no such program")
        requests_read, self._requests_fd = os.pipe()
        replies_read, replies_write = os.pipe()
        in_main_thread = threading.current_thread() is threading.main_thread()  # the kernel's signal comes when the starting *thread* ends
        command = [program, str(_BOOT), str(requests_read), str(replies_write), str(int(in_main_thread)), self._service.module, self._service.path]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - an interpreter that the user names
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(requests_read, replies_write),
                start_new_session=True,  # Ctrl-C on the terminal is ours to pass on
                env=self._environment(program),
            )
        except OSError as err:
            os.close(replies_read)
            os.close(self._requests_fd)
            self._requests_fd = -1
            raise self._no_interpreter(err.strerror or str(err)) from err
        finally:
            os.close(requests_read)
            os.close(replies_write)
        os.set_blocking(self._requests_fd, False)
        self._threads = [
            threading.Thread(target=self._read_replies, args=(replies_read,), name="trt-worker-replies", daemon=True),
            threading.Thread(target=self._read_log, name="trt-worker-log", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        try:
            self._greet()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process: by closing its pipe, and by a signal where it does not go."""
        process = self._process
        if process is None:
            return
        if self._requests_fd >= 0:
            os.close(self._requests_fd)
            self._requests_fd = -1
        try:
            process.wait(5.0 if self._end is None else 0.1)
        except subprocess.TimeoutExpired:
            self._kill()
        for thread in self._threads:
            thread.join(5.0)
        if process.stdout is not None:
            process.stdout.close()
        self._process = None
        self._end = self._end or EngineBuildError("E504", "the TensorRT worker has been closed")

    @property
    def pid(self) -> int | None:
        """Return the process id, None where no process runs."""
        return self._process.pid if self._process else None

    @property
    def log(self) -> tuple[str, ...]:
        """Return the last lines that the worker's libraries printed."""
        return tuple(self._log)

    # -- requests -----------------------------------------------------------------------------------------------------

    def request(
        self,
        verb: str,
        arguments: Mapping[str, Any] | None = None,
        buffers: Sequence[Buffer] = (),
        *,
        limit_s: float,
        progress: Progress | None = None,
    ) -> Reply:
        """Send a request and wait for its answer.

        Args:
            verb: one of the service's handlers.
            arguments: JSON-able.
            buffers: raw bytes beside them.
            limit_s: time that the answer may take; then the worker is ended.
            progress: called with phase, steps done and steps in all (0: unknown); returning False cancels the request.

        Raises:
            ExporterError: what the worker raised; or how it ended: by itself or a signal (E504), over the time limit (E505),
                silent or talking nonsense (E506), cancelled (E503).
        """
        if self._end is not None:
            raise self._end
        self._number += 1
        deadline_s = time.monotonic() + limit_s
        answered = False
        try:
            self._send({"type": "request", "id": self._number, "verb": verb, "arguments": dict(arguments or {})}, buffers, verb, deadline_s, limit_s)
            reply = self._await(verb, deadline_s, limit_s, progress)
            answered = True
        except ExporterError:
            answered = True
            raise
        finally:
            if not answered:  # Ctrl-C, or a callback that raised: cancel, then end it
                self._abandon()
        return reply

    def _await(self, verb: str, deadline_s: float, limit_s: float, progress: Progress | None) -> Reply:
        cancelled_at_s: float | None = None
        while True:
            message = self._next(verb, deadline_s, limit_s, cancelled_at_s)
            if message.type == "progress" and progress is not None:
                wanted = progress(str(message.header.get("phase")), int(message.header.get("done", 0)), int(message.header.get("total", 0)))
                if wanted is False and cancelled_at_s is None:
                    cancelled_at_s = time.monotonic()
                    self._send({"type": "cancel", "id": self._number}, (), verb, deadline_s, limit_s)
            elif message.header.get("id") != self._number:
                continue
            elif message.type == "result":
                if cancelled_at_s is not None:  # it was done before the wish reached it, which changes nothing for who asked
                    raise EngineBuildError("E503", "the build was cancelled; nothing was written", facts={"during": verb})
                return Reply(message.header.get("value") or {}, message.buffers)
            elif message.type == "error":
                raise _error_from(message.header)

    def _next(self, verb: str, deadline_s: float, limit_s: float, cancelled_at_s: float | None) -> Message:
        """Return the next message that is not a heartbeat, or raise how the worker ended."""
        while True:
            now = time.monotonic()
            if cancelled_at_s is not None and now > cancelled_at_s + _CANCEL_GRACE_S:
                self._fail(EngineBuildError("E503", "the build was cancelled; nothing was written", facts={"during": verb}))
            if now > deadline_s:
                facts = {"during": verb, "allowed": f"{limit_s:g} s", "worker": self.python, **self._log_facts()}
                self._fail(
                    EngineBuildError(
                        "E505", "the TensorRT worker exceeded its time limit and was ended", facts=facts, help="allow more: [tensorrt] timeout_s"
                    )
                )
            if now > self._last_heard_s + self._silence_limit_s:
                self._fail(self._nonsense(verb, f"no sign of life for {self._silence_limit_s:g} s"))
            try:
                message = self._inbox.get(timeout=0.25)
            except queue.Empty:
                continue
            if message is None:
                self._died(verb)
            if isinstance(message, ProtocolError):
                self._fail(self._nonsense(verb, str(message)))
            self._last_heard_s = time.monotonic()
            if message.type != "heartbeat":
                return message

    def _send(self, header: Mapping[str, Any], buffers: Sequence[Buffer], verb: str, deadline_s: float, limit_s: float) -> None:
        self._last_heard_s = time.monotonic()
        for view in encode(header, buffers):
            rest = view
            while rest.nbytes:
                if time.monotonic() > deadline_s:
                    facts = {"during": verb, "allowed": f"{limit_s:g} s", **self._log_facts()}
                    self._fail(
                        EngineBuildError(
                            "E505", "the TensorRT worker exceeded its time limit and was ended", facts=facts, help="allow more: [tensorrt] timeout_s"
                        )
                    )
                _, ready, _ = select.select([], [self._requests_fd], [], 0.25)
                if not ready:
                    continue
                try:
                    rest = rest[os.write(self._requests_fd, rest[:_PIECE]) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    self._died(verb)

    def _abandon(self) -> None:
        if self._end is None and self._requests_fd >= 0:
            with contextlib.suppress(ExporterError):
                now = time.monotonic()
                self._send({"type": "cancel", "id": self._number}, (), "cancel", now + 1.0, 1.0)
        self._end = self._end or EngineBuildError("E503", "the build was cancelled; nothing was written")
        self._kill()

    # -- start and end ------------------------------------------------------------------------------------------------

    def _greet(self) -> None:
        self._last_heard_s = time.monotonic()
        deadline_s = self._last_heard_s + self._start_limit_s
        try:
            message = self._next("start", deadline_s, self._start_limit_s, None)
        except EngineBuildError as err:
            raise self._no_interpreter(
                f"{err.problem} ({err.facts.get('signal') or err.facts.get('exit status') or err.facts.get('found') or 'no answer'})"
            ) from err
        self.python_version = str(message.header.get("python", ""))
        if message.type == "hello" and message.header.get("refused") == "python":
            facts = {"interpreter": self.python, "found": f"Python {self.python_version}", "expected": f"Python {_OLDEST_PYTHON} or newer"}
            self._end = VersionMismatch(
                "E854", "the interpreter of the TensorRT worker is too old", facts=facts, help="name a newer one: [tensorrt] python"
            )
            raise self._end
        if message.type != "hello" or message.header.get("protocol") != PROTOCOL:
            raise self._no_interpreter("it did not greet as a worker does")

    def _no_interpreter(self, found: str) -> MissingLibrary:
        facts = {"interpreter": self.python, "found": found, "expected": f"Python {_OLDEST_PYTHON} or newer", **self._log_facts()}
        help_text = "name the interpreter that has TensorRT: [tensorrt] python"
        error = MissingLibrary("E853", "the interpreter of the TensorRT worker cannot be started", facts=facts, help=help_text)
        self._end = error
        return error

    def _environment(self, program: str) -> dict[str, str]:
        environment = dict(os.environ)
        if Path(program) != Path(sys.executable):
            for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"):  # ours, not the other interpreter's
                environment.pop(name, None)
        environment["PYTHONUNBUFFERED"] = "1"
        return environment

    def _died(self, verb: str) -> NoReturn:
        process = self._process
        status: int | None = None
        if process is not None:
            try:
                status = process.wait(5.0)
            except subprocess.TimeoutExpired:
                self._kill()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(2.0)
        facts: dict[str, object] = {"during": verb, "worker": self.python}
        help_text = ""
        if status is not None and status < 0:
            name = signal.Signals(-status).name if -status in signal.valid_signals() else f"signal {-status}"
            facts["signal"] = name
            problem = f"the TensorRT worker was ended by {name}"
            if name == "SIGKILL":
                help_text = "a kill usually means that the machine ran out of memory: give it more, or lower [tensorrt] workspace_mib"
        else:
            facts["exit status"] = "it closed its pipe and had to be ended" if status is None else status
            problem = "the TensorRT worker ended before it answered"
        self._fail(EngineBuildError("E504", problem, facts={**facts, **self._log_facts()}, help=help_text))

    def _nonsense(self, verb: str, found: str) -> EngineBuildError:
        facts = {"during": verb, "found": found, "worker": self.python, **self._log_facts()}
        return EngineBuildError("E506", "the TensorRT worker stopped answering and was ended", facts=facts)

    def _fail(self, error: ExporterError) -> NoReturn:
        self._end = error
        self._kill()
        raise error

    def _kill(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # its session is its own: a wrapper's children go too
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5.0)

    def _log_facts(self) -> dict[str, str]:
        lines = [line for line in self._log if line.strip()]
        crash = next((number for number, line in enumerate(lines) if line.startswith("Fatal Python error")), None)
        start = max(0, len(lines) - _SHOWN_LINES if crash is None else crash - _SHOWN_LINES // 3)
        return {"last lines": "\n".join(lines[start : start + _SHOWN_LINES])} if lines else {}

    # -- threads ------------------------------------------------------------------------------------------------------

    def _read_replies(self, descriptor: int) -> None:
        def read_exact(count: int) -> bytearray | None:
            content = bytearray(count)
            view = memoryview(content)
            filled = 0
            while filled < count:
                got = os.readv(descriptor, [view[filled : filled + _PIECE]])
                if not got:
                    if filled:
                        raise EOFError
                    return None
                filled += got
            return content

        try:
            while (message := read_message(read_exact)) is not None:
                self._inbox.put(message)
            self._inbox.put(None)
        except EOFError:
            self._inbox.put(None)
        except ProtocolError as err:
            self._inbox.put(err)
        finally:
            os.close(descriptor)

    def _read_log(self) -> None:
        process = self._process
        if process is None or process.stdout is None:
            return
        for line in process.stdout:
            text = line.decode("utf-8", "backslashreplace").rstrip()
            self._log.append(text[:2000])
            _logger.debug("worker: %s", text)


def _error_from(header: Mapping[str, Any]) -> ExporterError:
    kind = getattr(errors, str(header.get("class")), None)
    if not (isinstance(kind, type) and issubclass(kind, ExporterError)):
        kind = errors.InternalError
    facts = header.get("facts")
    return kind(
        str(header.get("code")), str(header.get("problem")), facts=facts if isinstance(facts, dict) else None, help=str(header.get("help", ""))
    )
