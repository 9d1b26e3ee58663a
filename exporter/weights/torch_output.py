"""Baked weights as a torch file: a state dict for ``torch.load(weights_only=True)``, made without importing torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from exporter.artifacts import TensorSpec, Weights
from exporter.errors import ArtifactError, LayoutError
from exporter.files import atomic_write
from exporter.locations import Location
from exporter.tensors.reading import CHUNK_BYTES
from exporter.tensors.safetensors_header import read_header
from exporter.tensors.sources import ByteSource, open_regular
from exporter.tensors.torch_pickle import STORAGE_CLASSES, state_dict_pickle
from exporter.weights.trainer_form import TrainerForm

if TYPE_CHECKING:
    import zipfile

__all__ = ["TORCH_SUFFIXES", "save_torch"]

TORCH_SUFFIXES = frozenset({".pt", ".pth"})

_ROOT = "archive"
_ALIGNMENT = 64
_LOCAL_HEADER_BYTES, _ZIP64_BYTES = 30, 20
_ZIP64_FROM = 2_000_000_000
"""Members from here on have sizes of 64 bits. ``zipfile`` sees to that by itself from 2 GiB / 1.05 on, which has to lie above."""
_PADDING = 0x4246
_BARE = TrainerForm()


def save_torch(weights: Weights, output: Path, *, form: TrainerForm = _BARE, keep: tuple[Location, ...] = ()) -> None:
    """Write baked weights as a torch file, whole or not at all; the same weights give the same bytes.

    Every tensor has a storage of its own, so loading it never shares memory between two of them. Provenance is a member of the
    archive, ``exporter.json``, which torch does not look at.

    Args:
        weights: as baked.
        output: the file to write.
        form: under which key the state dict stands, as in ``{"state_dict": ...}``, a prefix for its names, and what stands beside it.
        keep: files that must not be overwritten.

    Raises:
        LayoutError: the output is one of ``keep`` (E215), or a dtype has no storage class in torch (E230).
        ArtifactError: the baked weights were altered (E723), or ``output`` cannot be written (E711).
    """
    if output.exists() and any(isinstance(path, Path) and path.exists() and output.samefile(path) for path in (*keep, weights.path)):
        raise LayoutError("E215", "the output would overwrite the checkpoint; nothing was written", facts={"file": output}, help="-o another name")
    for spec in weights.tensors:
        if spec.dtype not in STORAGE_CLASSES:
            facts = {"file": output, "at": spec.name, "found": spec.dtype, "expected": ", ".join(STORAGE_CLASSES)}
            help_text = "--dtype casts it, and safetensors hold it: -o with the suffix .safetensors"
            raise LayoutError("E230", f"a tensor has the dtype {spec.dtype}, for which torch files have no storage", facts=facts, help=help_text)
    import zipfile

    with open_regular(weights.path) as source, atomic_write(output) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        table = read_header(source, weights.path)
        specs = [TensorSpec(entry.name, entry.shape, entry.dtype.name) for entry in table.entries]
        if sorted(specs, key=lambda spec: spec.name) != sorted(weights.tensors, key=lambda spec: spec.name):
            raise ArtifactError("E723", "an artefact differs from its record", facts={"file": weights.path})
        named = [TensorSpec(form.prefix + spec.name, spec.shape, spec.dtype) for spec in specs]
        _add(archive, target, "data.pkl", state_dict_pickle(named, under=form.under, beside=form.beside))
        _add(archive, target, "byteorder", b"little")
        for number, entry in enumerate(table.entries):
            _add_range(archive, target, f"data/{number}", source, entry.begin, entry.end)
        _add(archive, target, "exporter.json", json.dumps(dict(weights.provenance.lineage), sort_keys=True).encode())
        _add(archive, target, "version", b"3\n")


def _add(archive: zipfile.ZipFile, target: BinaryIO, name: str, content: bytes) -> None:
    with archive.open(_member(target, name, len(content)), "w") as member:
        member.write(content)


def _add_range(archive: zipfile.ZipFile, target: BinaryIO, name: str, source: ByteSource, begin: int, end: int) -> None:
    large = end - begin >= _ZIP64_FROM
    buffer = memoryview(bytearray(min(CHUNK_BYTES, end - begin)))
    with archive.open(_member(target, name, end - begin), "w", force_zip64=large) as member:
        while begin < end:
            count = source.read_into(buffer[: min(len(buffer), end - begin)], begin)
            if not count:
                raise ArtifactError("E723", "an artefact differs from its record", facts={"found": f"an end at byte {begin}"})
            member.write(buffer[:count])
            begin += count


def _member(target: BinaryIO, name: str, size_bytes: int) -> zipfile.ZipInfo:
    """Return a member whose content begins at a multiple of 64 bytes, as torch lays them out, so that the file can be mapped."""
    import zipfile

    info = zipfile.ZipInfo(f"{_ROOT}/{name}")
    info.file_size = size_bytes
    header = _LOCAL_HEADER_BYTES + len(info.filename.encode()) + struct.calcsize("<HH")
    begin = target.tell() + header + (_ZIP64_BYTES if size_bytes >= _ZIP64_FROM else 0)
    padding = -begin % _ALIGNMENT
    info.extra = struct.pack("<HH", _PADDING, padding) + b"Z" * padding
    return info
