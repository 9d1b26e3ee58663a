"""New weights for a plan: refused where graph or engine are not made for it, written whole or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from exporter import __version__
from exporter.artifacts import Digest, OnnxModel, Plan, Provenance, to_json
from exporter.config import TensorrtConfig
from exporter.engine.inspection import read_sidecar
from exporter.engine.plans import plan_from_content
from exporter.engine.structure import structure_digest
from exporter.errors import EngineBuildError
from exporter.files import digest_of_settings, write_bytes
from exporter.records import write_record
from exporter.trt_worker import Worker, loading_arguments
from exporter.trt_worker.serving.features import version_has

__all__ = ["refit_engine", "require_refittable"]

_REBUILD = "build it anew: exporter build-trt --refittable"


def require_refittable(plan: Plan) -> None:
    """Refuse a plan that takes no new weights, before anything is baked for it.

    Raises:
        EngineBuildError: E542.
        ArtifactError: its sidecar is missing or not ours (E721 to E723).
    """
    facts = {"file": plan.path, "found": "built with refittable = false", "expected": "refittable = true"}
    if not read_sidecar(plan.path).get("refittable"):
        raise EngineBuildError("E542", "this engine takes no new weights", facts=facts, help=_REBUILD)
    if not version_has(plan.tensorrt_version, "parser refitter"):
        facts |= {"found": f"TensorRT {plan.tensorrt_version}, which does not refit from ONNX", "expected": "TensorRT 10 or newer"}
        raise EngineBuildError("E542", "this engine takes no new weights", facts=facts, help="build the new engine: exporter build-trt")


def refit_engine(
    plan: Plan, model: OnnxModel, path: Path, config: TensorrtConfig, *, progress: Callable[[str, int, int], bool] | None = None
) -> Plan:
    """Write ``plan`` with the weights of ``model`` to ``path``, with a sidecar of its own.

    Raises:
        EngineBuildError: the plan takes no new weights (E542), the model is of another structure than the one that it was built from (E543),
            or TensorRT did not take the weights (E544); E503 to E506.
        ArtifactError: the plan or its sidecar is not ours (E721 to E723), TensorRT does not accept it (E521), or a plugin library that it needs
            is not named (E556, E557).
        EnvironmentLacking: E851 to E858.
    """
    require_refittable(plan)
    content = dict(read_sidecar(plan.path))
    found = structure_digest(model)
    if found != content["structure"]:
        facts = {"file": model.path, "found": f"structure {found[:16]}", "expected": f"structure {content['structure'][:16]}", "plan": plan.path}
        raise EngineBuildError("E543", "the new model is not the network that the engine was built from", facts=facts, help=_REBUILD)
    loading = loading_arguments(plan.path, plan.digest.hex, content, config)
    arguments = {**loading, "onnx_path": str(model.path.absolute()), "precision": plan.precision}
    with Worker(config.python) as worker:
        reply = worker.request("refit", arguments, limit_s=config.timeout_s, progress=progress)
        python_version = worker.python_version
    told = reply.value
    if len(reply.buffers) != 1 or hashlib.sha256(reply.buffers[0]).hexdigest() != told["sha256"]:
        raise EngineBuildError("E506", "the TensorRT worker sent a damaged plan; nothing was written", facts={"file": path})
    provenance = Provenance(
        stage="engine",
        made_from={"onnx": str(model.digest), "plan": str(plan.digest)},
        settings=content["provenance"]["settings"],
        versions={**content["provenance"]["versions"], "exporter": __version__, "tensorrt": told["tensorrt_version"], "python": python_version},
        lineage=dict(model.provenance.lineage),
    )
    content |= {
        "build_seconds": told["build_seconds"],
        "device": told["device"],
        "gpu": told["device"]["name"],
        "engine_tensors": told["tensors"],
        "realised_precision": told["precision_shares"],
        "refittable": told["refittable"],
        "stripped": False,
        "warnings": told["warnings"],
        "provenance": to_json(provenance),
    }
    write_bytes(path, bytes(reply.buffers[0]))
    key = digest_of_settings({"refitted": plan.digest.hex, "onnx": model.digest.hex}).hex
    digest = write_record(path, key=key, content=content)
    return plan_from_content(path, Digest(digest.hex), content)
