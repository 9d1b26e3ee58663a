"""The worker, against real processes that crash, hang, talk nonsense, or are no worker at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from exporter.errors import EngineBuildError, MissingLibrary, SampleError, VersionMismatch
from exporter.trt_worker import Service, Worker, pack_arrays, unpack_arrays

HERE = Path(__file__).parent
MISBEHAVING = Service("misbehaving", str(HERE))


@pytest.fixture
def worker():
    """A worker that misbehaves when asked to."""
    with Worker(service=MISBEHAVING) as started:
        yield started


def is_alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def num_descriptors() -> int:
    """Return how many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def wait_until(condition, seconds: float) -> bool:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())


def test_arrays_go_there_and_back(worker):
    """Arrays larger than a pipe's buffer go to the worker and come back worked on."""
    arrays = {"large": np.arange(3_000_000, dtype=np.float32).reshape(3, -1), "small": np.array([1, 2], np.int64)}
    specs, buffers = pack_arrays(arrays)
    reply = worker.request("double", {"arrays": specs}, buffers, limit_s=60)
    back = unpack_arrays(reply.value["arrays"], reply.buffers)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array * 2)


def test_noise_of_libraries_cannot_corrupt_an_answer(worker):
    """What libraries print goes to the log; the answers have a pipe of their own."""
    assert worker.request("noise", limit_s=60).value == {"ok": True}
    assert worker.request("echo", {"again": 1}, limit_s=60).value == {"again": 1}
    assert wait_until(lambda: any("from C" in line for line in worker.log), 5)
    assert any("line 1999 on standard error" in line for line in worker.log)


def test_an_error_of_the_worker_arrives_as_that_error(worker):
    """Class, code, facts and help of an error are the same on both sides, and the worker lives on."""
    with pytest.raises(SampleError, match="does not fit") as caught:
        worker.request("refuse", limit_s=60)
    assert (caught.value.code, caught.value.facts, caught.value.help) == ("E525", {"input": "x"}, "feed another")
    assert worker.request("echo", {"a": 1}, limit_s=60).value == {"a": 1}


def test_a_segmentation_fault_is_a_clear_error(worker):
    """A crash names the signal, what was being done, and the last lines; the next request says the same at once."""
    with pytest.raises(EngineBuildError, match="ended by SIGSEGV") as caught:
        worker.request("segfault", limit_s=60)
    assert caught.value.code == "E504"
    assert caught.value.facts["during"] == "segfault"
    assert "Segmentation fault" in caught.value.facts["last lines"]
    with pytest.raises(EngineBuildError, match="SIGSEGV"):
        worker.request("echo", limit_s=60)


def test_a_bug_of_the_worker_shows_its_traceback(worker):
    """An exception that nobody foresaw ends the worker; its traceback is in the message."""
    with pytest.raises(EngineBuildError, match="ended before it answered") as caught:
        worker.request("raise", limit_s=60)
    assert caught.value.code == "E504"
    assert caught.value.facts["exit status"] == "1"
    assert "ZeroDivisionError: a bug of the worker" in caught.value.facts["last lines"]


@pytest.mark.parametrize(("verb", "arguments", "fact", "found"), [("abort", {}, "signal", "SIGABRT"), ("exit", {"status": 3}, "exit status", "3")])
def test_other_ends_are_named(worker, verb, arguments, fact, found):
    """An abort is a signal, an exit is a status."""
    with pytest.raises(EngineBuildError) as caught:
        worker.request(verb, arguments, limit_s=60)
    assert (caught.value.code, caught.value.facts[fact]) == ("E504", found)


def test_a_kill_points_to_memory(worker):
    """A worker that is killed from outside says what that usually means."""
    pid = worker.pid
    threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(EngineBuildError, match="SIGKILL") as caught:
        worker.request("sleep", {"seconds": 60}, limit_s=60)
    assert "memory" in caught.value.help


@pytest.mark.parametrize("by", ["python", "numpy"])
def test_memory_that_runs_out_is_a_clear_error(worker, by):
    """A request for more memory than there is says so, and what to do; the worker lives on."""
    with pytest.raises(EngineBuildError, match="ran out of the machine's memory") as caught:
        worker.request("exhaust", {"by": by}, limit_s=60)
    assert (caught.value.code, caught.value.facts["during"]) == ("E545", "exhaust")
    assert "workspace_mib" in caught.value.help
    assert worker.request("echo", {"a": 1}, limit_s=60).value == {"a": 1}


def test_the_time_limit_ends_the_worker(worker):
    """A request over its limit ends the process, long before its end, and says what was allowed."""
    pid, started = worker.pid, time.monotonic()
    with pytest.raises(EngineBuildError, match="time limit") as caught:
        worker.request("sleep", {"seconds": 60}, limit_s=0.5)
    assert time.monotonic() - started < 50
    assert (caught.value.code, caught.value.facts["allowed"]) == ("E505", "0.5 s")
    assert wait_until(lambda: not is_alive(pid), 30)


