"""Fused against unfused on a GPU: parity with float64 and latency by CUDA events, for each network and batch size.

    python bench/gpu.py OUT [--networks digits,resnet50,...] [--batches 1,8,64] [--device cuda]

Writes one page ``<network>_<gpu>_<date>.md`` per network, in the form of ``docs/benchmarks``, and beside it ``.json.gz`` with every raw
sample, clocks and temperatures. What cannot run here is a row with NOT_RUN and the reason. ``--device cpu`` tries the script itself on a
machine without a GPU; its pages say ``cpu`` and are no benchmark of anything.
"""

# ruff: noqa: E402 - the folders of the package and of tests/gpu are made known first

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import gzip
import importlib.metadata
import json
import platform
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests" / "gpu")]

from subjects import Subject, digits, from_factory, tensorrt_config

from exporter.artifacts import LatencyEvidence, ParityEvidence, Plan, Verdict, to_json
from exporter.config import LatencyConfig, ParityConfig
from exporter.engine import build_engine, parse_profiles, plan_key, probe
from exporter.errors import ExporterError
from exporter.runners import OnnxruntimeRunner, Runner, TensorrtRunner, TorchRunner
from exporter.verify import compare, latency_feed, make_feeds, measure_own_error, measure_reference, race

NETWORKS = {
    "resnet50": ("torchvision:resnet50", (3, 224, 224)),
    "efficientnet_b0": ("torchvision:efficientnet_b0", (3, 224, 224)),
    "mobilenet_v3_large": ("torchvision:mobilenet_v3_large", (3, 224, 224)),
}
LIBRARIES = ("exporter", "torch", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "timm", "torchvision")


class Clocks:
    """Samples clock, temperature, power and the reasons for throttling through NVML, ten times a second."""

    def __init__(self) -> None:
        self.samples: list[dict[str, int]] = []
        self.remark = ""
        self._end = threading.Event()
        try:
            import pynvml

            pynvml.nvmlInit()
            self._nvml, self._device = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
            self._thread: threading.Thread | None = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        except (ImportError, OSError) as err:
            self._thread, self.remark = None, f"clocks not sampled: {err}"
        except pynvml.NVMLError as err:
            self._thread, self.remark = None, f"clocks not sampled: {err}"

    def _sample(self) -> None:
        nvml, device = self._nvml, self._device
        while not self._end.wait(0.1):
            self.samples.append(
                {
                    "sm_mhz": nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
                    "temperature_c": nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
                    "power_mw": nvml.nvmlDeviceGetPowerUsage(device),
                    "throttle_reasons": nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device),
                }
            )

    def stop(self) -> str:
        """Stop, and return one line."""
        self._end.set()
        if self._thread is None:
            return self.remark
        self._thread.join()
        if not self.samples:
            return "clocks not sampled: the run was too short"
        clocks, heats = ([sample[key] for sample in self.samples] for key in ("sm_mhz", "temperature_c"))
        reasons = sorted({sample["throttle_reasons"] for sample in self.samples})
        return (
            f"SM clock {min(clocks)} to {max(clocks)} MHz, {min(heats)} to {max(heats)} °C, "
            f"throttle reasons seen: {', '.join(hex(reason) for reason in reasons)} (0x1 is idle, 0x4 the power cap)"
        )


