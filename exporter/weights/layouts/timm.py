"""timm's CheckpointSaver: ``state_dict`` and ``state_dict_ema``, both under the model's own names.

ModelEmaV3 averages every floating entry of the state dict, BatchNorm's statistics included, and copies integers. The file
holds no number of updates, and a decay only where the training arguments were saved with it.
"""

from __future__ import annotations

from exporter.artifacts import Checkpoint
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.fields import argument, number, text
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

RAW, EMA = "state_dict", "state_dict_ema"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``state_dict_ema``, or ``state_dict`` with the ``arch`` and ``version`` that timm writes beside it."""
    root = checkpoint.root
    written_by_timm = child(root, "arch") is not None and child(root, "version") is not None
    raw = as_weights(child(root, RAW), RAW)
    ema = as_weights(child(root, EMA), EMA)
    if ema is None and not (written_by_timm and raw is not None):
        return None
    raw = own_names(raw) if raw is not None else None
    arguments = child(root, "args")
    decay = number(argument(arguments, "model_ema_decay"), below=1)
    warm_up = argument(arguments, "model_ema_warmup") is True
    schedule = Schedule("unknown") if decay is None else Schedule("power", decay, start=1) if warm_up else Schedule("constant", decay)
    averages = (Average(EMA, own_names(ema, like=raw), schedule, buffers="averaged"),) if ema is not None else ()
    arch = text(child(root, "arch"))
    return Match("timm", averages, raw, model=f"timm:{arch}" if arch else "")


LAYOUT = Layout("timm", (EMA,), read)
