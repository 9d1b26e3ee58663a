"""Is a network that we folded as fast in ONNX Runtime as after the best pipeline of other tools, and faster where we fold more?

    python -m bench.race_folds FOLDER [--only PATTERN] [--threads 1] [--rounds 20] [--again]

Needs the extra `peers` and the group `bench`. Each network is exported twice: folded by us and written by `export_onnx`; and by
`torch.onnx.export` as it is by default, then simplified by onnxsim. Both have fixed shapes, one image, and run in ONNX Runtime with all
its optimisations on the CPU. The race is that of `exporter.verify`: interleaved blocks, a ratio with its interval, a stated rate of false
alarms. FOLDER keeps the models and the raw samples; a race that is there already is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxsim
import torch

from bench.common import print_machine, print_table
from bench.zoo.judgement import count_in_onnx, largest_error
from bench.zoo.networks import Network, build, network_of
from exporter.artifacts import LatencyEvidence, OnnxModel, Provenance
from exporter.config import FoldConfig, InputConfig, LatencyConfig, OnnxConfig
from exporter.files import write_bytes
from exporter.graph import fold, trace
from exporter.onnx_export import export_onnx, open_onnx
from exporter.runners import OnnxruntimeRunner
from exporter.verify.latency import race

FOLDED_ALIKE = ("timm:resnet50", "timm:efficientnet_b0", "timm:densenet121", "ultralytics:yolov8n.yaml")
FOLDED_FURTHER = (
    *("timm:repvgg_a0", "timm:mobileone_s0", "timm:levit_128s", "timm:mixnet_s", "timm:mobilenetv4_hybrid_medium"),
    *("timm:regnetv_040", "timm:xception41p", "timm:coatnet_bn_0_rw_224"),
)
SIDE = 224
MARGIN = 0.02
"""So much slower would still pass: less than that a race on a machine with other work does not see."""


def main() -> None:
    """Export, race, print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.race_folds")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[], help="pattern of networks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--again", action="store_true", help="race again")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    config = LatencyConfig(batch=1, margin=MARGIN, threads=options.threads, rounds=options.rounds)
    raced = []
    for name in (*FOLDED_ALIKE, *FOLDED_FURTHER):
        if options.only and not any(fnmatch.fnmatchcase(name, pattern) for pattern in options.only):
            continue
        path = options.folder / f"{name.replace(':', '_')}.json"
        if options.again or not path.exists():
            run = raced_once(name, options.folder, config)
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


def raced_once(name: str, folder: Path, config: LatencyConfig) -> dict[str, object]:
    """Race one network; return its numbers with the raw samples."""
    theirs, ours = exported(network_of(name), folder)
    image = np.random.default_rng(0).random((1, 3, SIDE, SIDE), dtype=np.float32)
    reference = OnnxruntimeRunner(theirs, name="theirs", threads=config.threads)
    candidate = OnnxruntimeRunner(ours, name="ours", threads=config.threads)
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


def exported(network: Network, folder: Path) -> tuple[OnnxModel, OnnxModel]:
    """Return the network of the other tools and ours, from FOLDER where they are there."""
    stem = network.factory.replace(":", "_")
    theirs, ours = folder / f"{stem}.theirs.onnx", folder / f"{stem}.ours.onnx"
    if not theirs.exists():
        with torch.no_grad():
            image = torch.zeros(1, 3, SIDE, SIDE)
            program = torch.onnx.export(build(network), (image,), input_names=["image"], dynamo=True, verbose=False)
        if program is None:
            raise RuntimeError("the exporter returned nothing")
        simplified, _ = onnxsim.simplify(program.model_proto)
        write_bytes(theirs, simplified.SerializeToString())
    if not ours.exists():
        traced = trace(build(network), (InputConfig(name="image", shape=(2, 3, SIDE, SIDE)),))
        graph = fold(traced, FoldConfig(), provenance=Provenance("graph"))
        export_onnx(graph, ours, OnnxConfig(dynamic_batch=False), key="")
    return open_onnx(theirs), open_onnx(ours)


if __name__ == "__main__":
    main()
