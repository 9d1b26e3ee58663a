"""The inert unpickler: a pickle's opcodes, protocols 0 to 5, without importing or calling anything that it names.

``pickletools.genops`` splits the bytes into opcodes and arguments; this machine keeps the stack and the memo. A global becomes
a ``GlobalRef``. Calling, instantiating and setting state make an ``ObjectRef`` that remembers the arguments, unless the
callable is one of the few whose result we build ourselves (``pickle_meanings``). There is no way from here to ``import``.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from typing import Any

from exporter.artifacts import GlobalRef, Node, ObjectRef
from exporter.checkpoint.pickle_meanings import BENIGN_CALLS, MEANINGS, MalformedPickle, TypedStorage, check_key, is_benign_instance

__all__ = ["MalformedPickle", "Unpickler"]

_MAX_PROTOCOL = 5
_MAX_INTEGER_BITS = 4096

_PUSHED = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)
_CONSTANTS: dict[str, Node] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}
_IGNORED = frozenset({"FRAME"})


class Unpickler:
    """Reads one pickle into a tree.

    Args:
        content: the whole pickle.
        persistent: what stands behind a persistent id (a storage); None where the pickle may have none.

    Attributes:
        globals: every global named, in order of first use.
        calls: byte -> (global, record) of each call that is not among those which trainers write.
        position: byte of the opcode at work, for messages.
    """

    def __init__(self, content: bytes, *, persistent: Callable[[Node], TypedStorage] | None = None) -> None:
        self._content = content
        self._persistent = persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._interned: dict[tuple[str, str], GlobalRef] = {}
        self._protocol = 0
        self._budget = 4 * len(content) + 4096
        self.globals: list[GlobalRef] = []
        self.calls: dict[int, list[tuple[GlobalRef, ObjectRef]]] = {}
        self.position = 0

    def load(self) -> Node:
        """Run the whole pickle and return its tree.

        Raises:
            MalformedPickle: anything that a writer of pickles does not write.
        """
        handlers = {name.removeprefix("_op_").upper(): getattr(self, name) for name in dir(self) if name.startswith("_op_")}
        try:
            for opcode, arg, position in pickletools.genops(self._content):
                name = opcode.name
                self.position = position or 0
                if name in _PUSHED:
                    if isinstance(arg, int) and arg.bit_length() > _MAX_INTEGER_BITS:
                        raise MalformedPickle(f"an integer of {arg.bit_length()} bits", code="E111")
                    self._stack.append(arg)
                elif name in _CONSTANTS:
                    self._stack.append(_CONSTANTS[name])
                elif name in _EMPTY:
                    self._stack.append(_EMPTY[name]())
                elif name in handlers:
                    handlers[name](arg)
                elif name == "STOP":
                    break
                elif name not in _IGNORED:
                    raise MalformedPickle(f"the opcode {name}, which no checkpoint has")
        except MalformedPickle:
            raise
        except (ValueError, IndexError, TypeError, OverflowError, RecursionError) as err:
            # ValueError and OverflowError come from genops; IndexError and TypeError from a stack or arguments that do not fit
            raise MalformedPickle(f"{type(err).__name__}: {str(err)[:120]}") from err
        if self.position + 1 != len(self._content):
            raise MalformedPickle(f"{len(self._content) - self.position - 1} bytes after its end")
        if self._below or len(self._stack) != 1:
            raise MalformedPickle("an end with values left over")
        tree: Node = self._stack.pop()
        return tree

    def spend(self, count: int) -> None:
        """Count elements copied from one container into another; a small pickle must not grow without bound."""
        self._budget -= count
        if self._budget < 0:
            raise MalformedPickle("more copies of its own values than the pickle has bytes", code="E111")

    def record_call(self, callee: GlobalRef, record: ObjectRef) -> None:
        """Remember a call that trainers do not write."""
        self.calls.setdefault(self.position, []).append((callee, record))

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
            check_key(item)
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
                    check_key(key)
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
                check_key(item)
            target.update(items)
        else:
            raise MalformedPickle(f"members added to a {type(target).__name__}")

    def _op_bytearray8(self, content: bytearray) -> None:
        self._stack.append(bytes(content))

    # ---- globals, calls, instances, state

    def _op_global(self, pair: str) -> None:
        module, _, name = pair.partition(" ")
        self._push_global(module, name)

    def _op_stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise MalformedPickle("a global whose name is no text")
        self._push_global(module, name)

    def _op_ext1(self, code: int) -> None:
        self._push_global("copyreg extension", str(code))

    _op_ext2 = _op_ext4 = _op_ext1

    def _push_global(self, module: str, name: str) -> None:
        if self._protocol < 3:  # protocol 2 writes Python 2's names
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[module, name]
            elif module in IMPORT_MAPPING:
                module = IMPORT_MAPPING[module]
        known = self._interned.get((module, name))
        if known is None:
            if not module or not name or any(c.isspace() for c in name):
                raise MalformedPickle(f"a global named {f'{module}.{name}'[:80]!r}")
            known = self._interned[module, name] = GlobalRef(module, name)
            self.globals.append(known)
        self._stack.append(known)

    def _op_reduce(self, _: object) -> None:
        args, callee = self._stack.pop(), self._stack.pop()
        self._stack.append(self._called(callee, args))

    def _op_obj(self, _: object) -> None:
        callee, *args = self._pop_mark()
        self._stack.append(self._called(callee, tuple(args)))

    def _op_inst(self, pair: str) -> None:
        args = tuple(self._pop_mark())
        self._op_global(pair)
        self._stack.append(self._called(self._stack.pop(), args))

    def _op_newobj(self, _: object) -> None:
        args, kind = self._stack.pop(), self._stack.pop()
        self._stack.append(self._instance(kind, args))

    def _op_newobj_ex(self, _: object) -> None:
        keywords, args, kind = self._stack.pop(), self._stack.pop(), self._stack.pop()
        if not isinstance(keywords, dict) or not isinstance(args, tuple):
            raise MalformedPickle("an instance made with something else than arguments")
        self._stack.append(self._instance(kind, (*args, keywords) if keywords else args))

    def _op_build(self, _: object) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, ObjectRef):
            if target.state is None:
                object.__setattr__(target, "state", state)
            else:  # the first state may have replaced __setstate__; no writer of pickles sets state twice
                self._record_use(_hidden_setstate(target), "__setstate__", (state,))
        elif isinstance(target, GlobalRef):
            self._record_use(target, "__setstate__", (state,))
        elif isinstance(target, (dict, list, set)):
            if not isinstance(state, (Mapping, tuple)):
                raise MalformedPickle(f"a {type(target).__name__} given a state that is no mapping")
        else:
            raise MalformedPickle(f"a state set on a {type(target).__name__}")

    def _op_binpersid(self, _: object) -> None:
        if self._persistent is None:
            raise MalformedPickle("a persistent id where there are no storages")
        self._stack.append(self._persistent(self._stack.pop()))

    def _called(self, callee: Node, args: Node) -> Node:
        """Return what stands for ``callee(*args)``."""
        if not isinstance(args, tuple):
            raise MalformedPickle("a call whose arguments are no tuple")
        if isinstance(callee, ObjectRef):  # a made function: the result of getattr, partial, a lambda
            record = ObjectRef(callee.callee, (callee, *args), is_call=True)
            self.record_call(callee.callee, record)
            return record
        if not isinstance(callee, GlobalRef):
            raise MalformedPickle(f"a call of a {type(callee).__name__}")
        name = str(callee)
        if name == "copyreg.__newobj__" and args:
            return self._instance(args[0], args[1:])
        if name == "copyreg._reconstructor" and len(args) == 3:  # noqa: PLR2004 - class, base, state of the base
            return self._instance(args[0], () if args[2] is None else args[2:])
        if name == "copyreg.__newobj_ex__" and len(args) == 3 and isinstance(args[1], tuple):
            return self._instance(args[0], (*args[1], args[2]) if args[2] else args[1])
        if name in MEANINGS:
            return MEANINGS[name](self, args)
        record = ObjectRef(callee, args, is_call=True)
        if name not in BENIGN_CALLS:
            self.record_call(callee, record)
        return record

    def _instance(self, kind: Node, args: Node) -> Node:
        """Return what stands for ``kind.__new__(kind, *args)``."""
        if not isinstance(kind, GlobalRef) or not isinstance(args, tuple):
            raise MalformedPickle(f"an instance of a {type(kind).__name__}")
        if str(kind) in MEANINGS:
            return MEANINGS[str(kind)](self, args)
        record = ObjectRef(kind, args)
        if not is_benign_instance(kind):
            self.record_call(kind, record)
        return record

    def _record_use(self, target: GlobalRef, method: str, args: tuple[Node, ...]) -> None:
        """Remember that the pickle would have called a method of a global: ``sys.modules.__setitem__``."""
        bound = GlobalRef(target.module, target.name if target.name.endswith(method) else f"{target.name}.{method}")
        self.record_call(bound, ObjectRef(bound, args, is_call=True))


def _hidden_setstate(target: ObjectRef) -> GlobalRef:
    """Return the function that a first state put in the place of ``__setstate__``, else the class of the object."""
    states = target.state if isinstance(target.state, tuple) else (target.state,)
    for state in states:
        if isinstance(state, Mapping) and isinstance(state.get("__setstate__"), GlobalRef):
            hidden: GlobalRef = state["__setstate__"]
            return hidden
    return target.callee
