"""The numbers of one linear operator, and what scaling its channels does to each of them.

    y = W * x + b + border            and, with ones:    y = (W, ones) * (x, 1) + b + border

    weight  W
    bias    b, one number for each output channel; None stays absent
    border  a constant that is added to the output, one number for each place of each channel: ``(1, outputs, *spatial)``
    ones    the weight of one further input channel of each group, which is one everywhere: ``(outputs, 1, *kernel)``

The last two hold what a shift becomes where not every output sees all taps (``padded_consumers.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from exporter.graph.abstract import Linear
from exporter.graph.algebra import Float64, factor_of_inputs, factor_of_outputs, scaled_by, shifted_bias
from exporter.graph.rewrites.late_weight import Factor, LateWeight

__all__ = ["LinearNumbers"]


@dataclass(frozen=True, slots=True, eq=False)
class LinearNumbers:
    """Weight, bias, border and ones of a linear operator; float64, not yet rounded.

    Attributes:
        given: the weight, or how it is computed.
    """

    given: Float64 | LateWeight
    bias: Float64 | None = None
    border: Float64 | None = None
    ones: Float64 | None = None

    @property
    def weight(self) -> Float64:
        """Return the weight, which may be computed anew each time."""
        return self.given.read() if isinstance(self.given, LateWeight) else self.given

    def may_exceed(self, largest: float) -> tuple[Float64, ...]:
        """Return the arrays that may hold a number beyond ``largest`` in magnitude, or NaN."""
        small = [array for array in (self.bias, self.border, self.ones) if array is not None]
        is_within = isinstance(self.given, LateWeight) and self.given.bound <= largest
        return tuple(small) if is_within else (self.weight, *small)

    @property
    def is_plain(self) -> bool:
        """Return whether there is a weight and perhaps a bias, and nothing else."""
        return self.border is None and self.ones is None

    def behind(self, role: Linear, s: Float64, t: Float64, *, with_bias: bool) -> LinearNumbers:
        """Return the numbers that give ``s y + t``.

        Args:
            role: of the operator.
            s, t: one number for each output channel.
            with_bias: whether a bias is created where there is none.
        """
        factor = partial(factor_of_outputs, s=s, axis=role.weight_axis, groups=role.groups, is_transposed=role.is_transposed)
        bias = shifted_bias(self.bias, s, t) if self.bias is not None or with_bias else None
        with np.errstate(invalid="ignore", over="ignore"):
            border = None if self.border is None else self.border * s.reshape(1, -1, *[1] * (self.border.ndim - 2))
            ones = None if self.ones is None else self.ones * s.reshape(-1, *[1] * (self.ones.ndim - 1))
        return LinearNumbers(self._scaled(factor, s), bias, border, ones)

    def ahead(self, role: Linear, s: Float64) -> LinearNumbers:
        """Return the numbers that give for ``x`` what these give for ``s x``, with one number of ``s`` for each input channel."""
        factor = partial(factor_of_inputs, s=s, axis=role.weight_input_axis, groups=role.groups, is_transposed=role.is_transposed)
        return replace(self, given=self._scaled(factor, s))

    def added(self, *, bias: Float64 | None = None, border: Float64 | None = None, ones: Float64 | None = None) -> LinearNumbers:
        """Return the numbers with these added to what is there."""
        return replace(self, bias=_sum(self.bias, bias), border=_sum(self.border, border), ones=_sum(self.ones, ones))

    def _scaled(self, factor: Factor, s: Float64) -> Float64 | LateWeight:
        return self.given.scaled(factor, s) if isinstance(self.given, LateWeight) else scaled_by(self.given, factor(self.given.shape))


def _sum(one: Float64 | None, other: Float64 | None) -> Float64 | None:
    if one is None or other is None:
        return other if one is None else one
    with np.errstate(invalid="ignore", over="ignore"):
        return one + other
