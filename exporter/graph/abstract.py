"""The graph as the planner sees it: values, operators with a role, users. No torch and no ONNX in here.

Adapters build it (``aten.py`` from an exported program). A value is known by the name of the node that makes it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["AbstractGraph", "ChannelAffine", "Linear", "Operator", "Training", "Value"]


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
class Linear:
    """``y = W * x + b`` for some linear ``*``, with output channels along an axis of ``W`` and an axis of ``y``.

    Attributes:
        weight_axis: axis of ``weight`` that numbers the output channels.
        output_axis: axis of the output that numbers the channels.
    """

    data: str
    weight: str
    bias: str | None
    weight_axis: int
    output_axis: int


@dataclass(frozen=True, slots=True)
class ChannelAffine:
    """``y = s x + t`` along one axis, with ``s = gamma / sqrt(var + eps)`` and ``t = beta - mean s``: a BatchNorm."""

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
class Operator:
    """A call in the graph.

    Attributes:
        module: name of the module of the user's that it belongs to: ``stages.block1.bn1``.
        kind: short name for people: ``conv2d``, ``relu``.
        role: what the planner knows of its algebra; None is "anything".
    """

    name: str
    module: str
    kind: str
    inputs: tuple[str, ...]
    output: str
    role: Linear | ChannelAffine | None = None

    @property
    def label(self) -> str:
        """Return how a message calls it: ``stem.0 (conv2d)``."""
        return f"{self.module} ({self.kind})" if self.module else self.kind


class AbstractGraph:
    """Values and operators in the order of execution."""

    def __init__(self, values: Iterable[Value], operators: Iterable[Operator]) -> None:
        self.values: dict[str, Value] = {value.name: value for value in values}
        self.operators: dict[str, Operator] = {operator.name: operator for operator in operators}

    def channel_affines(self) -> list[Operator]:
        """Return the BatchNorms in the order of execution."""
        return [operator for operator in self.operators.values() if isinstance(operator.role, ChannelAffine)]

    def producer_of(self, value: str) -> Operator | None:
        """Return the operator that makes ``value``; None for inputs and constants."""
        name = self.values[value].producer
        return self.operators[name] if name is not None else None

    def users_of_memory(self, value: str) -> list[Operator]:
        """Return the operators that read ``value`` or another value in the same memory."""
        own = self.values[value]
        names = dict.fromkeys(own.users)
        if own.storage:
            for other in self.values.values():
                if other.storage == own.storage:
                    names.update(dict.fromkeys(other.users))
        return [self.operators[name] for name in names]

    def absorb_(self, affine: Operator, producer: Operator) -> None:
        """Take ``affine`` out: whoever read its output now reads the output of ``producer``, of which it was the only user."""
        into, gone = self.values[producer.output], self.values.pop(affine.output)
        del self.operators[affine.name]
        into.users, into.is_output = gone.users, gone.is_output
        for name in gone.users:
            user = self.operators[name]
            self.operators[name] = _redirect(user, gone.name, into.name)
        if isinstance(affine.role, ChannelAffine):
            for name in affine.role.parameters:
                self.values[name].users = [user for user in self.values[name].users if user != affine.name]

    def ensure_bias_(self, name: str) -> None:
        """Give the linear operator ``name`` a bias if it has none: a constant called ``<name>::bias``."""
        operator = self.operators[name]
        role = operator.role
        if not isinstance(role, Linear) or role.bias is not None:
            return
        bias = f"{name}::bias"
        self.values[bias] = Value(bias, 1, self.values[role.weight].dtype, users=[name], is_constant=True, label=f"bias of {operator.label}")
        role = Linear(role.data, role.weight, bias, role.weight_axis, role.output_axis)
        self.operators[name] = Operator(name, operator.module, operator.kind, (*operator.inputs, bias), operator.output, role)


def _redirect(operator: Operator, old: str, new: str) -> Operator:
    role = operator.role
    if isinstance(role, Linear) and role.data == old:
        role = Linear(new, role.weight, role.bias, role.weight_axis, role.output_axis)
    elif isinstance(role, ChannelAffine) and role.data == old:
        role = ChannelAffine(new, role.gamma, role.beta, role.mean, role.var, role.eps, role.training, role.axis)
    inputs = tuple(new if name == old else name for name in operator.inputs)
    return Operator(operator.name, operator.module, operator.kind, inputs, operator.output, role)
