"""Layouts of TensorFlow and Flax, on files made byte by byte; `tox -e peers-tf` has the libraries write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.artifacts import LayoutReading
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import LayoutError
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout
from tests.checkpoint.bundles import GRAPH, Bundle, object_graph
from tests.checkpoint.flax_files import packed

W = np.arange(6, dtype="f4").reshape(2, 3)
B = np.arange(3, dtype="f4")


def baked(path: Path, **settings: object) -> dict[str, list[Any]]:
    """Bake and return the values by name."""
    weights = bake(open_checkpoint(path), BakeConfig(**settings), path.parent / "out.safetensors")
    return {name: read_tensor(ref).tolist() for name, ref in open_checkpoint(weights.path).root.items()}


def reading_of(path: Path) -> LayoutReading:
    return read_layout(open_checkpoint(path))


def saver(**more: np.ndarray) -> Bundle:
    """Return what a Saver writes of a model with Momentum and an average of its trainable variables."""
    made = Bundle()
    for name, value in (("net/w", W), ("net/b", B)):
        made.add(name, value).add(f"{name}/ExponentialMovingAverage", value + 10).add(f"{name}/Momentum", value + 20)
    made.add("net/bn/moving_mean", B + 30).add("global_step", np.array(7, "i8")).add("beta1_power", np.array(0.5, "f4"))
    for name, value in more.items():
        made.add(name, value)
    return made


def test_shadows_by_suffix(tmp_path: Path) -> None:
    """Averages under the names of their variables; what has none is raw; slots, powers and steps stay behind."""
    path = saver().write(tmp_path)
    (candidate,) = reading_of(path).candidates
    assert (candidate.name, candidate.updates, candidate.num_tensors) == ("ExponentialMovingAverage", 7, 2)
    raw = {"net/w": W.tolist(), "net/b": B.tolist(), "net/bn/moving_mean": (B + 30).tolist()}
    assert baked(path) == raw | {"net/w": (W + 10).tolist(), "net/b": (B + 10).tolist()}
    assert baked(path, choice="raw") == raw


def test_shadows_without_their_variables(tmp_path: Path) -> None:
    """A file of the averages alone is the averages under the names of the variables."""
    made = Bundle().add("net/w/ExponentialMovingAverage", W).add("net/w/ExponentialMovingAverage/biased", W)
    path = made.write(tmp_path)
    assert reading_of(path).raw_at is None
    assert baked(path) == {"net/w": W.tolist()}


def test_shadows_of_values(tmp_path: Path) -> None:
    """The average of a loss is no weight, and is said to be left out."""
    path = saver(**{"loss/ExponentialMovingAverage": np.array(1, "f4")}).write(tmp_path)
    assert "loss" in reading_of(path).remarks[0]
    assert set(baked(path)) == {"net/w", "net/b", "net/bn/moving_mean"}


def test_a_checkpoint_without_averages(tmp_path: Path) -> None:
    """It has raw weights, and no average is made up from its slots."""
    path = Bundle().add("net/w", W).add("net/w/Adam", W).add("net/w/Adam_1", W).write(tmp_path)
    assert (reading_of(path).candidates, reading_of(path).raw_num_tensors) == ((), 1)
    with pytest.raises(LayoutError) as refused:
        baked(path)
    assert refused.value.code == "E204"


def keras_3(*, num_averages: int = 2, names: tuple[str, str] = ("net/d/kernel", "net/d/bias")) -> Bundle:
    """Return what ``tf.train.Checkpoint(model=..., optimizer=...)`` writes of Keras 3 with ``use_ema``."""
    lists = {"_variables": 4, "_trainable_variables": 5, "_model_variables_moving_average": 6, "_iterations": 9}
    objects = [
        {"children": {"model": 1, "optimizer": 2, "save_counter": 3}},
        {"children": {"_kernel": 7, "bias": 8, "moving_mean": 14}},
        {"children": lists},
        {"variable": ("save_counter", "save_counter")},
        {"children": {str(i): n for i, n in enumerate((9, 10, 11, 12, 13))}},
        {"children": {"0": 7, "1": 8}},
        {"children": {str(i): 10 + i for i in range(num_averages)}},
        *({"variable": (name, f"optimizer/_trainable_variables/{i}")} for i, name in enumerate(names)),
        {"variable": ("sgd/iteration", "iteration")},
        *({"variable": (f"sgd/{name}", name)} for name in ("average_0", "average_1", "momentum_0", "momentum_1")),
        {"variable": ("net/d/moving_mean", "moving_mean")},
    ]
    made = Bundle().add("save_counter", np.array(1, "i8")).add("iteration", np.array(5, "i8")).add("moving_mean", B + 5)
    for i, value in enumerate((W, B)):
        made.add(f"optimizer/_trainable_variables/{i}", value).add(f"average_{i}", value + 10).add(f"momentum_{i}", value + 20)
    return made.add_text(GRAPH, object_graph(objects))


def test_keras_averages_by_their_place_in_two_lists(tmp_path: Path) -> None:
    """Momentum has the same shapes and is no average; SwapEMAWeights may have exchanged the copies, so a name is needed."""
    path = keras_3().write(tmp_path)
    (candidate,) = reading_of(path).candidates
    assert (candidate.name, candidate.updates, candidate.num_tensors) == ("optimizer", 5, 2)
    with pytest.raises(LayoutError, match="taken only by name"):
        baked(path)
    raw = {"net/d/kernel": W.tolist(), "net/d/bias": B.tolist(), "net/d/moving_mean": (B + 5).tolist()}
    assert baked(path, choice="raw") == raw
    assert baked(path, ema="optimizer") == raw | {"net/d/kernel": (W + 10).tolist(), "net/d/bias": (B + 10).tolist()}


def test_lists_of_different_lengths_pair_nothing(tmp_path: Path) -> None:
    """Which average is whose is then not known."""
    path = keras_3(num_averages=1).write(tmp_path)
    assert reading_of(path).candidates == ()
    assert set(baked(path, choice="raw")) == {"net/d/kernel", "net/d/bias", "net/d/moving_mean"}


def test_names_that_meet_give_way_to_places(tmp_path: Path) -> None:
    """Two variables with one full name are called by their place in the graph, as are all others then."""
    path = keras_3(names=("Variable", "Variable")).write(tmp_path)
    assert set(baked(path, choice="raw")) == {"optimizer/_trainable_variables/0", "optimizer/_trainable_variables/1", "moving_mean"}


def test_more_optimizers_than_any_trainer_has(tmp_path: Path) -> None:
    """Refused at once: each of them could claim every variable."""
    optimizers = [{"children": {"_variables": 0, "_iterations": 0}} for _ in range(65)]
    path = Bundle().add("w", W).add_text(GRAPH, object_graph([{"variable": ("w", "w")}, *optimizers])).write(tmp_path)
    with pytest.raises(LayoutError, match="65 optimizers") as refused:
        baked(path, choice="raw")
    assert refused.value.code == "E202"


def test_long_chains_of_objects(tmp_path: Path) -> None:
    """Paths do not grow with the graph: a chain of thousands of objects is read in a moment."""
    chain = [{"children": {"child": number + 1}} for number in range(20_000)]
    path = Bundle().add("w", W).add_text(GRAPH, object_graph([*chain, {"variable": ("w", "w")}])).write(tmp_path)
    assert baked(path, choice="raw") == {"w": W.tolist()}


def flax(folder: Path, **more: Any) -> Path:
    """Write a tree with parameters, statistics, and the state of an optimizer that averages gradients."""
    tree = {
        "params": {"d": {"kernel": W, "bias": B}},
        "batch_stats": {"bn": {"mean": B + 5}},
        "opt_state": {"0": {"count": np.int32(9), "ema": {"d": {"kernel": W + 50, "bias": B + 50}}}},
        **more,
    }
    path = folder / "state.msgpack"
    path.write_bytes(packed(tree))
    return path


EMA = {"d": {"kernel": W + 10, "bias": B + 10}}
RAW = {"params/d/kernel": W.tolist(), "params/d/bias": B.tolist(), "batch_stats/bn/mean": (B + 5).tolist()}
AVERAGED = RAW | {"params/d/kernel": (W + 10).tolist(), "params/d/bias": (B + 10).tolist()}


@pytest.mark.parametrize("key", ["ema_params", "ema"])
def test_flax_names_are_paths(key: str, tmp_path: Path) -> None:
    """As ``flatten_dict`` gives them; statistics are raw; averages of gradients are not offered."""
    path = flax(tmp_path, **{key: EMA})
    assert [candidate.name for candidate in reading_of(path).candidates] == [key]
    assert baked(path) == AVERAGED
    assert baked(path, choice="raw") == RAW


def test_flax_average_of_all_collections(tmp_path: Path) -> None:
    """An average that has statistics of its own keeps them."""
    path = flax(tmp_path, ema={"params": EMA, "batch_stats": {"bn": {"mean": B + 15}}})
    assert baked(path) == AVERAGED | {"batch_stats/bn/mean": (B + 15).tolist()}


def test_flax_average_that_lacks_parameters(tmp_path: Path) -> None:
    """Statistics may be absent, parameters may not."""
    with pytest.raises(LayoutError) as refused:
        baked(flax(tmp_path, ema={"d": {"kernel": W}}))
    assert refused.value.code == "E207"


def test_flax_names_that_meet_are_refused(tmp_path: Path) -> None:
    """A key with a slash in it may read like a path."""
    with pytest.raises(LayoutError) as refused:
        baked(flax(tmp_path, params={"d": {"kernel": W}, "d/kernel": W}), choice="raw")
    assert refused.value.code == "E216"


def test_flax_without_averages(tmp_path: Path) -> None:
    """``ema: None`` and the optimizer's own averages are none."""
    assert reading_of(flax(tmp_path, ema=None)).candidates == ()


def test_the_state_of_optax_ema_began_with_zeros(tmp_path: Path) -> None:
    """Two updates with decay 0.5 left a quarter of the zeros: the values are divided by three quarters. Without the decay it is refused."""
    path = flax(tmp_path, ema_state={"count": np.int32(2), "ema": {"d": {"kernel": W * 3, "bias": B * 3}}})
    with pytest.raises(LayoutError) as refused:
        baked(path)
    assert refused.value.code == "E245"
    assert baked(path, decay=0.5, allow_cold=True) == RAW | {"params/d/kernel": (W * 4).tolist(), "params/d/bias": (B * 4).tolist()}