def test_a_long_request_within_its_limit_is_no_hang():
    """Heartbeats keep a worker alive that works for longer than the silence that is allowed."""
    with Worker(service=MISBEHAVING, silence_limit_s=2.5) as worker:
        assert worker.request("sleep", {"seconds": 4}, limit_s=60).value == {}


def test_a_frozen_worker_is_noticed():
    """A process that stops answering, heartbeats included, is ended and reported."""
    with Worker(service=MISBEHAVING, silence_limit_s=1.5) as worker:
        pid = worker.pid
        with pytest.raises(EngineBuildError, match="stopped answering") as caught:
            worker.request("freeze", limit_s=60)
        assert caught.value.code == "E506"
        assert wait_until(lambda: not is_alive(pid), 30)


def test_a_frozen_worker_cannot_block_a_large_request():
    """The time limit holds while a request is being written, too."""
    with Worker(service=MISBEHAVING) as worker:
        os.kill(worker.pid, signal.SIGSTOP)
        with pytest.raises(EngineBuildError, match="time limit"):
            worker.request("echo", {}, [bytes(8 << 20)], limit_s=1.0)


def test_garbage_on_the_pipe_is_noticed(worker):
    """Bytes on the pipe that are no message end the worker with a message that says so."""
    with pytest.raises(EngineBuildError, match="stopped answering") as caught:
        worker.request("garbage", limit_s=60)
    assert caught.value.code == "E506"
    assert "a message starts with" in caught.value.facts["found"]


def test_progress_arrives_and_cancels(worker):
    """The callback sees the phases; returning False ends the request with E503 and leaves the worker alive."""
    seen = []

    def progress(phase, done, total):
        seen.append((phase, done, total))
        return len(seen) < 5

    with pytest.raises(EngineBuildError, match="cancelled") as caught:
        worker.request("steps", limit_s=60, progress=progress)
    assert caught.value.code == "E503"
    assert "step" in caught.value.facts  # the worker itself answered
    assert seen[0] == ("timing tactics", 0, 2000)
    assert worker.request("echo", {"a": 1}, limit_s=60).value == {"a": 1}


def test_a_builder_that_cannot_be_cancelled_is_ended(worker, monkeypatch):
    """Where the worker does not react to a cancel it is ended after a grace time."""
    monkeypatch.setattr("exporter.trt_worker.client._CANCEL_GRACE_S", 0.5)
    pid = worker.pid
    with pytest.raises(EngineBuildError, match="cancelled") as caught:
        worker.request("stubborn", limit_s=60, progress=lambda *_: False)
    assert caught.value.code == "E503"
    assert wait_until(lambda: not is_alive(pid), 30)


