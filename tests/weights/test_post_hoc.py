"""Post-hoc EMA: the algebra against numeric integration, the names of snapshots, and what is written of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from exporter.averaging import average_snapshots
from exporter.checkpoint import open_checkpoint
from exporter.config import Config
from exporter.errors import LayoutError
from exporter.tensors import read_tensor
from exporter.weights.post_hoc import MAX_PROFILE_ERROR, fit_profile, gamma_of, post_hoc, snapshots_of

WIDTHS = (0.05, 0.28)
NUM_POINTS = 200_001


def profile(t: NDArray[np.float64], gamma: float, step: float) -> NDArray[np.float64]:
    """Return the power-function profile on the points ``t``."""
    return np.where(t <= step, (gamma + 1) / step * (t / step) ** gamma, 0.0)


def named(*names: str) -> list[Path]:
    """Return paths of files that need not be there."""
    return [Path(name) for name in names]


def run_of(num_steps: int, every: int = 100) -> list[Path]:
    """Return the names that a training run gives its snapshots."""
    return named(*(f"{index}.{step * every}.pt" for step in range(1, num_steps + 1) for index in range(2)))


@pytest.mark.parametrize("sigma_rel", [0.001, 0.02, 0.05, 0.1, 0.2, 0.28, 0.2886, 0.3])
def test_width_of_the_profile(sigma_rel: float) -> None:
    """The profile of the exponent has the standard deviation that was asked for, by moments and by numeric integration."""
    gamma = gamma_of(sigma_rel)
    assert np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(sigma_rel, rel=1e-9)
    if gamma > 0.5:
        t = (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS
        p = profile(t, gamma, 1.0)
        assert np.sqrt(np.mean((t - np.mean(t * p)) ** 2 * p)) == pytest.approx(sigma_rel, rel=1e-4)


def test_fit_is_least_squares_by_numeric_integration() -> None:
    """Coefficients and error are those of a dense least-squares fit of the sampled profiles."""
    steps, gammas, gamma = [100, 100, 200, 200, 400, 400], [gamma_of(width) for width in WIDTHS] * 3, gamma_of(0.15)
    t = (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS * 400
    columns = np.stack([profile(t, one, step) for step, one in zip(steps, gammas, strict=True)], axis=1)
    wanted = profile(t, gamma, 400)
    expected, *_ = np.linalg.lstsq(columns, wanted, rcond=None)
    fit = fit_profile(steps, gammas, 400, gamma)
    np.testing.assert_allclose(fit.coefficients, expected, rtol=1e-3, atol=1e-4)
    assert fit.error == pytest.approx(np.linalg.norm(columns @ expected - wanted) / np.linalg.norm(wanted), rel=1e-3)


@pytest.mark.parametrize("scale", [1, 10**12])
@pytest.mark.parametrize("widths", [WIDTHS, (0.0005, 0.28)])
def test_large_steps_and_exponents_stay_finite(scale: int, widths: tuple[float, float]) -> None:
    """The coefficients do not depend on the unit of the steps, nor overflow where t^gamma would."""
    gammas = [gamma_of(width) for width in widths]
    steps = [step for step in range(1, 33) for _ in gammas]
    fit, scaled = (fit_profile([step * by for step in steps], gammas * 32, 32 * by, gamma_of(0.15)) for by in (1, scale))
    assert np.isfinite(fit.coefficients).all()
    np.testing.assert_allclose(scaled.coefficients, fit.coefficients, rtol=1e-6, atol=1e-9)


def test_a_kept_width_is_its_last_snapshot() -> None:
    """Asked for a width that was kept, the last snapshot of it counts 1 and all others 0."""
    snapshots = snapshots_of(run_of(8))
    coefficients = post_hoc(snapshots, 0.28, WIDTHS).coefficients
    assert (snapshots[-1].index, snapshots[-1].step) == (1, 800)
    np.testing.assert_allclose(coefficients, [0.0] * 15 + [1.0], atol=1e-9)


@pytest.mark.parametrize(
    ("paths", "sigma_rel", "widths", "code"),
    [
        pytest.param(named("a.pt"), 0.1, WIDTHS, "E265", id="another name"),
        pytest.param(named("0.0.pt"), 0.1, WIDTHS, "E265", id="no step"),
        pytest.param(named("0.7.pt", "x/0.7.pt"), 0.1, WIDTHS, "E265", id="one step twice"),
        pytest.param(run_of(8), 0.1, (), "E266", id="widths not given"),
        pytest.param(run_of(8), 0.1, (0.05, 0.1, 0.28), "E266", id="widths without snapshots"),
        pytest.param([*run_of(8), Path("2.800.pt")], 0.1, WIDTHS, "E266", id="a snapshot without width"),
        pytest.param(run_of(8), 0.05, (0.05, 0.05), "E266", id="one width twice"),
        pytest.param(run_of(8), 0.1, (0.05, 0.31), "E266", id="a width of no profile"),
        pytest.param(run_of(8), float("nan"), WIDTHS, "E266", id="no number"),
        pytest.param(run_of(8), 0.04, WIDTHS, "E267", id="narrower than all"),
        pytest.param(run_of(8), 0.29, WIDTHS, "E267", id="wider than all"),
        pytest.param(run_of(2), 0.1, WIDTHS, "E268", id="too few"),
    ],
)
def test_refused(paths: list[Path], sigma_rel: float, widths: tuple[float, ...], code: str) -> None:
    """Names, widths and fits that make no average of the width are errors, each with its code."""
    with pytest.raises(LayoutError) as caught:
        post_hoc(snapshots_of(paths), sigma_rel, widths)
    assert caught.value.code == code


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    """A folder without snapshots is said to have none."""
    (tmp_path / "last.pt").touch()
    with pytest.raises(LayoutError, match="E265"):
        snapshots_of([tmp_path])


def test_limit_of_the_error() -> None:
    """Eight snapshots of each default width fit a width between them, and what is shown says how well."""
    combination = post_hoc(snapshots_of(run_of(8)), 0.1, WIDTHS)
    error = float(dict(combination.facts)["profile_error"])
    assert 0.01 < error < MAX_PROFILE_ERROR
    assert f"relative error of the profile {error:.1e}" in combination.remarks[0]
    assert "coefficients of 16 snapshots: 1.800.pt +2.6500, 1.700.pt -" in combination.remarks[1]


def test_written_sum(tmp_path: Path) -> None:
    """The written tensors are the sum in float64, rounded once; constants and counters come from the last step, whatever its order."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    for path in run_of(8):
        index, step = map(int, path.stem.split("."))
        weights = torch.full((3,), float(step + index), dtype=torch.float16)
        own = {"w": weights, "fixed": torch.arange(5), "bn.num_batches_tracked": torch.tensor(step), "bn.running_mean": weights}
        state = {f"ema_model.{name}": tensor.half() for name, tensor in own.items()}
        torch.save({"initted": torch.ones((), dtype=torch.float16), "step": torch.tensor(step).half(), **state}, folder / path.name)
    output = tmp_path / "out.safetensors"
    weights, opened = average_snapshots(Config(), [folder], output, sigma_rel=0.1, sigma_rels=WIDTHS, progress=lambda *_: True)
    arrays = {name: read_tensor(ref) for name, ref in open_checkpoint(output).root.items()}
    combination = post_hoc(snapshots_of([folder]), 0.1, WIDTHS)
    exact = sum(c * (s.step + s.index) for c, s in zip(combination.coefficients, snapshots_of([folder]), strict=True))
    np.testing.assert_array_equal(arrays["w"], np.full(3, exact).astype(np.float16))
    np.testing.assert_array_equal(arrays["fixed"], np.arange(5))
    assert arrays["bn.num_batches_tracked"] == 800
    assert [checkpoint.path.name for checkpoint in opened][-2:] == ["0.800.pt", "1.800.pt"]
    lineage = weights.provenance.lineage
    assert (lineage["weights"], lineage["sigma_rel"], lineage["sigma_rels"], lineage["step"]) == ("post-hoc:ema", "0.1", "0.05, 0.28", "800")
    assert float(lineage["checkpoint_16_share"]) == combination.coefficients[-1]
    assert weights.summary.remarks == combination.remarks
