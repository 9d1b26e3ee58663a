"""The inert unpickler: a pickle's opcodes, protocols 0 to 5, without importing or calling anything that it names.

``pickletools.genops``, or a ``PickleStream`` where the pickle stands inside a larger file, splits the bytes into opcodes and
arguments; this machine keeps the stack and the memo. A global becomes a ``GlobalRef``. Calling, instantiating and setting
state make an ``ObjectRef`` that remembers the arguments, unless the callable is one of the few whose result we build
ourselves (``pickle_meanings``). There is no way from here to ``import``.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping
from typing import Any

from exporter.artifacts import GlobalRef, Node, ObjectRef
from exporter.checkpoint.pickle_benign import BENIGN_CALLS, is_benign_instance, is_benign_lookup
from exporter.checkpoint.pickle_budget import COSTS, VALUE, Budget, ValuesStream
from exporter.checkpoint.pickle_meanings import MEANINGS, MalformedPickle, Meaning
from exporter.checkpoint.pickle_stack import StackMachine
from exporter.checkpoint.pickle_stream import PickleStream

__all__ = ["MalformedPickle", "Unpickler"]

_MAX_INTEGER_BITS = 4096
_MAX_GLOBAL = 1000
_CHECK_EVERY = 1024

_INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"})
_TEXTS = frozenset({"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"})
_PUSHED = _INTEGERS | _TEXTS | {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "FLOAT", "BINFLOAT"}
_CONSTANTS: dict[str, Node] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set}
_IGNORED = frozenset({"FRAME", "STOP"})  # genops ends at STOP by itself


class Unpickler(StackMachine):
    """Reads one pickle into a tree.

    Args:
        content: the whole pickle, or the stream that it comes next in.
        persistent: what stands behind a persistent id (a storage); None where the pickle may have none.
        meanings: callables whose result is built, beyond those of every pickle.
        budget: work and memory that are left, where the pickle is one of several; that of a stream is the stream's own.

    Attributes:
        globals: every global named, in order of first use.
    """

    def __init__(
        self,
        content: bytes | PickleStream,
        *,
        persistent: Callable[[Node], Node] | None = None,
        meanings: Mapping[str, Meaning] | None = None,
        budget: Budget | None = None,
    ) -> None:
        super().__init__()
        self._content = content
        self._budget = budget or (Budget(len(content)) if isinstance(content, bytes) else content.budget)
        self._persistent = persistent
        self._meanings = {**MEANINGS, **meanings} if meanings else MEANINGS
        self._interned: dict[tuple[str, str], GlobalRef] = {}
        self._spent = 0
        self.globals: list[GlobalRef] = []

    def load(self) -> Node:
        """Run the whole pickle and return its tree.

        Raises:
            MalformedPickle: anything that a writer of pickles does not write.
        """
        try:
            self._run()
        except MalformedPickle:
            raise
        except (ValueError, IndexError, TypeError, OverflowError, RecursionError) as err:
            # ValueError and OverflowError come from genops; IndexError and TypeError from a stack or arguments that do not fit
            raise MalformedPickle(f"{type(err).__name__}: {str(err)[:120]}") from err
        if isinstance(self._content, bytes) and self.position + 1 != len(self._content):
            raise MalformedPickle(f"{len(self._content) - self.position - 1} bytes after its end")
        if self._below or len(self._stack) != 1:
            raise MalformedPickle("an end with values left over")
        tree: Node = self._stack.pop()
        return tree

    def _run(self) -> None:
        handlers = {name.removeprefix("_op_").upper(): getattr(self, name) for name in dir(self) if name.startswith("_op_")}
        stream, budget = self._content, self._budget
        for opcode, arg, position in pickletools.genops(ValuesStream(stream)) if isinstance(stream, bytes) else stream.operations():
            name = opcode.name
            self.position = position or 0
            budget.operations -= 1
            budget.memory_bytes -= COSTS.get(name, VALUE)
            if not budget.operations % _CHECK_EVERY or budget.memory_bytes < 0:
                budget.check()
            if name in _PUSHED:
                if isinstance(arg, (str, bytes)):
                    budget.memory_bytes -= len(arg)
                if isinstance(arg, int) and arg.bit_length() > _MAX_INTEGER_BITS:
                    raise MalformedPickle(f"an integer of {arg.bit_length()} bits", code="E111")
                self._stack.append(arg)
            elif name in _CONSTANTS:
                self._stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self._stack.append(_EMPTY[name]())
            elif name in handlers:
                handlers[name](arg)
            elif name not in _IGNORED:
                raise MalformedPickle(f"the opcode {name}, which no checkpoint has")

    def spend(self, count: int) -> None:
        """Count elements copied from one container into another; a small pickle must not grow without bound."""
        self._spent += count
        size = len(self._content) if isinstance(self._content, bytes) else self._content.num_read
        self._budget.memory_bytes -= count * VALUE
        if self._spent > size + 4096:
            raise MalformedPickle("more copies of its own values than the pickle has bytes", code="E111")

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
            if len(module) + len(name) > _MAX_GLOBAL:
                raise MalformedPickle(f"a global with a name of {len(module) + len(name)} characters", code="E111")
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
        if name == "copyreg._reconstructor" and len(args) == 3:  # class, base, state of the base
            return self._instance(args[0], () if args[2] is None else args[2:])
        if name == "copyreg.__newobj_ex__" and len(args) == 3 and isinstance(args[1], tuple):
            return self._instance(args[0], (*args[1], args[2]) if args[2] else args[1])
        if name in self._meanings:
            return self._meanings[name](self, args)
        record = ObjectRef(callee, args, is_call=True)
        if name not in BENIGN_CALLS and not is_benign_lookup(callee, args):
            self.record_call(callee, record)
        return record

    def _instance(self, kind: Node, args: Node) -> Node:
        """Return what stands for ``kind.__new__(kind, *args)``."""
        if not isinstance(kind, GlobalRef) or not isinstance(args, tuple):
            raise MalformedPickle(f"an instance of a {type(kind).__name__}")
        if str(kind) in self._meanings:
            return self._meanings[str(kind)](self, args)
        record = ObjectRef(kind, args)
        if not is_benign_instance(kind):
            self.record_call(kind, record)
        return record


def _hidden_setstate(target: ObjectRef) -> GlobalRef:
    """Return the function that a first state put in the place of ``__setstate__``, else the class of the object."""
    states = target.state if isinstance(target.state, tuple) else (target.state,)
    for state in states:
        hidden = state.get("__setstate__") if isinstance(state, Mapping) else None
        if isinstance(hidden, GlobalRef):
            return hidden
    return target.callee
