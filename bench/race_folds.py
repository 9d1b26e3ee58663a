"""Is a network that we folded as fast in ONNX Runtime as after the best pipeline of other tools, and faster where we fold more?

    python -m bench.race_folds FOLDER [--only PATTERN] [--clock wall|processor] [--threads 1] [--rounds 20] [--again] [--drawn]

Needs the extra `peers` and the group `bench`. Each network is exported twice: folded by us and written by `export_onnx`; and by
`torch.onnx.export` as it is by default, then simplified by onnxsim. Both have fixed shapes, one image, and run in ONNX Runtime with all
its optimisations on the CPU. The race is that of `exporter.verify`: interleaved blocks, a ratio with its interval, a stated rate of false
alarms. Its clock is the wall's, or, on a machine with other work, the processor time of the one thread. FOLDER keeps the models and the
raw samples; a race that is there already is not run again.

Parameters that a library sets to zero, such as the biases of an attention, are no longer zero in a trained network; a sum with zeros is
left out by onnxsim. With ``--drawn`` they are random numbers on both sides; it needs a FOLDER of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import torch
from numpy.typing import NDArray

from bench.common import print_machine, print_table
from bench.zoo.judgement import count_in_onnx, largest_error
from bench.zoo.networks import Network, build, network_of
from exporter.artifacts import LatencyEvidence, OnnxModel, Provenance
from exporter.config import FoldConfig, InputConfig, LatencyConfig, OnnxConfig
from exporter.files import write_bytes
from exporter.graph import fold, trace
from exporter.onnx_export import export_onnx, open_onnx
from exporter.runners import OnnxruntimeRunner
from exporter.runners.base import Feed, PreparedCall
from exporter.verify.latency import race

NETWORKS = {
    # equally many BatchNorms left, by us and by them
    **dict.fromkeys(("timm:resnet50", "timm:efficientnet_b0", "timm:densenet121", "ultralytics:yolov8n.yaml"), 128),
    # fewer left by us
    **dict.fromkeys(("timm:repvgg_a0", "timm:mobileone_s0", "timm:mixnet_s", "timm:regnetv_040", "timm:xception41p"), 128),
    **dict.fromkeys(("timm:levit_128s", "timm:coatnet_bn_0_rw_224", "timm:mobilenetv4_hybrid_medium"), 224),
}
"""Network -> side of the image."""
MARGIN = 0.02
"""So much slower would still pass: less than that a race on a machine with other work does not see."""


def main() -> None:
    """Export, race, print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.race_folds")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[], help="pattern of networks")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--again", action="store_true", help="race again")
    parser.add_argument("--drawn", action="store_true", help="random numbers for parameters that are zero")
    options = parser.parse_args()
    if options.clock == "processor" and options.threads != 1:
        parser.error("the processor time is that of one thread")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    config = LatencyConfig(batch=1, margin=MARGIN, threads=options.threads, rounds=options.rounds)
    raced = []
    for name in NETWORKS:
        if options.only and not any(fnmatch.fnmatchcase(name, pattern) for pattern in options.only):
            continue
        path = options.folder / f"{name.replace(':', '_')}.json"
        if options.again or not path.exists():
            run = raced_once(name, options.folder, config, options.clock, drawn=options.drawn)
            write_bytes(path, json.dumps(run).encode())
        raced.append(json.loads(path.read_text()))
        print(*row_of(raced[-1]), sep="\t", file=sys.stderr, flush=True)
    print_machine("torch", "timm", "onnx", "onnxruntime-gpu", "onnxscript", "onnxsim")
    header = ["network", "BatchNorms left, theirs", "ours", "nodes, theirs", "ours", "p50 ms, theirs", "ours", "speed", "from", "to", "verdict"]
    print_table([*header, "rounds", "load"], [row_of(run) for run in raced])


def row_of(run: dict[str, object]) -> list[object]:
    """Return a row of the table."""
    keys = ("network", "left_theirs", "left_ours", "nodes_theirs", "nodes_ours", "p50_theirs", "p50_ours", "speedup", "low", "high", "verdict")
    return [run[key] for key in (*keys, "rounds", "load")]


