"""Optimization profiles: ``name:min,opt,max``, checked against the inputs before a builder is started.

One text is one profile; several inputs are joined with ``;``; a shape is written ``1x3x224x224``. An input without dynamic axes
need not be named. Where no profile is given, one is made: smallest batch 1, optimal and largest the batch asked for, other dynamic axes
as the samples have them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from exporter.artifacts import Profile, TensorSpec
from exporter.errors import ConfigError

__all__ = ["format_profile", "parse_profiles"]

_Shape = tuple[int, ...]
_Shapes = tuple[_Shape, _Shape, _Shape]
_SYNTAX = "name:min,opt,max with shapes such as 1x3x224x224; several inputs joined with ;"


def parse_profiles(
    texts: tuple[str, ...], inputs: tuple[TensorSpec, ...], *, batch: int, sizes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[Profile, ...]:
    """Return the profiles that ``texts`` describe, or one made for ``batch`` where there are none.

    Args:
        texts: one for each profile.
        inputs: of the model.
        batch: the largest, where a profile is made.
        sizes: input -> its shape without the batch axis in the samples, for dynamic axes where a profile is made.

    Raises:
        ConfigError: the text cannot be read (E511), names no input of the model (E512), gives a shape that the input cannot have (E513),
            is not ordered min <= opt <= max (E514), leaves a dynamic input out or names one twice (E515), or there is no text,
            an axis beside the batch is dynamic, and no sample says its size (E516).
    """
    if not texts:
        return (_default_profile(inputs, batch, sizes or {}),)
    return tuple(_parse_one(text, inputs) for text in texts)


def format_profile(profile: Profile) -> str:
    """Return the text that ``parse_profiles`` reads."""
    return ";".join(f"{name}:{','.join('x'.join(map(str, shape)) for shape in shapes)}" for name, shapes in profile.shapes.items())


def _default_profile(inputs: tuple[TensorSpec, ...], batch: int, sizes: Mapping[str, tuple[int, ...]]) -> Profile:
    shapes: dict[str, _Shapes] = {}
    for spec in inputs:
        row = tuple(_size(spec, axis, sizes.get(spec.name, ())) for axis in range(1, len(spec.shape)))
        if spec.shape and isinstance(spec.shape[0], str):
            largest = max(1, batch)
            shapes[spec.name] = ((1, *row), (largest, *row), (largest, *row))
        else:
            whole = (*(int(size) for size in spec.shape[:1]), *row)
            shapes[spec.name] = (whole, whole, whole)
    return Profile(shapes)


def _size(spec: TensorSpec, axis: int, recorded: tuple[int, ...]) -> int:
    size = spec.shape[axis]
    if isinstance(size, int):
        return size
    if len(recorded) == len(spec.shape) - 1:
        return recorded[axis - 1]
    facts = {"input": spec.name, "shape": _show(spec), "axis": f"{axis} ({size})"}
    help_text = f"[tensorrt] profiles, or --profile {spec.name}:min,opt,max, or samples that say the size"
    raise ConfigError("E516", "a profile is needed: an axis beside the batch is dynamic", facts=facts, help=help_text)


def _parse_one(text: str, inputs: tuple[TensorSpec, ...]) -> Profile:
    by_name = {spec.name: spec for spec in inputs}
    shapes: dict[str, _Shapes] = {}
    for part in (piece.strip() for piece in text.split(";")):
        name, colon, rest = part.rpartition(":")
        name = name.strip()
        if not colon or not name:
            raise ConfigError("E511", "a profile cannot be read", facts={"profile": text, "found": part, "expected": _SYNTAX})
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=3)
            facts = {"profile": text, "found": name, "inputs": ", ".join(by_name)}
            raise ConfigError(
                "E512",
                "a profile names an input that the model does not have",
                facts=facts,
                help=f"did you mean {' or '.join(near)}?" if near else "",
            )
        if name in shapes:
            raise ConfigError("E515", "a profile names an input twice", facts={"profile": text, "input": name})
        shapes[name] = _parse_shapes(text, by_name[name], rest)
    for spec in inputs:
        if spec.name in shapes:
            continue
        if any(isinstance(size, str) for size in spec.shape):
            facts = {"profile": text, "missing": f"{spec.name} {_show(spec)}"}
            raise ConfigError("E515", "a profile leaves out an input with dynamic axes", facts=facts, help=f"add ;{spec.name}:min,opt,max")
        whole = tuple(int(size) for size in spec.shape)
        shapes[spec.name] = (whole, whole, whole)
    _check_symbols(text, inputs, shapes)
    return Profile({spec.name: shapes[spec.name] for spec in inputs})


def _parse_shapes(text: str, spec: TensorSpec, rest: str) -> _Shapes:
    words = [word.strip() for word in rest.split(",")]
    if len(words) != len(("min", "opt", "max")):
        raise ConfigError(
            "E511", "a profile needs three shapes: min, opt and max", facts={"profile": text, "input": spec.name, "found": rest, "expected": _SYNTAX}
        )
    smallest, optimal, largest = (_parse_shape(text, spec, word) for word in words)
    for axis, (low, middle, high) in enumerate(zip(smallest, optimal, largest, strict=True)):
        if not low <= middle <= high:
            facts = {
                "profile": text,
                "input": spec.name,
                "axis": axis,
                "found": f"min {low}, opt {middle}, max {high}",
                "expected": "min <= opt <= max",
            }
            raise ConfigError("E514", "a profile is not ordered", facts=facts)
    return smallest, optimal, largest


def _parse_shape(text: str, spec: TensorSpec, word: str) -> _Shape:
    pieces = word.lower().split("x")
    if not all(piece.isascii() and piece.isdigit() for piece in pieces):
        raise ConfigError(
            "E511", "a profile has a shape that cannot be read", facts={"profile": text, "input": spec.name, "found": repr(word), "expected": _SYNTAX}
        )
    shape = tuple(int(piece) for piece in pieces)
    fits = len(shape) == len(spec.shape) and all(
        size > 0 and (isinstance(known, str) or known == size) for size, known in zip(shape, spec.shape, strict=False)
    )
    if not fits:
        facts = {"profile": text, "input": spec.name, "found": word, "expected": f"{_show(spec)}, where names are sizes from 1 on"}
        raise ConfigError("E513", "a profile has a shape that the input cannot have", facts=facts)
    return shape


def _check_symbols(text: str, inputs: tuple[TensorSpec, ...], shapes: dict[str, _Shapes]) -> None:
    seen: dict[str, tuple[str, tuple[int, ...]]] = {}
    for spec in inputs:
        for axis, symbol in enumerate(spec.shape):
            if not isinstance(symbol, str):
                continue
            sizes = tuple(shape[axis] for shape in shapes[spec.name])
            other, others = seen.setdefault(symbol, (spec.name, sizes))
            if others != sizes:
                facts = {"profile": text, "axis": symbol, "found": f"{other}: {others}, {spec.name}: {sizes}"}
                raise ConfigError("E513", "a profile gives one axis different sizes in two inputs", facts=facts)


def _show(spec: TensorSpec) -> str:
    return "x".join(str(size) for size in spec.shape)
