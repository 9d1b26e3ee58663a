"""What is measured on a GPU: networks taken through the whole chain, from a checkpoint or from random weights, to ONNX."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from exporter.artifacts import Graph, OnnxModel, Provenance
from exporter.config import BakeConfig, FoldConfig, InputConfig, ModelConfig, OnnxConfig, SamplesConfig, TensorrtConfig
from exporter.samples import Samples, read_samples

__all__ = ["DIGITS", "TENSORRT_PYTHON", "Subject", "digits", "from_factory", "has_cuda", "tensorrt_config"]

DIGITS = Path(__file__).resolve().parents[2] / "fixtures" / "digits"
TENSORRT_PYTHON = os.environ.get("EXPORTER_TENSORRT_PYTHON", "")
"""Read when a test run starts: tests themselves see no settings from outside."""


@dataclass(frozen=True)
class Subject:
    """A network, unfused and fused, with its samples."""

    name: str
    graph: Graph
    onnx: OnnxModel
    samples: Samples | None
    samples_config: SamplesConfig
    weights: str
    """Where the weights come from."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(spec.name for spec in self.graph.outputs)


def digits(folder: Path) -> Subject:
    """Return the network of the fixtures with its averaged weights."""
    from exporter.checkpoint import open_checkpoint
    from exporter.factories import build_model, example_inputs, load_weights_
    from exporter.weights import bake

    weights = bake(open_checkpoint(DIGITS / "digits.pt"), BakeConfig(decay=0.98), folder / "digits.safetensors")
    model = ModelConfig(factory="model.py:build", outputs=("logits",))
    module = build_model(model, base=DIGITS)
    load_weights_(module, weights.path)
    samples = read_samples(DIGITS / "samples.npz", labels="label")
    return _finish("digits", module, example_inputs(model, samples), ("logits",), folder, samples, "averaged weights of the fixture")


def from_factory(name: str, factory: str, shape: tuple[int, ...], folder: Path) -> Subject:
    """Return a network with random weights, whose BatchNorm statistics are random too, so that folding changes every weight."""
    import torch

    from exporter.factories import build_model

    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        module = build_model(ModelConfig(factory=factory), base=Path())
        generator = torch.Generator().manual_seed(1)
        for part in module.modules():
            if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(0, 0.1, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
    module.eval()
    return _finish(name, module, (InputConfig(name="input", shape=(2, *shape)),), (), folder, None, "random weights, seed 0")


def _finish(name, module, inputs, outputs, folder, samples, weights) -> Subject:
    from exporter.graph import fold, trace
    from exporter.onnx_export import export_onnx

    config = ModelConfig(outputs=outputs)
    if samples is None:
        import inspect

        first = next(iter(inspect.signature(module.forward).parameters))
        inputs = tuple(entry.replace(name=first) for entry in inputs)
    graph = fold(trace(module, inputs, outputs=config.outputs), FoldConfig(), provenance=Provenance("graph"))
    model = export_onnx(graph, folder / f"{name}.onnx", OnnxConfig(), key="0" * 64)
    return Subject(name, graph, model, samples, SamplesConfig(labels="label", random=8, limit=64), weights)


def has_cuda() -> str:
    """Return why there is no CUDA device, empty where there is one."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this machine has no NVIDIA driver (libcuda.so.1)"
    import torch

    return "" if torch.cuda.is_available() else "torch sees no CUDA device"


def tensorrt_config(**settings) -> TensorrtConfig:
    """Return settings for the interpreter that ``EXPORTER_TENSORRT_PYTHON`` names, by default this one."""
    return TensorrtConfig(python=TENSORRT_PYTHON, **settings)
