"""Small files that would take much time or memory, each as the pickle of a torch file or as a whole file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable

__all__ = ["FILES", "PICKLES"]

PROTO2 = b"\x80\x02"
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00K\x01\x85K\x01\x85\x89}tR"
"""A tensor of one element; the storage 0 has four bytes."""
ADAM = b"X\x0c\x00\x00\x00param_groups]"
"""An entry that makes a dict look like an optimizer's."""


def text(value: str) -> bytes:
    """Push text."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def put(index: int) -> bytes:
    """Remember the top of the stack."""
    return b"r" + struct.pack("<I", index)


def get(index: int) -> bytes:
    """Push what was remembered."""
    return b"j" + struct.pack("<I", index)


def entries(count: int, value: bytes, prefix: str = "k") -> bytes:
    """Return the items of a dict with ``count`` keys and one value, behind a mark."""
    return b"(" + b"".join(text(f"{prefix}{i}") + value for i in range(count))


def tuples(levels: int, width: int) -> bytes:
    """Push a tuple of tuples of tuples, all of a level the same one: small as a pickle, huge when it is walked."""
    pushed = b"K\x01" + put(0) + b"0"
    for level in range(levels):
        pushed += b"(" + get(level) * width + b"t" + put(level + 1) + b"0"
    return pushed + get(levels)


def frozensets(levels: int) -> bytes:
    """Push a frozenset of two frozensets of two ...; two such are equal only after all of both was compared."""
    pushed = b"\x80\x04"
    for level in range(levels):
        for side in (0, 1):
            inner = b"K" + bytes([side]) if level == 0 else get(2 * level - 2) + get(2 * level - 1) + (b"K\x02" if side else b"")
            pushed += b"(" + inner + b"\x91" + put(2 * level + side) + b"0"
    return pushed + get(2 * levels - 1)


def shared(count: int, size: int) -> bytes:
    """A state dict of ``size`` tensors that stands under ``count`` keys: each layout looks into each of them."""
    state = b"}" + put(1) + entries(size, get(0), "module.w") + text("n_averaged") + get(0) + b"u0"
    return PROTO2 + TENSOR + put(0) + b"0" + state + b"}" + entries(count, get(1)) + b"u."


def optimizers(count: int, size: int) -> bytes:
    """``count`` optimizers with one and the same state, of ``size`` parameters."""
    state = b"}" + put(1) + entries(size, b"}" + text("exp_avg") + get(0) + b"s", "p") + b"u0"
    each = b"}(" + ADAM + text("state") + get(1) + b"u"
    return PROTO2 + TENSOR + put(0) + b"0" + state + b"}" + entries(count, each) + b"u."


def modules(count: int, size: int) -> bytes:
    """A pickled module with ``count`` submodules, which share one table of ``size`` parameters."""
    new = b"ctorch.nn.modules.module\nModule\n)\x81"
    table = b"}" + put(1) + entries(size, get(0), "p") + b"u0"
    leaf = new + b"}(" + text("_parameters") + get(1) + text("_modules") + b"}ub" + put(2) + b"0"
    root = new + b"}(" + text("_parameters") + b"}" + text("_modules") + b"}" + entries(count, get(2), "m") + b"uub"
    return PROTO2 + TENSOR + put(0) + b"0" + table + leaf + b"}" + text("model") + root + b"s."


def schedules(count: int) -> bytes:
    """``count`` averages whose schedules take a million steps each to add up."""
    counters = text("decay") + b"G" + struct.pack(">d", 1 - 1e-12) + text("min_decay") + b"G" + struct.pack(">d", 0.99999)
    warm = text("use_ema_warmup") + b"\x88" + text("inv_gamma") + b"G" + struct.pack(">d", 1e18) + text("power") + b"G" + struct.pack(">d", 0.5)
    steps = text("optimization_step") + b"J\xff\xff\xff\x7f" + text("update_after_step") + b"K\x00"
    each = b"}(" + text("shadow_params") + b"]" + get(0) + b"a" + counters + warm + steps + b"u"
    return PROTO2 + TENSOR + put(0) + b"0}" + entries(count, each) + b"u."


def tuple_key_collisions(count: int) -> bytes:
    """Pairs of integers that have the same hash: the hash of a tuple is public, and can be solved for its last number."""
    mask, p1, p2, p5 = (1 << 64) - 1, 11400714785074694791, 14029467366897019727, 2870177450012600261
    rotate = lambda x: ((x << 31) | (x >> 33)) & mask  # noqa: E731
    unrotate = lambda x: ((x >> 31) | (x << 33)) & mask  # noqa: E731
    inverse1, inverse2 = pow(p1, -1, 1 << 64), pow(p2, -1, 1 << 64)
    target, found, number = 12345, [], 0
    while len(found) < count:
        number += 1
        first = rotate((p5 + number * p2) & mask) * p1 & mask
        lane = (unrotate(target * inverse1 & mask) - first) * inverse2 & mask
        if lane < (1 << 61) - 1:
            found.append((number, lane))
    assert len({hash(pair) for pair in found}) == 1
    pairs = b"".join(b"\x8a\x04" + a.to_bytes(4, "little") + b"\x8a\x08" + b.to_bytes(8, "little") + b"\x86N" for a, b in found)
    return PROTO2 + b"}(" + pairs + b"u."


def complex_key_collisions(count: int) -> bytes:
    """Complex numbers ``-1000003 b + b i``: all of them have the hash 0."""
    number = b"cbuiltins\ncomplex\n" + put(0) + b"0"
    keys = b"".join(get(0) + b"G" + struct.pack(">d", -1000003.0 * b) + b"G" + struct.pack(">d", float(b)) + b"\x86RN" for b in range(1, count + 1))
    return PROTO2 + number + b"}(" + keys + b"u."


BIG_KEY = "k" * 1_000_000
PICKLES: dict[str, Callable[[], bytes]] = {
    "lists, one for every byte": lambda: PROTO2 + b"(" + b"]" * 20_000_000 + b"t.",
    "marks without end": lambda: PROTO2 + b"(" * 30_000_000 + b".",
    "a number of many digits": lambda: PROTO2 + b"L" + b"9" * 5_000_000 + b"L\n.",
    "a number of many bytes": lambda: PROTO2 + b"\x8b" + struct.pack("<i", 20_000_000) + b"\x7f" * 20_000_000 + b".",
    "a key of shared tuples": lambda: PROTO2 + b"}" + tuples(6, 2000) + b"Ns.",
    "two equal keys of frozensets": lambda: PROTO2 + b"}(" + frozensets(28) + b"N" + frozensets(28) + b"Nu.",
    "keys with one hash: pairs": lambda: tuple_key_collisions(60_000),
    "keys with one hash: complex numbers": lambda: complex_key_collisions(60_000),
    "a long key above many leaves": lambda: PROTO2 + b"}" + text(BIG_KEY) + b"(" + b"N" * 300_000 + b"ls.",
    "a long key above calls": lambda: PROTO2 + b"}" + text(BIG_KEY) + b"(" + b"N" * 300_000 + b"cposix\nsystem\n)Rls.",
    "one long list in many places": lambda: PROTO2 + b"(" + b"N" * 30_000 + b"l" + put(0) + b"0}" + entries(30_000, get(0)) + b"u.",
    "a state dict under many keys": lambda: shared(30_000, 30_000),
    "optimizers with one state": lambda: optimizers(20_000, 20_000),
    "modules with one table of parameters": lambda: modules(30_000, 30_000),
    "a name of many prefixes": lambda: PROTO2 + b"}" + text("model") + b"}" + text("module." * 400_000 + "w") + TENSOR + b"ss.",
    "names that meet": lambda: (
        PROTO2 + TENSOR + put(0) + b"0}" + text("model") + b"}" + entries(60_000, get(0)) + text("_orig_mod.k1") + get(0) + b"us."
    ),
    "schedules that add up slowly": lambda: schedules(60),
    "copies of a dict": lambda: (
        PROTO2 + b"}" + entries(60_000, b"N") + b"u" + put(0) + b"0(" + (b"ccollections\nOrderedDict\n" + get(0) + b"\x85R") * 20_000 + b"t."
    ),
}
"""What it is -> the pickle; the archive around it has one storage, ``0``, of four bytes."""


def safetensors(header: bytes) -> bytes:
    """Return a safetensors file without tensors' bytes."""
    return len(header).to_bytes(8, "little") + header


FILES: dict[str, Callable[[], bytes]] = {
    "safetensors: a header of empty lists": lambda: safetensors(b'{"a":[' + b"[]," * 20_000_000 + b"[]]}"),
    "safetensors: a deep header": lambda: safetensors(b'{"a":' + b"[" * 5_000_000 + b"]" * 5_000_000 + b"}"),
    "safetensors: one long number": lambda: safetensors(b'{"a":' + b"9" * 50_000_000 + b"}"),
    "safetensors: a long name": lambda: safetensors(b'{"' + b"n" * 90_000_000 + b'":1}'),
    "index: empty lists": lambda: b'{"weight_map":{"a":[' + b"[]," * 20_000_000 + b"[]]}}",
    "index: many shards": lambda: json.dumps({"weight_map": {f"w{i}": f"s{i}.safetensors" for i in range(400_000)}}).encode(),
    "pickle: lists, one for every byte": lambda: b"\x80\x02(" + b"]" * 20_000_000 + b"t.",
    "pickle: a line without an end": lambda: b"\x80\x02c" + b"a" * 60_000_000,
}
"""What it is -> the whole file."""
