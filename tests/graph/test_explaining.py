"""What a person is shown of a fold is what happened: the surroundings of each BatchNorm, with the culprits that the refusal names."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from networks import IMAGE, Sequence, folded, trained
from test_refusals import CASES, STUCK, TwoConsumers, WritesStatistics
from torch import Tensor, nn

from exporter.artifacts import REMEDIES, Explanation, Folded, RefusalReason
from exporter.errors import ConfigError
from exporter.graph.aten.calls import source_of
from exporter.graph.explaining import explain


def explained(network: nn.Module, shape: tuple[int, ...] = IMAGE, pattern: str = "", *, keep: tuple[str, ...] = ()) -> dict[str, Explanation]:
    """Fold ``network`` and explain its BatchNorms."""
    graph = folded(network, shape, keep=keep)
    return {item.batch_norm: item for item in explain(graph.sketch, graph.folded, graph.refusals, pattern)}


def culprits(item: Explanation) -> list[tuple[str, str]]:
    """Return name and place of the marked operators."""
    return [(one.module or one.kind, one.place) for one in item.neighbours if one.is_culprit]


SEEN = {
    "second consumer": [("relu", "beside"), ("add", "behind")],
    "convolution is an output": [("conv", "before"), ("bn", "itself")],
    "linear on (N, L, C), L == C": [("linear", "before"), ("bn", "itself")],
    "linear on (N, L, C), L unlike C": [("linear", "before"), ("act", "behind")],
    "one norm behind a convolution and behind a relu": [("relu", "before"), ("relu", "behind")],
    "no running statistics": [],
    "behind a relu": [("relu", "before"), ("bn", "itself")],
    "behind a functional relu": [("act", "before"), ("bn", "itself")],
    "behind a max pool": [("pool", "before"), ("bn", "itself")],
    "behind a padded average pool": [("pool", "before"), ("bn", "itself")],
    "behind zero padding": [("pad", "before"), ("bn", "itself")],
    "between input and relu": [("the input x", "before"), ("relu", "behind")],
    "before a convolution that pads zeros": [("relu", "before"), ("conv", "behind")],
    "before a transposed convolution": [("relu", "before"), ("conv", "behind")],
    "between two relus": [("relu", "before"), ("act", "behind")],
    "half of a concatenation is no product": [("relu", "before"), ("relu", "behind")],
    "conv subclass that activates": [("conv", "before"), ("bn", "itself")],
    "bn behind a shared folded bn": [("relu", "beside"), ("add", "behind")],
}


@pytest.mark.parametrize("case", SEEN, ids=list(SEEN))
def test_culprits_are_marked_where_they_stand(case):
    """Every kept BatchNorm is explained by its reason, and just the operators that stand in its way are marked, on the right side of it."""
    network, shape, expected, _ = CASES[case]
    found = explained(network, shape)
    assert found.keys() == expected.keys()
    for name, item in found.items():
        assert item.outcome == "kept"
        assert item.why.startswith(expected[name].value)
        assert item.remedy == REMEDIES[expected[name]]
        assert culprits(item) == SEEN[case]


@pytest.mark.parametrize("case", CASES, ids=list(CASES))
def test_neighbours_are_the_operators_around_it(case):
    """The BatchNorm stands among its neighbours once, what is before it is read on the way to it, and what is behind it reads on the way from it."""
    network, shape, *_ = CASES[case]
    for item in explained(network, shape).values():
        middle = [place for place, one in enumerate(item.neighbours) if one.place == "itself"]
        assert [item.neighbours[place].module for place in middle] == [item.batch_norm]
        for place, one in enumerate(item.neighbours):
            assert all(read < place for read in one.reads)
            if one.place == "behind":
                assert any(item.neighbours[read].step == one.step - 1 for read in one.reads)
            if one.place == "before":
                readers = [other for other in item.neighbours if place in other.reads]
                assert any(other.step == one.step - 1 for other in readers)


@pytest.mark.parametrize("case", [*STUCK, "statistics are written"])
def test_reasons_that_lie_in_the_batch_norm_itself(case):
    """A BatchNorm in training mode, or with statistics that forward writes, is explained by itself: nothing around it is blamed."""
    network = WritesStatistics() if case == "statistics are written" else STUCK[case]
    for item in explained(network).values():
        assert item.remedy
        assert culprits(item) == []


def test_lines_of_the_users_code_are_named():
    """The BatchNorm and what is around it carry the line that calls them, in the network's own code and not in torch's."""
    (item,) = explained(TwoConsumers()).values()
    lines = Path(sys.modules[TwoConsumers.__module__].__file__).read_text().splitlines()
    called = {one.kind: lines[int(one.source.partition(":")[2]) - 1].strip() for one in item.neighbours if one.source}
    assert all(Path(one.source.partition(":")[0]).name == "test_refusals.py" for one in item.neighbours if one.part != "input")
    assert called == {
        "conv2d": "y = self.conv(x)",
        "batch_norm": "return self.bn(y) + torch.relu(y)",
        "relu": "return self.bn(y) + torch.relu(y)",
        "add": "return self.bn(y) + torch.relu(y)",
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{Path(torch.__file__).parent}/nn/modules/conv.py", ""),
        (f"{Path(torch.__file__).parent}vision/models/resnet.py", "torchvision/models/resnet.py:7"),
        (f"{Path.cwd()}/nets/mine.py", "nets/mine.py:7"),
        ("/elsewhere/net.py", "net.py:7"),
    ],
    ids=["torch's own", "a package", "the current folder", "elsewhere"],
)
def test_names_of_files_are_short(path, expected):
    """A file is called as it is imported or as it lies in the current folder; torch's own lines say nothing to the user."""
    node = torch.fx.Graph().placeholder("x")
    node.meta["stack_trace"] = f'File "{path}", line 7, in forward\n    return self.conv(x)'
    assert source_of(node) == expected
    del node.meta["stack_trace"]
    assert source_of(node) == ""


