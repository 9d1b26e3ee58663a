"""What every file of the repository keeps to."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.project.file_guard import LIMIT_BYTES, faults_of

ROOT = Path(__file__).resolve().parent.parent.parent
HOSTS = tuple(
    ".".join(parts)
    for parts in [("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("download", "pytorch", "org"), ("pypi", "nvidia", "com")]
)
MODULE_LINES = 430


def files() -> list[Path]:
    """Return the files that belong to the repository: tracked ones, else (outside a clone) whatever lies there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name] if listed.returncode == 0 else []
    return [ROOT / name for name in names if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """The tracked files; the tests need a clone."""
    found = files()
    if not found:
        pytest.skip("not a git clone, so it is unknown which files belong to the repository")
    return found


def test_files_are_small_whole_and_valid(tracked: list[Path]) -> None:
    """No file is over the limit, text ends with one newline, TOML, YAML and JSON parse."""
    hostile = ROOT / "tests"
    faults = {p.relative_to(ROOT).as_posix(): faults_of(p) for p in tracked if p.suffix == ".py" or not p.is_relative_to(hostile)}
    assert {name: f for name, f in faults.items() if f} == {}


def test_no_file_names_a_host_to_install_from(tracked: list[Path]) -> None:
    """Where packages come from is the business of the machine, not of the repository."""
    named = [p.relative_to(ROOT).as_posix() for p in tracked if any(host.encode() in p.read_bytes() for host in HOSTS)]
    assert named == []


def test_no_file_names_a_home_folder(tracked: list[Path]) -> None:
    """No path of somebody's machine stands in a file."""
    pattern = re.compile(rb"(?<![\w.])/(root|home/\w+|work|Users/\w+)/[\w.]+")
    named = {
        p.relative_to(ROOT).as_posix(): pattern.findall(p.read_bytes())
        for p in tracked
        if p.suffix in {".py", ".md", ".toml", ".ini", ".txt", ".yml", ".yaml", ".html", ".j2"}
    }
    assert {name: hits for name, hits in named.items() if hits} == {}


def test_modules_are_small(tracked: list[Path]) -> None:
    """A module of the package stays under the cap."""
    long = {}
    for path in tracked:
        if path.suffix == ".py" and path.is_relative_to(ROOT / "exporter"):
            count = len(path.read_text(encoding="utf-8").splitlines())
            if count > MODULE_LINES:
                long[path.relative_to(ROOT).as_posix()] = count
    assert long == {}


def test_modules_say_what_they_export(tracked: list[Path]) -> None:
    """Every module of the package opens with a docstring and, unless it is empty, has an explicit ``__all__``."""
    lacking = []
    for path in tracked:
        if path.suffix == ".py" and path.is_relative_to(ROOT / "exporter") and path.name not in {"__main__.py", "boot.py"}:
            text = path.read_text(encoding="utf-8")
            is_empty = all(isinstance(s, (ast.Expr, ast.ImportFrom)) for s in ast.parse(text).body)
            if not text.startswith('"""') or not (is_empty or re.search(r"^__all__\b.*=", text, re.MULTILINE)):
                lacking.append(path.relative_to(ROOT).as_posix())
    assert lacking == []


def test_package_is_marked_as_typed() -> None:
    """Type checkers of users see the annotations."""
    assert (ROOT / "exporter" / "py.typed").is_file()


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("big.bin", b"x" * (LIMIT_BYTES + 1), "at most"),
        ("open.md", b"text", "newline"),
        ("more.py", b"x = 1\n\n", "newline"),
        ("windows.txt", b"a\r\n", "carriage"),
        ("spaces.py", b"x = 1 \n", "spaces"),
        ("wrong.toml", b"a = \n", "TOML"),
        ("wrong.yml", b"a: [\n", "YAML"),
        ("wrong.json", b"{\n", "JSON"),
    ],
)
def test_guard_can_fail(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    """Each fault is found, and a good file has none."""
    path = tmp_path / name
    path.write_bytes(content)
    assert fault in " ".join(faults_of(path))
    good = tmp_path / "good.toml"
    good.write_bytes(b"a = 1\n")
    assert faults_of(good) == []


def test_every_test_says_what_must_hold(tracked: list[Path]) -> None:
    """Each test function has a docstring that states the expected behaviour in at least three words."""
    silent = []
    for path in tracked:
        if path.suffix == ".py" and path.is_relative_to(ROOT / "tests"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
                if is_test and len((ast.get_docstring(node) or "").split()) < 3:
                    silent.append(f"{path.relative_to(ROOT).as_posix()}:{node.lineno} {node.name}")
    assert silent == []
