"""The runner of engines under parity and in a race, on a stand-in for TensorRT and the GPU (see ``tests/contract``)."""

from __future__ import annotations

import numpy as np
import pytest

from exporter.artifacts import Outcome, TensorSpec
from exporter.config import LatencyConfig, ParityConfig
from exporter.engine import build_engine, parse_profiles
from exporter.errors import EngineBuildError
from exporter.runners import TensorrtRunner
from exporter.verify import NamedFeed, compare, measure_own_error, measure_reference, race

FEEDS = tuple(
    NamedFeed(f"{batch} samples", "recorded", {"image": np.random.default_rng(batch).random((batch, 1, 8, 8), np.float32)}, batch, batch)
    for batch in (4, 1)
)
WHOLE = TensorSpec("logits", ("batch", 10), "int64")


@pytest.fixture
def make_plan(config, make_model, tmp_path):
    """Return a function that builds a plan."""

    def make(name="a", **settings):
        model = make_model(name.encode(), **settings)
        return build_engine(model, tmp_path / f"{name}.plan", config, parse_profiles((), model.inputs, batch=32), key="0" * 64)

    return make


class Sums:
    """What the stand-in's network computes, in NumPy."""

    device, threads, load_ms = "cpu", 1, 0.0

    def __init__(self, name, precision, dtype) -> None:
        self.name, self.precision, self.dtype = name, precision, dtype

    def infer(self, feed):
        image = feed["image"].astype(self.precision)
        return {"logits": (image.reshape(len(image), -1).sum(1)[:, None] * np.arange(1, 11)).astype(self.dtype)}


def judged(runner, dtype):
    """Return the verdict on a runner."""
    reference = measure_reference(Sums("reference", "float64", dtype or "float64"), FEEDS)
    return compare(reference, measure_own_error(reference, Sums("unfused", "float32", dtype or "float32")), runner, ParityConfig())


def test_a_verdict_says_that_every_call_was_run_twice(make_plan, config):
    """The same bits both times, in both batches."""
    with TensorrtRunner(make_plan(), config) as runner:
        verdict = judged(runner, "")
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert verdict.evidence.repeats == "each of 2 calls run twice: the same bits"


def test_a_call_that_is_not_the_same_twice_is_said(make_plan, config, scenario):
    """An engine whose result changes from call to call is named with the number of elements."""
    scenario(unsteady=True)
    with TensorrtRunner(make_plan(), config) as runner:
        assert judged(runner, "").evidence.repeats == "each of 2 calls run twice: 50 elements of logits do not have the same bits"


def test_whole_numbers_that_nobody_wrote_fail(make_plan, config, scenario):
    """Elements of a whole-numbered output that the engine leaves out fail, though what stands there is the right number."""
    scenario(row_unwritten=True, engine={"output_dtype": "INT64"})
    plan = make_plan(outputs=(WHOLE,))
    with TensorrtRunner(plan, config) as runner:
        reference = measure_reference(Minus("reference", "float64", "int64"), FEEDS)
        verdict = compare(reference, measure_own_error(reference, Minus("unfused", "float32", "int64")), runner, ParityConfig())
    assert all(parity.outcome is Outcome.PASS for parity in verdict.evidence.outputs)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.reason == "not written by the candidate: 20 elements of logits over 2 calls"


class Minus(Sums):
    """The same, with -1 in the last row, as the bytes are that outputs are filled with."""

    def infer(self, feed):
        outputs = super().infer(feed)
        outputs["logits"][-1] = -1
        return outputs


def test_two_engines_race_in_two_processes(make_plan, config):
    """Blocks alternate between two workers, each with a graph of its own; the evidence says how calls were launched and by which clock."""
    one, other = make_plan("one"), make_plan("other")
    blocks = []
    with TensorrtRunner(one, config, name="one") as first, TensorrtRunner(other, config, name="other") as second:
        assert first._worker.pid != second._worker.pid
        for runner in (first, second):
            runner.prepare = _noting(runner, blocks)
        verdict = race(first, second, FEEDS[0].feed, LatencyConfig(rounds=8, block_ms=0.5, warmup_ms=5, margin=1e6))
    evidence = verdict.evidence
    assert (evidence.launch, evidence.reference_launch, evidence.clock) == ("cuda graph", "cuda graph", "cuda events")
    assert any("launched by cuda graph" in remark for remark in evidence.remarks)
    assert not any("different launches" in remark for remark in evidence.remarks)
    rounds = [blocks[index : index + 2] for index in range(len(blocks) - 2 * evidence.rounds, len(blocks), 2)]
    assert all(set(pair) == {"one", "other"} for pair in rounds)
    assert ["one", "other"] in rounds
    assert ["other", "one"] in rounds


def _noting(runner, blocks):
    """Return ``runner.prepare`` whose calls note whose turn it is."""
    prepare = runner.prepare

    def noting(feed):
        call = prepare(feed)
        run_block = call.run_block

        def run(iterations):
            blocks.append(runner.name)
            return run_block(iterations)

        call.run_block = run
        return call

    return noting


def test_an_engine_that_cannot_be_captured_races_by_plain_calls(make_plan, config, scenario):
    """The evidence says why there is no graph, and that the contestants were launched in different ways."""
    plan = make_plan()
    with TensorrtRunner(plan, config, name="captured") as reference:
        scenario(capture_refused=True)
        with TensorrtRunner(plan, config) as runner:
            evidence = race(reference, runner, FEEDS[0].feed, LatencyConfig(rounds=8, block_ms=0.5, warmup_ms=5, margin=1e6)).evidence
    assert evidence.launch.startswith("enqueue (execute_async_v3 returned False: [warning] operation not permitted in a capture")
    assert "different launches: captured by cuda graph, tensorrt by enqueue" in "\n".join(evidence.remarks)


def test_the_setting_decides(make_plan, config, scenario):
    """``never`` captures nothing; ``always`` judges replays, and ends where there is no graph."""
    plan = make_plan()
    with TensorrtRunner(plan, config.replace(cuda_graph="never")) as runner:
        assert not runner.cuda_graph
        assert runner.prepare(FEEDS[0].feed).launch == "enqueue"
    scenario(capture_refused=True)
    with TensorrtRunner(plan, config.replace(cuda_graph="always")) as runner:
        for call in (runner.infer, runner.prepare):
            with pytest.raises(EngineBuildError, match="cannot be captured") as caught:
                call(FEEDS[0].feed)
            assert caught.value.code == "E548"


def test_an_output_that_depends_on_the_data_is_compared(make_plan, config, scenario):
    """Its true shape comes back, whatever the data, through the same runner."""
    scenario(data_dependent=True)
    with TensorrtRunner(make_plan(), config) as runner:
        for sign, rows in ((1, 4), (-1, 0)):
            assert runner.infer({"image": sign * FEEDS[0].feed["image"]})["logits"].shape == (rows, 10)
        assert runner.prepare(FEEDS[0].feed).launch == "enqueue (the shape of logits depends on the data)"
