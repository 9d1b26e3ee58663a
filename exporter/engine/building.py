"""Building an engine: check, ask the worker, write plan and sidecar."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporter import __version__
from exporter.artifacts import Digest, OnnxModel, Plan, Profile, Provenance
from exporter.config import TensorrtConfig
from exporter.engine.demands import check_settings
from exporter.engine.float32_nodes import find_float32_nodes
from exporter.engine.plans import plan_content, plan_from_content
from exporter.engine.support import EngineSupport
from exporter.engine.timing_cache import held_timing_cache, timing_key
from exporter.errors import ArtifactError, EngineBuildError
from exporter.files import atomic_write, digest_of_file, digest_of_settings
from exporter.records import write_record
from exporter.trt_worker import PluginLibrary, Reply, Worker, find_plugins

__all__ = ["build_engine", "plan_key"]

SHORT_NAMES = {"float64": "fp32", "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "fp8": "fp8"}
"""Precision of a model -> that of its engine; TensorRT has no float64."""
_PROBE_LIMIT_S = 120.0
_BUILDER_FLAGS = (
    "strict_nans", "batch_invariant", "hardware_compatibility", "refittable", "stripped", "version_compatible", "weight_streaming",
    "reproducible", "debug_tensors",
)  # fmt: skip
_CONTENT_SETTINGS = ("tf32", "workspace_mib", "optimization_level", "timing_iterations", *_BUILDER_FLAGS)
"""The settings that decide what a plan is; the others decide how it is made."""


def plan_key(onnx: Digest, config: TensorrtConfig, profiles: tuple[Profile, ...], support: EngineSupport) -> str:
    """Return the digest of everything that decides a plan: ONNX bytes, settings, profiles, versions and the GPU."""
    return digest_of_settings({
        "onnx": onnx.hex,
        "settings": _settings(config, find_plugins(config)),
        "profiles": _profiles_json(profiles),
        "exporter": __version__,
        "tensorrt": support.tensorrt_version,
        "gpu": [support.gpu, support.compute_capability, support.num_multiprocessors, support.memory_bytes],
        "driver": [support.driver, support.cuda_version],
    }).hex  # fmt: skip


def build_engine(
    model: OnnxModel,
    path: Path,
    config: TensorrtConfig,
    profiles: tuple[Profile, ...],
    *,
    key: str,
    progress: Callable[[str, int, int], bool] | None = None,
    cache: Path | None = None,
) -> Plan:
    """Build the engine of ``model`` and write it to ``path``, with its sidecar ``<path>.json``.

    Args:
        model: the checked ONNX file; its bytes must still have its digest.
        path: of the plan.
        config: settings of the build and of the worker.
        profiles: see ``parse_profiles``; unused where no input is dynamic.
        key: see ``plan_key``; it goes into the sidecar and decides whether the plan is up to date.
        progress: called with phase, steps done and steps in all (0: unknown); returning False cancels the build. TensorRT before 10
            has no way to be interrupted: there the worker is ended.
        cache: folder of timing caches; none is used where it is None.

    Raises:
        ArtifactError: the ONNX file is not the one that ``model`` describes (E526), or a plugin library cannot be used (E556, E557).
        ConfigError: two settings exclude each other (E555).
        EngineBuildError: E501 to E507, E522, E523, E541, E545, E546, E558, E560, E561.
        ModelNotSupported: E524.
        EnvironmentLacking: E851 to E858.
    """
    check_settings(config)
    found = digest_of_file(model.path)
    if found.hex != model.digest.hex:
        facts = {"file": model.path, "found": found, "expected": model.digest}
        raise ArtifactError("E526", "the ONNX file is not the one that was exported", facts=facts, help="export it again: exporter export-onnx")
    plugins = find_plugins(config)
    arguments = {
        "onnx_path": str(model.path.absolute()),
        "precision": SHORT_NAMES[model.precision],
        "float32_nodes": find_float32_nodes(model).to_json(),
        "profiles": _profiles_json(profiles),
        "tf32": config.tf32,
        "workspace_bytes": config.workspace_mib << 20,
        "optimization_level": config.optimization_level,
        "timing_iterations": config.timing_iterations,
        **{name: getattr(config, name) for name in _BUILDER_FLAGS},
        "plugins": [library.to_json() for library in plugins],
    }
    with Worker(config.python) as worker:
        reply = _request(worker, arguments, config, cache, key, progress)
        python_version = worker.python_version
    if not reply.buffers or hashlib.sha256(reply.buffers[0]).hexdigest() != reply.value["sha256"]:
        raise EngineBuildError("E506", "the TensorRT worker sent a damaged plan; nothing was written", facts={"file": path})
    provenance = Provenance(
        stage="engine",
        made_from={"onnx": str(model.digest)},
        settings={**_settings(config, plugins), "profiles": _profiles_json(profiles)},
        versions={
            "exporter": __version__, "tensorrt": reply.value["tensorrt_version"], "python": python_version,
            "driver": reply.value["device"]["driver_version"], "cuda": reply.value["device"]["cuda_version"],
        },
        lineage=dict(model.provenance.lineage),
    )  # fmt: skip
    content = plan_content(model, SHORT_NAMES[model.precision], config, profiles, plugins, provenance, reply.value)
    with atomic_write(path) as file:
        file.write(reply.buffers[0])
    digest = write_record(path, key=key, content=content)
    if digest.hex != reply.value["sha256"]:
        raise ArtifactError(
            "E723", "an artefact differs from its record", facts={"file": path, "found": digest, "expected": f"sha256:{reply.value['sha256']}"}
        )
    return plan_from_content(path, Digest(digest.hex), content)


def _request(
    worker: Worker,
    arguments: Mapping[str, Any],
    config: TensorrtConfig,
    cache: Path | None,
    plan_key: str,
    progress: Callable[[str, int, int], bool] | None,
) -> Reply:
    """Ask for a build, with the timing cache of this TensorRT and GPU where there is a folder for it.

    A reproducible build has a timing cache of its own, which holds its own tactics and no others.
    """
    if cache is None:
        return worker.request("build", arguments, (b"",), limit_s=config.timeout_s, progress=progress)
    found = worker.request("probe", limit_s=_PROBE_LIMIT_S).value
    key = timing_key(found["tensorrt_version"], found["device"] or {}, config, precision=arguments["precision"])
    with contextlib.ExitStack() as stack:
        timing = stack.enter_context(held_timing_cache(cache, key, limit_s=config.timeout_s, progress=progress))
        if config.reproducible:  # the other one stays held: two builds at once would measure each other
            key = digest_of_settings({"timing": key, "plan": plan_key}).hex
            timing = stack.enter_context(held_timing_cache(cache, key, limit_s=config.timeout_s, progress=progress))
        given = {**arguments, "timing_cache": True, "tactics": dict(timing.tactics)}
        reply = worker.request("build", given, (timing.content,), limit_s=config.timeout_s, progress=progress)
        if len(reply.buffers) > 1:
            timing.keep(reply.buffers[1], reply.value["tactics"])
    return reply


def _settings(config: TensorrtConfig, plugins: tuple[PluginLibrary, ...]) -> dict[str, Any]:
    settings: Mapping[str, Any] = config.to_json()
    return {**{name: settings[name] for name in _CONTENT_SETTINGS}, "plugins": [library.sha256 for library in plugins]}


def _profiles_json(profiles: tuple[Profile, ...]) -> list[dict[str, list[list[int]]]]:
    return [{name: [list(shape) for shape in shapes] for name, shapes in profile.shapes.items()} for profile in profiles]
