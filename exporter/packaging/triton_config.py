"""What an artefact is to Triton: the content of its ``config.pbtxt``.

The batch axis is Triton's own where every input and output begins with one dynamic axis of one name: then ``dims`` leave it out and
``max_batch_size`` says how far it goes. Elsewhere the dims are whole and ``max_batch_size`` is 0.
Source: model_config.proto and the model configuration guide of Triton Inference Server.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from exporter import __version__
from exporter.artifacts import OnnxModel, Plan, Profile, TensorSpec
from exporter.errors import ArtifactError, ConfigError, ModelNotSupported
from exporter.packaging.pbtxt import Word
from exporter.records import verify_record

__all__ = ["Described", "Serving", "describe"]

_DATA_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64", "bfloat16": "BF16", "object": "STRING",
}  # fmt: skip
_ENGINE_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}


@dataclass(frozen=True, slots=True)
class Serving:
    """How the model is to be served.

    Attributes:
        instances: copies of the model on each device.
        device: where ONNX Runtime runs; a plan runs on a GPU.
        max_batch: the largest batch; None means the largest of the plan's profiles, or ``checked_batch`` for an ONNX model.
        checked_batch: the largest batch that the checks run.
        queue_delay_us: how long a request waits for others to share its batch.
    """

    instances: int = 1
    device: Literal["auto", "cpu", "gpu"] = "auto"
    max_batch: int | None = None
    checked_batch: int = 32
    queue_delay_us: int = 100


@dataclass(frozen=True, slots=True)
class Described:
    """An artefact in Triton's words.

    Attributes:
        file_name: of the artefact in a version folder.
        message: the content of ``config.pbtxt``.
        remarks: what a person should know.
    """

    backend: str
    file_name: str
    max_batch: int
    message: Mapping[str, Any]
    lineage: Mapping[str, str]
    remarks: tuple[str, ...] = field(default=())


def describe(artefact: Plan | OnnxModel, name: str, serving: Serving) -> Described:
    """Return the model's configuration.

    Raises:
        ModelNotSupported: Triton has no name for the dtype of a tensor (E532).
        ConfigError: ``serving`` asks for what the artefact cannot do (E533).
        ArtifactError: the plan has no weights (E547), or its sidecar is missing or not ours (E721 to E723).
    """
    is_plan = isinstance(artefact, Plan)
    if isinstance(artefact, Plan) and artefact.stripped:
        help_text = "put a checkpoint's in: exporter build-trt --refit PLAN CKPT -o NEW"
        raise ArtifactError("E547", "this plan was built without its weights", facts={"file": artefact.path}, help=help_text)
    inputs, outputs = _engine_specs(artefact) if isinstance(artefact, Plan) else (artefact.inputs, artefact.outputs)
    profiles = artefact.profiles if isinstance(artefact, Plan) else ()
    batched = _has_batch_axis((*inputs, *outputs))
    largest = _max_batch(artefact, serving, batched=batched)
    remarks = []
    message: dict[str, Any] = {
        "name": name,
        "platform": "tensorrt_plan" if is_plan else "onnxruntime_onnx",
        "backend": "tensorrt" if is_plan else "onnxruntime",
        "max_batch_size": largest,
        "input": [_tensor(spec, batched=batched) for spec in inputs],
        "output": [_tensor(spec, batched=batched) for spec in outputs],
    }
    gap = _gap(profiles, inputs[0].name, largest) if batched and profiles else ""
    if batched and not gap:
        preferred = sorted({size for profile in profiles if (size := profile.shapes[inputs[0].name][1][0]) <= largest})
        batching: dict[str, Any] = {"preferred_batch_size": preferred} if preferred else {}
        message["dynamic_batching"] = {**batching, "max_queue_delay_microseconds": serving.queue_delay_us}
    elif gap:
        remarks.append(f"no dynamic batching: {gap}")
    else:
        remarks.append("no dynamic batching: the tensors do not share one dynamic batch axis")
    if isinstance(artefact, Plan):
        remarks += _server_options(artefact)
    message["instance_group"] = [_instances(artefact, serving)]
    lineage = _lineage(artefact)
    message["parameters"] = [{"key": f"exporter.{key}", "value": {"string_value": value}} for key, value in lineage.items()]
    return Described(str(message["backend"]), "model.plan" if is_plan else "model.onnx", largest, message, lineage, tuple(remarks))


def _server_options(plan: Plan) -> list[str]:
    """Return what the server has to be started with for this plan."""
    needed = [f'--backend-config=tensorrt,plugins="{name}"' for name in plan.plugins]
    needed += ["--backend-config=tensorrt,version-compatible=true"] if plan.version_compatible else []
    return [f"start the server with {' '.join(needed)}"] if needed else []


def _engine_specs(plan: Plan) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the tensors with the dtypes of the engine: TensorRT 8 has int32 where the model has int64."""
    dtypes = {tensor["name"]: tensor["dtype"] for tensor in verify_record(plan.path)["engine_tensors"]}

    def own(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(spec.name, spec.shape, _ENGINE_DTYPES.get(dtypes[spec.name], dtypes[spec.name])) for spec in specs)

    return own(plan.inputs), own(plan.outputs)


