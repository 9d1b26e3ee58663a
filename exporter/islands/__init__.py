"""Which nodes have to stay in float32, so that a candidate in half precision passes parity.

search.py      the smallest set of items that passes
candidates.py  what is judged: an ONNX model, an engine
finding.py     the search over one workspace, and its result as configuration
"""

from __future__ import annotations

from exporter.islands.finding import FoundIslands, Island, find_islands

__all__ = ["FoundIslands", "Island", "find_islands"]