class _OnProcessorTime(OnnxruntimeRunner):
    """Times each call by what the processor did in this thread, which other processes do not lengthen."""

    def prepare(self, feed: Feed) -> PreparedCall:
        return _ProcessorTimed(super().prepare(feed))


class _ProcessorTimed:
    clock = "processor time of the thread"

    def __init__(self, call: PreparedCall) -> None:
        self._call = call

    def run_block(self, iterations: int) -> NDArray[np.float64]:
        times_ns = np.empty(iterations, np.int64)
        for index in range(iterations):
            begin = time.thread_time_ns()
            self._call.run_block(1)
            times_ns[index] = time.thread_time_ns() - begin
        return times_ns / 1e6


def raced_once(name: str, folder: Path, config: LatencyConfig, clock: str, *, drawn: bool) -> dict[str, object]:
    """Race one network; return its numbers with the raw samples."""
    theirs, ours = exported(network_of(name), folder, drawn=drawn)
    side = NETWORKS[name]
    image = np.random.default_rng(0).random((1, 3, side, side), dtype=np.float32)
    kind = OnnxruntimeRunner if clock == "wall" else _OnProcessorTime
    reference = kind(theirs, name="theirs", threads=config.threads)
    candidate = kind(ours, name="ours", threads=config.threads)
    load = os.getloadavg()[0]
    with reference, candidate:
        feeds = [{model.inputs[0].name: image} for model in (theirs, ours)]
        outputs = [list(runner.infer(feed).values()) for runner, feed in zip((reference, candidate), feeds, strict=True)]
        verdict = race(reference, candidate, feeds[0], config)
    evidence = verdict.evidence
    if not isinstance(evidence, LatencyEvidence):
        raise TypeError("a race has its evidence")
    messages = [onnx.load(model.path) for model in (theirs, ours)]
    left = [count_in_onnx(message).batch_norms for message in messages]
    return {
        "network": name,
        "drawn": drawn,
        "left_theirs": left[0],
        "left_ours": left[1],
        "nodes_theirs": len(messages[0].graph.node),
        "nodes_ours": len(messages[1].graph.node),
        "p50_theirs": evidence.reference_percentiles_ms["p50"],
        "p50_ours": evidence.percentiles_ms["p50"],
        "speedup": evidence.speedup,
        "low": evidence.speedup_low,
        "high": evidence.speedup_high,
        "verdict": verdict.outcome.value,
        "rounds": evidence.rounds,
        "load": load,
        "difference": largest_error(outputs[1], outputs[0]),
        "evidence": dataclasses.asdict(evidence),
    }


def exported(network: Network, folder: Path, *, drawn: bool) -> tuple[OnnxModel, OnnxModel]:
    """Return the network of the other tools and ours, from FOLDER where they are there."""
    side, stem = NETWORKS[network.factory], network.factory.replace(":", "_")
    theirs, ours = folder / f"{stem}.theirs.onnx", folder / f"{stem}.ours.onnx"
    if not theirs.exists():
        with torch.no_grad():
            image = torch.zeros(1, 3, side, side)
            program = torch.onnx.export(_built(network, drawn=drawn), (image,), input_names=["image"], dynamo=True, verbose=False)
        if program is None:
            raise RuntimeError("the exporter returned nothing")
        simplified, _ = onnxsim.simplify(program.model_proto)
        write_bytes(theirs, simplified.SerializeToString())
    if not ours.exists():
        traced = trace(_built(network, drawn=drawn), (InputConfig(name="image", shape=(2, 3, side, side)),))
        graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
        export_onnx(graph, ours, OnnxConfig(dynamic_batch=False), key="")
    return open_onnx(theirs), open_onnx(ours)


def _built(network: Network, *, drawn: bool) -> torch.nn.Module:
    """Return the network of the zoo, where asked with small random numbers in place of parameters that are zero."""
    built = build(network)
    generator = torch.Generator().manual_seed(1)
    for parameter in built.parameters() if drawn else ():
        if not parameter.any():
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return built


if __name__ == "__main__":
    main()
