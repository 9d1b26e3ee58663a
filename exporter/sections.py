"""Sections of a configuration: frozen values whose keys have a type, a default and limits, checked when they are made.

A section is written like a dataclass. The check is strict: nothing is converted but an integer to a number, a list to a tuple and
text to a path, and an unknown key is a mistake. Every mistake has a place. Types are looked at when a value is given, not when the
class is made, so that importing a configuration costs next to nothing.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from exporter.locations import RemotePath, location_of

if TYPE_CHECKING:
    from typing_extensions import Self, dataclass_transform
else:

    def dataclass_transform(**_: object) -> Callable[[type], type]:
        """Tell type checkers, and only them, that the keys of a section are the arguments of its constructor."""
        return lambda kind: kind


__all__ = ["REQUIRED", "Section", "Setting", "SettingError", "UnknownSettingError", "setting"]

REQUIRED: Any = object()
"""The default of a key that has none."""

_LIMITS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "gt": ("greater than", operator.gt),
    "ge": ("greater than or equal to", operator.ge),
    "lt": ("less than", operator.lt),
    "le": ("less than or equal to", operator.le),
}
"""Name -> how it is called, and whether a value keeps to a bound."""


class SettingError(ValueError):
    """A key has a value that it cannot have, or lacks one.

    Attributes:
        place: the keys that lead to it.
        found: the value as it would be written in Python; None where there is none.
        expected: in words.
    """

    def __init__(self, place: tuple[str, ...], found: str | None, expected: str) -> None:
        super().__init__(f"{' -> '.join(place)}: found {found}, expected {expected}")
        self.place, self.found, self.expected = place, found, expected


class UnknownSettingError(ValueError):
    """A section has no such key.

    Attributes:
        place: the keys that lead to it, and the key itself.
        known: the keys that the section has.
    """

    def __init__(self, place: tuple[str, ...], known: tuple[str, ...]) -> None:
        super().__init__(f"unknown setting {' -> '.join(place)}")
        self.place, self.known = place, known


class Setting:
    """One key of a section, without its type.

    Attributes:
        limits: name of the limit (``gt``, ``ge``, ``lt``, ``le``) -> bound.
        is_key: False for a value that is not a key of the file, and no part of the JSON form.
    """

    __slots__ = ("_default", "_factory", "is_key", "limits")

    def __init__(self, default: Any, factory: Callable[[], Any] | None, limits: Mapping[str, float], *, is_key: bool) -> None:  # noqa: ANN401
        self._default, self._factory, self.limits, self.is_key = default, factory, limits, is_key

    @property
    def default(self) -> Any:  # noqa: ANN401 - a value of the key's type
        """Return the default, ``REQUIRED`` where there is none."""
        return self._default if self._factory is None else self._factory()


def setting(
    *,
    default: Any = REQUIRED,  # noqa: ANN401 - a value of the key's type
    default_factory: Callable[[], Any] | None = None,
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    is_key: bool = True,
) -> Any:  # noqa: ANN401 - stands where the default stands
    """Describe a key that needs more than a default: limits of a number, a default made anew each time, or no key of the file at all."""
    given = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    return Setting(default, default_factory, {name: bound for name, bound in given.items() if bound is not None}, is_key=is_key)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting,))
class Section:
    """Base of all sections.

    Raises:
        UnknownSettingError: a key that the section does not have.
        SettingError: a value that the key cannot have, or a missing one.
    """

    settings: ClassVar[Mapping[str, Setting]] = {}
    """Every key, in order."""

    def __init_subclass__(cls) -> None:
        """Collect the keys of the class."""
        cls.settings = {name: _setting_of(cls.__dict__.get(name, REQUIRED)) for name in cls.__annotations__}

    def __init__(self, **values: Any) -> None:  # noqa: ANN401 - checked right here
        self.__dict__.update(_checked_values(type(self), values, ()))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen: replace({name}=...) makes another one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), *self.__dict__.values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__dict__.items())})"

    @classmethod
    def kind_of(cls, key: str) -> Any:  # noqa: ANN401 - any annotation
        """Return the type of a key."""
        if "_kinds" not in cls.__dict__:
            cls._kinds = get_type_hints(cls)
        return cls._kinds[key]

    _kinds: ClassVar[dict[str, Any]]

    @classmethod
    def section_of(cls, key: str) -> type[Section] | None:
        """Return the section that stands under a key, None where the key has a plain value or is not there."""
        kind = cls.kind_of(key) if key in cls.settings else None
        return kind if isinstance(kind, type) and issubclass(kind, Section) else None

    def replace(self, **values: Any) -> Self:  # noqa: ANN401 - checked by the constructor
        """Return the same section with other values for some keys."""
        return type(self)(**{**self.__dict__, **values})

    def to_json(self) -> dict[str, Any]:
        """Return the keys and values as plain JSON types, in order."""
        return {name: _json(value) for name, value in self.__dict__.items() if self.settings[name].is_key}


def _setting_of(value: Any) -> Setting:  # noqa: ANN401 - a default, or a Setting
    return value if isinstance(value, Setting) else Setting(value, None, {}, is_key=True)


def _checked_values(section: type[Section], given: Mapping[Any, Any], at: tuple[str, ...]) -> dict[str, Any]:
    for name in given:
        if name not in section.settings:
            raise UnknownSettingError((*at, str(name)), tuple(known for known, entry in section.settings.items() if entry.is_key))
    values = {}
    for name, entry in section.settings.items():
        if name in given:
            values[name] = _checked(given[name], section.kind_of(name), entry.limits, (*at, name))
        elif (default := entry.default) is REQUIRED:
            raise SettingError((*at, name), None, "a value: it has no default")
        else:
            values[name] = default
    return values


def _checked(value: Any, kind: Any, limits: Mapping[str, float], at: tuple[str, ...]) -> Any:  # noqa: ANN401 - goes by the annotation
    """Return ``value`` as its type wants it."""
    if get_origin(kind) in {Union, types.UnionType}:
        if value is None:
            return None
        options = [option for option in get_args(kind) if option is not type(None)]
        if RemotePath in options:
            if not isinstance(value, (str, Path, RemotePath)):
                raise SettingError(at, repr(value), "a path or a URL")
            return location_of(value)
        (kind,) = options
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_checked(item, inner[0], limits, (*at, str(index))) for index, item in enumerate(value))
    if origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _checked(item, inner[1], limits, (*at, key)) for key, item in value.items()}
    if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, Mapping):
        section = kind.__new__(kind)
        section.__dict__.update(_checked_values(kind, value, at))
        return section
    if kind is float and type(value) is int:
        value = float(value)
    if kind is Path and isinstance(value, str):
        value = Path(value)
    if not _is_of_kind(value, kind) or not all(_LIMITS[name][1](value, bound) for name, bound in limits.items()):
        raise SettingError(at, repr(value), _expected(kind, limits))
    return value


def _is_of_kind(value: Any, kind: Any) -> bool:  # noqa: ANN401 - goes by the annotation
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is Any:
        return True
    if get_origin(kind) is not None:
        return False
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) and (kind is not float or math.isfinite(value))


def _expected(kind: Any, limits: Mapping[str, float]) -> str:  # noqa: ANN401 - goes by the annotation
    names = {bool: "true or false", int: "an integer", float: "a finite number", str: "text", Path: "a path", tuple: "a list", dict: "a table"}
    if get_origin(kind) is Literal:
        return " or ".join(repr(word) for word in get_args(kind))
    return " and ".join([names.get(get_origin(kind) or kind, "a table"), *(f"{_LIMITS[name][0]} {bound:g}" for name, bound in limits.items())])


def _json(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, Section):
        return value.to_json()
    if isinstance(value, (Path, RemotePath)):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    return value
