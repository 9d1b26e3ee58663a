"""What the fakes do: a TensorRT of one network, which scales the sum of each row, on the memory of the stand-in driver.

``scenario`` (a dict) makes single steps go wrong, as the real library lets them: by False, None, -1 or a log line.
"""

from __future__ import annotations

import json
import time

from guarded import Guarded, GuardedModule
from small_context import NUM_CLASSES, Context
from small_network import Network, Parser, ParserError, Profile, weights_of

STREAMABLE_BYTES = 1 << 20
KEYS = ("0x1814870c44ff0f8574df6e3dda04cbd7", "0xe5c222cd6b9e29cbe66c8bec07cb6a07")


class World:
    """What was asked of the library, for the test to look at."""

    def __init__(self, trt, scenario) -> None:
        self.trt = trt
        self.scenario = scenario
        self.record = {"set": {}, "flags": {}, "profiles": [], "streams": [], "calls": []}

    def make(self, name, behaviour):
        return Guarded(self.trt, getattr(self.trt, name), behaviour)

    def module(self):
        made = {"Builder": self.new_builder, "OnnxParser": self.new_parser, "Runtime": self.new_runtime}
        functions = {"init_libnvinfer_plugins": self.init_plugins, "get_plugin_registry": lambda: self.make("IPluginRegistry", Registry(self))}
        return GuardedModule(self.trt, {**made, "Refitter": self.new_refitter, "OnnxParserRefitter": self.new_parser_refitter}, functions)

    def init_plugins(self, logger, namespace):
        assert isinstance(logger, self.trt.ILogger)
        self.record.setdefault("plugins", []).append(f"own {namespace!r}")
        return not self.scenario.get("own_plugins_fail")

    def log(self, text):
        """Log a warning where the last runtime logs."""
        self.say(self.logger, text)

    def say(self, logger, text):
        logger.log(self.trt.ILogger.Severity.WARNING, text)

    def new_builder(self, logger):
        if self.scenario.get("no_device"):
            logger.log(self.trt.ILogger.Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return self.make("Builder", Builder(self, logger))

    def new_parser(self, network, logger):
        return self.make("OnnxParser", Parser(self, logger))

    def new_runtime(self, logger):
        self.logger = logger
        return self.make("Runtime", Runtime(self, logger))

    def new_refitter(self, engine, logger):
        return self.make("Refitter", Refitter(self, inside(engine)))

    def new_parser_refitter(self, refitter, logger):
        return self.make("OnnxParserRefitter", ParserRefitter(self, inside(refitter)))


class Registry:
    def __init__(self, world) -> None:
        self.world = world

    def load_library(self, plugin_path):
        if self.world.scenario.get("plugin_refused") or plugin_path in self.world.record["plugins"]:
            return None
        self.world.record["plugins"].append(plugin_path)
        return plugin_path


def inside(guarded):
    return object.__getattribute__(guarded, "_guard")[2]


class Builder:
    def __init__(self, world, logger) -> None:
        self.world, self.logger = world, logger

    def create_network(self, flags=0):
        self.world.record["network_flags"] = int(flags)
        return self.world.make("INetworkDefinition", Network(self.world))

    def create_builder_config(self):
        return None if self.world.scenario.get("no_config") else self.world.make("IBuilderConfig", Config(self.world))

    def create_optimization_profile(self):
        return self.world.make("IOptimizationProfile", Profile())

    def build_serialized_network(self, network, config):
        settings = object.__getattribute__(config, "_guard")[2]
        self.world.record["set"] = {
            k: (v if isinstance(v, (int, str)) else str(v)) for k, v in vars(settings).items() if k not in {"world", "progress_monitor", "timing"}
        }
        self.world.record["profiles"] = settings.profiles
        missed = settings.time_tactics(len(profiles_or_one(settings)))
        if missed and self.world.record["flags"].get("BuilderFlag.ERROR_ON_TIMING_CACHE_MISS"):
            self.world.say(self.logger, f"timing cache miss: {missed[0]}")
            return None
        self.world.record["has_monitor"] = getattr(settings, "progress_monitor", None) is not None
        self.world.say(self.logger, "a warning of the builder")
        if not self.tell_progress(getattr(settings, "progress_monitor", None)):
            return None
        if self.world.scenario.get("builder_returns_none"):
            self.world.say(self.logger, "Could not find any implementation for node head")
            return None
        profiles = profiles_or_one(settings)
        flags = self.world.record["flags"]
        weights = None if {"BuilderFlag.STRIP_PLAN", "BuilderFlag.WEIGHTLESS"} & set(flags) else self.world.weights
        facts = {"profiles": profiles, "weights": weights, "refittable": "BuilderFlag.REFIT" in flags}
        facts |= {"host_code": "BuilderFlag.VERSION_COMPATIBLE" in flags, "streams": "BuilderFlag.WEIGHT_STREAMING" in flags}
        facts |= {"debug": bool(self.world.record.get("marked"))}
        return bytearray(json.dumps({**facts, **self.world.scenario.get("engine", {})}).encode())

    def tell_progress(self, monitor) -> bool:
        slow = self.world.scenario.get("slow", 0)
        pause_s = 0.02 if slow is True else slow
        if monitor is None:
            time.sleep(0 if slow is True else 50 * pause_s)
            return True
        assert isinstance(monitor, self.world.trt.IProgressMonitor)
        monitor.phase_start("Building Engine", None, 2)
        monitor.phase_start("Timing graph nodes", "Building Engine", 50)
        for step in range(50):
            time.sleep(pause_s)
            if not monitor.step_complete("Timing graph nodes", step):
                return False
        monitor.phase_finish("Timing graph nodes")
        monitor.phase_finish("Building Engine")
        return True


def profiles_or_one(settings):
    return settings.profiles or [{}]


class Config:
    def __init__(self, world) -> None:
        self.world = world
        self.profiles = []

    def set_memory_pool_limit(self, pool, pool_size):
        self.world.record["pool"] = [str(pool), pool_size]

    def set_flag(self, flag):
        self.world.record["flags"][str(flag)] = True

    def clear_flag(self, flag):
        self.world.record["flags"][str(flag)] = False

    def get_tactic_sources(self):
        return 0b11111

    def set_tactic_sources(self, tactic_sources):
        self.world.record["tactic_sources"] = tactic_sources
        return not self.world.scenario.get("tactics_refused")

    def create_timing_cache(self, serialized_timing_cache):
        content = bytes(serialized_timing_cache)
        return self.world.make(
            "ITimingCache",
            TimingCache(self.world, json.loads(content) if content else {"version": str(self.world.trt.__version__), "tactics": 0, "by_key": {}}),
        )

    def set_timing_cache(self, cache, ignore_mismatch):
        assert ignore_mismatch is False
        inner = object.__getattribute__(cache, "_guard")[2]
        if inner.content["version"] != str(self.world.trt.__version__) or self.world.scenario.get("timing_refused"):
            return False
        self.timing = cache
        return True

    def get_timing_cache(self):
        return getattr(self, "timing", None)

    def time_tactics(self, count):
        if hasattr(self, "timing"):
            content = inside(self.timing).content
            content["tactics"] += count
            by_key = content.setdefault("by_key", {})
            missing = [key for key in KEYS if key not in by_key]
            for number, key in enumerate(KEYS):
                by_key.setdefault(key, [0x2C80CE2F5C4A6F01 + number, 0.5])
            if key := self.world.scenario.get("timed_anew"):
                by_key[key] = [7, 0.25]
            if self.world.scenario.get("other_tactic"):
                by_key[KEYS[0]] = [2**64 - 1, 0.25]
            return missing
        return []

    def add_optimization_profile(self, profile):
        if self.world.scenario.get("profile_refused"):
            return -1
        self.profiles.append(object.__getattribute__(profile, "_guard")[2].shapes)
        return len(self.profiles) - 1


class TimingCache:
    def __init__(self, world, content) -> None:
        self.world, self.content = world, content

    def queryKeys(self):
        return [self.world.trt.TimingCacheKey.parse(text) for text in self.content["by_key"]]

    def query(self, key):
        return self.world.trt.TimingCacheValue(*self.content["by_key"][str(key)])

    def update(self, key, value):
        if str(key) not in self.content["by_key"] or self.world.scenario.get("tactic_refused"):
            return False
        self.content["by_key"][str(key)] = [value.tacticHash, value.timingMSec]
        return True

    def serialize(self):
        return bytearray(json.dumps(self.content).encode())


class Runtime:
    def __init__(self, world, logger) -> None:
        self.world, self.logger = world, logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine):
        try:
            plan = json.loads(bytes(serialized_engine))
        except ValueError:
            plan = None
        if plan is None or self.world.scenario.get("plan_refused"):
            self.world.say(self.logger, "The engine plan file is generated on an incompatible device")
            return None
        if plan.get("host_code") and not self.engine_host_code_allowed:
            self.world.say(self.logger, "Engine contains host code, which is not allowed")
            return None
        return self.world.make("ICudaEngine", Engine(self.world, plan))


