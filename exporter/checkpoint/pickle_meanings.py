"""What the globals of a pickle mean to us: tensors, storages and plain containers. Everything else stays a record.

Three sets, and nothing in any of them is ever imported or called by name:

- ``MEANINGS``: callables whose result we build ourselves, from checked arguments;
- ``BENIGN_CALLS``: callables that trainers' files call and whose result stays an ``ObjectRef``;
- all other callables: an ``ObjectRef`` too, and listed in ``Checkpoint.calls``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from exporter.artifacts import GlobalRef, Node, ObjectRef, StorageRef, TensorRef, brief
from exporter.checkpoint.pickle_benign import BENIGN_CALLS
from exporter.tensors.dtypes import DTYPES
from exporter.tensors.views import MAX_DIMENSIONS, num_spanned

if TYPE_CHECKING:
    from exporter.checkpoint.pickle_ops import Unpickler

__all__ = ["MEANINGS", "STORAGE_DTYPES", "MalformedPickle", "Meaning", "TypedStorage", "check_key", "tensor_view"]

_PROBLEMS = {
    "E104": "ends in the middle of a tensor",
    "E108": "was written in another byte order",
    "E111": "goes beyond a limit",
    "E112": "describes a tensor that does not fit its bytes",
    "E113": "holds an unknown dtype",
    "E131": "holds a tensor whose bytes cannot be pointed at",
}


class MalformedPickle(ValueError):
    """The pickle breaks a rule; ``code`` is that of the error shown."""

    def __init__(self, found: str, *, code: str = "E110") -> None:
        super().__init__(found)
        self.code = code
        self.problem = _PROBLEMS.get(code, "is malformed")


@dataclass(frozen=True, slots=True)
class TypedStorage(StorageRef):
    """A storage as the pickle sees it: bytes and the dtype of their elements."""

    plain: StorageRef | None = None
    dtype: str = "untyped"
    num_declared: int = 0


STORAGE_DTYPES: dict[str, str] = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
        "ComplexFloat": "complex64",
        "ComplexDouble": "complex128",
        "QInt8": "qint8",
        "QUInt8": "quint8",
        "QInt32": "qint32",
        "Float8_e4m3fn": "float8_e4m3fn",  # from here on in TorchScript only
        "Float8_e5m2": "float8_e5m2",
        "Float8_e4m3fnuz": "float8_e4m3fnuz",
        "Float8_e5m2fnuz": "float8_e5m2fnuz",
        "Float8_e8m0fnu": "float8_e8m0fnu",
        "UInt16": "uint16",
        "UInt32": "uint32",
        "UInt64": "uint64",
    }.items()
} | {"torch.storage.UntypedStorage": "untyped", "torch.UntypedStorage": "untyped"}
"""Storage class -> dtype of its elements; ``untyped`` where the tensor says it."""

_BYTE_CODECS = {"latin1", "latin-1", "utf8", "utf-8", "ascii"}
_TENSOR_TYPES = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
_MAX_KEY_DEPTH, _MAX_KEY_PARTS = 8, 4096
_MAX_KEY_BITS = 64


def check_key(key: Node) -> bool:
    """Refuse what cannot be a key: unhashable values, and values built to make hashing or comparing slow or deep.

    Returns:
        Whether anybody can choose such keys with one hash: containers and tensors without text, whose hash is no secret of this process.
    """
    todo: list[tuple[Node, int]] = [(key, 0)]
    parts, has_text = 0, False
    while todo:
        item, depth = todo.pop()
        if isinstance(item, (tuple, frozenset)):
            parts += len(item)
            if depth >= _MAX_KEY_DEPTH or parts > _MAX_KEY_PARTS:
                raise MalformedPickle("a key that is a deep or long tuple", code="E111")
            todo.extend((part, depth + 1) for part in item)
        elif isinstance(item, (str, bytes)):
            has_text = True
        elif isinstance(item, int) and item.bit_length() > _MAX_KEY_BITS:
            raise MalformedPickle("a key that is an integer of more than 64 bits", code="E111")
        elif isinstance(item, complex):
            raise MalformedPickle("a key that is a complex number", code="E111")
        elif isinstance(item, (dict, list, set)):
            raise MalformedPickle(f"a key that is a {type(item).__name__}")
    return not has_text and isinstance(key, (tuple, frozenset, TensorRef))


# --------------------------------------------------------------------------------------------------------------------
# what we build; each function takes the unpickler (for its budget of copies) and the arguments


def _ordered_dict(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    if not args:
        return {}
    (pairs,) = args
    if isinstance(pairs, dict):
        pairs = list(pairs.items())
    if not isinstance(pairs, list):
        raise MalformedPickle("a dict made of something else than pairs")
    unpickler.spend(len(pairs))
    table: dict[Node, Node] = {}
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise MalformedPickle("a dict made of something else than pairs")
        unpickler.check_key(pair[0])
        table[pair[0]] = pair[1]
    return table


def _default_dict(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    return _ordered_dict(unpickler, args[1:])


def _size(_unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    (sizes,) = args or ((),)
    return _counts(sizes)


def _set(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    return set(_members(unpickler, args))


def _frozenset(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    return frozenset(_members(unpickler, args))


def _members(unpickler: Unpickler, args: tuple[Node, ...]) -> list[Node]:
    if not args:
        return []
    (items,) = args
    if not isinstance(items, (list, tuple, set, frozenset)):
        raise MalformedPickle("a set made of something else than members")
    unpickler.spend(len(items))
    for item in items:
        unpickler.check_key(item)
    return list(items)


def _complex(_unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    real, imaginary = (*args, 0.0) if len(args) == 1 else args
    if not isinstance(real, (int, float)) or not isinstance(imaginary, (int, float)):
        raise MalformedPickle("a complex number made of something else than numbers")
    return complex(real, imaginary)


def _encoded(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    """``_codecs.encode(text, "latin1")``, which is how protocol 2 writes bytes."""
    text, codec = args
    if not isinstance(text, str) or codec not in _BYTE_CODECS:
        raise MalformedPickle("bytes made of something else than text")
    unpickler.spend(len(text))
    try:
        return text.encode("latin-1" if str(codec).startswith("latin") else "utf-8")
    except UnicodeEncodeError as err:
        raise MalformedPickle("bytes made of text that has none") from err


def _bytes(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    if not args:
        return b""
    if len(args) == 2:
        return _encoded(unpickler, args)
    (content,) = args
    if not isinstance(content, bytes) and type(content) is not StorageRef:  # a long run of bytes stays where it is
        raise MalformedPickle("bytes made of something else than bytes")
    return content


def _tensor(_unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    """``_rebuild_tensor(storage, offset, size, stride)`` and ``_v2`` with what follows."""
    storage, offset, shape, strides, *rest = args
    if _is_lazy(rest[2] if len(rest) > 2 else None):
        return ObjectRef(GlobalRef("torch._utils", "_rebuild_tensor_v2"), args, is_call=True)
    return tensor_view(storage, offset, shape, strides)


def _tensor_v3(_unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    storage, offset, shape, strides, _, _, dtype, *rest = args
    if not isinstance(dtype, GlobalRef) or dtype.module != "torch" or dtype.name not in DTYPES:
        raise MalformedPickle(f"the dtype {brief(dtype)}", code="E113")
    if _is_lazy(rest[0] if rest else None):
        return ObjectRef(GlobalRef("torch._utils", "_rebuild_tensor_v3"), args, is_call=True)
    return tensor_view(storage, offset, shape, strides, dtype=dtype.name)


def _is_lazy(metadata: Node) -> bool:
    """Return whether a tensor is lazily conjugated or negated, so that its values are not those of its bytes."""
    return isinstance(metadata, Mapping) and any(metadata.values())


def tensor_view(storage: Node, offset: Node, shape: Node, strides: Node, *, dtype: str = "") -> TensorRef:
    """Return the view of a storage, which must reach over none but its elements."""
    if not isinstance(storage, TypedStorage) or storage.plain is None:
        raise MalformedPickle("a tensor without a storage")
    dtype = dtype or storage.dtype
    if dtype not in DTYPES:
        raise MalformedPickle("a tensor on bytes without a dtype", code="E113")
    sizes, steps = _counts(shape), _counts(strides)
    if type(offset) is not int or offset < 0 or len(sizes) != len(steps):
        raise MalformedPickle(f"a tensor with offset {brief(offset)}, shape {sizes}, strides {steps}", code="E112")
    available = storage.size_bytes // DTYPES[dtype].size_bytes
    spanned = num_spanned(sizes, steps)
    if spanned and offset + spanned > available:
        found = f"shape {sizes}, strides {steps} from element {offset} on in a storage of {available}"
        raise MalformedPickle(found, code="E112")
    return TensorRef(dtype, sizes, steps, offset, storage.plain)


def _parameter(_unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    data = args[0]
    return replace(data, is_parameter=True) if isinstance(data, TensorRef) else data


def _from_type(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    """``_rebuild_from_type_v2(function, type, arguments, state)``: a tensor with attributes, or of a subclass."""
    function, kind, inner, _ = args
    rebuild = MEANINGS.get(str(function)) if str(function).startswith("torch._utils._rebuild_") else None
    if rebuild is None or str(kind) not in _TENSOR_TYPES or not isinstance(inner, tuple):
        if isinstance(function, GlobalRef) and rebuild is None and str(function) not in BENIGN_CALLS:
            unpickler.record_call(function, ObjectRef(function, inner if isinstance(inner, tuple) else (inner,), is_call=True))
        return ObjectRef(GlobalRef("torch._tensor", "_rebuild_from_type_v2"), args, is_call=True)
    tensor = rebuild(unpickler, inner)
    return replace(tensor, is_parameter=True) if isinstance(tensor, TensorRef) and str(kind).endswith("Parameter") else tensor


def _persistent_class(unpickler: Unpickler, args: tuple[Node, ...]) -> Node:
    """``_reconstruct_persistent_obj(meta)`` of EDM and StyleGAN: the object's state, and the source of its class as text.

    Their loader executes that source. Here it stays a string among the record's arguments.
    """
    callee = GlobalRef("torch_utils.persistence", "_reconstruct_persistent_obj")
    meta = args[0] if len(args) == 1 else None
    name = meta.get("class_name") if isinstance(meta, Mapping) else None
    if not isinstance(meta, Mapping) or meta.get("type") != "class" or not isinstance(name, str) or not name.isidentifier():
        record = ObjectRef(callee, args, is_call=True)
        unpickler.record_call(callee, record)
        return record
    return ObjectRef(GlobalRef(callee.module, name), (meta.get("module_src"),), meta.get("state"))


def _counts(value: Node) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        raise MalformedPickle("a shape that is no short tuple", code="E112")
    if not all(type(item) is int and 0 <= item < 1 << 63 for item in value):
        raise MalformedPickle(f"a shape or strides of {brief(value)}", code="E112")
    return tuple(value)  # type: ignore[arg-type]


Meaning = Callable[["Unpickler", "tuple[Node, ...]"], Node]

MEANINGS: dict[str, Meaning] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": _default_dict,
    "collections.Counter": _ordered_dict,
    "builtins.dict": _ordered_dict,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytearray": _bytes,
    "builtins.bytes": _bytes,
    "builtins.complex": _complex,
    "_codecs.encode": _encoded,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_class,
}
"""Callable -> what builds its result."""
