"""Where BatchNorm's statistics come from beside averaged weights, and which copy of them leaves the checkpoint."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from torch import nn
from torch.optim.swa_utils import AveragedModel

from exporter.artifacts import LayoutReading
from exporter.config import BakeConfig
from exporter.errors import LayoutError
from exporter.weights import load_weights
from exporter.weights.batch_norm import is_statistic
from tests.weights.conftest import Bake, make_model

Read = Callable[..., LayoutReading]

STATISTICS = ("1.running_mean", "1.running_var")


def state(seed: int) -> dict[str, object]:
    """Return the state dict of the small network with a BatchNorm."""
    return OrderedDict(make_model(seed).state_dict())


def parameters(seed: int) -> dict[str, object]:
    """Return the parameters alone, as an average that has no buffers."""
    return {name: tensor for name, tensor in state(seed).items() if not is_statistic(name, with_counter=True)}


def swa(seed: int) -> dict[str, object]:
    """Return Lightning's file in the middle of StochasticWeightAveraging: statistics from before averaging began."""
    callback = {"average_model_state": state(seed), "n_averaged": 5}
    return {"state_dict": state(0), "callbacks": {"StochasticWeightAveraging": callback}, "epoch": 3}


def averaged_model() -> dict[str, object]:
    """Return an AveragedModel that has just copied the buffers."""
    model = make_model(0)
    average = AveragedModel(model)
    for trained in (make_model(1), model):
        average.update_parameters(trained)
    return {"model": state(0), "model_ema": average.state_dict()}


FILES: dict[str, tuple[Mapping[str, object], str]] = {
    "averaged": ({"state_dict": state(0), "state_dict_ema": state(1)}, "averaged"),
    "copied": (averaged_model(), "copied"),
    "the file cannot tell": ({"model": state(0), "ema": state(1)}, "stored"),
    "absent": ({"model": state(0), "ema": parameters(1)}, "raw"),
    "stale": (swa(1), "stale"),
}


@pytest.mark.parametrize(("file", "source"), FILES.values(), ids=FILES)
def test_the_source_is_told_by_inspect_and_by_the_bake(read: Read, baked: Bake, file: Mapping[str, object], source: str) -> None:
    """Reading, baking, the record and the lineage name the same source; only raw and stale statistics are warned of, with the option."""
    assert read(file).candidates[0].batch_norm == source
    weights, _ = baked(file)
    statistics = weights.summary.batch_norm
    assert statistics is not None
    assert (statistics.source, statistics.how, statistics.num_layers) == (source, "auto", 1)
    assert ("--bn-stats" in statistics.warning) == (source in {"raw", "stale"})
    assert weights.provenance.lineage["bn_stats"] == source
    loaded = load_weights(weights.path)
    assert loaded is not None
    assert loaded.summary == weights.summary


def test_statistics_without_a_twin_in_a_swapped_layout_are_raw(read: Read) -> None:
    """mmcv keeps no second copy of BatchNorm's statistics: beside the average they are those of the raw weights."""
    plain = state(1)
    twins = {f"ema_{name.replace('.', '_')}": tensor for name, tensor in parameters(0).items()}
    reading = read({"meta": {}, "state_dict": {**plain, **twins}})
    assert (reading.layout, reading.candidates[0].batch_norm) == ("mmcv", "raw")


def test_nothing_is_said_where_there_is_no_batch_norm(read: Read, baked: Bake) -> None:
    """Weights without running statistics have no source, no warning and no line in the lineage."""
    file = {"state_dict": nn.Linear(2, 2).state_dict(), "state_dict_ema": nn.Linear(2, 2).state_dict()}
    assert read(file).candidates[0].batch_norm == ""
    weights, _ = baked(file)
    assert weights.summary.batch_norm is None
    assert "bn_stats" not in weights.provenance.lineage


@pytest.mark.parametrize(("how", "wanted"), [("auto", 1), ("ema", 1), ("raw", 0)])
@pytest.mark.parametrize("name", ["averaged", "stale"])
def test_each_choice_takes_what_it_says(baked: Bake, name: str, how: str, wanted: int) -> None:
    """``raw`` takes mean, variance and counter from the raw weights, ``ema`` from the average; the parameters are the average's."""
    weights, arrays = baked(FILES[name][0], bn_stats=how)
    for statistic in STATISTICS:
        np.testing.assert_array_equal(arrays[statistic], state(wanted)[statistic].numpy())
    assert arrays["1.num_batches_tracked"] == 7 + (how == "ema")
    np.testing.assert_array_equal(arrays["1.weight"], state(1)["1.weight"].numpy())
    statistics = weights.summary.batch_norm
    assert statistics is not None
    assert statistics.how == how
    assert bool(statistics.warning) == (how == "auto" and name == "stale")


def test_raw_weights_keep_their_own(baked: Bake) -> None:
    """With the raw weights their own statistics go, without a warning."""
    weights, arrays = baked(FILES["stale"][0], choice="raw")
    assert weights.summary.batch_norm is not None
    assert (weights.summary.batch_norm.source, weights.summary.batch_norm.warning) == ("own", "")
    np.testing.assert_array_equal(arrays[STATISTICS[0]], state(0)[STATISTICS[0]].numpy())


@pytest.mark.parametrize(
    ("file", "settings", "code"),
    [
        pytest.param({"state_dict_ema": state(1)}, {"bn_stats": "raw"}, "E255", id="no raw weights"),
        pytest.param(FILES["absent"][0], {"bn_stats": "ema"}, "E256", id="an average without statistics"),
        pytest.param({"state_dict_ema": nn.Linear(2, 2).state_dict()}, {"bn_stats": "ema"}, "E257", id="no BatchNorm"),
        pytest.param({"state_dict_ema": nn.Linear(2, 2).state_dict()}, {"bn_stats": "raw"}, "E257", id="no BatchNorm, raw"),
        pytest.param(FILES["averaged"][0], {"bn_stats": "ema", "choice": "raw"}, "E258", id="of the average beside raw weights"),
    ],
)
def test_a_choice_that_cannot_be_met_is_an_error(baked: Bake, file: Mapping[str, object], settings: dict[str, object], code: str) -> None:
    """Statistics that are not there are never replaced by others."""
    with pytest.raises(LayoutError) as caught:
        baked(file, **settings)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("running_mean", True), ("a.running_var", True), ("bn/moving_mean", True), ("a.mean", False), ("running_mean.weight", False)],
)
def test_statistics_are_known_by_their_last_name(name: str, is_one: bool) -> None:
    """torch's and Keras' names count, wherever the layer stands."""
    assert is_statistic(name) == is_one
    assert is_statistic("a.num_batches_tracked", with_counter=True)
    assert BakeConfig().bn_stats == "auto"
