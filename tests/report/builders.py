"""Reports as a run would make them, built from seeded numbers: a run that passes, one that fails, one that is mixed, one from a hostile file."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from exporter.artifacts import (
    BakeSummary,
    BatchNormStatistics,
    EmaCandidate,
    Folded,
    LatencyEvidence,
    LayerChange,
    MetricEvidence,
    Outcome,
    OutputParity,
    ParityEvidence,
    Recalibration,
    Refusal,
    RefusalReason,
    Report,
    StageRecord,
    TensorDrift,
    Verdict,
)
from exporter.config import Config

EDGES = (-math.inf, *(round(float(edge), 2) for edge in np.arange(-14, 2.01, 0.25)), math.inf)
NO_GPU = "TensorRT needs a GPU; none is visible (exporter doctor says more)"
HOSTILE = '</script><img src=x onerror="alert(1)">$\\frac{1}{2}$ | `a` **b** \x1b[31m\x00 &amp; \ud800 漢字'


def passing() -> Report:
    """Return a run where everything required passed and TensorRT was not there."""
    metric = {"raw": 0.9611, "ema": 0.9778, "torch-fused": 0.9778, "onnx": 0.9778}
    verdicts = (
        parity("torch-fused"),
        parity("onnx", seed=2),
        Verdict("parity", "tensorrt", Outcome.NOT_RUN, NO_GPU, required=False),
        latency("torch-fused", 1.12, seed=3),
        latency("onnx", 1.83, seed=4),
        Verdict("latency", "tensorrt", Outcome.NOT_RUN, NO_GPU, required=False),
        accuracy("torch-fused", metric),
        accuracy("onnx", metric),
    )
    return _report(Outcome.PASS, verdicts, run="2026-11-20-1")


def failing() -> Report:
    """Return a run where one fold is wrong and the speed-up is missed; two outputs, one right."""
    metric = {"raw": 0.9611, "ema": 0.9778, "torch-fused": 0.9778, "onnx": 0.4312}
    localisation = (
        "first divergence: layer2.0.conv2 (Conv, node 31 of 118): inputs agree to 2e-07, output differs by 3.9e-02, channels 5 and 17 of 64\n"
        "suspect: fold of layer2.0.bn2 into layer2.0.conv2"
    )
    verdicts = (
        parity("torch-fused", outputs=("logits", "features")),
        parity("onnx", outputs=("logits", "features"), broken=("logits",), localisation=localisation),
        latency("torch-fused", 1.12, seed=3, required="speedup >= 2.00", outcome=Outcome.FAIL),
        latency("onnx", 1.83, seed=4, required="speedup >= 2.00", outcome=Outcome.FAIL),
        accuracy("torch-fused", metric),
        accuracy("onnx", metric, Outcome.FAIL),
    )
    return _report(Outcome.FAIL, verdicts, run="2026-11-20-2")


def mixed() -> Report:
    """Return a run with every outcome: a race that was not decided and a required check that did not run."""
    metric = {"raw": 0.9611, "ema": 0.9778, "onnx": 0.9778}
    verdicts = (
        parity("onnx"),
        Verdict("parity", "tensorrt", Outcome.NOT_RUN, NO_GPU, required=True),
        latency("onnx", 1.01, seed=5, noise=0.06, required="speedup >= 1.00", outcome=Outcome.INCONCLUSIVE),
        Verdict("precision", "onnx", Outcome.NOT_RUN, "no float16 candidate", required=False),
        accuracy("onnx", metric),
    )
    base = _report(Outcome.INCONCLUSIVE, verdicts, run="2026-11-20-3")
    bake = base.bake
    assert bake is not None
    no_raw = dataclasses.replace(bake, drift=(), drift_total=None, left_behind={"optimizer": 12_624_960})
    return dataclasses.replace(base, bake=no_raw, remarks=("random inputs only",))


def recalibrated(layer: str = "stages.0.bn") -> Report:
    """Return a passing run whose BatchNorm statistics were estimated anew, on rather few samples."""
    base = passing()
    bake = base.bake
    assert bake is not None
    layers = (LayerChange("stem.1", 16, 12800, 0.42, 1.25), LayerChange(layer, 64, 200, 0.063, math.inf))
    result = Recalibration(200, "ab" * 32, 64, layers, ("aux.bn",), 128, {"logits": 0.75}, "accuracy", 0.113, 0.9778)
    warning = f"{layer} had 200 values per channel; no sample came through aux.bn"
    statistics = BatchNormStatistics("recalibrated", "recalibrate", 3, warning, result)
    return dataclasses.replace(base, bake=dataclasses.replace(bake, batch_norm=statistics))


def hostile() -> Report:
    """Return a failing run in which every text that can come from a file is an attack on what shows it."""
    base = failing()
    bake = base.bake
    assert bake is not None
    assert bake.candidate is not None
    evil = HOSTILE
    return dataclasses.replace(
        base,
        lineage={**base.lineage, "checkpoint": evil, evil: evil},
        stages=(dataclasses.replace(base.stages[0], summary=evil, path=evil), *base.stages[1:]),
        bake=dataclasses.replace(
            bake,
            candidate=dataclasses.replace(bake.candidate, name=evil, remark=evil),
            drift=(TensorDrift(evil, 0.5, 1.0), TensorDrift("zero", 0.0, 0.0), TensorDrift("nan", math.nan, math.inf), *bake.drift),
        ),
        folded=(dataclasses.replace(base.folded[0], batch_norm=evil), *base.folded[1:]),
        refusals=(dataclasses.replace(base.refusals[0], batch_norm=evil, culprits=(evil,), detail=evil),),
        verdicts=(
            parity(evil, outputs=(evil,), broken=(evil,), localisation=evil),
            latency(evil, 0.5, seed=8),
            accuracy(evil, {"ema": 0.97, evil: 0.5}, Outcome.FAIL),
            Verdict("parity", "tensorrt", Outcome.NOT_RUN, evil, required=True),
        ),
        config={"checkpoint": evil, "nested": {evil: [1, None, True, {}]}},
    )


def parity(
    subject: str,
    *,
    outputs: tuple[str, ...] = ("logits",),
    broken: tuple[str, ...] = (),
    localisation: str = "",
    seed: int = 1,
) -> Verdict:
    """Return a parity verdict; ``broken`` names the outputs that fail."""
    rng = np.random.default_rng(seed)
    judged = tuple(_output(name, rng, is_broken=name in broken) for name in outputs)
    evidence = ParityEvidence(
        candidate=subject,
        precision="float32",
        reference="torch float64 on the CPU, unfused",
        feeds=("256 samples, batch 32", "256 samples, batch 1", "16 random, batch 32", "zeros", "ones", "large range"),
        num_samples=256,
        outputs=judged,
        predecessor="torch-fused" if subject == "onnx" else "",
        predecessor_relative_l2={output.output: 1.2e-7 for output in judged} if subject == "onnx" else {},
        batch_invariance=2.1e-7,
        localisation=localisation,
    )
    if not broken:
        return Verdict(
            "parity", subject, Outcome.PASS, f"{len(judged)} of {len(judged)} outputs agree with the reference", evidence=evidence, seconds=1.9
        )
    return Verdict(
        "parity", subject, Outcome.FAIL, f"{', '.join(broken)}: the relative L2 error is beyond what is allowed", evidence=evidence, seconds=2.4
    )


def latency(
    subject: str, speedup: float, *, seed: int, noise: float = 0.02, required: str = "no more than 2 % slower", outcome: Outcome = Outcome.PASS
) -> Verdict:
    """Return a latency verdict whose rounds and samples scatter around ``speedup``."""
    rng = np.random.default_rng(seed)
    rounds = rng.normal(-math.log(speedup), noise, 20)
    reference_ms = 3.84 * np.exp(rng.normal(0, 0.035, 900)) + rng.exponential(0.05, 900)
    reference_ms[rng.integers(0, 900, 12)] *= rng.uniform(1.3, 4, 12)
    samples_ms = 3.84 / speedup * np.exp(rng.normal(0, 0.03, 1400)) + rng.exponential(0.03, 1400)
    samples_ms[rng.integers(0, 1400, 15)] *= rng.uniform(1.3, 5, 15)
    half = 3.9 * noise / math.sqrt(20)
    measured = math.exp(-float(np.mean(rounds)))
    evidence = LatencyEvidence(
        candidate=subject,
        reference="torch-unfused",
        device="cpu",
        batch=32,
        threads=2,
        rounds=20,
        iterations_per_block=12,
        required=required,
        speedup=measured,
        speedup_low=measured * math.exp(-half),
        speedup_high=measured * math.exp(half),
        bootstrap_low=measured * math.exp(-0.9 * half),
        bootstrap_high=measured * math.exp(0.9 * half),
        confidence=0.999,
        false_alarm_rate=0.001,
        percentiles_ms={name: float(np.percentile(samples_ms, level)) for name, level in (("p50", 50), ("p90", 90), ("p99", 99))},
        reference_percentiles_ms={name: float(np.percentile(reference_ms, level)) for name, level in (("p50", 50), ("p90", 90), ("p99", 99))},
        first_call_ms=14.2,
        load_ms=38.7,
        round_log_ratios=tuple(float(value) for value in rounds),
        samples_ms=tuple(float(value) for value in samples_ms),
        reference_samples_ms=tuple(float(value) for value in reference_ms),
        clock="perf_counter",
    )
    reasons = {
        Outcome.PASS: f"{required}: the interval is on the right side",
        Outcome.FAIL: f"{required} is excluded by the interval",
        Outcome.INCONCLUSIVE: f"{required} is neither shown nor excluded after 80 rounds",
    }
    return Verdict("latency", subject, outcome, reasons[outcome], evidence=evidence, seconds=6.3)


def accuracy(subject: str, values: dict[str, float], outcome: Outcome = Outcome.PASS) -> Verdict:
    """Return a metric verdict."""
    reason = "no drop" if outcome is Outcome.PASS else f"accuracy of {subject} drops by {values['ema'] - values[subject]:.4f}, 0 allowed"
    return Verdict("metric", subject, outcome, reason, evidence=MetricEvidence("accuracy", values, "ema", 0.0, 360), seconds=0.3)


def _output(name: str, rng: np.random.Generator, *, is_broken: bool) -> OutputParity:
    size = 4.1e-2 if is_broken else 3.1e-7
    errors = np.log10(np.abs(rng.normal(0, size, 2560)) + 1e-18)
    counts = np.histogram(errors, [-1e9, *EDGES[1:-1], 1e9])[0]
    return OutputParity(
        output=name,
        shape=(256, 10),
        dtype="float32",
        outcome=Outcome.FAIL if is_broken else Outcome.PASS,
        reason="relative L2 error 4.1e-02 is over the allowed 8.7e-07" if is_broken else "",
        max_abs=0.61 if is_broken else 4.8e-6,
        p999_abs=0.44 if is_broken else 3.9e-6,
        relative_l2=size,
        own_error=2.9e-7,
        allowed=8.7e-7,
        cosine=0.99912 if is_broken else 1.0,
        sqnr_db=27.7 if is_broken else 130.2,
        atol=1e-5,
        rtol=1e-5,
        max_violation=4100.0 if is_broken else 0.18,
        smallest_rtol=6e-2 if is_broken else 9.2e-7,
        argmax_total=256 if name != "features" else None,
        argmax_equal=(110 if is_broken else 255) if name != "features" else None,
        argmax_ties=(0 if is_broken else 1) if name != "features" else None,
        worst_index=(17, 3) if is_broken else (),
        histogram=tuple(int(count) for count in counts),
    )


def _report(outcome: Outcome, verdicts: tuple[Verdict, ...], *, run: str) -> Report:
    rng = np.random.default_rng(7)
    blocks = [
        f"stages.{stage}.blocks.{block}.{part}"
        for stage in range(4)
        for block in range(3)
        for part in ("conv1", "bn1", "depthwise", "bn2", "project")
    ]
    drift = tuple(
        TensorDrift(f"{name}.weight", float(10 ** rng.uniform(-2.6, -0.4)), float(10 ** rng.uniform(-3, -1)))
        for name in ("stem.conv", *blocks, "head.fc")
    )
    convs = [
        ("stem.bn", "stem.conv"),
        *((f"{name}.bn{i}", f"{name}.conv{i}") for name in ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0") for i in (1, 2)),
    ]
    digest = "3f1c9a7be2d04a55c1f0e8d7b6a5948372615f4e3d2c1b0a99887766554433ff"
    return Report(
        run=run,
        started="2026-11-20T14:03:22+01:00",
        seconds=48.6,
        outcome=outcome,
        stages=(
            StageRecord("bake", "up to date", 0.0, "ema of digits.pt", ".exporter/weights.safetensors", f"sha256:{digest}"),
            StageRecord("fold", "made", 0.42, f"{len(convs) + 1} folded, 1 kept", ".exporter/fused.pt2", f"sha256:{digest[::-1]}"),
            StageRecord("onnx", "made", 3.12, "opset 20, 1 input, 1 output, dynamic batch", ".exporter/model.onnx", f"sha256:{digest[1:]}0"),
            StageRecord("engine", "NOT_RUN", 0.0, NO_GPU),
        ),
        verdicts=verdicts,
        lineage={
            "checkpoint": "digits.pt",
            "checkpoint_sha256": digest,
            "layout": "torch-averaged-model",
            "weights": "ema:averaged_model",
            "folded": str(len(convs) + 1),
            "exporter": "0.1.0",
        },
        config=Config().to_json(),
        environment={
            "cpu": "AMD EPYC 9354, 2 threads",
            "gpu": "none",
            "platform": "Linux-6.1-x86_64",
            "python": "3.11.9",
            "torch": "2.13.0",
            "onnx": "1.23.0",
            "onnxruntime": "1.31.0",
            "tensorrt": "not installed",
        },
        bake=BakeSummary(
            layout="torch-averaged-model",
            choice="ema:averaged_model",
            num_averaged=297,
            num_copied=58,
            size_bytes=6_312_480,
            cast="fp32 -> fp32",
            left_behind={"optimizer": 12_624_960, "raw weights": 6_312_480},
            drift=drift,
            drift_total=0.0643,
            candidate=EmaCandidate(
                name="averaged_model",
                at="averaged_model",
                num_tensors=355,
                dtypes=("float32",),
                size_bytes=6_312_480,
                updates=12400,
                decay=0.9995,
                schedule="constant",
                initial_share=0.00203,
                state="settled",
            ),
        ),
        folded=(*(Folded(bn, conv, "conv2d+bn", 32, 1.73) for bn, conv in convs), Folded("head.bn", "head.fc1", "linear+bn", 64, 2.41)),
        refusals=(Refusal("stages.2.norm", RefusalReason.NOT_LINEAR, ("relu_3",), "relu before and after"),),
        histogram_edges=EDGES,
    )