class Engine:
    def __init__(self, world, plan) -> None:
        self.world, self.plan = world, plan
        self.refittable = plan.get("refittable", False)
        self.profiles = plan["profiles"]
        self.tensors = [("image", "INPUT", "FLOAT", (-1, 1, 8, 8)), ("logits", "OUTPUT", plan.get("output_dtype", "FLOAT"), (-1, NUM_CLASSES))]
        if self.has_shape_input:
            self.tensors += [("columns", "INPUT", "INT32", (1,)), ("rows", "OUTPUT", "INT32", (1,))]
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = len(self.profiles)
        self.streamable_weights_size = STREAMABLE_BYTES if plan.get("streams") else 0
        self.minimum_weight_streaming_budget = STREAMABLE_BYTES // 4

    @property
    def weight_streaming_budget_v2(self):
        return self.world.record.get("budget", self.streamable_weights_size)

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, value):
        if not self.world.scenario.get("budget_refused"):
            self.world.record["budget"] = value

    @property
    def weight_streaming_budget(self):
        return self.world.record.get("budget", 0)

    @weight_streaming_budget.setter
    def weight_streaming_budget(self, value):
        if not self.world.scenario.get("budget_refused"):
            self.world.record["budget"] = value

    def get_weight_streaming_automatic_budget(self):
        return STREAMABLE_BYTES // 2

    def create_serialization_config(self):
        return self.world.make("ISerializationConfig", SerializationConfig())

    def serialize_with_config(self, config):
        flags = inside(config).flags_set
        plan = {**self.plan, "weights": None if "EXCLUDE_WEIGHTS" in flags else self.plan["weights"]}
        if hasattr(self.world.trt.SerializationFlag, "INCLUDE_REFIT"):
            plan["refittable"] = self.refittable and "INCLUDE_REFIT" in flags
        return None if self.world.scenario.get("not_serialized") else bytearray(json.dumps(plan).encode())

    @property
    def has_shape_input(self):
        return bool(self.world.scenario.get("shape_input"))

    def of(self, name):
        return next(tensor for tensor in self.tensors if tensor[0] == name)

    def get_tensor_name(self, index):
        return self.tensors[index][0]

    def get_tensor_mode(self, name):
        return getattr(self.world.trt.TensorIOMode, self.of(name)[1])

    def get_tensor_dtype(self, name):
        return getattr(self.world.trt.DataType, self.of(name)[2])

    def get_tensor_shape(self, name):
        return self.of(name)[3]

    def get_tensor_profile_shape(self, name, profile_index):
        return self.profiles[profile_index][name] if name != "columns" else [(1,)] * 3

    def get_tensor_location(self, name):
        return self.world.trt.TensorLocation.HOST if name in {"columns", "rows"} else self.world.trt.TensorLocation.DEVICE

    def is_shape_inference_io(self, name):
        return bool(self.world.scenario.get("shape_inference_io")) or name in {"columns", "rows"}

    def create_execution_context(self):
        return None if self.world.scenario.get("no_context") else self.world.make("IExecutionContext", Context(self.world, self))

    def create_engine_inspector(self):
        return self.world.make("EngineInspector", Inspector(self.world))