def test_an_exception_in_the_callback_ends_the_request(worker):
    """Ctrl-C while a build is waited for (here: raised by the callback) passes through and ends the worker."""
    pid = worker.pid

    def progress(phase, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        worker.request("steps", limit_s=60, progress=progress)
    assert wait_until(lambda: not is_alive(pid), 30)


def test_the_process_is_gone_after_the_with_statement():
    """Leaving the ``with`` ends the process; nothing is left open."""
    before = num_descriptors()
    with Worker(service=MISBEHAVING) as worker:
        pid = worker.pid
        assert is_alive(pid)
    assert not is_alive(pid)
    assert num_descriptors() == before
    with pytest.raises(EngineBuildError, match="closed"):
        worker.request("echo", limit_s=1)


@pytest.mark.parametrize("work", ["echo", "sleep"])
@pytest.mark.parametrize("thread", [False, True], ids=["started by the main thread", "started by another thread"])
def test_the_worker_dies_with_its_parent(tmp_path, work, thread):
    """A parent that is killed, idle or in the middle of a request, leaves no worker behind."""
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, threading, time
        from exporter.trt_worker import Service, Worker
        def work():
            with Worker(service=Service("misbehaving", {str(HERE)!r})) as worker:
                print(worker.pid, flush=True)
                if {work!r} == "sleep":
                    worker.request("sleep", {{"seconds": 300}}, limit_s=300)
                time.sleep(300)
        if {thread}:
            threading.Thread(target=work).start()
        else:
            work()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        pid = int(parent.stdout.readline())
        time.sleep(0.3)
        assert is_alive(pid)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert wait_until(lambda: not is_alive(pid), 30)


def test_a_worker_outlives_the_thread_that_started_it():
    """The kernel's parent-death signal comes with the end of the starting thread; a worker started from a thread must not have it."""
    worker = Worker(service=MISBEHAVING)
    starter = threading.Thread(target=worker.__enter__)
    starter.start()
    starter.join()
    try:
        time.sleep(0.3)
        assert worker.request("echo", {"a": 1}, limit_s=60).value == {"a": 1}
    finally:
        worker.close()


def test_an_interpreter_that_is_not_there():
    """A path that names nothing is an environment error that names it and the setting."""
    with pytest.raises(MissingLibrary, match="cannot be started") as caught, Worker("/no/such/python"):
        pass
    assert (caught.value.code, caught.value.exit_status) == ("E853", 6)
    assert caught.value.facts["interpreter"] == "/no/such/python"
    assert "[tensorrt] python" in caught.value.help


@pytest.mark.parametrize(
    "body",
    ["#!/bin/sh\nexit 0\n", "#!/bin/sh\necho no python here >&2\nexit 7\n", "#!/no/such/shell\n", "#!/bin/sh\nkill -11 $$\n"],
    ids=["silent", "status", "unrunnable", "signal"],
)
def test_a_program_that_is_no_interpreter(tmp_path, body):
    """A program that is no Python is an environment error, with what it said."""
    program = tmp_path / "python"
    program.write_text(body)
    program.chmod(0o755)
    with pytest.raises(MissingLibrary, match="cannot be started") as caught, Worker(str(program)):
        pass
    assert caught.value.code == "E853"
    if "no python here" in body:
        assert "no python here" in caught.value.facts["last lines"]


def test_an_interpreter_that_hangs_at_its_start(tmp_path):
    """A program that never greets is given up after the start limit, and ended with its children."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nsleep 300 & echo $! > $(dirname $0)/pid\nwait\n")
    program.chmod(0o755)
    with pytest.raises(MissingLibrary, match="cannot be started"), Worker(str(program), start_limit_s=1.0):
        pass
    child = int((tmp_path / "pid").read_text())
    assert wait_until(lambda: not is_alive(child), 5)


def test_an_interpreter_that_is_too_old(tmp_path):
    """A Python before 3.10 says so itself; here one that claims to be 3.8 by patching its own version."""
    program = tmp_path / "python"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c 'import sys, runpy; sys.version_info = (3, 8, 18); sys.argv = sys.argv[1:]; "
        'runpy.run_path(sys.argv[0], run_name="__main__")\' "$@"\n'
    )
    program.chmod(0o755)
    with pytest.raises(VersionMismatch, match="too old") as caught, Worker(str(program)):
        pass
    assert (caught.value.code, caught.value.facts["found"]) == ("E854", "Python 3.8.18")


@pytest.mark.parametrize("old", ["python2.7", "python3.6", "python3.7", "python3.8", "python3.9"])
def test_real_old_interpreters_can_read_the_program(old):
    """The worker's program can be read by real old interpreters, where there are some, far enough to be refused properly."""
    managed = sorted(str(path) for path in Path.home().glob(f".pyenv/versions/{old.removeprefix('python')}.*/bin/python"))
    found = next((path for path in [*managed, shutil.which(old)] if path), None)
    if found is None or subprocess.run([found, "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"there is no {old} on this machine")
    with pytest.raises(VersionMismatch, match="too old"), Worker(found):
        pass


def test_a_wrapper_script_works(tmp_path):
    """An interpreter may be a shell script that sets its own surroundings and runs Python."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nMARK=set exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    with Worker(str(program), service=MISBEHAVING) as worker:
        assert worker.request("echo", {"a": 1}, limit_s=60).value == {"a": 1}


def test_the_worker_imports_nothing_of_ours_beyond_its_side(worker):
    """The worker's interpreter needs none of the package's dependencies, and does not see the folder that the package lies in."""
    value = worker.request("imports", limit_s=60).value
    forbidden = {"rich", "click", "torch", "onnx", "platformdirs", "typing_extensions", "exporter.config", "exporter.trt_worker.client"}
    assert not forbidden & set(value["modules"])
    assert "exporter.trt_worker.serving.loop" in value["modules"]
    ours = str(HERE.parent.parent / "exporter")
    assert not [folder for folder in value["path"] if folder.startswith(ours)]


def test_a_foreign_interpreter_does_not_get_our_python_path(tmp_path, monkeypatch):
    """PYTHONPATH belongs to this interpreter; another one would find libraries built for this one."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    with Worker(str(program), service=MISBEHAVING) as worker:
        assert str(tmp_path) not in worker.request("imports", limit_s=60).value["path"]


def test_an_interpreter_without_numpy_and_tensorrt(tmp_path):
    """The probe of a bare interpreter names what is missing, and does not fail itself."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # no site-packages: a bare Python
    program.chmod(0o755)
    with Worker(str(program)) as worker:
        lacking = {item["code"]: item for item in worker.request("probe", limit_s=60).value["lacking"]}
    assert {"E852", "E855"} <= set(lacking)
    assert "numpy" in lacking["E855"]["what"]
    assert "exporter[tensorrt]" in lacking["E852"]["help"]
