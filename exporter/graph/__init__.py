"""Stage 3/7: Weights + model -> Graph.

Trace the network with ``torch.export``, plan over an abstract view of the graph which BatchNorms have an exact fold, and carry
the plan out on a copy. Every BatchNorm is either folded or refused with its reason; none is left out.

    tracing.py      module -> exported program, with the names of inputs and outputs
    aten/           adapter to the aten graphs of torch.export: their abstract graph, their constants, plans carried out on them
    onnx/           adapter to ONNX files, the same; without torch
    abstract.py     values, operators, roles: all that the planner sees
    through.py      how a map of each channel reads on the other side of an operator
    rewrites/       one fold per file: requires, apply
    algebra.py      the float64 formulas, rounded once
    cost.py         FLOPs and bytes of each operator, and whether a fold that adds work pays
    planning.py     abstract graph + rewrites -> plan
    explaining.py   abstract graph + what was decided -> what a person wants to see
    attempts.py     what the planner tried, and what came of it
    replay/         that as a file, and applied again to new weights without torch
    folding.py      the stage: all of it
    folded_module.py  the same for users of torch: a module in, a module out
    structure.py    what a folded graph has to be like beside the unfolded one
    storage.py      ``.pt2`` files with a keyed record
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from exporter.graph.keys import graph_key

if TYPE_CHECKING:
    from exporter.graph.folded_module import FoldedModule, fold_module
    from exporter.graph.folding import fold
    from exporter.graph.onnx.folding import fold_onnx
    from exporter.graph.precision import fold_error_in_float64, program_in_float64
    from exporter.graph.storage import load_graph, save_graph
    from exporter.graph.structure import check_structure
    from exporter.graph.tracing import Traced, trace

__all__ = [
    "FoldedModule",
    "Traced",
    "check_structure",
    "fold",
    "fold_error_in_float64",
    "fold_module",
    "fold_onnx",
    "graph_key",
    "load_graph",
    "program_in_float64",
    "save_graph",
    "trace",
]

_HOMES = {
    "check_structure": "exporter.graph.structure",
    "FoldedModule": "exporter.graph.folded_module",
    "Traced": "exporter.graph.tracing",
    "fold": "exporter.graph.folding",
    "fold_error_in_float64": "exporter.graph.precision",
    "fold_module": "exporter.graph.folded_module",
    "fold_onnx": "exporter.graph.onnx.folding",
    "load_graph": "exporter.graph.storage",
    "program_in_float64": "exporter.graph.precision",
    "save_graph": "exporter.graph.storage",
    "trace": "exporter.graph.tracing",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the home defines; torch is imported on first use
    if name not in _HOMES:
        raise AttributeError(f"module 'exporter.graph' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
