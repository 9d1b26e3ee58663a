"""Run everything on the same feeds: the float64 reference, the unfused model's own error, a candidate's outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from exporter.errors import ModelNotSupported
from exporter.runners.base import Array, Runner
from exporter.verify.feeds import NamedFeed
from exporter.verify.output_values import is_floating

__all__ = [
    "CandidateOutputs",
    "OwnError",
    "Reference",
    "collect_outputs",
    "measure_own_error",
    "measure_reference",
    "overflowing_feeds",
    "without_overflow",
]

_HAS_NO_BFLOAT16 = ("E621", "E623")
"""Torch, or ONNX Runtime in an opset before 13, has an operator of the model not in bfloat16."""
_FLOAT16_OF_BFLOAT16 = 2.0**-3
"""float16 keeps 11 significant bits where bfloat16 keeps 8."""


@dataclass(frozen=True, slots=True, eq=False)
class CandidateOutputs:
    """What one runner returned.

    Attributes:
        outputs: feed name -> for each batch of the feed in order: output name -> array.
    """

    name: str
    precision: str
    device: str
    outputs: Mapping[str, tuple[Mapping[str, Array], ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Reference(CandidateOutputs):
    """The trusted outputs and what they were computed from.

    Attributes:
        remarks: e.g. that an operator has no float64 kernel, so that float32 was used.
        runtime: what computed them.
    """

    feeds: tuple[NamedFeed, ...] = ()
    remarks: tuple[str, ...] = ()
    runtime: str = "torch"

    @property
    def description(self) -> str:
        """Return ``torch float64 on the cpu, unfused``."""
        return f"{self.runtime} {self.precision} on the {'CPU' if self.device == 'cpu' else 'GPU'}, unfused"


@dataclass(frozen=True, slots=True, eq=False)
class OwnError(CandidateOutputs):
    """What the unfused model returns in a candidate's precision: how far rounding alone takes it from the reference.

    Attributes:
        remarks: where it was not measured in that precision itself.
    """

    remarks: tuple[str, ...] = ()


def collect_outputs(runner: Runner, feeds: tuple[NamedFeed, ...]) -> CandidateOutputs:
    """Run ``runner``, which has been entered, on every batch of every feed."""
    return CandidateOutputs(runner.name, runner.precision, runner.device, _run(runner, feeds))


def measure_reference(reference: Runner, feeds: tuple[NamedFeed, ...], *, fallback: Runner | None = None, runtime: str = "torch") -> Reference:
    """Run the reference on every feed.

    Args:
        reference: the unfused model in float64, entered.
        feeds: what to run.
        fallback: the same in float32, entered; taken where the model cannot run in float64, which becomes a remark.
        runtime: of both, for the report.

    Raises:
        ModelNotSupported: E621, the model does not run in float64 and there is no fallback.
    """
    try:
        return Reference(reference.name, reference.precision, reference.device, _run(reference, feeds), feeds, runtime=runtime)
    except ModelNotSupported as err:
        if fallback is None or err.code != "E621":
            raise
        remark = f"the reference is {fallback.precision}: the model does not run in {reference.precision} ({err.facts.get('found', err.problem)})"
        return Reference(fallback.name, fallback.precision, fallback.device, _run(fallback, feeds), feeds, (remark,), runtime)


def measure_own_error(reference: Reference, unfused: Runner) -> OwnError:
    """Run the unfused model in the precision of the candidates on the feeds of ``reference``."""
    return OwnError(unfused.name, unfused.precision, unfused.device, _run(unfused, reference.feeds))


def overflowing_feeds(reference: Reference, own: OwnError) -> tuple[NamedFeed, ...]:
    """Return the feeds on which the unfused model returns NaN or infinity where the reference has a number."""
    return tuple(named for named in reference.feeds if _overflows(reference.outputs[named.name], own.outputs[named.name]))


def without_overflow(reference: Reference, own: OwnError, in_bfloat16: Callable[[], AbstractContextManager[Runner]]) -> OwnError:
    """Return the own error in float16 with what an overflow hides of it: rounding alone, taken from bfloat16, which has the range of float32.

    Rounding errors are proportional to the last digit, so the departure in bfloat16 counts as an eighth. An own error in another
    precision, and one without an overflow, stays as it is. What cannot be known is a remark.

    Args:
        reference: what both depart from.
        own: in any precision.
        in_bfloat16: opens the unfused model in bfloat16.
    """
    feeds = overflowing_feeds(reference, own) if own.precision == "float16" else ()
    if not feeds:
        return own
    filled = dict(own.outputs)
    try:
        with in_bfloat16() as wider:
            for named in feeds:
                chunks = zip(reference.outputs[named.name], own.outputs[named.name], map(wider.infer, named.chunks()), strict=True)
                filled[named.name] = tuple({name: _scaled(r[name], u[name], w[name]) for name in u} for r, u, w in chunks)
    except ModelNotSupported as err:
        if err.code not in _HAS_NO_BFLOAT16:
            raise
        told = f"the unfused model overflows in float16 and does not run in bfloat16: its own error on {_names(feeds)} is of finite values alone"
        return dataclasses.replace(own, remarks=(*own.remarks, f"{told} ({err.facts.get('found', err.problem)})"))
    remarks = ["the unfused model overflows in float16: its own error there is an eighth of that in bfloat16"]
    found = dataclasses.replace(own, outputs=filled)
    if left := overflowing_feeds(reference, found):
        remarks.append(f"the unfused model overflows in bfloat16 too: its own error on {_names(left)} is of finite values alone")
    return dataclasses.replace(found, remarks=(*own.remarks, *remarks))


def _names(feeds: tuple[NamedFeed, ...]) -> str:
    return ", ".join(named.name for named in feeds)


def _overflows(references: tuple[Mapping[str, Array], ...], owns: tuple[Mapping[str, Array], ...]) -> bool:
    pairs = [(r[name], u[name]) for r, u in zip(references, owns, strict=True) for name in r if name in u and is_floating(r[name])]
    return any(bool((np.isfinite(r) & ~np.isfinite(np.asarray(u, np.float64))).any()) for r, u in pairs if r.shape == u.shape)


def _scaled(reference: Array, own: Array, wider: Array) -> Array:
    if not is_floating(reference) or wider.shape != reference.shape:
        return own
    exact = np.asarray(reference, np.float64)
    with np.errstate(invalid="ignore"):
        return exact + _FLOAT16_OF_BFLOAT16 * (np.asarray(wider, np.float64) - exact)


def _run(runner: Runner, feeds: tuple[NamedFeed, ...]) -> dict[str, tuple[Mapping[str, Array], ...]]:
    return {named.name: tuple(runner.infer(chunk) for chunk in named.chunks()) for named in feeds}
