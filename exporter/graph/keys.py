"""Cache key of the folded graph."""

from __future__ import annotations

from exporter.artifacts import Digest
from exporter.config import FoldConfig, InputConfig
from exporter.factories import installed_version
from exporter.files import digest_of_settings

__all__ = ["graph_key"]


def graph_key(weights: Digest, model: str, inputs: tuple[InputConfig, ...], outputs: tuple[str, ...], fold: FoldConfig) -> str:
    """Return the digest of everything that decides the folded graph.

    Args:
        weights: of the baked weights.
        model: what ``exporter.factories.model_identity`` says.
        inputs: what is traced with.
        outputs: configured names of the outputs.
        fold: the settings of the fold.
    """
    parts = {
        "fold": fold.to_json(),
        "inputs": [entry.to_json() for entry in inputs],
        "model": model,
        "outputs": list(outputs),
        "versions": {name: installed_version(name) for name in ("exporter", "numpy", "torch")},
        "weights": str(weights),
    }
    return digest_of_settings(parts).hex
