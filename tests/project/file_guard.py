"""Check files before they are committed: size, final newline, trailing spaces, valid TOML, YAML and JSON.

python tests/project/file_guard.py FILE...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

__all__ = ["faults_of", "main"]

LIMIT_BYTES = 500_000
TEXT = {".cfg", ".css", ".ini", ".j2", ".jinja", ".json", ".md", ".py", ".toml", ".txt", ".yaml", ".yml"}


def faults_of(path: Path) -> list[str]:
    """Return what is wrong with the file at ``path``, one sentence each."""
    content = path.read_bytes()
    faults = [f"{len(content)} bytes, at most {LIMIT_BYTES}"] if len(content) > LIMIT_BYTES else []
    if path.suffix not in TEXT:
        return faults
    if content and (not content.endswith(b"\n") or content.endswith(b"\n\n")):
        faults.append("does not end with exactly one newline")
    if b"\r" in content:
        faults.append("has carriage returns")
    if path.suffix != ".md" and any(line != line.rstrip() for line in content.split(b"\n")):
        faults.append("has spaces at the end of a line")
    problem = _problem_of_syntax(path, content)
    return [*faults, problem] if problem else faults


def _problem_of_syntax(path: Path, content: bytes) -> str:
    if path.suffix == ".json":
        try:
            json.loads(content)
        except ValueError as err:
            return f"is not valid JSON: {err}"
    if path.suffix == ".toml":
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
        try:
            tomllib.loads(content.decode())
        except tomllib.TOMLDecodeError as err:
            return f"is not valid TOML: {err}"
    if path.suffix in {".yaml", ".yml"}:
        import yaml

        try:
            yaml.safe_load(content)
        except yaml.YAMLError as err:
            return f"is not valid YAML: {err}"
    return ""


def main(arguments: list[str]) -> int:
    """Print the faults of every file and return 1 if there is one."""
    found = [f"{name}: {fault}" for name in arguments for fault in faults_of(Path(name))]
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
