from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.artifacts import Profile, TensorSpec
from exporter.engine import format_profile, parse_profiles
from exporter.errors import ConfigError

IMAGE = TensorSpec("image", ("batch", 3, "height", "width"), "float32")
MASK = TensorSpec("mask", ("batch", "height"), "float32")
SCALE = TensorSpec("scale", (2,), "float32")
BATCH_ONLY = TensorSpec("image", ("batch", 1, 8, 8), "float32")


def test_a_profile_is_read():
    """One text is one profile; several inputs are joined; an input without dynamic axes is filled in."""
    text = "image:1x3x32x32, 4x3x64x64 ,8x3x128x96; mask:1x32,4x64,8x128"
    (profile,) = parse_profiles((text,), (IMAGE, MASK, SCALE), batch=32)
    assert profile.shapes == {
        "image": ((1, 3, 32, 32), (4, 3, 64, 64), (8, 3, 128, 96)),
        "mask": ((1, 32), (4, 64), (8, 128)),
        "scale": ((2,), (2,), (2,)),
    }


def test_several_texts_are_several_profiles():
    """Each text makes a profile, in order."""
    profiles = parse_profiles(("image:1x1x8x8,1x1x8x8,1x1x8x8", "image:2x1x8x8,8x1x8x8,64x1x8x8"), (BATCH_ONLY,), batch=32)
    assert [profile.shapes["image"][2][0] for profile in profiles] == [1, 64]


@pytest.mark.parametrize("batch", [1, 32])
def test_no_text_makes_one_profile(batch):
    """Without a text there is one profile: batch 1 at the least, and the batch asked for as optimal and largest."""
    profiles = parse_profiles((), (BATCH_ONLY, SCALE), batch=batch)
    assert profiles == (Profile({"image": ((1, 1, 8, 8), (batch, 1, 8, 8), (batch, 1, 8, 8)), "scale": ((2,), (2,), (2,))}),)


def test_names_with_colons_are_read():
    """A tensor name may hold colons, as names from TensorFlow do."""
    (profile,) = parse_profiles(("serving:0:1x1,2x1,3x1",), (TensorSpec("serving:0", ("n", 1), "float32"),), batch=1)
    assert profile.shapes == {"serving:0": ((1, 1), (2, 1), (3, 1))}


@pytest.mark.parametrize(
    ("text", "code", "fact", "words"),
    [
        pytest.param("", "E511", "expected", "name:min,opt,max", id="empty"),
        pytest.param("image", "E511", "expected", "name:min,opt,max", id="no colon"),
        pytest.param("image:1x1x8x8,2x1x8x8", "E511", "found", "1x1x8x8,2x1x8x8", id="two shapes"),
        pytest.param("image:1x1x8x8,ax1x8x8,2x1x8x8", "E511", "found", "ax1x8x8", id="no number"),
        pytest.param("image:1x1x8x8,-1x1x8x8,2x1x8x8", "E511", "found", "-1x1x8x8", id="negative"),
        pytest.param("image:1x1x8x8,²x1x8x8,2x1x8x8", "E511", "found", "x1x8x8", id="a digit that is no number"),
        pytest.param("imagge:1x1x8x8,1x1x8x8,1x1x8x8", "E512", "inputs", "image", id="misspelt"),
        pytest.param("image:1x8x8,1x8x8,1x8x8", "E513", "expected", "batchx1x8x8", id="rank"),
        pytest.param("image:1x3x8x8,1x3x8x8,1x3x8x8", "E513", "found", "1x3x8x8", id="fixed axis"),
        pytest.param("image:0x1x8x8,1x1x8x8,1x1x8x8", "E513", "found", "0x1x8x8", id="zero"),
        pytest.param("image:4x1x8x8,2x1x8x8,8x1x8x8", "E514", "found", "min 4, opt 2, max 8", id="opt below min"),
        pytest.param("image:1x1x8x8,16x1x8x8,8x1x8x8", "E514", "found", "min 1, opt 16, max 8", id="max below opt"),
        pytest.param("image:1x1x8x8,1x1x8x8,1x1x8x8;image:1x1x8x8,1x1x8x8,1x1x8x8", "E515", "input", "image", id="twice"),
    ],
)
def test_a_wrong_profile_is_a_usage_error(text, code, fact, words):
    """Whatever is wrong with a profile is said before a builder is started, with the text and what was expected."""
    with pytest.raises(ConfigError) as caught:
        parse_profiles((text,), (BATCH_ONLY,), batch=1)
    assert (caught.value.code, caught.value.exit_status) == (code, 2)
    assert words in caught.value.facts[fact]
    assert caught.value.facts["profile"] == text


def test_a_misspelt_input_has_near_misses():
    """A name that is nearly right is offered."""
    with pytest.raises(ConfigError) as caught:
        parse_profiles(("imgae:1x1x8x8,1x1x8x8,1x1x8x8",), (BATCH_ONLY,), batch=1)
    assert caught.value.help == "did you mean image?"


def test_an_input_that_is_left_out_is_named():
    """A dynamic input without shapes is an error; TensorRT itself would say so only after a while."""
    with pytest.raises(ConfigError, match="leaves out") as caught:
        parse_profiles(("image:1x3x8x8,1x3x8x8,1x3x8x8",), (IMAGE, MASK), batch=1)
    assert caught.value.code == "E515"
    assert caught.value.facts["missing"].startswith("mask")


def test_an_axis_of_two_inputs_has_one_size():
    """An axis with one name has the same sizes wherever it stands."""
    with pytest.raises(ConfigError, match="one axis different sizes") as caught:
        parse_profiles(("image:1x3x8x8,1x3x8x8,2x3x8x8;mask:1x8,1x8,4x8",), (IMAGE, MASK), batch=1)
    assert caught.value.facts["axis"] == "batch"


def test_the_samples_say_the_size_of_a_dynamic_axis():
    """Without a text, a dynamic axis beside the batch has the size that it has in the samples."""
    sizes = {"image": (3, 48, 64), "mask": (48,), "other": (1,)}
    (profile,) = parse_profiles((), (IMAGE, MASK, SCALE), batch=8, sizes=sizes)
    assert profile.shapes == {
        "image": ((1, 3, 48, 64), (8, 3, 48, 64), (8, 3, 48, 64)),
        "mask": ((1, 48), (8, 48), (8, 48)),
        "scale": ((2,), (2,), (2,)),
    }


def test_a_dynamic_axis_beside_the_batch_needs_a_profile():
    """Sizes that cannot be known are asked for, not guessed."""
    with pytest.raises(ConfigError, match="a profile is needed") as caught:
        parse_profiles((), (IMAGE,), batch=8)
    assert (caught.value.code, caught.value.facts["axis"]) == ("E516", "2 (height)")
    assert "--profile image:min,opt,max" in caught.value.help


@given(st.tuples(*[st.integers(1, 512)] * 3), st.tuples(*[st.integers(1, 512)] * 3))
def test_what_is_formatted_is_read_again(batches, heights):
    """Formatting and reading a profile give the profile, for every ordered choice of sizes."""
    shapes = tuple((n, 3, h, h) for n, h in zip(sorted(batches), sorted(heights), strict=True))
    profile = Profile({"image": shapes, "scale": ((2,), (2,), (2,))})
    assert parse_profiles((format_profile(profile),), (IMAGE, SCALE), batch=1) == (profile,)
