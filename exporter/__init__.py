"""From a training checkpoint to a verified engine.

Every command of the ``exporter`` program is a thin shell over the functions named here:

    open_checkpoint -> bake -> fold -> export_onnx -> build_engine -> compare, race -> run

They are imported when they are first used, so that ``import exporter`` stays instant. ``fold`` takes a module of torch's and gives one
back; the stage between ``trace`` and ``export_onnx`` is ``exporter.graph.fold``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporter.checkpoint import open_checkpoint
    from exporter.config import Config, load_config
    from exporter.engine import build_engine
    from exporter.errors import ExporterError
    from exporter.graph import fold_module as fold
    from exporter.graph import trace
    from exporter.graph.replay import apply_plan
    from exporter.onnx_export import export_onnx
    from exporter.pipeline import run
    from exporter.verify import compare, race
    from exporter.weights import average, bake, read_layout

__version__ = "0.1.0"

__all__ = [
    "Config",
    "ExporterError",
    "__version__",
    "apply_plan",
    "average",
    "bake",
    "build_engine",
    "compare",
    "export_onnx",
    "fold",
    "load_config",
    "open_checkpoint",
    "race",
    "read_layout",
    "run",
    "trace",
]

_HOMES = {
    "Config": "exporter.config",
    "ExporterError": "exporter.errors",
    "apply_plan": "exporter.graph.replay",
    "average": "exporter.weights",
    "bake": "exporter.weights",
    "build_engine": "exporter.engine",
    "compare": "exporter.verify",
    "export_onnx": "exporter.onnx_export",
    "fold": "exporter.graph",
    "load_config": "exporter.config",
    "open_checkpoint": "exporter.checkpoint",
    "race": "exporter.verify",
    "read_layout": "exporter.weights",
    "run": "exporter.pipeline",
    "trace": "exporter.graph",
}

_OWN_NAMES = {"fold": "fold_module"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the home defines
    if name not in _HOMES:
        raise AttributeError(f"module 'exporter' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), _OWN_NAMES.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
