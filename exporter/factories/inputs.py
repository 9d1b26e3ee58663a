"""Example inputs for tracing: from the configuration, else from the samples; torch is not imported."""

from __future__ import annotations

from exporter.config import InputConfig, ModelConfig
from exporter.errors import ConfigError
from exporter.samples import Samples

__all__ = ["BATCH", "example_inputs"]

BATCH = 2
"""Batch size used for tracing: 0 and 1 are special cases to a tracer, which would write them into the graph."""

_DTYPES = ("float32", "float16", "bfloat16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")


def example_inputs(config: ModelConfig, samples: Samples | None) -> tuple[InputConfig, ...]:
    """Return the inputs to trace with; a dynamic batch axis of size 1 becomes 2.

    From samples, floating arrays become float32 inputs (the network is built in float32), others keep their dtype.

    Raises:
        ConfigError: there is neither a configured input nor a sample (E311), or a configured one is wrong (E312).
    """
    if config.inputs:
        return tuple(_checked(entry, config.inputs) for entry in config.inputs)
    if samples is None:
        help_text = 'give recorded samples ([samples] path = "samples.npz") or a shape: --input image:2x3x224x224, [[model.inputs]] in exporter.toml'
        raise ConfigError(
            "E311",
            "the shape of the model's input is not known",
            facts={"at": "model -> inputs", "found": "no inputs and no samples"},
            help=help_text,
        )
    return tuple(
        InputConfig(name=name, shape=(BATCH, *array.shape[1:]), dtype="float32" if array.dtype.kind == "f" else str(array.dtype))
        for name, array in samples.inputs.items()
    )


def _checked(entry: InputConfig, every: tuple[InputConfig, ...]) -> InputConfig:
    at = f"model -> inputs -> {entry.name}"
    if sum(other.name == entry.name for other in every) > 1:
        raise ConfigError("E312", "two inputs have the same name", facts={"at": at})
    if not entry.shape or any(size < 1 for size in entry.shape):
        raise ConfigError(
            "E312", "an input has an axis without elements", facts={"at": at, "found": list(entry.shape), "expected": "sizes >= 1, the batch first"}
        )
    if entry.dtype not in _DTYPES:
        raise ConfigError("E312", "an input has a dtype that is not known", facts={"at": at, "found": entry.dtype, "expected": ", ".join(_DTYPES)})
    if any(not axis.isdigit() or int(axis) >= len(entry.shape) for axis in entry.dynamic):
        facts = {"at": f"{at} -> dynamic", "found": ", ".join(entry.dynamic), "expected": f"axes 0 to {len(entry.shape) - 1}"}
        raise ConfigError("E312", "a dynamic axis is not an axis of the input", facts=facts)
    is_dynamic = not entry.dynamic or "0" in entry.dynamic
    return entry.replace(shape=(BATCH, *entry.shape[1:])) if is_dynamic and entry.shape[0] == 1 else entry
