"""Operators that a channel-wise map ``s z + t`` passes through: how it reads on the other side of each.

``back`` takes the map from an operator's output to its input, ``forward`` from its input to its output. Both are exact, or they
say what is in the way.

    keeps channels    f(s z + t) = s f(z) + t, where f mixes values of one channel with weights that sum to one: dropout in eval
                      mode, pooling without counting padding, upsampling, padding that copies values. Where the weights do not
                      sum to one (zero padding), f(s z + t) = s f(z) + t f(1): only t = 0 passes.
    maximum           max(s z + t) = s max(z) + t where no s is negative
    permutation       the channels move to another axis
    reshape           the channels keep their axis, or are spread over an axis with what stands behind them
    pixel shuffle     channel c of the output is made of channels c r^2 ... c r^2 + r^2 - 1 of the input
    slice             some channels, or all of them
    homogeneous       f(s z) = s f(z) where no s is negative: ReLU and its like; only t = 0 passes
    concatenation     each input gets its channels' part
    sum, difference   both inputs are scaled, the first is shifted
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from exporter.graph.algebra import Float64

__all__ = [
    "Blocked",
    "Carried",
    "Join",
    "KeepsChannels",
    "Maximum",
    "Permutation",
    "PixelShuffle",
    "PositiveHomogeneous",
    "Reshape",
    "Size",
    "Sum",
    "Take",
    "Through",
]

Size: TypeAlias = "int | str"

_PLAIN_PRODUCT = re.compile(r"\w+( ?\* ?\w+)*")


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """The map ``s z + t`` along ``axis``; both of shape ``(channels,)``."""

    axis: int
    s: Float64
    t: Float64


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why the map does not pass."""

    why: str


@dataclass(frozen=True, slots=True)
class KeepsChannels:
    """An operator that mixes values of one channel only.

    Attributes:
        mixed: axes of the input that it mixes; a map along one of them does not pass.
        sums_to_one: False where zeros are mixed in.
        removed: axes of the input that the output lacks, in ascending order.
        zeros_before: where all that it does is to put zeros around: how many in front along each axis; empty for anything else.
    """

    data: str
    mixed: tuple[int, ...] = ()
    sums_to_one: bool = True
    removed: tuple[int, ...] = ()
    zeros_before: tuple[int, ...] = ()

    def back(self, carried: Carried) -> Carried | Blocked:
        """Return the map in front of the operator."""
        axis = carried.axis
        for removed in self.removed:
            axis += removed <= axis
        return self._passed(Carried(axis, carried.s, carried.t), axis)

    def forward(self, carried: Carried) -> Carried | Blocked:
        """Return the map behind the operator."""
        behind = carried.axis - sum(removed < carried.axis for removed in self.removed)
        return self._passed(Carried(behind, carried.s, carried.t), carried.axis)

    def _passed(self, carried: Carried, axis: int) -> Carried | Blocked:
        if axis in self.mixed:
            return Blocked(f"it mixes values along axis {axis}, that of the channels")
        if not self.sums_to_one and np.any(carried.t != 0.0):
            return Blocked("it mixes zeros in, which the BatchNorm would have shifted")
        return carried


@dataclass(frozen=True, slots=True)
class Maximum:
    """The largest value of a window of one channel."""

    data: str
    mixed: tuple[int, ...]

    def back(self, carried: Carried) -> Carried | Blocked:
        """Return the map in front of the operator."""
        if carried.axis in self.mixed:
            return Blocked(f"it mixes values along axis {carried.axis}, that of the channels")
        num_negative = int(np.count_nonzero(carried.s < 0.0))
        return (
            Blocked(f"{num_negative} of {carried.s.size} channels have a negative scale, which turns a maximum into a minimum")
            if num_negative
            else carried
        )

    forward = back


@dataclass(frozen=True, slots=True)
class PositiveHomogeneous:
    """A function of each value with ``f(s z) = s f(z)`` for every ``s`` that is not negative."""

    data: str

    def back(self, carried: Carried) -> Carried | Blocked:
        """Return the map in front of the operator."""
        if np.any(carried.t != 0.0):
            return Blocked("it bends what the BatchNorm shifts")
        if not np.all(carried.s >= 0.0):
            return Blocked("it bends a negative scale")
        return carried

    forward = back


