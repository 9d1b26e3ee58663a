"""What a fuzzer should try: opcodes, globals and keys of checkpoints, numbers at the edges, names that mislead."""

from __future__ import annotations

import pickletools
from collections.abc import Iterator

from exporter.checkpoint.pickle_benign import BENIGN_CALLS
from exporter.checkpoint.pickle_meanings import MEANINGS, STORAGE_DTYPES
from exporter.weights.layouts import LAYOUTS

__all__ = ["GLOBALS", "NUMBERS", "TEXTS", "dictionary"]

_HOSTILE = (
    "posix.system",
    "builtins.eval",
    "builtins.getattr",
    "builtins.open",
    "os.system",
    "subprocess.Popen",
    "copyreg.__newobj__",
    "sys.modules",
)
_LOADERS = ("torch.storage._load_from_bytes", "pickle.loads", "torch.jit._pickle.build_intlist", "torch.float32", "torch.nn.modules.linear.Linear")
GLOBALS = ["\n".join(name.rpartition(".")[::2]) for name in sorted({*BENIGN_CALLS, *MEANINGS, *STORAGE_DTYPES, *_HOSTILE, *_LOADERS})]
"""``module newline name``, as GLOBAL writes them."""

NUMBERS = [
    -1,
    0,
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    65,
    127,
    128,
    255,
    256,
    4096,
    65535,
    1 << 31,
    -(1 << 31),
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    1 << 64,
]

_LABELS = sorted({part for layout in LAYOUTS for key in layout.looked_at for part in (key, *key.split("."), *key.split("/"))})
_KEYS = (
    "model",
    "state_dict",
    "optimizer",
    "param_groups",
    "state",
    "decay",
    "num_updates",
    "updates",
    "step",
    "n_averaged",
    "module",
    "meta",
    "args",
)
_MODULES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
    "yaml",
    "storage",
    "cpu",
    "little_endian",
    "weight_map",
    "total_size",
)
_NAMES = (
    "__metadata__",
    "dtype",
    "shape",
    "data_offsets",
    "F32",
    "BF16",
    "I64",
    "C64",
    "latest",
    ".metadata",
    "__0_0.distcp",
    "weights",
    "layers",
    "vars",
)
_MISLEADING = (
    "",
    ".",
    "..",
    "../x",
    "/etc/passwd",
    "a\\b",
    "a\x1b[2J",
    "a\nb",
    "\u202etxt.exe",
    "\ud800",
    "module.",
    "module.module.w",
    "_orig_mod.w",
)
TEXTS = [*_LABELS, *_KEYS, *_MODULES, *_NAMES, *_MISLEADING, "x" * 300, "module." * 40, "conv.weight", "bn.running_mean", "bn.num_batches_tracked"]


def dictionary() -> Iterator[str]:
    """Yield the lines of a libFuzzer dictionary."""
    opcodes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    magics = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"\x89HDF\r\n\x1a\n", b"ustar", b"\x80\x02", b"\x80\x04\x95"]
    words = [*opcodes, *magics, *(b"c" + name.encode() + b"\n" for name in GLOBALS), *(t.encode("utf-8", "surrogatepass") for t in TEXTS if t)]
    for word in dict.fromkeys(word for word in words if len(word) < 64):
        yield '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"'
