"""Records say what an artefact was made from, and that it is ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.errors import ArtifactError
from exporter.records import read_record, record_path, verify_record, write_record


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    """An artefact with its record, made from the key ``k1``."""
    path = tmp_path / "model.bin"
    path.write_bytes(b"content")
    write_record(path, key="k1", content={"folded": 3})
    return path


def test_an_untouched_artefact_is_current(artefact: Path) -> None:
    """The content comes back for the same key, and for no key at all."""
    assert read_record(artefact, key="k1") == {"folded": 3}
    assert verify_record(artefact) == {"folded": 3}


def test_every_way_of_not_being_ours_has_its_code(artefact: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another key, altered bytes, an altered record, another machine and a missing record are told apart, and none is used."""

    def code(key: str | None = None) -> str:
        assert read_record(artefact, key=key) is None
        with pytest.raises(ArtifactError) as caught:
            verify_record(artefact, key=key)
        return caught.value.code

    assert code("k2") == "E724"
    artefact.write_bytes(b"altered")
    assert code() == "E723"
    artefact.write_bytes(b"content")

    record = record_path(artefact)
    good = record.read_text()
    body = json.loads(good)
    body["content"]["folded"] = 4
    record.write_text(json.dumps(body))
    assert code() == "E722"

    record.write_text(good)
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("EXPORTER_STATE_DIR", str(tmp_path / "another machine"))
        assert code() == "E722"

    record.write_text("[]")
    assert code() == "E722"
    record.write_text("{")
    assert code() == "E721"
    record.unlink()
    assert code() == "E721"


def test_the_secret_is_private_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, artefact: Path) -> None:
    """The key file is readable by its owner only, and is made once."""
    monkeypatch.setenv("EXPORTER_STATE_DIR", str(tmp_path / "state"))
    write_record(artefact, key="k", content={})
    key = tmp_path / "state" / "key"
    before = key.read_bytes()
    assert key.stat().st_mode & 0o077 == 0
    assert len(before) == 32
    write_record(artefact, key="k", content={})
    assert key.read_bytes() == before
    assert [path.name for path in key.parent.iterdir()] == ["key"]
