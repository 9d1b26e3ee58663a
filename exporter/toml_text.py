"""Settings as text: files in TOML, and single values of the environment and the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from exporter.errors import ConfigError

__all__ = ["read_toml", "value_from_text"]


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in a file.

    Raises:
        ConfigError: the file does not exist (E701) or cannot be read (E702).
    """
    try:
        return _parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise ConfigError("E701", "the configuration file does not exist", facts={"file": path}, help="exporter init CKPT writes one") from err
    except (OSError, ValueError) as err:
        raise ConfigError("E702", "the configuration file cannot be read", facts={"file": path, "found": err}) from err


def value_from_text(text: str) -> Any:  # noqa: ANN401 - any TOML value
    """Return ``text`` read as a TOML value (``true``, ``3``, ``[1, 2]``), or as it stands."""
    try:
        return _parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _parse_toml(text: str) -> dict[str, Any]:
    """Return the table in ``text``; a ``ValueError`` says what is wrong with it."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads(text)
