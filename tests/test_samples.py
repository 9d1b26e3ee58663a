"""Samples are read without pickle, and mistakes in them are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.errors import SampleError
from exporter.samples import read_samples


def test_inputs_and_labels_are_told_apart(tmp_path: Path) -> None:
    """The array of labels is no input; the head keeps both in step."""
    path = tmp_path / "s.npz"
    np.savez(path, image=np.zeros((5, 1, 2, 2), np.float32), label=np.arange(5))
    samples = read_samples(path, labels="label")
    assert list(samples.inputs) == ["image"]
    assert len(samples) == 5
    head = samples.head(2)
    assert len(head) == 2
    assert head.labels is not None
    assert head.labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("arrays", "labels", "code"),
    [
        pytest.param(None, "", "E601", id="missing"),
        pytest.param(b"no zip", "", "E602", id="no npz"),
        pytest.param({"x": np.array([object()])}, "", "E602", id="pickled objects"),
        pytest.param({"x": np.zeros(3)}, "y", "E603", id="no labels"),
        pytest.param({"y": np.zeros(3)}, "y", "E604", id="no input"),
        pytest.param({"x": np.zeros(3), "z": np.zeros(2)}, "", "E605", id="unequal lengths"),
        pytest.param({"x": np.zeros((0, 3))}, "", "E605", id="empty"),
    ],
)
def test_refusals(tmp_path: Path, arrays: object, labels: str, code: str) -> None:
    """Each kind of unusable file has its code and names the file."""
    path = tmp_path / "s.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif isinstance(arrays, dict):
        np.savez(path, **arrays)
    with pytest.raises(SampleError, match=r"s\.npz") as caught:
        read_samples(path, labels=labels)
    assert caught.value.code == code
