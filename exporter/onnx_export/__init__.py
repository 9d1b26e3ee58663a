"""Stage 4/7: Graph -> OnnxModel.

Export the folded program, tidy what the exporter leaves behind, check the result against the plan and with ONNX's own checker,
and write it whole or not at all, with its lineage in the file.

    exporting.py    the stage
    tidying.py      passes over the exported model
    precision/      half precision with float32 islands
    quantising/     8 bits by pairs of QuantizeLinear and DequantizeLinear
    lowering/       opset 17, which torch's exporter does not write
    shapes.py       names of dynamic axes
    checking.py     what a model of ours must satisfy
    writing.py      bytes on disk, external data, record
    reading.py      an ``.onnx`` from anywhere, as data
    external.py     where external data may lie
    foreign.py      a file from elsewhere that was folded: its data, its lineage
    structure.py    what such a file must satisfy beside the given one
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from exporter.onnx_export.keys import onnx_key

if TYPE_CHECKING:
    from exporter.onnx_export.exporting import export_onnx
    from exporter.onnx_export.foreign import with_external_data, write_folded
    from exporter.onnx_export.lowering.converting import lower_onnx, lowered_key
    from exporter.onnx_export.precision.converting import HalvedOnnx, halve_onnx, halved_key
    from exporter.onnx_export.precision.trials import Trial, Trials
    from exporter.onnx_export.reading import OnnxFile, open_onnx, read_onnx
    from exporter.onnx_export.structure import check_folded_structure
    from exporter.onnx_export.writing import load_onnx

__all__ = [
    "HalvedOnnx",
    "OnnxFile",
    "Trial",
    "Trials",
    "check_folded_structure",
    "export_onnx",
    "halve_onnx",
    "halved_key",
    "load_onnx",
    "lower_onnx",
    "lowered_key",
    "onnx_key",
    "open_onnx",
    "read_onnx",
    "with_external_data",
    "write_folded",
]

_HOMES = {
    "HalvedOnnx": "exporter.onnx_export.precision.converting",
    "OnnxFile": "exporter.onnx_export.reading",
    "Trial": "exporter.onnx_export.precision.trials",
    "Trials": "exporter.onnx_export.precision.trials",
    "check_folded_structure": "exporter.onnx_export.structure",
    "export_onnx": "exporter.onnx_export.exporting",
    "halve_onnx": "exporter.onnx_export.precision.converting",
    "halved_key": "exporter.onnx_export.precision.converting",
    "load_onnx": "exporter.onnx_export.writing",
    "lower_onnx": "exporter.onnx_export.lowering.converting",
    "lowered_key": "exporter.onnx_export.lowering.converting",
    "open_onnx": "exporter.onnx_export.reading",
    "read_onnx": "exporter.onnx_export.reading",
    "with_external_data": "exporter.onnx_export.foreign",
    "write_folded": "exporter.onnx_export.foreign",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the home defines; torch and onnx are imported on first use
    if name not in _HOMES:
        raise AttributeError(f"module 'exporter.onnx_export' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
