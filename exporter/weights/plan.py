"""Planning a bake: for every name of the model, which tensor of the checkpoint becomes its value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from exporter.artifacts import Checkpoint, TensorSpec
from exporter.errors import CheckpointError, LayoutError
from exporter.tensors import DTYPES, ordered_specs, size_bytes
from exporter.weights.batch_norm import refuse_without_statistics, statistics_from
from exporter.weights.blend import Source, inputs_of, scaled
from exporter.weights.layout import Average, WeightSet
from exporter.weights.naming import near_misses
from exporter.weights.state_dicts import with_tied

if TYPE_CHECKING:
    from exporter.config import BakeConfig

__all__ = ["BakePlan", "Planned", "plan_average", "plan_raw"]

_T = TypeVar("_T")
_MAX_NAMES_SHOWN = 8
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
_SMALL_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the output.

    Attributes:
        source: where its bytes come from, or the tensors that it is computed from.
        dtype: of the output.
        is_averaged: False where the rule of the layout takes it from the raw weights, or copies a counter.
        twin: the raw tensor of the same name to measure the drift against, where there is one.
    """

    name: str
    source: Source
    dtype: str
    is_averaged: bool
    twin: Source | None = None


@dataclass(frozen=True, slots=True)
class BakePlan:
    """Every tensor of the output.

    Attributes:
        tensors: in the order of the output file.
        names: their names in the order of the checkpoint, which is normally that of the model.
    """

    tensors: tuple[Planned, ...]
    names: tuple[str, ...]

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every tensor of the output."""
        return tuple(TensorSpec(planned.name, planned.source.shape, planned.dtype) for planned in self.tensors)


def plan_average(checkpoint: Checkpoint, average: Average, raw: WeightSet | None, config: BakeConfig, *, divisor: float = 1.0) -> BakePlan:
    """Plan the bake of an average.

    Floating tensors come from the average by name. Integers and booleans (counters) come from the raw weights where the file
    has them: an average of a counter means nothing. What the average lacks comes from the raw weights if the layout says that it
    may be absent.

    Args:
        checkpoint: for messages, and the limit on the size of the output.
        average: under the model's own names.
        raw: the raw weights beside it, where there are any.
        config: dtype and prefix of the output.
        divisor: of every averaged tensor; other than 1 for an average that began with zeros.

    Raises:
        LayoutError: a tensor is missing (E207), extra (E208) or misshapen (E209), or is no plain tensor (E210), or there are no
            BatchNorm statistics where some are asked for (E255 to E257).
    """
    _check_plain(checkpoint, average.weights)
    if raw is not None:
        average = replace(average, weights=with_tied(average.weights, raw))
    averaged = average.weights.tensors
    twins: Mapping[str, Source] = raw.tensors if raw is not None else {}
    if raw is not None:
        _check_same_names(checkpoint, average, raw)
    tensors: dict[str, tuple[Source, bool, Source | None]] = {}
    for name, ref in averaged.items():
        twin = twins.get(name)
        if twin is not None:
            _check_same_kind(checkpoint, name, ref, twin)
        if DTYPES[ref.dtype].kind in {"int", "bool"}:
            tensors[name] = (twin if twin is not None else ref, False, None)
        else:
            tensors[name] = (ref if divisor == 1.0 else scaled(ref, divisor), True, twin)
    for name, ref in twins.items():
        if name not in tensors:
            tensors[name] = (ref, False, None)
    return _plan(checkpoint, statistics_from(checkpoint, average, raw, tensors, config), config)


def plan_raw(checkpoint: Checkpoint, raw: WeightSet, config: BakeConfig) -> BakePlan:
    """Plan the bake of the raw weights.

    Raises:
        LayoutError: an entry is no plain tensor (E210), or BatchNorm statistics are asked for that are not there (E257, E258).
    """
    _check_plain(checkpoint, raw)
    refuse_without_statistics(checkpoint, raw.tensors, config)
    return _plan(checkpoint, {name: (ref, False, None) for name, ref in raw.tensors.items()}, config)


def _plan(checkpoint: Checkpoint, tensors: Mapping[str, tuple[Source, bool, Source | None]], config: BakeConfig) -> BakePlan:
    planned = {}
    for name, (ref, is_averaged, twin) in _below_prefix(checkpoint, tensors, config.strip_prefix).items():
        dtype = config.dtype if config.dtype != "keep" and DTYPES[ref.dtype].kind == "float" else ref.dtype
        if not DTYPES[dtype].safetensors:
            facts = {"file": checkpoint.path, "at": name, "found": dtype}
            raise LayoutError("E214", f"a tensor has the dtype {dtype}, which safetensors cannot hold", facts=facts)
        if not name or not name.isprintable():
            raise LayoutError("E218", "a tensor has a name that cannot be printed", facts={"file": checkpoint.path, "at": repr(name)[:120]})
        planned[name] = Planned(name, ref, dtype, is_averaged, twin)
    specs = ordered_specs(TensorSpec(p.name, p.source.shape, p.dtype) for p in planned.values())
    plan = BakePlan(tuple(planned[spec.name] for spec in specs), tuple(planned))
    total, limit = sum(size_bytes(ref) for p in plan.tensors for ref in inputs_of(p.source)), 4 * checkpoint.size_bytes + _SMALL_BYTES
    if total > limit:
        facts = {"file": checkpoint.path, "found": f"{total} bytes of tensors in a file of {checkpoint.size_bytes}", "expected": f"at most {limit}"}
        raise CheckpointError("E111", "the tensors of the checkpoint repeat its bytes beyond measure", facts=facts)
    return plan


def _below_prefix(checkpoint: Checkpoint, tensors: Mapping[str, _T], prefix: str) -> Mapping[str, _T]:
    """Return the tensors whose names begin with ``prefix``, without it; what stands beside them stays in the checkpoint."""
    if not prefix:
        return tensors
    below = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix) and name != prefix}
    if not below:
        prefixes = list(dict.fromkeys(name.partition(".")[0] + "." for name in tensors if "." in name))
        facts = {"file": checkpoint.path, "found": _shown(prefixes) or _shown(list(tensors)), "expected": prefix}
        near = near_misses(prefix, prefixes)
        help_text = f"--strip-prefix {near[0]}" if near else "leave out --strip-prefix: the names are the model's own already"
        raise LayoutError("E223", f"no tensor has a name that begins with {prefix!r}", facts=facts, help=help_text)
    return below


def _check_plain(checkpoint: Checkpoint, weights: WeightSet) -> None:
    if weights.others:
        name, node = next(iter(weights.others.items()))
        what = str(getattr(node, "callee", type(node).__name__))
        facts = {"file": checkpoint.path, "at": _joined(weights.at, name), "found": what, "others": _shown(list(weights.others)[1:]) or "none"}
        raise LayoutError("E210", "an entry among the weights is no plain tensor", facts=facts)


def _check_same_names(checkpoint: Checkpoint, average: Average, raw: WeightSet) -> None:
    averaged = average.weights.tensors
    extra = [name for name in averaged if name not in raw.tensors]
    missing = [name for name in raw.tensors if name not in averaged]
    missing = [name for name in missing if name not in average.copied]
    if average.buffers == "may be absent":
        missing = [name for name in missing if not _is_buffer(name, raw.tensors[name])]
    facts = {"file": checkpoint.path, "at": average.weights.at or "the top of the file"}
    if missing:
        facts |= {"missing": _shown(missing), "expected": f"every tensor of {raw.at!r}"}
        if extra:
            facts["extra"] = _shown(extra)
        near = near_misses(missing[0], extra)
        if near:
            facts["near miss"] = f"{missing[0]} (raw) and {near[0]} (average)"
        raise LayoutError("E207", f"the average lacks {_counted(missing)} of the raw weights", facts=facts)
    if extra:
        facts |= {"extra": _shown(extra), "expected": f"the names of {raw.at!r}"}
        raise LayoutError("E208", f"the average has {_counted(extra)} that the raw weights lack", facts=facts)


def _check_same_kind(checkpoint: Checkpoint, name: str, ref: Source, twin: Source) -> None:
    if ref.shape != twin.shape:
        facts = {"file": checkpoint.path, "at": name, "found": f"shape {ref.shape} in the average", "expected": f"{twin.shape}, as in the raw"}
        raise LayoutError("E209", f"the average of {name} has another shape than its raw twin", facts=facts)
    if DTYPES[ref.dtype].kind != DTYPES[twin.dtype].kind:
        facts = {"file": checkpoint.path, "at": name, "found": f"{ref.dtype} in the average", "expected": f"{twin.dtype}, as in the raw weights"}
        raise LayoutError("E209", f"the average of {name} has another kind of dtype than its raw twin", facts=facts)


def _is_buffer(name: str, ref: Source) -> bool:
    return name.rpartition(".")[2] in _BUFFERS or DTYPES[ref.dtype].kind in {"int", "bool"}


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} tensor{'s' if len(names) > 1 else ''}"


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMES_SHOWN
    return ", ".join(names[:_MAX_NAMES_SHOWN]) + (f", ... {more} more" if more > 0 else "")


def _joined(at: str, name: str) -> str:
    return f"{at}/{name}" if at else name
