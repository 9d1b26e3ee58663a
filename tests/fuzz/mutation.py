"""Changes that know the formats: opcodes of a pickle, fields of a zip directory, entries of JSON, with lengths and checksums put right again.

A fuzzer that flips bits alone never gets past a CRC-32. Here the members of an archive are changed by what they are, and the
archive is built anew around them; sometimes a field of its directory then lies, as a crafted file's would.
"""

from __future__ import annotations

import json
import pickletools
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from tests.checkpoint.bundles import crc32c, masked
from tests.fuzz.parcels import MAGIC, pack, unpack
from tests.fuzz.words import GLOBALS, NUMBERS, TEXTS
from tests.fuzz.zips import Part, build, lie, split

__all__ = ["Mutator", "random_bytes"]

Raw = Callable[[bytes, random.Random], bytes]
_CODES = {opcode.name: opcode.code.encode("latin-1") for opcode in pickletools.opcodes}
_BLOCK = 512


def random_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes without knowing what they are; what the fuzzer's own mutation does better."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        action, at = rng.randrange(4), rng.randrange(len(content) + 1)
        if action == 0 and content:
            content[at % len(content)] ^= 1 << rng.randrange(8)
        elif action == 1:
            content[at:at] = rng.choice(TEXTS).encode("utf-8", "surrogatepass")[:40]
        elif action == 2:
            del content[at : at + rng.choice((1, 2, 4, 8, 100))]
        elif content:
            content[at : at + 8] = rng.choice(NUMBERS).to_bytes(17, "little", signed=True)[: rng.choice((1, 2, 4, 8))]
    return bytes(content)


