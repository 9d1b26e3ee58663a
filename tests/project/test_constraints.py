"""constraints.txt pins everything that gets installed, for every supported Python."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def environment_of(python: str) -> dict[str, str]:
    """Return the marker environment of ``python`` on Linux."""
    return {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_full_version": f"{python}.9",
        "python_version": python,
        "sys_platform": "linux",
    }


def wanted() -> list[Requirement]:
    """Return every requirement of the project: its own, its extras', its groups' and its build system's."""
    texts = [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        texts += extra
    for group in PROJECT["dependency-groups"].values():
        texts += [text for text in group if isinstance(text, str)]
    return [Requirement(text) for text in texts]


def normal(name: str) -> str:
    """Return ``name`` as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_line_is_one_exact_pin() -> None:
    """Each line is ``name==version`` with at most a marker: no address, no option, no range."""
    for line in LINES:
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*==[0-9][0-9a-z.]*( ; .+)?", line), line
    assert len(LINES) > 50


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_has_one_pin(python: str) -> None:
    """On each supported Python every requirement has exactly one pin, and the pin satisfies it."""
    environment = environment_of(python)
    pins: dict[str, str] = {}
    for line in LINES:
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(environment):
            assert normal(pin.name) not in pins, f"{pin.name} is pinned twice"
            pins[normal(pin.name)] = next(iter(pin.specifier)).version
    for requirement in wanted():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert normal(requirement.name) in pins, f"{requirement} has no pin"
            assert requirement.specifier.contains(pins[normal(requirement.name)]), f"{requirement}: pinned {pins[normal(requirement.name)]}"


def test_supported_pythons_are_stated_once() -> None:
    """``requires-python`` and the classifiers name the same versions as this test."""
    project = PROJECT["project"]
    assert project["requires-python"] == ">=3.10,<3.14"
    assert [c.rsplit(" ", 1)[1] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)] == list(PYTHONS)
