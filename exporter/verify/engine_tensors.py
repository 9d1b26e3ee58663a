"""Name the first tensor inside of a TensorRT engine that departs from the float64 run of the ONNX file that it was built from.

The engine's tensors are compared in the order in which it wrote them. One is matched by its name, else by the ONNX nodes that its layer was
made from: with the one value of its shape that leaves them, where there is just one. What is matched with nothing is counted and named.
A tensor departs where its relative L2 distance is over the rounding floor of the engine's precision, and over ten times the distance of the
same value where ONNX Runtime computes the file in that precision.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from exporter.artifacts import OnnxModel, Plan, TensorSpec
from exporter.errors import ModelNotSupported
from exporter.files import write_bytes
from exporter.runners.base import Array, Feed
from exporter.runners.onnxruntime import OnnxruntimeRunner
from exporter.verify.divergence import AMPLIFICATION, ROWS
from exporter.verify.feeds import NamedFeed
from exporter.verify.profile_shapes import takes

if TYPE_CHECKING:
    import onnx

    from exporter.runners.tensorrt import EngineTensor

__all__ = ["Match", "localise_engine", "match_tensors"]

_FLOORS: Mapping[str, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 4e-2, "int8": 3e-2, "fp8": 1.5e-1}
_FLOOR_TF32 = 5e-3
_LIMIT_BYTES = 1 << 30
_SHOWN = 3
_PROBLEM = "the engine cannot be searched tensor by tensor"
_REORDERED, _SAME_VALUES = 0.5, 0.02
"""What another order of the same values comes to: far apart place by place, and near when both are sorted."""
_HALVES = {"float16", "bfloat16"}


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A tensor of the engine, and the value of the ONNX file that it is compared with.

    Attributes:
        value: its name in the file; empty where there is none.
        how: ``by name`` or ``by its layer's nodes``; else why it is compared with nothing.
    """

    tensor: EngineTensor
    value: str
    how: str


def localise_engine(
    observe: Callable[[Feed], Sequence[EngineTensor]], plan: Plan, model: OnnxModel, feeds: tuple[NamedFeed, ...], *, tf32: bool = False
) -> str:
    """Compare what an engine writes with the float64 run of its ONNX file; return one line that names the first tensor that departs.

    Args:
        observe: runs the engine once and returns its debug tensors.
        plan: of the engine.
        model: the ONNX file that it was built from.
        feeds: those that no profile of the plan takes are left out.
        tf32: the engine may use TF32 for float32 products.

    Raises:
        ModelNotSupported: the file is over 1 GiB (E625), has an operator without a float64 form (E621), or the engine wrote nothing (E528).
    """
    import onnx

    if model.path.stat().st_size > _LIMIT_BYTES:
        raise ModelNotSupported("E625", "the ONNX model is too large to be searched layer by layer", facts={"file": model.path})
    message = onnx.load(str(model.path))
    floor = max(_FLOORS[plan.precision], _FLOOR_TF32 if tf32 and plan.precision == "fp32" else 0.0)
    told = ""
    for named in feeds:
        feed = _head(named, plan)
        if feed is None:
            continue
        tensors = tuple(observe(feed))
        if not tensors:
            raise ModelNotSupported("E528", _PROBLEM, facts={"found": "it handed out no tensor: everything is fused", "file": plan.path})
        first, told = _look(tensors, model, message, feed, floor)
        if first:
            return f"{first}, on {named.name}; {told}"
    if not told:
        raise ModelNotSupported("E528", _PROBLEM, facts={"found": "no feed fits its profiles", "file": plan.path})
    return f"no tensor that could be compared departs: the error arises beside those that the engine hands out; {told}"


def _look(tensors: Sequence[EngineTensor], model: OnnxModel, message: onnx.ModelProto, feed: Feed, floor: float) -> tuple[str, str]:
    """Return what departs first, empty where nothing does, and what was seen and compared."""
    values = _in_float64(message, model, feed, {name for tensor in tensors for name in _candidates(message, tensor)})
    matches = match_tensors(message, tensors, {name: array.shape for name, array in values.items()})
    own = _in_own_precision(message, model, feed, [match.value for match in matches if match.value])
    left: Counter[str] = Counter()
    compared: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    first, not_finite = "", ""
    for match in matches:
        tensor = match.tensor
        place = _place(message, match)
        if not not_finite and tensor.value is not None and tensor.value.dtype.kind == "f" and _has_new(tensor.value, values.get(match.value)):
            not_finite = f"the first NaN or infinity is in {place}; "
        how, is_compared = match.how, bool(match.value)
        if is_compared:
            reference = values[match.value]
            candidate = np.asarray(tensor.value).reshape(reference.shape)
            departure = _distance(reference, candidate)
            own_distance = _distance(reference, own[match.value]) if match.value in own else 0.0
            allowed = max(floor, AMPLIFICATION * own_distance if math.isfinite(own_distance) else 0.0)  # an overflow of the precision is one here too
            if departure > max(allowed, _REORDERED) and _are_same_values(reference, candidate):
                how, is_compared = "its values have another order", False
            elif departure > allowed and not first:
                first = (
                    f"first divergence: {place} differs by {departure:.1e} where {allowed:.0e} is allowed, {sum(compared.values())} before it agree"
                )
        if is_compared:
            compared[how] += 1
        else:
            left[how] += 1
            examples.setdefault(how, []).append(tensor.name)
    by = " and ".join(f"{count} {how}" for how, count in compared.items()) or "none"
    told = f"{not_finite}of {len(matches)} tensors that the engine wrote, compared: {by}"
    for how, count in left.items():
        told += f"; {count} not, {how}: {', '.join(examples[how][:_SHOWN])}{', ...' if count > _SHOWN else ''}"
    return first, told


