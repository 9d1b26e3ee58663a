"""A finished artefact as a server takes it: a model repository of Triton Inference Server.

triton_config.py   what a plan or an ONNX model is to Triton: backend, tensors, batching, instances, lineage
pbtxt.py           protobuf's text format: written, and read back
repository.py      the folder: a model, its versions, whole or not at all
"""

from __future__ import annotations

from exporter.packaging.repository import Package, write_repository
from exporter.packaging.triton_config import Serving

__all__ = ["Package", "Serving", "write_repository"]
