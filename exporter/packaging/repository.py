"""A model in a model repository: ``DIR/NAME/config.pbtxt`` and one folder for each version.

A new model is made beside its place and takes it by one rename. A new version of a model that is there is made beside its place too; it
gets the next number, and nothing of the versions before it is touched. ``config.pbtxt`` serves every version, so a version with other
inputs or outputs is refused; a ``config.pbtxt`` that somebody has edited is kept as it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from exporter.artifacts import OnnxModel, Plan
from exporter.engine.external_data import external_files
from exporter.errors import ArtifactError, ConfigError, InputRefused
from exporter.files import atomic_write, digest_of_file, write_bytes, write_json
from exporter.packaging.pbtxt import PbtxtError, format_message, parse_message
from exporter.packaging.triton_config import Described, Serving, describe
from exporter.records import record_path, verify_record, write_record

__all__ = ["Package", "write_repository"]

_CONFIG = "config.pbtxt"
_LINEAGE = "lineage.json"
_HEADER = "# Written by exporter. Edit it where you like: it is then kept as it is when a version is added.\n"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*")
_PLATFORMS = {"tensorrt_plan": "tensorrt", "onnxruntime_onnx": "onnxruntime"}
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Package:
    """A model in a model repository.

    Attributes:
        path: folder of the model.
        version: number of the version that holds the artefact.
        state: ``up to date`` where the newest version already held it.
        config: what became of ``config.pbtxt``.
    """

    path: Path
    name: str
    version: int
    state: Literal["made", "up to date"]
    config: Literal["written", "kept"]
    max_batch: int
    remarks: tuple[str, ...]


def write_repository(artefact: Plan | OnnxModel, folder: Path, name: str, serving: Serving) -> Package:
    """Put ``artefact`` into the model repository ``folder`` as the newest version of the model ``name``.

    Raises:
        ConfigError: the name is none for a model (E534), or E533.
        ModelNotSupported: E532.
        ArtifactError: ``folder`` is no folder (E531), the model there has other inputs or outputs (E535), its configuration cannot be read
            (E536), the artefact changed meanwhile (E723), or a file could not be written (E711). The repository is as it was.
    """
    if not _NAME.fullmatch(name):
        expected = "letters, digits, _ - and ., without a dot at the beginning"
        raise ConfigError("E534", "this is no name for a model", facts={"found": repr(name), "expected": expected}, help="--name digits")
    if folder.exists() and not folder.is_dir():
        raise ArtifactError("E531", "the model repository is no folder", facts={"found": folder})
    described = describe(artefact, name, serving)
    home = folder / name
    with _writing(home):
        if not home.exists():
            return _new_model(artefact, home, described)
        return _new_version(artefact, home, described)


def _new_model(artefact: Plan | OnnxModel, home: Path, described: Described) -> Package:
    with _beside(home) as draft:
        _write_version(artefact, draft / "1", described)
        _write_config(draft / _CONFIG, described.message)
        _take_place(draft, home)
    return Package(home, home.name, 1, "made", "written", described.max_batch, described.remarks)


def _new_version(artefact: Plan | OnnxModel, home: Path, described: Described) -> Package:
    config = home / _CONFIG
    message, is_ours = dict(described.message), _is_ours(config)
    if config.exists():
        message["max_batch_size"] = _check_interface(config, described, is_ours=is_ours)
    newest = max(_versions(home), default=0)
    if newest and _holds(home / str(newest) / described.file_name, artefact):
        version, state = newest, "up to date"
    else:
        version, state = newest + 1, "made"
    remarks = list(described.remarks)
    if not is_ours and config.exists():
        remarks.append(f"{_CONFIG} was edited and is kept as it is; the lineage of this version is in {version}/{_LINEAGE}")
    written = is_ours or not config.exists()
    draft: Path | None = None
    with contextlib.ExitStack() as stack:
        if state == "made":
            draft = stack.enter_context(_beside(home / str(version)))
            _write_version(artefact, draft, described)
        if written:  # before the version: it never promises a batch that a version does not take
            stack.enter_context(_restored_on_error(config, record_path(config)))
            _write_config(config, message)
        if draft is not None:
            _take_place(draft, home / str(version))
    return Package(
        home,
        home.name,
        version,
        "made" if state == "made" else "up to date",
        "written" if written else "kept",
        int(message["max_batch_size"]),
        tuple(remarks),
    )


def _versions(home: Path) -> list[int]:
    return [int(path.name) for path in home.iterdir() if path.name.isascii() and path.name.isdigit() and path.is_dir()]


def _holds(path: Path, artefact: Plan | OnnxModel) -> bool:
    return path.is_file() and digest_of_file(path).hex == artefact.digest.hex


def _is_ours(config: Path) -> bool:
    """Whether ``config`` is as this machine wrote it."""
    try:
        return verify_record(config).get("kind") == "triton config"
    except InputRefused:
        return False


def _write_config(path: Path, message: Mapping[str, Any]) -> None:
    write_bytes(path, (_HEADER + format_message(message)).encode())
    write_record(path, key="", content={"kind": "triton config"})


def _check_interface(config: Path, described: Described, *, is_ours: bool) -> int:
    """Return the largest batch that the model there and the new version both take.

    Raises:
        ArtifactError: they differ in backend, inputs or outputs (E535), or ``config`` cannot be read (E536).
    """
    try:
        there = parse_message(config.read_text(encoding="utf-8"))
        before = {side: _interface(there.get(side, [])) for side in ("input", "output")}
        largest = int(there.get("max_batch_size", ["0"])[-1])
    except (OSError, ValueError, PbtxtError, AttributeError, TypeError) as err:
        facts: dict[str, object] = {"file": config, "found": err}
        raise ArtifactError(
            "E536", "the configuration of the model in the repository cannot be read", facts=facts, help="--name for another model"
        ) from err
    backend = str(there.get("backend", [""])[-1]) or _PLATFORMS.get(str(there.get("platform", [""])[-1]), "")
    after = {side: _interface([parse_message(format_message(item)) for item in described.message[side]]) for side in ("input", "output")}
    differences = [
        f"{side} {name}"
        for side in before
        for name in sorted({**before[side], **after[side]})
        if before[side] and before[side].get(name) != after[side].get(name)
    ]
    if backend not in {"", described.backend}:
        differences.append(f"backend {backend}")
    if bool(largest) != bool(described.max_batch) or (largest > described.max_batch and not is_ours):
        differences.append(f"max_batch_size {largest}, where the new version takes {described.max_batch}")
    if differences:
        facts = {"file": config, "found": "\n".join(differences), "expected": "the inputs and outputs of the new version"}
        help_text = "a model of Triton has one interface for all its versions: --name for another model"
        raise ArtifactError("E535", "the model in the repository has another interface", facts=facts, help=help_text)
    return min(largest, described.max_batch)


def _interface(tensors: list[dict[str, list[Any]]]) -> dict[str, tuple[str, tuple[str, ...]]]:
    return {str(tensor["name"][-1]): (str(tensor.get("data_type", [""])[-1]), tuple(map(str, tensor.get("dims", [])))) for tensor in tensors}


# -- files ----------------------------------------------------------------------------------------------------------------


def _write_version(artefact: Plan | OnnxModel, folder: Path, described: Described) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    found = _copy(artefact.path, folder / described.file_name)
    if found != artefact.digest.hex:
        raise ArtifactError("E723", "an artefact differs from its record", facts={"file": artefact.path, "found": found, "expected": artefact.digest})
    if isinstance(artefact, OnnxModel):
        for name in external_files(artefact):
            _copy(artefact.path.parent / name, folder / name)
    write_json(folder / _LINEAGE, {"file": described.file_name, "lineage": dict(described.lineage)})


def _copy(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb", buffering=0) as reader, atomic_write(target) as writer:
        while chunk := reader.read(_CHUNK):
            digest.update(chunk)
            writer.write(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """Make an empty folder beside ``place``; it is gone at the end, unless it took its place."""
    draft = place.with_name(f".{place.name}.{os.getpid()}.{os.urandom(4).hex()}.exporter-tmp")
    draft.mkdir(parents=True)
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _take_place(draft: Path, place: Path) -> None:
    try:
        draft.rename(place)
    except OSError as err:
        if err.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        facts = {"found": place}
        raise ArtifactError("E537", "another program wrote to the model repository meanwhile", facts=facts, help="run the command again") from err
    descriptor = os.open(place.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _restored_on_error(*paths: Path) -> Iterator[None]:
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                write_bytes(path, content)
        raise


@contextlib.contextmanager
def _writing(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        facts = {"file": home, "found": err.strerror or err}
        raise ArtifactError("E711", "a file could not be written; nothing was changed", facts=facts) from err
