"""Where a checkpoint lies: a path on this machine, or the URL of an object on another.

A URL is no path: ``Path("https://host/a")`` is ``https:/host/a``. And it may hold secrets: a password in front of the host, a
signature behind the question mark. What is shown or written of a location is its ``str``, which has neither.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from exporter.errors import CheckpointError

__all__ = ["REMOTE_SCHEMES", "Location", "RemotePath", "location_of"]

REMOTE_SCHEMES = ("https", "http", "s3", "gs")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.:-]*://")
_ENCODED = frozenset({"https", "http"})
"""Schemes whose URLs write special characters as ``%20``; the names of objects in buckets stand as they are."""


@dataclass(frozen=True, slots=True)
class RemotePath:
    """The URL of one object.

    Attributes:
        url: as the user wrote it, secrets and all; for the connection alone.
        version: what the server calls the state of the object that was opened; empty before. Whatever is read later has to be of
            the same version.
        opened: the connection, kept as long as something refers to this path; None before.
    """

    url: str = field(repr=False)
    version: str = ""
    opened: object = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """Return the URL without user, password, query and fragment."""
        parts = urlsplit(self.url)
        return f"{parts.scheme.lower()}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def scheme(self) -> str:
        """``https``, ``http``, ``s3`` or ``gs``."""
        return self.url.partition(":")[0].lower()

    @property
    def name(self) -> str:
        """The last step of the URL, as a file on this machine would be called."""
        last = urlsplit(self.url).path.rpartition("/")[2]
        decoded = unquote(last) if self.scheme in _ENCODED else last
        return decoded if decoded.isprintable() and not {"/", "\\"} & set(decoded) and decoded not in {".", ".."} else last

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The last suffix of the name."""
        return PurePosixPath(self.name).suffix

    def beside(self, name: str) -> RemotePath:
        """Return the object ``name``, which must be a plain name, in the same folder: same host, same query."""
        parts = urlsplit(self.url)
        folder = parts.path.rpartition("/")[0]
        return RemotePath(urlunsplit(parts._replace(path=f"{folder}/{quote(name) if self.scheme in _ENCODED else name}", fragment="")))


Location: TypeAlias = Path | RemotePath


def location_of(value: str | Path | RemotePath) -> Location:
    """Return what ``value`` names: a URL where it begins with a scheme and ``://``, else a path.

    Raises:
        CheckpointError: the URL has a scheme that is not read, or names no object (E150).
    """
    if not isinstance(value, str):
        return value
    if _URL.match(value) is None:
        return Path(value)
    path = RemotePath(value)
    try:
        shown, name, host = str(path), path.name, urlsplit(value).hostname
        urlsplit(value).port  # noqa: B018 - raises where it is no number
    except ValueError as err:
        raise CheckpointError("E150", "the URL of the checkpoint cannot be used", facts={"found": "a URL that breaks the rules of URLs"}) from err
    if path.scheme not in REMOTE_SCHEMES:
        facts = {"url": shown, "found": f"the scheme {path.scheme}", "expected": ", ".join(REMOTE_SCHEMES)}
        help_text = "name the file by its path" if path.scheme == "file" else "download it, then name the file"
        raise CheckpointError("E150", "the URL of the checkpoint cannot be used", facts=facts, help=help_text)
    if not host or not name or not value.isprintable():
        facts = {"url": shown, "found": "no host or bucket" if not host else "no name of an object at its end", "expected": "scheme://host/path/NAME"}
        raise CheckpointError("E150", "the URL of the checkpoint cannot be used", facts=facts)
    return path
