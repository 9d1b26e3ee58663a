"""Baked weights are taken again only where all about them is right; whatever else stands there, they are made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.records import _signature, record_path
from exporter.weights import bake, load_weights


@pytest.fixture
def baked(digits: Path, tmp_path: Path) -> Path:
    """Weights that were just baked, identified by their contents."""
    output = tmp_path / "out" / "w.safetensors"
    bake(open_checkpoint(digits / "digits.pt"), BakeConfig(digest="contents"), output)
    assert load_weights(output) is not None
    return output


def signed(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the record and sign it, as another release of this program on the same machine would have."""
    body = json.loads(record_path(path).read_bytes())
    del body["hmac"]
    edit(body["content"])
    record_path(path).write_text(json.dumps({**body, "hmac": _signature(body)}), encoding="utf-8")


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda content: content["summary"].pop("drift"), id="a field that is missing"),
        pytest.param(lambda content: content["summary"]["candidate"].update(unknown=1), id="a field that is not known"),
        pytest.param(lambda content: content.update(tensors=[1]), id="tensors that are none"),
        pytest.param(lambda content: content.update(summary="text"), id="a summary that is text"),
        pytest.param(lambda content: content.update(provenance=None), id="no provenance"),
        pytest.param(lambda content: content["summary"].update(drift=[{"name": "x"}]), id="a drift without numbers"),
        pytest.param(lambda content: content["provenance"].update(stage="onnx"), id="another stage"),
    ],
)
def test_a_record_of_another_release_is_none(edit: Callable[[dict[str, Any]], object], baked: Path) -> None:
    """A record that is ours and has other fields means that the weights are made again, and raises nothing."""
    signed(baked, edit)
    assert load_weights(baked) is None


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b"{}", b"\xff", b"null"], ids=["empty", "deep", "no fields", "no text", "null"])
def test_a_record_that_is_none(content: bytes, baked: Path) -> None:
    """Whatever stands in the place of the record, nothing is raised."""
    record_path(baked).write_bytes(content)
    assert load_weights(baked) is None


@pytest.mark.parametrize(
    "damage", [lambda content: content[:40], lambda content: b"", lambda content: content[:-1]], ids=["header", "empty", "last byte"]
)
def test_damaged_weights_are_made_again(damage: Callable[[bytes], bytes], baked: Path) -> None:
    """Where the file itself is no safetensors file any more, taking its digest fails, and that is no error of the user's."""
    baked.write_bytes(damage(baked.read_bytes()))
    assert load_weights(baked) is None
