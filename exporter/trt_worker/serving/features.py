"""What differs between the releases of TensorRT: the one place that says from which release on something is there, and until which.

Everything that is not here is the same from 8.5 to 11. The numbers are those of the releases whose real bindings have the names; the contract
tests compare them with nine releases.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FEATURES", "has", "version_has"]

_NEVER_REMOVED = (999, 0)

FEATURES: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    # what -> (first release with it, first release without it)
    "explicit batch": ((8, 5), (10, 0)),  # a flag of the network; from 10 on it is the only way
    "tactic libraries": ((8, 5), (10, 0)),  # tactics of cuBLAS and cuDNN
    "precision flags": ((8, 5), (10, 0)),  # of the builder, and constraints of a layer; from 10 on the network's own types decide
    "optimization level": ((8, 6), _NEVER_REMOVED),
    "hardware compatibility": ((8, 6), _NEVER_REMOVED),
    "strongly typed": ((10, 0), _NEVER_REMOVED),
    "progress monitor": ((10, 0), _NEVER_REMOVED),
    "named parser errors": ((10, 0), _NEVER_REMOVED),
    "parser refitter": ((10, 0), _NEVER_REMOVED),
    "layer metadata": ((8, 6), _NEVER_REMOVED),
    "plugin libraries": ((8, 6), _NEVER_REMOVED),  # loaded by path
    "native instance norm": ((8, 6), _NEVER_REMOVED),  # a flag of the parser; from 10 on it is on by itself
    "version compatibility": ((8, 6), _NEVER_REMOVED),
    "weight streaming": ((10, 0), _NEVER_REMOVED),
    "weight streaming budget": ((10, 1), _NEVER_REMOVED),  # in bytes; before, with codes for more and less
    "strict nans": ((10, 6), _NEVER_REMOVED),
    "editable timing cache": ((10, 8), _NEVER_REMOVED),
    "same compute capability": ((10, 9), _NEVER_REMOVED),
    "batch invariance": ((10, 12), _NEVER_REMOVED),
    "debug tensors": ((10, 12), _NEVER_REMOVED),  # of everything that is left after fusion
    "stripped plans": ((10, 0), _NEVER_REMOVED),
    "refit flag of a plan": ((10, 14), _NEVER_REMOVED),  # before, what is serialised stays refittable by itself
}


def has(trt: Any, feature: str) -> bool:  # noqa: ANN401 - a module without types
    """Whether this release of TensorRT has ``feature``."""
    return version_has(str(trt.__version__), feature)


def version_has(version: str, feature: str) -> bool:
    """Whether the release ``version`` of TensorRT has ``feature``."""
    first, end = FEATURES[feature]
    major, minor = version.split(".")[:2]
    return first <= (int(major), int(minor)) < end
