"""What 8 bits cost a torch module: its products see rounded values, nothing else does."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporter.artifacts import TensorSpec
from exporter.runners import EightBitTorchRunner, Runner, TorchRunner

INPUTS = (TensorSpec("x", ("batch", 6), "float32"),)


class Network(nn.Module):
    """One linear layer, between functions that stay as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            self.linear.weight.copy_(torch.randn(4, 6, generator=generator))
            self.linear.weight[1] *= 100.0
            self.linear.weight[2] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x * 0.37))


def rounded(values: np.ndarray, precision: str, axis: int | None) -> np.ndarray:
    """Return ``values`` in 8 bits, by NumPy."""
    if precision == "fp8":
        scale = np.abs(values).max() / np.float32(448)
        return (values / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
    largest = np.abs(values).max() if axis is None else np.abs(values).max(1 - axis, keepdims=True)
    scale = np.where(largest > 0, largest, 1).astype(np.float32) / np.float32(127)
    return np.round(values / scale) * scale


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_products_see_rounded_values(precision):
    """The input has the range of its batch, the weight that of each output channel in int8 and of the whole in fp8; a channel of zeros stays zero."""
    network = Network()
    x = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    with EightBitTorchRunner("own", network, INPUTS, ("y",), precision=precision) as runner:
        assert isinstance(runner, Runner)
        got = runner.infer({"x": x})["y"]
        assert runner.precision == precision
    weight, bias = (tensor.detach().numpy() for tensor in (network.linear.weight, network.linear.bias))
    want = np.tanh(rounded(x * np.float32(0.37), precision, None) @ rounded(weight, precision, 0).T + bias)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    with TorchRunner("plain", network, INPUTS, ("y",)) as plain:
        assert np.abs(plain.infer({"x": x})["y"] - got).max() > 1e-4


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 6, 3), nn.ConvTranspose2d(4, 6, 3), nn.Conv3d(4, 6, 1)], ids=["conv1d", "transposed 2d", "conv3d"])
def test_convolutions_of_all_kinds(layer):
    """Near the plain layer, and not equal to it."""
    rank = layer.weight.ndim
    inputs = (TensorSpec("x", ("batch", 4, *(5,) * (rank - 2)), "float32"),)
    x = np.random.default_rng(0).standard_normal((2, 4, *(5,) * (rank - 2))).astype(np.float32)
    with EightBitTorchRunner("own", layer, inputs, ("y",), precision="int8") as runner, TorchRunner("plain", layer, inputs, ("y",)) as plain:
        got, want = runner.infer({"x": x})["y"], plain.infer({"x": x})["y"]
    assert 1e-4 < np.linalg.norm(got - want) / np.linalg.norm(want) < 3e-2
