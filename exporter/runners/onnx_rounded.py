"""Run an ONNX model in half precision on the CPU so that it shows what half precision does.

ONNX Runtime has few kernels for half precision on the CPU. It computes float16 in float32 from one cast to the next, so that an overflow between
two nodes is not seen, and most of bfloat16 not at all. Here every node computes in float32, and each value that the model stores in half
precision is rounded to it, by a Cast down and up again: products are summed in float32 and stored in half, as tensor cores do.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from typing_extensions import Self

from exporter.artifacts import OnnxModel
from exporter.errors import ExporterError, ModelNotSupported
from exporter.files import write_bytes
from exporter.runners.onnxruntime import OnnxruntimeRunner

__all__ = ["RoundedOnnxRunner", "rounding_model"]

_FLOAT = onnx.TensorProto.FLOAT
_HALVES = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
_DTYPES = {"float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
_LIMIT_BYTES = 1 << 30


class RoundedOnnxRunner(OnnxruntimeRunner):
    """Runs an ``OnnxModel`` of half precision, with float32 inputs and outputs, with float32 kernels and every value rounded.

    Args:
        rounded: names of the values and constants to round to ``model.precision``, of a model that stores them in float32;
            None where the model itself stores them in half precision.
    """

    def __init__(self, model: OnnxModel, *, name: str = "onnx", threads: int = 1, rounded: frozenset[str] | None = None) -> None:
        super().__init__(model, name=name, threads=threads)
        self._rounded = rounded
        self.settings["arithmetic"] = f"float32, each value rounded to {self.precision}"
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._given = model

    def __enter__(self) -> Self:
        """Write the model with its roundings and create the session.

        Raises:
            ModelNotSupported: E623, ONNX Runtime refuses the model; E625, the file is over 1 GiB.
        """
        if self._given.path.stat().st_size > _LIMIT_BYTES:
            raise ModelNotSupported("E625", "the ONNX model is too large to be rounded value by value", facts={"file": self._given.path})
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name) / "rounded.onnx"
        halves = None if self._rounded is None else dict.fromkeys(self._rounded, _DTYPES[self.precision])
        write_bytes(path, rounding_model(onnx.load(str(self._given.path)), halves).SerializeToString())
        self._model = dataclasses.replace(self._given, path=path)
        try:
            return super().__enter__()
        except ExporterError:
            self._folder.cleanup()
            raise

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        """Drop the session and the file."""
        super().__exit__(kind, err, trace)
        if self._folder is not None:
            self._folder.cleanup()


def rounding_model(model: onnx.ModelProto, rounded: Mapping[str, int] | None = None) -> onnx.ModelProto:
    """Return a float32 model that rounds each value which ``model`` stores in half precision.

    Args:
        model: changed in place; its values have dtypes, its inputs and outputs are not in half precision.
        rounded: of a model in float32: name of a value or constant -> the dtype that it is rounded to.
    """
    graph = model.graph
    if rounded is None:
        halves = {value.name: value.type.tensor_type.elem_type for value in graph.value_info if value.type.tensor_type.elem_type in _HALVES}
    else:
        halves = dict(rounded)
    for tensor in graph.initializer:
        if tensor.data_type == _FLOAT and tensor.name in halves:
            numbers = onnx.numpy_helper.to_array(tensor).astype(onnx.helper.tensor_dtype_to_np_dtype(halves[tensor.name]))
            tensor.CopyFrom(onnx.numpy_helper.from_array(numbers.astype(np.float32), tensor.name))
        elif tensor.data_type in _HALVES:
            halves[tensor.name] = tensor.data_type
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    nodes = []
    inputs = [value.name for value in graph.input if value.name in halves]
    for name in inputs:
        nodes.append(onnx.helper.make_node("Cast", [name], [f"{name}/half"], name=f"{name}/down", to=halves[name]))
        nodes.append(onnx.helper.make_node("Cast", [f"{name}/half"], [f"{name}/rounded"], name=f"{name}/up", to=_FLOAT))
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in inputs:
                node.input[index] = f"{name}/rounded"
        _widen_constants_(node)
        nodes.append(node)
        for index, name in enumerate(node.output):
            if name not in halves:
                continue
            is_cast = node.op_type == "Cast"
            wide, half = f"{name}/wide", f"{name}/half"
            node.output[index] = half if is_cast else wide
            if not is_cast:
                nodes.append(onnx.helper.make_node("Cast", [wide], [half], name=f"{name}/down", to=halves[name]))
            nodes.append(onnx.helper.make_node("Cast", [half], [name], name=f"{name}/up", to=_FLOAT))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(copies)
    return model


def _widen_constants_(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in _HALVES and node.op_type != "Cast":
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(attribute.t).astype(np.float32), attribute.t.name))
