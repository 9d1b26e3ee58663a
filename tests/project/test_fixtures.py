"""The comparison of a newly trained fixture with the committed one can fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.project.compare_fixtures import COMMITTED, differences


def test_committed_fixture_equals_itself() -> None:
    """The committed fixture compared with itself has no fault and the same bits."""
    assert differences(COMMITTED, COMMITTED) == ([], True)


def test_other_samples_are_a_fault(digits: Path) -> None:
    """One changed pixel is found."""
    with np.load(digits / "samples.npz") as archive:
        arrays = {name: archive[name].copy() for name in archive.files}
    arrays["image"][0, 0, 0, 0] += 0.5
    np.savez_compressed(digits / "samples.npz", **arrays)
    assert differences(digits, COMMITTED)[0] == ["the samples differ"]


def test_other_weights_are_a_fault(digits: Path) -> None:
    """Weights of another training are found, also where names and shapes agree."""
    import torch

    path = digits / "digits.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model"] = {name: t + 1 if t.is_floating_point() else t for name, t in checkpoint["model"].items()}
    torch.save(checkpoint, path)
    faults, is_same = differences(digits, COMMITTED)
    assert len(faults) == 1
    assert faults[0].startswith("model/ lies")
    assert not is_same


def test_other_names_are_a_fault(digits: Path) -> None:
    """A tensor more is found."""
    import torch

    path = digits / "digits.pt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["model"]["more"] = torch.zeros(1)
    torch.save(checkpoint, path)
    assert differences(digits, COMMITTED) == (["names, shapes or dtypes of the tensors differ"], False)
