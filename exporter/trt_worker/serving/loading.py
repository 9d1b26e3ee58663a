"""From the bytes of a plan to an engine: host code, and the device memory of streamed weights, as the plan's sidecar and the settings say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exporter.errors import EngineBuildError
from exporter.trt_worker.serving.features import has
from exporter.trt_worker.serving.tensorrt_module import Messages
from exporter.trt_worker.serving.wishes import require

__all__ = ["Loading", "deserialize"]


@dataclass(frozen=True, slots=True)
class Loading:
    """How a plan is loaded.

    Attributes:
        host_code: code for the host that the plan carries may run: it is version-compatible, and its record was found to be ours.
        streams_weights: it was built for weight streaming.
        budget_bytes: device memory for the weights of such an engine; None leaves it to TensorRT.
    """

    host_code: bool = False
    streams_weights: bool = False
    budget_bytes: int | None = None

    @staticmethod
    def from_json(arguments: Mapping[str, Any]) -> Loading:
        """Return what the arguments of a request say; an older caller says nothing."""
        return Loading(**arguments.get("loading", {}))


def deserialize(trt: Any, runtime: Any, plan: bytes | memoryview, loading: Loading, messages: Messages) -> Any:  # noqa: ANN401 - TensorRT has no types
    """Return the engine of ``plan``; None where TensorRT does not accept it.

    Raises:
        EngineBuildError: this release lacks what the plan was built for (E546), or does not take the budget of the weights (E559).
    """
    if loading.host_code:
        require(trt, "version compatibility", "version_compatible")
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is not None and loading.streams_weights:
        require(trt, "weight streaming", "weight_streaming")
        if has(trt, "weight streaming budget"):
            _set_budget(engine, loading.budget_bytes, messages)
        else:
            _set_old_budget(engine, loading.budget_bytes, messages)
    return engine


def _set_budget(engine: Any, budget_bytes: int | None, messages: Messages) -> None:  # noqa: ANN401 - TensorRT has no types
    asked = engine.get_weight_streaming_automatic_budget() if budget_bytes is None else budget_bytes
    wanted = min(int(asked), int(engine.streamable_weights_size))  # which is all of them
    engine.weight_streaming_budget_v2 = wanted
    if engine.weight_streaming_budget_v2 != wanted:
        raise _budget_refused(wanted, str(engine.weight_streaming_budget_v2), messages)


def _set_old_budget(engine: Any, budget_bytes: int | None, messages: Messages) -> None:  # noqa: ANN401 - TensorRT has no types
    """Set the budget in the way of 10.0: -1 is all weights, 0 (the default) leaves it to TensorRT, and there is a least one."""
    if budget_bytes is None:
        return
    wanted = -1 if budget_bytes >= engine.streamable_weights_size else budget_bytes
    smallest = int(engine.minimum_weight_streaming_budget)
    if wanted != -1 and wanted < max(1, smallest):
        raise _budget_refused(wanted, f"{max(1, smallest)} at the least", messages)
    engine.weight_streaming_budget = wanted
    if engine.weight_streaming_budget != wanted:
        raise _budget_refused(wanted, str(engine.weight_streaming_budget), messages)


def _budget_refused(wanted: int, found: str, messages: Messages) -> EngineBuildError:
    facts = {"asked for": f"{wanted} bytes", "TensorRT takes": f"{found} bytes", **messages.facts()}
    help_text = "another [tensorrt] weight_streaming_budget_mib, or none, which leaves it to TensorRT"
    return EngineBuildError("E559", "TensorRT does not take this budget for the weights of an engine", facts=facts, help=help_text)
