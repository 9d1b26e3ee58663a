"""Fused against unfused on a GPU: parity with float64 and latency by CUDA events, by network, precision and batch size.

    python bench/gpu.py OUT [--networks digits,resnet50,...] [--precisions fp32,tf32,fp16,bf16] [--batches 1,8,64] [--minutes 9]

Writes one page ``<network>_<precision>_<gpu>_<date>.md`` for each network in each precision as soon as it is done, in the form of
``docs/benchmarks``, and beside it ``.json.gz`` with every raw sample, clocks and temperatures. What cannot run here, or for which no time is
left, is NOT_RUN with the reason. ``--device cpu`` tries the script itself on a machine without a GPU; its pages say ``cpu`` and are no benchmark
of anything. It needs torch, onnx and what ``exporter`` itself needs; ONNX Runtime and TensorRT where they are there.
"""

# ruff: noqa: E402 - the folders of the package and of tests/gpu are made known first

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import gzip
import importlib.metadata
import json
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[1] / "tests" / "gpu")]

from subjects import Subject, digits, random_network, tensorrt_config

from bench.gpu_contestants import NAMES, PRECISIONS, Entry, contestants, torch_runner
from bench.gpu_networks import NETWORKS
from exporter.artifacts import LatencyEvidence, Outcome, ParityEvidence, Verdict, to_json
from exporter.config import LatencyConfig, ParityConfig
from exporter.engine import probe
from exporter.errors import ExporterError
from exporter.runners import TorchRunner
from exporter.verify import (
    OwnError,
    Reference,
    compare,
    latency_feed,
    make_feeds,
    measure_own_error,
    measure_reference,
    overflowing_feeds,
    race,
    without_overflow,
)

