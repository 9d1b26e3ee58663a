import copy
import dataclasses
import json
import math

import pytest

from exporter.artifacts import Report
from exporter.errors import ArtifactError
from exporter.report import SCHEMA_VERSION, document_from_report, read_report, report_from_document, write_report
from exporter.report.document import samples_from_report
from tests.report import builders, networks

EVERY_REPORT = pytest.mark.parametrize(
    "build", [builders.passing, builders.failing, builders.mixed, builders.hostile, networks.networked], ids=lambda build: build.__name__
)


def _through_json(report: Report) -> Report:
    document, samples = json.loads(json.dumps([document_from_report(report), samples_from_report(report)], allow_nan=False))
    return report_from_document(document, samples)


@EVERY_REPORT
def test_report_survives_json(build) -> None:
    """A report written as JSON and read again is equal, down to NaN, infinity and lone surrogates."""
    assert _through_json(build()) == build()


@pytest.mark.parametrize("build", [builders.mixed, builders.hostile], ids=lambda build: build.__name__)
def test_report_survives_the_folder(build, tmp_path) -> None:
    """``read_report`` gives back what ``write_report`` was given, from the folder or from the file."""
    write_report(build(), tmp_path / "run")
    assert read_report(tmp_path / "run") == build()
    assert read_report(tmp_path / "run" / "report.json") == build()


def test_equal_reports_give_equal_bytes(tmp_path) -> None:
    """Nothing volatile is added: two writings of one report are the same, file for file."""
    for name in ("a", "b"):
        write_report(builders.mixed(), tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["junit.xml", "report.html", "report.json", "samples.json", "summary.md"]
    assert [(tmp_path / "a" / name).read_bytes() for name in files] == [(tmp_path / "b" / name).read_bytes() for name in files]


def test_order_of_contestants_is_kept(tmp_path) -> None:
    """A mapping comes back in its own order, so that a report rendered again shows raw before averaged."""
    (tmp_path / "report.json").write_text(json.dumps(document_from_report(builders.passing())))
    evidence = next(verdict.evidence for verdict in read_report(tmp_path).verdicts if verdict.check == "metric")
    assert list(evidence.values) == ["raw", "ema", "torch-fused", "onnx"]


def test_keys_stand_in_the_order_of_the_artefact() -> None:
    """The schema comes first and the fields follow in their declared order."""
    document = document_from_report(builders.passing())
    assert list(document) == ["schema", *(field.name for field in dataclasses.fields(Report))]
    assert document["schema"] == {"name": "exporter report", "version": SCHEMA_VERSION}


def test_raw_samples_stand_apart() -> None:
    """report.json stays readable: thousands of raw samples are not in it."""
    document = document_from_report(builders.passing())
    races = [item["evidence"] for item in document["verdicts"] if item["check"] == "latency" and item["evidence"]]
    assert len(races) == 2
    assert all("samples_ms" not in race and "reference_samples_ms" not in race and len(race["round_log_ratios"]) == 20 for race in races)


def test_optional_fields_may_be_missing_and_unknown_ones_are_ignored() -> None:
    """A document of the same schema with fewer optional and more unknown keys is read."""
    document = document_from_report(builders.mixed())
    del document["remarks"]
    document["novelty"] = {"of": "a later release"}
    assert report_from_document(document).remarks == ()


def test_nan_stays_nan() -> None:
    """A NaN is text in JSON and a number again when read."""
    report = dataclasses.replace(builders.passing(), seconds=math.nan)
    assert document_from_report(report)["seconds"] == "nan"
    assert math.isnan(_through_json(report).seconds)


def _put(path, value):
    def change(document):
        *way, last = path
        for step in way:
            document = document[step]
        if value is KeyError:
            del document[last]
        else:
            document[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "place"),
    [
        pytest.param(_put(["schema", "name"], "another"), "schema", id="another document"),
        pytest.param(_put(["run"], KeyError), "run", id="missing field"),
        pytest.param(_put(["outcome"], "MAYBE"), "outcome", id="unknown outcome"),
        pytest.param(_put(["outcome"], ["PASS"]), "outcome", id="a list for an outcome"),
        pytest.param(_put(["seconds"], "long"), "seconds", id="text for a number"),
        pytest.param(_put(["seconds"], True), "seconds", id="a truth value for a number"),
        pytest.param(_put(["verdicts"], {}), "verdicts", id="object for a list"),
        pytest.param(_put(["lineage"], []), "lineage", id="list for an object"),
        pytest.param(_put(["stages", 0, "state"], "half"), "stages/0/state", id="unknown state"),
        pytest.param(_put(["stages", 0, "state"], {}), "stages/0/state", id="object for a state"),
        pytest.param(_put(["verdicts", 0, "evidence", "kind"], "belief"), "verdicts/0/evidence/kind", id="unknown evidence"),
        pytest.param(_put(["verdicts", 0, "required"], 1), "verdicts/0/required", id="number for a truth value"),
        pytest.param(_put(["folded", 0, "num_channels"], 1.5), "folded/0/num_channels", id="fraction for a count"),
        pytest.param(_put(["stages", 0], "bake"), "stages/0", id="text for an object"),
    ],
)
def test_misfit_is_refused_with_its_place(change, place) -> None:
    """What does not fit the schema is refused, naming the key path."""
    document = copy.deepcopy(document_from_report(builders.passing()))
    change(document)
    with pytest.raises(ArtifactError) as caught:
        report_from_document(document, where="runs/1/report.json")
    assert (caught.value.code, caught.value.facts["at"], caught.value.facts["file"]) == ("E743", place, "runs/1/report.json")


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None])
def test_unknown_schema_version_is_refused(version) -> None:
    """Another schema version is never guessed at."""
    document = document_from_report(builders.passing())
    document["schema"]["version"] = version
    with pytest.raises(ArtifactError, match="another schema") as caught:
        report_from_document(document)
    assert caught.value.code == "E742"


@pytest.mark.parametrize("document", [None, [], 1, "report", {}])
def test_anything_else_is_no_report(document) -> None:
    """JSON that is not a report is refused, whatever it is."""
    with pytest.raises(ArtifactError) as caught:
        report_from_document(document)
    assert caught.value.code == "E743"
