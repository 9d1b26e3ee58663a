"""JSON of files from elsewhere: what it will take in memory is estimated before it is parsed, and a key stands once."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["MalformedJson", "parse_json"]

_MAX_BYTES = 1 << 28
_OBJECT_BYTES, _LIST_BYTES, _ITEM_BYTES = 250, 72, 40
_MAX_SHOWN = 80


class MalformedJson(ValueError):
    """The text is no JSON, has two meanings, or would take more memory than any that is written."""


def parse_json(text: bytes, *, constants: bool = False) -> Any:  # noqa: ANN401 - any JSON value
    """Return the value of a JSON text.

    Args:
        text: in UTF-8.
        constants: whether NaN and the infinities are values.

    Raises:
        MalformedJson: saying what is wrong.
    """
    per_byte = 2 if text.isascii() and b"\\u" not in text else 8  # one wide character makes a whole string four bytes wide
    needed = per_byte * len(text) + _OBJECT_BYTES * text.count(b"{") + _LIST_BYTES * text.count(b"[") + _ITEM_BYTES * text.count(b",")
    if needed > _MAX_BYTES:
        raise MalformedJson(f"{len(text)} bytes that would take {needed} bytes of memory")
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=None if constants else _no_constant)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as err:
        raise MalformedJson(f"text that is no JSON ({type(err).__name__})") from err
    except MalformedJson:
        raise
    except ValueError as err:  # an integer with too many digits
        raise MalformedJson(str(err)[:_MAX_SHOWN]) from err


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise MalformedJson(f"the key {twice[:_MAX_SHOWN]!r} twice")
    return table


def _no_constant(name: str) -> None:
    raise MalformedJson(f"the constant {name}")
