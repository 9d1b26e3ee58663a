"""Networks of the libraries as torch's own exporters write them: folded as files, and measured against themselves in float64."""

from __future__ import annotations

import warnings

import pytest
import torch

from exporter.artifacts import Outcome
from exporter.config import InputConfig, ModelConfig, load_config
from exporter.factories import build_model
from exporter.onnx_export import read_onnx
from exporter.onnx_folding import check_fold, feeds_for, fold_file

pytestmark = [pytest.mark.peers, pytest.mark.slow]

NETWORKS = [
    # factory, BatchNorms, folded
    ("timm:tf_efficientnet_b0", 49, 49),
    ("timm:regnety_002", 44, 44),
    ("torchvision:densenet121", 121, 59),
]


def _with_statistics(network: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, torch.nn.modules.batchnorm._BatchNorm):
                norm.running_mean.copy_(0.1 * torch.randn(norm.num_features, generator=generator))
                norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
                norm.weight.copy_(0.6 + 0.8 * torch.rand(norm.num_features, generator=generator))
    return network.eval()


@pytest.mark.parametrize(("factory", "num", "num_folded"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_files_of_the_torchscript_exporter(factory, num, num_folded, tmp_path):
    """As many norms go as in torch, sizes that are computed while the file runs stay right, and the check passes in float64."""
    image = (InputConfig(name="image", shape=(2, 3, 64, 64)),)
    network = _with_statistics(build_model(ModelConfig(factory=factory, inputs=image), base=tmp_path))
    settings = {"input_names": ["image"], "opset_version": 17, "training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.rand(2, 3, 64, 64),), str(tmp_path / "net.onnx"), dynamo=False, **settings)
    config = load_config(None, base=tmp_path, environment={}, flags={"samples": {"random": 2}, "latency": {"threads": 1}})
    fold = fold_file(read_onnx(tmp_path / "net.onnx"), tmp_path / "fused.onnx", config)
    assert (fold.folded.num_batch_norms, len(fold.folded.folded)) == (num, num_folded)
    assert fold.written.num_batch_norms == num - num_folded == len(fold.folded.refusals)
    verdict, structure = check_fold(fold, feeds_for(fold.given.model, (), config), config, lambda *_: True)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert structure.outcome is Outcome.PASS, structure.reason
    assert verdict.evidence.reference == "ONNX float64 on the CPU, unfused"
