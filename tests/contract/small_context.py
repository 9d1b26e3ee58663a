"""The part of the fakes that runs: an execution context on the memory, the streams and the graphs of the stand-in driver.

The network gives the sum of each row times 1, 2, 3, ... Scenarios make its output depend on the data (rows with a positive sum alone), or on
an input that says how many columns it has.
"""

from __future__ import annotations

import ctypes

import numpy as np
from allocator_calls import notify_shape, reallocate
from debug_calls import process_debug_tensor

NUM_CLASSES = 10
NUMPY = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64}
WORK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def driver():
    library = ctypes.CDLL("libcuda.so.1")
    library.fakeIsCapturing.argtypes = library.fakeBreakCapture.argtypes = (ctypes.c_void_p,)
    library.fakeCapture.argtypes = (ctypes.c_void_p, WORK, ctypes.c_void_p)
    return library


class Context:
    def __init__(self, world, engine) -> None:
        self.world, self.engine = world, engine
        self.shapes, self.addresses, self.profile = {}, {}, 0
        self.allocators = {}
        self.was_run = False  # with these shapes
        self.num_runs = 0
        self.captured = []
        self.listener, self.is_debugging = None, False

    def set_optimization_profile_async(self, profile_index, stream_handle):
        if self.world.scenario.get("profile_raises"):
            raise RuntimeError("Error in set optimization profile async.")
        self.profile, self.shapes = profile_index, {}
        self.world.record["calls"].append(f"profile {profile_index}")
        return stream_handle != 0

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        self.was_run = self.was_run and self.shapes.get(name) == tuple(shape)
        self.shapes[name] = tuple(shape)
        return fits and not self.world.scenario.get("shape_refused")

    def infer_shapes(self):
        if self.world.scenario.get("infer_raises"):
            raise RuntimeError("shape inference failed")
        if self.engine.has_shape_input and not self.addresses.get("columns"):
            return ["columns"]
        return ["image"] if self.world.scenario.get("shapes_unknown") else []

    def get_tensor_shape(self, name):
        if name == "rows":
            return (1,)
        rows = -1 if self.world.scenario.get("data_dependent") else self.shapes["image"][0]
        return (rows, int(self.view("columns", (1,), np.int32)[0]) if self.engine.has_shape_input else NUM_CLASSES)

    def set_tensor_address(self, name, memory):
        self.addresses[name] = memory
        return memory != 0

    def set_output_allocator(self, name, output_allocator):
        self.allocators[name] = output_allocator
        self.world.record["calls"].append(f"allocator {name}" if output_allocator is not None else f"no allocator {name}")
        return not self.world.scenario.get("allocator_refused")

    def set_debug_listener(self, listener):
        self.listener = listener
        return not self.world.scenario.get("listener_refused")

    @property
    def unfused_tensors_debug_state(self):
        return self.is_debugging

    @unfused_tensors_debug_state.setter
    def unfused_tensors_debug_state(self, value):
        if not self.world.scenario.get("debugging_refused"):
            self.is_debugging = value

    def execute_async_v3(self, stream_handle):
        self.world.record["streams"].append(stream_handle)
        if self.world.scenario.get("enqueue_fails"):
            return False
        if driver().fakeIsCapturing(stream_handle):
            return self.capture(stream_handle)
        self.was_run = True
        return self.compute(dict(self.shapes), dict(self.addresses), stream_handle)

    def capture(self, stream_handle):
        """Leave the work in the graph. What is not allowed in a capture, as the first call after new shapes, makes it invalid."""
        if self.world.scenario.get("capture_refused") or not self.was_run:
            driver().fakeBreakCapture(stream_handle)
            self.world.log(f"operation not permitted in a capture{'' if self.was_run else ': the shapes are new'}")
            return False
        shapes, addresses, profile = dict(self.shapes), dict(self.addresses), self.profile

        def replay(_):
            if (shapes, addresses, profile) != (self.shapes, self.addresses, self.profile):
                self.world.record["calls"].append("a stale graph was launched")
            self.compute(shapes, addresses, stream_handle)
            if self.world.scenario.get("replay_differs"):
                self.view("logits", (1,), np.float32, addresses)[...] = 0

        self.captured.append(WORK(replay))
        driver().fakeCapture(stream_handle, self.captured[-1], None)
        return True

    def compute(self, shapes, addresses, stream_handle):
        image = self.view("image", shapes["image"], np.float32, addresses)
        rows = image.reshape(len(image), -1).sum(1)[:, None]
        columns = NUM_CLASSES
        if self.engine.has_shape_input:
            columns = int(self.view("columns", (1,), np.int32, addresses)[0])
            self.view("rows", (1,), np.int32, addresses)[0] = len(image)
        dtype = NUMPY[self.engine.of("logits")[2]]
        if self.world.scenario.get("data_dependent"):
            rows = rows[rows[:, 0] > 0]
            addresses = self.grow(addresses, "logits", (len(rows), columns), dtype, stream_handle)
            if not addresses["logits"]:
                return False
        if self.is_debugging and self.listener is not None and self.engine.plan.get("debug"):
            self.hand_out(image, rows, stream_handle)
        self.num_runs += 1
        values = rows * np.arange(1, columns + 1) + (self.num_runs if self.world.scenario.get("unsteady") else 0)
        written = len(rows) - 1 if self.world.scenario.get("row_unwritten") else len(rows)
        self.view("logits", (len(rows), columns), dtype, addresses)[:written] = values[:written]
        return True

    def hand_out(self, image, rows, stream_handle):
        """Call the listener as the library does, with memory that holds something else afterwards."""
        for told in self.world.scenario.get("debug_tensors", [{"name": "row_sums"}]):
            values = (rows if told.get("of", "rows") == "rows" else image.reshape(len(image), -1)) * told.get("times", 1.0)
            values = np.ascontiguousarray(values.T if told.get("turned") else values).astype(told.get("stored", "float32"))
            if told.get("nan"):
                values[-1, -1] = np.nan
            if told.get("dtype") == "BF16":
                values = (values.view(np.uint32) >> 16).astype(np.uint16)
            shape = told.get("shape", rows.shape if told.get("turned") else values.shape)
            kind = getattr(self.world.trt.DataType, told.get("dtype", "FLOAT"))
            location = getattr(self.world.trt.TensorLocation, told.get("location", "DEVICE"))
            stream = told.get("stream", stream_handle)
            process_debug_tensor(self.world.trt, self.listener, values.ctypes.data, location, kind, shape, told["name"], stream)
            values[...] = 77

    def grow(self, addresses, name, shape, dtype, stream_handle):
        """Ask for memory as the library's own C++ does, and tell the shape."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = reallocate(self.world.trt, self.allocators[name], name, addresses.get(name, 0), size, 256, stream_handle)
        if address and not self.world.scenario.get("shape_untold"):
            notify_shape(self.world.trt, self.allocators[name], name, shape)
        return {**addresses, name: address}

    def view(self, name, shape, dtype, addresses=None):
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        address = (self.addresses if addresses is None else addresses)[name]
        return np.frombuffer((ctypes.c_char * count).from_address(address), dtype).reshape(shape) if count else np.empty(shape, dtype)