def match_tensors(message: onnx.ModelProto, tensors: Sequence[EngineTensor], shapes: Mapping[str, tuple[int, ...]]) -> tuple[Match, ...]:
    """Return what each tensor of an engine is compared with.

    Args:
        message: the ONNX file.
        tensors: in the order in which the engine wrote them.
        shapes: value of the file -> shape, as far as it is known.
    """
    found: list[Match] = []
    by_name = {tensor.name for tensor in tensors if tensor.name in shapes}
    for tensor in tensors:
        if tensor.value is None:
            found.append(Match(tensor, "", tensor.unread or "not read"))
            continue
        if tensor.name in shapes:
            fits = _core(shapes[tensor.name]) == _core(tensor.shape)
            found.append(Match(tensor, tensor.name if fits else "", "by name" if fits else "of another shape than the file's value of that name"))
            continue
        names = [name for name in _candidates(message, tensor) if name in shapes and _core(shapes[name]) == _core(tensor.shape)]
        if len(names) == 1 and names[0] not in by_name:
            found.append(Match(tensor, names[0], "by its layer's nodes"))
        else:
            found.append(Match(tensor, "", "no one value of the file answers to it"))
    last = {match.value: match for match in found if match.how == "by its layer's nodes"}
    return tuple(
        dataclasses.replace(match, value="", how="a step on the way to a later one")
        if match.value in last and last[match.value] is not match
        else match
        for match in found
    )


def _candidates(message: onnx.ModelProto, tensor: EngineTensor) -> list[str]:
    """Return the values of the file that ``tensor`` may be: that of its name, else those that leave the nodes of its layer."""
    made = {name for node in message.graph.node for name in node.output if name}
    if tensor.name in made:
        return [tensor.name]
    nodes = [node for node in message.graph.node if node.name in tensor.nodes]
    others = {name for node in message.graph.node if node.name not in tensor.nodes for name in node.input}
    outside = others | {value.name for value in message.graph.output}
    return [name for node in nodes for name in node.output if name in outside]


def _core(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes that are not 1: TensorRT adds such ones, and drops them."""
    return tuple(size for size in shape if size != 1)


def _in_float64(message: onnx.ModelProto, model: OnnxModel, feed: Feed, wanted: set[str]) -> dict[str, Array]:
    from exporter.runners.onnx_float64 import OnnxFloat64Runner

    values: dict[str, Array] = {}

    def keep(node: onnx.NodeProto, outputs: tuple[Array, ...]) -> None:
        values.update({name: np.array(array) for name, array in zip(node.output, outputs, strict=False) if name in wanted})

    with OnnxFloat64Runner("onnx in float64", message, model.inputs, model.outputs) as runner:
        runner.observe(feed, keep)
    return values


def _in_own_precision(message: onnx.ModelProto, model: OnnxModel, feed: Feed, names: list[str]) -> dict[str, Array]:
    """Return the values as ONNX Runtime computes them in the precision of the file; nothing where it does not: then the floor decides alone."""
    import onnx

    from exporter.runners.onnx_rounded import RoundedOnnxRunner

    shown = onnx.ModelProto()
    shown.CopyFrom(message)
    known = {value.name for value in shown.graph.output}
    added = [name for name in dict.fromkeys(names) if name not in known]
    shown.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in added)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "observed.onnx"
        write_bytes(path, shown.SerializeToString())
        visible = dataclasses.replace(model, path=path, outputs=(*model.outputs, *(TensorSpec(name, (), "") for name in added)))
        try:
            is_half = model.precision in _HALVES
            with RoundedOnnxRunner(visible) if is_half else OnnxruntimeRunner(visible, optimize=False) as runner:
                return runner.infer(feed)
        except ModelNotSupported:
            return {}


def _head(named: NamedFeed, plan: Plan) -> Feed | None:
    """Return the first rows, as many as a profile of the plan takes at least; None where it does not take this feed."""
    whole = next(iter(named.chunks()))
    few = {name: array[:ROWS] for name, array in whole.items()}
    for feed in (few, whole):
        if not plan.profiles or takes(plan.profiles, {name: array.shape for name, array in feed.items()}):
            return feed
    return None


def _distance(reference: Array, candidate: Array) -> float:
    """Return the relative L2 distance; infinity where NaN and infinity do not stand at the same places."""
    r, c = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    finite = np.isfinite(r)
    if r.shape != c.shape or not np.array_equal(finite, np.isfinite(c)):
        return float("inf")
    norm, distance = float(np.linalg.norm(r[finite])), float(np.linalg.norm((c - r)[finite]))
    return 0.0 if distance == 0.0 else distance / norm if norm else float("inf")


def _are_same_values(reference: Array, candidate: Array) -> bool:
    """Whether the values are those of the reference, in whatever order: a layout that is not row-major says nothing of the numbers."""
    r, c = (np.sort(np.asarray(array, np.float64), axis=None) for array in (reference, candidate))
    return _distance(r, c) <= _SAME_VALUES


def _has_new(value: Array, reference: Array | None) -> bool:
    """Whether ``value`` holds NaN or infinity where ``reference`` does not."""
    wrong = ~np.isfinite(value)
    return bool((wrong if reference is None else wrong & np.isfinite(reference).reshape(wrong.shape)).any())


def _place(message: onnx.ModelProto, match: Match) -> str:
    tensor = match.tensor
    for number, node in enumerate(message.graph.node, 1):
        if match.value in node.output and match.value:
            return f"tensor {tensor.name!r} ({tensor.dtype}, {node.op_type}, node {node.name!r}, {number} of {len(message.graph.node)}; {match.how})"
    return f"tensor {tensor.name!r} ({tensor.dtype}; {', '.join(tensor.nodes[:_SHOWN]) or 'no node of the file answers to it'})"
