"""BatchNorm's statistics estimated anew are torch's own, whatever else the network holds."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from exporter.errors import ExportError, SampleError
from exporter.factories.recalibration import batches_of, output_names, recalibrate_

SAMPLES = 50


class Net(nn.Module):
    """Every kind of BatchNorm, one of them called twice, one under two names, one never."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=0.3)
        self.again = self.bn
        self.dropout = nn.Dropout(dropout)
        self.flat, self.unused = nn.BatchNorm1d(4), nn.BatchNorm1d(3)
        self.fixed = nn.BatchNorm1d(4, track_running_stats=False)

    def forward(self, scale: Tensor, image: Tensor) -> dict[str, Tensor]:
        x = self.bn(self.conv(image * scale[:, None, None, None]))
        x = self.dropout(torch.relu(self.again(x)).mean((2, 3)))
        return {"scores": self.flat(x), "features": (x, self.fixed(x))}


def network(**settings: float) -> Net:
    """Return the network with random weights and statistics, in eval mode."""
    torch.manual_seed(0)
    net = Net(**settings)
    for layer in (net.bn, net.flat, net.unused):
        nn.init.normal_(layer.running_mean)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    return net.eval()


def inputs(samples: int = SAMPLES) -> dict[str, np.ndarray]:
    """Return samples for both inputs, in another order than ``forward`` takes them."""
    rng = np.random.default_rng(1)
    return {"image": rng.normal(size=(samples, 2, 6, 6)), "scale": rng.uniform(0.5, 2, samples).astype(np.float32)}


@pytest.mark.parametrize("batch", [16, 50, 64])
def test_equal_to_update_bn_bit_for_bit(batch: int) -> None:
    """Mean, variance and counter are those of ``torch.optim.swa_utils.update_bn`` on the same batches, in every bit."""
    net, fed, batches = network(), inputs(), batches_of(SAMPLES, batch, 3)
    theirs = copy.deepcopy(net)

    class Loaded(nn.Module):  # update_bn feeds the first element of a batch
        def __init__(self) -> None:
            super().__init__()
            self.net = theirs

        def forward(self, both: dict[str, Tensor]) -> object:
            return self.net(both["scale"], both["image"])

    feeds = [{name: torch.from_numpy(array[rows]).float() for name, array in fed.items()} for rows in batches]

    class Batch(dict):  # update_bn moves what it feeds to a device only where one is named
        pass

    update_bn([Batch(feed) for feed in feeds], Loaded())
    found = recalibrate_(net, fed, batches, threads=1)
    wanted = theirs.state_dict()
    assert set(found.arrays) == {
        f"{name}.{kind}" for name in ("bn", "again", "flat") for kind in ("running_mean", "running_var", "num_batches_tracked")
    }
    for name, array in found.arrays.items():
        assert array.tobytes() == wanted[name].numpy().tobytes(), name
        assert torch.equal(net.state_dict()[name], wanted[name])


def test_a_layer_that_nothing_reaches_keeps_its_statistics() -> None:
    """It is named, and what it held is there afterwards, in every bit."""
    net = network()
    before = copy.deepcopy(net.unused.state_dict())
    found = recalibrate_(net, inputs(), batches_of(SAMPLES, 16, 0), threads=1)
    assert found.not_reached == ("unused",)
    assert all(torch.equal(before[name], value) for name, value in net.unused.state_dict().items())
    assert [change.layer for change in found.layers] == ["bn", "flat"]
    assert [change.values_per_channel for change in found.layers] == [2 * SAMPLES * 16, SAMPLES]


def test_the_network_is_as_it_was_but_for_the_statistics() -> None:
    """Mode, momentum, hooks, weights and torch's random numbers are as before; dropout is off while it runs."""
    net = network(dropout=0.5)
    weights = {name: value.clone() for name, value in net.named_parameters()}
    state = torch.random.get_rng_state()
    first = recalibrate_(net, inputs(), batches_of(SAMPLES, 16, 0), threads=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(part.training for part in net.modules())
    assert net.bn.momentum == 0.3
    assert not net.bn._forward_pre_hooks
    assert all(torch.equal(weights[name], value) for name, value in net.named_parameters())
    second = recalibrate_(network(dropout=0.0), inputs(), batches_of(SAMPLES, 16, 0), threads=1)
    assert all(array.tobytes() == second.arrays[name].tobytes() for name, array in first.arrays.items())


@pytest.mark.parametrize(("samples", "batch", "sizes"), [(50, 16, [13, 13, 12, 12]), (65, 64, [33, 32]), (3, 64, [3]), (4, 2, [2, 2])])
def test_batches_hold_every_sample_once_and_are_equal_in_size(samples: int, batch: int, sizes: list[int]) -> None:
    """No batch is larger than asked for, none is a small rest, and the seed alone decides the order."""
    batches = batches_of(samples, batch, 7)
    assert [len(rows) for rows in batches] == sizes
    assert sorted(np.concatenate(batches)) == list(range(samples))
    assert all((one == other).all() for one, other in zip(batches, batches_of(samples, batch, 7), strict=True))


def test_too_few_values_are_refused_and_leave_nothing_changed_but_the_mode() -> None:
    """A batch with a single value per channel has no variance: refused with the layer, and no layer stays in training mode."""
    net = network()
    with pytest.raises(SampleError) as caught:
        recalibrate_(net, inputs(1), batches_of(1, 16, 0), threads=1)
    assert (caught.value.code, caught.value.facts["layer"]) == ("E324", "flat")
    assert not any(part.training for part in net.modules())
    assert not net.bn._forward_pre_hooks


def test_what_cannot_be_estimated_is_refused() -> None:
    """A network without running statistics, and samples that lead to NaN, are errors with the reason."""
    with pytest.raises(ExportError) as caught:
        recalibrate_(nn.Linear(2, 2), {"x": np.ones((4, 2), np.float32)}, batches_of(4, 4, 0), threads=1)
    assert caught.value.code == "E320"
    fed = inputs()
    fed["image"][3] = np.nan
    with pytest.raises(ExportError) as caught:
        recalibrate_(network(), fed, batches_of(SAMPLES, 16, 0), threads=1)
    assert (caught.value.code, caught.value.facts["layer"]) == ("E320", "bn")


def test_outputs_have_the_networks_own_names() -> None:
    """Keys of dicts and positions of tuples name the outputs, as the exported graph does; configured names stand above them."""
    assert output_names(network(), inputs(), ()) == ("scores", "features.0", "features.1")
    assert output_names(network(), inputs(), ("a", "b", "c")) == ("a", "b", "c")
