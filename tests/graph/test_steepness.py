"""Which channels of a BatchNorm count as steep."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.graph.abstract import BatchNorm, Training
from exporter.graph.algebra import affine_from_batch_norm
from exporter.graph.steepness import steepness_of

EPS = 1e-5
ROLE = BatchNorm("x", "gamma", None, "mean", "var", EPS, Training.RUNNING, axis=1)


class Given:
    """Numbers by name, as the planner reads them."""

    def __init__(self, gamma, var):
        self.arrays = {"gamma": np.asarray(gamma, float), "var": np.asarray(var, float), "mean": np.zeros(len(var))}

    def read(self, value):
        return self.arrays[value]


def by_definition(gamma, var):
    """Return the steep channels: a tiny variance, and a factor beyond the others' or beyond all measure."""
    factors = np.abs(affine_from_batch_norm(gamma, None, np.zeros(len(var)), var, EPS)[0])
    known = np.isfinite(factors) & np.isfinite(var)
    if not known.any():
        return []
    typical, usual = np.median(factors[known]), np.median(var[known])
    return [
        channel
        for channel in range(len(var))
        if known[channel]
        and (var[channel] <= EPS or var[channel] < 1e-3 * usual)
        and (factors[channel] >= 16 * typical or factors[channel] >= 100)
        and factors[channel] > 0
    ]


VARIANCES = st.one_of(st.floats(1e-12, 1e4), st.sampled_from([0.0, EPS, 2 * EPS, 1e-30, math.inf, math.nan]))


@given(st.lists(st.tuples(st.floats(-8, 8), VARIANCES), min_size=1, max_size=9))
def test_steep_channels_are_those_of_the_definition(channels):
    """Any variances, those that are not finite among them."""
    gamma, var = map(np.array, zip(*channels, strict=True))
    expected, found = by_definition(gamma, var), steepness_of(ROLE, Given(gamma, var))
    assert (0 if found is None else found.num) == len(expected)
    assert found is None or found.channel in expected


@pytest.mark.parametrize(("var", "expected"), [([1.0, 0.5, 2.0], None), ([1.0, 1.0, 1e-9], 2), ([1e-9, 1.0, math.nan], 0)])
def test_a_dead_channel_is_named(var, expected):
    """One with next to no variance beside living ones; none where all live."""
    found = steepness_of(ROLE, Given(np.ones(3), var))
    assert (None if found is None else found.channel) == expected
