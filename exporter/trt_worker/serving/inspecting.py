"""Reading what the engine inspector says, in both shapes that it has had.

Up to TensorRT 10 a layer's tensor carries ``Format/Datatype`` as one sentence (``Row major linear FP32``), and the engine's tensors
are listed as ``Bindings``; from 11 on ``Format`` and ``Datatype`` are apart and the list is ``I/O Tensors``. An engine built
without detailed profiling lists its layers as bare names.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

__all__ = ["layer_precisions", "nodes_by_tensor", "precision_shares"]

_PATTERNS = (
    ("bf16", r"\bbf16\b|bfloat16|\bbfloat\b"),
    ("fp16", r"\bfp16\b|float16|\bhalf\b"),
    ("fp8", r"\bfp8\b|float8|e4m3|e5m2"),
    ("fp4", r"\bfp4\b|float4|e2m1"),
    ("int8", r"\bint8\b"),
    ("int4", r"\bint4\b"),
    ("int64", r"\bint64\b"),
    ("int32", r"\bint32\b"),
    ("uint8", r"\buint8\b"),
    ("bool", r"\bbool(ean)?\b"),
    ("fp32", r"\bfp32\b|float32|\bfloat\b"),
)
_EXPRESSIONS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _PATTERNS)
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1e|$)")
UNKNOWN = "unknown"


def precision_shares(information: str) -> dict[str, float]:
    """Return the share of layers by precision, summing to 1; empty where the inspector tells nothing of layers."""
    counts = Counter(layer_precisions(information).values())
    total = sum(counts.values())
    return {precision: count / total for precision, count in sorted(counts.items())}


def layer_precisions(information: str) -> dict[str, str]:
    """Return layer name -> precision of its first output.

    Args:
        information: what ``get_engine_information(JSON)`` returned.
    """
    return {str(layer.get("Name", f"layer {number}")): _precision_of(layer) for number, layer in enumerate(_layers(information))}


def nodes_by_tensor(information: str) -> dict[str, list[str]]:
    """Return tensor -> the ONNX nodes that the layer which writes it was made from, where the inspector tells both."""
    found: dict[str, list[str]] = {}
    for layer in _layers(information):
        nodes = list(dict.fromkeys(_NODE.findall(str(layer.get("Metadata") or ""))))
        tensors = layer.get("Outputs")
        for tensor in tensors if isinstance(tensors, list) else []:
            if nodes and isinstance(tensor, dict) and "Name" in tensor:
                found[str(tensor["Name"])] = nodes
    return found


def _layers(information: str) -> list[dict[str, Any]]:
    """Return the layers that are more than a name."""
    try:
        document = json.loads(information)
    except ValueError:
        return []
    layers = document.get("Layers") if isinstance(document, dict) else None
    return [layer for layer in layers if isinstance(layer, dict)] if isinstance(layers, list) else []


def _precision_of(layer: dict[str, Any]) -> str:
    for end in ("Outputs", "Inputs"):
        tensors = layer.get(end)
        for tensor in tensors if isinstance(tensors, list) else []:
            if not isinstance(tensor, dict):
                continue
            text = str(tensor.get("Datatype") or tensor.get("DataType") or tensor.get("Format/Datatype") or tensor.get("Format") or "")
            for name, expression in _EXPRESSIONS:
                if expression.search(text):
                    return name
    return UNKNOWN
