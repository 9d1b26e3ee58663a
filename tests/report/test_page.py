import dataclasses
import functools
import html.parser
import itertools
import re
import subprocess
import sys

import matplotlib as mpl
import pytest

from exporter.artifacts import REMEDIES, Outcome, Report
from exporter.report.page import page_from_report
from tests.report import builders, networks

VOID = {"meta", "br", "link", "img", "input", "hr"}
REPORTS = {
    "passing": builders.passing,
    "failing": builders.failing,
    "mixed": builders.mixed,
    "hostile": builders.hostile,
    "networked": networks.networked,
}


class Page(html.parser.HTMLParser):
    """Collects tags, identifiers and text, and holds that every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parents: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        self.parents.append((self.open[-1] if self.open else "", tag))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        raise AssertionError(f"<{tag}/> closes itself, which HTML does not know")

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module", params=list(REPORTS))
def rendered(request: pytest.FixtureRequest) -> tuple[Report, str, Page]:
    """A report, its page, and what the page is made of."""
    text = _page(request.param)
    return REPORTS[request.param](), text, Page(text)


@functools.cache
def _page(name: str) -> str:
    return page_from_report(REPORTS[name]())


def test_page_is_self_contained(rendered) -> None:
    """The page names no address, loads nothing and runs nothing."""
    _, text, page = rendered
    assert not re.search(r"https?://|url\((?!#)|@import|javascript:", text)
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "src", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")


def test_policy_forbids_scripts_and_loading(rendered) -> None:
    """Were anything to slip in, the page's own policy keeps it from running."""
    _, _, page = rendered
    policies = [attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_every_picture_is_described(rendered) -> None:
    """Each picture has a title and a description, and is announced by them."""
    _, _, page = rendered
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert pictures
    assert page.parents.count(("svg", "title")) == page.parents.count(("svg", "desc")) == len(pictures)
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert set(attributes["aria-labelledby"].split()) <= ids


def test_identifiers_are_unique_and_links_lead_somewhere(rendered) -> None:
    """Several pictures on one page do not share identifiers, and every reference inside the page has its target."""
    _, text, page = rendered
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for _, attributes in page.tags if (attributes.get("href") or "").startswith("#")}
    targets |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert targets <= set(ids)


def test_page_is_built_for_reading_aloud(rendered) -> None:
    """One main heading, no level left out, a caption for every table, a scope for every heading cell."""
    _, _, page = rendered
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert page.count("table") == page.count("caption")
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    assert next(attributes["lang"] for tag, attributes in page.tags if tag == "html") == "en"


def test_colours_come_from_the_page(rendered) -> None:
    """No picture brings a colour of its own, so that light and dark both work."""
    _, text, _ = rendered
    for picture in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        assert not re.search(r"#[0-9a-fA-F]{6}", picture)
        assert "DejaVu" not in picture


def test_every_verdict_and_fold_is_on_the_page(rendered) -> None:
    """Nothing that was judged, folded or refused is left out."""
    report, _, page = rendered
    text = " ".join(page.texts)
    for verdict in report.verdicts:
        assert verdict.outcome.value in text
    for item in report.folded[1:]:
        assert item.batch_norm in text
    for item in report.refusals:
        assert item.reason.value in text


def test_table_of_folds_can_be_filtered_without_a_script(rendered) -> None:
    """Every BatchNorm has a row of the class of its fate; there is one filter for each fate that occurs, and each has its rule in the style."""
    report, text, page = rendered
    fates = [attributes["class"] for tag, attributes in page.tags if tag == "tr" and attributes.get("class")]
    assert sorted(fates) == sorted([*("kept" for _ in report.refusals), *(item.direction for item in report.folded)])
    filters = [attributes["id"].removeprefix("fold-") for tag, attributes in page.tags if tag == "input"]
    assert set(filters) == {"all", *fates}
    for fate in set(fates):
        assert f"#fold-{fate}:checked ~ .scroll tbody tr:not(.{fate})" in text
    labels = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    assert labels == {f"fold-{name}" for name in filters}


def test_what_to_do_about_kept_ones_is_said(rendered) -> None:
    """For each reason that occurs the page names the BatchNorms and what can be done."""
    report, _, page = rendered
    text = " ".join(page.texts)
    for item in report.refusals:
        assert REMEDIES[item.reason] in text


def test_verdict_stands_first(rendered) -> None:
    """The first heading is the overall outcome, and the first table the checks; then, where there is need, what to do."""
    report, text, _ = rendered
    body = text[text.index("<body>") :]
    assert body.index(f"<h1>{report.outcome.value}</h1>") < body.index("<table") < body.index('id="lineage"')
    assert ("What to do" in body) == (report.outcome is not Outcome.PASS)
    if report.outcome is not Outcome.PASS:
        assert body.index("</table>") < body.index("What to do") < body.index('id="lineage"')


def test_text_of_a_file_stays_text() -> None:
    """Markup, formulas and control characters of a hostile file are shown, not obeyed."""
    text = _page("hostile")
    assert "<img" not in text
    assert "\x1b" not in text
    assert "\x00" not in text
    assert "&lt;/script&gt;&lt;img src=x onerror=" in text
    assert "$\\frac{1}{2}$" in text
    text.encode()


@pytest.mark.parametrize("field", ["bake", "folded", "refusals", "verdicts", "stages", "lineage", "config", "environment", "histogram_edges"])
def test_any_part_may_be_missing(field) -> None:
    """A run that skipped a stage has a report, too."""
    empty = {"bake": None, "lineage": {}, "config": {}, "environment": {}}.get(field, ())
    Page(page_from_report(dataclasses.replace(builders.mixed(), **{field: empty})))


def test_empty_run_renders() -> None:
    """A run that did nothing says so."""
    report = Report(
        run="r", started="2026-11-20T14:03:22", seconds=0.0, outcome=Outcome.NOT_RUN, stages=(), verdicts=(), lineage={}, config={}, environment={}
    )
    assert "No check was made." in Page(page_from_report(report)).texts


def test_importing_the_stage_is_cheap(repository) -> None:
    """The command line can import this stage without torch, ONNX, plotting or templates."""
    heavy = {"torch", "onnx", "onnxruntime", "matplotlib", "jinja2", "numpy"}
    code = f"import sys, exporter.report; found = {heavy} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=repository)


def test_rendering_works_headless_and_leaves_no_state(repository) -> None:
    """No display, no pyplot, no figure kept, no setting changed, under ``-W error``."""
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from tests.report import builders; from exporter.report.page import page_from_report\n"
        "page_from_report(builders.mixed())\n"
        "assert 'matplotlib.pyplot' not in sys.modules; assert matplotlib.rcParams.copy() == before"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env={"PYTHONPATH": str(repository), "MPLCONFIGDIR": mpl.get_configdir()})
