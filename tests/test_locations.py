"""A checkpoint lies at a path or at a URL, and a URL is shown without its secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.errors import CheckpointError
from exporter.locations import RemotePath, location_of

SIGNED = "https://reader:hunter2@models.example:8443/runs/last%20one.pt?X-Amz-Signature=5ecr3t&part=1#frag"


def test_a_url_keeps_its_form_and_hides_its_secrets() -> None:
    """The connection gets the URL as written; text, repr and names have neither user, password, query nor fragment."""
    path = location_of(SIGNED)
    assert isinstance(path, RemotePath)
    assert path.url == SIGNED
    assert str(path) == "https://models.example:8443/runs/last%20one.pt"
    assert (path.name, path.stem, path.suffix) == ("last one.pt", "last one", ".pt")
    for text in (str(path), repr(path), f"{path}"):
        assert "hunter2" not in text
        assert "5ecr3t" not in text


def test_a_path_stays_a_path() -> None:
    """What does not begin with a scheme and two slashes is a path, colons and all."""
    for text in ("last.pt", "runs/a:b.pt", "https:/mangled", "/tmp/x?y"):
        assert location_of(text) == Path(text)
    assert location_of(Path("last.pt")) == Path("last.pt")


@pytest.mark.parametrize(("name", "expected"), [("a%2Fb.pt", "a%2Fb.pt"), ("%2E%2E", "%2E%2E"), ("a%0Ab.pt", "a%0Ab.pt"), ("%C3%A9.pt", "é.pt")])
def test_the_name_is_one_step(name: str, expected: str) -> None:
    """A name that would be a path or hold control characters once decoded stays encoded: outputs are called after it."""
    assert RemotePath(f"https://models.example/{name}").name == expected


def test_the_names_of_objects_in_buckets_are_not_encoded() -> None:
    """A percent sign in the key of an object is a percent sign."""
    assert RemotePath("s3://bucket/runs/90%25.pt").name == "90%25.pt"


def test_a_sibling_has_the_same_host_and_query() -> None:
    """What stands beside an object is asked for with the same credentials, at the same host, under its own name alone."""
    beside = RemotePath(SIGNED).beside("model-00001-of-00002.safetensors")
    assert beside.url == "https://reader:hunter2@models.example:8443/runs/model-00001-of-00002.safetensors?X-Amz-Signature=5ecr3t&part=1"
    assert RemotePath("https://models.example/a/index.json?token=1").beside("a?b#c").url == "https://models.example/a/a%3Fb%23c?token=1"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("ftp://models.example/last.pt?key=5ecr3t", "the scheme ftp"),
        ("file:///runs/last.pt", "the scheme file"),
        ("simplecache::https://models.example/last.pt?key=5ecr3t", "the scheme"),
        ("https://models.example/?key=5ecr3t", "no name"),
        ("https:///last.pt", "no host"),
        ("https://models.example:port/last.pt?key=5ecr3t", "breaks the rules"),
        ("https://[::1/last.pt?key=5ecr3t", "breaks the rules"),
        ("https://models.example/la\nst.pt", "no name"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(text: str, found: str) -> None:
    """A URL of another scheme, without host or name, or malformed is an error that says so and shows no secret."""
    with pytest.raises(CheckpointError) as caught:
        location_of(text)
    assert caught.value.code == "E150"
    assert found in str(caught.value)
    assert "5ecr3t" not in str(caught.value)
