"""Operators that slide a window over space: convolutions by torch in float64, pooling as a reduction over the window's cells."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_max_pool import MaxPool as ReferenceMaxPool
from torch.nn import functional

from exporter.runners.base import Array

__all__ = ["AveragePool", "Conv", "ConvTranspose", "MaxPool"]

_CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


@dataclass(frozen=True, slots=True)
class Window:
    """Geometry of a sliding window, an entry per spatial axis.

    Attributes:
        pads: cells before and after.
        extended: further cells after, so that the last window of ``ceil_mode`` is whole.
        outputs: positions of the window.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    extended: tuple[int, ...]
    outputs: tuple[int, ...]


class Conv(OpRun):
    """``Conv`` of one to three axes."""

    op_domain = ""

    def _run(self, x: Array, weight: Array, bias: Array | None = None, **attributes: Any) -> tuple[Array]:  # noqa: ANN401 - as ONNX has them
        window = window_of(x.shape[2:], weight.shape[2:], attributes)
        convolve = _CONVOLUTIONS.get(x.ndim - 2)
        if convolve is None:
            raise NotImplementedError(f"Conv over {x.ndim - 2} axes")
        symmetric = all(before == after for before, after in window.pads)
        padded = x if symmetric else np.pad(x, ((0, 0), (0, 0), *window.pads))
        result = convolve(
            _tensor(padded),
            _tensor(weight),
            None if bias is None else _tensor(bias),
            stride=window.strides,
            padding=tuple(before for before, _ in window.pads) if symmetric else 0,
            dilation=window.dilations,
            groups=attributes.get("group") or 1,
        )
        return (result.numpy(),)


class ConvTranspose(OpRun):
    """``ConvTranspose`` of one to three axes: the whole result, then its border cut off, or extended by ``output_padding``."""

    op_domain = ""

    def _run(self, x: Array, weight: Array, bias: Array | None = None, **attributes: Any) -> tuple[Array]:  # noqa: ANN401
        rank = x.ndim - 2
        transpose = _TRANSPOSED.get(rank)
        if transpose is None:
            raise NotImplementedError(f"ConvTranspose over {rank} axes")
        strides = tuple(attributes.get("strides") or (1,) * rank)
        dilations = tuple(attributes.get("dilations") or (1,) * rank)
        extra = tuple(attributes.get("output_padding") or (0,) * rank)
        whole = transpose(_tensor(x), _tensor(weight), None, stride=strides, dilation=dilations, groups=attributes.get("group") or 1).numpy()
        pads = _transposed_pads(x.shape[2:], whole.shape[2:], strides, extra, attributes)
        grown = np.pad(whole, ((0, 0), (0, 0), *((max(0, -before), max(0, more - after)) for (before, after), more in zip(pads, extra, strict=True))))
        cut = tuple(
            slice(max(0, before), size - max(0, after - more)) for (before, after), more, size in zip(pads, extra, grown.shape[2:], strict=True)
        )
        result: Array = grown[(slice(None), slice(None), *cut)]
        return (np.ascontiguousarray(result if bias is None else result + bias.reshape(-1, *(1,) * rank)),)


class MaxPool(ReferenceMaxPool):
    """``MaxPool``; with the places of the maxima it is the evaluator's own."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array, ...]:  # type: ignore[override] # noqa: ANN401 - all evaluators pass names
        if len(self.output) > 1 and self.output[1]:
            found: tuple[Array, ...] = super()._run(x, **attributes)  # type: ignore[no-untyped-call]
            return found
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        window = window_of(x.shape[2:], tuple(attributes["kernel_shape"]), attributes)
        return (_reduced(x, window, lowest, np.maximum),)


class AveragePool(OpRun):
    """``AveragePool``; cells beyond the padding, which ``ceil_mode`` adds, never count."""

    op_domain = ""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:  # noqa: ANN401
        window = window_of(x.shape[2:], tuple(attributes["kernel_shape"]), attributes)
        counts = np.ones((1, 1, *x.shape[2:]))
        if attributes.get("count_include_pad"):
            counts = np.pad(counts, ((0, 0), (0, 0), *window.pads), constant_values=1.0)
            padless = Window(window.kernel, window.strides, window.dilations, tuple((0, 0) for _ in window.pads), window.extended, window.outputs)
            num = _reduced(counts, padless, 0.0, np.add)
        else:
            num = _reduced(counts, window, 0.0, np.add)
        return (_reduced(x, window, 0.0, np.add) / num,)


def window_of(sizes: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any]) -> Window:
    """Return the geometry that the attributes of a node mean for an input of ``sizes``."""
    rank = len(sizes)
    strides = tuple(attributes.get("strides") or (1,) * rank)
    dilations = tuple(attributes.get("dilations") or (1,) * rank)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    auto = attributes.get("auto_pad") or "NOTSET"
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        totals = (max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(sizes, strides, reach, strict=True))
        pads = tuple((t // 2, t - t // 2) if auto == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals)
    else:
        given = list(attributes.get("pads") or []) if auto == "NOTSET" else []
        pads = tuple(zip(given[:rank], given[rank:], strict=True)) if given else ((0, 0),) * rank
    outputs, extended = [], []
    for size, (before, after), stride, span in zip(sizes, pads, strides, reach, strict=True):
        room = size + before + after - span
        count = (-(-room // stride) if attributes.get("ceil_mode") else room // stride) + 1
        if attributes.get("ceil_mode") and (count - 1) * stride >= size + before:
            count -= 1  # a window that would begin in the padding behind
        outputs.append(count)
        extended.append(max(0, (count - 1) * stride + span - (size + before + after)))
    return Window(tuple(kernel), strides, dilations, pads, tuple(extended), tuple(outputs))


def _reduced(x: Array, window: Window, fill: float, reduce: Callable[..., Array]) -> Array:
    """Reduce over the cells of the window: one pass over the output for each cell."""
    widths = ((0, 0), (0, 0), *((before, after + more) for (before, after), more in zip(window.pads, window.extended, strict=True)))
    padded = np.pad(x, widths, constant_values=fill)
    result: Array | None = None
    for cell in itertools.product(*map(range, window.kernel)):
        places = (
            slice(at * dilation, at * dilation + (count - 1) * stride + 1, stride)
            for at, dilation, stride, count in zip(cell, window.dilations, window.strides, window.outputs, strict=True)
        )
        part = padded[(slice(None), slice(None), *places)]
        result = part.copy() if result is None else reduce(result, part, out=result)
    return padded if result is None else result


def _transposed_pads(
    sizes: tuple[int, ...], whole: tuple[int, ...], strides: tuple[int, ...], extra: tuple[int, ...], attributes: dict[str, Any]
) -> list[tuple[int, int]]:
    """Return what is cut off before and after each axis of the whole result."""
    rank = len(sizes)
    auto = attributes.get("auto_pad") or "NOTSET"
    wanted = attributes.get("output_shape")
    if not wanted and auto in {"NOTSET", "VALID"}:
        given = list(attributes.get("pads") or []) if auto == "NOTSET" else []
        return list(zip(given[:rank], given[rank:], strict=True)) if given else [(0, 0)] * rank
    targets = list(wanted)[-rank:] if wanted else [size * stride for size, stride in zip(sizes, strides, strict=True)]
    pads = []
    for size, more, target in zip(whole, extra, targets, strict=True):
        total = max(0, size + more - target) if not wanted else size + more - target
        pads.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return pads


def _tensor(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.require(array, requirements=("C", "W")))
