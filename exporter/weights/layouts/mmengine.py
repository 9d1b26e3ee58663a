"""mmengine's EMAHook: it swaps when it saves, so that ``ema_state_dict`` holds the raw weights and ``state_dict`` the average.

The raw copy has the names and the counter ``steps`` of its averaged model: ``module.`` in front of every name. The first update
copies. The decay is ``1 - momentum``; the momentum is not in the file. For eleven days before the first release the hook meant to
swap and did not; the release that wrote a file has stood in it since the week after.
"""

from __future__ import annotations

from dataclasses import replace

from exporter.artifacts import Checkpoint
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

AVERAGE, RAW, COUNTER, RELEASE = "state_dict", "ema_state_dict", "steps", "mmengine_version"
UNSWAPPED = "the file does not say which mmengine wrote it; before the first release its copies were not swapped: then --weights raw is the average"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``ema_state_dict`` with ``steps`` and ``module.`` names beside ``state_dict``."""
    root = checkpoint.root
    labelled = as_weights(child(root, RAW), RAW)
    if labelled is None or COUNTER not in labelled.tensors:
        return None
    average = as_weights(child(root, AVERAGE), AVERAGE)
    inner = {name: ref for name, ref in labelled.tensors.items() if name != COUNTER}
    if average is None or not inner or not all(name.startswith("module.") for name in inner):
        return None
    average = own_names(average)
    raw = own_names(WeightSet(RAW, inner, labelled.others), wrappers=1, like=average)
    remark = "mmengine swaps when it saves: `state_dict` is the average, `ema_state_dict` the raw weights"
    says_release = child(child(root, "meta"), RELEASE) is not None
    average = average if says_release else replace(average, remark=UNSWAPPED)
    candidate = Average(AVERAGE, average, Schedule("first copies"), count(labelled.tensors[COUNTER]), on_request=not says_release)
    return Match("mmengine", (candidate,), raw, remarks=(remark,))


LAYOUT = Layout("mmengine", (RAW,), read, under="state_dict")
