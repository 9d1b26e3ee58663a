"""The rule on one output: each way in which it can fail does fail, and what is right passes."""

from __future__ import annotations

import dataclasses
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporter.artifacts import Outcome
from exporter.config import OutputTolerance, ParityConfig
from exporter.errors import InternalError
from exporter.verify import DEFAULTS, HISTOGRAM_EDGES
from exporter.verify.error_numbers import OutputScale, measure_scale
from exporter.verify.output_parity import judge_output
from exporter.verify.tolerance import Tolerance, tolerance_for

RNG = np.random.default_rng(7)
REFERENCE = RNG.standard_normal((6, 10))
NOISE = 1e-7 * RNG.standard_normal((6, 10))
OTHER_NOISE = 1e-7 * RNG.standard_normal((6, 10))


def judge(candidate, reference=REFERENCE, own=None, *, precision="float32", tolerance=DEFAULTS["float32"], typical=OutputScale(), batch=6):  # noqa: B008
    """Judge one batch."""
    own = (reference + NOISE if own is None else own).astype(reference.dtype if reference.dtype.kind in "iub" else np.float32)
    return judge_output("y", [reference], [own], [candidate], batch=batch, precision=precision, tolerance=tolerance, typical=typical)


def right() -> np.ndarray:
    """The reference with another rounding."""
    """Judge one batch."""
    return (REFERENCE + OTHER_NOISE).astype(np.float32)


def test_another_rounding_of_the_same_numbers_passes():
    """The numbers are those of the definition."""
    result = judge(right())
    distance = right().astype(np.float64) - REFERENCE
    norms = np.linalg.norm(distance, axis=1) / np.maximum(np.linalg.norm(REFERENCE, axis=1), np.sqrt(10) * np.sqrt((REFERENCE**2).mean()))
    assert result.outcome is Outcome.PASS
    assert result.reason == ""
    assert result.max_abs == np.abs(distance).max()
    assert any(math.isclose(result.relative_l2, norm) for norm in norms)
    assert math.isclose(result.sqnr_db, 20 * math.log10(np.linalg.norm(REFERENCE) / np.linalg.norm(distance)))
    assert math.isclose(result.cosine, 1.0, abs_tol=1e-12)
    assert result.allowed == pytest.approx(4 * result.own_error + 1e-6)
    assert (result.argmax_equal, result.argmax_total, result.argmax_ties) == (6, 6, 0)
    assert sum(result.histogram) == REFERENCE.size
    assert len(result.histogram) == len(HISTOGRAM_EDGES) - 1


def spoiled(change):
    """The right output after ``change``."""
    candidate = right()
    change(candidate)
    return candidate


@pytest.mark.parametrize(
    ("candidate", "match"),
    [
        pytest.param(spoiled(lambda c: c.__setitem__((3, 4), np.nan)), "NaN or infinity at 1 of 60", id="nan"),
        pytest.param(spoiled(lambda c: c.__setitem__((3, 4), np.inf)), "NaN or infinity at 1 of 60", id="inf"),
        pytest.param(spoiled(lambda c: c.__setitem__((3, 4), -np.inf)), "NaN or infinity at 1 of 60", id="minus-inf"),
        pytest.param(spoiled(lambda c: c.__setitem__((3, 4), c[3, 4] + 1e-3)), r"element \(3, 4\)", id="one-element"),
        pytest.param(right() * np.float32(1.01), "relative L2 ", id="one-percent"),
        pytest.param(right()[::-1].copy(), "relative L2 ", id="rows-reordered"),
        pytest.param(right()[:, ::-1].copy(), "relative L2 ", id="columns-reordered"),
        pytest.param(np.zeros((6, 10), np.float32), "relative L2 ", id="zeros"),
        pytest.param(right().astype(np.float16), "float16, which holds fewer digits", id="half-precision"),
        pytest.param(right().astype(ml_dtypes.bfloat16), "bfloat16, which holds fewer digits", id="bfloat16"),
        pytest.param(right().astype(np.int64), "dtype int64, expected float32", id="integers"),
        pytest.param(right()[:5], r"shape \(5, 10\), expected \(6, 10\)", id="rows-missing"),
        pytest.param(right().reshape(10, 6), r"shape \(10, 6\), expected \(6, 10\)", id="shape"),
        pytest.param(right().T.copy(), r"shape \(10, 6\)", id="transposed"),
    ],
)
def test_wrong_outputs_fail(candidate, match):
    """Every gate of the rule can fail, and says why."""
    result = judge(candidate)
    assert result.outcome is Outcome.FAIL
    assert __import__("re").search(match, result.reason), result.reason


