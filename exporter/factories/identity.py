"""What a factory is made of, as text that changes when the network may change; torch is not imported."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
from pathlib import Path

from exporter import __version__
from exporter.config import ModelConfig
from exporter.errors import ConfigError
from exporter.factories.reference import FactoryReference, parse_reference
from exporter.files import digest_of_file

__all__ = ["installed_version", "model_identity"]


@functools.cache
def installed_version(distribution: str) -> str:
    """Return the version of an installed distribution, ``not installed`` where there is none; nothing is imported.

    Ours is known also where the package is used from its source tree.
    """
    if distribution == "exporter":
        return __version__
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def model_identity(config: ModelConfig, *, base: Path) -> str:
    """Return a JSON text that is equal for equal networks.

    A library's model is known by the library's version, a file by its digest and those of the Python files beside it
    (which it may import), a package by its version, else like a file.

    Raises:
        ConfigError: the factory is misspelt (E301, E302) or its file does not exist (E303).
    """
    reference = parse_reference(config.factory, base=base)
    facts = {"factory": config.factory, "arguments": config.arguments, "torch": installed_version("torch"), "code": _code(reference, base)}
    return json.dumps(facts, sort_keys=True, default=str)


def _code(reference: FactoryReference, base: Path) -> dict[str, str]:
    if reference.scheme == "pt2":
        return _digests([_existing(reference)], base)
    if reference.path is not None:
        return _digests(sorted({_existing(reference), *reference.path.parent.glob("*.py")}), reference.path.parent)
    if reference.scheme != "package":
        return {reference.scheme: installed_version(reference.scheme)}
    top = reference.source.partition(".")[0]
    own = base / top
    if own.is_dir():
        return _digests(sorted(own.rglob("*.py")), base)
    if own.with_suffix(".py").is_file():
        return _digests(sorted(base.glob("*.py")), base)
    spec = importlib.util.find_spec(top)
    if spec is None or spec.origin is None:
        return {top: installed_version(top)}
    return {top: installed_version(top), "origin": digest_of_file(Path(spec.origin)).hex if Path(spec.origin).is_file() else ""}


def _existing(reference: FactoryReference) -> Path:
    path = reference.path
    if path is None or not path.is_file():
        raise ConfigError("E303", "the file with the model's code does not exist", facts={"file": path, "at": "model -> factory"})
    return path


def _digests(paths: list[Path], folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)) if path.is_relative_to(folder) else path.name: digest_of_file(path).hex for path in paths}
