"""torchvision's reference scripts: ``model``, ``model_ema`` (an AveragedModel) and the training arguments in ``args``.

The decay that was used is not ``args.model_ema_decay`` but is made from it:
``1 - min(1, (1 - decay) * world_size * batch_size * model_ema_steps / epochs)``. While the learning rate warms up the scripts
set ``n_averaged`` back to 0, so that each update copies. The number of classes is that of the data and not in ``args``: the
shapes of the weights say it.
"""

from __future__ import annotations

from dataclasses import replace

from exporter.artifacts import Checkpoint, Node
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.averaged_model import average_from_averaged_model
from exporter.weights.layouts.fields import argument, number, text
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

RAW, EMA = "model", "model_ema"
REGIONS = "roi_heads.box_predictor.cls_score.bias"
CLASSIFIERS = ("classifier.", "aux_classifier.", "fc.", "head.", "heads.")
"""The last tensor, where it stands behind one of these, or that of the regions, is as long as there are classes."""
AUXILIARY = ("aux_classifier.", "AuxLogits.", "aux1.")
NORMALIZING = ("googlenet", "inception_v3")
"""Networks whose published weights make them scale their input, which no tensor shows."""


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``model`` with ``args.model`` and what else the scripts write, and ``model_ema`` where there is one."""
    root = checkpoint.root
    arguments = child(root, "args")
    raw = as_weights(child(root, RAW), RAW)
    name = text(argument(arguments, "model"))
    has_averages = argument(arguments, "model_ema_decay") is not None
    if raw is None or not name or not (has_averages or (child(root, "lr_scheduler") is not None and argument(arguments, "data_path"))):
        return None
    raw = own_names(raw)
    ema = average_from_averaged_model(child(root, EMA), EMA, EMA, raw)
    averages = (_with_decay(ema, arguments),) if ema is not None else ()
    return Match("torchvision", averages, raw, model=f"torchvision:{name}", arguments=_model_arguments(raw, arguments, name))


def _model_arguments(raw: WeightSet, arguments: Node, name: str) -> dict[str, object]:
    """Return what the reference scripts give to the builder, of that which changes the network in eval mode."""
    found: dict[str, object] = {}
    last = REGIONS if REGIONS in raw.tensors else list(raw.tensors)[-1]
    if (last == REGIONS or (last.startswith(CLASSIFIERS) and "regression_head" not in last)) and raw.tensors[last].shape:
        found["num_classes"] = raw.tensors[last].shape[0]
    if name.startswith(("deeplabv3", "fcn_", *NORMALIZING)):
        key = "aux_logits" if name in NORMALIZING else "aux_loss"
        found[key] = any(other.startswith(AUXILIARY) for other in raw.tensors)
    if name in NORMALIZING and text(argument(arguments, "weights")):
        found["transform_input"] = True
    return found


def _with_decay(ema: Average, arguments: Node) -> Average:
    if ema.updates == 0:  # warm-up of the learning rate: the last update copied, however many there were
        remark = "n_averaged is 0: still copied from the raw weights at each update (warm-up of the learning rate)"
        return replace(ema, weights=replace(ema.weights, remark=remark), schedule=Schedule(), updates=None, buffers="averaged")
    factors = [number(argument(arguments, name)) for name in ("world_size", "batch_size", "model_ema_steps")]
    epochs, decay = number(argument(arguments, "epochs")), number(argument(arguments, "model_ema_decay"), below=1)
    if epochs is None or decay is None or None in factors:
        return replace(ema, buffers="averaged")
    share = 1.0 - decay
    for factor in factors:
        share *= factor or 1.0
    used = 1.0 - min(1.0, share / epochs)
    return replace(ema, schedule=Schedule("first copies", used if used > 0 else None), buffers="averaged")


LAYOUT = Layout("torchvision", (EMA,), read, under="model")
