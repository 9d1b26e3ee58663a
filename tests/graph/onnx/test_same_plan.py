"""One planner, two graphs: a traced network and the raw ONNX export of it are folded alike, BatchNorm by BatchNorm, by the names of modules."""

from __future__ import annotations

import collections
import copy
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from networks import IMAGE, Sequence, trained
from networks import folded as folded_program
from onnx.reference import ReferenceEvaluator
from small_models import folded
from test_fold_patterns import PATTERNS
from test_refusals import CASES
from torch import nn

from exporter.artifacts import FoldedOnnx, Graph

NETWORKS = {
    **{name: (case[0], case[1]) for name, case in PATTERNS.items()},
    **{f"refused: {name}": (case[0], case[1]) for name, case in CASES.items()},
}


@pytest.fixture(autouse=True)
def _quiet_exporter() -> Iterator[None]:
    """Let torch's exporters say what they like about torchvision and themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decisions(fold: Graph | FoldedOnnx) -> tuple[collections.Counter[str], collections.Counter[tuple[str, str]]]:
    """Return the names of the folded BatchNorms, and those of the refused ones with their reasons."""
    return (
        collections.Counter(each.batch_norm for each in fold.folded),
        collections.Counter((refusal.batch_norm, refusal.reason.name) for refusal in fold.refusals),
    )


def exported(program: torch.export.ExportedProgram | nn.Module, x: torch.Tensor, *, optimize: bool = False) -> onnx.ModelProto:
    """Return what torch's exporter makes of a network."""
    made = torch.onnx.export(program, (x,), None, dynamo=True, optimize=optimize, verbose=False)
    assert made is not None
    return made.model_proto


@pytest.mark.parametrize("name", NETWORKS)
def test_same_plan_for_the_raw_export(name):
    """The same BatchNorms are folded, the others refused for the same reasons, and the folded model computes what the given one does."""
    network, shape = NETWORKS[name]
    wide = copy.deepcopy(network).eval().double()
    program = folded_program(network, shape)
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    given = exported(wide, x)
    fold = folded(given)
    assert decisions(fold) == decisions(program)
    assert fold.num_batch_norms == program.num_batch_norms
    onnx.checker.check_model(fold.model, full_check=True)
    if any(each.op_type == "ConvTranspose" for each in given.graph.node):
        return  # ONNX's evaluator takes no groups; the tests of small models cover the numbers
    feed = {given.graph.input[0].name: x.numpy()}
    for reference, candidate in zip(ReferenceEvaluator(given).run(None, feed), ReferenceEvaluator(fold.model).run(None, feed), strict=True):
        assert np.abs(candidate - reference).max() <= 1e-10 * np.abs(reference).max()


def small_network() -> nn.Module:
    """Return a network with a BatchNorm in every place that the exporters write differently."""
    return Sequence(
        stem=Sequence(conv=nn.Conv2d(3, 8, 3, bias=False), bn=trained(nn.BatchNorm2d(8)), relu=nn.ReLU()),
        layers=nn.Sequential(nn.Conv2d(8, 4, 1), trained(nn.BatchNorm2d(4), seed=1), nn.ReLU(), trained(nn.BatchNorm2d(4), seed=2)),
        pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(4, 5),
        norm=trained(nn.BatchNorm1d(5), seed=3),
        last=nn.ReLU(),
        kept=trained(nn.BatchNorm1d(5), seed=4),
        end=nn.ReLU(),
    )


def run_float32(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Run a model in ONNX Runtime without its optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


@pytest.mark.parametrize("dynamic", [False, True], ids=["fixed batch", "dynamic batch"])
@pytest.mark.parametrize("opset", [9, 13, 17])
def test_the_older_exporter_of_torch(tmp_path: Path, opset: int, dynamic: bool):
    """What the TorchScript exporter writes is folded under the names of the modules; weights that it folded itself are gone already."""
    network = small_network().eval()
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(5))
    path = tmp_path / "older.onnx"
    axes = {"x": {0: "batch"}} if dynamic else None
    training = torch.onnx.TrainingMode.PRESERVE  # keeps the BatchNorms
    torch.onnx.export(network, (x,), path, dynamo=False, opset_version=opset, training=training, input_names=["x"], dynamic_axes=axes)
    given = onnx.load(path)
    fold = folded(given)
    assert [each.batch_norm for each in fold.folded] == ["stem.bn", "layers.1", "layers.3", "norm"]
    assert [refusal.batch_norm for refusal in fold.refusals] == ["kept"]
    reference, candidate = run_float32(given, x.numpy()), run_float32(fold.model, x.numpy())
    assert np.abs(candidate - reference).max() <= 1e-5 * np.abs(reference).max()


def test_what_the_exporter_has_optimised():
    """With its optimiser on, torch's exporter folds some BatchNorms itself; the rest is folded under the same names."""
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(5))
    given = exported(small_network().eval(), x, optimize=True)
    left = sum(each.op_type == "BatchNormalization" for each in given.graph.node)
    fold = folded(given)
    assert left == fold.num_batch_norms == 2
    assert [each.batch_norm for each in fold.folded] == ["layers.3"]
    assert [refusal.batch_norm for refusal in fold.refusals] == ["kept"]
    reference, candidate = run_float32(given, x.numpy()), run_float32(fold.model, x.numpy())
    assert np.abs(candidate - reference).max() <= 1e-5 * np.abs(reference).max()


def test_a_convolution_of_three_axes_without_bias_is_mended():
    """The raw export of such a convolution has a zero bias of the wrong shape, and does not run; the folded model does."""
    network = Sequence(conv=nn.Conv3d(2, 4, 3, bias=False), bn=trained(nn.BatchNorm3d(4)), relu=nn.ReLU(), last=nn.Conv3d(4, 3, 1, bias=False)).eval()
    x = torch.randn((1, 2, 5, 5, 5), generator=torch.Generator().manual_seed(5))
    fold = folded(exported(network, x))
    assert [each.batch_norm for each in fold.folded] == ["bn"]
    with torch.inference_mode():
        expected = network(x).numpy()
    assert np.abs(run_float32(fold.model, x.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_dynamic_sizes_of_the_image():
    """Where height and width are known at run time only, reshapes that keep the channels are still passed."""
    network = Sequence(
        conv=nn.Conv2d(3, 4, 1), flat=nn.Flatten(2), bn=trained(nn.BatchNorm1d(4)), relu=nn.ReLU(), pool=nn.AdaptiveAvgPool1d(1)
    ).eval()
    x = torch.randn(IMAGE, generator=torch.Generator().manual_seed(5))
    sizes = {"x": {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}}
    made = torch.onnx.export(network, (x,), None, dynamo=True, optimize=False, verbose=False, dynamic_shapes=sizes)
    assert made is not None
    fold = folded(made.model_proto)
    assert [each.batch_norm for each in fold.folded] == ["bn"]
    other = torch.randn((3, 3, 11, 9), generator=torch.Generator().manual_seed(6))
    with torch.inference_mode():
        expected = network(other).numpy()
    assert np.abs(run_float32(fold.model, other.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()
