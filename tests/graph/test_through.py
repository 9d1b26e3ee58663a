"""How a map of each channel reads on the other side of a reshape, also where sizes are known only at run time."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.graph.through import Blocked, Carried, KeepsChannels, Reshape

MAP = Carried(1, np.array([2.0, 3.0]), np.array([0.5, -1.0]))


@pytest.mark.parametrize(
    ("before", "after", "axis", "run"),
    [
        pytest.param(("s0", 2, 6), ("s0", 2, 2, 3), 1, 1, id="space split"),
        pytest.param(("s0", 2, 3, 3), ("s0", 18), 1, 9, id="spread over an axis"),
        pytest.param(("s0", 2, 6), ("s0", 6, 2), 1, 3, id="spread over an axis, in part"),
        pytest.param(("s0*s1", 2), ("s1", "s0", 2), 2, 1, id="batch split, in another order of its factors"),
        pytest.param(("3*s0", 2), ("s0", 3, 2), 2, 1, id="batch split by a number"),
        pytest.param((4, 2, "2*s0 - 1"), (2, 2, 2, "2*s0 - 1"), 2, 1, id="a size that is no product, kept"),
    ],
)
def test_channels_keep_an_axis_or_are_spread(before: tuple[int | str, ...], after: tuple[int | str, ...], axis: int, run: int) -> None:
    """Forward gives the map on the new axis; backward gives the old one again."""
    reshape = Reshape("x", before, after)
    ahead = reshape.forward(MAP)
    assert isinstance(ahead, Carried)
    assert (ahead.axis, ahead.s.tolist(), ahead.t.tolist()) == (axis, np.repeat(MAP.s, run).tolist(), np.repeat(MAP.t, run).tolist())
    back = reshape.back(ahead)
    assert isinstance(back, Carried)
    assert (back.axis, back.s.tolist(), back.t.tolist()) == (1, MAP.s.tolist(), MAP.t.tolist())


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(("s0", 2, 3), ("s0", 3, 2), id="channels mixed with space"),
        pytest.param(("s0", 2, "2*s1 - 1"), ("s0", 2, 2, "s1 - 1"), id="a difference is not twice something"),
        pytest.param(("s0", 2, "s1 + 2"), ("s0", 2, "s1", 2), id="a sum is no product"),
        pytest.param(("s0", 2, "s1//2"), ("s0", 2, "s1"), id="a quotient is no product"),
    ],
)
def test_what_cannot_be_proved_is_blocked(before: tuple[int | str, ...], after: tuple[int | str, ...]) -> None:
    """Sizes that are not provably the same stop the map."""
    assert isinstance(Reshape("x", before, after).forward(MAP), Blocked)


def test_runs_of_different_maps_do_not_become_a_channel() -> None:
    """(N, C H) to (N, C, H) carries a map back to channels only if it is the same within each."""
    reshape = Reshape("x", (4, 6), (4, 2, 3))
    same = Carried(1, np.repeat([2.0, 3.0], 3), np.zeros(6))
    assert isinstance(reshape.forward(same), Carried)
    assert isinstance(reshape.forward(Carried(1, np.arange(6.0), np.zeros(6))), Blocked)


def test_an_axis_that_is_removed_shifts_the_channels() -> None:
    """Behind a mean over the axes before the channels, the channels lie further in front; in front of it they lie where they were."""
    mean = KeepsChannels("x", mixed=(0,), removed=(0,))
    ahead = mean.forward(Carried(2, MAP.s, MAP.t))
    assert isinstance(ahead, Carried)
    assert ahead.axis == 1
    back = mean.back(ahead)
    assert isinstance(back, Carried)
    assert back.axis == 2


def test_channels_of_several_images_in_a_row():
    """The same map for the channels of each image, as ``(1, images channels, ...)`` has it, is one map of the channels; different maps are not."""
    reshape = Reshape("x", (2, 3, 5), (1, 6, 5))
    carried = Carried(1, np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]), np.array([4.0, 5.0, 6.0, 4.0, 5.0, 6.0]))
    back = reshape.back(carried)
    assert isinstance(back, Carried)
    assert (back.axis, back.s.tolist(), back.t.tolist()) == (1, [1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    assert isinstance(reshape.back(Carried(1, np.arange(6.0), np.zeros(6))), Blocked)
