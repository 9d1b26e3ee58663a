"""Keep a reference in a ``.npz`` with a keyed record, so that a second run does not compute it again."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from exporter.files import digest_of_settings, write_bytes
from exporter.records import read_record, write_record
from exporter.runners.base import Array
from exporter.verify.feeds import NamedFeed, digest_of_feeds
from exporter.verify.reference import Reference

__all__ = ["load_reference", "reference_key", "save_reference"]

_LAYOUT = 1


def reference_key(*, weights: str, model: str, feeds: tuple[NamedFeed, ...]) -> str:
    """Return the key of a reference: a digest over the weights' digest, the model's identity and the feeds."""
    return digest_of_settings({"layout": _LAYOUT, "weights": weights, "model": model, "feeds": digest_of_feeds(feeds)}).hex


def save_reference(reference: Reference, path: Path, *, key: str) -> None:
    """Write ``reference`` with its feeds to ``path``, and its record beside it.

    Raises:
        ArtifactError: E711, the folder cannot be written to.
    """
    arrays: dict[str, Array] = {}
    feeds = []
    for f, named in enumerate(reference.feeds):
        batches = reference.outputs[named.name]
        inputs, outputs = list(named.feed), list(batches[0]) if batches else []
        feeds.append(
            {"name": named.name, "kind": named.kind, "batch": named.batch, "num_samples": named.num_samples, "inputs": inputs, "outputs": outputs}
        )
        feeds[-1]["num_batches"] = len(batches)
        arrays |= {f"feed{f}.in{i}": named.feed[name] for i, name in enumerate(inputs)}
        arrays |= {f"feed{f}.batch{b}.out{o}": batch[name] for b, batch in enumerate(batches) for o, name in enumerate(outputs)}
    dtypes = {name: array.dtype.name for name, array in arrays.items() if array.dtype.kind == "V"}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array.view(np.uint8) if name in dtypes else array for name, array in arrays.items()})  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())
    content = {
        "layout": _LAYOUT,
        "name": reference.name,
        "precision": reference.precision,
        "device": reference.device,
        "remarks": list(reference.remarks),
        "feeds": feeds,
        "dtypes": dtypes,
    }
    write_record(path, key=key, content=content)


def load_reference(path: Path, *, key: str) -> Reference | None:
    """Return the reference in ``path`` if it is whole, ours and made from ``key``; None means: measure it again."""
    record = read_record(path, key=key)
    if record is None or record.get("layout") != _LAYOUT:
        return None
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: _restore(archive[name], record["dtypes"].get(name)) for name in archive.files}
    feeds, outputs = [], {}
    for f, entry in enumerate(record["feeds"]):
        feed = {name: arrays[f"feed{f}.in{i}"] for i, name in enumerate(entry["inputs"])}
        feeds.append(NamedFeed(entry["name"], entry["kind"], feed, entry["batch"], entry["num_samples"]))
        outputs[entry["name"]] = _batches(arrays, f, entry)
    return Reference(record["name"], record["precision"], record["device"], outputs, tuple(feeds), tuple(record["remarks"]))


def _batches(arrays: Mapping[str, Array], feed: int, entry: Mapping[str, Any]) -> tuple[dict[str, Array], ...]:
    names = list(entry["outputs"])
    return tuple({name: arrays[f"feed{feed}.batch{b}.out{o}"] for o, name in enumerate(names)} for b in range(entry["num_batches"]))


def _restore(array: Array, dtype: str | None) -> Array:
    if dtype is None:
        return array
    import ml_dtypes

    return array.view(getattr(ml_dtypes, dtype))
