"""The public Python surface."""

from __future__ import annotations

import subprocess
import sys

import pytest

import exporter


def test_exported_names_are_frozen() -> None:
    """A name is added to or taken from the public surface on purpose."""
    assert sorted(exporter.__all__) == [
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


@pytest.mark.parametrize("name", exporter.__all__)
def test_every_name_leads_somewhere_documented(name: str) -> None:
    """Every exported name exists, and says what it is."""
    value = getattr(exporter, name)
    assert name == "__version__" or value.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A misspelt name fails as in any module."""
    with pytest.raises(AttributeError, match="opne_checkpoint"):
        exporter.opne_checkpoint  # noqa: B018


def test_importing_the_package_imports_nothing_heavy() -> None:
    """``import exporter`` is free; the stages come when they are used."""
    script = "import sys, exporter; print([m for m in ('torch', 'onnx', 'numpy', 'click') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "[]"
