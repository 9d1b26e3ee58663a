"""Which shapes an engine takes."""

from __future__ import annotations

import pytest

from exporter.artifacts import Profile
from exporter.verify.profile_shapes import corners, nearest_batch, takes

SMALL = Profile({"x": ((1, 3, 8), (4, 3, 8), (8, 3, 16))})
LARGE = Profile({"x": ((32, 3, 8), (32, 3, 8), (64, 3, 8))})


def test_corners_come_once():
    """Shapes that two profiles share are run once."""
    assert [shapes["x"] for shapes in corners((SMALL, LARGE, SMALL))] == [(1, 3, 8), (4, 3, 8), (8, 3, 16), (32, 3, 8), (64, 3, 8)]


@pytest.mark.parametrize(
    ("shape", "taken"),
    [((1, 3, 8), True), ((8, 3, 16), True), ((9, 3, 8), False), ((40, 3, 8), True), ((40, 3, 16), False), ((1, 3), False), ((1, 4, 8), False)],
)
def test_an_engine_takes_what_one_profile_allows(shape, taken):
    """All axes have to lie in one and the same profile."""
    assert takes((SMALL, LARGE), {"x": shape}) == taken


@pytest.mark.parametrize(("batch", "found"), [(1, 1), (6, 6), (16, 8), (25, 32), (48, 48), (100, 64)])
def test_the_nearest_batch(batch, found):
    """A batch between two profiles becomes the nearer end of one of them."""
    assert nearest_batch((SMALL, LARGE), {"x": (3, 8)}, batch) == found


def test_rows_that_no_profile_takes_leave_the_batch():
    """Where no profile has such rows, there is nothing to be near to."""
    assert nearest_batch((SMALL,), {"x": (3, 99)}, 16) == 16
