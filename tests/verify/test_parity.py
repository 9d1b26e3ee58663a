"""Parity of whole networks: the digits model folded, exported, and spoiled in every way that a gate is there for."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporter.artifacts import Outcome, TensorSpec, to_json
from exporter.config import ParityConfig, SamplesConfig
from exporter.errors import InternalError, ModelNotSupported, SampleError
from exporter.runners import OnnxruntimeRunner, TorchRunner
from exporter.samples import Samples
from exporter.verify import (
    CandidateOutputs,
    collect_outputs,
    compare,
    localise,
    localise_onnx,
    make_feeds,
    measure_own_error,
    measure_reference,
    overflowing_feeds,
    without_overflow,
)

_spec = importlib.util.spec_from_file_location("verify_conftest", Path(__file__).with_name("conftest.py"))
helpers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(helpers)

CONFIG = ParityConfig()
INPUTS, OUTPUTS = helpers.INPUTS, ("logits",)


@pytest.fixture(scope="module")
def measured(unfused, samples):
    """Reference and own error of the digits network on its own samples."""
    feeds = make_feeds(samples, INPUTS, SamplesConfig(), CONFIG)
    with TorchRunner("reference", unfused, INPUTS, OUTPUTS, precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    with TorchRunner("torch-unfused", unfused, INPUTS, OUTPUTS) as runner:
        return reference, measure_own_error(reference, runner)


def judge_module(measured, module, config=CONFIG, **kwargs):
    """Compare a module in float32."""
    with TorchRunner("torch-fused", module, INPUTS, OUTPUTS) as runner:
        return compare(*measured, runner, config, **kwargs)


def changed(measured, change, name="torch-fused"):
    """Outputs of the unfused model in float32, with every batch passed through ``change``."""
    own = measured[1]
    batches = {feed: tuple(change({**batch}) for batch in batches) for feed, batches in own.outputs.items()}
    return CandidateOutputs(name, "float32", "cpu", batches)


class Named:
    """Stands for a runner whose outputs are given: nothing is run."""

    name, precision, device, threads = "candidate", "float32", "cpu", 1


def test_folded_network_passes(measured, folded):
    """Torch's own fold is right: it passes with room, and the evidence says what was fed and found."""
    verdict = judge_module(measured, folded)
    evidence = verdict.evidence
    assert (verdict.check, verdict.subject, verdict.outcome) == ("parity", "torch-fused", Outcome.PASS)
    assert evidence.reference == "torch float64 on the CPU, unfused"
    assert evidence.feeds[:2] == ("256 samples, batch 32", "32 samples, batch 1")
    assert evidence.num_samples == 256
    (logits,) = evidence.outputs
    assert logits.relative_l2 < 0.5 * logits.allowed
    assert logits.max_violation < 0.5
    assert (logits.argmax_equal, logits.argmax_total) == (256, 256)
    assert 0 <= evidence.batch_invariance < 1e-6
    assert evidence.localisation == ""
    assert to_json(verdict)


def test_onnx_model_passes(measured, onnx_model):
    """So does the exported model in ONNX Runtime, beside its predecessor."""
    with OnnxruntimeRunner(onnx_model) as runner:
        verdict = compare(*measured, runner, CONFIG, predecessor=measured[1])
    assert verdict.outcome is Outcome.PASS
    assert verdict.evidence.predecessor == "torch-unfused"
    assert verdict.evidence.predecessor_relative_l2["logits"] < 1e-6


def test_any_fold_off_by_one_percent_fails_with_the_tolerance_that_would_have_passed(measured, unfused):
    """Whichever fold it is, FAIL names the output; pasting the printed tolerance gives PASS, a tenth less does not."""
    assert len(helpers.FOLDS) == 12
    for producer in helpers.FOLDS:
        disturbed = helpers.fold_by_torch(unfused, producer)
        verdict = judge_module(measured, disturbed)
        assert verdict.outcome is Outcome.FAIL, producer
        assert verdict.reason.startswith("logits on ")
        printed = float(verdict.reason.rpartition("rtol = atol = floor = ")[2].removesuffix(" on"))
        less = 0.9 * printed
        assert judge_module(measured, disturbed, ParityConfig(rtol=printed, atol=printed, floor=printed)).outcome is Outcome.PASS, producer
        assert judge_module(measured, disturbed, ParityConfig(rtol=less, atol=less, floor=less)).outcome is Outcome.FAIL, producer


