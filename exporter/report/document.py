"""A report as a JSON document with a version, and back.

Keys stand in the order of the fields of the artefacts, and mappings keep their own order, so equal reports give equal bytes.
Raw latency samples are taken out of the document (``latency_samples``) and put back on reading.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Final

from exporter.artifacts import LatencyEvidence, MetricEvidence, ParityEvidence, RangeEvidence, Report, to_json
from exporter.errors import ArtifactError

__all__ = ["SCHEMA_VERSION", "document_from_report", "report_from_document", "samples_from_report"]

SCHEMA_VERSION: Final = 1
_SCHEMA_NAME: Final = "exporter report"
_EVIDENCE: Final[dict[str, type]] = {"parity": ParityEvidence, "latency": LatencyEvidence, "metric": MetricEvidence, "range": RangeEvidence}
_SAMPLES: Final = ("samples_ms", "reference_samples_ms")
_NONFINITE: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def document_from_report(report: Report) -> dict[str, Any]:
    """Return ``report`` as JSON types, without the raw latency samples (see ``samples_from_report``)."""
    body = to_json(report)
    for verdict, item in zip(report.verdicts, body["verdicts"], strict=True):
        if verdict.evidence is not None:
            item["evidence"] = {"kind": _kind_of(verdict.evidence), **item["evidence"]}
            for name in _SAMPLES:
                item["evidence"].pop(name, None)
    return {"schema": {"name": _SCHEMA_NAME, "version": SCHEMA_VERSION}, **body}


def samples_from_report(report: Report) -> dict[str, Any]:
    """Return the raw latency samples: index of the verdict -> contestant names and times in milliseconds per call."""
    found: dict[str, Any] = {}
    for index, verdict in enumerate(report.verdicts):
        evidence = verdict.evidence
        if isinstance(evidence, LatencyEvidence):
            found[str(index)] = {
                "candidate": evidence.candidate,
                "reference": evidence.reference,
                "batch": evidence.batch,
                "samples_ms": to_json(evidence.samples_ms),
                "reference_samples_ms": to_json(evidence.reference_samples_ms),
            }
    return found


def report_from_document(document: object, samples: Mapping[str, Any] | None = None, *, where: str = "report.json") -> Report:
    """Return the report that ``document`` holds; unknown keys are ignored, a missing key takes its default where there is one.

    Args:
        document: what ``json.loads`` made of a ``report.json``.
        samples: what ``samples_from_report`` gave; None leaves the raw samples out.
        where: what to call the document in a message.

    Raises:
        ArtifactError: not a report (E743), or written with a schema that this version does not know (E742).
    """
    schema = document.get("schema") if isinstance(document, Mapping) else None
    if not isinstance(document, Mapping) or not isinstance(schema, Mapping) or schema.get("name") != _SCHEMA_NAME:
        raise _misfit(where, "schema", schema, f"the name {_SCHEMA_NAME!r} and a version")
    if schema.get("version") != SCHEMA_VERSION:
        facts = {"file": where, "found": f"version {schema.get('version')!r}", "expected": f"version {SCHEMA_VERSION}"}
        way_out = "read it with the version of exporter that wrote it, or run again"
        raise ArtifactError("E742", "the report was written with another schema", facts=facts, help=way_out)
    body = dict(document)
    verdicts = body.get("verdicts")
    if isinstance(verdicts, list):
        body["verdicts"] = [_with_samples(item, (samples or {}).get(str(index), {})) for index, item in enumerate(verdicts)]
    report: Report = _decode(Report, body, "", where)
    return report


def _with_samples(verdict: object, samples: object) -> object:
    if not isinstance(verdict, Mapping) or not isinstance(verdict.get("evidence"), Mapping) or verdict["evidence"].get("kind") != "latency":
        return verdict
    given = samples if isinstance(samples, Mapping) else {}
    return {**verdict, "evidence": {**verdict["evidence"], **{name: given.get(name, []) for name in _SAMPLES}}}


def _kind_of(evidence: object) -> str:
    return next(kind for kind, type_ in _EVIDENCE.items() if isinstance(evidence, type_))


def _decode(kind: Any, value: Any, at: str, where: str) -> Any:  # noqa: ANN401 - JSON in, artefact out
    """Return ``value`` (JSON) as ``kind``, a type as the artefacts are annotated with."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(arguments, value, at, where)
    if origin is typing.Literal:
        if value not in arguments:
            raise _misfit(where, at, value, f"one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        _expect(isinstance(value, list), where, at, value, "a list")
        return tuple(_decode(arguments[0], item, f"{at}/{index}", where) for index, item in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _expect(isinstance(value, Mapping), where, at, value, "an object")
        return {key: _decode(arguments[1], item, f"{at}/{key}", where) for key, item in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        _expect(isinstance(value, Mapping), where, at, value, "an object")
        return _decode_fields(kind, value, at, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        _expect(value in [member.value for member in kind], where, at, value, f"one of {', '.join(str(member.value) for member in kind)}")
        return kind(value)
    return _decode_scalar(kind, value, at, where)


def _decode_union(arguments: tuple[Any, ...], value: Any, at: str, where: str) -> Any:  # noqa: ANN401 - JSON in, artefact out
    if value is None and types.NoneType in arguments:
        return None
    kinds = [argument for argument in arguments if argument is not types.NoneType]
    if len(kinds) == 1:
        return _decode(kinds[0], value, at, where)
    tag = str(value.get("kind")) if isinstance(value, Mapping) else ""
    _expect(tag in _EVIDENCE, where, f"{at}/kind", tag, f"one of {', '.join(_EVIDENCE)}")
    return _decode(_EVIDENCE[tag], value, at, where)


def _decode_fields(kind: type, value: Mapping[str, Any], at: str, where: str) -> Any:  # noqa: ANN401 - an artefact
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        place = f"{at}/{field.name}" if at else field.name
        if field.name in value:
            given[field.name] = _decode(hints[field.name], value[field.name], place, where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _misfit(where, place, "nothing", "a value")
    return kind(**given)


def _decode_scalar(kind: Any, value: Any, at: str, where: str) -> Any:  # noqa: ANN401 - JSON in, scalar out
    if kind is float:
        if isinstance(value, str) and value in _NONFINITE:
            return _NONFINITE[value]
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), where, at, value, "a number")
        return float(value)
    is_fitting = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    _expect(is_fitting, where, at, value, {"str": "a string", "int": "an integer", "bool": "true or false"}.get(kind.__name__, kind.__name__))
    return value


def _expect(condition: bool, where: str, at: str, value: object, expected: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not condition:
        raise _misfit(where, at, value, expected)


def _misfit(where: str, at: str, value: object, expected: str) -> ArtifactError:
    text = repr(value)
    limit = 80
    facts = {"file": where, "at": at or "the top", "found": text if len(text) <= limit else f"{text[:limit]}...", "expected": expected}
    return ArtifactError("E743", "the file does not hold a report", facts=facts)
