"""docs/configuration.md names every key with its real default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from exporter.config import Config, InputConfig, OutputTolerance
from exporter.sections import REQUIRED, Section
from tests.docs.markdown import ROOT

HEADING = re.compile(r"^#{2,3} .*`\[+([\w.]+)\]+`")
ROW = re.compile(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$")


def default_of(kind: type[Section], key: str) -> str:
    """Return the default of ``key`` as it would be written in the file; ``required`` or ``none`` where it has no value."""
    value: Any = kind.settings[key].default
    if value is REQUIRED:
        return "required"
    if value is None:
        return "none"
    return f"`{json.dumps(value if not isinstance(value, (tuple, Path)) else list(value) if isinstance(value, tuple) else str(value))}`"


def expected() -> dict[tuple[str, str], str]:
    """Return (section, key) -> default of every key of the configuration."""
    found: dict[tuple[str, str], str] = {}
    sections: dict[str, type[Section]] = {"model.inputs": InputConfig, "parity.outputs.NAME": OutputTolerance}
    for name, entry in Config.settings.items():
        kind = Config.section_of(name)
        if kind is not None:
            sections[name] = kind
        elif entry.is_key:
            found["", name] = default_of(Config, name)
    for name, kind in sections.items():
        found.update({(name, key): default_of(kind, key) for key in kind.settings})
    return found


def shown() -> dict[tuple[str, str], tuple[str, str]]:
    """Return (section, key) -> (default, meaning) of every row of the page."""
    section, found = "", {}
    for line in (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8").splitlines():
        if heading := HEADING.match(line):
            section = heading[1]
        elif row := ROW.match(line):
            key = (section, row[1])
            assert key not in found, f"{key} stands twice"
            found[key] = (row[3].strip(), row[4].strip())
    return found


def test_every_key_stands_with_its_default() -> None:
    """The page and the types have the same keys and the same defaults."""
    assert {key: default for key, (default, _) in shown().items()} == expected()


def test_every_key_has_a_meaning() -> None:
    """Each row says what the key does, in at least three words."""
    assert [key for key, (_, meaning) in shown().items() if len(meaning.split()) < 3] == []
