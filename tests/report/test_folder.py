import dataclasses
import json

import pytest

from exporter.errors import ArtifactError
from exporter.report import read_report, write_report
from tests.report import builders


def test_fault_in_rendering_keeps_the_report(tmp_path, monkeypatch) -> None:
    """When the page cannot be rendered, report.json and the raw samples are already whole and can be read."""
    import exporter.report.page

    def broken(report):
        raise RuntimeError("no page today")

    monkeypatch.setattr(exporter.report.page, "page_from_report", broken)
    with pytest.raises(RuntimeError, match="no page today"):
        write_report(builders.passing(), tmp_path)
    assert read_report(tmp_path) == builders.passing()
    assert not (tmp_path / "report.html").exists()


def test_rendering_again_changes_nothing(tmp_path) -> None:
    """Reading a run and writing it again gives the same bytes."""
    write_report(builders.mixed(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_report(read_report(tmp_path), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_run_without_a_race_has_no_samples_file(tmp_path) -> None:
    """samples.json is there only where something was timed."""
    report = dataclasses.replace(builders.mixed(), verdicts=(builders.parity("onnx"),))
    write_report(report, tmp_path)
    assert not (tmp_path / "samples.json").exists()
    assert read_report(tmp_path) == report


def test_samples_are_plain_json(tmp_path) -> None:
    """The raw samples can be taken up by anything that reads JSON, with the names of the contestants."""
    write_report(builders.mixed(), tmp_path)
    races = json.loads((tmp_path / "samples.json").read_text())
    assert [(race["candidate"], race["reference"], race["batch"]) for race in races.values()] == [("onnx", "torch-unfused", 32)]
    assert all(len(race["samples_ms"]) == 1400 and len(race["reference_samples_ms"]) == 900 for race in races.values())


def test_missing_report_is_refused(tmp_path) -> None:
    """A folder without a report is named."""
    with pytest.raises(ArtifactError, match="there is no report here") as caught:
        read_report(tmp_path)
    assert (caught.value.code, caught.value.facts["file"]) == ("E741", str(tmp_path / "report.json"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 200_000], ids=["empty", "cut", "not UTF-8", "deep"])
def test_file_that_is_not_json_is_refused(tmp_path, content) -> None:
    """A cut or foreign file is an error of the input, whatever its bytes."""
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        read_report(tmp_path)
    assert caught.value.code == "E743"


@pytest.mark.parametrize("harm", ["missing", "altered"])
def test_samples_that_do_not_belong_are_refused(tmp_path, harm) -> None:
    """A report is never read with other samples than its own."""
    write_report(builders.mixed(), tmp_path)
    path = tmp_path / "samples.json"
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(ArtifactError, match=harm) as caught:
        read_report(tmp_path)
    assert caught.value.code == "E744"


def test_folder_that_cannot_be_written_is_refused(tmp_path) -> None:
    """A file where the folder should be is an error that names it."""
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(ArtifactError) as caught:
        write_report(builders.passing(), tmp_path / "run")
    assert caught.value.code == "E711"
