"""What a user may wish of a plan and not every release of TensorRT can give: refused by name where it cannot, never left out in silence."""

from __future__ import annotations

from typing import Any, Protocol

from exporter.errors import EngineBuildError
from exporter.trt_worker.serving.features import FEATURES, has

__all__ = ["Wishes", "allow_precision", "require", "set_wishes"]


class Wishes(Protocol):
    """The part of a build request that says what the plan is to be able to do."""

    @property
    def strict_nans(self) -> bool:
        """Whether NaN and infinity are kept."""
        ...

    @property
    def batch_invariant(self) -> bool:
        """Whether a row's result does not depend on its batch."""
        ...

    @property
    def hardware_compatibility(self) -> str:
        """Return which GPUs the plan runs on."""
        ...

    @property
    def refittable(self) -> bool:
        """Whether the plan takes new weights."""
        ...

    @property
    def stripped(self) -> bool:
        """Whether the plan leaves without weights, to take them later."""
        ...

    @property
    def version_compatible(self) -> bool:
        """Whether later releases run the plan."""
        ...

    @property
    def weight_streaming(self) -> bool:
        """Whether weights may stay in the host's memory."""
        ...


def set_wishes(trt: Any, config: Any, request: Wishes) -> None:  # noqa: ANN401 - TensorRT has no types
    """Set flags and levels.

    Raises:
        EngineBuildError: this release does not have what is asked for (E546).
    """
    if request.refittable or request.stripped:
        config.set_flag(trt.BuilderFlag.REFIT)
    if request.stripped:
        require(trt, "stripped plans", "stripped")
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
    if request.strict_nans:
        require(trt, "strict nans", "strict_nans")
        config.set_flag(trt.BuilderFlag.STRICT_NANS)
    if request.batch_invariant:
        require(trt, "batch invariance", "batch_invariant")
        config.set_flag(trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE)
    if request.version_compatible:
        require(trt, "version compatibility", "version_compatible")
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if request.weight_streaming:
        require(trt, "weight streaming", "weight_streaming")
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if request.hardware_compatibility == "ampere_plus":
        require(trt, "hardware compatibility", "hardware_compatibility")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif request.hardware_compatibility == "same_compute_capability":
        require(trt, "same compute capability", "hardware_compatibility")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def require(trt: Any, feature: str, setting: str, *, section: str = "tensorrt") -> None:  # noqa: ANN401 - a module without types
    """Refuse a release that does not have ``feature``, by the name of the setting that asks for it (E546)."""
    if not has(trt, feature):
        first = ".".join(map(str, FEATURES[feature][0]))
        facts = {"setting": f"[{section}] {setting}", "found": f"TensorRT {trt.__version__}", "expected": f"TensorRT {first} or newer"}
        raise EngineBuildError("E546", "this TensorRT does not have what a setting asks for", facts=facts, help="leave the setting out, or update")


def allow_precision(trt: Any, config: Any, precision: str) -> None:  # noqa: ANN401 - TensorRT has no types
    """Let a builder without strong types use the precision of the graph: without the flag it refuses it, or computes in float32.

    Raises:
        EngineBuildError: this release has no fp8 (E546).
    """
    if precision == "fp8":
        require(trt, "strongly typed", "precision", section="onnx")
    elif precision == "fp16":
        config.set_flag(trt.BuilderFlag.FP16)
    elif precision == "int8":
        config.set_flag(trt.BuilderFlag.INT8)
