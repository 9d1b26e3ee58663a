"""One network with everything that the tools start from; each part is made when it is first asked for, and kept."""

from __future__ import annotations

import copy
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxscript import optimizer
from torch import nn
from torch.utils._pytree import tree_leaves

from bench.zoo.judgement import Count, count_in_onnx, count_in_torch, largest_error
from bench.zoo.networks import Network, build
from exporter.graph import trace
from exporter.graph.precision import program_in_float64
from exporter.graph.tracing import Traced

__all__ = ["Case", "arrays_of", "run_onnx"]


class Case:
    """A network of the zoo.

    Attributes:
        module: the network, in eval mode; tools that change a network get a `fresh` one.
        x: the images.
        program: traced with the shapes fixed, the easiest case for every tool; the ONNX models come from it.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.module: nn.Module = build(network)
        self.x = torch.rand((2, 3, network.side, network.side), generator=torch.Generator().manual_seed(1))

    def fresh(self) -> nn.Module:
        """Return a copy of the network."""
        return copy.deepcopy(self.module)

    @cached_property
    def traced(self) -> Traced:
        """Return the network traced as `exporter` does it, with a batch of any size."""
        return trace(self.fresh(), self.network.config.inputs)

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """Return what `torch.export` makes of it, all shapes fixed."""
        with torch.no_grad():
            return torch.export.export(self.fresh(), (self.x,), strict=False)

    @cached_property
    def reference(self) -> list[NDArray[Any]]:
        """Return the outputs in float64."""
        with torch.no_grad():
            try:
                return arrays_of(self.fresh().double()(self.x.double()))
            except (RuntimeError, TypeError, ValueError):  # it names float32 somewhere
                return arrays_of(program_in_float64(self.program).module()(self.x.double()))

    @cached_property
    def _unfolded(self) -> tuple[Count, float]:
        count, y = count_in_torch(self.fresh(), self.x)  # YOLO keeps what it saw of a shape
        return count, largest_error(arrays_of(y), self.reference)

    @property
    def count(self) -> Count:
        """Return what runs in the unfolded network."""
        return self._unfolded[0]

    @cached_property
    def count_in_onnx(self) -> Count:
        """Return what the exported model holds before anything is folded."""
        return count_in_onnx(onnx.load_from_string(self.raw))

    @property
    def noise(self) -> float:
        """Return by how much the unfolded network in float32 is off."""
        return self._unfolded[1]

    @property
    def raw(self) -> bytes:
        """Return the ONNX model as torch exports it, its optimiser off."""
        return self._exported[1]

    @property
    def optimised(self) -> bytes:
        """Return the ONNX model as torch exports it by default."""
        return self._optimised[0]

    @property
    def optimising_s(self) -> float:
        """Return the processor time of torch's optimiser."""
        return self._optimised[1]

    @cached_property
    def _exported(self) -> tuple[torch.onnx.ONNXProgram, bytes]:
        exported = torch.onnx.export(self.program, (), None, dynamo=True, optimize=False, verbose=False)
        if exported is None:
            raise RuntimeError("the exporter returned nothing")
        return exported, exported.model_proto.SerializeToString()

    @cached_property
    def _optimised(self) -> tuple[bytes, float]:
        exported, _ = self._exported
        begin = time.process_time()
        exported.optimize()
        seconds = time.process_time() - begin
        return exported.model_proto.SerializeToString(), seconds

    @cached_property
    def tidied(self) -> bytes:
        """Return `raw` with its shape arithmetic and its biases computed; the rewriters fold next to nothing behind computed biases."""
        model = onnx_ir.from_proto(onnx.load_from_string(self.raw))
        optimizer.fold_constants(model, should_fold=lambda node: False if node.op_type == "BatchNormalization" else None)
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
        return bytes(onnx_ir.to_proto(model).SerializeToString())


def arrays_of(outputs: Any) -> list[NDArray[Any]]:
    """Return the tensors among what a network returns, in order."""
    return [leaf.detach().numpy() for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]


def run_onnx(model: onnx.ModelProto, x: torch.Tensor, *, optimisations: str = "DISABLE_ALL") -> tuple[list[NDArray[Any]], Count]:
    """Run a model in ONNX Runtime, one thread; return its outputs, and what ran: what its optimisations made of the model."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_{optimisations}")
    is_changed = optimisations != "DISABLE_ALL"
    with tempfile.TemporaryDirectory() as folder:
        if is_changed:
            options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        ran = onnx.load(options.optimized_model_filepath) if is_changed else model
    outputs = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return [np.asarray(output) for output in outputs], count_in_onnx(ran)
