"""The normalisation of inputs that ``[fold] input`` describes: raw pixels ``x`` become ``(x * scale - mean) / std``.

Text such as ``mean=0.485,0.456,0.406,std=0.229,0.224,0.225,scale=1/255``, with ``NAME:`` in front where there are several inputs.
"""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exporter.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Normalisation", "normalise_inputs_", "parse_normalisations"]

_NUMBER = re.compile(r"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?")
_HELP = "--fold-input mean=0.485,0.456,0.406,std=0.229,0.224,0.225,scale=1/255, with NAME: in front where there are several inputs"


@dataclass(frozen=True, slots=True)
class Normalisation:
    """``(x * scale - mean) / std`` on one input; each holds one number, or one for each channel.

    Attributes:
        name: of the input; empty where the network has a single one.
        text: as it was written.
    """

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, ...]
    text: str

    @property
    def num_channels(self) -> int:
        """Return how many channels it speaks of; 1 fits any number."""
        return max(len(self.mean), len(self.std), len(self.scale))

    def numbers(self, num_channels: int) -> tuple[list[float], list[float]]:
        """Return ``s`` and ``t`` of ``s x + t``, one for each channel."""
        mean, std, scale = (part if len(part) > 1 else part * num_channels for part in (self.mean, self.std, self.scale))
        return [a / b for a, b in zip(scale, std, strict=True)], [-a / b for a, b in zip(mean, std, strict=True)]


def parse_normalisations(texts: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Normalisation]:
    """Return input -> its normalisation.

    Args:
        texts: of the configuration.
        names: of the network's inputs.

    Raises:
        ConfigError: a text is none (E366), or speaks of an input that there is not (E367).
    """
    found: dict[str, Normalisation] = {}
    for text in texts:
        entry = _parsed(text)
        name = entry.name or (names[0] if len(names) == 1 else "")
        if name not in names or name in found:
            facts = {"at": "fold -> input", "found": text, "expected": f"each of these at most once: {', '.join(names)}"}
            raise ConfigError("E367", "a normalisation speaks of an input that there is not", facts=facts, help=_HELP)
        found[name] = entry
    return found


def normalise_inputs_(module: nn.Module, texts: tuple[str, ...]) -> None:
    """Let ``module`` take raw pixels: what it is given is normalised in front of its ``forward``, in the precision that it runs in.

    Raises:
        ConfigError: a text is none (E366), or speaks of an input that there is not (E367).
    """
    if not texts:
        return
    names = tuple(inspect.signature(module.forward).parameters)
    entries = [_parsed(text) for text in texts]
    if len(entries) == 1 and not entries[0].name:
        places = {0: (names[0] if names else "", entries[0])}
    elif len(entries) == 1 and entries[0].name not in names:
        places = {0: ("", entries[0])}  # a single input may be called anything
    else:
        places = {names.index(name): (name, entry) for name, entry in parse_normalisations(texts, names).items()}

    def normalise(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = list(args)
        for place, (name, entry) in places.items():
            if place < len(given):
                given[place] = _normalised(given[place], entry)
            elif name in kwargs:
                kwargs = {**kwargs, name: _normalised(kwargs[name], entry)}
        return tuple(given), kwargs

    module.register_forward_pre_hook(normalise, with_kwargs=True)


def _normalised(x: Tensor, entry: Normalisation) -> Tensor:
    mean, std, scale = (x.new_tensor(part).reshape(1, -1, *[1] * (x.dim() - 2)) for part in (entry.mean, entry.std, entry.scale))
    return (x * scale - mean) / std


def _parsed(text: str) -> Normalisation:
    name, colon, rest = text.rpartition(":")
    parts: dict[str, list[float]] = {}
    key = ""
    for word in rest.split(","):
        head, equals, number = word.rpartition("=")
        key = head.strip() if equals else key
        value = _number(number.strip())
        if key not in {"mean", "std", "scale"} or value is None or (equals and key in parts):
            raise _no_normalisation(text, f"{word!r} in it")
        parts.setdefault(key, []).append(value)
    lengths = {len(part) for part in parts.values()} - {1}
    if len(lengths) > 1 or (colon and not name):
        raise _no_normalisation(text, "lists of different lengths" if lengths else "no name before the colon")
    mean, std, scale = (tuple(parts.get(part, [default])) for part, default in (("mean", 0.0), ("std", 1.0), ("scale", 1.0)))
    if 0.0 in std:
        raise _no_normalisation(text, "a std of zero")
    return Normalisation(name, mean, std, scale, text)


def _number(text: str) -> float | None:
    """Return a number, or a fraction of two: ``1/255``."""
    above, slash, below = text.partition("/")
    if not all(_NUMBER.fullmatch(part) for part in ((above, below) if slash else (above,))):
        return None
    try:
        value = float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def _no_normalisation(text: str, found: str) -> ConfigError:
    return ConfigError("E366", "this is no normalisation of an input", facts={"at": "fold -> input", "text": text, "found": found}, help=_HELP)
