import dataclasses
import math

import pytest

from exporter.artifacts import Outcome, Verdict
from exporter.report import phrases
from tests.report import builders


@pytest.mark.parametrize(
    ("text", "expected"),
    [("speedup >= 2.00", 2.0), ("no more than 2 % slower", 1 / 1.02), ("no more than 0.5 % slower", 1 / 1.005), ("as fast as can be", None)],
)
def test_required_speedup_is_read_from_its_sentence(text, expected) -> None:
    """The required line of a picture is where the gate is; a sentence without a number draws none."""
    assert phrases.required_speedup(text) == expected


def test_worst_output_is_a_failed_one() -> None:
    """A failed output is worse than any that passes, and NaN is worst of all."""
    evidence = builders.parity("onnx", outputs=("a", "b", "c"), broken=("b",)).evidence
    assert phrases.worst_output(evidence).output == "b"
    with_nan = dataclasses.replace(evidence.outputs[2], outcome=Outcome.FAIL, relative_l2=math.nan)
    assert phrases.worst_output(dataclasses.replace(evidence, outputs=(*evidence.outputs[:2], with_nan))).output == "c"
    assert phrases.worst_output(dataclasses.replace(evidence, outputs=())) is None


@pytest.mark.parametrize(
    ("outcome", "required", "blocks"),
    [
        (Outcome.PASS, True, False),
        (Outcome.FAIL, False, True),
        (Outcome.NOT_RUN, False, False),
        (Outcome.NOT_RUN, True, True),
        (Outcome.INCONCLUSIVE, True, True),
        (Outcome.INCONCLUSIVE, False, False),
    ],
)
def test_what_keeps_a_run_from_passing(outcome, required, blocks) -> None:
    """FAIL always does; NOT_RUN and INCONCLUSIVE do where the check is required, and only then is there advice."""
    verdict = Verdict("parity", "onnx", outcome, "the reason", required=required)
    assert phrases.blocks(verdict) is blocks
    assert phrases.advice(verdict) == (("the reason",) if blocks else ())


def test_sentence_names_every_kind_of_trouble() -> None:
    """What failed, what was not decided and what did not run are told apart."""
    assert phrases.outcome_sentence(builders.mixed()) == (
        "1 of 5 checks could not be decided: latency of onnx; 1 of 5 checks did not run though required: parity of tensorrt."
    )
    assert phrases.outcome_sentence(builders.passing()) == "6 checks passed; 2 not run and not required."
    assert phrases.outcome_sentence(dataclasses.replace(builders.passing(), verdicts=())) == "No check was made."
