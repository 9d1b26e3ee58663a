"""What is measured on a GPU: networks taken through the whole chain, from a checkpoint or with random weights, to ONNX."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from exporter.artifacts import Graph, OnnxModel, Provenance
from exporter.config import BakeConfig, Config, FoldConfig, InputConfig, ModelConfig, OnnxConfig, ReportConfig, SamplesConfig, TensorrtConfig
from exporter.samples import Samples, read_samples
from exporter.workspace import Workspace

__all__ = ["DIGITS", "TENSORRT_PYTHON", "Subject", "digits", "digits_project", "has_cuda", "random_network", "tensorrt_config"]

DIGITS = Path(__file__).resolve().parents[2] / "fixtures" / "digits"
TENSORRT_PYTHON = os.environ.get("EXPORTER_TENSORRT_PYTHON", "")
"""Read when a test run starts: tests themselves see no settings from outside."""


@dataclass(frozen=True)
class Subject:
    """A network, unfused and fused, with its samples."""

    name: str
    graph: Graph
    folder: Path
    samples: Samples | None
    samples_config: SamplesConfig
    weights: str
    """Where the weights come from."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(spec.name for spec in self.graph.outputs)

    @cached_property
    def onnx(self) -> OnnxModel:
        """The fused network as a float32 file."""
        return self.onnx_in("float32")

    def onnx_in(self, precision: str, *, opset: int = 0) -> OnnxModel:
        """Write and return the fused network in a precision; by default in the oldest opset from 20 on that has it."""
        from exporter.onnx_export import export_onnx

        opset = opset or (22 if precision == "bfloat16" else 20)
        path = self.folder / f"{self.name}.{precision}.opset{opset}.onnx"
        return export_onnx(self.graph, path, OnnxConfig(precision=precision, opset=opset), key="0" * 64)


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


def digits_project(folder: Path, precision: str, tensorrt: TensorrtConfig) -> Workspace:
    """Return the same network as a project of its own: in 8 bits it is calibrated on the samples of the fixture, and judged on them."""
    config = Config(
        checkpoint=Path("digits.pt"),
        model=ModelConfig(factory="model.py:build", outputs=("logits",)),
        weights=BakeConfig(choice="ema", decay=0.98),
        samples=SamplesConfig(path=Path("samples.npz"), labels="label"),
        onnx=OnnxConfig(precision=precision),
        tensorrt=tensorrt.replace(cache=folder / "cache"),
        report=ReportConfig(directory=folder),
        base=DIGITS,
    )
    return Workspace(config, folder=folder)


def random_network(name: str, folder: Path, *, side: int = 224) -> Subject:
    """Return a network of ``bench/gpu_networks.py`` with random weights, for images of this side."""
    from bench.gpu_networks import with_random_weights

    inputs = (InputConfig(name="x", shape=(2, 3, side, side)),)
    return _finish(name, with_random_weights(name), inputs, (), folder, None, f"random weights, seed 0; images of 3 x {side} x {side}")


def _finish(name, module, inputs, outputs, folder, samples, weights) -> Subject:
    from exporter.graph import fold, trace

    graph = fold(trace(module, inputs, outputs=outputs), FoldConfig(), provenance=Provenance("graph"))
    return Subject(name, graph, folder, samples, SamplesConfig(labels="label", random=8, limit=64), weights)


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