@dataclass(frozen=True, slots=True)
class Permutation:
    """Axis ``i`` of the output is axis ``order[i]`` of the input."""

    data: str
    order: tuple[int, ...]

    def back(self, carried: Carried) -> Carried | Blocked:
        """Return the map in front of the operator."""
        return Carried(self.order[carried.axis], carried.s, carried.t)

    def forward(self, carried: Carried) -> Carried | Blocked:
        """Return the map behind the operator."""
        return Carried(self.order.index(carried.axis), carried.s, carried.t)


@dataclass(frozen=True, slots=True)
class Reshape:
    """The same values in the same order under another shape; a text is a size that is known only at run time."""

    data: str
    before: tuple[Size, ...]
    after: tuple[Size, ...]

    def back(self, carried: Carried) -> Carried | Blocked:
        """Return the map in front of the operator."""
        return _reshaped(carried, self.after, self.before)

    def forward(self, carried: Carried) -> Carried | Blocked:
        """Return the map behind the operator."""
        return _reshaped(carried, self.before, self.after)


@dataclass(frozen=True, slots=True)
class PixelShuffle:
    """Blocks of ``factor`` x ``factor`` channels become pixels of one channel; the channels lie on the third axis from the end.

    Attributes:
        is_depth_first: the channels of one block do not lie side by side, but every so many: ONNX's DepthToSpace in its mode DCR.
    """

    data: str
    factor: int
    axis: int
    is_depth_first: bool = False

    def back(self, carried: Carried) -> Carried | Blocked:
        """Return the map in front of the operator."""
        if carried.axis != self.axis:
            return Blocked("its channels lie on another axis")
        spread = np.tile if self.is_depth_first else np.repeat
        return Carried(self.axis, spread(carried.s, self.factor**2), spread(carried.t, self.factor**2))

    def forward(self, carried: Carried) -> Carried | Blocked:  # noqa: ARG002 - the same signature for all
        """Return the map behind the operator."""
        return Blocked("it mixes channels")


@dataclass(frozen=True, slots=True)
class Take:
    """``start`` to ``stop`` of ``size`` along ``axis``."""

    data: str
    axis: int
    start: int
    stop: int
    size: int

    def back(self, carried: Carried) -> Carried | Blocked:
        """Return the map in front of the operator: nothing happens to what is not taken."""
        if carried.axis != self.axis:
            return carried
        s, t = np.ones(self.size), np.zeros(self.size)
        s[self.start : self.stop], t[self.start : self.stop] = carried.s, carried.t
        return Carried(self.axis, s, t)

    def forward(self, carried: Carried) -> Carried | Blocked:
        """Return the map behind the operator."""
        if carried.axis != self.axis:
            return carried
        return Carried(self.axis, carried.s[self.start : self.stop], carried.t[self.start : self.stop])


@dataclass(frozen=True, slots=True)
class Join:
    """Inputs one after the other along ``axis``, each of its size."""

    parts: tuple[str, ...]
    axis: int
    sizes: tuple[int, ...]

    def back_into(self, carried: Carried, part: int) -> Carried | Blocked:
        """Return the map in front of the operator, on one of its inputs."""
        if carried.axis != self.axis:
            return carried
        begin = sum(self.sizes[:part])
        end = begin + self.sizes[part]
        return Carried(self.axis, carried.s[begin:end], carried.t[begin:end])

    def forward_from(self, carried: Carried, part: int) -> Carried | Blocked:
        """Return the map behind the operator of a map on one of its inputs: nothing happens to the others."""
        if carried.axis != self.axis:
            return Blocked("it joins values that the BatchNorm does not see")
        s, t = np.ones(sum(self.sizes)), np.zeros(sum(self.sizes))
        begin = sum(self.sizes[:part])
        s[begin : begin + self.sizes[part]], t[begin : begin + self.sizes[part]] = carried.s, carried.t
        return Carried(self.axis, s, t)