def test_every_reason_has_a_remedy():
    """The list of reasons is closed, and each says what its user can do."""
    assert set(REMEDIES) == set(RefusalReason)
    assert len(set(REMEDIES.values())) == len(RefusalReason)


def test_folded_batch_norms_show_what_took_them():
    """With a pattern folded ones are explained, too: back, ahead and through what stands between."""
    network = Sequence(
        conv=nn.Conv2d(3, 4, 3),
        pool=nn.AvgPool2d(2),
        behind=trained(nn.BatchNorm2d(4)),
        act=nn.ReLU(),
        before=trained(nn.BatchNorm2d(4), seed=1),
        last=nn.Conv2d(4, 2, 1),
    )
    found = explained(network, pattern="be*")
    takers = {name: [(one.module, one.place) for one in item.neighbours if one.takes_it] for name, item in found.items()}
    assert takers == {"behind": [("conv", "before")], "before": [("last", "behind")]}
    assert found["behind"].why.startswith("back into conv (conv2d+avg_pool2d+bn), 4 channels")
    assert found["before"].why.startswith("ahead into last (bn+conv2d), 4 channels")
    assert explained(network) == {}


def test_kept_by_the_configuration():
    """A BatchNorm that was left alone on request says by which pattern."""
    found = explained(Sequence(conv=nn.Conv2d(3, 4, 3), stem_bn=trained(nn.BatchNorm2d(4))), keep=("stem*",))
    assert "'stem*' of fold.keep" in found["stem_bn"].why


def test_pattern_that_fits_nothing_is_an_error():
    """A misspelt name is no empty answer; near names are offered."""
    with pytest.raises(ConfigError, match="E346") as caught:
        explained(Sequence(conv=nn.Conv2d(3, 4, 3), stem_bn=trained(nn.BatchNorm2d(4))), pattern="stem.bn")
    assert "stem_bn" in str(caught.value)


def test_constants_and_nested_graphs_have_no_surroundings():
    """What does not stand in the network's own graph is still named and explained."""
    graph = folded(Sequence(conv=nn.Conv2d(3, 4, 3)))
    item = Folded("conv.norm", "a constant", "constant", 0, 1.0, "constant")
    (found,) = explain(graph.sketch, (item,), (), "conv.norm")
    assert found.neighbours == ()
    assert "constant" in found.why


class Wide(nn.Module):
    """A BatchNorm behind the concatenation of many, and of one that is no product."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 1, 1) for _ in range(9))
        self.bn = trained(nn.BatchNorm2d(12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(torch.cat([*(conv(x) for conv in self.convs), torch.sigmoid(x)], 1)))


def test_wide_surroundings_are_cut_and_counted():
    """Of many inputs a few are shown, the culprit among them, and the rest is counted."""
    (item,) = explained(Wide()).values()
    cat = next(one for one in item.neighbours if one.kind == "cat")
    assert len(cat.reads) == 5
    assert cat.num_hidden == 5
    assert ("sigmoid", "before") in culprits(item)


class Dense(nn.Module):
    """Two convolutions that are joined twice: for the BatchNorm, and for another reader."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.bn = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), trained(nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        return torch.relu(self.bn(torch.cat([one, two], 1))) + torch.stack([one, two], 0).flatten(0, 1).sum()


def test_another_reader_hangs_on_what_the_refusal_names():
    """An operator that reads several of the BatchNorm's producers stands beside the way once, at the one in question."""
    (item,) = explained(Dense()).values()
    (beside,) = [one for one in item.neighbours if one.place == "beside"]
    assert (beside.kind, beside.is_culprit) == ("stack", True)
    assert [item.neighbours[read].module for read in beside.reads] == ["one"]
    assert "they also read one (conv2d)" in item.why


class FarCulprit(nn.Module):
    """A relu that stands many steps before the BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = trained(nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x).permute(0, 2, 3, 1).permute(0, 3, 1, 2).flatten(2).reshape(x.shape[0], 3, 8, 8).permute(0, 1, 3, 2)
        return torch.sigmoid(self.bn(y))


def test_way_to_a_far_culprit_is_shown():
    """However far the culprit is, the way to it is there."""
    (item,) = explained(FarCulprit()).values()
    assert culprits(item) == [("relu", "before"), ("sigmoid", "behind")]
    assert max(one.step for one in item.neighbours) == 6
    assert [one.kind for one in item.neighbours if one.place == "before"][-5:] == ["permute", "permute", "flatten", "reshape", "permute"]


def test_sketch_leaves_constants_and_sizes_out():
    """The sketch holds what data flow through, in order, and nothing else."""
    sketch = folded(FarCulprit()).sketch
    assert [node.kind for node in sketch.nodes] == ["input", "relu", "permute", "permute", "flatten", "reshape", "permute", "batch_norm", "sigmoid"]
    assert [node.reads for node in sketch.nodes] == [(), *((place,) for place in range(8))]
    assert sketch.nodes[0].shape == "N x 3 x 8 x 8"
    assert [node.is_output for node in sketch.nodes] == [*[False] * 8, True]
