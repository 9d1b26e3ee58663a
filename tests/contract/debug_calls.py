"""Call a debug listener as the library does, through the virtual function of the C++ object behind it; see ``allocator_calls``."""

from __future__ import annotations

import ctypes

_HEAD_BYTES = 16
_ADDRESS = ctypes.c_uint64
_FIRST = 4
"""Virtual functions before it: language, name, two destructors."""


class Dims(ctypes.Structure):
    _fields_ = (("count", ctypes.c_int32), ("sizes", ctypes.c_int64 * 8))


def process_debug_tensor(trt, listener, address, location, kind, shape, name, stream) -> bool:
    """Hand out a tensor; return what the library is told."""
    assert isinstance(listener, trt.IDebugListener)
    instance = _ADDRESS.from_address(id(listener) + _HEAD_BYTES).value
    table = _ADDRESS.from_address(instance).value
    kinds = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(Dims), ctypes.c_char_p, _ADDRESS)
    call = ctypes.CFUNCTYPE(ctypes.c_bool, _ADDRESS, *kinds)(_ADDRESS.from_address(table + 8 * _FIRST).value)
    dims = Dims(len(shape), (ctypes.c_int64 * 8)(*shape))
    return call(instance, address, int(location), int(kind), ctypes.byref(dims), name.encode(), stream)
