"""Every name that the worker uses of TensorRT exists in each release, where it is used."""

from __future__ import annotations

import ast
import json
import subprocess
from pathlib import Path

import pytest

from exporter.trt_worker import serving
from exporter.trt_worker.serving.features import FEATURES

HERE = Path(__file__).parent
SOURCES = sorted(Path(serving.__path__[0]).glob("*.py"))

USED_ONLY_WITH = {
    # name -> the feature whose presence the code asks for before it uses the name
    "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "explicit batch",
    "trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED": "strongly typed",
    "trt.BuilderFlag.FP16": "precision flags",
    "trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS": "precision flags",
    "trt.BuilderFlag.INT8": "precision flags",
    "trt.IProgressMonitor": "progress monitor",
    "trt.IProgressMonitor.__init__": "progress monitor",
    "trt.OnnxParserRefitter": "parser refitter",
    "trt.BuilderFlag.STRICT_NANS": "strict nans",
    "trt.BuilderFlag.STRIP_PLAN": "stripped plans",
    "trt.BuilderFlag.EDITABLE_TIMING_CACHE": "editable timing cache",
    "trt.BuilderFlag.DISABLE_COMPILATION_CACHE": "editable timing cache",
    "trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS": "editable timing cache",
    "trt.TimingCacheKey.parse": "editable timing cache",
    "trt.TimingCacheKey": "editable timing cache",
    "trt.TimingCacheValue": "editable timing cache",
    "trt.BuilderFlag.VERSION_COMPATIBLE": "version compatibility",
    "trt.BuilderFlag.WEIGHT_STREAMING": "weight streaming",
    "trt.OnnxParserFlag": "native instance norm",
    "trt.OnnxParserFlag.NATIVE_INSTANCENORM": "native instance norm",
    "trt.SerializationFlag": "parser refitter",
    "trt.SerializationFlag.EXCLUDE_WEIGHTS": "parser refitter",
    "trt.SerializationFlag.INCLUDE_REFIT": "refit flag of a plan",
    "trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE": "batch invariance",
    "trt.HardwareCompatibilityLevel": "hardware compatibility",
    "trt.HardwareCompatibilityLevel.AMPERE_PLUS": "hardware compatibility",
    "trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": "same compute capability",
    "trt.IDebugListener": "debug tensors",
    "trt.IDebugListener.__init__": "debug tensors",
    "trt.TacticSource.CUBLAS": "tactic libraries",
    "trt.TacticSource.CUBLAS_LT": "tactic libraries",
    "trt.TacticSource.CUDNN": "tactic libraries",
}

SHOWN_BY = {
    # feature -> a name that is there exactly where the feature is
    "explicit batch": "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH",
    "tactic libraries": "trt.TacticSource.CUBLAS",
    "precision flags": "trt.BuilderFlag.FP16",
    "optimization level": "trt.IBuilderConfig.builder_optimization_level",
    "strongly typed": "trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED",
    "progress monitor": "trt.IProgressMonitor",
    "named parser errors": "trt.ParserError.node_name",
    "hardware compatibility": "trt.HardwareCompatibilityLevel.AMPERE_PLUS",
    "parser refitter": "trt.OnnxParserRefitter",
    "strict nans": "trt.BuilderFlag.STRICT_NANS",
    "same compute capability": "trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
    "batch invariance": "trt.BuilderFlag.DISTRIBUTIVE_INDEPENDENCE",
    "debug tensors": "trt.INetworkDefinition.mark_unfused_tensors_as_debug_tensors",
    "stripped plans": "trt.BuilderFlag.STRIP_PLAN",
    "refit flag of a plan": "trt.SerializationFlag.INCLUDE_REFIT",
    "native instance norm": "trt.OnnxParserFlag.NATIVE_INSTANCENORM",
    "version compatibility": "trt.Runtime.engine_host_code_allowed",
    "editable timing cache": "trt.ITimingCache.queryKeys",
    "layer metadata": "trt.ILayer.metadata",
    "plugin libraries": "trt.IPluginRegistry.load_library",
    "weight streaming": "trt.BuilderFlag.WEIGHT_STREAMING",
    "weight streaming budget": "trt.ICudaEngine.weight_streaming_budget_v2",
}
KEPT_FOR_NOTHING = {"explicit batch", "precision flags", "tactic libraries"}
"""Still named by releases that make no use of them any more: up to 10.16."""


