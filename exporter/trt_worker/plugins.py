"""Libraries with plugins, which are code: those that the settings name are loaded, and no others.

A plan names the libraries that it was built with by their digests. It is loaded with libraries of the settings that have these digests,
wherever they lie.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.config import TensorrtConfig
from exporter.errors import ArtifactError
from exporter.files import digest_of_file

__all__ = ["PluginLibrary", "find_plugins", "plugins_of_plan"]

_MAGIC = b"\x7fELF"
_SHARED_OBJECT = 3
_SETTING = "[tensorrt] plugins, or --plugin"


@dataclass(frozen=True, slots=True)
class PluginLibrary:
    """A library that was looked at: where it lies, and the digest that it has to have when it is loaded."""

    path: Path
    sha256: str

    def to_json(self) -> dict[str, str]:
        """Return what the worker is told."""
        return {"path": str(self.path), "sha256": self.sha256}


def find_plugins(config: TensorrtConfig) -> tuple[PluginLibrary, ...]:
    """Return the libraries of the settings, each once, in their order.

    Raises:
        ArtifactError: one cannot be read, or is no shared library (E556).
    """
    found: dict[str, PluginLibrary] = {}
    for path in config.plugins:
        try:
            with path.open("rb") as file:
                head = file.read(20)
            digest = digest_of_file(path).hex
        except OSError as err:
            raise _unusable(path, err.strerror or str(err)) from err
        kind = int.from_bytes(head[16:18], "big" if head[5:6] == b"\x02" else "little")
        if not head.startswith(_MAGIC) or kind != _SHARED_OBJECT:
            raise _unusable(path, "a file of another kind")
        found.setdefault(digest, PluginLibrary(path.absolute(), digest))
    return tuple(found.values())


def plugins_of_plan(path: Path, content: Mapping[str, Any], config: TensorrtConfig) -> tuple[PluginLibrary, ...]:
    """Return the libraries of the settings that the plan at ``path`` was built with.

    Args:
        path: of the plan, for messages.
        content: of its record, as ``verify_record`` returned it.
        config: names the libraries that may be loaded.

    Raises:
        ArtifactError: the settings do not name one that has the digest (E557), or name what is no library (E556).
    """
    wanted = content.get("plugins", [])
    if not wanted:
        return ()
    named = {library.sha256: library for library in find_plugins(config)}
    for plugin in wanted:
        if plugin["sha256"] not in named:
            found = ", ".join(f"{library.path.name} {library.sha256[:16]}" for library in named.values()) or "none named"
            facts = {"file": path, "found": found, "expected": f"{plugin['name']} {plugin['sha256'][:16]}"}
            raise ArtifactError("E557", "the plan needs a plugin library that is not the one that is named", facts=facts, help=_SETTING)
    return tuple(named[plugin["sha256"]] for plugin in wanted)


def _unusable(path: Path, found: str) -> ArtifactError:
    facts = {"file": path, "found": found, "expected": "a shared library (ELF)"}
    return ArtifactError("E556", "a plugin library cannot be used", facts=facts, help=_SETTING)
