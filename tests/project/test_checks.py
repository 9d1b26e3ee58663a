"""The checks are all run: tox by default, .ci/run through tox, and CONTRIBUTING says which there are."""

from __future__ import annotations

import configparser
import os
import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent.parent
DEFAULT = {"buckets", "changelog", "demo", "docs", "imports", "lint", "peers", "peers-tf", "py", "typing"}
ON_DEMAND = {"bench", "bench-zoo", "constraints", "fixtures", "fuzz", "gpu", "tensorrt-8"}


def tox_ini() -> configparser.ConfigParser:
    """Return tox.ini."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return parser


def test_default_environments_are_all_checks() -> None:
    """``tox`` without arguments runs every check that needs no GPU."""
    assert {name.strip() for name in tox_ini()["tox"]["env_list"].split(",")} == DEFAULT


def test_contributing_names_every_environment() -> None:
    """CONTRIBUTING.md has a line for each environment."""
    named = set(re.findall(r"^\| `tox -e ([\w-]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert named == DEFAULT | ON_DEMAND


def test_every_installation_is_pinned() -> None:
    """Each ``pip install`` of tox.ini, .ci/run, README.md and CONTRIBUTING.md takes the constraints; writing them anew is the exception."""
    for name in ("tox.ini", ".ci/run", "README.md", "CONTRIBUTING.md"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if "pip install -" in line or "pip install {" in line:
                assert "constraints.txt" in line or line == "install_command = python -m pip install {opts} {packages}", f"{name}: {line}"


def test_ci_script_can_be_run() -> None:
    """``.ci/run`` is executable and stops at the first fault."""
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_fragments_have_a_known_type() -> None:
    """Every file in changelog.d is ``<topic>.<type>.md`` with a type that the configuration knows, and says something."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    types = {kind["directory"] for kind in project["tool"]["towncrier"]["type"]}
    for path in (ROOT / "changelog.d").iterdir():
        if path.name not in {"README.md", "template.md.jinja"}:
            match = re.fullmatch(r"[a-z0-9-]+\.([a-z]+)\.md", path.name)
            assert match, f"{path.name} is no <topic>.<type>.md"
            assert match[1] in types, f"{path.name}: unknown type"
            assert len(path.read_text(encoding="utf-8").split()) > 3, f"{path.name} says nothing"


def test_layers_name_every_package() -> None:
    """The list of layers for import-linter has every package and module below ``exporter``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip() for layer in layers for name in layer.split("|")}
    there = {p.stem for p in (ROOT / "exporter").iterdir() if (p.suffix == ".py" or (p / "__init__.py").is_file()) and not p.name.startswith("_")}
    assert there == named
