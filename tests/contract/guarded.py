"""Fakes whose class is the real pybind11 class: what the real class does not have, or not like that, raises.

A ``Guarded`` object answers ``isinstance`` as the real class, and passes a use on to its behaviour (our own small class) only if the real
class has that attribute, the arguments fit one of the signatures in its docstring, and an assigned property can be assigned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


class ContractBroken(Exception):
    """Our code uses TensorRT in a way that this release does not have."""


@dataclass(frozen=True)
class Parameter:
    name: str
    type: str
    has_default: bool


@dataclass(frozen=True)
class Signature:
    parameters: tuple[Parameter, ...]
    returns: str


def split_top_level(text: str) -> list[str]:
    """Split at commas that stand in no bracket."""
    pieces, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "([{<") - (char in ")]}" or (char == ">" and text[index - 1] != "-"))
        if char == "," and depth == 0:
            pieces.append(text[start:index])
            start = index + 1
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def signatures(name: str, docstring: str, *, bound: bool = True) -> list[Signature]:
    """Return the signatures that pybind11 writes into a docstring; of a method without ``self``."""
    found = []
    for line in docstring.splitlines():
        match = re.match(rf"\s*(?:\d+\.\s+)?{re.escape(name)}\((.*)\)\s*->\s*(.+)$", line)
        if not match or match.group(1).startswith("*args"):
            continue
        parameters = []
        for piece in split_top_level(match.group(1)):
            left, _, default = piece.partition(" = ")
            label, _, kind = left.partition(":")
            parameters.append(Parameter(label.strip(), kind.strip(), bool(default)))
        found.append(Signature(tuple(parameters[1:] if bound else parameters), match.group(2).strip()))
    return found


def fits(trt, kind: str, value) -> bool:
    """Whether ``value`` can be given where pybind11 says ``kind``."""
    if kind.endswith(".Dims"):
        return isinstance(value, (tuple, list)) and all(isinstance(size, int) for size in value)
    if kind in {"int", "typing.SupportsInt"}:
        return hasattr(value, "__int__") and not isinstance(value, (str, float))
    if kind == "str":
        return isinstance(value, str)
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "buffer" or kind.endswith("Buffer"):
        try:
            memoryview(value)
        except TypeError:
            return False
        return True
    if kind.startswith(("tensorrt.", "tensorrt_bindings.")):
        target = trt
        for step in kind.split(".")[2:]:
            target = getattr(target, step)
        return value is None or isinstance(value, target)
    return True


def bind(trt, where: str, signature: Signature, arguments: tuple, keywords: dict) -> str:
    """Return why a call does not fit, empty where it does."""
    if len(arguments) > len(signature.parameters):
        return f"{len(arguments)} arguments for {len(signature.parameters)} parameters"
    given = dict(zip((p.name for p in signature.parameters), arguments, strict=False))
    for name, value in keywords.items():
        if name not in {p.name for p in signature.parameters} or name in given:
            return f"no keyword {name}"
        given[name] = value
    for parameter in signature.parameters:
        if parameter.name not in given:
            if not parameter.has_default:
                return f"{parameter.name} is missing"
        elif not fits(trt, parameter.type, given[parameter.name]):
            return f"{parameter.name} is {given[parameter.name]!r}, which is no {parameter.type}"
    return ""


def check_call(trt, real_class, name: str, arguments: tuple, keywords: dict) -> None:
    """Raise where no signature of the real method takes this call."""
    where = f"{real_class.__name__}.{name} of TensorRT {trt.__version__}"
    check_signatures(trt, where, signatures(name, getattr(real_class, name).__doc__ or ""), arguments, keywords)


def check_signatures(trt, where: str, known: list[Signature], arguments: tuple, keywords: dict) -> None:
    """Raise where none of the signatures takes this call."""
    if not known:
        raise ContractBroken(f"{where}: its docstring has no signature")
    reasons = [bind(trt, where, signature, arguments, keywords) for signature in known]
    if all(reasons):
        raise ContractBroken(f"{where}: {'; '.join(reasons)}")


class Guarded:
    """``behaviour`` behind the surface of ``real_class``."""

    def __init__(self, trt, real_class, behaviour) -> None:
        object.__setattr__(self, "_guard", (trt, real_class, behaviour))

    @property
    def __class__(self):
        return object.__getattribute__(self, "_guard")[1]

    def __getattr__(self, name):
        trt, real_class, behaviour = object.__getattribute__(self, "_guard")
        if not hasattr(real_class, name):
            raise ContractBroken(f"{real_class.__name__} of TensorRT {trt.__version__} has no attribute {name}")
        if isinstance(getattr(real_class, name), property):
            return getattr(behaviour, name)

        def method(*arguments, **keywords):
            check_call(trt, real_class, name, arguments, keywords)
            return getattr(behaviour, name)(*arguments, **keywords)

        return method

    def __setattr__(self, name, value) -> None:
        trt, real_class, behaviour = object.__getattribute__(self, "_guard")
        real = getattr(real_class, name, None)
        if not isinstance(real, property):
            raise ContractBroken(f"{real_class.__name__} of TensorRT {trt.__version__} has no property {name}")
        if real.fset is None:
            raise ContractBroken(f"{real_class.__name__}.{name} of TensorRT {trt.__version__} cannot be assigned")
        kinds = re.findall(r"\(\S+: [^,]+, \S+: ([^)]+)\)", real.fset.__doc__ or "")
        if kinds and not fits(trt, kinds[0], value):
            raise ContractBroken(f"{real_class.__name__}.{name} of TensorRT {trt.__version__} is {kinds[0]}, not {value!r}")
        setattr(behaviour, name, value)


class GuardedModule:
    """The real module, with constructors and functions of our choice in place of those that need a GPU."""

    def __init__(self, trt, constructors, functions=()) -> None:
        self._trt = trt
        self._constructors = constructors
        self._functions = dict(functions)

    def __getattr__(self, name):
        real = getattr(self._trt, name, None)
        if real is None:
            raise ContractBroken(f"TensorRT {self._trt.__version__} has no {name}")
        if name in self._functions:

            def call(*arguments, **keywords):
                known = signatures(name, real.__doc__ or "", bound=False)
                check_signatures(self._trt, f"{name} of TensorRT {self._trt.__version__}", known, arguments, keywords)
                return self._functions[name](*arguments, **keywords)

            return call
        if name not in self._constructors:
            return real

        def construct(*arguments, **keywords):
            check_call(self._trt, real, "__init__", arguments, keywords)
            return self._constructors[name](*arguments, **keywords)

        return construct
