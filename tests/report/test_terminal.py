import dataclasses
import math
from pathlib import Path

import pytest

from exporter.artifacts import Cost, Folded, Outcome, Refusal, RefusalReason, Verdict
from exporter.report import render_bake, render_fold, render_terminal, render_verdict
from tests.report import builders

GOLDEN = Path(__file__).parent / "golden"


def _bake_and_fold(report):
    lines = render_bake(report.bake, Path("digits.baked.safetensors"))
    return [*lines, "", *render_fold(report.folded, report.refusals, len(report.folded) + len(report.refusals), 171, 159)]


def _verdicts(report):
    return [line for verdict in report.verdicts for line in render_verdict(verdict)]


SCREENS = {
    "run-passing": lambda: render_terminal(builders.passing(), Path(".exporter/runs/2026-11-20-1")),
    "run-failing": lambda: render_terminal(builders.failing(), Path(".exporter/runs/2026-11-20-2")),
    "run-mixed": lambda: render_terminal(builders.mixed()),
    "run-hostile": lambda: render_terminal(builders.hostile()),
    "verdicts-passing": lambda: _verdicts(builders.passing()),
    "verdicts-failing": lambda: _verdicts(builders.failing()),
    "verdicts-mixed": lambda: _verdicts(builders.mixed()),
    "bake-and-fold": lambda: _bake_and_fold(builders.passing()),
    "bake-without-raw": lambda: _bake_and_fold(builders.mixed()),
}


@pytest.mark.parametrize("name", SCREENS)
def test_screen_is_as_recorded(name, update) -> None:
    """The text on the screen is the recorded one; ``--update`` records it anew, for review."""
    path = GOLDEN / f"{name}.txt"
    text = "\n".join(SCREENS[name]()) + "\n"
    if update:
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCREENS)
def test_screen_holds_no_control_characters(name) -> None:
    """A name read from a file cannot drive the terminal, and no line ends in blanks."""
    for line in SCREENS[name]():
        assert line.isprintable()
        assert line == line.rstrip()


def test_last_line_is_the_outcome() -> None:
    """The outcome and the place of the report stand last, where the eye is when a command ends."""
    last = render_terminal(builders.failing(), Path("runs/7"))[-1]
    assert last.startswith("FAIL ")
    assert last.endswith("report: runs/7/report.html")


def test_required_check_that_did_not_run_is_always_shown() -> None:
    """NOT_RUN is left to the row of the stage only where nobody requires the check."""
    report = builders.passing()
    lines = render_terminal(report)
    assert sum(builders.NO_GPU in line for line in lines) == 1
    required = tuple(dataclasses.replace(verdict, required=True) for verdict in report.verdicts)
    assert sum(builders.NO_GPU in line for line in render_terminal(dataclasses.replace(report, verdicts=required))) == 3


def test_failure_says_where_and_what_would_pass() -> None:
    """A parity failure shows the first divergence and the smallest tolerance that would pass."""
    failed = next(verdict for verdict in builders.failing().verdicts if verdict.subject == "onnx")
    text = "\n".join(render_verdict(failed))
    assert "it would pass from rtol 6.0e-02 on" in text
    assert "first divergence: layer2.0.conv2" in text


def test_no_tolerance_is_promised_where_none_passes() -> None:
    """With NaN in the output the message does not offer a tolerance."""
    verdict = builders.parity("onnx", broken=("logits",))
    output = dataclasses.replace(verdict.evidence.outputs[0], smallest_rtol=math.inf, num_nonfinite=3)
    text = "\n".join(render_verdict(dataclasses.replace(verdict, evidence=dataclasses.replace(verdict.evidence, outputs=(output,)))))
    assert "no tolerance would pass it" in text
    assert "3 not finite" in text


def test_not_run_gives_the_reason() -> None:
    """A check that did not run shows what is missing."""
    assert render_verdict(Verdict("latency", "tensorrt", Outcome.NOT_RUN, "no GPU")) == ["latency - NOT_RUN   tensorrt: no GPU"]


def test_nothing_folded_is_one_line() -> None:
    """A model without BatchNorm has nothing to list."""
    assert render_fold((), (), 0, 12, 12) == ["folded 0 of 0 BatchNorm   ops 12 → 12"]


def test_many_kept_are_told_by_reason() -> None:
    """Eight that were kept have a line each; of more, each reason has its count and the first names, and the way to all of them is said."""
    names = [f"layer{number}.norm" for number in range(12)]
    reasons = [RefusalReason.BLOCKED if number % 6 == 0 else RefusalReason.NOT_LINEAR for number in range(12)]
    refusals = tuple(Refusal(name, reason, ("act",)) for name, reason in zip(names, reasons, strict=True))
    assert len(render_fold((), refusals[:8], 8, 12, 12)) == 9
    assert render_fold((), refusals, 12, 30, 30)[1:] == [
        "kept   12   10 not preceded by a linear operator",
        "               layer1.norm, layer2.norm, layer3.norm … and 7 more",
        "             2 an operator between them does not pass the BatchNorm's map on",
        "               layer0.norm, layer6.norm",
        "            --explain shows each of them, and what stands in its way",
    ]


def test_fold_says_what_a_run_costs() -> None:
    """FLOPs and bytes before and after stand on a line of their own, with their units."""
    costs = (Cost(4_100_000_000, 96_200_000), Cost(999, 88_000))
    assert render_fold((), (), 0, 12, 12, costs=costs)[1] == "cost   4.1 G → 999 FLOPs · 96.2 MB → 88.0 kB read and written, each run"


def test_what_else_was_absorbed_has_a_line_of_its_own() -> None:
    """Products and sums that stood alone are no BatchNorms: the first line does not count them."""
    absorbed = (Folded("block.scale", "block.conv", "conv2d+mul", 8, 0.1), Folded("scale", "head", "mul+linear", 8, 2.0, "ahead"))
    assert render_fold((), (), 0, 12, 10, absorbed=absorbed) == [
        "folded 0 of 0 BatchNorm   ops 12 → 10",
        "absorbed 2 products and sums with constants   conv2d+mul 1 · mul+linear 1",
    ]
