"""Read the name of a factory: which library, file or package, and which callable."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from exporter.errors import ConfigError

__all__ = ["FactoryReference", "parse_reference"]

Scheme = Literal["timm", "torchvision", "ultralytics", "file", "package", "pt2"]
_LIBRARIES: tuple[Literal["timm", "torchvision", "ultralytics"], ...] = ("timm", "torchvision", "ultralytics")
_FORMS = "timm:NAME, torchvision:NAME, ultralytics:NAME.yaml, package.module:callable, path/to/file.py:callable or FILE.pt2"


@dataclass(frozen=True, slots=True)
class FactoryReference:
    """A factory, taken apart.

    Attributes:
        text: as it was written.
        scheme: ``file`` is a Python file, ``package`` an importable module; the others say their library.
        source: the module for ``package``, else empty.
        path: the file for ``file`` and ``pt2``, else None.
        name: the callable, or the model's name in the library.
    """

    text: str
    scheme: Scheme
    source: str
    name: str
    path: Path | None = None


def parse_reference(text: str, *, base: Path) -> FactoryReference:
    """Take ``text`` apart; paths are relative to ``base``.

    Raises:
        ConfigError: the text has none of the known forms (E301), or is still ``auto`` (E302).
    """
    if text == "auto":
        facts = {"at": "model -> factory", "found": "auto"}
        raise ConfigError("E302", "the model has to be named, it was not recognised from a checkpoint", facts=facts, help=f"name it: {_FORMS}")
    if text.endswith(".pt2"):
        return FactoryReference(text, "pt2", "", "", base / text)
    head, colon, name = text.rpartition(":")
    if not colon or not head or not name:
        raise _unknown(text, "")
    if head.endswith(".py"):
        return FactoryReference(text, "file", "", name, base / head)
    for library in _LIBRARIES:
        if head == library:
            return FactoryReference(text, library, "", name)
    if all(part.isidentifier() for part in head.split(".")) and all(part.isidentifier() for part in name.split(".")):
        return FactoryReference(text, "package", head, name)
    near = difflib.get_close_matches(head, _LIBRARIES, n=1)
    raise _unknown(text, f"did you mean {near[0]}:{name}?" if near else "")


def _unknown(text: str, hint: str) -> ConfigError:
    facts = {"at": "model -> factory", "found": repr(text), "expected": _FORMS}
    return ConfigError("E301", "this does not name a model", facts=facts, help=hint)
