"""Example inputs come from the configuration or the samples; the identity changes when the code may have changed."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from exporter.config import InputConfig, ModelConfig
from exporter.errors import ConfigError
from exporter.factories import example_inputs, model_identity
from exporter.samples import Samples


def test_inputs_from_samples():
    """Each array is an input with batch 2; floating arrays become float32, others keep their dtype."""
    samples = Samples({"image": np.zeros((5, 1, 8, 8)), "ids": np.zeros((5, 3), np.int64)}, None)
    assert [(entry.name, entry.shape, entry.dtype) for entry in example_inputs(ModelConfig(), samples)] == [
        ("image", (2, 1, 8, 8), "float32"),
        ("ids", (2, 3), "int64"),
    ]


def test_configured_inputs_win_and_a_dynamic_batch_of_one_becomes_two():
    """A tracer takes size 1 for a constant, so a free batch axis is traced with 2; a fixed one stays."""
    free, fixed = InputConfig(name="a", shape=(1, 3)), InputConfig(name="b", shape=(1, 3), dynamic={"1": "length"})
    got = example_inputs(ModelConfig(inputs=(free, fixed)), Samples({"x": np.zeros((5, 1))}, None))
    assert [entry.shape for entry in got] == [(2, 3), (1, 3)]


def test_nothing_known_is_an_error_with_both_ways_out():
    """Without inputs and samples the help shows how to give either."""
    with pytest.raises(ConfigError, match="E311") as caught:
        example_inputs(ModelConfig(), None)
    assert "samples.npz" in caught.value.help
    assert "[[model.inputs]]" in caught.value.help


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": (2, 0, 3)},
        {"shape": ()},
        {"shape": (2, 3), "dtype": "float31"},
        {"shape": (2, 3), "dynamic": {"2": "x"}},
        {"shape": (2, 3), "dynamic": {"batch": "x"}},
    ],
    ids=["empty axis", "no axis", "dtype", "axis too large", "axis is no number"],
)
def test_wrong_inputs_are_refused(entry):
    """A wrong shape, dtype or axis is named by the input."""
    with pytest.raises(ConfigError, match="E312") as caught:
        example_inputs(ModelConfig(inputs=(InputConfig(name="image", **entry),)), None)
    assert "image" in caught.value.facts["at"]


def test_two_inputs_of_one_name_are_refused():
    """Names are what inputs are matched by."""
    twice = InputConfig(name="x", shape=(2, 3))
    with pytest.raises(ConfigError, match="E312"):
        example_inputs(ModelConfig(inputs=(twice, twice)), None)


def test_identity_follows_the_code_and_the_arguments(tmp_path):
    """It changes with the file, with a file beside it, and with the arguments; else it is the same."""
    (tmp_path / "net.py").write_text("a = 1\n")
    config = ModelConfig(factory="net.py:build")
    first = model_identity(config, base=tmp_path)
    assert model_identity(config, base=tmp_path) == first
    seen = {first, model_identity(ModelConfig(factory="net.py:build", arguments={"width": 2}), base=tmp_path)}
    (tmp_path / "blocks.py").write_text("b = 1\n")
    seen.add(model_identity(config, base=tmp_path))
    (tmp_path / "net.py").write_text("a = 2\n")
    seen.add(model_identity(config, base=tmp_path))
    assert len(seen) == 4


def test_identity_of_a_library_is_its_version(tmp_path):
    """A library's model is known by the library's version, or that it is not there."""
    assert "timm" in json.loads(model_identity(ModelConfig(factory="timm:resnet18"), base=tmp_path))["code"]


def test_identity_of_a_missing_file(tmp_path):
    """There is no identity of a file that is not there."""
    with pytest.raises(ConfigError, match="E303"):
        model_identity(ModelConfig(factory="net.py:build"), base=tmp_path)


def test_neither_needs_torch(repository):
    """Inputs, identity and cache keys are known before torch is imported."""
    code = (
        "import sys; from pathlib import Path; from exporter.config import *; from exporter.factories import *; "
        "from exporter.graph import graph_key; from exporter.onnx_export import onnx_key; from exporter.artifacts import Digest; "
        "c = ModelConfig(factory='model.py:build', inputs=(InputConfig(name='x', shape=(2, 3)),)); "
        "i = model_identity(c, base=Path('fixtures/digits')); x = example_inputs(c, None); "
        "graph_key(Digest('0'), i, x, (), FoldConfig()); onnx_key(Digest('0'), OnnxConfig()); "
        "print(sorted({'torch', 'onnx', 'onnxscript'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=repository, text=True, capture_output=True, check=True).stdout.strip() == "[]"