def contestants(subject: Subject, device: str, batches: tuple[int, ...], folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield name and a function that makes the runner, or the reason why there is none."""
    graph = subject.graph

    def torch_runner(name: str, program: Any, **settings: Any) -> Runner:
        return TorchRunner(name, program, graph.inputs, subject.outputs, device=device, **settings)

    yield "torch-fused", lambda: torch_runner("torch-fused", graph.folded_program)
    if device == "cuda":
        yield "torch-unfused-graph", lambda: torch_runner("torch-unfused-graph", graph.unfused, cuda_graph=True)
        yield "torch-fused-graph", lambda: torch_runner("torch-fused-graph", graph.folded_program, cuda_graph=True)
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    yield "onnx", lambda: OnnxruntimeRunner(subject.onnx, name="onnx", provider=provider)
    config = tensorrt_config()
    support = probe(config)
    if device != "cuda" or not support.available:
        yield "tensorrt", support.missing or "not on this device"
        return
    built: list[Plan] = []

    def engine(name: str, cuda_graph: Literal["auto", "never"]) -> Runner:
        if not built:
            profiles = parse_profiles((), subject.onnx.inputs, batch=max(*batches, 32))
            key = plan_key(subject.onnx.digest, config, profiles, support)
            built.append(build_engine(subject.onnx, folder / f"{subject.name}.plan", config, profiles, key=key))
        return TensorrtRunner(built[0], config.replace(cuda_graph=cuda_graph), name=name)

    yield "tensorrt", lambda: engine("tensorrt", "never")
    yield "tensorrt-graph", lambda: engine("tensorrt-graph", "auto")


def measure(subject: Subject, device: str, batches: tuple[int, ...], folder: Path) -> list[dict[str, Any]]:
    """Return one row per contestant and batch, with the verdicts, or the reason why there are none."""
    graph = subject.graph
    feeds = make_feeds(subject.samples, graph.inputs, subject.samples_config, ParityConfig(batches=(1, 8)))
    with TorchRunner("reference", graph.unfused, graph.inputs, subject.outputs, precision="float64") as runner:
        reference = measure_reference(runner, feeds)
    with TorchRunner("torch-unfused", graph.unfused, graph.inputs, subject.outputs, device=device) as runner:
        own_error = measure_own_error(reference, runner)
    rows: list[dict[str, Any]] = []
    for name, make in contestants(subject, device, batches, folder):
        if isinstance(make, str):
            rows.append({"candidate": name, "not_run": make})
            continue
        try:
            with contextlib.ExitStack() as stack:
                candidate = stack.enter_context(make())
                parity = compare(reference, own_error, candidate, ParityConfig())
                in_graph = getattr(candidate, "cuda_graph", False)
                unfused = stack.enter_context(
                    TorchRunner("torch-unfused", graph.unfused, graph.inputs, subject.outputs, device=device, cuda_graph=in_graph)
                )
                for batch in batches:
                    feed = latency_feed(subject.samples, graph.inputs, subject.samples_config, batch=batch)
                    rows.append({"candidate": name, "batch": batch, "parity": parity, "latency": race(unfused, candidate, feed, LatencyConfig())})
                    print(f"{subject.name} {name} batch {batch}: {rows[-1]['latency'].reason}", flush=True)
        except ExporterError as err:
            facts = "; ".join(f"{label}: {text}" for label, text in err.facts.items())
            rows.append({"candidate": name, "not_run": f"{err.code} {err.problem} ({facts})".replace("\n", " ")})
    return rows


def page(subject: Subject, rows: list[dict[str, Any]], machine: dict[str, str]) -> str:
    """Return the page of one network."""
    lines = [f"# {subject.name}: fused against unfused", ""]
    lines += [f"- {label}: {text}" for label, text in machine.items()]
    lines += [f"- weights: {subject.weights}", f"- BatchNorm: {len(subject.graph.folded)} folded of {subject.graph.num_batch_norms}", ""]
    lines += ["Reference of each race: unfused torch, float32, TF32 off, on the same device; eager, and in a CUDA graph for tensorrt-graph.", ""]
    lines += ["Times are per call.", ""]
    columns = ("candidate", "batch", "parity", "rel L2", "own error", "speed-up", "interval", "p50 ms", "p90 ms", "p99 ms")
    columns += ("unfused p50 ms", "clock", "launch / of unfused", "verdict")
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [_row(row) for row in rows if "latency" in row]
    missing = [f"- {row['candidate']}: NOT_RUN, {row['not_run']}" for row in rows if "not_run" in row]
    return "\n".join([*lines, *(["", *missing] if missing else []), ""])


def _row(row: dict[str, Any]) -> str:
    parity: Verdict = row["parity"]
    latency: Verdict = row["latency"]
    shown, raced = parity.evidence, latency.evidence
    assert isinstance(shown, ParityEvidence)  # noqa: S101 - what compare returns
    assert isinstance(raced, LatencyEvidence)  # noqa: S101 - what race returns
    worst = max(shown.outputs, key=lambda output: output.relative_l2)
    own, other = raced.percentiles_ms, raced.reference_percentiles_ms
    cells = [
        row["candidate"], row["batch"], parity.outcome.value, f"{worst.relative_l2:.1e}", f"{worst.own_error:.1e}", f"{raced.speedup:.3f} x",
        f"{raced.speedup_low:.3f} to {raced.speedup_high:.3f} ({raced.confidence:.1%})",
        *(f"{own[p]:.4f}" if p in own else "-" for p in ("p50", "p90", "p99")),
        f"{other['p50']:.4f}", raced.clock, f"{raced.launch or '-'} / {raced.reference_launch or '-'}", latency.outcome.value,
    ]  # fmt: skip
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def describe_machine(device: str) -> dict[str, str]:
    """Return hardware and versions."""
    import torch

    versions = []
    for name in LIBRARIES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    gpu = torch.cuda.get_device_name() if device == "cuda" else "none (cpu: no benchmark, the script was tried)"
    support = probe(tensorrt_config())
    return {
        "GPU": gpu,
        "driver": f"{support.driver or '-'}, CUDA {torch.version.cuda if device == 'cuda' else '-'}",
        "TensorRT": support.tensorrt_version or "-",
        "host": f"{platform.machine()}, Python {platform.python_version()}",
        "versions": ", ".join(versions),
        "date": dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%d"),
    }


def main() -> int:
    """Measure, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the pages and the raw samples")
    parser.add_argument("--networks", default="digits,resnet50", help=f"of digits, {', '.join(NETWORKS)}")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    batches = tuple(int(text) for text in arguments.batches.split(","))
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(arguments.device)
    hardware = re.sub(r"[^a-z0-9]+", "-", machine["GPU"].lower()).strip("-") if arguments.device == "cuda" else "cpu"
    for name in arguments.networks.split(","):
        with tempfile.TemporaryDirectory() as folder:
            try:
                subject = digits(Path(folder)) if name == "digits" else from_factory(name, *NETWORKS[name], Path(folder))
            except ExporterError as err:
                print(f"{name}: NOT_RUN, {err}", file=sys.stderr)
                continue
            clocks = Clocks()
            rows = measure(subject, arguments.device, batches, Path(folder))
            facts = {**machine, "clocks": clocks.stop()}
            stem = f"{name}_{hardware}_{machine['date']}"
            (arguments.out / f"{stem}.md").write_text(page(subject, rows, facts), encoding="utf-8")
            raw = {"machine": facts, "clocks": clocks.samples, "rows": [{key: to_json(value) for key, value in row.items()} for row in rows]}
            (arguments.out / f"{stem}.json.gz").write_bytes(gzip.compress(json.dumps(raw).encode(), mtime=0))
            print(page(subject, rows, facts), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
