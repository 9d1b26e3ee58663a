"""The globals that trainers' files call or make instances of, and whose results stay inert records."""

from __future__ import annotations

import sys

from exporter.artifacts import GlobalRef, Node

__all__ = ["BENIGN_CALLS", "is_benign_instance", "is_benign_lookup"]

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
BENIGN_CALLS: frozenset[str] = frozenset(
    {
        "torch.device",
        "torch.serialization._get_layout",
        "torch.torch_version.TorchVersion",
        "torch.storage.TypedStorage",
        *(f"torch._utils._rebuild_{what}" for what in ("sparse_tensor", "nested_tensor", "qtensor", "wrapper_subclass", "meta_tensor_no_storage")),
        *(f"torch._utils._rebuild_{what}" for what in ("device_tensor_from_numpy", "device_tensor_from_cpu_tensor", "xla_tensor")),
        "torch._tensor._rebuild_from_type",
        "torch.distributed.tensor._api._rebuild_dtensor",
        "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
        *(f"{module}.{name}" for module in _NUMPY for name in ("scalar", "_reconstruct")),
        *(f"{module}._frombuffer" for module in ("numpy.core.numeric", "numpy._core.numeric")),
        "numpy.dtype",
        *(f"numpy.random._pickle.__{name}_ctor" for name in ("randomstate", "generator", "bit_generator")),
        "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
        "argparse.Namespace",
        "types.SimpleNamespace",
        "collections.deque",
        "collections.UserDict",
        "functools.partial",
        "builtins.slice",
        "builtins.range",
        "builtins.object",
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in ("Path", "PosixPath", "WindowsPath")),
        *(f"{module}.Pure{name}" for module in ("pathlib", "pathlib._local") for name in ("Path", "PosixPath", "WindowsPath")),
        *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "torchvision.transforms.functional.InterpolationMode",
        *(f"ultralytics.{module}.IterableSimpleNamespace" for module in ("utils", "yolo.utils")),
    }
)
"""Callables that trainers' files call; each makes a plain value and does nothing else."""

_STANDARD_LIBRARY = frozenset(sys.stdlib_module_names) | {"nt", "posix", "__builtin__"}


_METHODS = {("mmengine.logging.history_buffer.HistoryBuffer", name) for name in ("min", "max", "mean", "current")}
"""Methods that pickles look up by name, never to call them: mmengine's log buffers carry their own."""


def is_benign_lookup(callee: GlobalRef, args: tuple[Node, ...]) -> bool:
    """Return whether the call is ``getattr`` of a method that trainers' files look up; a call of what it gives is another matter."""
    if str(callee) not in {"builtins.getattr", "__builtin__.getattr"} or len(args) != 2:
        return False
    owner, name = args
    return isinstance(owner, GlobalRef) and isinstance(name, str) and (str(owner), name) in _METHODS


def is_benign_instance(kind: GlobalRef) -> bool:
    """Return whether an instance of ``kind`` is one that trainers write.

    Making an instance of a class that the file's author defined does nothing by itself. The standard library is another
    matter: ``map.__new__`` and ``bytes.__new__`` together run any function, so of it only what is known is benign.
    """
    name = str(kind)
    return name in BENIGN_CALLS or kind.module.partition(".")[0] not in _STANDARD_LIBRARY
