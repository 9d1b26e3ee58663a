"""The CUDA driver through ctypes: the few calls that a worker needs, every return code checked.

``libcuda.so.1`` comes with the driver, so nothing has to be installed for it, and its streams, events and pointers are those of the
CUDA runtime that TensorRT uses: both work in the device's primary context.
Source: CUDA Driver API reference, modules Initialization, Primary Context, Memory, Stream, Event and Graph Management.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from exporter.errors import EngineBuildError

__all__ = ["Device", "Driver", "DriverProblem", "open_driver"]

_LIBRARY = "libcuda.so.1"
_NON_BLOCKING = 1
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR, _NUM_MULTIPROCESSORS = 75, 76, 16
_CLOCK_KHZ, _MEMORY_CLOCK_KHZ = 13, 36

_pointer = ctypes.c_uint64
_handle = ctypes.c_void_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGetCount": (ctypes.POINTER(ctypes.c_int),),
    "cuDeviceGet": (ctypes.POINTER(ctypes.c_int), ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_int),
    "cuDeviceTotalMem_v2": (ctypes.POINTER(ctypes.c_size_t), ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_handle), ctypes.c_int),
    "cuCtxSetCurrent": (_handle,),
    "cuMemAlloc_v2": (ctypes.POINTER(_pointer), ctypes.c_size_t),
    "cuMemFree_v2": (_pointer,),
    "cuMemcpyHtoDAsync_v2": (_pointer, ctypes.c_void_p, ctypes.c_size_t, _handle),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _pointer, ctypes.c_size_t, _handle),
    "cuMemsetD8Async": (_pointer, ctypes.c_ubyte, ctypes.c_size_t, _handle),
    "cuStreamCreate": (ctypes.POINTER(_handle), ctypes.c_uint),
    "cuStreamSynchronize": (_handle,),
    "cuStreamDestroy_v2": (_handle,),
    "cuEventCreate": (ctypes.POINTER(_handle), ctypes.c_uint),
    "cuEventRecord": (_handle, _handle),
    "cuEventElapsedTime": (ctypes.POINTER(ctypes.c_float), _handle, _handle),
    "cuEventDestroy_v2": (_handle,),
    "cuStreamBeginCapture_v2": (_handle, ctypes.c_int),
    "cuStreamEndCapture": (_handle, ctypes.POINTER(_handle)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(_handle), _handle, ctypes.c_ulonglong),
    "cuGraphLaunch": (_handle, _handle),
    "cuGraphDestroy": (_handle,),
    "cuGraphExecDestroy": (_handle,),
}


class DriverProblem(Exception):
    """There is no usable driver or device; the text says what was found."""


@dataclass(frozen=True, slots=True)
class Device:
    """The first visible GPU."""

    name: str
    compute_capability: str
    num_multiprocessors: int
    memory_bytes: int
    cuda_version: str
    """The newest CUDA that the driver supports."""
    driver_version: str
    """The driver's release; empty where it does not tell."""
    clock_khz: int = 0
    """Peak clock of the multiprocessors; 0 where the driver does not tell."""
    memory_clock_khz: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the facts for a message or a record."""
        return asdict(self)


class Driver:
    """An initialised driver with at least one visible device; made by ``open_driver``."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._functions: dict[str, Callable[..., int]] = {}

    def call(self, name: str, *arguments: Any) -> None:  # noqa: ANN401 - C arguments
        """Call a function of the driver.

        Raises:
            EngineBuildError: it returned an error (E523).
        """
        status = self._call(name, *arguments)
        if status:
            raise EngineBuildError("E523", "a CUDA call came back with an error", facts={"call": name, "found": self.describe(status)})

    def attempt(self, name: str, *arguments: Any) -> str:  # noqa: ANN401 - C arguments
        """Call a function that there is another way without; return what went wrong, empty where nothing did."""
        try:
            status = self._call(name, *arguments)
        except AttributeError:
            return f"{name}: this driver does not have it"
        return f"{name}: {self.describe(status)}" if status else ""

    def _call(self, name: str, *arguments: Any) -> int:  # noqa: ANN401 - C arguments
        function = self._functions.get(name)
        if function is None:
            function = self._library[name]
            function.argtypes = _SIGNATURES[name]
            function.restype = ctypes.c_int
            self._functions[name] = function
        return function(*arguments)

    def describe(self, status: int) -> str:
        """Return an error's number, name and meaning."""
        words = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            if self._library[name](status, ctypes.byref(text)) == 0 and text.value:
                words.append(text.value.decode("ascii", "replace"))
        return ": ".join([f"error {status}", *words])

    def start(self) -> int:
        """Initialise and return the number of visible devices.

        Raises:
            DriverProblem: the driver refuses.
        """
        status = self._call("cuInit", 0)
        if status:
            raise DriverProblem(f"the NVIDIA driver finds no usable GPU ({self.describe(status)})")
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def device(self) -> Device:
        """Return what is known of the first visible device."""
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), 0)
        memory, version = ctypes.c_size_t(), ctypes.c_int()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(memory), 0)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        capability = f"{self._attribute(_COMPUTE_CAPABILITY_MAJOR)}.{self._attribute(_COMPUTE_CAPABILITY_MINOR)}"
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        clocks = [self._attribute(number, optional=True) for number in (_CLOCK_KHZ, _MEMORY_CLOCK_KHZ)]
        text, multiprocessors = name.value.decode("utf-8", "replace"), self._attribute(_NUM_MULTIPROCESSORS)
        return Device(text, capability, multiprocessors, memory.value, cuda, _driver_version(), *clocks)

    def _attribute(self, number: int, *, optional: bool = False) -> int:
        value = ctypes.c_int()
        if optional:
            return value.value if self._call("cuDeviceGetAttribute", ctypes.byref(value), number, 0) == 0 else 0
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, 0)
        return value.value

    def enter(self) -> None:
        """Make the device's primary context current in this thread; it lives as long as the process."""
        context = _handle()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
        self.call("cuCtxSetCurrent", context)

    def new_stream(self) -> int:
        """Return a stream that does not wait for the default stream."""
        stream = _handle()
        self.call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
        return int(stream.value or 0)

    def new_event(self) -> int:
        """Return an event that keeps its time."""
        event = _handle()
        self.call("cuEventCreate", ctypes.byref(event), 0)
        return int(event.value or 0)

    def allocate(self, size_bytes: int) -> int:
        """Return the address of fresh device memory."""
        address = _pointer()
        self.call("cuMemAlloc_v2", ctypes.byref(address), max(1, size_bytes))
        return int(address.value)

    def elapsed_ms(self, start: int, stop: int) -> float:
        """Return the time between two recorded events; resolution about half a microsecond."""
        milliseconds = ctypes.c_float()
        self.call("cuEventElapsedTime", ctypes.byref(milliseconds), start, stop)
        return float(milliseconds.value)


def open_driver() -> Driver:
    """Load and initialise the driver. It is the first thing that a worker does, before TensorRT is touched.

    Raises:
        DriverProblem: there is no driver, it refuses, or no device is visible.
    """
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as err:
        raise DriverProblem(f"no NVIDIA driver is installed ({_LIBRARY} was not found)") from err
    driver = Driver(library)
    if driver.start() == 0:
        raise DriverProblem("the NVIDIA driver is there, but no GPU is visible to this process")
    return driver


def _driver_version() -> str:
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return ""
    text = ctypes.create_string_buffer(96)
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlSystemGetDriverVersion(text, len(text)) != 0:
        return ""
    return text.value.decode("ascii", "replace")
