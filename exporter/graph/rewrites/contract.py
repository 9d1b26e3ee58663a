"""What a rewrite is: the contract between the planner and each fold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from exporter.artifacts import Refusal
from exporter.graph.abstract import AbstractGraph, BatchNorm, ConstantAffine, Linear, Operator
from exporter.graph.algebra import Float64, affine_from_batch_norm
from exporter.graph.rewrites.late_weight import LateWeight
from exporter.graph.rewrites.linear_numbers import LinearNumbers

__all__ = ["Bypass", "Constants", "Copy", "Match", "Numbers", "Rewrite", "Rewritten", "affine_numbers", "linear_of", "num_channels", "numbers_given"]


class Constants(Protocol):
    """The numbers of constant values, exact in float64."""

    def read(self, value: str) -> Float64:
        """Return the numbers of ``value``."""
        ...

    def kept(self, value: str) -> NDArray[Any]:
        """Return the same numbers as they are kept, in any dtype that float64 holds."""
        ...

    def dtype(self, value: str) -> str:
        """Return the dtype that the program keeps ``value`` in: ``float32``, ``bfloat16``, ..."""
        ...


class Numbers(Constants, Protocol):
    """The constants with the folds so far in them."""

    def of(self, operator: Operator) -> LinearNumbers:
        """Return the numbers of a linear operator as the folds so far have left them; of a BatchNorm, gamma and beta as weight and bias."""
        ...


Bypass: TypeAlias = "tuple[str, str]"
"""An operator that leaves the graph, and the value that is read in place of its output."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of an operator, called ``name``; these readers of its output read the copy's instead.

    Copies are made before numbers and bypasses; from then on ``name`` is an operator like any other.
    """

    operator: str
    name: str
    readers: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A BatchNorm that a rewrite can take, with all that ``apply`` needs to know.

    Attributes:
        absorbers: the linear operators that take it, the one to name first.
        route: what the rewrite itself wrote down.
    """

    affine: Operator
    absorbers: tuple[Operator, ...]
    route: object = None


@dataclass(frozen=True, slots=True, eq=False)
class Rewritten:
    """What becomes of the graph: copies, new numbers of linear operators, still in float64, and operators that go.

    Attributes:
        numbers: linear operator, or copy of one -> its numbers; a BatchNorm that stays -> gamma and beta as weight and bias.
        bypasses: in the order in which they are done.
        pattern: what was folded into what, in short: ``conv2d+bn``.
        max_scale: the largest ``|s|``.
        direction, changed: as in ``Folded``.
    """

    numbers: Mapping[str, LinearNumbers]
    bypasses: tuple[Bypass, ...]
    pattern: str
    max_scale: float
    direction: Literal["back", "ahead", "beside"] = "back"
    changed: tuple[str, ...] = ()
    copies: tuple[Copy, ...] = ()


class Rewrite(Protocol):
    """One exact fold.

    Attributes:
        looks_ahead: whether it changes what reads a BatchNorm; then the planner tries the last BatchNorms first.
    """

    looks_ahead: bool

    def requires(self, graph: AbstractGraph, affine: Operator) -> Match | Refusal:
        """Return the match, or the first reason against it. Looks at the graph only, not at numbers."""
        ...

    def apply(self, match: Match, numbers: Numbers) -> Rewritten | Refusal:
        """Return what becomes of the graph, or why these numbers do not allow it."""
        ...


def affine_numbers(operator: Operator, numbers: Numbers) -> tuple[Float64, Float64]:
    """Return ``s`` and ``t`` of a BatchNorm with constant statistics, or of what stands alone, each of shape ``(channels,)``."""
    role = operator.role
    if isinstance(role, ConstantAffine):
        s, t = (np.full(1, missing) if name is None else numbers.read(name).reshape(-1) for name, missing in ((role.scale, 1.0), (role.shift, 0.0)))
        size = max(s.size, t.size)
        if role.lone is not None:
            size = role.lone.channels
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                s = role.lone.factor / s if role.lone.divides else role.lone.factor * s
                t = role.lone.offset - t if role.lone.subtracts else role.lone.offset + t
        return np.broadcast_to(s, (size,)).copy(), np.broadcast_to(t, (size,)).copy()
    if not isinstance(role, BatchNorm) or role.mean is None or role.var is None:
        raise TypeError(f"{operator.label} is no BatchNorm with running statistics")
    own = numbers.of(operator)
    return affine_from_batch_norm(own.weight, own.bias, numbers.read(role.mean), numbers.read(role.var), role.eps)


def num_channels(operator: Operator, numbers: Numbers) -> int:
    """Return how many channels a BatchNorm has, or what stands alone."""
    role = operator.role
    if isinstance(role, BatchNorm) and role.mean is not None:
        return numbers.read(role.mean).size
    return affine_numbers(operator, numbers)[0].size


def numbers_given(operator: Operator, constants: Constants) -> LinearNumbers:
    """Return the numbers that a linear operator has in the network; of a BatchNorm, gamma and beta as weight and bias."""
    if isinstance(operator.role, BatchNorm):
        role = operator.role
        beta = None if role.beta is None else constants.read(role.beta)
        return LinearNumbers(np.ones_like(constants.read(role.mean or "")) if role.gamma is None else constants.read(role.gamma), beta)
    linear = linear_of(operator)
    return LinearNumbers(LateWeight(lambda: constants.kept(linear.weight)), None if linear.bias is None else constants.read(linear.bias))


def linear_of(operator: Operator) -> Linear:
    """Return the role of a linear operator."""
    if not isinstance(operator.role, Linear):
        raise TypeError(f"{operator.label} is not linear")
    return operator.role
