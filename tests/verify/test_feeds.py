"""What is fed: recorded, random and edge samples, at the batch sizes asked for, the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.artifacts import Profile, TensorSpec
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


def profile(*batches: int, rows=(2,)) -> Profile:
    """A profile of three batch sizes."""
    return Profile({"x": tuple((batch, *rows) for batch in batches), "index": tuple((batch,) for batch in batches)})


def test_the_corners_of_profiles_are_fed_with_recorded_samples():
    """The smallest, optimal and largest batch of each profile come beside those of the configuration, all samples at the largest."""
    feeds = make_feeds(RECORDED, INPUTS, SamplesConfig(), ParityConfig(), profiles=(profile(1, 8, 8), profile(9, 40, 40)))
    assert [(named.batch, named.num_samples) for named in feeds if named.kind == "recorded"] == [(40, 45), (32, 32), (9, 32), (8, 32), (1, 32)]


def test_a_profile_that_is_fed_anyway_changes_nothing():
    """A profile whose corners are the configured batches gives the same bytes as none."""
    plain = make_feeds(RECORDED, INPUTS, SamplesConfig(), ParityConfig())
    assert digest_of_feeds(make_feeds(RECORDED, INPUTS, SamplesConfig(), ParityConfig(), profiles=(profile(1, 32, 32),))) == digest_of_feeds(plain)


def test_corners_without_samples_of_that_shape_are_random():
    """Where no sample has the shape of a corner, random values in the range of the samples have it."""
    inputs = (TensorSpec("x", ("batch", "width"), "float32"), TensorSpec("index", ("batch",), "int64"))
    wide = Profile({"x": ((1, 2), (4, 2), (4, 16)), "index": ((1,), (4,), (4,))})
    feeds = {named.name: named for named in make_feeds(RECORDED, inputs, SamplesConfig(), ParityConfig(), profiles=(wide,))}
    corner = feeds["random, x 4x16; index 4"]
    assert (corner.kind, corner.batch, corner.feed["x"].shape) == ("random", 4, (4, 16))
    assert corner.feed["x"].min() >= -1
    assert corner.feed["x"].max() <= 3
    assert "32 samples, batch 4" in feeds


def test_random_and_edge_samples_come_in_batches_that_a_profile_takes():
    """An engine that begins at batch 24 gets its random and edge samples in batches of 24."""
    feeds = make_feeds(None, INPUTS, SamplesConfig(), ParityConfig(), profiles=(profile(24, 32, 64),))
    assert {named.batch for named in feeds} == {24, 32, 64}
    assert all(named.rows % named.batch == 0 for named in feeds)


def test_a_profile_says_the_size_of_an_axis():
    """Without samples, a dynamic axis has the size that the first profile is tuned for, in parity and in the race."""
    inputs = (TensorSpec("x", ("batch", "width"), "float32"),)
    profiles = (Profile({"x": ((1, 4), (8, 6), (8, 9))}),)
    feeds = make_feeds(None, inputs, SamplesConfig(), ParityConfig(), profiles=profiles)
    assert {named.feed["x"].shape[1] for named in feeds} == {4, 6, 9}
    assert latency_feed(None, inputs, SamplesConfig(), batch=3, profiles=profiles)["x"].shape == (3, 6)
