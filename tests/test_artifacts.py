"""The frozen values that flow from stage to stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.artifacts import Digest, GlobalRef, ObjectRef, Outcome, Verdict, to_json, walk, worst


def _verdict(outcome: Outcome, *, required: bool = True) -> Verdict:
    return Verdict("parity", "onnx", outcome, "because", required=required)


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        pytest.param((), Outcome.NOT_RUN, id="nothing was judged"),
        pytest.param((_verdict(Outcome.PASS),), Outcome.PASS, id="pass"),
        pytest.param((_verdict(Outcome.PASS), _verdict(Outcome.FAIL)), Outcome.FAIL, id="one fails"),
        pytest.param((_verdict(Outcome.PASS), _verdict(Outcome.NOT_RUN)), Outcome.NOT_RUN, id="a required check did not run"),
        pytest.param((_verdict(Outcome.PASS), _verdict(Outcome.NOT_RUN, required=False)), Outcome.PASS, id="an optional check did not run"),
        pytest.param((_verdict(Outcome.PASS), _verdict(Outcome.INCONCLUSIVE)), Outcome.INCONCLUSIVE, id="undecided"),
        pytest.param((_verdict(Outcome.PASS), _verdict(Outcome.INCONCLUSIVE, required=False)), Outcome.PASS, id="undecided advice"),
        pytest.param((_verdict(Outcome.PASS), _verdict(Outcome.FAIL, required=False)), Outcome.FAIL, id="a failure always counts"),
        pytest.param((_verdict(Outcome.NOT_RUN, required=False),), Outcome.NOT_RUN, id="nothing that counts was run"),
    ],
)
def test_worst_of_verdicts(verdicts: tuple[Verdict, ...], expected: Outcome) -> None:
    """The overall outcome is the worst one; a check that did not run is never a pass where it is required."""
    assert worst(verdicts) is expected


def test_walk_names_every_place_and_ends_on_cycles() -> None:
    """Key paths lead through mappings, lists and the state of objects; a cycle is walked once."""
    loop: list[object] = [1]
    loop.append(loop)
    tree = {"a": {"b": [10, 20]}, "o": ObjectRef(GlobalRef("m", "C"), args=(3,), state={"x": 4}), "loop": loop}
    found = dict(walk(tree))
    assert found["a/b/[1]"] == 20
    assert found["o.<state>/x"] == 4
    assert found["o/<args>/[0]"] == 3
    assert found["loop/[0]"] == 1


def test_to_json_is_plain_and_exact() -> None:
    """Values without a place in JSON get one form each; anything unknown is an error rather than its repr."""
    value = {"p": Path("a/b"), "d": Digest("00"), "o": Outcome.PASS, "n": float("nan"), "i": float("-inf"), "t": (1, 2.5)}
    assert to_json(value) == {"p": "a/b", "d": "sha256:00", "o": "PASS", "n": "nan", "i": "-inf", "t": [1, 2.5]}
    with pytest.raises(TypeError, match="set has no place"):
        to_json({1, 2})