def names_used(text: str) -> set[str]:
    """Return every chain ``trt.A.B`` in a source text."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        steps, inner = [], node
        while isinstance(inner, ast.Attribute):
            steps.append(inner.attr)
            inner = inner.value
        if steps and isinstance(inner, ast.Name) and inner.id == "trt":
            found.add(".".join(["trt", *reversed(steps)]))
        if steps and isinstance(inner, ast.Attribute):
            continue
        if steps and isinstance(node, ast.Attribute) and isinstance(inner, ast.Name) and inner.id == "self" and steps[-1] == "_trt":
            found.add(".".join(["trt", *reversed(steps[:-1])]))
    return {name for name in found if name != "trt"}


def missing(python: str, names: set[str]) -> list[str]:
    """Return those of ``names`` that the release's real bindings do not have."""
    script = """
import json, os, sys
sys.path.insert(0, os.environ["EXPORTER_CONTRACT_SITE"])
import tensorrt_bindings as trt
lacking = []
for name in json.loads(sys.argv[1]):
    here = trt
    for step in name.split(".")[1:]:
        here = getattr(here, step, None)
        if here is None:
            lacking.append(name)
            break
print(json.dumps(lacking))
"""
    done = subprocess.run([python, "-c", script, json.dumps(sorted(names))], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def expected(names: set[str], number: tuple[int, int]) -> set[str]:
    """Return those of ``names`` that a release has to have."""
    spans = {name: FEATURES[feature] for name, feature in USED_ONLY_WITH.items()}
    return {name for name in names if name not in spans or spans[name][0] <= number < spans[name][1]}


def test_every_name_that_is_used_exists(release, python, surroundings):
    """Every ``trt.A.B`` in the worker's sources exists in this release, or its use is behind a question for its feature."""
    used = set().union(*(names_used(source.read_text()) for source in SOURCES))
    assert {"trt.BuilderFlag.TF32", "trt.Builder", "trt.Runtime", "trt.ProfilingVerbosity.NONE"} <= used  # the scan sees something
    assert set(USED_ONLY_WITH) - {"trt.IProgressMonitor.__init__", "trt.IDebugListener.__init__"} <= used
    assert missing(python, expected(used, release.number)) == []


def test_the_table_of_features_is_that_of_the_bindings(release, python, surroundings):
    """A release has what the table says, and lacks the rest: the table is compared with the real bindings, feature by feature."""
    assert set(SHOWN_BY) == set(FEATURES)
    lacking = set(missing(python, set(SHOWN_BY.values())))
    for feature, name in SHOWN_BY.items():
        first, end = FEATURES[feature]
        if release.number >= end and feature in KEPT_FOR_NOTHING and release.number < (11, 0):
            continue
        assert (first <= release.number < end) == (name not in lacking), feature


REMOVED = {  # a use -> the last major release that has it
    "config.set_flag(trt.BuilderFlag.FP16)": 10,
    "flags = 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)": 10,
    "trt.TacticSource.CUDNN": 10,
    "self._trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS": 10,
    "trt.BuilderFlag.TF23": 0,
}


def test_the_scan_finds_what_a_release_does_not_have(release, python, surroundings):
    """A use of what a release has removed is found; this shows that the check can fail."""
    major = release.number[0]
    lacking = set(missing(python, set().union(*map(names_used, REMOVED))))
    assert {line for line in REMOVED if names_used(line) & lacking} == {line for line, last in REMOVED.items() if last < major}


NOTHING_TO_CHECK = {
    # receiver and method -> why what other classes return from a method of this name is not returned here
    "config.set_flag": "IBuilderConfig",
    "config.clear_flag": "IBuilderConfig",
    "parser.set_flag": "OnnxParser",
    "profile.set_shape": "IOptimizationProfile",
}


NOT_OF_TENSORRT = {"cancelled.pop", "facts.update", "os.write"}


def dropped_calls(text: str) -> set[str]:
    """Return ``receiver.method`` of every call whose value nothing is done with."""
    calls = [node.value.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)]
    return {f"{ast.unparse(call.value).rpartition('.')[2]}.{call.attr}" for call in calls if isinstance(call, ast.Attribute)} - NOT_OF_TENSORRT


def returning(python: str, methods: set[str]) -> dict[str, list[str]]:
    """Return, for each method name, the release's classes in which it returns something."""
    script = """
import json, os, re, sys
sys.path.insert(0, os.environ["EXPORTER_CONTRACT_SITE"])
import tensorrt_bindings as trt
found = {}
for method in json.loads(sys.argv[1]):
    for name, kind in vars(trt).items():
        inner = isinstance(kind, type) and getattr(kind, method, None)
        answers = set(re.findall(r"[)] -> (.+)", getattr(inner, "__doc__", None) or "")) if callable(inner) else set()
        if "tensorrt" in getattr(kind, "__module__", "") and answers - {"None"}:
            found.setdefault(method, []).append(name)
print(json.dumps(found))
"""
    done = subprocess.run([python, "-c", script, json.dumps(sorted(methods))], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def unchecked(python: str, text: str) -> list[str]:
    """Return the calls whose value is dropped though TensorRT returns one."""
    calls = {call: call.partition(".")[2] for call in dropped_calls(text)}
    answers = returning(python, set(calls.values()))
    return sorted(call for call, method in calls.items() if method in answers and NOTHING_TO_CHECK.get(call, answers[method][0]) in answers[method])


def test_every_value_that_is_returned_is_looked_at(release, python, surroundings):
    """No call of TensorRT stands alone on its line where this release returns something from it: False and None are its ways to fail."""
    assert unchecked(python, "\n".join(source.read_text() for source in SOURCES)) == []


@pytest.mark.parametrize(
    "line", ["context.execute_async_v3(stream)", "self._context.set_tensor_address(name, 1)", "config.set_timing_cache(cache, False)"]
)
def test_the_scan_finds_a_value_that_is_dropped(release, python, surroundings, line):
    """This shows that the check can fail."""
    assert unchecked(python, line) == [line.partition("(")[0].removeprefix("self.")]
    assert unchecked(python, f"worked = {line}") == []
