"""A float32 model -> the same model in half precision, with float32 inputs and outputs and named float32 islands.

islands.py     which nodes stay in float32, and why
halving.py     weights, values and the casts at the borders
shares.py      how much of a model computes in which precision
measuring.py   the ranges of a float32 model, before it is halved
kinds.py       in which precision a file from elsewhere stands
converting.py  such a file -> another one in half precision
trials.py      the same model with other islands, for a search
"""

from __future__ import annotations

from exporter.onnx_export.precision.halving import FIRST_BFLOAT16, check_patterns, halve_
from exporter.onnx_export.precision.kinds import require_float32
from exporter.onnx_export.precision.shares import HalfValues, half_values, precision_shares, shares_text

__all__ = [
    "FIRST_BFLOAT16",
    "HalfValues",
    "check_patterns",
    "half_values",
    "halve_",
    "precision_shares",
    "require_float32",
    "shares_text",
]
