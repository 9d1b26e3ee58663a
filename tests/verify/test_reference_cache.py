"""A kept reference: the same bytes back for the same key, and nothing for anything else."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.verify import NamedFeed, Reference, load_reference, reference_key, save_reference


@pytest.fixture
def reference() -> Reference:
    """Two feeds, two outputs of different dtypes."""
    feeds = (
        NamedFeed("4 samples, batch 2", "recorded", {"x": np.arange(8, dtype=np.float32).reshape(4, 2)}, 2, 4),
        NamedFeed("zeros", "edge", {"x": np.zeros((1, 2), np.float32)}, 1, 1),
    )
    outputs = {named.name: tuple({"y": chunk["x"].astype(np.float64) / 3, "k": chunk["x"].argmax(1)} for chunk in named.chunks()) for named in feeds}
    return Reference("reference", "float64", "cpu", outputs, feeds, ("a remark",))


def test_reference_comes_back_whole(reference, tmp_path):
    """Feeds, outputs, dtypes and remarks are as they were."""
    path = tmp_path / "digits.reference.npz"
    save_reference(reference, path, key="k")
    again = load_reference(path, key="k")
    assert (again.name, again.precision, again.device, again.remarks) == ("reference", "float64", "cpu", ("a remark",))
    assert [(f.name, f.kind, f.batch, f.num_samples) for f in again.feeds] == [(f.name, f.kind, f.batch, f.num_samples) for f in reference.feeds]
    for before, after in zip(reference.feeds, again.feeds, strict=True):
        np.testing.assert_array_equal(before.feed["x"], after.feed["x"])
        for old, new in zip(reference.outputs[before.name], again.outputs[before.name], strict=True):
            assert {name: (a.dtype, a.tobytes()) for name, a in old.items()} == {name: (a.dtype, a.tobytes()) for name, a in new.items()}


def test_other_key_altered_file_or_no_record_mean_measure_again(reference, tmp_path):
    """None, never a reference that may be another one's."""
    path = tmp_path / "digits.reference.npz"
    assert load_reference(path, key="k") is None
    save_reference(reference, path, key="k")
    assert load_reference(path, key="other") is None
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(bytes(content))
    assert load_reference(path, key="k") is None


def test_key_depends_on_weights_model_and_feeds(reference):
    """Each part counts, down to one value of one feed."""
    feeds = reference.feeds
    changed = {"x": feeds[0].feed["x"] + np.float32(1e-6)}
    other = (NamedFeed(feeds[0].name, feeds[0].kind, changed, feeds[0].batch, feeds[0].num_samples), *feeds[1:])
    keys = {
        reference_key(weights="w", model="m", feeds=feeds),
        reference_key(weights="v", model="m", feeds=feeds),
        reference_key(weights="w", model="n", feeds=feeds),
        reference_key(weights="w", model="m", feeds=other),
    }
    assert len(keys) == 4
    assert reference_key(weights="w", model="m", feeds=feeds) in keys
