"""Run a torch module as if its products computed in 8 bits, each with the best range there is.

Before every convolution and every linear layer its input is rounded to 8 bits with the range that the batch itself has, and its weight with that of
each output channel (int8) or of the whole (fp8); the rest is float32. No file takes part: this is what 8 bits cost the network, and what a
file's own ranges, which come from other samples and may cut values off, are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from exporter.artifacts import TensorSpec
from exporter.config import InputConfig
from exporter.runners.torch import TorchRunner

__all__ = ["EightBitTorchRunner"]

_LARGEST_INT8 = 127.0
_CHANNEL_AXIS: Mapping[Callable[..., Any], int] = {
    functional.conv1d: 0,
    functional.conv2d: 0,
    functional.conv3d: 0,
    functional.conv_transpose1d: 1,
    functional.conv_transpose2d: 1,
    functional.conv_transpose3d: 1,
    functional.linear: 0,
}
"""Function -> axis of its weight along which the output channels lie."""


class EightBitTorchRunner(TorchRunner):
    """Runs an ``nn.Module`` on the CPU with the inputs and weights of its products rounded to ``int8`` or ``fp8``."""

    def __init__(
        self,
        name: str,
        module: torch.nn.Module,
        inputs: tuple[InputConfig | TensorSpec, ...],
        outputs: tuple[str | TensorSpec, ...],
        *,
        precision: str,
        threads: int = 1,
    ) -> None:
        super().__init__(name, module, inputs, outputs, threads=threads)
        self.precision = precision
        self.settings["arithmetic"] = f"float32, products of values rounded to {precision}"

    def _call(self, tensors: tuple[torch.Tensor, ...]) -> Any:  # noqa: ANN401 - whatever the user's module returns
        with _RoundedProducts(self.precision):
            return super()._call(tensors)


class _RoundedProducts(TorchFunctionMode):
    """While it is entered, products see rounded values."""

    def __init__(self, precision: str) -> None:
        super().__init__()
        self._round = _to_int8 if precision == "int8" else _to_fp8

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401 - torch's signature
        given = dict(kwargs or {})
        if func in _CHANNEL_AXIS:
            names = ("input", "weight")
            values = [args[place] if place < len(args) else given.pop(name) for place, name in enumerate(names)]
            args = (self._round(values[0], None), self._round(values[1], _CHANNEL_AXIS[func]), *args[2:])
        return func(*args, **given)


def _to_int8(values: torch.Tensor, axis: int | None) -> torch.Tensor:
    size = values.abs()
    largest = size.max() if axis is None else size.amax(dim=[other for other in range(size.ndim) if other != axis], keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / _LARGEST_INT8
    return (values / scale).round().clamp(-_LARGEST_INT8, _LARGEST_INT8) * scale


def _to_fp8(values: torch.Tensor, axis: int | None) -> torch.Tensor:  # noqa: ARG001 - one range for the whole: see the module
    largest = values.abs().max()
    scale = torch.where(largest > 0, largest, torch.ones_like(largest)) / torch.finfo(torch.float8_e4m3fn).max
    return (values / scale).to(torch.float8_e4m3fn).to(values.dtype) * scale
