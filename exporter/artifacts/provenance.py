"""What an artefact was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Digest", "Provenance"]


@dataclass(frozen=True, slots=True)
class Digest:
    """A SHA-256 and what it was taken over.

    Attributes:
        of: ``file``: every byte; ``contents``: the structure of the file and the CRC-32 that stands for each run of bytes in it,
            which tells an accident from the real thing, not an attack on the CRC-32; ``object``: what a server says identifies a
            remote file; ``tensors``; ``settings``.
    """

    hex: str
    of: Literal["file", "contents", "object", "tensors", "settings"] = "file"

    def __str__(self) -> str:
        """Return ``sha256:<hex>``; ``contents-sha256:<hex>`` or ``object-sha256:<hex>`` where it was not taken over all bytes of a file."""
        return f"{f'{self.of}-' if self.of in {'contents', 'object'} else ''}sha256:{self.hex}"


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an artefact came from, complete enough to make it again."""

    stage: str
    made_from: Mapping[str, str] = field(default_factory=dict)
    """What -> digest: ``{"checkpoint": "sha256:...", "model": "sha256:..."}``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able settings that decided the content."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Library -> version: ``exporter``, ``torch``, ..."""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Facts handed down from the checkpoint on: ``checkpoint``, ``checkpoint_sha256`` (or ``_contents_``, ``_object_``), ``weights``, ..."""
