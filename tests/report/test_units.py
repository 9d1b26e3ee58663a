import math

import pytest

from exporter.report import units


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (units.error, 3.14e-7, "3.1e-07"),
        (units.error, 0.0, "0"),
        (units.error, math.inf, "inf"),
        (units.error, math.nan, "nan"),
        (units.decibels, 130.24, "130 dB"),
        (units.decibels, math.inf, "inf dB"),
        (units.milliseconds, 0.0412, "41.2 µs"),
        (units.milliseconds, 0.9999, "1.00 ms"),
        (units.milliseconds, 2.134, "2.13 ms"),
        (units.milliseconds, 9.996, "10.0 ms"),
        (units.milliseconds, 213.4, "213 ms"),
        (units.milliseconds, 999.6, "1.00 s"),
        (units.milliseconds, 12345.0, "12.3 s"),
        (units.milliseconds, math.nan, "nan ms"),
        (units.seconds_text, 0.0, "0.0 s"),
        (units.seconds_text, 0.0421, "42 ms"),
        (units.seconds_text, 0.0996, "0.1 s"),
        (units.seconds_text, 0.42, "0.4 s"),
        (units.seconds_text, 59.96, "1 min 00 s"),
        (units.seconds_text, 125.0, "2 min 05 s"),
        (units.seconds_text, 3725.0, "1 h 02 min"),
        (units.bytes_text, 999, "999 B"),
        (units.bytes_text, 6_312_480, "6.3 MB"),
        (units.bytes_text, 999_999, "1.0 MB"),
        (units.bytes_text, 4_200_000_000_000, "4.2 TB"),
        (units.ratio, 1.834, "1.83 x"),
        (units.percent, 0.97777, "97.8 %"),
        (units.confidence, 0.999333, "99.93 %"),
        (units.confidence, 0.999, "99.9 %"),
        (units.shape_text, ("batch", 10), "batch x 10"),
        (units.shape_text, (), "scalar"),
    ],
)
def test_number_is_shown_with_unit_and_significant_digits(function, value, expected) -> None:
    """A number carries its unit and no more digits than it is worth, also where rounding reaches the next unit."""
    assert function(value) == expected


@pytest.mark.parametrize(("count", "expected"), [(0, "0 rounds"), (1, "1 round"), (2, "2 rounds")])
def test_nouns_agree_with_their_count(count, expected) -> None:
    """One is singular, everything else plural."""
    assert units.plural(count, "round") == expected


@pytest.mark.parametrize(
    ("metric", "value", "shown", "difference"),
    [("accuracy", -0.012, "-1.2 %", "-1.2 points"), ("mAP50", 0.51234, "0.5123", "+0.5123"), ("bleu", 0.0, "0", "same")],
)
def test_only_accuracies_are_percentages(metric, value, shown, difference) -> None:
    """A metric of unknown scale keeps its own numbers."""
    assert (units.metric_value(metric, value), units.metric_difference(metric, value)) == (shown, difference)
