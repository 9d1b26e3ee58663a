"""Configuration: one frozen type per stage, default < exporter.toml < environment < flag.

The file is ``exporter.toml`` or the table ``[tool.exporter]`` of ``pyproject.toml``. Environment variables are
``EXPORTER_<SECTION>_<KEY>``, e.g. ``EXPORTER_TENSORRT_REQUIRED=true``; their values are read as TOML, then as a plain string.
Paths in the file are relative to the file. An unknown key is an error that gives its place and the near misses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from exporter.errors import ConfigError
from exporter.locations import Location, RemotePath
from exporter.sections import Section, SettingError, UnknownSettingError, setting
from exporter.toml_text import read_toml, value_from_text

__all__ = [
    "BakeConfig",
    "Config",
    "FoldConfig",
    "InputConfig",
    "LatencyConfig",
    "MetricConfig",
    "ModelConfig",
    "OnnxConfig",
    "OnnxruntimeConfig",
    "OutputTolerance",
    "ParityConfig",
    "ReportConfig",
    "SamplesConfig",
    "TensorrtConfig",
    "find_config",
    "load_config",
]

CONFIG_NAME = "exporter.toml"


class InputConfig(Section):
    """One input of the model; the first axis is the batch.

    Attributes:
        shape: with the batch size used for tracing in front, e.g. ``[2, 1, 8, 8]``.
        dynamic: axes that may vary -> name, e.g. ``{0: "batch"}``; empty means the batch axis alone.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    dynamic: dict[str, str] = setting(default_factory=dict)


class ModelConfig(Section):
    """``[model]``: the code that rebuilds the network, which the user names on purpose and which runs.

    Attributes:
        factory: ``auto``, ``timm:resnet50``, ``torchvision:resnet18``, ``ultralytics:yolov8n.yaml``,
            ``package.module:callable``, ``path/to/file.py:callable``, or a ``.pt2``.
        arguments: keyword arguments of the factory.
        inputs: example inputs; empty means: taken from the samples.
        outputs: names of the outputs in order; empty means: the model's own names (dict keys), else ``output``, ``output_1``, ...
    """

    factory: str = "auto"
    arguments: dict[str, Any] = setting(default_factory=dict)
    inputs: tuple[InputConfig, ...] = ()
    outputs: tuple[str, ...] = ()
    trust_code: bool = False


class BakeConfig(Section):
    """``[weights]``: which weights leave the checkpoint.

    Attributes:
        choice: ``ema`` or ``raw``; there is no fallback from one to the other.
        ema: name of the EMA candidate, needed where the checkpoint has several.
        decay: what training used, where the file does not say; it decides the health of the average.
        drift: when the distance of the average from the raw weights is measured, for which the raw weights are read too: ``auto``
            up to 256 MB of averaged weights, ``always``, ``never``.
        digest: what identifies checkpoint and output: ``file``, a SHA-256 over every byte, for which both are read once more;
            ``contents``, a SHA-256 over the structure and the CRC-32 of every tensor; ``auto`` is ``file`` up to 256 MB.
        dtype: ``keep``, or a floating dtype that every floating tensor is cast to.
        bn_stats: where the running statistics of BatchNorm come from: ``auto``, the layout's rule; ``raw`` or ``ema``, that copy of
            the weights; ``recalibrate``, estimated anew on the samples with the weights that are baked.
        bn_batch: samples of one batch, at most, when statistics are estimated anew; every batch counts the same.
        select: ``best`` measures ``[metric]`` of every average and of the raw weights on the samples and takes the largest.
        strip_prefix: take only what stands below this prefix, under the names behind it: ``net.`` of a training module around the
            model.
    """

    choice: Literal["ema", "raw"] = "ema"
    ema: str = ""
    decay: float | None = setting(default=None, gt=0, lt=1)
    allow_cold: bool = False
    allow_nonfinite: bool = False
    drift: Literal["auto", "always", "never"] = "auto"
    digest: Literal["auto", "contents", "file"] = "auto"
    dtype: Literal["keep", "float32", "float16", "bfloat16"] = "keep"
    bn_stats: Literal["auto", "raw", "ema", "recalibrate"] = "auto"
    bn_batch: int = setting(default=64, ge=2)
    select: Literal["", "best"] = ""
    strip_prefix: str = ""


