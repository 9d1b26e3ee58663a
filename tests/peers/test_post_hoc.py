"""Post-hoc EMA of snapshots that ema-pytorch wrote, compared with its own synthesis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from exporter.averaging import average_snapshots
from exporter.checkpoint import open_checkpoint
from exporter.config import Config
from exporter.tensors import read_tensor
from exporter.weights import post_hoc, snapshots_of

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("default")]

WIDTHS = (0.05, 0.28)


@pytest.mark.parametrize("sigma_rel", [0.08, 0.15, 0.25])
def test_ema_pytorch_post_hoc(tmp_path: Path, sigma_rel: float) -> None:
    """Coefficients are those of its solver, and weights those of synthesize_ema_model within the rounding of half precision."""
    library = pytest.importorskip("ema_pytorch.post_hoc_ema", reason="ema-pytorch is not installed")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    folder = tmp_path / "snapshots"
    kept = library.PostHocEMA(model, sigma_rels=WIDTHS, update_every=1, checkpoint_every_num_steps=10, checkpoint_folder=str(folder))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(160):
        model(torch.randn(8, 3)).sub(1.0).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        kept.update()
    snapshots = snapshots_of([folder])
    assert [(one.index, one.step) for one in snapshots][-2:] == [(0, 160), (1, 160)]
    gammas = torch.tensor([kept.gammas[one.index] for one in snapshots])
    steps = torch.tensor([one.step for one in snapshots])
    gamma = library.sigma_rel_to_gamma(sigma_rel)
    theirs = library.solve_weights(steps.double(), gammas.double(), torch.tensor([160.0]), torch.tensor([gamma], dtype=torch.float64))
    coefficients = np.array(post_hoc(snapshots, sigma_rel, WIDTHS).coefficients)
    np.testing.assert_allclose(coefficients, theirs.squeeze(-1).numpy(), rtol=1e-6, atol=1e-8)

    output = tmp_path / "out.safetensors"
    average_snapshots(Config(), [folder], output, sigma_rel=sigma_rel, sigma_rels=WIDTHS, progress=lambda *_: True)
    made = {name: read_tensor(ref) for name, ref in open_checkpoint(output).root.items()}
    wanted = kept.synthesize_ema_model(sigma_rel=sigma_rel).ema_model.state_dict()
    assert set(made) == set(wanted)
    for name, tensor in wanted.items():
        if tensor.is_floating_point():
            np.testing.assert_allclose(made[name].astype(np.float64), tensor.double().numpy(), rtol=2**-10, atol=2e-6, err_msg=name)
    assert made["1.num_batches_tracked"] == 0, "its averages keep the counter that they began with"
    assert any(np.abs(made["0.weight"] - kept.ema_models[index].ema_model[0].weight.detach().numpy()).max() > 1e-3 for index in range(2))
