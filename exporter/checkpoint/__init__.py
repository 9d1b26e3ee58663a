"""Stage 1/7: file -> Checkpoint.

A checkpoint becomes a tree of plain values and tensor references. No tensor is loaded, no code of the file is run, and
neither torch nor NumPy is imported. Containers are recognised by their content, never by their suffix.
"""

from __future__ import annotations

from exporter.checkpoint.opening import open_checkpoint

__all__ = ["open_checkpoint"]