class Mutator:
    """Changes an input by what it is; ``raw`` changes bytes that are nothing known."""

    def __init__(self, raw: Raw = random_bytes) -> None:
        self._raw = raw

    def __call__(self, data: bytes, rng: random.Random) -> bytes:
        """Return another input, made from ``data``."""
        if rng.random() < 0.08:
            return self._raw(data, rng)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = self._by_kind(data, rng)
        return data

    def _by_kind(self, data: bytes, rng: random.Random) -> bytes:
        if data.startswith(MAGIC):
            return self._parcel(data, rng)
        if data.startswith(b"PK\x03\x04"):
            parts = split(data)
            return self._zip(parts, rng) if parts else self._raw(data, rng)
        if data[257:262] == b"ustar":
            return self._tar(data, rng)
        if data[:1] == b"\x80" and b"\x02" <= data[1:2] <= b"\x05":
            return self._pickles(data, rng)
        if data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data):
            return self._safetensors(data, rng)
        if data.lstrip()[:1] in {b"{", b"["}:
            return self._json(data, rng)
        return self._raw(data, rng)

    # ---- containers of others

    def _parcel(self, data: bytes, rng: random.Random) -> bytes:
        files = unpack(data)
        if not files:
            return self._raw(data, rng)
        name = rng.choice(list(files))
        action = rng.random()
        if name.endswith(".index") and rng.random() < 0.8:
            files[name] = _sorted_table(files[name], self._raw, rng)
        elif action < 0.85:
            files[name] = self._by_kind(files[name], rng)
        elif action < 0.9:
            files[rng.choice(list(files))] = files[name]
        elif action < 0.95:
            files[rng.choice((name + "x", rng.choice(TEXTS)[:60], name.rpartition("/")[2]))] = files.pop(name)
        else:
            del files[name]
        return pack(files)

    def _zip(self, parts: list[Part], rng: random.Random) -> bytes:
        """Change members, then build the archive around them with right checksums."""
        chosen = rng.randrange(len(parts))
        part = parts[chosen]
        action = rng.random()
        if action < 0.75:
            weights = [8 if p.name.endswith((".pkl", ".json", ".h5", ".py")) else 1 for p in parts]
            part = rng.choices(parts, weights)[0]
            if part.is_compressed:
                part.content = zlib.compress(self._raw(part.unpacked, rng), wbits=-15)
            else:
                part.content = self._by_kind(part.content, rng)
        elif action < 0.8:
            parts.insert(rng.randrange(len(parts) + 1), Part(part.name, part.content, part.method))
        elif action < 0.85:
            part.name = rng.choice(
                (rng.choice(parts).name, part.name + "/..", rng.choice(TEXTS)[:60], f"{part.name.partition('/')[0]}/constants.pkl")
            )
        elif action < 0.9 and len(parts) > 1:
            del parts[chosen]
        elif action < 0.95:
            rng.shuffle(parts)
        content = build(parts, zip64=rng.random() < 0.1, padding=rng.choice((0, 0, 0, 7)))
        return lie(content, rng) if rng.random() < 0.12 else content

    def _tar(self, data: bytes, rng: random.Random) -> bytes:
        """Change a member or a field of its header, whose checksum is made right again."""
        blocks, position = [], 0
        while position + _BLOCK <= len(data) and data[position + 257 : position + 262] == b"ustar":
            digits = data[position + 124 : position + 136].strip(b" \0")
            size = int(digits, 8) if digits and not set(digits) - set(b"01234567") else 0
            end = position + _BLOCK + -(-size // _BLOCK) * _BLOCK
            blocks.append((bytearray(data[position : position + _BLOCK]), data[position + _BLOCK : position + _BLOCK + size]))
            position = end
        if not blocks:
            return self._raw(data, rng)
        index = rng.randrange(len(blocks))
        header, content = blocks[index]
        if rng.random() < 0.8:
            content = self._by_kind(content, rng)
            header[124:136] = b"%011o\0" % len(content)
        else:
            at = rng.choice((0, 124, 156, 257, 345, rng.randrange(_BLOCK)))
            header[at] = rng.randrange(256)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        blocks[index] = (header, content)
        whole = b"".join(bytes(head) + body + bytes(-len(body) % _BLOCK) for head, body in blocks)
        return whole + bytes(2 * _BLOCK)

    def _safetensors(self, data: bytes, rng: random.Random) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header, tail = data[8 : 8 + length], data[8 + length :]
        if rng.random() < 0.85:
            header = self._json(header, rng)
        else:
            tail = self._raw(tail, rng)
        return len(header).to_bytes(8, "little") + header + tail

    # ---- JSON

    def _json(self, data: bytes, rng: random.Random) -> bytes:
        try:
            table = json.loads(data)
        except (ValueError, RecursionError):
            return self._raw(data, rng)
        if rng.random() < 0.05:
            return data.replace(b'"', b'"a":0,"a":0,"', 1) if rng.random() < 0.5 else self._raw(data, rng)
        holders = _holders(table)
        if not holders:
            return self._raw(data, rng)
        holder, key = rng.choice(holders)
        action = rng.random()
        if action < 0.6:
            holder[key] = _value(holder[key], rng)
        elif action < 0.75:
            other, there = rng.choice(holders)
            holder[key] = other[there]
        elif action < 0.9 and isinstance(holder, dict):
            holder[rng.choice(TEXTS)[:60]] = holder.pop(key)
        else:
            del holder[key]
        try:
            return json.dumps(table).encode("utf-8", "surrogatepass")
        except (ValueError, RecursionError):  # it holds itself
            return data

    # ---- pickles

    def _pickles(self, data: bytes, rng: random.Random) -> bytes:
        """Change the opcodes of one of the pickles that follow one another."""
        spans = _pickle_spans(data)
        if not spans:
            return self._raw(data, rng)
        begin, end = rng.choice(spans)
        opcodes = _opcodes(data[begin:end])
        if not opcodes:
            return self._raw(data, rng)
        for _ in range(rng.choice((1, 1, 2, 3))):
            at = rng.randrange(len(opcodes))
            action = rng.random()
            if action < 0.35:
                opcodes[at] = _opcode_like(opcodes[at], rng)
            elif action < 0.55:
                opcodes.insert(at, _any_opcode(rng))
            elif action < 0.65:
                del opcodes[at : at + rng.choice((1, 1, 2, 5))]
            elif action < 0.75:
                opcodes[at:at] = opcodes[at : at + rng.choice((1, 3, 10, 40))]
            elif action < 0.85:
                other = rng.randrange(len(opcodes))
                opcodes[at], opcodes[other] = opcodes[other], opcodes[at]
            elif action < 0.95:
                other = rng.randrange(len(opcodes))
                opcodes[at:at] = opcodes[other : other + rng.choice((1, 4, 20))]
            else:
                opcodes[at:at] = [b"c" + rng.choice(GLOBALS).encode() + b"\n", b"(", b"X\x04\x00\x00\x00true", b"t", b"R"]
            if not opcodes:
                break
        return data[:begin] + b"".join(opcodes) + data[end:]


def _sorted_table(data: bytes, raw: Raw, rng: random.Random) -> bytes:
    """Change a block of a table of TensorFlow; every block ends in its kind and a checksum, which is made right again."""
    content = bytearray(data)
    begin = 0
    places = []
    for end in range(len(content) - 4):
        if content[end] == 0 and masked(crc32c(bytes(content[begin : end + 1]))) == int.from_bytes(content[end + 1 : end + 5], "little"):
            places.append((begin, end))
            begin = end + 5
    if places:
        begin, end = rng.choice(places)
        content[begin:end] = bytearray(raw(bytes(content[begin:end]), rng))[: end - begin].ljust(end - begin, b"\0")
        content[end + 1 : end + 5] = masked(crc32c(bytes(content[begin : end + 1]))).to_bytes(4, "little")
        return bytes(content)
    return raw(data, rng)


def _pickle_spans(data: bytes) -> list[tuple[int, int]]:
    """Return where pickles begin and end that stand one after the other, other bytes between them skipped."""
    spans: list[tuple[int, int]] = []
    position = 0
    while 0 <= position < len(data) and len(spans) < 64:
        end = _pickle_end(data, position)
        if end:
            spans.append((position, end))
        position = data.find(b"\x80\x02", max(end, position + 1))
    return spans


def _pickle_end(data: bytes, begin: int) -> int:
    try:
        *_, last = pickletools.genops(data[begin:])
    except (ValueError, IndexError, struct.error):
        return 0
    return begin + (last[2] or 0) + 1


def _opcodes(data: bytes) -> list[bytes]:
    """Return the pickle cut into opcodes with their arguments."""
    try:
        places = [position or 0 for _, _, position in pickletools.genops(data)]
    except (ValueError, IndexError, struct.error):
        return []
    return [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]


def _opcode_like(opcode: bytes, rng: random.Random) -> bytes:
    """Return an opcode of the same kind with another argument."""
    code = opcode[:1]
    if code in b"KMJ\x8a":
        return _integer(rng.choice(NUMBERS))
    if code in b"X\x8cU\x8d":
        return _text(rng.choice(TEXTS))
    if code == b"c":
        return b"c" + rng.choice(GLOBALS).encode() + b"\n"
    if code in b"qhrj\x94":
        return rng.choice((b"q", b"h")) + bytes([rng.randrange(256)])
    return _any_opcode(rng)


def _any_opcode(rng: random.Random) -> bytes:
    choice = rng.random()
    if choice < 0.5:
        return rng.choice([code for name, code in _CODES.items() if name in _PLAIN])
    if choice < 0.6:
        return _integer(rng.choice(NUMBERS))
    if choice < 0.7:
        return _text(rng.choice(TEXTS))
    if choice < 0.8:
        return b"c" + rng.choice(GLOBALS).encode() + b"\n"
    if choice < 0.9:
        return rng.choice((b"h", b"q")) + bytes([rng.randrange(64)])
    return rng.choice([*_CODES.values()]) + rng.randbytes(rng.choice((0, 1, 4, 8)))


_PLAIN = {name for name in _CODES if next(op for op in pickletools.opcodes if op.name == name).arg is None}


def _integer(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + len(encoded).to_bytes(4, "little") + encoded


def _holders(table: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key or index) below ``table``."""
    found: list[tuple[Any, Any]] = []
    todo = [table]
    while todo and len(found) < 4000:
        item = todo.pop()
        pairs = list(item.items()) if isinstance(item, dict) else list(enumerate(item)) if isinstance(item, list) else []
        found += [(item, key) for key, _ in pairs]
        todo += [value for _, value in pairs]
    return found


def _value(value: object, rng: random.Random) -> object:
    if isinstance(value, int) and rng.random() < 0.7:
        return rng.choice((value + 1, value - 1, -value, value * 2, rng.choice(NUMBERS)))
    if isinstance(value, str) and rng.random() < 0.7:
        return rng.choice(TEXTS)
    if isinstance(value, list) and rng.random() < 0.5:
        return [*value, *value[:1]] if rng.random() < 0.5 else value[1:]
    return rng.choice((None, True, 0, -1, 1.5, "", [], {}, [[]], {"a": 1}, rng.choice(NUMBERS), rng.choice(TEXTS), 1e308, float("nan")))
