"""What a protocol has to do for an object to be read: find it, and get ranges of the state that was found."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from exporter.errors import CheckpointError
from exporter.locations import RemotePath

__all__ = ["LIMITS", "Found", "Limits", "Transient", "Transport", "changed", "denied", "malformed", "missing"]

_DENIED = "check that the credentials may read the object; a signed URL expires: make a new one"


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience, in seconds, and how often a request is made before it is given up."""

    connect_s: float = 15.0
    silence_s: float = 30.0
    """Without a byte."""
    request_s: float = 120.0
    """For all of a request, which is for 2 MiB at most: a server that trickles is given up as well."""
    attempts: int = 4
    pause_s: float = 0.5
    """Before the second attempt; twice as long before each one after it."""
    longest_pause_s: float = 20.0
    """However long a server asks for."""


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Found:
    """An object as it is now; ``version`` changes when it does. ``head`` are its first bytes, where they came along."""

    size_bytes: int
    version: str
    head: bytes = b""


class Transient(Exception):
    """Something that may go away: the request is made again."""

    def __init__(self, reason: str, *, code: str = "E156", pause_s: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.pause_s = pause_s


class Transport(Protocol):
    """One object, over one protocol. Coroutines run on ``loop``, which another thread drives."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the coroutines run."""

    async def find(self) -> Found:
        """Return what is there now.

        Raises:
            Transient: it may go better another time.
            CheckpointError: it will not (E15x).
        """

    async def get(self, begin: int, end: int, found: Found) -> bytes:
        """Return bytes ``begin`` to ``end`` of the object as it was found.

        Raises:
            Transient: it may go better another time.
            CheckpointError: it will not (E15x): above all, the object is not the same any more (E154).
        """


def missing(path: RemotePath, found: str) -> CheckpointError:
    """Return the error for an object that is not there."""
    return CheckpointError("E151", "there is no checkpoint at the URL", facts={"url": path, "found": found})


def denied(path: RemotePath, found: str) -> CheckpointError:
    """Return the error for an object that may not be read."""
    return CheckpointError("E152", "the checkpoint at the URL may not be read", facts={"url": path, "found": found}, help=_DENIED)


def changed(path: RemotePath, found: str, expected: str) -> CheckpointError:
    """Return the error for an object that became another one."""
    facts = {"url": path, "found": found, "expected": f"{expected}, as when it was opened"}
    help_text = "wait until it is written, then run the command again"
    return CheckpointError("E154", "the checkpoint at the URL changed while it was read; nothing was written", facts=facts, help=help_text)


def malformed(path: RemotePath, found: str, expected: str) -> CheckpointError:
    """Return the error for a server that does not keep to its protocol."""
    facts = {"url": path, "found": found, "expected": expected}
    return CheckpointError("E157", "the server's answer cannot be relied on", facts=facts, help="download the file another way, then name it")
