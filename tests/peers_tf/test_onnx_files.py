"""tf2onnx and Keras' own exporter write the file; its fold is compared with the network in TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from exporter.config import load_config
from exporter.onnx_export import read_onnx
from exporter.onnx_folding import OnnxFold, fold_file

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

IMAGES = np.random.default_rng(0).standard_normal((4, 16, 16, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def tf() -> Any:
    """TensorFlow, quiet and on the processor, with Keras on it."""
    os.environ.update({"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow"})
    return pytest.importorskip("tensorflow", reason="TensorFlow is not installed")


def _network(keras: Any) -> Any:
    """Norms behind convolutions of each kind, in a sum, between two ReLUs and behind a dense layer, with numbers as training leaves them."""
    layers = keras.layers
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="stem_norm")(x))
    y = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name="deep")(x)
    y = layers.ReLU(6.0)(layers.BatchNormalization(name="deep_norm")(y))
    y = layers.BatchNormalization(name="right_norm", scale=False)(layers.Conv2D(8, 1, name="right")(y))
    z = layers.BatchNormalization(name="left_norm")(layers.Conv2D(8, 1, strides=2, use_bias=False, name="left")(x))
    z = layers.ReLU()(layers.Add()([y, z]))
    z = layers.Conv2DTranspose(4, 2, strides=2, name="up")(z)
    z = layers.ReLU()(layers.BatchNormalization(name="up_norm")(z))
    z = layers.ReLU()(layers.BatchNormalization(name="kept_norm")(z))
    z = layers.Dense(10, name="head")(layers.GlobalAveragePooling2D()(z))
    model = keras.Model(image, layers.BatchNormalization(name="head_norm")(z))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            shapes = {variable.name.split("/")[-1].split(":")[0]: variable.shape for variable in layer.weights}
            made = {"moving_variance": random.uniform(0.3, 2, 16), "gamma": random.uniform(0.5, 1.5, 16)}
            layer.set_weights([made.get(name, random.standard_normal(16))[: shape[0]].astype("f4") for name, shape in shapes.items()])
    model(IMAGES[:1])
    return model


def _by_tf2onnx(opset: int) -> Callable[[Any, Any, Path], None]:
    def convert(tf: Any, model: Any, path: Path) -> None:
        import tf2onnx

        signature = (tf.TensorSpec((None, 16, 16, 3), tf.float32, name="image"),)
        function = tf.function(lambda image: model(image, training=False), input_signature=signature)
        tf2onnx.convert.from_function(function, input_signature=signature, opset=opset, output_path=str(path))

    return convert


def _by_keras(_tf: Any, model: Any, path: Path) -> None:
    model.export(str(path), format="onnx", verbose=False)


def _folded(path: Path) -> OnnxFold:
    return fold_file(read_onnx(path), path.with_name("fused.onnx"), load_config(None, base=Path(), environment={}))


def _error(path: Path, expected: np.ndarray) -> float:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: IMAGES})[0]
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    "convert",
    [
        pytest.param(_by_tf2onnx(9), id="tf2onnx, opset 9"),
        pytest.param(_by_tf2onnx(13), id="tf2onnx, opset 13"),
        pytest.param(_by_tf2onnx(18), id="tf2onnx, opset 18"),
        pytest.param(_by_keras, id="Keras"),
    ],
)
def test_files_of_keras_3(tf: Any, convert: Callable[[Any, Any, Path], None], tmp_path: Path) -> None:
    """Keras 3 writes its norms as products and sums; what TensorFlow left of them is folded but for the one between two ReLUs."""
    import keras

    model = _network(keras)
    convert(tf, model, tmp_path / "net.onnx")
    expected = np.asarray(model(IMAGES, training=False))
    before = _error(tmp_path / "net.onnx", expected)
    fold = _folded(tmp_path / "net.onnx")
    assert fold.folded.folded
    assert len(fold.folded.refusals) == 1
    assert "kept_norm" in fold.folded.refusals[0].batch_norm
    assert fold.written.num_nodes < fold.given.model.num_nodes
    assert _error(fold.written.path, expected) < max(2e-6, 4 * before)


@pytest.mark.parametrize("opset", [9, 13, 18])
def test_files_of_keras_2(tf: Any, opset: int, tmp_path: Path) -> None:
    """Keras 2 calls TensorFlow's fused BatchNorm, which tf2onnx writes as one."""
    import tf_keras

    model = _network(tf_keras)
    _by_tf2onnx(opset)(tf, model, tmp_path / "net.onnx")
    expected = np.asarray(model(IMAGES, training=False))
    before = _error(tmp_path / "net.onnx", expected)
    fold = _folded(tmp_path / "net.onnx")
    assert fold.folded.folded
    assert len(fold.folded.refusals) == 1
    assert _error(fold.written.path, expected) < max(2e-6, 4 * before)
