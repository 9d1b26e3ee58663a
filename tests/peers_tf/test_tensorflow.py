"""TensorFlow, Keras 3 and tf-keras write the checkpoint; the bake is compared with what they read from it, bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.artifacts import TensorRef
from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig
from exporter.errors import LayoutError
from exporter.tensors import read_tensor
from exporter.weights import bake, read_layout

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def tf() -> Any:
    """TensorFlow, quiet and on the processor, with Keras on it."""
    os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"})
    return pytest.importorskip("tensorflow", reason="TensorFlow is not installed")


def trained(keras: Any, optimizer: Any) -> Any:
    """Return a small network with BatchNorm after four steps."""
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Conv2D(4, 3, use_bias=False, name="conv"),
        keras.layers.BatchNormalization(name="bn"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, name="head"),
    ]
    model = keras.Sequential(layers, name="net")
    model.build((None, 8, 8, 3))
    model.compile(optimizer, loss="mse")
    random = np.random.default_rng(0)
    for _ in range(4):
        model.train_on_batch(random.random((8, 8, 8, 3), "f4"), random.random((8, 3), "f4"))
    return model


def baked(path: Path, output: Path, **settings: object) -> Arrays:
    """Bake and return the arrays."""
    weights = bake(open_checkpoint(path), BakeConfig(**settings), output)
    return {name: read_tensor(ref) for name, ref in open_checkpoint(weights.path).root.items()}


def assert_same(found: Arrays, expected: Arrays) -> None:
    """Compare bit for bit."""
    assert set(found) == set(expected)
    assert all(found[name].shape == expected[name].shape and found[name].tobytes() == expected[name].tobytes() for name in expected)


def assert_reads_everything(tf: Any, prefix: str) -> None:
    """Every tensor but text is what TensorFlow's own reader gives."""
    reader, variables = tf.train.load_checkpoint(prefix), open_checkpoint(Path(prefix)).root["variables"]
    for name, _ in tf.train.list_variables(prefix):
        if isinstance(variables.get(name), TensorRef):
            assert read_tensor(variables[name]).tobytes() == np.asarray(reader.get_tensor(name)).tobytes(), name
        else:
            assert reader.get_variable_to_dtype_map()[name] == tf.string


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_keras_3(tf: Any, optimizer: str, tmp_path: Path) -> None:
    """Averages by their place in the optimizer's lists, under the variables' own paths; moving statistics are raw; momentum is left."""
    import keras

    options = {"momentum": 0.9} if optimizer == "SGD" else {}
    model = trained(keras, getattr(keras.optimizers, optimizer)(0.1, use_ema=True, ema_momentum=0.9, **options))
    prefix = tf.train.Checkpoint(model=model, optimizer=model.optimizer, step=tf.Variable(3)).save(str(tmp_path / "ckpt"))
    assert_reads_everything(tf, prefix)
    (candidate,) = read_layout(open_checkpoint(tmp_path)).candidates
    assert (candidate.name, candidate.updates) == ("optimizer", 4)
    with pytest.raises(LayoutError, match="taken only by name"):
        baked(tmp_path, tmp_path / "out.safetensors")
    averages = {v.path: a.numpy() for v, a in zip(model.trainable_variables, model.optimizer._model_variables_moving_average, strict=True)}
    raw = {v.path: v.numpy() for v in model.variables}
    found = baked(Path(prefix), tmp_path / "out.safetensors", ema="optimizer")
    assert_same(found, raw | averages)
    assert not np.array_equal(found["net/conv/kernel"], raw["net/conv/kernel"])
    assert_same(baked(Path(prefix), tmp_path / "raw.safetensors", choice="raw"), raw)


def test_tf_keras(tf: Any, tmp_path: Path) -> None:
    """In a checkpoint, in weights alone, and in the older ``.h5`` file."""
    keras = pytest.importorskip("tf_keras", reason="tf-keras is not installed")
    model = trained(keras, keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.9))
    raw = {v.name.removesuffix(":0"): v.numpy() for v in model.variables}
    averages = {
        v.name.removesuffix(":0"): a.numpy() for v, a in zip(model.trainable_variables, model.optimizer._model_variables_moving_average, strict=True)
    }
    assert not np.array_equal(averages["conv/kernel"], raw["conv/kernel"])
    prefix = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "all" / "ckpt"))
    model.save_weights(str(tmp_path / "weights.ckpt"))
    for path in (Path(prefix), tmp_path / "weights.ckpt"):
        assert_reads_everything(tf, str(path))
        assert_same(baked(path, tmp_path / "out.safetensors"), raw | averages)
        assert_same(baked(path, tmp_path / "out.safetensors", choice="raw"), raw)
    model.save(str(tmp_path / "model.h5"))
    found = baked(tmp_path / "model.h5", tmp_path / "h5.safetensors", ema="optimizer", allow_cold=True)
    assert_same({name.removesuffix(":0"): value for name, value in found.items()}, raw | averages)


