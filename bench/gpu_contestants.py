"""Who runs in ``bench/gpu.py``, for one network in one precision: each a runner to be made, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from subjects import Subject, tensorrt_config
from typing_extensions import Self

from exporter.artifacts import OnnxModel, Plan
from exporter.config import TensorrtConfig
from exporter.engine import EngineSupport, build_engine, parse_profiles, plan_key, probe
from exporter.runners import OnnxruntimeRunner, Runner, TensorrtRunner, TorchRunner

__all__ = ["NAMES", "PRECISIONS", "CompiledTorchRunner", "Entry", "contestants", "torch_runner"]

PRECISIONS = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
NAMES = (
    "torch-fused", "torch-unfused-graph", "torch-fused-graph", "onnx", "tensorrt", "tensorrt-graph", "torch-fused-compiled", "torch-unfused-compiled",
)  # fmt: skip
"""In the order in which they run: what has to be compiled comes last."""


@dataclass(frozen=True)
class Entry:
    """What is measured: a network in a precision on a device.

    Attributes:
        precision: of ``PRECISIONS``; ``tf32`` is float32 whose products may use TF32.
        threads: on the CPU.
    """

    subject: Subject
    precision: str
    device: Literal["cuda", "cpu"]
    batches: tuple[int, ...]
    folder: Path
    threads: int = 1

    @property
    def dtype(self) -> str:
        """Name of the floating type."""
        return PRECISIONS[self.precision]


class CompiledTorchRunner(TorchRunner):
    """Runs what ``torch.compile`` makes of the whole module by its defaults: compiled when a new shape comes, and never run otherwise."""

    backend = "inductor"

    def __enter__(self) -> Self:
        """Place the module, and have it compiled."""
        super().__enter__()
        torch.compiler.reset()
        self._module = torch.compile(self._loaded(), backend=self.backend, fullgraph=True)
        return self


def torch_runner(entry: Entry, name: str, program: Any, kind: type[TorchRunner] = TorchRunner, **settings: Any) -> TorchRunner:
    """Return a torch runner in the precision of ``entry``."""
    settings = {"precision": entry.dtype, "device": entry.device, "threads": entry.threads, "tf32": entry.precision == "tf32", **settings}
    return kind(name, program, entry.subject.graph.inputs, entry.subject.outputs, **settings)


def contestants(entry: Entry, names: tuple[str, ...]) -> Iterator[tuple[str, Callable[[], Runner] | str]]:
    """Yield each of ``names`` with a function that makes its runner, or with the reason why there is none."""
    graph = entry.subject.graph
    programs = {"unfused": graph.unfused, "fused": graph.folded_program}
    engines = _Engines(entry, tensorrt_config(tf32=entry.precision == "tf32"))
    for name in names:
        library, *rest = name.split("-")
        if library == "torch" and rest[1:] == ["compiled"]:
            yield name, partial(torch_runner, entry, name, programs[rest[0]], CompiledTorchRunner)
        elif library == "torch" and rest[1:] == ["graph"] and entry.device == "cpu":
            yield name, "CUDA graphs are of CUDA"
        elif library == "torch":
            yield name, partial(torch_runner, entry, name, programs[rest[0]], cuda_graph=rest[1:] == ["graph"])
        elif library == "onnx":
            halved = entry.device == "cpu" and entry.dtype != "float32"
            yield name, f"ONNX Runtime does not compute in {entry.dtype} on the CPU" if halved else partial(_onnxruntime, entry)
        else:
            yield name, engines.missing or partial(engines.runner, name)


def _onnxruntime(entry: Entry) -> Runner:
    provider = "CUDAExecutionProvider" if entry.device == "cuda" else "CPUExecutionProvider"
    tf32 = entry.precision == "tf32"
    return OnnxruntimeRunner(entry.subject.onnx_in(entry.dtype), name="onnx", provider=provider, threads=entry.threads, tf32=tf32)


class _Engines:
    """One engine for all contestants of TensorRT, built when the first one is made."""

    def __init__(self, entry: Entry, config: TensorrtConfig) -> None:
        self._entry, self._config = entry, config
        self._support: EngineSupport | None = None
        self._plan: Plan | None = None

    @property
    def missing(self) -> str:
        """What TensorRT lacks here; empty where it can be used."""
        if self._entry.device != "cuda":
            return "TensorRT runs on CUDA alone"
        self._support = self._support or probe(self._config)
        return "" if self._support.available else self._support.missing

    def runner(self, name: str) -> Runner:
        if self._plan is None:
            self._plan = self._build()
        return TensorrtRunner(self._plan, self._config.replace(cuda_graph="auto" if name.endswith("-graph") else "never"), name=name)

    def _build(self) -> Plan:
        entry, support = self._entry, self._support or probe(self._config)
        is_old = int(support.tensorrt_version.split(".")[0]) < 10  # it reads opset 17 at most
        model: OnnxModel = entry.subject.onnx_in(entry.dtype, opset=17 if is_old else 0)
        profiles = parse_profiles((), model.inputs, batch=max(*entry.batches, 8, 32))
        key = plan_key(model.digest, self._config, profiles, support)
        return build_engine(model, entry.folder / f"{entry.subject.name}.{entry.precision}.plan", self._config, profiles, key=key)
