"""What ``torch.export`` could not record, in words: the construct, from its error and the line of the network's code, and the way out."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Construct", "construct_of"]


@dataclass(frozen=True, slots=True)
class Construct:
    """Something that cannot be traced.

    Attributes:
        name: what stands in the line; empty where it is an exception of the network's own.
        help: what to write instead.
    """

    name: str
    help: str


_OWN = Construct("", "the network raises this on an example input of that shape: run it once by hand")
_NUMPY = Construct(
    "a conversion to NumPy",
    "use torch's functions of the same name; NumPy would compute with one example and leave no operator behind",
)
_MEMORY = Construct(
    "compiled code that reads a tensor's memory",
    "declare it as an operator (torch.library.custom_op), or take the variant of the module that is written in torch",
)
_BRANCHES = Construct(
    "a torch.cond whose branches cannot be traced",
    "both branches have to return tensors of the same shapes and dtypes, and take everything that they read as an argument or from the module",
)
_NUMBER = Construct(
    "a number taken out of a tensor: item(), tolist(), int(), float(), bool()",
    "keep it a tensor (torch.where, torch.clamp, arithmetic), or let the module know the number from the start",
)
_BRANCH = Construct(
    "a branch on the values in a tensor", "torch.where(condition, a, b) computes both sides, torch.cond(condition, f, g, inputs) one of them"
)
_LOOP = Construct("a loop whose length depends on the values in a tensor", "run it a fixed number of times and mask what is too much: torch.where")
_SIZE = Construct(
    "a size that depends on the values in a tensor: a boolean mask, nonzero, unique", "keep the size and mask the values: torch.where(mask, x, 0)"
)

_BY_ERROR: tuple[tuple[str, Construct], ...] = (
    (r"\.numpy\(\) is not supported|Can't call numpy\(\)|__array__", _NUMPY),
    (r"Cannot access data pointer|custom kernel|data_ptr", _MEMORY),
    (r"UncapturedHigherOrderOpError|\bcond\(|Expected both branches", _BRANCHES),
)
_BY_LINE: tuple[tuple[str, Construct], ...] = (
    (r"^\s*for\b|\brange\(", _LOOP),
    (r"^\s*(if|elif|while|assert)\b(?!.*\.(size|shape))| if .* else |\band\b|\bor\b|\bnot\b", _BRANCH),
    (r"\.item\(|\.tolist\(|\b(int|float|bool|complex|round|min|max)\(", _NUMBER),
)
_DATA_DEPENDENT = re.compile(r"data-dependent|DataDependentOutput|DynamicOutputShape|_local_scalar_dense|unbacked")


def construct_of(error: BaseException, source: str, *, scripted: str | None = None) -> Construct:
    """Return what ``error`` means.

    Args:
        error: what ``torch.export`` or the network raised.
        source: the line of the network's code that it comes from; empty where it is not known.
        scripted: name of a module of ``torch.jit`` in the network.
    """
    text = f"{type(error).__name__}: {error}"
    for pattern, construct in _BY_ERROR:
        if re.search(pattern, text):
            return construct
    if not _DATA_DEPENDENT.search(text):
        return _OWN if scripted is None else Construct(f"a scripted module: {scripted or 'the network'}", "name the code that it was scripted from")
    if "Size-like symbols: u" in text:
        return _SIZE
    return next((construct for pattern, construct in _BY_LINE if re.search(pattern, source)), _NUMBER)