class FoldConfig(Section):
    """``[fold]``: folding BatchNorm into the linear operators around it.

    Attributes:
        keep: patterns (``fnmatch``) of BatchNorm module names that are left alone on purpose.
        level: ``conservative`` folds back into what makes a BatchNorm's data and nothing else; ``default`` also ahead, into branches,
            and what adds work where that pays; ``aggressive`` whatever is exact.
        input: normalisations that are folded into the network, which takes raw pixels then: ``mean=...,std=...,scale=1/255``, with
            ``NAME:`` in front where there are several inputs.
    """

    enabled: bool = True
    keep: tuple[str, ...] = ()
    level: Literal["conservative", "default", "aggressive"] = "default"
    input: tuple[str, ...] = ()


class OnnxConfig(Section):
    """``[onnx]``: the exported file.

    Attributes:
        opset: 17 is what TensorRT 8 reads; it is made from opset 18, the oldest that torch's exporter writes.
        precision: of the network, and of every engine that is built from it; inputs and outputs are float32 in any case.
        float32: patterns (``fnmatch``) of module or node names that stay in float32, beside normalisations, softmax and sums.
        calibration: how the ranges of values in 8 bits are found on the recorded samples.
        calibration_percentile: of the magnitudes, that ``percentile`` keeps.
    """

    opset: int = setting(default=20, ge=17, le=25)
    dynamic_batch: bool = True
    precision: Literal["float32", "float16", "bfloat16", "int8", "fp8"] = "float32"
    float32: tuple[str, ...] = ()
    calibration: Literal["entropy", "percentile", "minmax"] = "entropy"
    calibration_percentile: float = setting(default=99.99, ge=50, le=100)


