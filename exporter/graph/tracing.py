"""Module -> exported program, with the names of its inputs and outputs.

``torch.export`` runs the network once on example inputs and records the aten calls; what it cannot record is an error that
names the construct and the line of the network's code.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import logging
import random
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._ops import OpOverload
from torch.export import ExportedProgram

from exporter.artifacts import TensorSpec
from exporter.config import InputConfig
from exporter.errors import ConfigError, ExportError
from exporter.factories import running_user_code
from exporter.graph.aten.calls import RANDOM, arguments_of, operator_kind
from exporter.graph.naming import output_specs
from exporter.graph.untraceable import construct_of

__all__ = ["Traced", "trace"]

_DROPOUTS = {
    "dropout",
    "dropout_",
    "feature_dropout",
    "feature_dropout_",
    "alpha_dropout",
    "alpha_dropout_",
    "feature_alpha_dropout",
    "feature_alpha_dropout_",
}
_CHATTY_LOGGERS = ("torch.fx.experimental.symbolic_shapes", "torch._export.non_strict_utils", "torch.export")


@dataclass(frozen=True, slots=True, eq=False)
class Traced:
    """An exported program and the names of what goes in and comes out, in order.

    Attributes:
        program: takes the inputs by position; outputs are flattened in the order of ``outputs``.
        inputs, outputs: a string in a shape is a dynamic axis.
    """

    program: ExportedProgram
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def trace(module: nn.Module, inputs: tuple[InputConfig, ...], *, outputs: tuple[str, ...] = ()) -> Traced:
    """Trace ``module``, in the mode that it is in.

    Args:
        module: the network with its weights, normally from ``build_model`` and ``load_weights_``.
        inputs: example inputs; the batch axis is dynamic unless ``dynamic`` says otherwise.
        outputs: names of the outputs in order; empty means the network's own.

    Raises:
        ConfigError: the inputs do not fit ``forward`` (E331), or the number of output names does not fit (E332).
        ExportError: the network does something that cannot be traced (E333), or a dynamic axis is fixed by it (E334), draws
            random numbers (E335), or returns something that is not a tensor (E336).
    """
    ordered = _in_order_of_forward(module, inputs)
    facts = {"inputs": ", ".join(f"{entry.name} {list(entry.shape)} {entry.dtype}" for entry in ordered)}
    with _quiet(), _refusing_random_python(), torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r"(?s)The tensor attributes? .* assigned during export", category=UserWarning
        )  # caches, see docs/models.md
        try:
            program = _exported(module, ordered, facts, {})
        except ExportError as err:
            least = _least_sizes(err.__cause__, ordered)
            if not least:
                raise _understood(err, module, facts) from err.__cause__
            try:
                program = _exported(module, ordered, facts, least)
            except ExportError as again:
                raise _understood(again, module, facts) from again.__cause__
    _refuse_random_numbers(program)
    return Traced(program, _input_specs(ordered), output_specs(program, outputs, _axis_names(program, ordered)))


def _exported(module: nn.Module, inputs: tuple[InputConfig, ...], facts: dict[str, str], least: dict[str, int]) -> ExportedProgram:
    """Run torch's tracer.

    Args:
        module, inputs: the network and its inputs in the order of ``forward``.
        facts: what an error says.
        least: name of an axis -> the least size that the network can take.
    """
    device = next((tensor.device for tensor in itertools.chain(module.parameters(), module.buffers())), torch.device("cpu"))
    examples = tuple(_example(entry).to(device) for entry in inputs)
    with running_user_code("E333", "the network cannot be traced", kind=ExportError, facts=facts):
        return torch.export.export(module, examples, dynamic_shapes=_dimensions(inputs, least), strict=False)


def _least_sizes(error: BaseException | None, inputs: tuple[InputConfig, ...]) -> dict[str, int]:
    """Return name of an axis -> the size of its example, where all that torch asks for is that it is not too small.

    A kernel of five does not fit four pixels, and a size of one is special to a tracer, also behind strides.
    """
    found = re.findall(r"Not all values of (\w+) = .* generated guard (.*)", str(error))
    is_small = [guard.rstrip(".").endswith("!= 1") or "<= IntInfinity()" in guard for _, guard in found]
    if not found or not all(is_small) or "specialized" in str(error):
        return {}
    sizes = {name: entry.shape[axis] for entry in inputs for axis, name in _dynamic_axes(entry).items()}
    return {name: sizes[name] for name, _ in found}


def _understood(err: ExportError, module: nn.Module, facts: dict[str, str]) -> ExportError:
    """Return the error to show: an axis that the network fixes, or the construct that cannot be traced, and what to write instead."""
    cause = err.__cause__
    fixed = _fixed_axis(err, facts)
    if fixed is not None or cause is None:
        return fixed or err
    scripted = next((name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    construct = construct_of(cause, err.facts.get("line", "").partition(": ")[2], scripted=scripted)
    named = {"construct": construct.name} if construct.name else {}
    return ExportError(err.code, err.problem, facts={**err.facts, **named}, help=construct.help)


def _in_order_of_forward(module: nn.Module, inputs: tuple[InputConfig, ...]) -> tuple[InputConfig, ...]:
    """Return ``inputs`` in the order of the parameters of ``forward`` that have these names; a single input fits any name."""
    if not inputs:
        raise ConfigError("E331", "no input is given", facts={"at": "model -> inputs"})
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p.name for p in parameters if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
    required = [p.name for p in parameters if p.default is p.empty and p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    by_name = {entry.name: entry for entry in inputs}
    is_variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(inputs) == 1 and (len(required) == 1 or (not required and (named or is_variadic))):
        return inputs
    if is_variadic and not named:
        return inputs
    leading = named[: len(inputs)]
    if set(leading) != set(by_name) or set(required) - set(by_name):
        facts = {
            "forward": f"{type(module).__name__}.forward({', '.join(str(p) for p in parameters)})",
            "found": ", ".join(by_name),
            "expected": ", ".join(required) or "the first parameters of forward",
        }
        raise ConfigError(
            "E331",
            "the inputs do not fit the network's forward",
            facts=facts,
            help="name the inputs ([[model.inputs]], or the arrays of the samples) as forward does",
        )
    return tuple(by_name[name] for name in leading)


def _example(entry: InputConfig) -> torch.Tensor:
    dtype = getattr(torch, entry.dtype)
    if dtype.is_floating_point:
        return torch.rand(entry.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return torch.zeros(entry.shape, dtype=dtype)


def _dimensions(inputs: tuple[InputConfig, ...], least: dict[str, int]) -> tuple[dict[int, Any], ...]:
    """Return for each input: axis -> dimension; axes of the same name are one dimension."""
    known: dict[str, Any] = {}
    return tuple(
        {axis: known.setdefault(name, torch.export.Dim(name, min=least.get(name, 0))) for axis, name in _dynamic_axes(entry).items()}
        for entry in inputs
    )


def _dynamic_axes(entry: InputConfig) -> dict[int, str]:
    return {int(axis): name for axis, name in entry.dynamic.items()} if entry.dynamic else {0: "batch"}


def _axis_names(program: ExportedProgram, inputs: tuple[InputConfig, ...]) -> dict[str, str]:
    """Return symbol -> name of the axis: ``{"s77": "batch"}``."""
    names = {}
    for node, entry in zip(_user_inputs(program), inputs, strict=True):
        for axis, name in _dynamic_axes(entry).items():
            names[str(node.meta["val"].shape[axis])] = name
    return names


def _input_specs(inputs: tuple[InputConfig, ...]) -> tuple[TensorSpec, ...]:
    specs = []
    for entry in inputs:
        axes = _dynamic_axes(entry)
        specs.append(TensorSpec(entry.name, tuple(axes.get(axis, size) for axis, size in enumerate(entry.shape)), entry.dtype))
    return tuple(specs)


def _user_inputs(program: ExportedProgram) -> list[torch.fx.Node]:
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def _refuse_random_numbers(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, OpOverload):
            continue
        kind = operator_kind(node)
        if kind in RANDOM or (kind in _DROPOUTS and arguments_of(node).get("train", arguments_of(node).get("training"))):
            line = (node.meta.get("stack_trace") or "").strip().splitlines()
            facts = {"found": f"aten.{kind}", "line": "\n".join(text.strip() for text in line[-2:])}
            raise _random_error(facts)


def _fixed_axis(err: ExportError, facts: dict[str, str]) -> ExportError | None:
    """Return the error to show where torch says that a dynamic axis is fixed by the network, else None."""
    text = str(err.__cause__)
    if "Constraints violated" not in text and "marked as dynamic but" not in text and "to be a constant" not in text:
        return None
    said = [line.strip(" -") for line in text.splitlines() if "Dim" in line or "specialized" in line or "constant" in line or "=" in line][:4]
    help_text = "let the network take any batch size (x.shape[0] instead of a number), or say which axes vary: dynamic under [[model.inputs]]"
    return ExportError(
        "E334", "the network fixes an axis that was to be dynamic", facts={**facts, "torch says": "\n".join(said) or text[:300]}, help=help_text
    )


@contextlib.contextmanager
def _refusing_random_python() -> Iterator[None]:
    """Refuse a network that draws from Python's or NumPy's generator: the tracer would take one draw for a constant."""
    before = random.getstate(), _numpy_state()
    yield
    after = random.getstate(), _numpy_state()
    if after != before:
        raise _random_error({"found": f"it draws from {'numpy.random' if after[0] == before[0] else 'the random module of Python'}"})


def _numpy_state() -> str:
    return repr(np.random.get_state())  # noqa: NPY002 - the generator that a network's code would use


def _random_error(facts: dict[str, str]) -> ExportError:
    help_text = "its outputs cannot be compared; make it deterministic in eval mode"
    return ExportError("E335", "the network draws random numbers in eval mode", facts=facts, help=help_text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's notes to its own developers off the screen; what matters of them is in the error that we raise.

    What the network itself prints comes out when it is traced.
    """
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    printed, graph = io.StringIO(), ""
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except ExportError as err:
        graph = str(getattr(err.__cause__, "partial_fx_graph", ""))
        raise
    finally:
        sys.stderr.write(printed.getvalue().replace(f"{graph}\n", "") if graph else printed.getvalue())
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