class SerializationConfig:
    def __init__(self) -> None:
        self.flags_set = {"EXCLUDE_WEIGHTS"}  # as of an engine from a plan without weights

    def clear_flag(self, flag):
        self.flags_set.discard(flag.name)
        return True

    def set_flag(self, flag):
        self.flags_set.add(flag.name)
        return True


class Refitter:
    def __init__(self, world, engine) -> None:
        self.world, self.engine, self.weights = world, engine, None

    def get_missing_weights(self):
        return [f"w{number}" for number in range(7)] if self.world.scenario.get("weights_missing") else []

    def refit_cuda_engine(self):
        if self.weights is None or self.world.scenario.get("refit_fails"):
            return False
        self.engine.plan["weights"] = self.weights
        return True


class ParserRefitter:
    def __init__(self, world, refitter) -> None:
        self.world, self.refitter = world, refitter
        self.num_errors = 1 if world.scenario.get("weights_refused") else 0

    def refit_from_file(self, model):
        self.refitter.weights = weights_of(model)
        return not self.num_errors

    def get_error(self, index):
        return self.world.make("ParserError", ParserError(index))


class Inspector:
    def __init__(self, world) -> None:
        self.world = world

    def get_engine_information(self, format):  # noqa: A002 - TensorRT's names
        assert format == self.world.trt.LayerInformationFormat.JSON
        kind = self.world.scenario.get("layer_dtype", "FP32")
        if told := self.world.scenario.get("inspected"):
            return json.dumps(
                {"Layers": [{**layer, "Outputs": [{"Name": layer["Name"], "Format/Datatype": f"Row major linear {kind}"}]} for layer in told]}
            )
        if int(self.world.trt.__version__.split(".")[0]) >= 11:
            tensor = {"Name": "t", "Format": "Row major linear", "Datatype": {"FP32": "Float", "FP16": "Half", "INT8": "Int8", "FP8": "FP8"}[kind]}
            layers = [{"Name": "conv", "LayerType": "Conv", "Outputs": [tensor]}, {"Name": "head", "LayerType": "Gemm", "Outputs": [tensor]}]
            return json.dumps({"Layers": layers, "I/O Tensors": [{"Name": "image", "IOMode": "Input"}, {"Name": "logits", "IOMode": "Output"}]})
        tensor = {"Name": "t", "Location": "Device", "Dimensions": [1], "Format/Datatype": f"Row major linear {kind}"}
        layers = [{"Name": "conv", "LayerType": "Conv", "Outputs": [tensor]}, {"Name": "head", "LayerType": "Gemm", "Outputs": [tensor]}]
        return json.dumps({"Layers": layers, "Bindings": ["image", "logits"]})
