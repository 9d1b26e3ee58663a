"""What the fuzzer stands on, without the fuzzer: seeds of every target, mutations that stay readable, and checks that can fail."""

from __future__ import annotations

import collections
import os
import pickle
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.errors import CheckpointError
from tests.fuzz import parcels, seeds
from tests.fuzz.mutation import Mutator
from tests.fuzz.targets import TARGETS, Broken, Target, check, watched
from tests.fuzz.words import dictionary
from tests.fuzz.zips import Part, build, split

pytestmark = pytest.mark.filterwarnings("ignore")
MUTATIONS = 40


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every seed that the libraries here can write."""
    folder = tmp_path_factory.mktemp("seeds")
    skipped = {seeds.ultralytics, seeds.timm}
    made: dict[str, bytes] = {}
    for writer in seeds.WRITERS:
        made |= dict(writer()) if writer not in skipped else {}
    assert not list(folder.iterdir())
    return made


@pytest.fixture
def sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that a target may use."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sandbox").mkdir()
    return tmp_path / "sandbox"


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_seeds_and_mutations(target: Target, written: dict[str, bytes], sandbox: Path) -> None:
    """Every seed is read or refused as it should be, and so is whatever is made of it; mutations get past the first check."""
    mine = [content for name, content in written.items() if name.startswith(target.seeds)]
    assert mine
    endings = collections.Counter(check(target, content, sandbox, watch=False) for content in mine)
    assert set(endings) - {"E105", "E114"}
    rng, mutate = random.Random(3), Mutator()
    for _ in range(MUTATIONS if target.name != "HDF5" else 4):
        endings[check(target, mutate(rng.choice(mine), rng), sandbox, watch=target.name != "HDF5")] += 1
    assert len(endings) > 1, "mutations change nothing that is looked at"
    assert not list(sandbox.iterdir())


def test_checks_can_fail(sandbox: Path) -> None:
    """A target that leaves a file behind, refuses without a place, shows escapes, or runs something is found out."""

    def raising(**facts: object) -> Target:
        def run(_: Path, output: Path) -> None:
            if facts.pop("leaves", None):
                (output / "half").touch()
            raise CheckpointError("E110", "wrong", facts=facts)

        return Target("x", (), run)

    assert check(raising(file="a"), b"", sandbox) == "E110"
    with pytest.raises(Broken, match="left behind"):
        check(raising(leaves=True, file="a"), b"", sandbox)
    with pytest.raises(Broken, match="without file or place"):
        check(raising(found="a"), b"", sandbox)
    with pytest.raises(ZeroDivisionError):
        check(Target("x", (), lambda path, output: 1 // 0), b"", sandbox)
    with pytest.raises(Broken, match=r"os\.system"):
        check(Target("x", (), lambda path, output: os.system("true")), b"", sandbox)
    with pytest.raises(Broken, match="outside"):
        check(Target("x", (), lambda path, output: (sandbox.parent / "outside").touch()), b"", sandbox)
    with pytest.raises(Broken, match="code from the file"):
        check(Target("x", (), lambda path, output: pickle.loads(pickle.dumps(seeds.Payload())).close()), b"", sandbox, watch=False)
    Path("canary").unlink()
    with pytest.raises(Broken, match="find_class"), watched(sandbox):
        pickle.loads(b"cbuiltins\nlen\n.")


def test_archives_are_built_as_others_read_them(tmp_path: Path) -> None:
    """What is taken apart and built again has right checksums: Python's own reader tests every member."""
    parts = [Part("a/data.pkl", b"\x80\x02}."), Part("a/ü", b"x" * 40)]
    for zip64 in (False, True):
        (tmp_path / "a.zip").write_bytes(build(parts, zip64=zip64, padding=5))
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            assert archive.testzip() is None
        assert [(part.name, part.content) for part in split((tmp_path / "a.zip").read_bytes())] == [(p.name, p.content) for p in parts]


def test_parcels_hold_files(tmp_path: Path) -> None:
    """A parcel gives back what it was made of, and one cut short gives what is there."""
    files = {"latest": b"x", "a/b.pt": bytes(300), "": b""}
    packed = parcels.pack(files)
    assert parcels.unpack(packed) == files
    for length in range(len(packed)):
        parcels.unpack(packed[:length])
    assert sorted(path.name for path in parcels.write(packed, tmp_path).rglob("*")) == ["a", "b.pt", "latest"]


def test_the_dictionary_is_one() -> None:
    """Each line is a quoted word of escaped bytes, as libFuzzer reads them."""
    lines = list(dictionary())
    assert len(lines) > 200
    assert all(line[0] == line[-1] == '"' and line[1:3] == "\\x" for line in lines)