@dataclass(frozen=True, slots=True)
class Sum:
    """The sum of two inputs of one shape, or their difference.

    Attributes:
        is_difference: whether the second is taken from the first.
    """

    parts: tuple[str, str]
    is_difference: bool = False

    def back_into(self, carried: Carried, part: int) -> Carried | Blocked:
        """Return the map in front of the operator, on one of its inputs: the first is shifted for both."""
        return carried if part == 0 else Carried(carried.axis, carried.s, np.zeros_like(carried.t))


Through: TypeAlias = "KeepsChannels | Maximum | PositiveHomogeneous | Permutation | Reshape | PixelShuffle | Take"
"""Operators with one input that a map may pass in either direction."""


def _reshaped(carried: Carried, source: tuple[Size, ...], target: tuple[Size, ...]) -> Carried | Blocked:
    """Carry a map along an axis of ``source`` over to the shape ``target``."""
    axis, size = carried.axis, carried.s.size
    behind = _product(source[axis + 1 :])
    for other, channels in enumerate(target):
        if channels == size and _product(target[other + 1 :]) == behind and _product(target[:other]) == _product(source[:axis]):
            return Carried(other, carried.s, carried.t)
    return (
        _spread(carried, source, target)
        or _gathered(carried, source, target)
        or _repeated(carried, source, target)
        or Blocked(f"the shape {source} becomes {target}")
    )


def _spread(carried: Carried, source: tuple[Size, ...], target: tuple[Size, ...]) -> Carried | None:
    """Channels become runs of one axis, each as long as what stood behind it: (N, C, H, W) to (N, C H W)."""
    axis, size = carried.axis, carried.s.size
    for other, features in enumerate(target):
        if not isinstance(features, int) or features % size or features == size:
            continue
        run = features // size
        if _product((*target[other + 1 :], run)) == _product(source[axis + 1 :]) and _product(target[:other]) == _product(source[:axis]):
            return Carried(other, np.repeat(carried.s, run), np.repeat(carried.t, run))
    return None


def _gathered(carried: Carried, source: tuple[Size, ...], target: tuple[Size, ...]) -> Carried | None:
    """Runs of equal maps become channels: (N, C H W) to (N, C, H, W)."""
    axis, size = carried.axis, carried.s.size
    for other, channels in enumerate(target):
        if not isinstance(channels, int) or channels == 0 or size % channels or channels == size:
            continue
        run = size // channels
        if _product(target[other + 1 :]) != _product((*source[axis + 1 :], run)) or _product(target[:other]) != _product(source[:axis]):
            continue
        s, t = carried.s.reshape(channels, run), carried.t.reshape(channels, run)
        if np.all(s == s[:, :1]) and np.all(t == t[:, :1]):
            return Carried(other, s[:, 0].copy(), t[:, 0].copy())
    return None


def _repeated(carried: Carried, source: tuple[Size, ...], target: tuple[Size, ...]) -> Carried | None:
    """The channels of several images in a row, each with the same map, become channels again: (1, N C, H, W) to (N, C, H, W)."""
    axis, size = carried.axis, carried.s.size
    for other, channels in enumerate(target):
        if not isinstance(channels, int) or channels == 0 or size % channels or channels == size:
            continue
        times = size // channels
        if _product(target[other + 1 :]) != _product(source[axis + 1 :]) or _product(target[:other]) != _product((*source[:axis], times)):
            continue
        s, t = carried.s.reshape(times, channels), carried.t.reshape(times, channels)
        if np.all(s == s[:1]) and np.all(t == t[:1]):
            return Carried(other, s[0].copy(), t[0].copy())
    return None


def _product(sizes: tuple[Size, ...]) -> tuple[int, tuple[str, ...]]:
    """Return the product of sizes as a number and what is known at run time only, sorted.

    A text that is no plain product of names and numbers stays whole: ``2*s0 - 1`` is not twice something.
    """
    number, symbols = 1, []
    for size in sizes:
        factors = size.replace(" ", "").split("*") if isinstance(size, str) and _PLAIN_PRODUCT.fullmatch(size) else [size]
        for factor in factors:
            if isinstance(factor, int) or factor.isdigit():
                number *= int(factor)
            else:
                symbols.append(factor)
    return number, tuple(sorted(symbols))
