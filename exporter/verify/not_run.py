"""The verdict of a candidate that this machine cannot run."""

from __future__ import annotations

from exporter.artifacts import Outcome, Verdict
from exporter.config import OnnxruntimeConfig
from exporter.errors import EnvironmentLacking

__all__ = ["not_run"]


def not_run(check: str, subject: str, err: EnvironmentLacking, config: OnnxruntimeConfig) -> Verdict:
    """Return NOT_RUN for a provider of ONNX Runtime, with what this machine lacks as its reason.

    It is required where ``config`` says so, and where the CPU is not listed: then nothing else judges the file.
    """
    found = err.facts.get("found", "")
    required = config.required or "CPUExecutionProvider" not in config.providers
    return Verdict(check, subject, Outcome.NOT_RUN, f"{err.problem}{f' ({found})' if found else ''}", required=required)
