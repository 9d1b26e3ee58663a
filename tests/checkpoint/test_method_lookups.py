"""``getattr`` in a pickle: the one lookup that a trainer writes is let pass, anything near it is not."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from exporter.checkpoint import open_checkpoint


class HistoryBuffer:
    """A class under the name of mmengine's."""

    def min(self) -> float:
        """Return nothing of interest."""
        return 0.0

    def other(self) -> float:
        """Return nothing of interest either."""
        return 0.0


HistoryBuffer.__module__ = "mmengine.logging.history_buffer"
for method in (HistoryBuffer.min, HistoryBuffer.other):
    method.__module__ = HistoryBuffer.__module__


@pytest.fixture
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pickle find the class while it writes."""
    module = types.ModuleType(HistoryBuffer.__module__)
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, HistoryBuffer.__module__, module)


class Reduced:
    """Pickles as a call."""

    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        """Return the call."""
        return self.call, self.args


@pytest.mark.usefixtures("_importable")
def test_the_methods_of_a_log_buffer_are_no_calls(tmp_path: Path) -> None:
    """mmengine's HistoryBuffer carries its own methods, which older pickle protocols write as getattr."""
    torch.save({"log": {"min": HistoryBuffer.min}}, tmp_path / "made.pt")
    checkpoint = open_checkpoint(tmp_path / "made.pt")
    assert "getattr" in {name.name for name in checkpoint.globals}
    assert checkpoint.calls == {}


@pytest.mark.usefixtures("_importable")
@pytest.mark.parametrize(
    "value",
    [
        Reduced(getattr, HistoryBuffer, "other"),
        Reduced(getattr, HistoryBuffer, "__init__"),
        Reduced(getattr, HistoryBuffer, "min", None),
        Reduced(getattr, os.PathLike, "min"),
        Reduced(getattr, "text", "min"),
        Reduced(HistoryBuffer.min, 1),
    ],
    ids=["another method", "a constructor", "with a default", "another class", "an instance", "a call of what was looked up"],
)
def test_any_other_lookup_is_a_call(value: Reduced, tmp_path: Path) -> None:
    """Another name, another owner, and a call of the method itself are listed, so that the file is refused."""
    torch.save({"log": value}, tmp_path / "made.pt")
    assert open_checkpoint(tmp_path / "made.pt").calls
