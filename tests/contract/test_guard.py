"""The fakes are as strict as the real classes: each way of misusing them is refused."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


MISUSES = (
    "builder.build_engine_from_nothing(network)",
    "builder.max_workspace_size = 1",
    "builder.create_network(0, 0, 0)",
    "builder.create_network(flag=0)",
    "builder.create_network('zero')",
    "builder.build_serialized_network(network)",
    "builder.build_serialized_network(config, network)",
    "config.set_flag(0)",
    "config.set_memory_pool_limit(real.BuilderFlag.TF32, 1)",
    "config.avg_timing_iterations = 'eight'",
    "config.timing_iterations = 8",
    "network.num_inputs = 3",
    "trt.Builder()",
    "trt.Builder(builder)",
    "trt.OnnxParser(network)",
    "trt.Nothing",
)
RIGHT_USES = (
    "config.set_flag(real.BuilderFlag.TF32)",
    "config.avg_timing_iterations = 8",
    "trt.OnnxParser(network, logger)",
    "if not isinstance(builder, real.Builder): raise SystemExit('the class is another one')",
)
SCRIPT = """
import json, os, sys
sys.path[:0] = [os.environ["EXPORTER_CONTRACT_SITE"], sys.argv[1]]
import tensorrt_bindings as real
from guarded import ContractBroken
from small_tensorrt import World
class Logger(real.ILogger):
    def __init__(self): real.ILogger.__init__(self)
    def log(self, severity, msg): pass
trt = World(real, {}).module()
logger = Logger()
builder = trt.Builder(logger)
network = builder.create_network(0)
config = builder.create_builder_config()
results = {}
for line in json.loads(sys.argv[2]):
    try:
        exec(line)
    except ContractBroken as err:
        results[line] = str(err)
    else:
        results[line] = ""
print(json.dumps(results))
"""


def run(python: str, lines: tuple[str, ...]) -> dict[str, str]:
    """Run each line with guarded objects of the release; return what broke the contract, empty where nothing did."""
    done = subprocess.run([python, "-c", SCRIPT, str(HERE), json.dumps(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_misuse_raises(python, surroundings):
    """Unknown attributes, wrong arity, keywords and types, and assignments to what is read-only are refused in every release."""
    assert [line for line, reason in run(python, MISUSES).items() if not reason] == []


def test_a_right_use_passes(python, surroundings):
    """What the release has, used as its docstring says, passes."""
    assert {line: reason for line, reason in run(python, RIGHT_USES).items() if reason} == {}


def test_stubs_make_nothing(python, surroundings):
    """The real constructor, on the stubs, says of a missing GPU what the worker's code expects it to say."""
    script = """
import json, os, sys
sys.path.insert(0, os.environ["EXPORTER_CONTRACT_SITE"])
import tensorrt_bindings as trt
try:
    trt.Builder(trt.Logger())
except TypeError as err:
    print(json.dumps(str(err)))
"""
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "factory function returned nullptr" in json.loads(done.stdout)
