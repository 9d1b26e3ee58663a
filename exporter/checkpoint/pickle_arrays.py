"""Tensors inside plain pickles: torch's storages as files within, NumPy's arrays as runs of bytes.

``pickle.dump`` of a torch tensor writes each storage as a whole torch file of the old form; NumPy writes dtype, shape and raw
bytes. Both are ranges of the file from protocol 3 on. Protocols 0 to 2 know no bytes and write them as text, in which a
tensor's bytes stand nowhere as they are: such a tensor is refused by name, unless it is an array that cannot be weights.
"""

from __future__ import annotations

import math

from exporter.artifacts import GlobalRef, Node, ObjectRef, TensorRef
from exporter.checkpoint.pickle_meanings import MalformedPickle, Meaning, TypedStorage
from exporter.checkpoint.pickle_ops import Unpickler
from exporter.checkpoint.pickle_stream import PickleStream, placed
from exporter.checkpoint.torch_legacy import read_legacy_stream
from exporter.tensors.dtypes import DTYPES
from exporter.tensors.views import MAX_DIMENSIONS

__all__ = ["PlainUnpickler"]

_CODES = {"f8": "float64", "f4": "float32", "f2": "float16", "c8": "complex64", "c16": "complex128", "b1": "bool"}
_CODES |= {f"{letter}{size}": f"{sign}int{8 * size}" for letter, sign in (("i", ""), ("u", "u")) for size in (1, 2, 4, 8)}
_ARRAY = "numpy.ndarray"
_RECONSTRUCT = {"numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"}
_FROM_BUFFER = ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer")
_AS_TEXT = "its bytes are written as text (pickle protocol 2 or older); load it where it is trusted, and torch.save it"
_MAX_MEMO_LOOKED_AT = 64


class PlainUnpickler(Unpickler):
    """Reads a plain pickle; torch tensors and NumPy arrays become references into the file."""

    def __init__(self, stream: PickleStream) -> None:
        meanings: dict[str, Meaning] = {"torch.storage._load_from_bytes": self._embedded_storage}
        super().__init__(stream, meanings=meanings | dict.fromkeys(_FROM_BUFFER, _from_buffer))
        self._stream = stream
        self._storages: dict[int, TypedStorage] = {}

    def _embedded_storage(self, _unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
        """``_load_from_bytes(run of bytes)``: the one storage in the torch file that the run is."""
        place = placed(args[0]) if len(args) == 1 else None
        if place is None:
            raise MalformedPickle(f"a torch tensor: {_AS_TEXT}", code="E131")
        known = self._storages.get(place.offset)
        if known is not None:
            return known
        inner = PickleStream(self._stream.file, self._stream.path, place.offset, place.offset + place.size_bytes, budget=self._stream.budget)
        try:
            storage, unpickler = read_legacy_stream(inner)
        except MalformedPickle as err:
            raise MalformedPickle(f"{err}, in the torch file at bytes {place.offset} to {inner.end}", code=err.code) from err
        for found in unpickler.calls.values():
            for callee, record in found:
                self.record_call(callee, record)
        if not isinstance(storage, TypedStorage):
            raise MalformedPickle(f"a torch file of something else than a storage at bytes {place.offset} to {inner.end}")
        self._storages[place.offset] = storage
        return storage

    def _op_build(self, arg: object) -> None:
        super()._op_build(arg)
        target = self._stack[-1]
        if not isinstance(target, ObjectRef) or str(target.callee) not in _RECONSTRUCT or str(target.args[:1] and target.args[0]) != _ARRAY:
            return
        array = _array(target.state)
        if array is None:
            return
        self._stack[-1] = array
        for count, (index, value) in enumerate(reversed(self._memo.items())):
            if value is target:
                self._memo[index] = array
            if value is target or count > _MAX_MEMO_LOOKED_AT:
                break


def _from_buffer(_unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    """``_frombuffer(bytes, dtype, shape, order)``, which is how protocol 5 writes arrays."""
    content, dtype, shape, order = args
    array = _tensor(content, dtype, shape, fortran=order == "F")
    return array if array is not None else ObjectRef(GlobalRef("numpy.core.numeric", "_frombuffer"), args, is_call=True)


def _array(state: Node) -> TensorRef | None:
    """Return the array of ``(version, shape, dtype, is Fortran's order, bytes)``."""
    if not isinstance(state, tuple) or len(state) != 5:
        return None
    _, shape, dtype, fortran, content = state
    return _tensor(content, dtype, shape, fortran=fortran is True)


def _tensor(content: Node, dtype: Node, shape: Node, *, fortran: bool) -> TensorRef | None:
    """Return the array as a reference; None where it is of a kind that cannot be weights, and so may stay a record.

    Raises:
        MalformedPickle: it may be weights and its bytes cannot be pointed at, or they are not as many as its shape says.
    """
    name, swapped = _dtype(dtype)
    if not name:
        return None
    place = placed(content)
    if place is None or swapped:
        if DTYPES[name].kind != "float":
            return None
        raise MalformedPickle(f"a NumPy array of {name}: {'its bytes are in big-endian order' if swapped else _AS_TEXT}", code="E131")
    sizes = tuple(n for n in shape if type(n) is int and 0 <= n < 1 << 63) if isinstance(shape, tuple) else None
    if not isinstance(shape, tuple) or sizes is None or len(sizes) != len(shape) or len(sizes) > MAX_DIMENSIONS:
        raise MalformedPickle("an array whose shape is no short tuple", code="E112")
    if math.prod(sizes) * DTYPES[name].size_bytes != place.size_bytes:
        raise MalformedPickle(f"an array of {name} and shape {sizes} in {place.size_bytes} bytes", code="E112")
    strides = _strides(sizes) if fortran else _strides(sizes[::-1])[::-1]
    return TensorRef(name, sizes, strides, 0, place)


def _dtype(node: Node) -> tuple[str, bool]:
    """Return torch's name for a pickled ``numpy.dtype``, empty for others, and whether it is big-endian."""
    if not isinstance(node, ObjectRef) or str(node.callee) != "numpy.dtype" or not node.args:
        return "", False
    code = node.args[0]
    name = _CODES.get(code, "") if isinstance(code, str) else ""
    if isinstance(code, GlobalRef) and code.module == "ml_dtypes" and code.name in DTYPES:
        name = code.name
    order = node.state[1] if isinstance(node.state, tuple) and len(node.state) > 1 else "|"
    return name, order == ">"


def _strides(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the steps, in elements, where the first axis moves fastest."""
    steps: list[int] = []
    step = 1
    for size in sizes:
        steps.append(step)
        step *= max(size, 1)
    return tuple(steps)
