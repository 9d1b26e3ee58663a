"""The page in a real browser without a network: it shows its pictures, whole, in light and dark, wide and narrow."""

import itertools
import re

import pytest
from PIL import Image

from exporter.report import write_report
from tests.report import browser, builders, networks

pytestmark = [pytest.mark.browser, pytest.mark.slow]

WIDE, NARROW = 1200, 400
PRINTED_PAGE = 1009
"""Pixels between the margins of a page of A4."""

NUM_PICTURES = {"failing": 10, "hostile": 5, "recalibrated": 8}
"""Drift and speed-up; per output its errors; per race its samples and its rounds."""


@pytest.fixture(scope="module", params=list(NUM_PICTURES))
def page(request, tmp_path_factory):
    """Path of a written report.html."""
    browser.find_browser()
    folder = tmp_path_factory.mktemp(request.param)
    write_report(getattr(builders, request.param)(), folder)
    return folder / "report.html"


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_pictures_are_there_and_whole(page, tmp_path, width) -> None:
    """Every picture has a size, something drawn in it, and texts that stay inside it and off each other; the page never scrolls sideways."""
    found = browser.measure(page, tmp_path, width=width)
    assert found["width"] == width
    assert found["scroll_width"] <= width
    assert len(found["pictures"]) == NUM_PICTURES[page.parent.name.rstrip("0123456789")]
    for picture in found["pictures"]:
        left, top, right, bottom = picture["box"]
        assert right - left > 0.8 * min(width, 400)
        assert bottom - top > 60
        assert left >= 0
        assert right <= width
        assert picture["shapes"] > 3
        assert "system-ui" in picture["font"]
        _check_texts(picture)


def test_nothing_is_fetched(page, tmp_path) -> None:
    """The browser asks for no second file."""
    assert browser.measure(page, tmp_path, width=WIDE)["fetched"] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures_show_in_light_and_dark(page, tmp_path, scheme) -> None:
    """In both schemes every picture is visibly drawn upon the background of the scheme."""
    found = browser.measure(page, tmp_path, width=WIDE, scheme=scheme)
    with Image.open(browser.photograph(page, tmp_path, width=WIDE, height=found["height"], scheme=scheme)) as file:
        image = file.convert("RGB")
    background = image.getpixel((5, 5))
    assert (sum(background) > 3 * 200) == (scheme == "light")
    for picture in found["pictures"]:
        crop = image.crop(tuple(round(edge) for edge in picture["box"]))
        colours = crop.getcolors(maxcolors=1 << 24)
        drawn = sum(count for count, colour in colours if _contrast(colour, background) > 60)
        assert drawn > 0.005 * crop.width * crop.height, picture["title"]
        assert max(_contrast(colour, background) for _, colour in colours) > 300, picture["title"]


def test_ruler_can_tell_a_broken_page(tmp_path) -> None:
    """The measurements above can fail: a page with an empty, overflowing picture and colliding texts is seen to be so."""
    bad = tmp_path / "bad.html"
    text = '<text x="5" y="20">one</text><text x="8" y="20">two</text>'
    bad.write_text(f'<!DOCTYPE html><body style="margin:0"><svg width="900" height="40"><title>bad</title>{text}</svg></body>', encoding="utf-8")
    found = browser.measure(bad, tmp_path, width=NARROW)
    assert found["scroll_width"] > NARROW
    assert found["pictures"][0]["shapes"] == 0
    with pytest.raises(AssertionError, match="overlap"):
        _check_texts(found["pictures"][0])


NETWORKS = {
    "every fate": (lambda: networks.mixed_net(8), 3),
    "long names": (lambda: networks.mixed_net(2, stem="model.backbone.encoder.stages.3.blocks.MWMWMW"), 2),
    "many lanes": (lambda: networks.dense(24), 2),
}
"""Networks, and how many strips stand side by side on a wide page."""


@pytest.fixture(scope="module", params=list(NETWORKS))
def network(request, tmp_path_factory):
    """Path of a report.html with the picture of a network, and the number of its strips on a wide page."""
    browser.find_browser()
    folder = tmp_path_factory.mktemp("network")
    build, num_columns = NETWORKS[request.param]
    write_report(build().report(), folder)
    return folder / "report.html", num_columns


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_network_is_drawn_whole(network, tmp_path, width) -> None:
    """Strips stand side by side where there is room; no row is cut, no two texts touch, and the page never scrolls sideways."""
    page, num_columns = network
    found = browser.measure(page, tmp_path, width=width)
    assert found["scroll_width"] <= width
    strips = [picture for picture in found["pictures"] if picture["kind"] == "strip"]
    tops = [strip["box"][1] for strip in strips]
    assert tops.count(tops[0]) == (num_columns if width == WIDE else 1)
    for strip in strips:
        assert strip["box"][2] <= width
        assert strip["box"][3] - strip["box"][1] < PRINTED_PAGE
        _check_texts(strip)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fates_can_be_told_apart(tmp_path, scheme) -> None:
    """Each fate has a colour of its own, light and dark, that stands out from the page; the shapes differ as well."""
    write_report(networks.networked(), tmp_path)
    found = browser.measure(tmp_path / "report.html", tmp_path, width=WIDE, scheme=scheme)
    colours = {_rgb(colour) for picture in found["pictures"] for colour in picture["colours"]}
    background = _rgb(found["colour"])
    distinct = {colour for colour in colours if colour != background}
    assert len(distinct) == 5  # took and back, ahead, beside, kept, the rest
    assert all(_contrast(colour, background) > 150 for colour in distinct)


@pytest.mark.parametrize(("fate", "num_rows"), [("all", 16), ("kept", 3), ("ahead", 3), ("back", 7), ("beside", 3)])
def test_filter_shows_the_rows_of_one_fate(tmp_path, fate, num_rows) -> None:
    """Without a script: the chosen filter leaves the rows of its fate."""
    write_report(networks.networked(), tmp_path)
    page = tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    page.write_text(
        text.replace('id="fold-all" checked', 'id="fold-all"').replace(f'id="fold-{fate}"', f'id="fold-{fate}" checked'), encoding="utf-8"
    )
    rows = browser.measure(page, tmp_path, width=WIDE)["rows"]
    assert len(rows) == num_rows
    assert fate == "all" or set(rows) == {fate}


def _rgb(text) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])


def _check_texts(picture) -> None:
    left, top, right, bottom = picture["box"]
    texts = [text for text in picture["texts"] if text[0].strip()]
    assert texts
    for text, x0, y0, x1, y1 in texts:
        assert x0 >= left - 2, f"{text!r} leaves {picture['title']}"
        assert x1 <= right + 2, f"{text!r} leaves {picture['title']}"
        assert y0 >= top - 3, f"{text!r} leaves {picture['title']}"
        assert y1 <= bottom + 3, f"{text!r} leaves {picture['title']}"
    for first, second in itertools.combinations(texts, 2):
        across = min(first[3], second[3]) - max(first[1], second[1])
        down = min(first[4], second[4]) - max(first[2], second[2])
        smaller = min(first[4] - first[2], second[4] - second[2])
        assert across <= 1 or down <= 0.45 * smaller, f"texts overlap in {picture['title']}: {first[0]!r} and {second[0]!r}"


def _contrast(colour, background) -> int:
    return sum(abs(one - other) for one, other in zip(colour, background, strict=True))
