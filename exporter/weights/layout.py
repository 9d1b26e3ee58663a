"""What a layout finds in a checkpoint, before anyone has chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from exporter.artifacts import Checkpoint, Node, TensorSpec
from exporter.weights.blend import Source
from exporter.weights.health import Schedule

__all__ = ["Average", "Layout", "Match", "WeightSet"]

NamedBy: TypeAlias = "Callable[[Sequence[TensorSpec]], Mapping[str, Source] | None]"


@dataclass(frozen=True, slots=True, eq=False)
class WeightSet:
    """One copy of the weights.

    Attributes:
        at: key path in the tree; empty for the top.
        tensors: under the model's own names, prefixes stripped; bytes of the file, or computed from several tensors of it.
        others: names whose value is no plain tensor; baking such a set is refused.
        remark: what a reader should know of it.
    """

    at: str
    tensors: Mapping[str, Source]
    others: Mapping[str, Node] = field(default_factory=dict)
    remark: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """An averaged copy of the weights and what is known of how it was averaged.

    Attributes:
        name: what the user types after ``--ema``.
        updates: number of times that it was updated, None where the file does not say.
        buffers: ``averaged`` or ``copied``: the copy holds every buffer, and the trainer always does that; ``in the average``: the
            copy holds every buffer, averaged or copied or estimated anew, which the layout does not say;
            ``may be absent``: a buffer that the copy lacks is taken from the raw weights; ``stale``: the copy holds buffers that
            were never updated since it was made.
        copied: names of the raw weights that the average lacks by the layout's own rule, taken from the raw weights.
        on_request: taken only where the user names it: a momentum encoder is no average of weights to ship unless somebody says so.
        zero_initialised: the average began with zeros, not with weights, so that it is short of the zeros' share: what is baked is
            the average divided by one minus that share, for which schedule and updates must be known.
        is_nameless: the tensors stand in a list; their keys are ``[0]``, ``[1]``, ... until the model's order gives them names.
        named_by: where a list is more than the parameters in their order: returns the average for the parameters of a model, None
            where they do not fit.
    """

    name: str
    weights: WeightSet
    schedule: Schedule = field(default_factory=Schedule)
    updates: int | None = None
    buffers: Literal["averaged", "copied", "in the average", "may be absent", "stale"] = "in the average"
    copied: frozenset[str] = frozenset()
    on_request: bool = False
    is_nameless: bool = False
    named_by: NamedBy | None = None
    zero_initialised: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Match:
    """A layout's reading of a checkpoint.

    Attributes:
        refusal: why this layout is recognised and not baked; empty where it is.
        model: a factory that the trainer wrote down, empty where there is none.
        arguments: of that factory, plain values only: what the trainer wrote down, or what the shapes of the weights say.
    """

    layout: str
    averages: tuple[Average, ...] = ()
    raw: WeightSet | None = None
    model: str = ""
    arguments: Mapping[str, object] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which trainers lay out a checkpoint.

    Attributes:
        name: as shown and recorded.
        looked_at: the keys that it looks for, for the message where nothing was found.
        read: returns a match, or None where the checkpoint is laid out otherwise.
        under: the key under which the trainer's own loader reads a state dict; empty where it reads the state dict itself.
        beside: keys of short text that this loader asks for beside it; they are copied from the checkpoint.
    """

    name: str
    looked_at: tuple[str, ...]
    read: Callable[[Checkpoint], Match | None]
    under: str = ""
    beside: tuple[str, ...] = ()
