"""How many BatchNorms are folded in networks of timm, torchvision and ultralytics, by us and by other tools, and whether that is right.

    python -m bench.fold_zoo ROWS.jsonl [--only PATTERN] [--peers ours,onnxsim,...] [--level default] [--again]
    python -m bench.fold_zoo ROWS.jsonl --tables

Needs the extra `peers` and the group `bench`. Every network gets random weights and the BatchNorm statistics of a trained one and runs at
small resolution, in a process that may crash: then that is a row and not the end. Rows that are there already are not made again, so a
run can be stopped and resumed. Figures of time hold for the machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import itertools
import json
import resource
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bench.common import print_machine, print_table
from bench.zoo.rows import Row, add_row, per_network, per_peer, read_rows

if TYPE_CHECKING:
    from bench.zoo.case import Case

PEERS = (
    *("ours", "ours_onnx", "fx_fuse", "module_walk", "timm", "ultralytics", "pt2e", "dynamo", "torchscript"),
    *("onnxoptimizer", "onnxsim", "onnxslim", "onnxruntime", "dynamo_onnxsim"),
)
LIBRARIES = (
    *("torch", "timm", "torchvision", "ultralytics", "onnx", "onnxruntime-gpu", "onnxscript"),
    *("torchao", "mmcv", "onnxoptimizer", "onnxsim", "onnxslim"),
)
LEVELS = ("conservative", "default", "aggressive")
SILENCE_S = 900.0
"""A process that says nothing for so long is ended; what it was at has failed."""
LARGE_KIB = 6 << 20
"""A process that grew so large makes room for a new one after a network."""


def main() -> None:
    """Run what is missing, or print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.fold_zoo")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--only", action="append", default=[], help="pattern of networks")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--level", choices=LEVELS, default="default")
    parser.add_argument("--again", action="store_true", help="make rows that are there already")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_here([(network, peer) for network, peer in json.load(sys.stdin)], options.level)
    elif options.tables:
        show(read_rows(options.rows))
    else:
        run_missing(options)


def run_missing(options: argparse.Namespace) -> None:
    """Run every network with the tools that have no row for it yet."""
    done = {} if options.again else read_rows(options.rows)
    wanted = [name for name in networks() if not options.only or any(fnmatch.fnmatchcase(name, pattern) for pattern in options.only)]
    todo = [(network, peer) for network in wanted for peer in options.peers.split(",") if (network, key_of(peer, options.level)) not in done]
    while todo:
        todo = run_in_process(todo, options)


def run_in_process(todo: list[tuple[str, str]], options: argparse.Namespace) -> list[tuple[str, str]]:
    """Run networks in another process and add their rows, until it ends; return what it did not come to."""
    command = [sys.executable, "-m", "bench.fold_zoo", str(options.rows), "--level", options.level, "--child"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process has no pipes")
    process.stdin.write(json.dumps(todo))
    process.stdin.close()
    left = list(todo)
    watch = threading.Timer(SILENCE_S, process.kill)
    watch.start()
    for line in process.stdout:
        watch.cancel()
        if line.startswith("ROW "):
            row = Row(**json.loads(line[4:]))
            add_row(options.rows, row)
            left.remove((row.network, row.peer.partition(":")[0]))
            print(row.network, row.peer, row.outcome, f"{row.removed}/{row.total}", row.facts.get("what", ""), file=sys.stderr, flush=True)
        watch = threading.Timer(SILENCE_S, process.kill)
        watch.start()
    watch.cancel()
    process.stdout.close()
    if process.wait() != 0 and left:
        network, peer = left.pop(0)
        what = f"the process ended with {process.returncode}"
        add_row(options.rows, Row(network, key_of(peer, options.level), "failed", facts={"what": what}))
    return left


def run_here(todo: list[tuple[str, str]], level: str) -> None:
    """Run networks one after the other; print a row for each tool. Ends early, without failing, where it has grown large."""
    import torch

    from bench.zoo.case import Case
    from bench.zoo.networks import network_of

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for name, pairs in itertools.groupby(todo, key=lambda pair: pair[0]):
        if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > LARGE_KIB:
            return
        case = Case(network_of(name))
        for _, peer in pairs:
            print("ROW " + json.dumps(dataclasses.asdict(row_of(case, peer, level))), flush=True)


def row_of(case: Case, peer: str, level: str) -> Row:
    """Run one tool."""
    from bench.zoo.judgement import is_wrong
    from bench.zoo.peers import PEERS as TOOLS
    from bench.zoo.peers import DoesNotApply

    name, key, total = case.network.factory, key_of(peer, level), case.count.batch_norms
    try:
        made = TOOLS[peer](case, level)
    except DoesNotApply:
        return Row(name, key, "absent")
    except Exception as err:  # noqa: BLE001 - whatever a tool raises, it is a result here
        said = (str(err).strip().splitlines() or [""])[0]
        return Row(name, key, "failed", total, total, facts={"what": f"{type(err).__name__}: {said}"[:300]})
    outcome: Literal["wrong", "right"] = "wrong" if is_wrong(made.error, case.noise) else "right"
    return Row(name, key, outcome, total, made.left, made.as_convolutions, made.error, case.noise, made.seconds, made.facts)


def networks() -> list[str]:
    """Return the names of the networks."""
    from bench.zoo.networks import NETWORKS

    return [network.factory for network in NETWORKS]


def key_of(peer: str, level: str) -> str:
    """Return the name of a row: with its level, where that is not the default one."""
    return f"{peer}:{level}" if level != "default" and peer.startswith("ours") else peer


def show(rows: dict[tuple[str, str], Row]) -> None:
    """Print the tables."""
    peers = [*PEERS, *sorted({peer for _, peer in rows} - set(PEERS))]
    print_machine(*LIBRARIES)
    print_table(*per_peer(rows.values(), peers))
    print()
    print_table(*per_network(rows.values(), networks(), peers))


if __name__ == "__main__":
    main()
