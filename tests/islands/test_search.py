"""The search on sets of which everything is known."""

from __future__ import annotations

import math
import random

import pytest

from exporter.islands.search import OutOfTrialsError, smallest_set


class Judge:
    """Says what fails; counts what it is asked, and never answers twice."""

    def __init__(self, passes, limit=math.inf):
        self.passes, self.limit, self.asked = passes, limit, []

    def __call__(self, chosen):
        assert chosen not in self.asked
        if len(self.asked) >= self.limit:
            raise OutOfTrialsError
        self.asked.append(chosen)
        return "" if self.passes(chosen) else f"fails with {sorted(chosen)}"


@pytest.mark.parametrize("needed", [{0}, {99}, {41}, {3, 70}, {40, 41, 42}, {0, 50, 99}, set(range(10))], ids=str)
def test_exactly_what_is_needed_is_found(needed):
    """Whatever the set, in about 2 log2(N) tries for each that stands alone; each of it was taken out once."""
    judge = Judge(lambda chosen: needed <= chosen)
    found = smallest_set(range(100), judge)
    assert (set(found.items), found.is_minimal, set(found.why)) == (needed, True, needed)
    assert all(needed - {item} in judge.asked for item in needed)
    assert len(judge.asked) <= 2 + len(needed) * (2 * math.ceil(math.log2(100)) + 1)
    assert all(why.startswith("fails with") for why in found.why.values())


def test_neighbours_are_cheap():
    """A hundred in a row cost three tries each and the search for their two ends, not log2(N) tries each."""
    judge = Judge(lambda chosen: set(range(500, 600)) <= chosen)
    assert smallest_set(range(1000), judge).items == tuple(range(500, 600))
    assert len(judge.asked) <= 2 + 2 * 10 + 3 * 100


def test_a_large_guess_is_thinned_out_in_pieces():
    """Of sixty-four that are thought to be needed one is: halves go first, so that it costs 2 log2(N) tries."""
    judge = Judge(lambda chosen: 40 in chosen)
    assert smallest_set(range(100), judge, start=range(64)).items == (40,)
    assert len(judge.asked) <= 1 + 2 * 7


def test_nothing_is_needed():
    """One try says so."""
    judge = Judge(lambda chosen: True)
    assert smallest_set(range(9), judge).items == ()
    assert judge.asked == [frozenset()]


def test_nothing_helps():
    """Where all items fail, that is said with how they do, after two tries."""
    found = smallest_set(range(9), Judge(lambda chosen: False))
    assert found.items is None
    assert found.hopeless == "fails with [0, 1, 2, 3, 4, 5, 6, 7, 8]"


def test_what_was_thought_to_be_needed_is_examined():
    """A start spares tries; what is not needed of it goes."""
    judge = Judge(lambda chosen: {3, 70} <= chosen)
    found = smallest_set(range(100), judge, start=[3, 5, 70])
    assert (found.items, found.is_minimal) == ((3, 70), True)
    assert len(judge.asked) < 8


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 6, 9, 15])
def test_a_limit_leaves_what_is_known(limit):
    """Whatever the limit, what is returned has passed, and nothing is claimed to be minimal."""
    judge = Judge({3, 40, 70}.__le__, limit)
    found = smallest_set(range(100), judge)
    assert not found.is_minimal
    assert found.items is None if limit < 2 else {3, 40, 70} <= set(found.items)
    assert found.items is None or (frozenset(found.items) in judge.asked)


@pytest.mark.parametrize("seed", range(30))
def test_more_may_do_harm(seed):
    """Where more items may do harm, what is returned has passed all the same, and without any one of it it fails."""
    numbers = random.Random(seed)
    luck = {}

    def passes(chosen):
        return len(chosen) == 12 or (bool(chosen) and luck.setdefault(chosen, numbers.random() < 0.4))

    judge = Judge(passes)
    found = smallest_set(range(12), judge)
    assert found.is_minimal
    assert passes(frozenset(found.items))
    assert not any(passes(frozenset(found.items) - {item}) for item in found.items)