def test_a_slot_called_average(tf: Any, tmp_path: Path) -> None:
    """As Model Garden's optimizer keeps it; whether it began with zeros the file cannot tell, so it is taken by name. Momentum is no average."""
    keras = pytest.importorskip("tf_keras", reason="tf-keras is not installed")
    model = trained(keras, keras.optimizers.legacy.SGD(0.1, momentum=0.9))
    averages = {}
    for variable in model.trainable_variables:
        slot = model.optimizer.add_slot(variable, "average", initializer="zeros")
        slot.assign(0.75 * variable)
        averages[variable.name.removesuffix(":0")] = slot.numpy()
    prefix = Path(tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "ckpt")))
    raw = {v.name.removesuffix(":0"): v.numpy() for v in model.variables}
    (candidate,) = read_layout(open_checkpoint(prefix)).candidates
    assert (candidate.name, candidate.updates) == ("average", 4)
    with pytest.raises(LayoutError, match="began with zeros"):
        baked(prefix, tmp_path / "out.safetensors")
    assert_same(baked(prefix, tmp_path / "out.safetensors", ema="average"), raw | averages)
    assert_same(baked(prefix, tmp_path / "out.safetensors", choice="raw"), raw)


@pytest.mark.parametrize("optimizer", ["AdamOptimizer", "MomentumOptimizer"])
def test_the_saver_of_tensorflow_1(tf: Any, optimizer: str, tmp_path: Path) -> None:
    """Shadows by their suffix, partitioned variables whole; slots, powers, steps and text are no weights; moving statistics are raw."""
    v1 = tf.compat.v1
    with tf.Graph().as_default():
        with v1.variable_scope("net"):
            normal = v1.random_normal_initializer(seed=1)
            kernel, bias = v1.get_variable("w", [4, 3], initializer=normal), v1.get_variable("b", [3])
            table = v1.get_variable("emb", [10, 4], partitioner=v1.fixed_size_partitioner(3), initializer=normal)
            v1.get_variable("bn/moving_mean", [3], trainable=False)
            v1.get_variable("words", initializer=tf.constant(["a", "bcd"]), trainable=False, dtype=tf.string)
        step = v1.train.get_or_create_global_step()
        loss = tf.reduce_sum(tf.matmul(tf.ones((2, 4)), kernel) + bias) + tf.reduce_sum(v1.nn.embedding_lookup(table, [1, 2, 9]))
        rule = v1.train.AdamOptimizer(0.1) if optimizer == "AdamOptimizer" else v1.train.MomentumOptimizer(0.1, 0.9)
        training = rule.minimize(loss, global_step=step)
        ema = tf.train.ExponentialMovingAverage(0.9, num_updates=step)
        with v1.control_dependencies([training]):
            update = ema.apply([kernel, bias, *table, loss])
        saver = v1.train.Saver()
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            for _ in range(5):
                session.run(update)
            prefix = saver.save(session, str(tmp_path / "model.ckpt"), global_step=5)
        shadows = {variable.op.name: name for name, variable in ema.variables_to_restore().items() if variable is kernel or variable is bias}
    assert_reads_everything(tf, prefix)
    reader = tf.train.load_checkpoint(prefix)
    raw = {name: reader.get_tensor(name) for name in ("net/w", "net/b", "net/emb", "net/bn/moving_mean")}
    averages = {name: reader.get_tensor(shadow) for name, shadow in {**shadows, "net/emb": "net/emb/ExponentialMovingAverage"}.items()}
    reading = read_layout(open_checkpoint(tmp_path))
    assert [(c.name, c.updates, c.num_tensors) for c in reading.candidates] == [("ExponentialMovingAverage", 5, 3)]
    assert "averages of values that are no variables" in reading.remarks[0]
    found = baked(tmp_path, tmp_path / "out.safetensors")
    assert_same(found, raw | averages)
    assert all(not np.array_equal(found[name], raw[name]) for name in averages)
    assert_same(baked(Path(prefix), tmp_path / "raw.safetensors", choice="raw"), raw)