def _has_batch_axis(specs: tuple[TensorSpec, ...]) -> bool:
    first = {spec.shape[0] if spec.shape else 0 for spec in specs}
    return len(first) == 1 and isinstance(first.pop(), str)


def _max_batch(artefact: Plan | OnnxModel, serving: Serving, *, batched: bool) -> int:
    if not batched:
        if serving.max_batch:
            facts = {"file": artefact.path, "found": serving.max_batch, "expected": "one dynamic batch axis in all tensors"}
            raise ConfigError("E533", "a largest batch was asked for, and the model has no batch of its own", facts=facts)
        return 0
    if isinstance(artefact, OnnxModel):
        return serving.max_batch or serving.checked_batch
    largest = max(profile.shapes[artefact.inputs[0].name][2][0] for profile in artefact.profiles)
    if serving.max_batch and serving.max_batch > largest:
        facts = {"file": artefact.path, "found": serving.max_batch, "expected": f"at most {largest}, the largest of its profiles"}
        help_text = "build with a wider profile: exporter build-trt --profile"
        raise ConfigError("E533", "a larger batch was asked for than the engine takes", facts=facts, help=help_text)
    return serving.max_batch or largest


def _tensor(spec: TensorSpec, *, batched: bool) -> dict[str, Any]:
    if spec.dtype not in _DATA_TYPES:
        facts = {"tensor": spec.name, "found": spec.dtype, "expected": ", ".join(sorted(_DATA_TYPES))}
        raise ModelNotSupported("E532", "Triton has no name for the dtype of a tensor", facts=facts)
    shape = spec.shape[1:] if batched else spec.shape
    dims = [size if isinstance(size, int) else -1 for size in shape]
    found: dict[str, Any] = {"name": spec.name, "data_type": Word(f"TYPE_{_DATA_TYPES[spec.dtype]}"), "dims": dims or [1]}
    if not dims:  # Triton wants at least one axis, and takes it away again
        found["reshape"] = {"shape": []}
    return found


def _gap(profiles: Iterable[Profile], name: str, largest: int) -> str:
    """Return the batch sizes from 1 to ``largest`` that no profile takes, for inputs of one shape; empty where every batch is taken."""
    ranges: dict[object, list[tuple[int, int]]] = {}
    for profile in profiles:
        rest = tuple((tensor, *(shape[1:] for shape in (shapes[0], shapes[2]))) for tensor, shapes in sorted(profile.shapes.items()))
        smallest, _, biggest = (shape[0] for shape in profile.shapes[name])
        ranges.setdefault(rest, []).append((smallest, biggest))
    for spans in ranges.values():
        reached = 0
        for smallest, biggest in sorted(spans):
            if smallest > reached + 1:
                return f"no profile takes a batch of {reached + 1}"
            reached = max(reached, biggest)
        if reached < largest:
            return f"no profile takes a batch of {reached + 1} of some shapes"
    return ""


def _instances(artefact: Plan | OnnxModel, serving: Serving) -> dict[str, Any]:
    if isinstance(artefact, OnnxModel):
        return {"count": serving.instances, "kind": Word(_KINDS[serving.device])}
    if serving.device == "cpu":
        facts = {"file": artefact.path, "found": "cpu", "expected": "gpu"}
        raise ConfigError("E533", "an engine of TensorRT cannot be served on a CPU", facts=facts, help="package the ONNX model instead")
    group: dict[str, Any] = {"count": serving.instances, "kind": Word("KIND_GPU")}
    if len(artefact.profiles) > 1:  # by default Triton uses the first profile alone
        group["profile"] = [str(index) for index in range(len(artefact.profiles))]
    return group


def _lineage(artefact: Plan | OnnxModel) -> dict[str, str]:
    own = "plan" if isinstance(artefact, Plan) else "onnx"
    facts = {"version": __version__, f"{own}_sha256": artefact.digest.hex}
    if isinstance(artefact, Plan):
        facts |= {"tensorrt": artefact.tensorrt_version, "gpu": artefact.gpu, "precision": artefact.precision}
    parents = {f"made_from_{what}": digest for what, digest in artefact.provenance.made_from.items()}
    return {key: str(value) for key, value in itertools.chain(facts.items(), parents.items(), artefact.provenance.lineage.items()) if value}
