"""Stage 2/7: Checkpoint -> Weights.

A layout says which copies of the weights a checkpoint holds; the user says which one leaves it; baking writes that one under
the model's own names into a safetensors file. There is no fallback from averaged to raw weights.
"""

from __future__ import annotations

from exporter.weights.averaging import Combination, average, average_key, combine, mean_of
from exporter.weights.baking import bake
from exporter.weights.identity import identify
from exporter.weights.post_hoc import post_hoc, snapshots_of
from exporter.weights.reading import read_layout
from exporter.weights.replacing import replace_statistics
from exporter.weights.storing import load_weights, weights_key
from exporter.weights.torch_output import TORCH_SUFFIXES, save_torch
from exporter.weights.trainer_form import TrainerForm, trainer_form

__all__ = [
    "TORCH_SUFFIXES",
    "Combination",
    "TrainerForm",
    "average",
    "average_key",
    "bake",
    "combine",
    "identify",
    "load_weights",
    "mean_of",
    "post_hoc",
    "read_layout",
    "replace_statistics",
    "save_torch",
    "snapshots_of",
    "trainer_form",
    "weights_key",
]
