"""Protobuf's text format, as much of it as a ``config.pbtxt`` needs: written in one form, and read in any.

A message is a mapping of field -> value. A value is a ``Word`` (an enumeration's name, ``true``), a text, a whole number, a message, or a
list of one of these. What is read keeps every field as a list, for a field may stand more than once; numbers stay words there.
Source: the text format's specification at protobuf.dev.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["PbtxtError", "Word", "format_message", "parse_message"]

_TOKEN = re.compile(r"""\s+|\#[^\n]*|(?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<word>[^\s\#"'{}\[\]<>:,;]+)|(?P<sign>[{}\[\]<>:,;])""")
_ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "a": b"\a", "b": b"\b", "f": b"\f", "v": b"\v", "\\": b"\\", "'": b"'", '"': b'"', "?": b"?"}
_ESCAPE = re.compile(rb"\\(?:(?P<octal>[0-7]{1,3})|[xX](?P<hexadecimal>[0-9a-fA-F]{1,2})|(?P<letter>.))", re.DOTALL)
_CLOSES = {"{": "}", "<": ">"}
_DEEPEST = 32


class PbtxtError(ValueError):
    """A text is not in the text format."""


class Word(str):
    """A bare word: the name of an enumeration's value, or a number."""

    __slots__ = ()


def format_message(message: Mapping[str, Any], indent: str = "") -> str:
    """Return ``message`` in the text format, one field a line."""
    lines = []
    for name, value in message.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name} {{\n{format_message(value, indent + '  ')}{indent}}}\n")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
            items = ",\n".join(f"{indent}  {{\n{format_message(item, indent + '    ')}{indent}  }}" for item in value)
            lines.append(f"{indent}{name} [\n{items}\n{indent}]\n")
        elif isinstance(value, (list, tuple)):
            lines.append(f"{indent}{name}: [{', '.join(_scalar(item) for item in value)}]\n")
        else:
            lines.append(f"{indent}{name}: {_scalar(value)}\n")
    return "".join(lines)


def parse_message(text: str) -> dict[str, list[Any]]:
    """Return field -> values, in order.

    Raises:
        PbtxtError: this is not the text format.
    """
    tokens = list(_tokens(text))
    message, rest = _fields(tokens, 0, "", 0)
    if rest != len(tokens):
        raise PbtxtError(f"{tokens[rest][1]!r} closes nothing")
    return message


def _scalar(value: str | int) -> str:
    return str(value) if isinstance(value, (Word, int)) else f'"{_escaped(value)}"'


def _escaped(text: str) -> str:
    return "".join(
        f"\\{char}" if char in '\\"' else char if char.isprintable() else "".join(f"\\{byte:03o}" for byte in char.encode("utf-8", "replace"))
        for char in text
    )


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise PbtxtError(f"{text[position : position + 20]!r} is not understood")
        if match.lastgroup:
            yield match.lastgroup, match.group()
        position = match.end()


def _fields(tokens: list[tuple[str, str]], at: int, end: str, depth: int) -> tuple[dict[str, list[Any]], int]:
    if depth > _DEEPEST:
        raise PbtxtError(f"it is nested deeper than {_DEEPEST}")
    message: dict[str, list[Any]] = {}
    while at < len(tokens) and tokens[at] != ("sign", end):
        kind, name = tokens[at]
        if kind != "word":
            if name in "}>":
                break
            raise PbtxtError(f"{name!r} stands where a field is named")
        at += 1
        colon = _is(tokens, at, ":")
        at += colon
        if _is(tokens, at, "["):
            values, at = _list(tokens, at + 1, depth)
        else:
            value, at = _value(tokens, at, depth)
            if not colon and not isinstance(value, dict):
                raise PbtxtError(f"{name} is followed by no colon")
            values = [value]
        message.setdefault(name, []).extend(values)
        at += _is(tokens, at, ",") or _is(tokens, at, ";")
    return message, at


def _list(tokens: list[tuple[str, str]], at: int, depth: int) -> tuple[list[Any], int]:
    values: list[Any] = []
    while not _is(tokens, at, "]"):
        if values:
            if not _is(tokens, at, ","):
                raise PbtxtError("a list is not closed")
            at += 1
        value, at = _value(tokens, at, depth)
        values.append(value)
    return values, at + 1


def _value(tokens: list[tuple[str, str]], at: int, depth: int) -> tuple[Any, int]:
    if at >= len(tokens):
        raise PbtxtError("it ends where a value is expected")
    kind, text = tokens[at]
    if kind == "sign":
        if text not in _CLOSES:
            raise PbtxtError(f"{text!r} stands where a value is expected")
        message, at = _fields(tokens, at + 1, _CLOSES[text], depth + 1)
        if not _is(tokens, at, _CLOSES[text]):
            raise PbtxtError("a message is not closed")
        return message, at + 1
    if kind == "word":
        return Word(text), at + 1
    whole = b""
    while at < len(tokens) and tokens[at][0] == "string":  # strings that follow each other are one
        whole += _unescaped(tokens[at][1][1:-1])
        at += 1
    return whole.decode("utf-8", "replace"), at


def _unescaped(text: str) -> bytes:
    def replace(match: re.Match[bytes]) -> bytes:
        if match["octal"]:
            return bytes([int(match["octal"], 8) & 0xFF])
        if match["hexadecimal"]:
            return bytes([int(match["hexadecimal"], 16)])
        letter = match["letter"].decode("latin-1")
        if letter not in _ESCAPES:
            raise PbtxtError(f"\\{letter} is not understood")
        return _ESCAPES[letter]

    return _ESCAPE.sub(replace, text.encode())


def _is(tokens: list[tuple[str, str]], at: int, sign: str) -> bool:
    return at < len(tokens) and tokens[at] == ("sign", sign)
