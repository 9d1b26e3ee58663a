"""Sidecar records: ``<artefact>.json`` says what an artefact was made from, and a keyed hash says that we wrote it.

A plan and a ``.pt2`` are executable. Neither is loaded unless its record carries an HMAC made with the secret of this
machine (``$EXPORTER_STATE_DIR/key``, by default in the user's state folder), and the file still has the digest of the record.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from exporter.artifacts import Digest
from exporter.errors import ArtifactError, InputRefused
from exporter.files import digest_of_file, write_json

__all__ = ["read_record", "record_path", "recorded_digest", "verify_record", "write_record"]

SCHEMA = 2

Measure: TypeAlias = Callable[[Path], Digest]


def record_path(path: Path) -> Path:
    """Return where the record of the artefact ``path`` lies: the same name with ``.json`` appended."""
    return path.with_name(path.name + ".json")


def write_record(path: Path, *, key: str, content: Mapping[str, Any], digest: Digest | None = None) -> Digest:
    """Write the record of the artefact at ``path``, after the artefact itself.

    Args:
        key: digest of everything the artefact was made from; equal keys mean "up to date".
        content: JSON-able facts that the next stage needs.
        digest: of the artefact, where the caller took it while writing.

    Returns:
        The digest of the artefact.
    """
    digest = digest if digest is not None else digest_of_file(path)
    body = {"schema": SCHEMA, "artefact": path.name, "sha256": digest.hex, "of": digest.of, "key": key, "content": dict(content)}
    write_json(record_path(path), {**body, "hmac": _signature(body)})
    return digest


def read_record(path: Path, *, key: str | None = None, measure: Measure | None = None) -> dict[str, Any] | None:
    """Return the content of the record of ``path`` if artefact and record are there, whole, ours and made from ``key``.

    None means "make it again". No error is raised: whatever is wrong with a cached artefact, it is not used.
    """
    try:
        return verify_record(path, key=key, measure=measure)
    except InputRefused:  # also what measuring a damaged artefact raises
        return None


def recorded_digest(path: Path) -> Digest:
    """Return the digest that the record of ``path`` holds; for an artefact that ``read_record`` or ``verify_record`` just verified."""
    body = json.loads(record_path(path).read_text(encoding="utf-8"))
    return Digest(body["sha256"], body["of"])


def verify_record(path: Path, *, key: str | None = None, measure: Measure | None = None) -> dict[str, Any]:
    """Return the content of the record of ``path``.

    Args:
        path: the artefact.
        key: what it must have been made from; anything where it is None.
        measure: takes the ``contents`` digest of the artefact, for kinds of artefacts whose records may hold one.

    Raises:
        ArtifactError: no record (E721), not written on this machine or altered (E722), the artefact differs from its
            record (E723), or it was made from something else than ``key`` (E724).
    """
    try:
        body = json.loads(record_path(path).read_text(encoding="utf-8"))
        if not path.is_file():
            raise FileNotFoundError(path)
    except (OSError, ValueError, RecursionError) as err:
        raise ArtifactError("E721", "an artefact or its record is missing", facts={"file": path, "expected": record_path(path)}) from err
    signature = body.pop("hmac", "") if isinstance(body, dict) else ""
    if not isinstance(body, dict) or not hmac.compare_digest(str(signature), _signature(body)):
        facts = {"file": record_path(path), "expected": "a record keyed with this machine's secret"}
        raise ArtifactError("E722", "a record was not written on this machine, or was altered", facts=facts)
    if key is not None and body.get("key") != key:  # first, for reading the artefact takes time
        raise ArtifactError("E724", "an artefact was made from something else", facts={"file": path, "found": body.get("key"), "expected": key})
    try:
        digest = (measure if measure is not None and body.get("of") == "contents" else digest_of_file)(path)
    except OSError as err:
        raise ArtifactError("E721", "an artefact or its record is missing", facts={"file": path, "found": err.strerror or err}) from err
    if (body.get("of"), body.get("sha256")) != (digest.of, digest.hex):
        raise ArtifactError("E723", "an artefact differs from its record", facts={"file": path, "found": digest.hex, "expected": body.get("sha256")})
    content = body.get("content")
    return content if isinstance(content, dict) else {}


def _signature(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hmac.new(_secret(), text.encode(), "sha256").hexdigest()


def _secret() -> bytes:
    folder = os.environ.get("EXPORTER_STATE_DIR")
    if not folder:
        import platformdirs

        folder = platformdirs.user_state_dir("exporter")
    path = Path(folder) / "key"
    with contextlib.suppress(FileNotFoundError):
        content = path.read_bytes()
        if content:
            return content
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f"key.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(32))
    try:
        os.link(temporary, path)  # the first of several processes wins; an existing key is never replaced
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_bytes()
