"""The network of the fakes and what reads it: inputs, layers, the parser and its errors, profiles."""

from __future__ import annotations

import zlib
from pathlib import Path


def weights_of(path):
    return zlib.crc32(Path(path).read_bytes())


class Network:
    def __init__(self, world) -> None:
        self.world = world
        self.num_inputs = 1
        self.layers = [world.make("ILayer", Layer(world, **layer)) for layer in world.scenario.get("layers", [])]
        self.num_layers = len(self.layers)

    def mark_unfused_tensors_as_debug_tensors(self):
        self.world.record["marked"] = True
        return not self.world.scenario.get("marks_refused")

    def get_layer(self, index):
        return self.layers[index]

    def get_input(self, index):
        assert index == 0
        return self.world.make("ITensor", Tensor("image", (-1, 1, 8, 8), is_shape_tensor=bool(self.world.scenario.get("shape_tensor"))))


class Tensor:
    def __init__(self, name, shape=(), *, is_shape_tensor=False, dtype=None) -> None:
        self.name, self.shape, self.is_shape_tensor, self.dtype = name, shape, is_shape_tensor, dtype


class Layer:
    def __init__(self, world, name, outputs, kind="UNARY", metadata="") -> None:
        self.world, self.name, self.metadata = world, name, metadata
        self.type = getattr(world.trt.LayerType, kind)
        self.outputs = [world.make("ITensor", Tensor(tensor, dtype=getattr(world.trt.DataType, dtype))) for tensor, dtype in outputs]
        self.num_outputs = len(self.outputs)

    def __setattr__(self, name, value):
        if name == "precision":
            self.world.record.setdefault("constraints", {})[self.name] = [str(value)]
        object.__setattr__(self, name, value)

    def get_output(self, index):
        return self.outputs[index]

    def set_output_type(self, index, dtype):
        self.world.record["constraints"][self.name].append(f"{index}: {dtype}")


class Parser:
    def __init__(self, world, logger) -> None:
        self.world, self.logger = world, logger
        self.num_errors = 7 if world.scenario.get("parser_refuses") else 0

    def set_flag(self, flag):
        self.world.record["flags"][str(flag)] = True

    def parse_from_file(self, model):
        self.world.record["onnx_bytes"] = len(Path(model).read_bytes())
        self.world.weights = weights_of(model)
        return not self.world.scenario.get("parser_refuses")

    def get_error(self, index):
        return self.world.make("ParserError", ParserError(index))


class ParserError:
    def __init__(self, index) -> None:
        self.index = index

    def node(self):
        return self.index

    def node_name(self):
        return f"/head/op{self.index}"

    def node_operator(self):
        return "NonMaxSuppression"

    def desc(self):
        return "no importer registered for op"


class Profile:
    def __init__(self) -> None:
        self.shapes = {}

    def set_shape(self, input, min, opt, max):  # noqa: A002 - TensorRT's names
        self.shapes[input] = [list(min), list(opt), list(max)]
