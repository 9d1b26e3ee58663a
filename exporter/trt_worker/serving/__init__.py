"""The worker's side. ``boot.py`` is the program; ``loop`` speaks the protocol; ``engine_service`` answers for TensorRT."""

from __future__ import annotations

__all__: list[str] = []
