"""The graph as the planner sees it: values, operators with a role, users. No torch and no ONNX in here.

Adapters build it (``aten/reading.py`` from an exported program). A value is known by the name of the node that makes it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from exporter.graph.through import Join, KeepsChannels, Maximum, Permutation, PixelShuffle, PositiveHomogeneous, Reshape, Sum, Take

__all__ = ["AbstractGraph", "BatchNorm", "ChannelAffine", "ConstantAffine", "Linear", "Lone", "Operator", "Role", "Training", "Value", "Window"]


class Training(enum.Enum):
    """Where a normalisation takes its statistics from."""

    RUNNING = "running statistics"
    BATCH = "statistics of the batch, although it has running ones: training mode"
    UNTRACKED = "statistics of the batch, it keeps no running ones"


@dataclass(slots=True)
class Value:
    """A tensor in the graph.

    Attributes:
        users: names of the operators that read it, in graph order, without repetition.
        is_constant: its numbers are known before the model runs and nothing in the graph changes them.
        storage: values with the same non-empty text share memory.
        label: what a person calls it: ``stem.0.weight``, ``input image``.
    """

    name: str
    rank: int
    dtype: str
    producer: str | None = None
    users: list[str] = field(default_factory=list)
    is_output: bool = False
    is_constant: bool = False
    storage: str = ""
    label: str = ""
    shape: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Window:
    """Where a convolution looks: ``stride * o - padding + dilation * i`` for output ``o`` and tap ``i``, along each spatial axis.

    ``padding`` is what stands in front; how much stands behind follows from the size of the output. A transposed convolution writes
    where a convolution looks.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """``y = W * x + b`` for some linear ``*``, with channels along an axis of ``x``, of ``y`` and two of ``W``.

    Attributes:
        weight_axis, weight_input_axis: axes of ``weight`` that number the channels of the output and of the input; with groups, those
            of one group along one of the two.
        output_axis, input_axis: axes of the output and of ``data`` that number the channels.
        is_transposed: a transposed convolution, whose weight is ``(inputs, outputs of a group, ...)``.
        sees_all: every output is a sum over all taps of the weight; False where zeros are padded.
        window: of a convolution, or of the one that is transposed, where its numbers are known.
        takes_bias: whether it has a place for a bias; a matrix product has none, so a sum is put behind it.
    """

    data: str
    weight: str
    bias: str | None
    weight_axis: int
    output_axis: int
    weight_input_axis: int = 1
    input_axis: int = 1
    groups: int = 1
    is_transposed: bool = False
    sees_all: bool = True
    window: Window | None = None
    takes_bias: bool = True


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """``y = s x + t`` along one axis, with ``s = gamma / sqrt(var + eps)`` and ``t = beta - mean s``."""

    data: str
    gamma: str | None
    beta: str | None
    mean: str | None
    var: str | None
    eps: float
    training: Training
    axis: int

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the values that it is made of, without those that are absent."""
        return tuple(name for name in (self.gamma, self.beta, self.mean, self.var) if name is not None)


@dataclass(frozen=True, slots=True)
class Lone:
    """What a product or a sum with constants is that stands alone: a layer scale, a factor, an offset. It looks like no BatchNorm.

    Attributes:
        channels: how many numbers ``s`` and ``t`` have.
        factor, offset: beside the values ``scale`` and ``shift``, or instead of them.
        divides: by ``scale``.
        subtracts: ``shift``.
    """

    channels: int
    factor: float = 1.0
    offset: float = 0.0
    divides: bool = False
    subtracts: bool = False


@dataclass(frozen=True, slots=True)
class ConstantAffine:
    """``y = s x + t`` along one axis, with constants: a frozen BatchNorm written as a product and a sum, or one of the two alone.

    Attributes:
        scale, shift: of which what stands alone may lack either.
        is_batch_norm: whether the network's own code calls it one.
        lone: of what stands alone.
    """

    data: str
    scale: str | None
    shift: str | None
    axis: int
    is_batch_norm: bool = False
    lone: Lone | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """Return the values that it is made of."""
        return tuple(name for name in (self.scale, self.shift) if name is not None)

    @property
    def shifts(self) -> bool:
        """Return whether there is a sum in it."""
        return self.shift is not None or (self.lone is not None and self.lone.offset != 0.0)


ChannelAffine: TypeAlias = "BatchNorm | ConstantAffine"
Role: TypeAlias = "Linear | ChannelAffine | KeepsChannels | Maximum | PositiveHomogeneous | Permutation | Reshape | PixelShuffle | Take | Join | Sum"


@dataclass(frozen=True, slots=True)
class Operator:
    """A call in the graph.

    Attributes:
        module: name of the module of the user's that it belongs to: ``stages.block1.bn1``.
        kind: short name for people: ``conv2d``, ``relu``.
        role: what the planner knows of its algebra; None is "anything".
        writes: the inputs that it changes in place.
        alias_of: the input whose memory its output looks into, where there is one.
        source: the line of the user's code that calls it, where it is known: ``net.py:12``.
    """

    name: str
    module: str
    kind: str
    inputs: tuple[str, ...]
    output: str
    role: Role | None = None
    writes: tuple[str, ...] = ()
    alias_of: str | None = None
    source: str = ""

    @property
    def label(self) -> str:
        """Return how a message calls it: ``stem.0 (conv2d)``."""
        return f"{self.module} ({self.kind})" if self.module else self.kind


class AbstractGraph:
    """Values and operators in the order of execution."""

    def __init__(self, values: Iterable[Value], operators: Iterable[Operator]) -> None:
        self.values: dict[str, Value] = {value.name: value for value in values}
        self.operators: dict[str, Operator] = {operator.name: operator for operator in operators}
        self._names = set(self.values)
        self._in_memory: dict[str, list[str]] = {}
        for value in self.values.values():
            if value.storage:
                self._in_memory.setdefault(value.storage, []).append(value.name)

    def channel_affines(self) -> list[Operator]:
        """Return the BatchNorms, what may be one, and products and sums that stand alone, in the order of execution."""
        return [operator for operator in self.operators.values() if isinstance(operator.role, (BatchNorm, ConstantAffine))]

    def batch_norms(self) -> list[Operator]:
        """Return the BatchNorms in the order of execution."""
        return [operator for operator in self.channel_affines() if not isinstance(operator.role, ConstantAffine) or operator.role.is_batch_norm]

    def producer_of(self, value: str) -> Operator | None:
        """Return the operator that makes ``value``; None for inputs and constants."""
        name = self.values[value].producer
        return self.operators[name] if name is not None else None

    def users_of(self, value: str) -> list[Operator]:
        """Return the operators that read ``value``, in graph order."""
        return [self.operators[name] for name in self.values[value].users]

    def users_of_memory(self, value: str) -> list[Operator]:
        """Return the operators that read ``value`` or another value in the same memory."""
        own = self.values[value]
        together = self._in_memory.get(own.storage, ())
        if len(together) <= 1:
            return self.users_of(value)
        others = (user for other in together if other in self.values for user in self.values[other].users)
        return [self.operators[name] for name in dict.fromkeys((*own.users, *others))]

    def written_after(self, value: str, operator: Operator) -> Operator | None:
        """Return an operator behind ``operator`` that changes the memory of ``value`` in place, None where there is none."""
        root, behind = self._root(value), False
        for other in self.operators.values():
            if behind and any(self._root(name) == root for name in other.writes):
                return other
            behind = behind or other.name == operator.name
        return None

    def free_name(self, name: str) -> str:
        """Return ``name``, or one like it that no value of the graph has, nor had."""
        candidate, number = name, 2
        while candidate in self._names:
            candidate, number = f"{name}_{number}", number + 1
        return candidate

    def copy_(self, operator: str, name: str, readers: Iterable[str]) -> None:
        """Put a copy of an operator called ``name`` right behind it; these readers of its output read the copy's instead."""
        original = self.operators[operator]
        output, moved = self.values[original.output], list(readers)
        self._names.add(name)
        self.values[name] = replace(output, name=name, producer=name, users=moved, is_output=False, storage="")
        output.users = [user for user in output.users if user not in moved]
        for value in dict.fromkeys(original.inputs):
            self.values[value].users.append(name)
        behind: dict[str, Operator] = {}
        for key, each in self.operators.items():
            behind[key] = _redirected(each, original.output, name) if key in moved else each
            if key == operator:
                behind[name] = replace(original, name=name, output=name)
        self.operators = behind

    def bypass_(self, name: str, value: str) -> None:
        """Take an operator out: whoever read its output reads ``value`` now; so do the operators that nobody reads any more."""
        gone = self.operators[name]
        into, output = self.values[value], self.values[gone.output]
        for user in output.users:
            self.operators[user] = _redirected(self.operators[user], gone.output, value)
            if user not in into.users:
                into.users.append(user)
        into.is_output = into.is_output or output.is_output
        output.users, output.is_output = [], False
        self._remove_(name)

    def _remove_(self, name: str) -> None:
        """Remove an operator whose output nobody reads, and those that thereby lose their last reader."""
        gone = self.operators.pop(name)
        self.values.pop(gone.output, None)
        for value in dict.fromkeys(gone.inputs):
            if value not in self.values:
                continue
            self.values[value].users = [user for user in self.values[value].users if user != name]
            producer = self.values[value].producer
            if producer in self.operators and not self.values[value].users and not self.values[value].is_output:
                self._remove_(producer)

    def _root(self, value: str) -> str:
        while (producer := self.producer_of(value)) is not None and producer.alias_of is not None:
            value = producer.alias_of
        return value


def _redirected(operator: Operator, old: str, new: str) -> Operator:
    role = operator.role
    if isinstance(role, Join):
        role = replace(role, parts=tuple(new if part == old else part for part in role.parts))
    elif isinstance(role, Sum):
        one, other = (new if part == old else part for part in role.parts)
        role = replace(role, parts=(one, other))
    elif role is not None and role.data == old:
        role = replace(role, data=new)
    alias_of = new if operator.alias_of == old else operator.alias_of
    writes = tuple(new if name == old else name for name in operator.writes)
    inputs = tuple(new if name == old else name for name in operator.inputs)
    return replace(operator, inputs=inputs, role=role, writes=writes, alias_of=alias_of)
