"""Sections: strict types, limits, defaults, and a place for every mistake."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest

from exporter.sections import Section, SettingError, UnknownSettingError, setting


class Inner(Section):
    name: str
    sizes: tuple[int, ...] = ()


class Outer(Section):
    word: Literal["a", "b"] = "a"
    flag: bool = False
    count: int = setting(default=2, ge=1, le=9)
    share: float | None = setting(default=None, gt=0, lt=1)
    path: Path | None = None
    inner: tuple[Inner, ...] = ()
    single: Inner = Inner(name="default")
    table: dict[str, Inner] = setting(default_factory=dict)
    free: dict[str, Any] = setting(default_factory=dict)
    hidden: int = setting(default=0, is_key=False)


def test_what_is_converted() -> None:
    """An integer becomes a number, a list a tuple, text a path, a table a section; nothing else changes."""
    made = Outer(share=0.5, path="x/y", inner=[{"name": "n", "sizes": [1, 2]}], table={"k": {"name": "m"}}, free={"any": [1, {"b": None}]})
    assert made.path == Path("x/y")
    assert made.inner == (Inner(name="n", sizes=(1, 2)),)
    assert made.table == {"k": Inner(name="m")}
    assert made.free == {"any": [1, {"b": None}]}
    limited = type("Limited", (Section,), {"__annotations__": {"x": float}, "__module__": __name__})(x=3)
    assert (limited.x, type(limited.x)) == (3.0, float)


@pytest.mark.parametrize(
    ("values", "place", "expected"),
    [
        pytest.param({"word": "c"}, "word", "'a' or 'b'", id="another word"),
        pytest.param({"word": 1}, "word", "'a' or 'b'", id="a number is no word"),
        pytest.param({"flag": 1}, "flag", "true or false", id="a number is no boolean"),
        pytest.param({"count": True}, "count", "an integer", id="a boolean is no number"),
        pytest.param({"count": 2.0}, "count", "an integer", id="a float is no integer"),
        pytest.param({"count": 0}, "count", "greater than or equal to 1", id="too small"),
        pytest.param({"count": 10}, "count", "less than or equal to 9", id="too large"),
        pytest.param({"count": None}, "count", "an integer", id="none where none is not allowed"),
        pytest.param({"share": 0}, "share", "greater than 0", id="on the open lower limit"),
        pytest.param({"share": 1}, "share", "less than 1", id="on the open upper limit"),
        pytest.param({"share": float("nan")}, "share", "a finite number", id="not a number"),
        pytest.param({"share": True}, "share", "a finite number", id="a boolean is no float"),
        pytest.param({"path": 3}, "path", "a path", id="a number is no path"),
        pytest.param({"inner": {"name": "n"}}, "inner", "a list", id="a table is no list"),
        pytest.param({"inner": "ab"}, "inner", "a list", id="text is no list"),
        pytest.param({"inner": [{"name": "n", "sizes": [1, "2"]}]}, "inner -> 0 -> sizes -> 1", "an integer", id="deep inside"),
        pytest.param({"inner": [{}]}, "inner -> 0 -> name", "no default", id="a required key is missing"),
        pytest.param({"single": 3}, "single", "a table", id="a number is no section"),
        pytest.param({"table": {"k": 3}}, "table -> k", "a table", id="a number is no section in a table"),
        pytest.param({"table": {1: {"name": "n"}}}, "table", "a table", id="keys are text"),
        pytest.param({"free": [1]}, "free", "a table", id="a list is no table"),
    ],
)
def test_a_wrong_value_says_where_and_what(values: dict[str, Any], place: str, expected: str) -> None:
    """The error has the keys that lead to the value, the value, and what is expected in words."""
    with pytest.raises(SettingError, match=expected) as caught:
        Outer(**values)
    assert " -> ".join(caught.value.place) == place


@pytest.mark.parametrize(
    ("values", "place", "known"),
    [
        pytest.param({"cuont": 1}, ("cuont",), "count", id="at the top"),
        pytest.param({"inner": [{"name": "n", "size": 1}]}, ("inner", "0", "size"), "sizes", id="in a list"),
        pytest.param({"table": {"k": {"nam": 1}}}, ("table", "k", "nam"), "name", id="in a table"),
    ],
)
def test_an_unknown_key_says_where_and_which_are_known(values: dict[str, Any], place: tuple[str, ...], known: str) -> None:
    """The error has the place and the keys of that section; a value that is no key of the file is not among them."""
    with pytest.raises(UnknownSettingError) as caught:
        Outer(**values)
    assert caught.value.place == place
    assert known in caught.value.known
    assert "hidden" not in caught.value.known


def test_a_section_is_a_value() -> None:
    """Equal keys make equal sections with one hash; nothing can be set or deleted; ``replace`` checks again."""
    one = Inner(name="n", sizes=(1,))
    assert one == Inner(sizes=[1], name="n") == copy.deepcopy(one)
    assert hash(one) == hash(Inner(name="n", sizes=(1,)))
    assert one != Inner(name="m", sizes=(1,))
    assert one != {"name": "n", "sizes": (1,)}
    assert repr(one) == "Inner(name='n', sizes=(1,))"
    with pytest.raises(AttributeError, match="frozen"):
        one.name = "m"
    with pytest.raises(AttributeError, match="frozen"):
        del one.name
    assert one.replace(name="m") == Inner(name="m", sizes=(1,))
    with pytest.raises(SettingError):
        one.replace(name=1)


def test_defaults_are_not_shared() -> None:
    """A table that is a default is made anew for each section."""
    assert Outer().free is not Outer().free


def test_the_json_form_has_every_key_in_order() -> None:
    """Tuples are lists, paths text, sections tables; what is no key of the file is left out."""
    assert list(Outer(path="p", inner=[{"name": "n"}]).to_json().items()) == [
        ("word", "a"),
        ("flag", False),
        ("count", 2),
        ("share", None),
        ("path", "p"),
        ("inner", [{"name": "n", "sizes": []}]),
        ("single", {"name": "default", "sizes": []}),
        ("table", {}),
        ("free", {}),
    ]
