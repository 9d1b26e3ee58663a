from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest

from exporter.trt_worker.protocol import MAX_HEADER_BYTES, ProtocolError, encode, pack_arrays, read_message, unpack_arrays


def reader(content: bytes):
    """Return a function that reads exactly so many bytes of ``content``."""
    file = io.BytesIO(content)

    def read_exact(count):
        got = file.read(count)
        if len(got) == count:
            return bytearray(got)
        if got:
            raise EOFError
        return None

    return read_exact


def frame(header: bytes, payload: bytes = b"", *, magic: bytes = b"EXW1", payload_size: int | None = None) -> bytes:
    """Return a frame made by hand."""
    return struct.pack("<4sIQ", magic, len(header), len(payload) if payload_size is None else payload_size) + header + payload


def test_what_is_encoded_is_read_again():
    """Header and buffers arrive as they were sent, several messages in a row."""
    content = b"".join(bytes(view) for view in [*encode({"type": "a", "n": 1}, [b"xyz", b""]), *encode({"type": "b"})])
    read_exact = reader(content)
    first, second, end = (read_message(read_exact) for _ in range(3))
    assert (first.type, first.header["n"], [bytes(b) for b in first.buffers]) == ("a", 1, [b"xyz", b""])
    assert (second.type, second.buffers, end) == ("b", (), None)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        pytest.param(b"INFO: loading engine...........", "starts with", id="a log line"),
        pytest.param(frame(b"{}", magic=b"EXW2"), "starts with", id="another magic"),
        pytest.param(struct.pack("<4sIQ", b"EXW1", MAX_HEADER_BYTES + 1, 0), "declares", id="a header too large to allocate"),
        pytest.param(struct.pack("<4sIQ", b"EXW1", 2, 1 << 60), "declares", id="a payload too large to allocate"),
        pytest.param(frame(b"{nonsense"), "not JSON", id="no JSON"),
        pytest.param(frame(b"[1]"), "not an object", id="no object"),
        pytest.param(frame(b'{"type":"a"}'), "add up", id="no sizes"),
        pytest.param(frame(json.dumps({"sizes": [2, 2]}).encode(), b"abc"), "add up", id="sizes and payload disagree"),
        pytest.param(frame(json.dumps({"sizes": [-1, 4]}).encode(), b"abc"), "add up", id="a negative size"),
        pytest.param(frame(json.dumps({"sizes": [True]}).encode(), b"a"), "add up", id="a boolean size"),
    ],
)
def test_what_is_no_message_is_refused(content, text):
    """Bytes that are no message are refused before anything of their declared size is allocated."""
    with pytest.raises(ProtocolError, match=text):
        read_message(reader(content))


@pytest.mark.parametrize("length", [3, 15, 18, 45, 48])
def test_an_end_inside_a_message_is_an_end(length):
    """A pipe that ends in the middle of a message raises EOFError, never a short buffer."""
    whole = b"".join(bytes(view) for view in encode({"type": "result", "id": 1}, [b"0123456789"]))
    assert length < len(whole)
    with pytest.raises(EOFError):
        read_message(reader(whole[:length]))


def test_arrays_keep_dtype_shape_and_bits():
    """Arrays of any layout arrive in C order with every bit as it was, scalars and empty ones too."""
    rng = np.random.default_rng(7)
    arrays = {
        "contiguous": rng.standard_normal((2, 3), dtype=np.float32),
        "transposed": rng.integers(0, 9, (4, 5)).T,
        "nan": np.array([np.nan, -0.0, np.inf]),
        "scalar": np.array(3, np.int32),
        "empty": np.empty((0, 7), np.float16),
        "bool": np.array([True, False]),
    }
    specs, buffers = pack_arrays(arrays)
    back = unpack_arrays(json.loads(json.dumps(specs)), [memoryview(bytes(buffer)) for buffer in buffers])
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert back[name].tobytes() == np.ascontiguousarray(array).tobytes()


@pytest.mark.parametrize(
    "spec",
    [{"name": "x", "dtype": "float32", "shape": [3]}, {"name": "x", "dtype": "nonsense", "shape": [2]}, {"name": "x", "shape": [2]}],
    ids=["size", "dtype", "missing key"],
)
def test_an_array_that_does_not_fit_its_declaration_is_refused(spec):
    """Buffer, dtype and shape have to agree."""
    with pytest.raises(ProtocolError):
        unpack_arrays([spec], [memoryview(bytes(8))])
