"""Estimate BatchNorm's running statistics anew, with the weights that the network has now.

As ``torch.optim.swa_utils.update_bn`` does: statistics are reset, every batch counts the same (momentum None), one pass over all
samples. Unlike there only the BatchNorm layers are in training mode, so dropout is off; the samples come in a seeded order and in batches
of equal size, give or take one; and a layer that no sample comes through keeps what it has.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from exporter.artifacts import LayerChange
from exporter.errors import ExportError, SampleError
from exporter.factories.outputs import names_of_outputs
from exporter.factories.user_code import running_user_code

__all__ = ["Recalibrated", "batches_of", "output_names", "recalibrate_"]

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_CHANNEL_AXIS = 1
_LEAST_VALUES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Recalibrated:
    """New statistics.

    Attributes:
        arrays: name in the state dict -> values; a layer that stands under several names has them under each.
        layers: what changed, by layer.
        not_reached: layers that no sample came through.
    """

    arrays: Mapping[str, NDArray[Any]]
    layers: tuple[LayerChange, ...]
    not_reached: tuple[str, ...]


def batches_of(num_samples: int, batch: int, seed: int) -> list[NDArray[np.int64]]:
    """Return the samples of each batch: all of them once, in a seeded order, in as few batches of at most ``batch`` as there can be."""
    order = np.random.default_rng(seed).permutation(num_samples)
    return np.array_split(order, math.ceil(num_samples / batch))


def recalibrate_(module: nn.Module, inputs: Mapping[str, NDArray[Any]], batches: list[NDArray[np.int64]], *, threads: int) -> Recalibrated:
    """Estimate the statistics of every BatchNorm of ``module`` in place, on the CPU, and return them.

    Args:
        module: with its weights, in eval mode; it is left in eval mode.
        inputs: name -> array, first axis samples; floating ones are cast to the dtype of the weights.
        batches: from ``batches_of``.
        threads: of torch; sums may depend on it in the last place.

    Raises:
        ExportError: there is no BatchNorm to estimate, an estimate is not finite (E320), or ``forward`` raised (E306).
        SampleError: a batch has fewer than two values per channel (E324).
    """
    found = {name: part for name, part in module.named_modules(remove_duplicate=False) if isinstance(part, _BatchNorm) and _has_statistics(part)}
    if not found:
        facts = {"network": type(module).__name__, "found": "no BatchNorm module with running statistics"}
        raise _cannot(facts, help_text="leave out --bn-stats recalibrate; a .pt2 has no modules any more: name the code that builds the network")
    names: dict[_BatchNorm, str] = {}
    for name, part in found.items():
        names.setdefault(part, name)
    before = {part: [_detached(part, buffer) for buffer in _BUFFERS] for part in names}
    momenta = {part: part.momentum for part in names}
    counts = dict.fromkeys(names, 0)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_threads(threads))
        stack.enter_context(torch.no_grad())
        stack.callback(module.eval)
        for part, name in names.items():
            stack.callback(setattr, part, "momentum", momenta[part])
            stack.callback(part.register_forward_pre_hook(_counter(name, counts)).remove)
            part.reset_running_stats()
            part.momentum = None
            part.train()
        for batch in batches:
            _run(module, inputs, batch)
    for part, old in before.items():
        if not counts[part]:
            for buffer, value in zip(_BUFFERS, old, strict=True):
                getattr(part, buffer).copy_(value)
    reached = {part: name for part, name in names.items() if counts[part]}
    layers = tuple(_change(name, part, before[part], counts[part]) for part, name in reached.items())
    arrays = {f"{name}.{buffer}": getattr(part, buffer).numpy().copy() for name, part in found.items() if part in reached for buffer in _BUFFERS}
    return Recalibrated(arrays, layers, tuple(name for part, name in names.items() if part not in reached))


def output_names(module: nn.Module, inputs: Mapping[str, NDArray[Any]], configured: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the tensors that ``module`` returns: the configured ones, else its own.

    Raises:
        ExportError: ``forward`` raised (E306).
    """
    if configured:
        return configured
    with torch.no_grad():
        returned = _run(module, inputs, np.arange(min(2, len(next(iter(inputs.values()))))))
    leaves, tree = pytree.tree_flatten(returned)
    return tuple(name for name, leaf in zip(names_of_outputs(tree), leaves, strict=True) if isinstance(leaf, Tensor))


def _has_statistics(part: _BatchNorm) -> bool:
    return part.running_mean is not None and part.running_var is not None and part.num_batches_tracked is not None


def _detached(part: nn.Module, buffer: str) -> Tensor:
    value: Tensor = getattr(part, buffer)
    return value.detach().clone()


def _counter(name: str, counts: dict[_BatchNorm, int]) -> Callable[[_BatchNorm, tuple[Any, ...]], None]:
    """Return a hook that counts the values per channel that come into a layer, and refuses a batch with too few."""

    def count(part: _BatchNorm, arguments: tuple[Any, ...]) -> None:
        shape = arguments[0].shape
        values = math.prod(shape) // shape[_CHANNEL_AXIS] if shape[_CHANNEL_AXIS] else 0
        if values < _LEAST_VALUES:
            facts = {
                "layer": name,
                "found": f"{values} value per channel in a batch",
                "expected": f"at least {_LEAST_VALUES}; some hundreds are better",
            }
            raise SampleError("E324", "there are too few samples to estimate BatchNorm statistics", facts=facts, help="[samples] path: more samples")
        counts[part] += values

    return count


def _run(module: nn.Module, inputs: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> Any:  # noqa: ANN401 - whatever the network returns
    dtype = next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), torch.float32)
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array[rows])) for name, array in inputs.items()}
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    with running_user_code("E306", "the network raised while it ran on the samples", kind=ExportError):
        return module(*(cast[name] for name in _in_order(module, tuple(cast))))


def _in_order(module: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the inputs in the order of the parameters of ``forward`` where these bear their names, else as they are."""
    parameters = tuple(inspect.signature(module.forward).parameters)[: len(names)]
    return parameters if set(parameters) == set(names) else names


def _change(name: str, part: nn.Module, before: list[Tensor], count: int) -> LayerChange:
    (old_mean, old_var), (mean, var) = (
        [value.double() for value in pair]
        for pair in (before[:2], (getattr(part, "running_mean"), getattr(part, "running_var")))  # noqa: B009 - typed as Any
    )
    if not (torch.isfinite(mean).all() and torch.isfinite(var).all()):
        raise _cannot({"layer": name, "found": "NaN or infinity"}, help_text="the samples or the weights hold numbers that the network cannot take")
    return LayerChange(name, len(mean), count, _ratio((mean - old_mean).norm(), var.sqrt().norm()), _ratio((var - old_var).norm(), var.norm()))


def _ratio(distance: Tensor, size: Tensor) -> float:
    return float(distance / size) if float(size) else 0.0 if not float(distance) else math.inf


def _cannot(facts: Mapping[str, object], *, help_text: str) -> ExportError:
    return ExportError("E320", "the BatchNorm statistics of this network cannot be estimated", facts=facts, help=help_text)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if before != count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if before != count:
            torch.set_num_threads(before)