def test_worst_element_is_named_over_all_batches():
    """The first axis of the index counts rows of the feed, not of the batch."""
    parts = np.split(REFERENCE, 3)
    candidate = spoiled(lambda c: c.__setitem__((5, 7), 9.0))
    own = np.split((REFERENCE + NOISE).astype(np.float32), 3)
    result = judge_output("y", parts, own, np.split(candidate, 3), batch=2, precision="float32", tolerance=DEFAULTS["float32"], typical=OutputScale())
    assert result.worst_index == (5, 7)
    assert result.shape == (6, 10)


def test_nonfinite_values_at_the_same_places_pass():
    """NaN where the reference has NaN, infinity of the same sign where it has infinity."""
    reference = REFERENCE.copy()
    reference[0, :3] = np.nan, np.inf, -np.inf
    same = (reference + OTHER_NOISE).astype(np.float32)
    assert judge(same, reference).outcome is Outcome.PASS
    same[0, 1] = -np.inf
    result = judge(same, reference)
    assert (result.outcome, result.num_nonfinite) == (Outcome.FAIL, 1)


def test_finite_value_where_the_reference_has_nan_fails():
    """An engine that hides a NaN does not compute the same function."""
    reference = REFERENCE.copy()
    reference[2, 2] = np.nan
    assert judge(right(), reference).outcome is Outcome.FAIL


def test_zero_reference_passes_only_with_zeros():
    """Relative errors of zero say nothing: an exact zero must be met, unless rounding alone leaves it."""
    zeros = np.zeros((6, 10))
    assert judge(np.zeros((6, 10), np.float32), zeros, own=zeros).outcome is Outcome.PASS
    assert judge(np.full((6, 10), 1e-30, np.float32), zeros, own=zeros).outcome is Outcome.FAIL
    own = np.full((6, 10), 1e-9)
    assert judge(np.full((6, 10), -1e-9, np.float32), zeros, own=own).outcome is Outcome.PASS
    assert judge(np.full((6, 10), 1e-7, np.float32), zeros, own=own).outcome is Outcome.FAIL


def test_zero_feed_is_judged_at_the_output_s_typical_size():
    """An output that is zero on an edge sample is measured against the size it has on recorded ones."""
    zeros = np.zeros((1, 10))
    typical = OutputScale(rms=1.0, own_error=1e-7, own_max_abs=3e-7)
    assert judge(np.full((1, 10), 1e-7, np.float32), zeros, own=zeros, typical=typical, batch=1).outcome is Outcome.PASS
    assert judge(np.full((1, 10), 1e-4, np.float32), zeros, own=zeros, typical=typical, batch=1).outcome is Outcome.FAIL


@pytest.mark.parametrize("shape", [(0, 10), (6, 0), (0,)])
def test_empty_output_passes_if_it_is_as_empty_as_the_reference(shape):
    """No element, no error; another shape fails."""
    empty = np.zeros(shape)
    result = judge(np.zeros(shape, np.float32), empty, own=empty, batch=shape[0])
    assert (result.outcome, result.max_abs, result.worst_index) == (Outcome.PASS, 0.0, ())
    assert judge(np.zeros((2, *shape), np.float32), empty, own=empty, batch=shape[0]).outcome is Outcome.FAIL


@pytest.mark.parametrize(("value", "other"), [(3, 4), (2**62, 2**62 + 1)], ids=["small", "beyond-float64"])
def test_integers_must_be_equal(value, other):
    """By one is too much, also where float64 cannot tell."""
    reference = np.full((4, 3), value, np.int64)
    candidate = reference.copy()
    assert judge(candidate, reference, own=reference, batch=4).outcome is Outcome.PASS
    candidate[1, 2] = other
    result = judge(candidate, reference, own=reference, batch=4)
    assert result.outcome is Outcome.FAIL
    assert "1 of 12 integers differ" in result.reason
    assert result.worst_index == (1, 2)


def test_integers_and_booleans_keep_their_dtype():
    """int32 for int64 and integers for booleans are other outputs."""
    whole = np.ones((2, 2), np.int64)
    assert judge(whole.astype(np.int32), whole, own=whole, batch=2).outcome is Outcome.FAIL
    truth = np.ones((2, 2), bool)
    assert judge(truth, truth, own=truth, batch=2).outcome is Outcome.PASS
    assert judge(~truth, truth, own=truth, batch=2).outcome is Outcome.FAIL
    assert judge(whole, truth, own=truth, batch=2).outcome is Outcome.FAIL


