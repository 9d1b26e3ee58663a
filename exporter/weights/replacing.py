"""A copy of baked weights with some tensors replaced, under a record and a lineage of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifacts import BatchNormStatistics, Provenance, TensorSpec, Weights
from exporter.errors import ArtifactError, LayoutError
from exporter.files import atomic_write
from exporter.tensors import header_bytes, numpy_dtype
from exporter.tensors.checksums import crc32
from exporter.tensors.contents import contents_digest
from exporter.tensors.reading import CHUNK_BYTES
from exporter.tensors.safetensors_header import SafetensorsEntry, read_header
from exporter.tensors.sources import open_regular
from exporter.weights.storing import metadata_of, store_record

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["replace_statistics"]


def replace_statistics(
    weights: Weights, arrays: Mapping[str, NDArray[Any]], output: Path, *, key: str, statistics: BatchNormStatistics, provenance: Provenance
) -> Weights:
    """Write ``weights`` to ``output`` with the tensors in ``arrays`` instead of their own, cast to the dtype that they have there.

    The rest is copied in chunks. The digest is of the same kind as that of ``weights``.

    Args:
        weights: as baked.
        arrays: name -> values, of the shape that the tensor has.
        output: another file than that of ``weights``.
        key: of the record.
        statistics: what is said of the new tensors.
        provenance: whole, lineage included; the lineage goes into the header.

    Raises:
        LayoutError: a value does not fit into the dtype of the file (E213).
        ArtifactError: ``weights`` were altered (E723), or ``output`` cannot be written (E711).
    """
    with open_regular(weights.path) as source, atomic_write(output) as target:
        entries = read_header(source, weights.path).entries
        specs = tuple(TensorSpec(entry.name, entry.shape, entry.dtype.name) for entry in entries)
        if specs != weights.tensors or not set(arrays) <= {spec.name for spec in specs}:
            raise ArtifactError("E723", "an artefact differs from its record", facts={"file": weights.path})
        header = header_bytes(specs, metadata_of(provenance.lineage))
        target.write(header)
        checksums = []
        buffer = memoryview(bytearray(CHUNK_BYTES))
        for entry in entries:
            if entry.name in arrays:
                content = _as_stored(arrays[entry.name], entry, weights.path)
                target.write(content)
                checksums.append(crc32(content, 0))
                continue
            position, checksum = entry.begin, 0
            while position < entry.end:
                count = source.read_into(buffer[: min(len(buffer), entry.end - position)], position)
                if not count:
                    raise ArtifactError("E723", "an artefact differs from its record", facts={"file": weights.path})
                target.write(buffer[:count])
                checksum = crc32(buffer[:count], checksum)
                position += count
            checksums.append(checksum)
    digest = contents_digest(header, checksums) if weights.digest.of == "contents" else None
    drift = tuple(item for item in weights.summary.drift if item.name not in arrays)
    summary = dataclasses.replace(weights.summary, batch_norm=statistics, drift=drift, size_bytes=output.stat().st_size)
    return store_record(output, key, specs, summary, provenance, digest=digest)


def _as_stored(array: NDArray[Any], entry: SafetensorsEntry, path: Path) -> bytes:
    import numpy as np

    if array.shape != entry.shape:
        facts = {"file": path, "at": entry.name, "found": array.shape, "expected": entry.shape}
        raise ArtifactError("E723", "an artefact differs from its record", facts=facts)
    with np.errstate(over="ignore"):
        stored = array.astype(numpy_dtype(entry.dtype.name))
    if array.dtype.kind == "f" and not np.isfinite(stored.astype(np.float64)).all():
        facts = {
            "file": path,
            "at": entry.name,
            "found": f"|value| up to {float(np.abs(array).max()):.4g}",
            "expected": f"what {entry.dtype.name} can hold",
        }
        raise LayoutError("E213", f"a value of {entry.name} does not fit into {entry.dtype.name}", facts=facts, help="--dtype float32, or bfloat16")
    return stored.tobytes()
