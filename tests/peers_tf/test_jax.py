"""Flax and optax write the file; the bake is compared with the tree that Flax restores from it, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import CheckpointError, LayoutError
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

Arrays = dict[str, np.ndarray]
DECAY = 0.9


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """The state of a small network after three steps: an average kept by hand, one by optax, and one of the gradients as a trap."""
    jax = pytest.importorskip("jax", reason="JAX is not installed")
    import flax.linen as nn
    import jax.numpy as jnp
    import optax
    from flax.training.train_state import TrainState

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool = True) -> Any:
            x = nn.Conv(4, (3, 3), use_bias=False, name="conv")(x)
            x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
            return nn.Dense(3, name="head", param_dtype=jnp.bfloat16)(x.mean((1, 2)))

    net, random = Net(), np.random.default_rng(0)
    variables = net.init(jax.random.key(0), jnp.ones((2, 8, 8, 3)))
    state = TrainState.create(apply_fn=None, params=variables["params"], tx=optax.chain(optax.ema(DECAY), optax.adam(1e-2)))
    statistics, by_hand, averaging = variables["batch_stats"], variables["params"], optax.ema(DECAY)
    by_optax = averaging.init(variables["params"])
    for _ in range(3):
        images = random.random((4, 8, 8, 3), "f4")

        def loss(params: Any, statistics: Any = statistics, images: Any = images) -> Any:
            out, changed = net.apply({"params": params, "batch_stats": statistics}, images, mutable=["batch_stats"])
            return (out**2).mean(), changed["batch_stats"]

        gradients, statistics = jax.grad(loss, has_aux=True)(state.params)
        state = state.apply_gradients(grads=gradients)
        by_hand = optax.incremental_update(state.params, by_hand, 1 - DECAY)
        _, by_optax = averaging.update(state.params, by_optax)
    return {"state": state, "batch_stats": statistics, "ema_params": by_hand, "ema_state": by_optax, "net": net}


def flat(params: Any, statistics: Any) -> Arrays:
    """Return the variables under the paths that Flax gives them."""
    from flax.traverse_util import flatten_dict

    return {name: np.asarray(value) for name, value in flatten_dict({"params": params, "batch_stats": statistics}, sep="/").items()}


def baked(path: Path, output: Path, **settings: object) -> Arrays:
    """Bake and return the arrays."""
    weights = bake(open_checkpoint(path), BakeConfig(**settings), output)
    return {name: read_tensor(ref) for name, ref in open_checkpoint(weights.path).root.items()}


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Compare bit for bit."""
    assert set(found) == set(expected)
    assert all((found[n].dtype, found[n].tobytes()) == (expected[n].dtype, expected[n].tobytes()) for n in expected)


@pytest.fixture(params=[2**30, 40], ids=["whole", "in chunks"])
def file(trained: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file of ``flax.serialization.to_bytes``; arrays above the size that Flax takes for a gigabyte are cut into chunks."""
    from flax import serialization

    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", request.param)
    state = trained["state"]
    tree = {
        "params": state.params,
        "opt_state": state.opt_state,
        "step": state.step,
        **{key: trained[key] for key in ("batch_stats", "ema_params", "ema_state")},
    }
    path = tmp_path / "state.msgpack"
    path.write_bytes(serialization.to_bytes(tree))
    return path


def test_an_average_kept_by_hand(file: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """``ema_params``: the tree that Flax restores, statistics from the raw variables; averages of gradients are not offered."""
    from flax import serialization

    reading = read_layout(open_checkpoint(file))
    assert [candidate.name for candidate in reading.candidates] == ["ema_params", "ema_state"]
    restored = serialization.msgpack_restore(file.read_bytes())
    assert_same(baked(file, tmp_path / "out.safetensors", ema="ema_params"), flat(restored["ema_params"], restored["batch_stats"]))
    assert_same(baked(file, tmp_path / "raw.safetensors", choice="raw"), flat(restored["params"], restored["batch_stats"]))


def test_the_baked_file_is_what_apply_takes(file: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """Unflattened, it gives the outputs of the average that training held in memory."""
    from flax.traverse_util import unflatten_dict

    images = np.ones((2, 8, 8, 3), "f4")
    found = unflatten_dict(baked(file, tmp_path / "out.safetensors", ema="ema_params"), sep="/")
    expected = {"params": trained["ema_params"], "batch_stats": trained["batch_stats"]}
    assert np.array_equal(trained["net"].apply(found, images, train=False), trained["net"].apply(expected, images, train=False))


def test_the_state_of_optax_ema(file: Path, trained: dict[str, Any], tmp_path: Path) -> None:
    """It began with zeros: divided as optax divides it, which needs the decay."""
    import optax

    with pytest.raises(LayoutError, match="began with zeros"):
        baked(file, tmp_path / "out.safetensors", ema="ema_state")
    found = baked(file, tmp_path / "out.safetensors", ema="ema_state", decay=DECAY, allow_cold=True)
    held = trained["ema_state"]
    expected = flat(optax.tree.bias_correction(held.ema, DECAY, held.count), trained["batch_stats"])
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        precision = 2e-2 if value.dtype.name == "bfloat16" else 1e-6  # optax divides in the dtype of the weights
        assert np.allclose(found[name].astype("f8"), value.astype("f8"), rtol=precision, atol=0)
    assert not np.allclose(found["params/conv/kernel"], np.asarray(held.ema["conv"]["kernel"]))


def test_one_level_below(trained: dict[str, Any], tmp_path: Path) -> None:
    """A train state under a key, with the average beside it; and the parameters alone."""
    from flax import serialization

    path, params = tmp_path / "a.msgpack", trained["state"].params
    path.write_bytes(serialization.to_bytes({"state": trained["state"], "ema": trained["ema_params"]}))
    found = baked(path, tmp_path / "out.safetensors")
    assert_same(found, {name: value for name, value in flat(trained["ema_params"], {}).items() if value.size})
    path.write_bytes(serialization.to_bytes(params))
    alone = baked(path, tmp_path / "raw.safetensors", choice="raw")
    assert_same({f"params/{name}": value for name, value in alone.items()}, {name: value for name, value in flat(params, {}).items() if value.size})


def test_orbax_is_refused_by_name(trained: dict[str, Any], tmp_path: Path) -> None:
    """With what to do instead."""
    orbax = pytest.importorskip("orbax.checkpoint", reason="Orbax is not installed")
    with orbax.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "step", {"params": trained["state"].params})
    with pytest.raises(CheckpointError, match="Orbax") as refused:
        open_checkpoint(tmp_path / "step")
    assert refused.value.code == "E145"
    assert "to_bytes" in str(refused.value)
