"""The object graph of a ``tf.train.Checkpoint``: which variable is which attribute of which object, and what it is called in full.

The messages are TensorFlow's TrackableObjectGraph and what is in it. The graph becomes plain values; nothing is constructed.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporter.artifacts import Node
from exporter.checkpoint.protobuf import Malformed, fields, signed

__all__ = ["OBJECT_GRAPH", "read_object_graph"]

OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MAX_OBJECTS = 200_000
_MAX_LINKS = 2_000_000


def read_object_graph(message: bytes) -> list[Node]:
    """Return the objects: each with ``children`` (name -> number of an object), ``variables`` and ``slots``.

    ``variables`` are ``full_name`` and ``key``, the name in the index; ``slots`` are the variables of an optimizer that belong to
    another one: ``of``, ``slot`` and ``variable``, the first and the last by number of an object. The first object is the root.

    Raises:
        Malformed: it is no object graph, or leads to objects that are not there.
    """
    nodes = [content for number, content in fields(message) if number == 1 and isinstance(content, bytes)]
    if not 0 < len(nodes) <= _MAX_OBJECTS:
        raise Malformed(f"an object graph of {len(nodes)} objects")
    links = 0
    objects: list[Node] = []
    for node in nodes:
        children: dict[str, Node] = {}
        variables: list[Node] = []
        slots: list[Node] = []
        for number, content in fields(node):
            links += number in {1, 3}
            if links > _MAX_LINKS:
                raise Malformed(f"more than {_MAX_LINKS} links between objects")
            if number == 1:
                found = _record(content, {1: 0, 2: b""})
                children[_text(found[2])] = _number(found[1], len(nodes))
            elif number == 2:
                found = _record(content, {1: b"", 2: b"", 3: b""})
                variables.append({"full_name": _text(found[2]), "key": _text(found[3])})
            elif number == 3:
                found = _record(content, {1: 0, 2: b"", 3: 0})
                of, variable = _number(found[1], len(nodes)), _number(found[3], len(nodes))
                slots.append({"of": of, "slot": _text(found[2]), "variable": variable})
        objects.append({"children": children, "variables": variables, "slots": slots})
    return objects


def _record(content: int | bytes, default: dict[int, int | bytes]) -> dict[int, int | bytes]:
    """Return the fields of a message that are wanted, each of the kind of its default."""
    found = dict(default)
    for number, value in _fields(content):
        if number in found:
            if isinstance(value, int) is not isinstance(default[number], int):
                raise Malformed(f"field {number} of an object of another kind")
            found[number] = value
    return found


def _fields(content: int | bytes) -> Iterator[tuple[int, int | bytes]]:
    if isinstance(content, int):
        raise Malformed("a number where an object is described")
    return fields(content)


def _number(value: int | bytes, count: int) -> int:
    number = signed(value) if isinstance(value, int) else -1
    if not 0 <= number < count:
        raise Malformed(f"a link to object {number} of {count}")
    return number


def _text(value: int | bytes) -> str:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else ""
    except UnicodeDecodeError as err:
        raise Malformed("a name that is no text") from err
