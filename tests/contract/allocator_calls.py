"""Call an output allocator as the library does: through the virtual functions of the C++ object behind it, in the real bindings.

So the real bindings decide which method of ours is called, with which arguments, and what becomes of its answer or its exception. An object of
pybind11 holds the pointer to its C++ object behind the head that every Python object has. Up to 8.6 the virtual functions are the version of the
interface and then those below; from 10 on language, name and two destructors come first, and memory is asked for with a stream.
"""

from __future__ import annotations

import ctypes

_HEAD_BYTES = 16
_ADDRESS = ctypes.c_uint64


def _function(trt, allocator, number, result, *kinds):
    """Return the virtual function ``number`` of those that an output allocator adds, and the C++ object."""
    first = 1 if int(trt.__version__.split(".")[0]) < 10 else 4
    instance = _ADDRESS.from_address(id(allocator) + _HEAD_BYTES).value
    table = _ADDRESS.from_address(instance).value
    return ctypes.CFUNCTYPE(result, _ADDRESS, *kinds)(_ADDRESS.from_address(table + 8 * (first + number)).value), instance


def reallocate(trt, allocator, name, memory, size, alignment, stream) -> int:
    """Ask for memory; return its address."""
    kinds = (ctypes.c_char_p, _ADDRESS, _ADDRESS, _ADDRESS)
    if int(trt.__version__.split(".")[0]) < 10:
        call, instance = _function(trt, allocator, 0, _ADDRESS, *kinds)
        return call(instance, name.encode(), memory, size, alignment)
    call, instance = _function(trt, allocator, 1, _ADDRESS, *kinds, _ADDRESS)
    return call(instance, name.encode(), memory, size, alignment, stream)


def notify_shape(trt, allocator, name, shape) -> None:
    """Tell the shape."""
    is_old = int(trt.__version__.split(".")[0]) < 10
    size = ctypes.c_int32 if is_old else ctypes.c_int64  # what a Dims holds

    class Dims(ctypes.Structure):
        _fields_ = (("count", ctypes.c_int32), ("sizes", size * 8))

    call, instance = _function(trt, allocator, 1 if is_old else 2, None, ctypes.c_char_p, ctypes.POINTER(Dims))
    call(instance, name.encode(), ctypes.byref(Dims(len(shape), (size * 8)(*shape))))
