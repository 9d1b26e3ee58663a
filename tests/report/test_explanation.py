"""The drawing of a BatchNorm's surroundings shows the way of the data, the culprits and the remedy, whatever the terminal."""

from __future__ import annotations

import dataclasses

import pytest

from exporter.artifacts import Explanation, Neighbour
from exporter.report import render_explanations
from tests.report.builders import HOSTILE


def node(module: str, kind: str, place: str, step: int, reads: tuple[int, ...] = (), **marks: object) -> Neighbour:
    """Return a neighbour of 4 channels."""
    return Neighbour(module, kind, "other", "N x 4 x 8 x 8", place, step, reads, **marks)  # type: ignore[arg-type]


def between(name: str = "norm") -> Explanation:
    """Return a BatchNorm between two activations."""
    neighbours = (
        node("conv", "conv2d", "before", 2),
        node("act1", "relu", "before", 1, (0,), is_culprit=True),
        node(name, "batch_norm", "itself", 0, (1,)),
        node("act2", "gelu", "behind", 1, (2,), is_culprit=True, is_output=True),
    )
    return Explanation(name, "kept", "not preceded by a linear operator: behind act1 (relu); act2 (gelu) reads it", "train it anew", neighbours)


def branches() -> Explanation:
    """Return a BatchNorm behind a concatenation, with another reader, two readers of its own and more that is not shown."""
    neighbours = (
        node("", "the input x", "before", 3),
        node("left", "conv2d", "before", 2, (0,)),
        node("right", "relu", "before", 2, (0,), is_culprit=True),
        node("cat", "cat", "before", 1, (1, 2), num_hidden=7),
        node("tap", "sigmoid", "beside", 1, (3,), is_culprit=True),
        node("norm", "batch_norm", "itself", 0, (3,)),
        node("one", "conv2d", "behind", 1, (5,)),
        node("two", "relu_", "behind", 1, (5,)),
        node("three", "conv2d", "behind", 2, (7,), is_output=True),
    )
    return Explanation("norm", "kept", "the producer's output has another consumer", "copy it", neighbours)


def test_chain() -> None:
    """A chain stands in one column, from the producer down to the output; culprits and the BatchNorm have marks and words."""
    assert render_explanations([between()], width=90) == [
        "",
        "norm   kept",
        "    ○ conv     conv2d       N x 4 x 8 x 8",
        "    ✗ act1     relu         N x 4 x 8 x 8   in the way",
        "    ■ norm     batch_norm   N x 4 x 8 x 8   kept",
        "    ✗ act2     gelu         N x 4 x 8 x 8   in the way",
        "    ▷ output",
        "    why  not preceded by a linear operator: behind act1 (relu); act2 (gelu) reads it",
        "    help train it anew",
    ]


def test_branches_come_together_and_part() -> None:
    """Producers come together above, readers part below, another reader hangs beside the way, and what is not shown is counted."""
    assert render_explanations([branches()], width=90)[2:11] == [
        "      ○ the input x   the input x   N x 4 x 8 x 8",
        "    ┌─○ left          conv2d        N x 4 x 8 x 8",
        "    │ ○ the input x   the input x   N x 4 x 8 x 8",
        "    ├─✗ right         relu          N x 4 x 8 x 8   in the way",
        "    ○ cat             cat           N x 4 x 8 x 8   7 more before it",
        "    ├─✗ tap           sigmoid       N x 4 x 8 x 8   in the way",
        "    ■ norm            batch_norm    N x 4 x 8 x 8   kept",
        "    ├─○ one           conv2d        N x 4 x 8 x 8",
        "    └─○ two           relu          N x 4 x 8 x 8",
    ]


def test_plain_terminals_get_ascii() -> None:
    """Where the terminal knows no more, every character is ASCII, and each mark still differs from the others."""
    lines = render_explanations([between("n\u00e4me"), branches()], width=80, plain=True)
    assert all(line.isascii() for line in lines)
    assert "    x act1     relu         N x 4 x 8 x 8   in the way" in lines
    assert "    # n?me     batch_norm   N x 4 x 8 x 8   kept" in lines
    assert any(line.startswith("    ,-o left") for line in lines)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_lines_fit_the_terminal(width) -> None:
    """Long names lose their middle before a line gets too long; the reason is wrapped."""
    long = "backbone.stages.3.blocks.17.attention.projection.normalisation.batch_norm"
    lines = render_explanations([between(long)], width=width)
    assert max(map(len, lines)) <= width
    assert (any("…" in line for line in lines)) == (width < 200)


def test_names_cannot_drive_the_terminal() -> None:
    """Control characters in a name are escaped."""
    lines = render_explanations([between(HOSTILE)], width=120)
    assert all(line.isprintable() for line in lines)


def test_lines_of_code_stand_beside_what_matters() -> None:
    """The BatchNorm and the culprits name the line of code that calls them; the others do not, to keep the drawing quiet."""
    item = between()
    sourced = tuple(dataclasses.replace(one, source=f"net.py:{number}") for number, one in enumerate(item.neighbours))
    text = "\n".join(render_explanations([dataclasses.replace(item, neighbours=sourced)]))
    assert "in the way · net.py:1" in text
    assert "kept · net.py:2" in text
    assert "net.py:0" not in text


def test_nothing_to_explain_is_said() -> None:
    """Where nothing was kept the screen says so, and how to see the others."""
    assert "nothing was kept" in " ".join(render_explanations([]))


def test_without_surroundings_the_reason_remains() -> None:
    """A BatchNorm of a nested graph has its reason and no drawing."""
    item = Explanation("branch.bn", "kept", "not preceded by a linear operator", "nothing")
    assert render_explanations([item]) == ["", "branch.bn   kept", "    why  not preceded by a linear operator", "    help nothing"]
