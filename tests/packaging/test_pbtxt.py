"""The text format: what is written is what protobuf reads, and what others write is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.packaging.pbtxt import PbtxtError, Word, format_message, parse_message


def test_what_people_write_is_read():
    """Comments, either bracket, either quote, separators, lists, joined strings and escapes are read."""
    text = """
    # a comment
    name: 'digits' ; max_batch_size : 8,
    input [ { name: "a" dims: [ 1, -1 ] }, { name: "b" dims: 3 dims: 4 } ]
    instance_group < kind: KIND_GPU >
    parameters { key: "a\\"b" "\\n\\303\\251\\x41" value: { string_value: "#" } }
    """
    message = parse_message(text)
    assert message["name"] == ["digits"]
    assert [(tensor["name"], tensor["dims"]) for tensor in message["input"]] == [(["a"], ["1", "-1"]), (["b"], ["3", "4"])]
    assert message["instance_group"] == [{"kind": ["KIND_GPU"]}]
    assert message["parameters"][0]["key"] == ['a"b\néA']


@pytest.mark.parametrize("text", ["a: ", "a: {", "a: [1", 'a: "x', "a 1", ": 1", "a: 1 }", "a: [1 2]", 'a: "\\q"', "a: ]", "x" + "{a" * 4000])
def test_what_is_no_text_format_is_an_error(text):
    """A text that is not in the format is an error of its own, however deep it goes."""
    with pytest.raises(PbtxtError):
        parse_message(text)


@given(st.text())
def test_every_text_comes_back(schema, text):
    """Protobuf, and our own reader, read the text that was written, whatever is in it."""
    from google.protobuf import text_format

    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
    written = format_message({"name": text, "max_batch_size": 3, "input": [{"name": text, "dims": [1, -1], "data_type": Word("TYPE_FP32")}]})
    config = text_format.Parse(written, schema.ModelConfig())
    assert (config.name, config.input[0].name, list(config.input[0].dims)) == (text, text, [1, -1])
    read = parse_message(written)
    assert (read["name"], read["input"][0]["dims"]) == ([text], ["1", "-1"])
