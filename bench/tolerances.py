"""How much of the default tolerance right networks use, and by how much a network with one fold off by 1 % misses it.

    python bench/tolerances.py [MODEL ...]        MODEL: digits, or a name of timm's (random weights, nothing is downloaded)

Each network is folded, run in torch in float32, float16 and bfloat16, exported and run in ONNX Runtime, and compared with itself
unfused in float64. ``used`` is the larger share of the two parts of the rule; over 1 fails. In the last columns the weight of one folded
producer is 1 % too large: the smallest ``used`` over (at most 4) producers, in float32 and float16.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import print_machine, print_table
from torch import nn

from exporter.artifacts import Digest, Graph, OnnxModel, Provenance, TensorSpec
from exporter.config import FoldConfig, InputConfig, ParityConfig, SamplesConfig
from exporter.graph import fold, trace
from exporter.runners import OnnxruntimeRunner, TorchRunner
from exporter.samples import Samples, read_samples
from exporter.verify import compare, make_feeds, measure_own_error, measure_reference

DIGITS = Path(__file__).resolve().parent.parent / "fixtures" / "digits"
MODELS = ("digits", "resnet18", "mobilenetv3_small_100", "efficientnet_lite0", "regnety_002", "repvgg_a0", "densenet121")
CONFIG = ParityConfig(batches=(4,))
MAX_DISTURBED = 4
SAMPLES, SIZE = 4, 64


def digits() -> tuple[nn.Module, Samples]:
    spec = importlib.util.spec_from_file_location("digits_model", DIGITS / "model.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{DIGITS}: the fixture is missing")
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    state = torch.load(DIGITS / "digits.pt", weights_only=True)["model_ema"]  # noqa: TID251 - our own fixture, weights only
    module = model.build()
    module.load_state_dict({name.removeprefix("module."): value for name, value in state.items() if name.startswith("module.")})
    return module.eval(), read_samples(DIGITS / "samples.npz", labels="label").head(64)


def from_timm(name: str) -> tuple[nn.Module, Samples]:
    """Random weights; the BatchNorms have seen some batches, and scales and shifts that are not 1 and 0."""
    import timm

    generator = torch.Generator().manual_seed(0)
    module = timm.create_model(name, pretrained=False)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, (nn.Conv2d, nn.Linear)):
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * (2.0 / part.weight[0].numel()) ** 0.5)
            if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.weight is not None:  # noqa: SLF001 - covers timm's own subclasses
                part.weight.copy_(0.5 + torch.rand(part.weight.shape, generator=generator))
                part.bias.copy_(0.2 * torch.randn(part.bias.shape, generator=generator))
        module.train()
        for _ in range(4):
            module(torch.randn(8, 3, SIZE, SIZE, generator=generator))
    images = torch.randn(SAMPLES, 3, SIZE, SIZE, generator=generator).numpy()
    return module.eval(), Samples({"x": images}, None)


def measure(name: str) -> list[object]:
    module, samples = digits() if name == "digits" else from_timm(name)
    (input_name,) = samples.inputs
    example = InputConfig(name=input_name, shape=(2, *samples.inputs[input_name].shape[1:]))
    graph = fold(trace(module, (example,), outputs=("logits",)), FoldConfig(), provenance=Provenance("graph"))
    feeds = make_feeds(samples, graph.inputs, SamplesConfig(random=0), CONFIG)
    folded = graph.folded_program.module()
    with TorchRunner("reference", module, graph.inputs, ("logits",), precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    used: dict[str, float] = {}
    own_errors: dict[str, float] = {}
    disturbed: dict[str, float] = {}
    for precision in ("float32", "float16", "bfloat16"):
        with TorchRunner("unfused", module, graph.inputs, ("logits",), precision=precision) as runner:
            own = measure_own_error(reference, runner)
        used[precision], own_errors[precision] = judge(reference, own, TorchRunner("fused", folded, graph.inputs, ("logits",), precision=precision))
        if precision == "float32":
            used["onnx"], _ = judge(reference, own, exported(graph))
        if precision != "bfloat16":
            shares = []
            for producer in producers(graph):
                with scaled(folded, producer):
                    shares.append(judge(reference, own, TorchRunner("disturbed", folded, graph.inputs, ("logits",), precision=precision))[0])
            disturbed[precision] = min(shares)
    return [
        name, len(graph.folded), own_errors["float32"], used["float32"], used["onnx"], own_errors["float16"], used["float16"], used["bfloat16"],
        disturbed["float32"], disturbed["float16"],
    ]  # fmt: skip


def judge(reference: Any, own: Any, runner: Any) -> tuple[float, float]:
    with runner:
        evidence = compare(reference, own, runner, CONFIG).evidence
    (output,) = evidence.outputs
    return max(output.max_violation, output.relative_l2 / output.allowed), output.own_error


def exported(graph: Graph) -> OnnxruntimeRunner:
    path = Path(tempfile.mkdtemp(prefix="exporter-bench-")) / "model.onnx"
    names = {"input_names": [spec.name for spec in graph.inputs], "output_names": ["logits"]}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(graph.folded_program, dynamo=True, opset_version=20, verbose=False, **names).save(str(path))
    model = OnnxModel(path, Digest("0" * 64), 20, 10, graph.inputs, (TensorSpec("logits", ("batch", 0), "float32"),), 0, 0, {}, Provenance("onnx"))
    return OnnxruntimeRunner(model)


def producers(graph: Graph) -> list[str]:
    names = [folded.producer for folded in graph.folded]
    return [names[i] for i in np.unique(np.linspace(0, len(names) - 1, min(MAX_DISTURBED, len(names))).round().astype(int))]


@contextlib.contextmanager
def scaled(module: nn.Module, producer: str) -> Any:
    weight = module.get_parameter(f"{producer}.weight")
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.01)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def main() -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    print_machine("torch", "onnxruntime", "timm")
    header = ["network", "folds", "own f32", "used f32", "used ONNX", "own f16", "used f16", "used bf16", "1 % off f32", "1 % off f16"]
    print_table(header, [measure(name) for name in sys.argv[1:] or MODELS])


if __name__ == "__main__":
    main()
