"""timm's CheckpointSaver: ``state_dict`` and ``state_dict_ema``, both under the model's own names.

ModelEmaV3 averages every floating entry of the state dict, BatchNorm's statistics included, and copies integers. The file
holds no number of updates, and a decay only where the training arguments were saved with it. Those also say how the script built
the model; without them ``arch`` is the name of the model's class in small letters.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint, Node
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.fields import argument, number, plain, size, text
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

RAW, EMA = "state_dict", "state_dict_ema"
LOADING = frozenset({"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"})
"""Arguments of ``create_model`` that name other files; none of them is taken from a checkpoint."""


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
    return Match("timm", averages, raw, model=f"timm:{arch}" if arch else "", arguments=_model_arguments(arguments))


def _model_arguments(arguments: Node) -> dict[str, object]:
    """Return what timm's training script gives to ``create_model``, of that which changes the network in eval mode."""
    image = argument(arguments, "input_size")
    channels = size(argument(arguments, "in_chans")) or size(image[0] if isinstance(image, (list, tuple)) and image else None)
    found: dict[str, object] = {
        "num_classes": size(argument(arguments, "num_classes")),
        "in_chans": channels,
        "global_pool": text(argument(arguments, "gp")) or None,
        "bn_eps": number(argument(arguments, "bn_eps")),
    }
    more = argument(arguments, "model_kwargs")
    if isinstance(more, Mapping):
        found |= {name: plain(value) for name, value in more.items() if isinstance(name, str) and name.isidentifier() and name not in LOADING}
    return {name: value for name, value in found.items() if value is not None}


LAYOUT = Layout("timm", (EMA,), read, under="state_dict")