@pytest.mark.parametrize("producer", ["stem.0", "stages.block1.depthwise", "stages.block2.shortcut.0", "hidden"])
def test_layer_with_the_wrong_fold_is_named(measured, unfused, unfused_program, producer):
    """By module name, with the fold to suspect."""
    disturbed = helpers.fold_by_torch(unfused, producer)
    graph = helpers.make_graph(unfused_program, disturbed)
    verdict = judge_module(measured, disturbed, localise=lambda: localise(graph, measured[0].feeds))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.evidence.localisation.startswith(f"first divergence: {producer} (aten.")
    assert verdict.evidence.localisation.endswith(f"suspect: fold of {helpers.FOLDS[producer]} into {producer}")


def test_one_channel_off_by_one_percent_fails(measured, unfused, unfused_program):
    """A single output channel of a single fold is enough, and it is named."""
    disturbed = helpers.fold_by_torch(unfused)
    with torch.no_grad():
        disturbed.stages.block2.pointwise.weight[5] *= 1.01
    graph = helpers.make_graph(unfused_program, disturbed)
    verdict = judge_module(measured, disturbed, localise=lambda: localise(graph, measured[0].feeds))
    assert verdict.outcome is Outcome.FAIL
    assert "stages.block2.pointwise" in verdict.evidence.localisation
    assert "channel 5 of 48" in verdict.evidence.localisation


def test_layer_of_an_onnx_model_is_named(measured, unfused, unfused_program, folded, tmp_path):
    """The names survive the export: the wrong layer of the file is found by running it in ONNX Runtime."""
    disturbed = helpers.fold_by_torch(unfused, "stages.block3.grouped")
    model = helpers.export_onnx(disturbed, tmp_path / "disturbed.onnx")
    graph = helpers.make_graph(unfused_program, folded)
    with OnnxruntimeRunner(model) as runner:
        verdict = compare(*measured, runner, CONFIG, localise=lambda: localise_onnx(graph, model, measured[0].feeds))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.evidence.localisation.startswith("first divergence: stages.block3.grouped (Conv, node ")


