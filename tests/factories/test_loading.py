"""Weights are loaded by name, all of them, and never with a loss."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from exporter.errors import ArtifactError, LayoutError
from exporter.factories import load_weights_


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)).eval()


@pytest.fixture
def tensors():
    """The state dict of another network of the same architecture."""
    other = network()
    with torch.no_grad():
        other[1].running_mean.normal_(generator=torch.Generator().manual_seed(1))
        other[1].num_batches_tracked.fill_(77)
    return {name: tensor.detach().clone() for name, tensor in other.state_dict().items()}


def write(folder, tensors):
    save_file(tensors, folder / "w.safetensors")
    return folder / "w.safetensors"


def test_every_tensor_is_loaded(tmp_path, tensors):
    """Parameters, buffers and counters are those of the file."""
    module = network()
    load_weights_(module, write(tmp_path, tensors))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_widened_exactly(tmp_path, tensors, dtype):
    """Half-precision weights go into the float32 network without a change of value; the network stays float32."""
    narrow = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    module = network()
    load_weights_(module, write(tmp_path, narrow))
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor.double(), narrow[name].double())


@pytest.mark.parametrize(("source", "target"), [(torch.float64, torch.float32), (torch.float32, torch.float16)])
def test_weights_are_never_narrowed(tmp_path, tensors, source, target):
    """float64 weights for a float32 network are refused, with the tensors' names."""
    wide = {name: tensor.to(source) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    with pytest.raises(LayoutError, match="E323") as caught:
        load_weights_(network().to(target), write(tmp_path, wide))
    assert "0.weight" in caught.value.facts["tensors"]


def test_all_that_does_not_fit_is_listed(tmp_path, tensors):
    """Missing, unexpected and misshapen tensors are named together, and nothing was loaded."""
    tensors["3.weights"] = tensors.pop("3.weight")
    tensors["0.weight"] = torch.zeros(4, 3, 5, 5)
    module = network()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(LayoutError, match="E322") as caught:
        load_weights_(module, write(tmp_path, tensors))
    facts = caught.value.facts
    assert facts["missing"] == "3.weight"
    assert facts["unexpected"] == "3.weights"
    assert facts["misshapen"] == "0.weight: got (4, 3, 5, 5), expected (4, 3, 3, 3)"
    assert "3.weight is 3.weights" in caught.value.help
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("prefix", ["module", "model._orig_mod"])
def test_common_prefix_is_named(tmp_path, tensors, prefix):
    """When every name carries a wrapper's prefix, the help says which."""
    with pytest.raises(LayoutError) as caught:
        load_weights_(network(), write(tmp_path, {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}))
    assert f"begin with '{prefix}.'" in caught.value.help
    assert f"--strip-prefix {prefix}." in caught.value.help


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0garbage!", None], ids=["empty", "garbage", "missing"])
def test_file_that_cannot_be_read(tmp_path, content):
    """A damaged or missing file is an error of the artefact."""
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match="E321"):
        load_weights_(network(), path)
