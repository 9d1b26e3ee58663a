"""Roles, operators and matches as JSON: a dataclass is an object that names its class, beside its fields; an operator is its number."""

from __future__ import annotations

import dataclasses
import enum
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from exporter.graph import abstract, attempts, rewrites, through
from exporter.graph.abstract import Operator
from exporter.graph.replay import origins

__all__ = ["Decoder", "Encoder", "Undecodable"]

_CLASS = "is"


class Undecodable(ValueError):
    """The JSON is none that an ``Encoder`` writes."""


def _classes() -> dict[str, type[Any]]:
    """Return name -> class of everything that an attempt may hold."""
    modules = [abstract, through, attempts, origins, *(module for name, module in sys.modules.items() if name.startswith(f"{rewrites.__name__}."))]
    found = {}
    for module in modules:
        for name, member in vars(module).items():
            is_ours = isinstance(member, type) and member.__module__ == module.__name__
            if is_ours and (dataclasses.is_dataclass(member) or issubclass(member, enum.Enum)):
                found[f"{module.__name__.rpartition('.')[2]}.{name}"] = member
    return found


_CLASSES = MappingProxyType(_classes())
_NAMES = MappingProxyType({kind: name for name, kind in _CLASSES.items()})


class Encoder:
    """Values -> JSON.

    Attributes:
        operators: the JSON of every operator met so far.
    """

    def __init__(self) -> None:
        self.operators: list[Any] = []
        self._numbers: dict[Operator, int] = {}

    def encode(self, value: Any) -> Any:  # noqa: ANN401 - anything that an attempt may hold
        """Return ``value`` as JSON."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (tuple, list)):
            return [self.encode(item) for item in value]
        if isinstance(value, Operator):
            if value not in self._numbers:
                fields = self._fields(value)
                self._numbers[value] = len(self.operators)
                self.operators.append(fields)
            return {"operator": self._numbers[value]}
        if isinstance(value, enum.Enum):
            return {_CLASS: _NAMES[type(value)], "name": value.name}
        if dataclasses.is_dataclass(value) and type(value) in _NAMES:
            return {_CLASS: _NAMES[type(value)], **self._fields(value)}
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return {"table": [[name, self.encode(item)] for name, item in value.items()]}
        raise TypeError(f"a {type(value).__name__} has no form in a plan")

    def _fields(self, value: Any) -> dict[str, Any]:  # noqa: ANN401 - any dataclass
        return {field.name: self.encode(getattr(value, field.name)) for field in dataclasses.fields(value)}


class Decoder:
    """JSON -> values; lists become tuples.

    Args:
        operators: the JSON of the operators, as the encoder has it.
    """

    def __init__(self, operators: list[Any]) -> None:
        self._operators: list[Operator] = []
        for entry in operators:
            self._operators.append(self._built(Operator, entry))

    def decode(self, value: Any) -> Any:  # noqa: ANN401 - anything that an attempt may hold
        """Return the value of ``value``.

        Raises:
            Undecodable: there is none.
        """
        if isinstance(value, list):
            return tuple(self.decode(item) for item in value)
        if not isinstance(value, dict):
            return value
        try:
            if set(value) == {"operator"}:
                return self._operators[value["operator"]]
            if set(value) == {"table"}:
                return {str(name): self.decode(item) for name, item in value["table"]}
            fields = dict(value)
            kind = _CLASSES[fields.pop(_CLASS)]
            return kind[fields["name"]] if issubclass(kind, enum.Enum) else self._built(kind, fields)
        except (KeyError, IndexError, TypeError, ValueError) as err:
            raise Undecodable(f"{type(err).__name__}: {err}") from err

    def _built(self, kind: type[Any], fields: dict[str, Any]) -> Any:  # noqa: ANN401 - one of the classes
        try:
            return kind(**{name: self.decode(item) for name, item in fields.items()})
        except (TypeError, AttributeError) as err:
            raise Undecodable(f"{kind.__name__}: {err}") from err
