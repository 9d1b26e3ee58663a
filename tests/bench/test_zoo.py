"""The benchmark's own judgement: what is wrong, what is removed, and what becomes of a tool that fails."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bench.fold_zoo import row_of, run_in_process
from bench.zoo import peers as tools
from bench.zoo.case import Case, run_onnx
from bench.zoo.judgement import Count, as_convolutions, count_in_onnx, count_in_torch, is_wrong, largest_error
from bench.zoo.networks import NETWORKS, Network, with_statistics
from bench.zoo.rows import Row, add_row, per_network, per_peer, read_rows

pytestmark = pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")  # in torch's exporter
BEHIND_RELU = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4))
"""


@pytest.fixture
def behind_relu(tmp_path: Path) -> Case:
    """A network with a BatchNorm that has a fold and one that has none, between two non-linearities."""
    (tmp_path / "network.py").write_text(BEHIND_RELU)
    return Case(Network(f"{tmp_path}/network.py:build", 12, {}))


@pytest.mark.parametrize(
    ("error", "noise", "wrong"),
    [(1e-4, 1e-7, False), (2e-3, 1e-7, True), (2e-3, 1e-4, False), (1e-1, 1e-3, True), (float("inf"), 1e-7, True), (float("nan"), 1e-7, True)],
)
def test_wrong_is_more_than_both_bounds(error: float, noise: float, wrong: bool):
    """An answer is wrong beyond 1e-3 and beyond 30 times the rounding of the unfolded network; what is no number is wrong."""
    assert is_wrong(error, noise) is wrong


def test_error_is_relative_to_the_largest_value():
    """The error of an output is relative to its largest value, and the worst output counts."""
    one, other = np.array([1.0, -4.0]), np.array([[10.0]])
    assert largest_error([one, other], [one, other]) == 0.0
    assert largest_error([one + np.array([0.4, 0.0]), other], [one, other]) == pytest.approx(0.1)
    assert largest_error([one, other + 5.0], [one, other]) == pytest.approx(0.5)


@pytest.mark.parametrize("outputs", [[], [np.ones(3)], [np.array([1.0, np.nan])]], ids=["missing", "shape", "nan"])
def test_what_cannot_be_compared_is_infinitely_wrong(outputs: list[np.ndarray]):
    """A missing output, another shape, or a NaN where there was a number, is no agreement."""
    assert largest_error(outputs, [np.ones(2)]) == float("inf")


def test_batch_norms_are_counted_wherever_they_run():
    """Those in a subgraph count, and so does each call of a module that runs twice."""
    inner = onnx.helper.make_graph([onnx.helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])], "inner", [], [])
    branch = onnx.helper.make_node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    graph = onnx.helper.make_graph([branch, onnx.helper.make_node("Conv", ["z", "w"], ["o"])], "main", [], [])
    assert count_in_onnx(onnx.helper.make_model(graph)) == Count(2, 1)
    norm = nn.BatchNorm2d(3).eval()
    count, _ = count_in_torch(nn.Sequential(norm, nn.Conv2d(3, 3, 1), norm), torch.rand(1, 3, 4, 4))
    assert count == Count(2, 1)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [((5, 9), (0, 9), 0), ((5, 9), (0, 12), 3), ((5, 9), (4, 12), 1), ((5, 9), (5, 12), 0), ((5, 9), (0, 7), 0)],
    ids=["folded", "some replaced", "no more than are gone", "none gone", "convolutions gone too"],
)
def test_a_batch_norm_that_became_a_convolution_is_not_removed(before: tuple[int, int], after: tuple[int, int], expected: int):
    """Each further convolution stands for one BatchNorm that is gone by name only."""
    assert as_convolutions(Count(*before), Count(*after)) == expected


def test_onnx_runtime_removes_no_more_than_it_folds(behind_relu: Case):
    """ONNX Runtime writes the BatchNorm that it cannot fold as a convolution: it has removed one of two."""
    row = row_of(behind_relu, "onnxruntime", "default")
    assert (row.outcome, row.total, row.left, row.as_convolutions, row.removed) == ("right", 2, 0, 1, 1)
    _, count = run_onnx(onnx.load_from_string(behind_relu.tidied), behind_relu.x, optimisations="ENABLE_ALL")
    assert count.batch_norms == 0


