"""New weights for an engine that is there, from the ONNX model that has them: seconds instead of a build.

TensorRT tells of weights that are missing, or do not fit, by False and by lists; each is an error here, and nothing is sent back then.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from exporter.errors import ArtifactError, EngineBuildError
from exporter.trt_worker.serving.building import Built, check_precision, describe_parser_errors, describe_tensors
from exporter.trt_worker.serving.cuda import Device
from exporter.trt_worker.serving.features import has
from exporter.trt_worker.serving.inspecting import precision_shares
from exporter.trt_worker.serving.loop import Call
from exporter.trt_worker.serving.session import read_plan
from exporter.trt_worker.serving.tensorrt_module import Messages, construct, make_logger

__all__ = ["refit"]

_SHOWN_WEIGHTS = 5


def refit(trt: Any, call: Call, device: Device) -> Built:  # noqa: ANN401 - TensorRT has no types
    """Return the plan at ``path`` with the weights of the model at ``onnx_path``.

    Raises:
        ArtifactError: the plan has other bytes (E723), or this TensorRT or GPU does not accept it (E521).
        EngineBuildError: this engine, or this TensorRT, takes no new weights (E542), or the weights do not fit (E544).
    """
    messages = Messages()
    with messages.in_errors():
        return _refit(trt, call, device, messages)


def _refit(trt: Any, call: Call, device: Device, messages: Messages) -> Built:  # noqa: ANN401 - TensorRT has no types
    started = time.monotonic()
    path, onnx_path = call.arguments["path"], call.arguments["onnx_path"]
    logger = make_logger(trt, messages)
    if not has(trt, "parser refitter"):
        raise _not_refittable(path, f"TensorRT {trt.__version__}, which does not refit from ONNX", "TensorRT 10 or newer")
    plan = read_plan(path, call.arguments["sha256"])
    call.progress("load", 0, 1)
    runtime = construct(trt.Runtime, logger, messages=messages)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        facts = {"file": path, "TensorRT version": trt.__version__, "GPU": device.name, **messages.facts()}
        raise ArtifactError("E521", "TensorRT does not accept this plan", facts=facts, help="build it again: exporter build-trt")
    if not engine.refittable:
        raise _not_refittable(path, "an engine that keeps its weights", "one that was built refittable")
    call.progress("refit", 0, 1)
    refitter = construct(trt.Refitter, engine, logger, messages=messages)
    parser = construct(trt.OnnxParserRefitter, refitter, logger, messages=messages)
    if not parser.refit_from_file(onnx_path):
        raise _refused(onnx_path, describe_parser_errors(trt, parser), messages)
    missing = refitter.get_missing_weights()
    if missing:
        more = f" and {len(missing) - _SHOWN_WEIGHTS} more" if len(missing) > _SHOWN_WEIGHTS else ""
        raise _refused(onnx_path, f"weights that the model does not give: {', '.join(missing[:_SHOWN_WEIGHTS])}{more}", messages)
    if not refitter.refit_cuda_engine():
        raise _refused(onnx_path, "refit_cuda_engine returned False", messages)
    call.progress("refit", 1, 1)
    new = _serialized(trt, engine, messages)
    again = runtime.deserialize_cuda_engine(new)  # what is sent is what was looked at
    inspector = None if again is None else again.create_engine_inspector()
    if inspector is None:
        what = "deserialize_cuda_engine" if again is None else "create_engine_inspector"
        raise _call_failed(what, messages)
    shares = precision_shares(str(inspector.get_engine_information(trt.LayerInformationFormat.JSON)))
    check_precision(shares, call.arguments["precision"])
    facts = {
        "build_seconds": time.monotonic() - started,
        "device": device.to_json(),
        "precision_shares": shares,
        "refittable": bool(again.refittable),
        "sha256": hashlib.sha256(new).hexdigest(),
        "tensorrt_version": str(trt.__version__),
        "tensors": describe_tensors(trt, engine),
        "warnings": messages.take(),
    }
    return Built(new, facts)


def _serialized(trt: Any, engine: Any, messages: Messages) -> memoryview:  # noqa: ANN401 - TensorRT has no types
    """Return the plan of an engine with its weights in it, though it came from a plan without them, and refittable again."""
    config = engine.create_serialization_config()
    if config is None:
        raise _call_failed("create_serialization_config", messages)
    worked = config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if has(trt, "refit flag of a plan"):
        worked = config.set_flag(trt.SerializationFlag.INCLUDE_REFIT) and worked
    memory = engine.serialize_with_config(config) if worked else None
    if memory is None:
        raise _call_failed("serialize_with_config", messages)
    return memoryview(memory).cast("B")


def _call_failed(what: str, messages: Messages) -> EngineBuildError:
    return EngineBuildError("E522", "a call of TensorRT did not work", facts={"call": what, **messages.facts()})


def _not_refittable(path: str, found: str, expected: str) -> EngineBuildError:
    facts = {"file": path, "found": found, "expected": expected}
    return EngineBuildError("E542", "this engine takes no new weights", facts=facts, help="build it anew: exporter build-trt --refittable")


def _refused(onnx_path: str, found: str, messages: Messages) -> EngineBuildError:
    facts = {"file": onnx_path, "found": found, **messages.facts()}
    return EngineBuildError("E544", "TensorRT did not take the new weights; nothing was written", facts=facts, help="exporter build-trt builds anew")