OUT_OF_TIME = "out of time"
MODES = {
    "fp32": "float32, TF32 off",
    "tf32": "float32 weights and values, TF32 allowed in products and convolutions",
    "fp16": "float16",
    "bf16": "bfloat16",
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


def reference_of(subject: Subject, threads: int) -> Reference:
    """Return what the unfused network returns in float64 on the CPU, on every sample; it serves all precisions."""
    graph = subject.graph
    feeds = make_feeds(subject.samples, graph.inputs, subject.samples_config, ParityConfig(batches=(1, 8)))
    with TorchRunner("reference", graph.unfused, graph.inputs, subject.outputs, precision="float64", threads=threads) as runner:
        return measure_reference(runner, feeds)


def own_error_of(entry: Entry, reference: Reference) -> OwnError:
    """Return what the unfused network returns in the precision, on the device."""
    unfused = entry.subject.graph.unfused
    with torch_runner(entry, "torch-unfused", unfused) as runner:
        own = measure_own_error(reference, runner)
    overflowing = overflowing_feeds(reference, own) if entry.dtype == "float16" else ()
    if not overflowing:
        return own
    with torch_runner(entry, "torch-unfused", unfused, precision="bfloat16") as runner:
        return without_overflow(reference, own, overflowing, runner)


def measure(
    entry: Entry, reference: Reference, names: tuple[str, ...], config: LatencyConfig, out_of_time: Callable[[], bool]
) -> list[dict[str, Any]]:
    """Return one row per contestant and batch, with the verdicts, or the reason why there are none."""
    subject = entry.subject
    try:
        own_error = own_error_of(entry, reference)
    except (ExporterError, RuntimeError) as err:
        return [{"candidate": name, "not_run": f"torch-unfused: {_told(err)}"} for name in names]
    rows: list[dict[str, Any]] = []
    for name, make in contestants(entry, names):
        if isinstance(make, str) or out_of_time():
            rows.append({"candidate": name, "not_run": make if isinstance(make, str) else OUT_OF_TIME})
            continue
        try:
            with contextlib.ExitStack() as stack:
                candidate = stack.enter_context(make())
                parity = compare(reference, own_error, candidate, ParityConfig())
                in_graph = getattr(candidate, "cuda_graph", False)
                unfused = stack.enter_context(torch_runner(entry, "torch-unfused", subject.graph.unfused, cuda_graph=in_graph))
                for batch in entry.batches:
                    if out_of_time():
                        rows.append({"candidate": f"{name}, batch {batch}", "not_run": OUT_OF_TIME})
                        continue
                    feed = latency_feed(subject.samples, subject.graph.inputs, subject.samples_config, batch=batch)
                    rows.append({"candidate": name, "batch": batch, "parity": parity, "latency": race(unfused, candidate, feed, config)})
                    print(f"{subject.name} {entry.precision} {name} batch {batch}: {rows[-1]['latency'].reason}", flush=True)
        except (ExporterError, RuntimeError, ImportError, OSError) as err:  # torch.compile fails in each of these ways
            rows.append({"candidate": name, "not_run": _told(err)})
    return rows


def _told(err: Exception) -> str:
    if isinstance(err, ExporterError):
        facts = "; ".join(f"{label}: {text}" for label, text in err.facts.items())
        return f"{err.code} {err.problem} ({facts})".replace("\n", " ")
    return f"{type(err).__name__}: {next(iter(str(err).strip().splitlines()), '')}"


def page(entry: Entry, rows: list[dict[str, Any]], machine: dict[str, str]) -> str:
    """Return the page of one network in one precision."""
    subject = entry.subject
    lines = [f"# {subject.name} in {entry.precision}: fused against unfused", ""]
    lines += [f"- {label}: {text}" for label, text in machine.items()]
    lines += [f"- weights: {subject.weights}", f"- BatchNorm: {len(subject.graph.folded)} folded of {subject.graph.num_batch_norms}", ""]
    lines += [f"Reference of each race: unfused torch, {MODES[entry.precision]}, on the same device; eager, and in a CUDA graph for tensorrt-graph."]
    lines += [
        "The contestants' precision is the same; an ONNX file in half precision keeps float32 islands. Parity is with float64 on the CPU, and the"
    ]
    lines += ["own error is that of unfused torch in this precision.", "", "Times are per call.", ""]
    columns = ("candidate", "batch", "parity", "rel L2", "own error", "speed-up", "interval", "p50 ms", "p90 ms", "p99 ms")
    columns += ("unfused p50 ms", "clock", "launch / of unfused", "verdict")
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [_row(row) for row in rows if "latency" in row]
    failed = {row["candidate"]: row["parity"] for row in rows if "parity" in row and row["parity"].outcome is not Outcome.PASS}
    lines += ["", *(f"- {name}: parity {verdict.outcome.value}, {verdict.reason}" for name, verdict in failed.items())] if failed else []
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


def write(out: Path, stem: str, entry: Entry, rows: list[dict[str, Any]], facts: dict[str, str], clocks: list[dict[str, int]]) -> None:
    """Write the page and the raw samples; a page on which nothing was measured replaces none."""
    path = out / f"{stem}.md"
    if path.exists() and not any("latency" in row for row in rows):
        return
    text = page(entry, rows, facts)
    path.write_text(text, encoding="utf-8")
    raw = {"machine": facts, "clocks": clocks, "rows": [{key: to_json(value) for key, value in row.items()} for row in rows]}
    path.with_suffix(".json.gz").write_bytes(gzip.compress(json.dumps(raw).encode(), mtime=0))
    print(text, flush=True)


def read_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the pages and the raw samples")
    parser.add_argument("--networks", default="digits,resnet50", help=f"of digits, {', '.join(NETWORKS)}")
    parser.add_argument("--precisions", default="", help=f"of {', '.join(PRECISIONS)}; by default all on cuda, fp32 on the cpu")
    parser.add_argument("--contestants", default=",".join(NAMES), help=f"of {', '.join(NAMES)}")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--side", type=int, default=224, help="of the images, for all networks but digits")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many; what is left is NOT_RUN, out of time")
    parser.add_argument("--quick", action="store_true", help="few and short races, to try the script")
    parser.add_argument("--threads", type=int, default=1, help="of each contestant on the cpu")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    arguments = parser.parse_args()
    arguments.precisions = arguments.precisions or (",".join(PRECISIONS) if arguments.device == "cuda" else "fp32")
    known = {"networks": ("digits", *NETWORKS), "precisions": tuple(PRECISIONS), "contestants": NAMES}
    for option, choices in known.items():
        given = tuple(getattr(arguments, option).split(","))
        if not set(given) <= set(choices):
            parser.error(f"--{option}: {', '.join(sorted(set(given) - set(choices)))}; known: {', '.join(choices)}")
        setattr(arguments, option, given)
    if arguments.device == "cpu" and "tf32" in arguments.precisions:
        parser.error("--precisions: tf32 is a precision of the GPU")
    arguments.batches = tuple(int(text) for text in arguments.batches.split(","))
    return arguments


def main() -> int:
    """Measure, and write the pages."""
    arguments = read_arguments()
    end = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    machine = describe_machine(arguments.device)
    hardware = re.sub(r"[^a-z0-9]+", "-", machine["GPU"].lower()).strip("-") if arguments.device == "cuda" else "cpu"
    config = LatencyConfig(warmup_ms=200.0)
    if arguments.quick:
        config, machine["races"] = LatencyConfig(rounds=8, block_ms=2.0, warmup_ms=10.0), "few and short: the script was tried"
    for name in arguments.networks:
        if time.monotonic() > end:
            print(f"{name}: NOT_RUN, {OUT_OF_TIME}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                subject = digits(Path(folder)) if name == "digits" else random_network(name, Path(folder), side=arguments.side)
                reference = reference_of(subject, threads=len(os.sched_getaffinity(0)))
            except ExporterError as err:
                print(f"{name}: NOT_RUN, {err}", file=sys.stderr)
                continue
            for precision in arguments.precisions:
                entry = Entry(subject, precision, arguments.device, arguments.batches, Path(folder), arguments.threads)
                clocks = Clocks()
                if time.monotonic() > end:
                    rows = [{"candidate": candidate, "not_run": OUT_OF_TIME} for candidate in arguments.contestants]
                else:
                    rows = measure(entry, reference, arguments.contestants, config, lambda: time.monotonic() > end)
                facts = {**machine, "clocks": clocks.stop()}
                write(arguments.out, f"{name}_{precision}_{hardware}_{machine['date']}", entry, rows, facts, clocks.samples)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