def test_layer_of_this_tool_s_own_file_is_named(measured, unfused, unfused_program, folded, tmp_path):
    """The file notes modules as ``exporter.module`` and nothing of torch's: that is enough."""
    model = helpers.export_onnx(helpers.fold_by_torch(unfused, "stages.block1.grouped"), tmp_path / "disturbed.onnx")
    proto = onnx.load(model.path)
    for node in proto.graph.node:
        scopes = next((entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"), "['', '']")
        del node.metadata_props[:]
        if module := ast.literal_eval(scopes)[-2]:
            node.metadata_props.add(key="exporter.module", value=module)
    model.path.write_bytes(proto.SerializeToString())
    text = localise_onnx(helpers.make_graph(unfused_program, folded), model, measured[0].feeds)
    assert text.startswith("first divergence: stages.block1.grouped (Conv, node ")
    for node in proto.graph.node:
        del node.metadata_props[:]
    model.path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelNotSupported, match="do not say which module"):
        localise_onnx(helpers.make_graph(unfused_program, folded), model, measured[0].feeds)


def test_right_graphs_have_no_divergence(measured, unfused_program, folded, onnx_model):
    """Where nothing is wrong no layer is accused."""
    graph = helpers.make_graph(unfused_program, folded)
    assert localise(graph, measured[0].feeds).startswith("no layer departs")
    assert localise_onnx(graph, onnx_model, measured[0].feeds).startswith("no layer departs")


@pytest.mark.parametrize(("precision", "factor"), [("float16", 1.02), ("bfloat16", 1.1)])
def test_the_wrong_layer_behind_rounded_ones_is_named(measured, unfused_program, folded, onnx_model_22, precision, factor, tmp_path):
    """In half precision every layer departs a little: named is the one that is off by more than rounding, and none where all are right."""
    feeds = measured[0].feeds
    graph = helpers.make_graph(unfused_program, folded)
    right = helpers.halved(onnx_model_22, precision, tmp_path / "right.onnx")
    assert localise_onnx(graph, right, feeds) == (
        f"no layer departs by more than {precision} allows when the operators run one by one: the error is in how they run together"
    )
    for producer in ("stages.block2.grouped", "hidden"):
        wrong = helpers.halved(onnx_model_22, precision, tmp_path / "wrong.onnx", wrong=producer, factor=factor)
        text = localise_onnx(graph, wrong, feeds)
        assert text.startswith(f"first divergence: {producer} ("), text
        assert " (allowed " in text


def test_a_float32_layer_before_all_rounding_is_held_to_float32(measured, unfused_program, folded, onnx_model_22, tmp_path):
    """An island that no rounded value reaches has the limit of float32, though the model is in float16."""
    wrong = helpers.halved(onnx_model_22, "float16", tmp_path / "wrong.onnx", wrong="stem.0", factor=1.0005, patterns=("stem*",))
    text = localise_onnx(helpers.make_graph(unfused_program, folded), wrong, measured[0].feeds)
    assert text.startswith("first divergence: stem.0 (Conv, node "), text


def drop(batch):
    """Lose the output."""
    del batch["logits"]
    return batch


def poke(value):
    """Put ``value`` into the last row."""

    def change(batch):
        batch["logits"] = batch["logits"].copy()
        batch["logits"][-1, 3] = value
        return batch

    return change


@pytest.mark.parametrize(
    ("change", "match"),
    [
        pytest.param(drop, "does not return this output", id="missing"),
        pytest.param(lambda batch: {"scores": batch["logits"]}, "does not return this output", id="renamed"),
        pytest.param(poke(np.nan), "NaN or infinity", id="nan"),
        pytest.param(poke(np.inf), "NaN or infinity", id="inf"),
        pytest.param(lambda batch: {"logits": batch["logits"].astype(np.float16)}, "fewer digits", id="dtype"),
        pytest.param(lambda batch: {"logits": batch["logits"][:, :9]}, "shape", id="shape"),
        pytest.param(lambda batch: {"logits": np.zeros_like(batch["logits"])}, "relative L2 ", id="zeros"),
    ],
)
def test_spoiled_outputs_fail(measured, change, match):
    """What a candidate returns is compared whole: every gate can fail on a real network's outputs."""
    verdict = compare(*measured, Named(), CONFIG, outputs=changed(measured, change))
    assert verdict.outcome is Outcome.FAIL
    assert match in verdict.reason
    assert to_json(verdict)


def test_extra_output_is_reported_and_not_judged(measured):
    """More than the reference has is no failure, and no secret."""
    verdict = compare(*measured, Named(), CONFIG, outputs=changed(measured, lambda batch: {**batch, "extra": batch["logits"]}))
    assert verdict.outcome is Outcome.PASS
    assert verdict.evidence.extra_outputs == ("extra",)
    assert any("extra" in remark for remark in verdict.evidence.remarks)


class TwoHeads(nn.Module):
    def __init__(self, swapped: bool) -> None:
        super().__init__()
        self.swapped = swapped
        self.a, self.b = nn.Linear(4, 3), nn.Linear(4, 3)
        generator = torch.Generator().manual_seed(1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward(self, x):
        first, second = self.a(x), self.b(x)
        return (second, first) if self.swapped else (first, second)


def test_reordered_outputs_fail():
    """Two outputs of the same shape in the other order carry the wrong names: both fail."""
    inputs = (TensorSpec("x", ("batch", 4), "float32"),)
    feeds = make_feeds(None, inputs, SamplesConfig(), CONFIG)
    with TorchRunner("reference", TwoHeads(False), inputs, ("a", "b"), precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    with TorchRunner("torch-unfused", TwoHeads(False), inputs, ("a", "b")) as runner:
        own = measure_own_error(reference, runner)
        right = compare(reference, own, runner, CONFIG)
    with TorchRunner("candidate", TwoHeads(True), inputs, ("a", "b")) as runner:
        wrong = compare(reference, own, runner, CONFIG)
    assert right.outcome is Outcome.PASS
    assert [output.outcome for output in wrong.evidence.outputs] == [Outcome.FAIL] * 2
    assert wrong.reason.endswith("; 1 more of 2 outputs fail")


def test_random_inputs_alone_pass_with_a_remark_unless_samples_are_required(unfused, folded):
    """PASS says ``random inputs only``; where samples are required there is no verdict without them."""
    feeds = make_feeds(None, INPUTS, SamplesConfig(), CONFIG)
    with TorchRunner("reference", unfused, INPUTS, OUTPUTS, precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    with TorchRunner("torch-unfused", unfused, INPUTS, OUTPUTS) as runner:
        own = measure_own_error(reference, runner)
    verdict = judge_module((reference, own), folded)
    assert verdict.outcome is Outcome.PASS
    assert "random inputs only" in verdict.evidence.remarks
    assert verdict.reason.endswith("random inputs only")
    assert judge_module((reference, own), folded, samples_required=True).outcome is Outcome.NOT_RUN


def test_failure_says_whether_the_predecessor_had_it_already(measured, unfused, folded):
    """The stage that broke it is the first that departs from the one before."""
    disturbed = helpers.fold_by_torch(unfused, "hidden")
    with TorchRunner("torch-fused", disturbed, INPUTS, OUTPUTS) as before:
        inherited = judge_module(measured, disturbed, predecessor=before)
        outputs = collect_outputs(before, measured[0].feeds)
    broken_here = judge_module(measured, disturbed, predecessor=measured[1])
    assert any("it broke before this stage" in remark for remark in inherited.evidence.remarks)
    assert any("it broke here" in remark for remark in broken_here.evidence.remarks)
    assert judge_module(measured, disturbed, predecessor=outputs).evidence.predecessor == "torch-fused"


class DependsOnBatch(nn.Module):
    def __init__(self, module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image):
        return self.module(image) * (1.0 if len(image) == 1 else 1.0 + 1e-4)


def test_dependence_on_the_batch_is_measured(measured, folded):
    """A row that changes with its neighbours shows in the batch invariance."""
    verdict = judge_module(measured, DependsOnBatch(folded))
    assert verdict.evidence.batch_invariance == pytest.approx(1e-4, rel=0.05)


class Float32Only(nn.Module):
    def __init__(self, module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image):
        if image.dtype is torch.float64:
            raise NotImplementedError('"operator" not implemented for double')
        return self.module(image)


def test_reference_falls_back_to_float32_only_where_it_is_offered(unfused, samples):
    """An operator without a float64 kernel: the float32 runner takes over and every verdict says so; without it, E621."""
    feeds = make_feeds(samples, INPUTS, SamplesConfig(limit=8), CONFIG)
    module = Float32Only(unfused)
    with TorchRunner("reference", module, INPUTS, OUTPUTS, precision="float64") as exact, TorchRunner("unfused", module, INPUTS, OUTPUTS) as single:
        with pytest.raises(ModelNotSupported, match="float64"):
            measure_reference(exact, feeds)
        reference = measure_reference(exact, feeds, fallback=single)
        verdict = compare(reference, measure_own_error(reference, single), single, CONFIG)
    assert verdict.evidence.reference == "torch float32 on the CPU, unfused"
    assert any("not implemented for double" in remark for remark in verdict.evidence.remarks)


def test_own_error_of_another_precision_is_our_mistake(measured, folded):
    """A tolerance measured in float32 does not judge float16."""
    with TorchRunner("torch-fused", folded, INPUTS, OUTPUTS, precision="float16") as runner, pytest.raises(InternalError, match="another precision"):
        compare(*measured, runner, CONFIG)


def test_half_precision_is_judged_by_its_own_error(unfused, folded, measured):
    """The folded network passes in float16 and bfloat16, and a fold off by 1 % is still seen in float16."""
    reference = measured[0]
    for precision in ("float16", "bfloat16"):
        with TorchRunner("torch-unfused", unfused, INPUTS, OUTPUTS, precision=precision) as runner:
            own = measure_own_error(reference, runner)
        with TorchRunner("torch-fused", folded, INPUTS, OUTPUTS, precision=precision) as runner:
            assert compare(reference, own, runner, CONFIG).outcome is Outcome.PASS
        if precision == "float16":
            disturbed = helpers.fold_by_torch(unfused, "stages.block1.pointwise")
            with TorchRunner("torch-fused", disturbed, INPUTS, OUTPUTS, precision=precision) as runner:
                assert compare(reference, own, runner, CONFIG).outcome is Outcome.FAIL


def test_samples_of_another_shape_are_refused():
    """Before anything runs."""
    with pytest.raises(SampleError, match="shape"):
        make_feeds(Samples({"image": np.zeros((4, 3, 8, 8), np.float32)}, None), INPUTS, SamplesConfig(), CONFIG)


class Scaled(nn.Module):
    """Two products, of which the first is ``scale`` times as large and the second as small: a power of two, which changes no rounding."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        first, second = (torch.randn(64, 64, generator=generator) for _ in "ab")
        self.first, self.second = nn.Parameter(first * scale), nn.Parameter(second / scale)

    def forward(self, image):
        return (image.flatten(1) @ self.first) @ self.second


def own_error_of(scale: float):
    """Return reference, own error in float16, and the feeds where it overflows."""
    network = Scaled(scale).eval()
    feeds = make_feeds(None, INPUTS, SamplesConfig(random=8, edge=False), ParityConfig(batches=(8,)))
    with TorchRunner("reference", network, INPUTS, OUTPUTS, precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    with TorchRunner("torch-unfused", network, INPUTS, OUTPUTS, precision="float16") as runner:
        own = measure_own_error(reference, runner)
    overflowing = overflowing_feeds(reference, own)
    wider = TorchRunner("torch-unfused", network, INPUTS, OUTPUTS, precision="bfloat16")
    return reference, without_overflow(reference, own, lambda: wider), overflowing


def distance(reference, own) -> float:
    """Return the relative L2 error over the first feed."""
    (r, *_), (u, *_) = (outputs.outputs[reference.feeds[0].name] for outputs in (reference, own))
    return float(np.linalg.norm(u["logits"].astype(np.float64) - r["logits"]) / np.linalg.norm(r["logits"]))


def test_an_overflow_does_not_hide_the_own_error():
    """A network whose values pass float16 has the own error of the same network with smaller values, within what luck in rounding makes of it."""
    reference, own, overflowing = own_error_of(1.0)
    assert not overflowing
    assert own.remarks == ()
    true = distance(reference, own)
    reference, own, overflowing = own_error_of(2.0**13)
    assert overflowing == reference.feeds
    assert own.precision == "float16"
    assert "an eighth of that in bfloat16" in own.remarks[0]
    assert true / 2 < distance(reference, own) < true * 2


def test_a_remark_of_the_own_error_is_in_the_verdict():
    """Whoever reads the verdict sees that the own error was not measured in float16 itself."""
    reference, own, _ = own_error_of(2.0**13)
    network = Scaled(1.0).eval()  # the same function, without an overflow
    with TorchRunner("onnx", network, INPUTS, OUTPUTS, precision="float16") as runner:
        verdict = compare(reference, own, runner, CONFIG)
    assert verdict.outcome is Outcome.PASS, verdict.reason
    assert own.remarks[0] in verdict.evidence.remarks
