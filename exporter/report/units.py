"""Numbers as people read them: with their unit and no more digits than they carry."""

from __future__ import annotations

import math

from exporter.errors import printable

__all__ = [
    "bytes_text",
    "confidence",
    "count_text",
    "decibels",
    "error",
    "metric_difference",
    "metric_value",
    "milliseconds",
    "percent",
    "plural",
    "ratio",
    "seconds_text",
    "shape_text",
    "shortened",
]

_BYTES_PER_STEP = 1000
_FRACTIONS = frozenset({"accuracy", "top-1", "top-5", "top1", "top5"})


def error(value: float) -> str:
    """Return an error or a tolerance with two digits: ``3.1e-07``; exact zero is ``0``."""
    if value == 0:
        return "0"
    return f"{value:.1e}" if math.isfinite(value) else str(value)


def decibels(value: float) -> str:
    """Return ``130 dB``; an exact match is ``inf dB``."""
    return f"{value:.0f} dB" if math.isfinite(value) else f"{value} dB"


def milliseconds(value: float) -> str:
    """Return a time in milliseconds with three significant digits, in µs, ms or s."""
    if not math.isfinite(value):
        return f"{value} ms"
    for limit, factor, unit in ((0.9995, 1e3, "µs"), (999.5, 1.0, "ms"), (math.inf, 1e-3, "s")):
        if abs(value) < limit:
            return f"{_three_digits(value * factor)} {unit}"
    return f"{value} ms"


def seconds_text(value: float) -> str:
    """Return ``40 ms``, ``0.4 s``, ``12.3 s``, ``2 min 05 s`` or ``1 h 02 min``."""
    minute, hour = 60, 3600
    if 0 < value < 0.0995:
        return f"{1000 * value:.0f} ms"
    if value < minute - 0.05:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < hour:
        return f"{whole // minute} min {whole % minute:02d} s"
    return f"{whole // hour} h {whole % hour // minute:02d} min"


def bytes_text(value: int) -> str:
    """Return a size in decimal units: ``6.3 MB``."""
    if value < _BYTES_PER_STEP:
        return f"{value} B"
    size = float(value)
    for unit in ("kB", "MB", "GB"):
        size /= _BYTES_PER_STEP
        if size < _BYTES_PER_STEP - 0.05:
            return f"{size:.1f} {unit}"
    return f"{size / _BYTES_PER_STEP:.1f} TB"


def count_text(value: int) -> str:
    """Return a large count in decimal units: ``4.1 G``."""
    size, units = float(value), iter(("", " k", " M", " G", " T"))
    unit = next(units)
    while size >= _BYTES_PER_STEP - 0.05 and unit != " T":
        size, unit = size / _BYTES_PER_STEP, next(units)
    return f"{size:.1f}{unit}" if unit else str(value)


def ratio(value: float) -> str:
    """Return ``1.83 x``."""
    return f"{value:.2f} x"


def percent(value: float, digits: int = 1) -> str:
    """Return a share (0 to 1) as ``97.8 %``."""
    return f"{100 * value:.{digits}f} %"


def confidence(value: float) -> str:
    """Return a level of confidence (0 to 1) with at most four digits: ``99.93 %``."""
    return f"{100 * value:.4g} %"


def metric_value(metric: str, value: float) -> str:
    """Return a value of a task metric: an accuracy in per cent, anything else with four significant digits."""
    return percent(value) if metric.lower() in _FRACTIONS else f"{value:.4g}"


def metric_difference(metric: str, value: float) -> str:
    """Return a signed difference of two values of a metric, an accuracy in percentage points: ``-0.3 points``."""
    if metric.lower() in _FRACTIONS:
        return f"{100 * value:+.1f} points" if value else "same"
    return f"{value:+.4g}" if value else "same"


def plural(count: int, noun: str) -> str:
    """Return ``1 tensor`` or ``2 tensors``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def shape_text(shape: tuple[int | str, ...]) -> str:
    """Return ``32 x 10``; a scalar is ``scalar``."""
    return " x ".join(str(extent) for extent in shape) or "scalar"


def shortened(text: str, length: int = 34) -> str:
    """Return ``text`` escaped, and without its middle where it is longer than ``length``."""
    clean = printable(text)
    if len(clean) <= length:
        return clean
    head = length // 3
    return f"{clean[:head]}…{clean[-(length - head - 1) :]}"


def _three_digits(value: float) -> str:
    for limit, digits in ((9.995, 2), (99.95, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:.0f}"