class OnnxruntimeConfig(Section):
    """``[onnxruntime]``: execution providers, each one listed is a candidate of its own.

    Attributes:
        required: a machine that lacks one of them ends the run with exit status 6 instead of NOT_RUN. So does a machine that lacks one where
            the CPU provider is not listed: nothing else would judge the file.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    required: bool = False


class TensorrtConfig(Section):
    """``[tensorrt]``: the engine.

    Attributes:
        required: a machine that cannot build or run the engine ends the run with exit status 6 instead of NOT_RUN.
        python: interpreter of the worker process; it needs numpy and tensorrt. Empty: this interpreter.
        profiles: ``name:min,opt,max`` with shapes as ``1x3x224x224``, several inputs joined with ``;``; empty means one profile
            for every batch from 1 to the largest that is checked, tuned for that one.
        tf32: whether float32 products may use TF32 on the tensor cores. The precision is the ONNX model's: ``[onnx] precision``.
        strict_nans: NaN and infinity are not optimised away, as ``0 * x`` would be.
        batch_invariant: a row's result does not depend on the batch that it is in.
        hardware_compatibility: GPUs beside this one that the engine runs on; it is slower for it.
        refittable: the engine takes new weights later; it is slower, and no claim of latency is made with it.
        stripped: the plan leaves without its weights, which ``build-trt --refit`` puts in; it is refittable too.
        version_compatible: later releases of TensorRT run the plan too; it carries code for the host, and takes no new weights.
        weight_streaming: weights may stay in the host's memory and be copied for each call.
        weight_streaming_budget_mib: device memory for the weights of such an engine when it is loaded; None leaves it to TensorRT.
        reproducible: the tactics of the first build are recorded, and each later one takes them or fails.
        debug_tensors: the engine hands out what it writes between its layers, so that a FAIL names the first one that departs; no claim
            of latency is made with it.
        plugins: libraries with plugins, which are code: the worker loads these and no others.
        cuda_graph: ``auto`` times calls that are captured in a CUDA graph, and plain ones where that does not work; ``always`` captures
            inference too and ends where it does not work; ``never`` captures nothing.
        cache: folder of timing caches and engines; none means the user's cache folder.
        cache_mib: room for engines in it; 0 keeps none.
    """

    required: bool = False
    python: str = ""
    tf32: bool = False
    workspace_mib: int = setting(default=1024, ge=1)
    optimization_level: int = setting(default=3, ge=0, le=5)
    timing_iterations: int = setting(default=8, ge=1)
    profiles: tuple[str, ...] = ()
    timeout_s: float = setting(default=3600.0, gt=0)
    strict_nans: bool = False
    batch_invariant: bool = False
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    refittable: bool = False
    stripped: bool = False
    version_compatible: bool = False
    weight_streaming: bool = False
    weight_streaming_budget_mib: int | None = setting(default=None, ge=0)
    reproducible: bool = False
    debug_tensors: bool = False
    plugins: tuple[Path, ...] = ()
    cuda_graph: Literal["auto", "never", "always"] = "auto"
    cache: Path | None = None
    cache_mib: int = setting(default=8192, ge=0)


class SamplesConfig(Section):
    """``[samples]``: what the model is judged on.

    Attributes:
        path: a ``.npz``; its arrays are matched to the inputs by name.
        labels: name of the array of integer labels in it; empty where there are none.
        limit: at most this many samples are used for parity.
        random: number of seeded random samples, used beside the real ones, or alone where there are none.
    """

    path: Path | None = None
    labels: str = ""
    limit: int = setting(default=256, ge=1)
    random: int = setting(default=16, ge=0)
    edge: bool = True
    seed: int = 0
    required: bool = False


class OutputTolerance(Section):
    """``[parity.outputs.NAME]``: overrides for one output."""

    atol: float | None = setting(default=None, ge=0)
    rtol: float | None = setting(default=None, ge=0)
    factor: float | None = setting(default=None, gt=0)
    floor: float | None = setting(default=None, ge=0)


class ParityConfig(Section):
    """``[parity]``: the rule of ``docs/verdicts.md``.

    Attributes:
        atol: as a share of the output's RMS; None means the default of the precision.
        factor, floor: relative L2 error may be ``factor * own error + floor``; None means the default of the precision.
        batches: batch sizes that are run.
    """

    atol: float | None = setting(default=None, ge=0)
    rtol: float | None = setting(default=None, ge=0)
    factor: float | None = setting(default=None, gt=0)
    floor: float | None = setting(default=None, ge=0)
    batches: tuple[int, ...] = (1, 32)
    outputs: dict[str, OutputTolerance] = setting(default_factory=dict)


class LatencyConfig(Section):
    """``[latency]``: the race against the unfused reference.

    Attributes:
        min_speedup: required speed-up over the reference; None means "no slower than the margin".
        margin: allowed slow-down, 0.02 is 2 %.
        false_alarm_rate: of the gate.
        threads: of every contestant on the CPU.
    """

    enabled: bool = True
    required: bool = True
    batch: int = setting(default=32, ge=1)
    min_speedup: float | None = setting(default=None, gt=0)
    margin: float = setting(default=0.02, ge=0)
    false_alarm_rate: float = setting(default=0.001, gt=0, lt=0.5)
    rounds: int = setting(default=20, ge=8)
    block_ms: float = setting(default=20.0, gt=0)
    warmup_ms: float = setting(default=500.0, ge=0)
    threads: int = setting(default=2, ge=1)
    seed: int = 0


class MetricConfig(Section):
    """``[metric]``: the task metric, higher is better.

    Attributes:
        function: ``accuracy`` (top-1 of ``output`` against the labels) or ``module:callable`` / ``file.py:callable`` that takes
            ``(outputs, labels)`` as arrays and returns a float; empty means: accuracy where there are labels, else none.
        allowed_drop: of the candidate against the unfused EMA model.
    """

    function: str = ""
    output: str = ""
    allowed_drop: float = setting(default=0.0, ge=0)


class ReportConfig(Section):
    """``[report]``: where runs are kept, relative to the configuration file."""

    directory: Path = Path(".exporter")


class Config(Section):
    """The resolved configuration."""

    checkpoint: Path | RemotePath | None = None
    model: ModelConfig = ModelConfig()
    weights: BakeConfig = BakeConfig()
    fold: FoldConfig = FoldConfig()
    onnx: OnnxConfig = OnnxConfig()
    onnxruntime: OnnxruntimeConfig = OnnxruntimeConfig()
    tensorrt: TensorrtConfig = TensorrtConfig()
    samples: SamplesConfig = SamplesConfig()
    parity: ParityConfig = ParityConfig()
    latency: LatencyConfig = LatencyConfig()
    metric: MetricConfig = MetricConfig()
    report: ReportConfig = ReportConfig()

    base: Path = setting(default=Path(), is_key=False)
    """Folder that relative paths start from; not a key of the file."""

    @property
    def checkpoint_at(self) -> Location | None:
        """Where the checkpoint lies; a URL is taken as it stands."""
        return self.checkpoint if self.checkpoint is None or isinstance(self.checkpoint, RemotePath) else self.resolve(self.checkpoint)

    def resolve(self, path: Path) -> Path:
        """Return ``path`` taken relative to the folder of the configuration file."""
        return path if path.is_absolute() else self.base / path

    @property
    def work_dir(self) -> Path:
        """Folder that artefacts and runs are kept in."""
        return self.resolve(self.report.directory)


def find_config(start: Path) -> Path | None:
    """Return the ``exporter.toml`` (or the ``pyproject.toml`` with ``[tool.exporter]``) of folder ``start``, else None."""
    own = start / CONFIG_NAME
    if own.is_file():
        return own
    project = start / "pyproject.toml"
    if project.is_file() and "exporter" in read_toml(project).get("tool", {}):
        return project
    return None


def load_config(
    path: Path | None = None,
    *,
    base: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """Read the configuration.

    Args:
        path: file to read; None means defaults, environment and flags alone.
        base: folder for relative paths; the file's own folder where it is None.
        environment: variables to look at, ``os.environ`` where it is None.
        flags: section -> key -> value from the command line; the section ``""`` holds top-level keys; values of None are ignored.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it is wrong.
    """
    table: dict[str, Any] = {}
    if path is not None:
        table = read_toml(path)
        if path.name == "pyproject.toml":
            table = table.get("tool", {}).get("exporter", {})
    where = str(path) if path else "the defaults"
    if "base" in table:
        raise _unknown_key(UnknownSettingError(("base",), _known_keys(Config)), where)
    _overlay_environment(table, os.environ if environment is None else environment)
    for section, values in (flags or {}).items():
        target = table if section == "" else table.setdefault(section, {})
        if isinstance(target, dict):  # if not, the check below says so
            target.update({key: value for key, value in values.items() if value is not None})
    folder = base if base is not None else (path.parent if path is not None else Path())
    try:
        config = Config(**table | {"base": folder})
    except UnknownSettingError as err:
        raise _unknown_key(err, where) from err
    except SettingError as err:
        raise _config_error(err, where) from err
    if not config.tensorrt.plugins:
        return config
    return config.replace(tensorrt=config.tensorrt.replace(plugins=[config.resolve(path).absolute() for path in config.tensorrt.plugins]))


def _overlay_environment(table: dict[str, Any], environment: Mapping[str, str]) -> None:
    for variable, text in sorted(environment.items()):
        if not variable.startswith("EXPORTER_"):
            continue
        words = variable.removeprefix("EXPORTER_").lower()
        for section in Config.settings:
            kind = Config.section_of(section) if words.startswith(section + "_") else None
            if kind is None:
                continue
            key = words.removeprefix(section + "_")
            if key not in kind.settings:
                raise _unknown_key(UnknownSettingError((section, key), _known_keys(kind)), f"the environment variable {variable}")
            target = table.setdefault(section, {})
            if isinstance(target, dict):
                target[key] = value_from_text(text)


def _config_error(err: SettingError, where: str) -> ConfigError:
    facts = {"in": where, "at": " -> ".join(err.place), "found": err.found or "no value", "expected": err.expected}
    return ConfigError("E704", f"a setting has a value it cannot have: {'.'.join(err.place)}", facts=facts)


def _unknown_key(err: UnknownSettingError, where: str) -> ConfigError:
    import difflib

    near = difflib.get_close_matches(err.place[-1], err.known, n=3)
    facts = {"in": where, "at": " -> ".join(err.place), "known": ", ".join(err.known)}
    return ConfigError("E703", f"unknown setting {'.'.join(err.place)}", facts=facts, help=f"did you mean {' or '.join(near)}?" if near else "")


def _known_keys(kind: type[Section]) -> tuple[str, ...]:
    return tuple(name for name, entry in kind.settings.items() if entry.is_key)
