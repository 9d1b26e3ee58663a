"""Run code of the user's and turn whatever it raises into an error that names the exception and the line.

This is the one place that catches every exception: a factory or a ``forward`` may raise anything, and that is not a bug of ours.
"""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path

from exporter.errors import ExporterError, ModelNotSupported

__all__ = ["first_line", "running_user_code", "user_line"]

_LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})
_OURS = str(Path(__file__).resolve().parent.parent)


@contextlib.contextmanager
def running_user_code(
    code: str,
    problem: str,
    *,
    kind: type[ModelNotSupported],
    facts: Mapping[str, object] | None = None,
    help: str = "",  # noqa: A002 - the word on screen
) -> Iterator[None]:
    """Raise ``kind`` with ``code`` and ``problem`` for any exception inside; the original one is chained."""
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout belongs to the result
            yield
    except ExporterError:
        raise
    except Exception as err:  # code of the user's may raise anything; the cause is chained and named
        found = {"raised": f"{type(err).__name__}: {first_line(err)}"}
        line = user_line(err)
        if line:
            found["line"] = line
        raise kind(code, problem, facts={**(facts or {}), **found}, help=help) from err


def user_line(err: BaseException) -> str:
    """Return ``file:line: source`` of the innermost frame that is neither a library's nor ours; empty where there is none."""
    if isinstance(err, SyntaxError) and err.filename:
        return f"{err.filename}:{err.lineno}: {(err.text or '').strip()}"
    frames = [frame for frame in traceback.extract_tb(err.__traceback__) if _is_user_file(frame.filename)]
    if not frames:
        frames = [
            frame
            for frame in traceback.extract_tb(err.__traceback__)
            if "/torch/" not in frame.filename and not frame.filename.startswith((_OURS, "<"))
        ]
    if not frames:
        return ""
    last = frames[-1]
    return f"{last.filename}:{last.lineno}: {(last.line or '').strip()}"


def first_line(err: BaseException) -> str:
    """Return the first line of the exception's text that says something, at most 300 characters."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    return (lines[0] if lines else "(no message)")[:300]


def _is_user_file(name: str) -> bool:
    return not name.startswith(("<", _OURS)) and not name.startswith(_LIBRARIES)
