"""Stage 5/7: OnnxModel -> Plan (+ sidecar).

The builder runs in the TensorRT worker. The plan is a plain plan that other tools open; beside it lies ``<plan>.json``, keyed
with this machine's secret, which says what it was built from, with which settings and versions, and on which GPU.
"""

from __future__ import annotations

from exporter.engine.building import build_engine, plan_key
from exporter.engine.demands import check_settings
from exporter.engine.inspection import layers_of, read_sidecar
from exporter.engine.making import cache_folder, make_engine
from exporter.engine.plans import load_plan
from exporter.engine.profiles import format_profile, parse_profiles
from exporter.engine.refitting import refit_engine, require_refittable
from exporter.engine.support import EngineSupport, probe, require

__all__ = [
    "EngineSupport",
    "build_engine",
    "cache_folder",
    "check_settings",
    "format_profile",
    "layers_of",
    "load_plan",
    "make_engine",
    "parse_profiles",
    "plan_key",
    "probe",
    "read_sidecar",
    "refit_engine",
    "require",
    "require_refittable",
]
