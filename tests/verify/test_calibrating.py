"""Ranges in 8 bits come from the samples, the same ones for the same samples."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from exporter.onnx_export import open_onnx
from exporter.verify import calibrate
from exporter.verify.thresholds import BINS, clipped_share, threshold_of

TWICE = (
    '<ir_version: 9, opset_import: ["": 20]> g (float[{batch},4] x) => (float[{batch},4] y) <float two = {{2.0}}> {{ d = Mul(x, two) y = Neg(d) }}'
)


def histogram(values: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the counts of the magnitudes, and the largest."""
    largest = float(np.abs(values).max())
    return np.histogram(np.abs(values), BINS, (0.0, largest))[0], largest


def threshold(values: np.ndarray, method: str, precision: str = "int8", percentile: float = 99.0) -> float:
    return threshold_of(*histogram(values), method, precision=precision, percentile=percentile)


def model_at(path, batch="N"):
    path.write_bytes(onnx.parser.parse_model(TWICE.format(batch=batch)).SerializeToString())
    return open_onnx(path)


def test_minmax_keeps_everything():
    """One outlier decides."""
    values = np.append(np.random.default_rng(0).standard_normal(10_000), 50.0)
    assert threshold(values, "minmax") == 50.0


def test_percentile_keeps_so_many_of_a_hundred():
    """To the width of a bin; all of them at 100."""
    values = np.random.default_rng(0).uniform(-1, 1, 100_000)
    assert threshold(values, "percentile") == pytest.approx(0.99, abs=2e-3)
    assert threshold(values, "percentile", percentile=100.0) == np.abs(values).max()


def test_entropy_cuts_an_outlier_off_and_nothing_else():
    """A lonely value far out is worth less than the digits of the others; values that fill their range are all kept."""
    values = np.random.default_rng(0).standard_normal(100_000)
    with_outlier = threshold(np.append(values, 40.0), "entropy")
    assert 3.0 < with_outlier < 8.0
    assert threshold(np.random.default_rng(0).uniform(-1, 1, 100_000), "entropy") > 0.95


def test_entropy_counts_no_zeros():
    """Half of what a rectifier leaves is zero, which every threshold keeps: the answer is that of the rest."""
    values = np.abs(np.random.default_rng(0).standard_normal(100_000)) + 0.01
    assert threshold(np.append(values, np.zeros(100_000)), "entropy") == threshold(values, "entropy")


def test_fp8_keeps_outliers():
    """Its levels are dense near zero, so that a wide range costs the small values nothing."""
    values = np.append(np.random.default_rng(0).standard_normal(100_000), 40.0)
    assert threshold(values, "entropy", "fp8") > threshold(values, "entropy", "int8")


def test_the_share_that_is_cut_off():
    """Counted in the same bins."""
    counts, largest = histogram(np.arange(1, BINS + 1) / BINS)
    assert clipped_share(counts, largest, largest) == 0.0
    assert clipped_share(counts, largest, largest / 2) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("batch", ["N", "3"], ids=["any batch", "batch of 3"])
def test_every_sample_counts(tmp_path, batch):
    """The largest magnitude of inputs, values within and outputs is found wherever it is, in batches of any size."""
    x = np.random.default_rng(0).uniform(-1, 1, (10, 4)).astype(np.float32)
    x[9, 1] = -7.0
    found = calibrate(model_at(tmp_path / "net.onnx", batch), ["x", "d", "y"], {"x": x}, "minmax", precision="int8", percentile=100.0)
    assert {name: (measured.largest, measured.kept, measured.clipped) for name, measured in found.items()} == {
        "x": (7.0, 7.0, 0.0),
        "d": (14.0, 14.0, 0.0),
        "y": (14.0, 14.0, 0.0),
    }


def test_the_same_samples_give_the_same_ranges(tmp_path):
    """Whatever the threads; and what is cut off is told."""
    x = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    model = model_at(tmp_path / "net.onnx")
    one, two = (calibrate(model, ["d"], {"x": x}, "percentile", precision="int8", percentile=90.0, threads=threads) for threads in (1, 2))
    assert one == two
    assert 0.08 < one["d"].clipped < 0.1


@pytest.mark.parametrize(("value", "kept"), [(np.nan, np.nan), (np.inf, np.inf), (0.0, 0.0)])
def test_ranges_that_are_none(tmp_path, value, kept):
    """NaN, infinity and nothing but zeros are said, not hidden by the other values."""
    x = np.zeros((5, 4), np.float32) if value == 0 else np.ones((5, 4), np.float32)
    x[2, 2] = value
    found = calibrate(model_at(tmp_path / "net.onnx"), ["d"], {"x": x}, "entropy", precision="int8", percentile=99.0)
    np.testing.assert_equal(found["d"].kept, kept)
