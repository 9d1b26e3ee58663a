"""Tolerances by precision, and where they come from (measured figures: ``docs/verdicts.md``)."""

from __future__ import annotations

from dataclasses import dataclass

from exporter.config import OutputTolerance, ParityConfig
from exporter.errors import InternalError

__all__ = ["DEFAULTS", "Tolerance", "tolerance_for"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What one output may differ by.

    Attributes:
        atol: as a share of the output's RMS.
        rtol: of each element's reference value.
        factor, floor: relative L2 error may be ``factor * own error + floor``.
        is_atol_fixed: True where the configuration says ``atol``; a default one grows to ``factor`` times the largest error
            that the unfused model itself makes in this precision.
    """

    atol: float
    rtol: float
    factor: float
    floor: float
    is_atol_fixed: bool = False


DEFAULTS: dict[str, Tolerance] = {
    "float64": Tolerance(atol=1e-12, rtol=1e-12, factor=4.0, floor=1e-13),
    "float32": Tolerance(atol=1e-5, rtol=1e-5, factor=4.0, floor=1e-6),
    "float16": Tolerance(atol=1e-2, rtol=1e-2, factor=3.0, floor=1e-3),
    "bfloat16": Tolerance(atol=8e-2, rtol=8e-2, factor=3.0, floor=8e-3),
    "int8": Tolerance(atol=5e-2, rtol=5e-2, factor=5.0, floor=5e-3),
    "fp8": Tolerance(atol=1e-1, rtol=1e-1, factor=2.5, floor=1e-2),
}


def tolerance_for(output: str, precision: str, config: ParityConfig) -> Tolerance:
    """Return the tolerance of ``output``: its own setting, else the one for all outputs, else the precision's default."""
    if precision not in DEFAULTS:
        raise InternalError(
            "E962", "a candidate declares a precision that has no tolerance", facts={"found": precision, "expected": ", ".join(DEFAULTS)}
        )
    default = DEFAULTS[precision]
    own = config.outputs.get(output, OutputTolerance())

    def chosen(specific: float | None, general: float | None, usual: float) -> float:
        return next(value for value in (specific, general, usual) if value is not None)

    return Tolerance(
        atol=chosen(own.atol, config.atol, default.atol),
        rtol=chosen(own.rtol, config.rtol, default.rtol),
        factor=chosen(own.factor, config.factor, default.factor),
        floor=chosen(own.floor, config.floor, default.floor),
        is_atol_fixed=own.atol is not None or config.atol is not None,
    )
