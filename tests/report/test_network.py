"""The network in rows and lanes: what stands in one row, where a BatchNorm has one for itself, and how values run."""

from __future__ import annotations

import dataclasses
import re

import pytest

from exporter.artifacts import Folded
from exporter.report.fold_table import fold_table
from exporter.report.network import lanes_of, rows_of
from exporter.report.network_picture import LEGEND, network_picture
from exporter.report.page import page_from_report
from tests.report import builders
from tests.report.networks import Net, dense, mixed_net, networked


def rows(net: Net):
    """Return the rows of a network."""
    report = net.report()
    assert report.sketch is not None
    return rows_of(report.sketch, report.folded, report.refusals)


def test_chain_is_one_row() -> None:
    """A convolution, the BatchNorms that it took and its activation stand in one row; what passes values on has none."""
    net = Net()
    net.conv("conv")
    net.norm("bn1", "conv")
    net.norm("bn2", "conv")
    net.add("act", "relu_", "other")
    net.add("pool", "max_pool2d", "passes")
    net.conv("last")
    first, second, third = rows(net)
    assert (first.kind, second.kind, third.kind) == ("input", "took", "product")
    assert [item.batch_norm for item in second.taken] == ["bn1", "bn2"]
    assert second.behind == ["relu", "max_pool2d"]
    assert third.reads == (1,)


def test_every_fate_has_a_row_or_a_place_in_one() -> None:
    """Each BatchNorm is in the picture just once, with its own fate."""
    found = rows(mixed_net(2))
    fates = {row.node.module: row.kind for row in found if row.node.part == "batch_norm"}
    block = {"pre": "kept", "norm": "ahead", "identity": "beside", "after": "back"}
    assert fates == {f"backbone.stages.{number}.{name}": kind for number in (0, 1) for name, kind in block.items()}
    taken = [item.batch_norm for row in found for item in row.taken]
    assert taken == ["stem.bn", "backbone.stages.0.bn1", "backbone.stages.1.bn1"]


def test_values_that_others_read_have_a_row() -> None:
    """An activation joins the row of its convolution only where nobody else reads the convolution."""
    net = Net()
    conv = net.conv("conv")
    act = net.add("act", "relu", "other")
    net.add("", "add", "sum", conv, act)
    assert [row.node.kind for row in rows(net)] == ["input", "conv2d", "relu", "add"]


@pytest.mark.parametrize("net", [mixed_net(4), dense(9)], ids=["mixed", "dense"])
def test_no_two_values_share_a_lane(net) -> None:
    """While a value runs down its lane to its last reader, no other row stands there but that reader."""
    found = rows(net)
    lanes = lanes_of(found)
    for source, last in enumerate(lanes.last_reader):
        assert all(source in found[place].reads for place in (last,) if last != source)
        for place in range(source + 1, last):
            assert lanes.lane[place] != lanes.lane[source]


def test_plain_chain_needs_one_lane_and_a_residual_two() -> None:
    """The way around a residual block is straight, the block stands beside it."""
    net = Net()
    entry = net.conv("a")
    net.conv("b")
    tail = net.conv("c")
    net.add("", "add", "sum", entry, tail)
    assert lanes_of(rows(net)).lane == (0, 0, 1, 1, 0)


def test_picture_has_all_rows_and_says_them_in_words() -> None:
    """Every row has its mark and its tooltip; each strip has its words; the legend holds what occurs and nothing else."""
    report = networked()
    picture = network_picture(report)
    assert picture is not None
    text = "".join(picture.strips)
    kinds = [row.kind for row in rows_of(report.sketch, report.folded, report.refusals)]
    assert re.findall(r'<g class="(\w+)"', text) == kinds
    assert text.count("<title>") == len(kinds)
    assert {kind for kind, _ in picture.keys} == set(kinds) & {kind for kind, _ in LEGEND}
    assert "took stem.bn (16 channels, largest scale 2.5)" in text
    assert "kept: not preceded by a linear operator; behind backbone.stages.0.pre.act (relu)" in text
    described = re.findall(r"<desc[^>]*>(.*?)</desc>", text)
    assert len(described) == len(picture.strips)
    assert sum(int(count) for count in re.findall(r"(\d+) kept", " ".join(described))) == len(report.refusals)


def test_equal_reports_have_equal_pictures() -> None:
    """The picture depends on the report alone."""
    assert network_picture(networked()) == network_picture(networked())


def test_page_says_what_a_run_costs() -> None:
    """FLOPs and bytes before and after stand in the part on folding, where the report knows them."""
    assert "12.0 M → 11.9 M FLOPs · 3.4 MB → 2.1 MB read and written" in page_from_report(networked())
    assert "FLOPs" not in page_from_report(builders.passing())


def test_report_without_a_sketch_has_no_picture() -> None:
    """Reports of earlier releases are shown without it."""
    assert network_picture(builders.passing()) is None


def test_names_of_a_file_stay_text() -> None:
    """Markup and control characters in names are shown, not obeyed."""
    net = mixed_net(1, stem=builders.HOSTILE)
    text = page_from_report(net.report())
    assert "<img" not in text
    assert "\x1b" not in text
    text.encode()


@pytest.mark.parametrize("net", [mixed_net(60), dense(150)], ids=["300 BatchNorms", "150 lanes"])
def test_large_networks_stay_small(net) -> None:
    """The page of a network with hundreds of BatchNorms is below a megabyte."""
    report = net.report()
    assert len(report.folded) + len(report.refusals) >= 300
    assert len(page_from_report(report).encode()) < 1_000_000


def test_what_was_absorbed_stands_in_the_table_apart() -> None:
    """A layer scale that is gone has a row and a filter of its own, and the row of its convolution in the picture; it is no BatchNorm there."""
    net = Net()
    net.conv("conv")
    net.add("scale", "mul", "scale")
    scale = Folded("scale", "conv", "conv2d+mul", 8, 0.1)
    report = dataclasses.replace(net.report(), absorbed=(scale,))
    _, row = rows_of(report.sketch, report.folded, report.refusals)
    assert (row.kind, row.taken, row.behind) == ("product", [], ["mul"])
    table = fold_table(report)
    assert table["every_fold"] == [scale]
    assert table["fold_filters"] == [("all", "all", 1), ("absorbed", "absorbed", 1)]
    assert '<tr class="absorbed">' in page_from_report(report)