def test_output_without_a_batch_axis_is_one_sample():
    """A scalar and an array that is the same for every row are compared whole."""
    assert judge(np.array(1.0, np.float32), np.array(1.0), own=np.array(1.0), batch=6).outcome is Outcome.PASS
    assert judge(np.array(1.1, np.float32), np.array(1.0), own=np.array(1.0), batch=6).outcome is Outcome.FAIL


def test_complex_outputs_are_compared_as_pairs():
    """An error in the imaginary part counts."""
    reference = REFERENCE[:, :5] + 1j * REFERENCE[:, 5:]
    own = reference.astype(np.complex64)
    kwargs = {"batch": 6, "precision": "float32", "tolerance": DEFAULTS["float32"], "typical": OutputScale()}
    assert judge_output("y", [reference], [own], [reference.astype(np.complex64)], **kwargs).outcome is Outcome.PASS
    assert judge_output("y", [reference], [own], [reference.conj().astype(np.complex64)], **kwargs).outcome is Outcome.FAIL


@settings(max_examples=40)
@given(st.floats(1e-9, 1.0), st.integers(0, 2**32 - 1))
def test_smallest_tolerance_is_the_one_that_just_passes(size, seed):
    """With ``rtol = atol = floor`` set to it the output passes; with a hundredth less it fails."""
    candidate = (REFERENCE + size * np.random.default_rng(seed).standard_normal(REFERENCE.shape)).astype(np.float32)
    smallest = judge(candidate).smallest_rtol
    factor = DEFAULTS["float32"].factor

    def with_tolerance(value):
        return judge(candidate, tolerance=Tolerance(value, value, factor, value, is_atol_fixed=True)).outcome

    assert with_tolerance(smallest * (1 + 1e-9)) is Outcome.PASS
    assert with_tolerance(smallest * 0.99) is Outcome.FAIL


def test_default_atol_grows_with_the_model_s_own_error_and_a_fixed_one_does_not():
    """A network that loses digits by itself is judged by what it loses; a configured atol is taken as it is."""
    own = REFERENCE + 1e-3 * RNG.standard_normal(REFERENCE.shape)
    candidate = (REFERENCE + 1e-3 * RNG.standard_normal(REFERENCE.shape)).astype(np.float32)
    assert judge(candidate, own=own).outcome is Outcome.PASS
    fixed = dataclasses.replace(DEFAULTS["float32"], is_atol_fixed=True)
    assert judge(candidate, own=own, tolerance=fixed).outcome is Outcome.FAIL


def test_flips_of_the_argmax_are_counted_and_ties_told_apart():
    """A flip whose margin both tolerances can bridge is a tie; any other is a difference."""
    reference = np.array([[1.0, 1.0 + 1e-9, 0.0], [2.0, 0.0, 1.0]])
    candidate = np.array([[1.0 + 1e-6, 1.0, 0.0], [0.0, 2.0, 1.0]], np.float32)
    result = judge(candidate, reference, own=reference, batch=2)
    assert (result.argmax_total, result.argmax_equal, result.argmax_ties) == (2, 0, 1)


def test_scale_is_that_of_the_finite_values():
    """RMS and own error leave NaN and infinity out."""
    reference = np.array([[3.0, 4.0, np.nan, np.inf]])
    scale = measure_scale([reference], [reference + np.array([[0.0, 5e-3, 0.0, 0.0]])], 1)
    assert scale.rms == pytest.approx(math.sqrt(12.5))
    assert scale.own_max_abs == pytest.approx(5e-3)


def test_tolerances_come_from_the_output_then_the_section_then_the_precision():
    """The more specific setting wins, each number by itself."""
    config = ParityConfig(rtol=0.5, factor=9.0, outputs={"y": OutputTolerance(rtol=0.25, atol=0.0)})
    chosen = tolerance_for("y", "float16", config)
    assert (chosen.rtol, chosen.atol, chosen.factor, chosen.floor) == (0.25, 0.0, 9.0, DEFAULTS["float16"].floor)
    assert chosen.is_atol_fixed
    assert tolerance_for("z", "float16", config).rtol == 0.5
    assert not tolerance_for("z", "float16", config).is_atol_fixed


def test_unknown_precision_is_our_mistake():
    """A precision without a tolerance cannot be judged."""
    with pytest.raises(InternalError, match="no tolerance"):
        tolerance_for("y", "int4", ParityConfig())
