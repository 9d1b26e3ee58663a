"""A stored graph comes back as it was, or not at all: nothing is loaded that this machine did not write."""

from __future__ import annotations

import json

import pytest
import torch
from networks import Sequence, folded, trained
from torch import nn

from exporter.graph import load_graph, save_graph
from exporter.graph.storage import unfused_path
from exporter.records import record_path, write_record


@pytest.fixture
def stored(tmp_path):
    """A folded graph on disk."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3, bias=False), bn=trained(nn.BatchNorm2d(4)), act=nn.ReLU(), last=nn.BatchNorm2d(4)))
    return save_graph(graph, tmp_path / "net.fused.pt2", key="key")


def test_graph_comes_back_whole(stored):
    """Both programs, the folds, the refusals, the names and the provenance survive."""
    loaded = load_graph(stored.path, key="key")
    for name in ("inputs", "outputs", "folded", "refusals", "num_batch_norms", "ops_before", "ops_after", "provenance", "sketch", "path", "digest"):
        assert getattr(loaded, name) == getattr(stored, name), name
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded.folded_program.module()(x), stored.folded_program.module()(x))
        assert torch.equal(loaded.unfused.module()(x), stored.unfused.module()(x))


def test_graph_of_an_earlier_release_is_made_again(stored):
    """A record without a sketch cannot be explained, so it is not used."""
    path = record_path(stored.path)
    content = json.loads(path.read_text())["content"]
    assert load_graph(stored.path, key="key").sketch == stored.sketch
    del content["sketch"]
    write_record(stored.path, key="key", content=content)
    assert load_graph(stored.path, key="key") is None


def test_same_graph_same_bytes(stored, tmp_path):
    """Saving again gives the same digest."""
    assert save_graph(stored, tmp_path / "other" / "net.fused.pt2", key="key").digest == stored.digest


@pytest.mark.parametrize("damage", ["key", "folded", "unfused", "record", "missing", "foreign"])
def test_graph_that_is_not_provably_ours_is_not_loaded(stored, damage, monkeypatch):
    """An altered file, an altered record, another key or a missing half: make it again, and torch never sees the bytes."""
    paths = {"folded": stored.path, "unfused": unfused_path(stored.path)}
    if damage in paths:
        content = bytearray(paths[damage].read_bytes())
        content[len(content) // 2] ^= 1
        paths[damage].write_bytes(content)
    elif damage == "record":
        body = json.loads(record_path(stored.path).read_text())
        body["content"]["num_batch_norms"] = 7
        record_path(stored.path).write_text(json.dumps(body))
    elif damage == "missing":
        unfused_path(stored.path).unlink()
    elif damage == "foreign":
        monkeypatch.setenv("EXPORTER_STATE_DIR", str(stored.path.parent / "another machine"))

    def never(*_: object) -> None:
        raise AssertionError("torch.export.load was called")

    monkeypatch.setattr(torch.export, "load", never)
    assert load_graph(stored.path, key="other" if damage == "key" else "key") is None


def test_halves_of_different_graphs_do_not_mix(stored, tmp_path):
    """The unfolded program has to be the one that the record of the folded one names."""
    other = save_graph(folded(Sequence(conv=nn.Conv2d(3, 4, 3))), tmp_path / "other.pt2", key="key")
    for suffix in ("", ".json"):
        source = unfused_path(other.path)
        target = unfused_path(stored.path)
        (target.parent / (target.name + suffix)).write_bytes((source.parent / (source.name + suffix)).read_bytes())
    assert load_graph(stored.path, key="key") is None
