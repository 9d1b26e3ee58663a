"""What is fed: recorded, random and edge samples, at the batch sizes asked for, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.artifacts import TensorSpec
from exporter.config import ParityConfig, SamplesConfig
from exporter.errors import SampleError
from exporter.samples import Samples
from exporter.verify import digest_of_feeds, latency_feed, make_feeds

INPUTS = (TensorSpec("x", ("batch", 2), "float32"), TensorSpec("index", ("batch",), "int64"))
RECORDED = Samples({"x": np.linspace(-1, 3, 90, dtype=np.float32).reshape(45, 2), "index": np.arange(45) % 7 + 2}, None)


def feeds_by_name(samples=RECORDED, inputs=INPUTS, parity=None, **settings):
    """Feed name -> feed."""
    return {named.name: named for named in make_feeds(samples, inputs, SamplesConfig(**settings), parity or ParityConfig())}


def test_recorded_samples_come_at_every_batch_size():
    """All rows at the largest batch size, 32 at the other; the last batch is filled from the start."""
    feeds = feeds_by_name()
    large, small = feeds["45 samples, batch 32"], feeds["32 samples, batch 1"]
    assert (large.rows, large.batch, large.num_samples, large.kind) == (64, 32, 45, "recorded")
    np.testing.assert_array_equal(large.feed["x"][45:], RECORDED.inputs["x"][:19])
    assert (small.rows, small.batch, len(list(small.chunks()))) == (32, 1, 32)
    assert [len(chunk["x"]) for chunk in large.chunks()] == [32, 32]


def test_limit_cuts_the_recorded_samples():
    """``[samples] limit`` is the number of distinct rows."""
    assert feeds_by_name(limit=10)["10 samples, batch 32"].num_samples == 10


def test_random_samples_stay_in_the_range_of_the_recorded_ones():
    """Floats between the lowest and highest value, integers too, so that an index stays an index."""
    random = feeds_by_name(random=500)["500 random, batch 500"]
    assert random.feed["x"].min() >= -1
    assert random.feed["x"].max() <= 3
    assert random.feed["x"].std() > 0.5
    assert set(random.feed["index"]) == set(range(2, 9))


def test_edge_samples():
    """Zeros, the lowest and highest value, ten times the range; integers stay in range."""
    feeds = feeds_by_name()
    assert [named.name for named in feeds.values() if named.kind == "edge"] == ["zeros", "constant, lowest", "constant, highest", "10 x the range"]
    np.testing.assert_array_equal(feeds["zeros"].feed["x"], np.zeros((1, 2), np.float32))
    np.testing.assert_array_equal(feeds["zeros"].feed["index"], [2])
    np.testing.assert_array_equal(feeds["constant, highest"].feed["x"], np.full((1, 2), 3, np.float32))
    assert np.abs(feeds["10 x the range"].feed["x"]).max() > 5
    assert feeds["10 x the range"].feed["index"].max() <= 8


def test_feeds_are_seeded():
    """The same settings give the same bytes; another seed gives others."""
    first, second = (digest_of_feeds(make_feeds(RECORDED, INPUTS, SamplesConfig(seed=seed), ParityConfig())) for seed in (3, 3))
    other = digest_of_feeds(make_feeds(RECORDED, INPUTS, SamplesConfig(seed=4), ParityConfig()))
    assert first == second != other


def test_model_with_a_fixed_batch_is_fed_that_batch():
    """A static first axis overrides ``[parity] batches``."""
    inputs = (TensorSpec("x", (8, 2), "float32"), TensorSpec("index", (8,), "int64"))
    feeds = feeds_by_name(inputs=inputs)
    assert {named.batch for named in feeds.values()} == {8}
    assert all(named.rows % 8 == 0 for named in feeds.values())


def test_without_samples_there_are_random_and_edge_feeds_only():
    """Standard normal numbers; whoever reads the verdict is told."""
    feeds = feeds_by_name(samples=None)
    assert {named.kind for named in feeds.values()} == {"random", "edge"}


@pytest.mark.parametrize(
    ("samples", "inputs", "settings", "code"),
    [
        pytest.param(Samples({"y": RECORDED.inputs["x"]}, None), INPUTS, {}, "E611", id="other-names"),
        pytest.param(Samples({**RECORDED.inputs, "x": np.zeros((45, 2))}, None), INPUTS, {}, "E613", id="other-dtype"),
        pytest.param(None, INPUTS, {"required": True}, "E615", id="samples-required"),
        pytest.param(None, (TensorSpec("x", ("batch", 3, "height"), "float32"),), {}, "E616", id="unknown-size"),
        pytest.param(None, INPUTS, {"random": 0, "edge": False}, "E617", id="nothing"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(samples, inputs, settings, code):
    """Nothing is cast, renamed or made up."""
    with pytest.raises(SampleError) as caught:
        make_feeds(samples, inputs, SamplesConfig(**settings), ParityConfig())
    assert caught.value.code == code


def test_latency_feed_repeats_rows_to_fill_the_batch():
    """A batch larger than the samples is filled from the start."""
    feed = latency_feed(RECORDED, INPUTS, SamplesConfig(), batch=50)
    np.testing.assert_array_equal(feed["x"][45:], RECORDED.inputs["x"][:5])
    assert len(latency_feed(None, INPUTS, SamplesConfig(), batch=5)["x"]) == 5