def test_our_fold_is_right_and_gives_its_reasons(behind_relu: Case):
    """Of the two BatchNorms one is folded, and the other one has its reason."""
    row = row_of(behind_relu, "ours", "default")
    assert (row.outcome, row.removed, row.total, row.facts["kept"]) == ("right", 1, 2, {"NOT_LINEAR": 1})
    assert row.facts["error in float64"] < 1e-10


def test_a_tool_that_loses_a_batch_norm_is_wrong(behind_relu: Case, monkeypatch: pytest.MonkeyPatch):
    """A tool that removes a BatchNorm without folding it has a wrong answer, and has removed nothing right."""

    def eraser(case: Case, level: str) -> tools.Made:
        network = case.fresh()
        network[2] = nn.Identity()
        return tools._made_torch(case, network, 0.1)

    monkeypatch.setitem(tools.PEERS, "eraser", eraser)
    row = row_of(behind_relu, "eraser", "default")
    assert (row.outcome, row.removed) == ("wrong", 1)
    header, table = per_peer([row], ["eraser"])
    assert dict(zip(header, table[0], strict=True)) | {"median s": 0.1} == {
        "tool": "eraser",
        "ran": 1,
        "failed": 0,
        "wrong": 1,
        "removed right": 0,
        "of all": 2,
        "%": 0.0,
        "as convolution": 0,
        "networks without": 0,
        "median s": 0.1,
    }


def test_a_tool_that_raises_has_failed(behind_relu: Case, monkeypatch: pytest.MonkeyPatch):
    """An exception is a row with its text, and leaves all BatchNorms where they are."""

    def broken(case: Case, level: str) -> tools.Made:
        raise ValueError("no such operator")

    monkeypatch.setitem(tools.PEERS, "broken", broken)
    row = row_of(behind_relu, "broken", "default")
    assert (row.outcome, row.removed, row.total, row.facts["what"]) == ("failed", 0, 2, "ValueError: no such operator")


def test_a_tool_of_another_library_is_absent(behind_relu: Case):
    """What a library offers for its own networks says nothing about others."""
    assert row_of(behind_relu, "ultralytics", "default").outcome == "absent"
    assert per_peer([row_of(behind_relu, "ultralytics", "default")], ["ultralytics"])[1] == []


def test_a_crash_is_a_row_and_not_the_end(tmp_path: Path):
    """Where the process of a network ends, the tool that was at work has failed, and the rest is still to be done."""
    (tmp_path / "crash.py").write_text("import os\n\n\ndef build():\n    os._exit(7)\n")
    rows, network = tmp_path / "rows.jsonl", f"{tmp_path}/crash.py:build"
    left = run_in_process([(network, "ours"), (network, "dynamo")], argparse.Namespace(rows=rows, level="default"))
    assert left == [(network, "dynamo")]
    row = read_rows(rows)[network, "ours"]
    assert (row.outcome, row.facts["what"]) == ("failed", "the process ended with 7")


def test_rows_are_read_again_and_later_ones_count(tmp_path: Path):
    """A row that was made again stands for the earlier one; the table shows what was not run."""
    path = tmp_path / "rows.jsonl"
    add_row(path, Row("net", "ours", "failed", 3, 3))
    add_row(path, Row("net", "ours", "right", 3, 1, facts={"kept": {"PADDED": 1}, "error in float64": 1e-15}))
    rows = read_rows(path)
    assert [row.outcome for row in rows.values()] == ["right"]
    header, table = per_network(rows.values(), ["net", "other"], ["ours"])
    assert header == ["network", "BatchNorms", "ours", "our error in float64", "kept by us"]
    assert table == [["net", 3, "2", 1e-15, "PADDED 1"], ["other", 0, "not run", "", ""]]
    assert json.loads(path.read_text().splitlines()[0])["outcome"] == "failed"


def test_statistics_are_those_of_training():
    """Some scales are negative, some near zero, and no variance is."""
    norm = with_statistics(nn.BatchNorm2d(1000))
    assert 0.08 < float((norm.weight < 0).float().mean()) < 0.16
    assert 0.03 < float((norm.weight.abs() < 1e-5).float().mean()) < 0.09
    assert float(norm.running_var.min()) >= 0.5


def test_zoo_is_large_enough():
    """At least 100 networks, each once."""
    assert len({network.factory for network in NETWORKS}) == len(NETWORKS) >= 100
