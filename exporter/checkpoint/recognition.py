"""Recognising what a file is from its first bytes, and refusing by name what is not read."""

from __future__ import annotations

import enum
import re

from exporter.errors import CheckpointError
from exporter.locations import Location
from exporter.tensors.sources import ByteSource

__all__ = ["Container", "recognise"]

_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"\x93NUMPY", "a NumPy array (.npy)", ""),
    (b"\x1f\x8b", "a gzip file", "unpack it first: gunzip"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file", "unpack it first: unzstd"),
    (b"\xfd7zXZ\x00", "an xz file", "unpack it first: unxz"),
    (b"BZh", "a bzip2 file", "unpack it first: bunzip2"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-zip archive", "unpack it first"),
    (b"GGUF", "a GGUF file (llama.cpp)", ""),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer: the real file was not downloaded", "git lfs pull"),
    (b"\x7fELF", "a program or shared library", ""),
    (b"PK\x05\x06", "an empty zip archive", ""),
)


class Container(enum.Enum):
    """The containers that are read."""

    TORCH_ZIP = "torch zip"
    SAFETENSORS = "safetensors"
    TORCH_LEGACY = "torch legacy"
    PICKLE = "pickle"
    SHARDS = "safetensors in shards"
    TORCH_TAR = "torch tar"
    HDF5 = "HDF5"
    TENSORFLOW = "TensorFlow"
    FLAX = "Flax msgpack"


def recognise(file: ByteSource, path: Location) -> Container:
    """Return the container that the open file is, by its content.

    Raises:
        CheckpointError: E105, saying what the file looks like instead.
    """
    size = file.size_bytes
    head = file.read(2048, 0)
    if head.startswith(b"PK\x03\x04"):
        return Container.TORCH_ZIP
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return Container.HDF5
    # the commonest containers stand above: looking for the others imports their readers
    from exporter.checkpoint.flax_msgpack import is_flax
    from exporter.checkpoint.sorted_table import FOOTER_BYTES, TABLE_MAGIC
    from exporter.checkpoint.torch_legacy import LEGACY_START
    from exporter.checkpoint.torch_tar import is_torch_tar

    end = file.read(22, max(0, size - 22))
    tests = (
        (size >= FOOTER_BYTES and end.endswith(TABLE_MAGIC), Container.TENSORFLOW),
        (head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= max(size, 1 << 27), Container.SAFETENSORS),
        (re.match(LEGACY_START, head, re.DOTALL) is not None, Container.TORCH_LEGACY),
        (head[:1] == b"\x80" and b"\x02" <= head[1:2] <= b"\x05", Container.PICKLE),
        (head.lstrip(b" \t\r\n")[:1] == b"{", Container.SHARDS),
        (is_torch_tar(head), Container.TORCH_TAR),
        (is_flax(head), Container.FLAX),
    )
    found = next((container for is_it, container in tests if is_it), None)
    if found is not None:
        return found
    looks_like, remedy = _describe(head, end)
    facts = {"file": path, "found": looks_like, "expected": "a file of torch.save, safetensors, or a pickle"}
    raise CheckpointError("E105", "the checkpoint is in a container that is not read", facts=facts, help=remedy)


def _describe(head: bytes, tail: bytes) -> tuple[str, str]:
    for signature, name, remedy in _SIGNATURES:
        if head.startswith(signature):
            return name, remedy
    from exporter.checkpoint.tar_directory import TAR_MAGIC

    if head[257:262] == TAR_MAGIC:
        return "a tar archive of a folder", "unpack it first"
    if tail.startswith(b"PK\x05\x06"):
        return "a zip archive with something in front of it", ""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"<":
        return "an HTML or XML page: probably a download that ended on a web page", "download it again"
    if text[:1] in {b"{", b"["}:
        return "JSON text", ""
    if text and all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in head[:512]):
        return "text, or a pickle of protocol 0", ""
    if head[:1] == b"\x08" and b"pytorch" in head:
        return "an ONNX model: it holds a graph already, not a training checkpoint", ""
    return f"nothing that is known here; it begins with {head[:8].hex(' ')}", ""
