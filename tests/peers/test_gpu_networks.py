"""The networks of ``bench/gpu.py`` are torchvision's: the same names, shapes and outputs."""

from __future__ import annotations

import pytest
import torch

from bench.gpu_networks import NETWORKS, with_random_weights

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_that_of_torchvision(name):
    """It has the same names and shapes, and with weights and statistics exchanged either way it returns the same."""
    models = pytest.importorskip("torchvision.models")
    ours, theirs = with_random_weights(name), models.get_model(name, weights=None).eval()
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    for source, target in [(ours, theirs), (models.get_model(name, weights=None), ours)]:
        source.eval()
        target.load_state_dict(source.state_dict())
        with torch.inference_mode():
            torch.testing.assert_close(target(images), source(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_output_depends_on_the_image(name):
    """With random weights the logits of two images differ as much as their own size, and stay far within float16."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        first, second = with_random_weights(name)(images)
    assert (first - second).norm() > 0.05 * first.norm()
    assert first.abs().max() < 1e4
