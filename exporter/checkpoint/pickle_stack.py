"""The stack, the memo and the containers of the inert unpickler."""

from __future__ import annotations

from typing import Any

from exporter.artifacts import GlobalRef, Node, ObjectRef, StorageRef
from exporter.checkpoint.pickle_meanings import MalformedPickle, check_key

__all__ = ["StackMachine"]

_MAX_PROTOCOL = 5
_MAX_NUMERIC_KEYS = 10_000
"""Keys whose hashes may have been chosen to be the same: so many take seconds and no more."""


class StackMachine:
    """The part of a pickle's machine that moves values about; a method ``_op_<opcode>`` for each opcode.

    Attributes:
        calls: byte -> (global, record) of each call that is not among those which trainers write.
        position: byte of the opcode at work.
    """

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._protocol = 0
        self.calls: dict[int, list[tuple[GlobalRef, ObjectRef]]] = {}
        self.position = 0
        self._num_numeric_keys = 0

    def check_key(self, key: Node) -> None:
        """Refuse what cannot be a key, and too many of those that can have been chosen to have one hash."""
        self._num_numeric_keys += check_key(key)
        if self._num_numeric_keys > _MAX_NUMERIC_KEYS:
            raise MalformedPickle(f"more than {_MAX_NUMERIC_KEYS} keys that are tuples of numbers", code="E111")

    def record_call(self, callee: GlobalRef, record: ObjectRef) -> None:
        """Remember a call that trainers do not write."""
        self.calls.setdefault(self.position, []).append((callee, record))

    def _record_use(self, target: GlobalRef, method: str, args: tuple[Node, ...]) -> None:
        """Remember that the pickle would have called a method of a global: ``sys.modules.__setitem__``."""
        bound = GlobalRef(target.module, target.name if target.name.endswith(method) else f"{target.name}.{method}")
        self.record_call(bound, ObjectRef(bound, args, is_call=True))

    # ---- stack and memo

    def _pop_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._below.pop()
        return items

    def _op_mark(self, _: object) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _op_pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def _op_pop_mark(self, _: object) -> None:
        self._pop_mark()

    def _op_dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    def _op_put(self, index: int) -> None:
        self._memo[int(index)] = self._stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_memoize(self, _: object) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _op_get(self, index: int) -> None:
        if int(index) not in self._memo:
            raise MalformedPickle(f"memo entry {index} before it is written")
        self._stack.append(self._memo[int(index)])

    _op_binget = _op_long_binget = _op_get

    def _op_proto(self, version: int) -> None:
        if version > _MAX_PROTOCOL:
            raise MalformedPickle(f"pickle protocol {version}")
        self._protocol = version

    # ---- containers

    def _op_tuple(self, _: object) -> None:
        items = self._pop_mark()
        self._stack.append(tuple(items))

    def _op_tuple1(self, _: object) -> None:
        self._stack[-1] = (self._stack[-1],)

    def _op_tuple2(self, _: object) -> None:
        self._stack[-2:] = [(self._stack[-2], self._stack[-1])]

    def _op_tuple3(self, _: object) -> None:
        self._stack[-3:] = [(self._stack[-3], self._stack[-2], self._stack[-1])]

    def _op_list(self, _: object) -> None:
        items = self._pop_mark()
        self._stack.append(items)

    def _op_dict(self, _: object) -> None:
        items = self._pop_mark()
        self._stack.append({})
        self._set_items(items)

    def _op_frozenset(self, _: object) -> None:
        items = self._pop_mark()
        for item in items:
            self.check_key(item)
        self._stack.append(frozenset(items))

    def _op_append(self, _: object) -> None:
        item = self._stack.pop()
        self._extend([item])

    def _op_appends(self, _: object) -> None:
        self._extend(self._pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, ObjectRef):
            if target.items is None:
                object.__setattr__(target, "items", [])
            target = target.items
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, GlobalRef):
            self._record_use(target, "extend", tuple(items))
        else:
            raise MalformedPickle(f"values appended to a {type(target).__name__}")

    def _op_setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _op_setitems(self, _: object) -> None:
        self._set_items(self._pop_mark())

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, ObjectRef):
            if target.items is None:
                object.__setattr__(target, "items", {})
            target = target.items
        if len(items) % 2:
            raise MalformedPickle("a key without a value")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if type(key) is not str:
                    self.check_key(key)
                target[key] = value
        elif isinstance(target, GlobalRef):
            self._record_use(target, "__setitem__", tuple(items))
        else:
            raise MalformedPickle(f"items set on a {type(target).__name__}")

    def _op_additems(self, _: object) -> None:
        items = self._pop_mark()
        target = self._stack[-1]
        if isinstance(target, GlobalRef):
            self._record_use(target, "add", tuple(items))
        elif isinstance(target, ObjectRef):
            self._extend(items)
        elif isinstance(target, set):
            for item in items:
                self.check_key(item)
            target.update(items)
        else:
            raise MalformedPickle(f"members added to a {type(target).__name__}")

    def _op_bytearray8(self, content: bytearray | bytes | StorageRef) -> None:
        self._stack.append(bytes(content) if isinstance(content, bytearray) else content)
