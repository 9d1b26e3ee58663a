"""ultralytics and YOLOv5: pickled modules, the average under ``ema``, its counter under ``updates``; half precision.

Nothing of the module is imported: names and tensors are read from the inert record of its ``_parameters``, ``_buffers`` and
``_modules``. ModelEMA averages every floating entry with decay 0.9999 (1 - exp(-n / 2000)); integers are those from the start.
At the end of training the file is stripped: the average moves to ``model`` and ``ema`` becomes None.
"""

from __future__ import annotations

from dataclasses import replace

from exporter.artifacts import Checkpoint, ObjectRef
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match
from exporter.weights.layouts.fields import count, plain, size, text
from exporter.weights.state_dicts import as_weights, child, is_module, own_names

__all__ = ["LAYOUT"]

RAW, EMA, UPDATES = "model", "ema", "updates"
DECAY, TAU = 0.9999, 2000.0
_PACKAGES = ("ultralytics.", "yolov5.", "models.yolo")


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``ema`` or ``model`` as a pickled module, with ``updates`` in the file or a class of these packages."""
    root = checkpoint.root
    ema, model = child(root, EMA), child(root, RAW)
    module = ema if is_module(ema) else model
    if not is_module(module) or not isinstance(module, ObjectRef):
        return None
    if child(root, UPDATES) is None and not str(module.callee).startswith(_PACKAGES):
        return None
    factory, arguments = _factory(module)
    raw = as_weights(model, RAW)
    raw = own_names(raw) if raw is not None else None
    average = as_weights(ema, EMA)
    if average is None:
        if raw is not None:
            raw = replace(raw, remark="stripped at the end of training: `model` normally is the average already, the file cannot tell")
        return Match("ultralytics", (), raw, model=factory, arguments=arguments)
    averages = (Average(EMA, own_names(average, like=raw), Schedule("ramp", DECAY, TAU), count(child(root, UPDATES)), "averaged"),)
    return Match("ultralytics", averages, raw, model=factory, arguments=arguments)


def _factory(module: ObjectRef) -> tuple[str, dict[str, object]]:
    """Return the factory and its arguments, as the module's own ``yaml`` gives them.

    The library's file of that name is built, not the layers that stand in the checkpoint: the library evaluates some of their
    text, and a checkpoint brings no code with it.
    """
    state = module.state[0] if isinstance(module.state, tuple) and module.state else module.state
    description = child(state, "yaml")
    name = text(child(description, "yaml_file")).replace("\\", "/").rpartition("/")[2]
    if not name or not str(module.callee).startswith("ultralytics."):
        return "", {}
    found = {
        "nc": size(child(description, "nc")),
        "ch": size(child(description, "channels")) or size(child(description, "ch")),
        "data_kpt_shape": plain(child(description, "kpt_shape")) if str(module.callee).endswith(".PoseModel") else None,
    }
    return f"ultralytics:{name}", {key: value for key, value in found.items() if value is not None}


LAYOUT = Layout("ultralytics", (EMA, UPDATES), read)
