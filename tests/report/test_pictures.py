import dataclasses
import math
import re
import xml.etree.ElementTree as ET

import pytest

from exporter.artifacts import Outcome, TensorDrift
from exporter.report import pictures
from exporter.report.picture import draw
from exporter.report.units import shortened
from tests.report import builders


def _texts(picture) -> list[str]:
    return [item.text for item in ET.fromstring(picture.svg).iter("text") if item.text]


def _bake(*drift):
    return dataclasses.replace(builders.passing().bake, drift=drift)


def test_text_stays_text() -> None:
    """Labels can be selected, searched and shown in the page's own fonts."""
    assert "stem.conv" in _texts(pictures.drift_picture(builders.passing().bake))


def test_drift_shows_the_largest_in_their_own_order() -> None:
    """Of many tensors the largest are shown, and they stand in the order in which the weights do."""
    drift = tuple(TensorDrift(f"layer{index}.weight", 0.1 + 0.01 * (index % 7), 1.0) for index in range(60))
    labels = [text for text in _texts(pictures.drift_picture(_bake(*drift))) if text.startswith("layer")]
    numbers = [int(label.removeprefix("layer")) for label in labels]
    assert len(numbers) == 24
    assert numbers == sorted(numbers)
    assert all(number % 7 >= 4 for number in numbers)


@pytest.mark.parametrize(
    "values",
    [(0.0,), (0.0, 0.0), (1e-8, 1.0), (math.nan, 0.5), (math.inf, 0.5), (1e-300, 1e300)],
    ids=["zero", "zeros", "wide", "nan", "infinite", "extreme"],
)
def test_drift_of_any_size_is_drawn(values) -> None:
    """Zeros, very wide ranges and non-finite distances do not stop the report."""
    assert pictures.drift_picture(_bake(*(TensorDrift(f"t{i}", value, value) for i, value in enumerate(values)))) is not None


def test_nothing_to_draw_is_no_picture() -> None:
    """Without drift, histogram, samples or rounds there is no empty frame."""
    race = builders.latency("onnx", 2.0, seed=1).evidence
    output = builders.parity("onnx").evidence.outputs[0]
    assert pictures.drift_picture(_bake()) is None
    assert pictures.error_picture("onnx", output, (), name="e") is None
    assert pictures.error_picture("onnx", dataclasses.replace(output, histogram=(0,) * len(output.histogram)), builders.EDGES, name="e") is None
    assert pictures.latency_picture(dataclasses.replace(race, samples_ms=()), name="l") is None
    assert pictures.rounds_picture(dataclasses.replace(race, round_log_ratios=()), name="r") is None
    assert pictures.speedup_picture([]) is None


@pytest.mark.parametrize(("error", "allowed"), [(0.0, 0.0), (math.nan, 1e-6), (math.inf, 1e-6), (1e-30, 1e-6)])
def test_error_markers_of_any_size_are_drawn(error, allowed) -> None:
    """An exact match and a non-finite error have a histogram, too."""
    output = dataclasses.replace(builders.parity("onnx").evidence.outputs[0], relative_l2=error, allowed=allowed)
    picture = pictures.error_picture("onnx", output, builders.EDGES, name="e")
    assert "error / RMS of the output" in _texts(picture)


def test_exact_elements_are_counted_not_drawn() -> None:
    """Zero has no logarithm: exact elements are named with their share, and a candidate that is exact throughout has its picture."""
    output = builders.parity("onnx").evidence.outputs[0]
    half = (sum(output.histogram[1:]), *output.histogram[1:])
    picture = pictures.error_picture("onnx", dataclasses.replace(output, histogram=half), builders.EDGES, name="e")
    assert dict(picture.keys)["note"] == "50.0 % exact or nearly so, not drawn"
    same = dataclasses.replace(output, histogram=(10,) + (0,) * (len(output.histogram) - 1), relative_l2=0.0, own_error=0.0, allowed=0.0)
    assert dict(pictures.error_picture("onnx", same, builders.EDGES, name="e").keys)["note"].startswith("100.0 %")


def test_long_tail_is_counted_not_hidden() -> None:
    """Samples beyond the right edge are named with their number and the largest time."""
    picture = pictures.latency_picture(builders.latency("onnx", 1.83, seed=4).evidence, name="l")
    assert re.search(r"\d+ samples beyond the right edge, up to [\d.]+ ms", dict(picture.keys)["note"])


@pytest.mark.parametrize("samples", [(2.0,), (2.0, 2.0, 2.0), (0.0, 0.0)], ids=["one", "equal", "zero"])
def test_samples_without_spread_are_drawn(samples) -> None:
    """A clock that always says the same does not stop the report."""
    race = dataclasses.replace(builders.latency("onnx", 1.0, seed=4).evidence, samples_ms=samples, reference_samples_ms=samples)
    assert pictures.latency_picture(race, name="l") is not None


def test_interval_is_told_in_words() -> None:
    """Who cannot see the interval plot hears its numbers."""
    race = builders.latency("onnx", 1.83, seed=4, required="speedup >= 2.00").evidence
    picture = pictures.speedup_picture([(race, Outcome.FAIL)])
    assert picture.description == "onnx 1.83 x, 1.80 to 1.86, FAIL"
    assert ("required", "required 2.00 x") in picture.keys


def test_equal_calls_draw_equal_bytes() -> None:
    """A picture has no date and no random identifier."""
    race = builders.latency("onnx", 1.83, seed=4).evidence
    assert pictures.rounds_picture(race, name="r") == pictures.rounds_picture(race, name="r")


def test_formula_in_a_name_is_not_typeset() -> None:
    """A dollar sign in a name is a dollar sign."""
    picture = draw(lambda axes: axes.set_xlabel("$\\frac{1}{"), name="p", title="t", description="d")
    assert "$\\frac{1}{" in _texts(picture)


@pytest.mark.parametrize(("text", "length", "expected"), [("short", 10, "short"), ("abcdefghijkl", 7, "ab…ijkl"), ("a\x1bb", 10, "a\\x1bb")])
def test_long_labels_lose_their_middle(text, length, expected) -> None:
    """The end of a tensor's name tells it apart, so it stays; control characters are escaped."""
    assert shortened(text, length) == expected
    assert len(shortened(text, length)) <= max(length, len(expected))
