"""Teachers and momentum encoders of self-supervised training: DINO's ``teacher``, MoCo's ``encoder_k``.

They are moving averages, but not of weights that somebody set out to ship: listed, and taken only by name. In DINO the student is
wrapped and the teacher is not; in MoCo both encoders stand in one state dict, beside a queue.
"""

from __future__ import annotations

from exporter.artifacts import Checkpoint, Node
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.state_dicts import as_weights, child, own_names

__all__ = ["LAYOUT"]

STUDENT, TEACHER = "student", "teacher"
QUERY, KEY = "encoder_q.", "encoder_k."
_REMARK = "a momentum encoder"


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise ``student`` and ``teacher``, or ``encoder_q.`` and ``encoder_k.`` in one state dict."""
    return _dino(checkpoint.root) or _moco(checkpoint.root)


def _dino(root: Node) -> Match | None:
    student, teacher = as_weights(child(root, STUDENT), STUDENT), as_weights(child(root, TEACHER), TEACHER, remark=_REMARK)
    if student is None or teacher is None:
        return None
    student = own_names(student)
    return Match("dino", (Average(TEACHER, own_names(teacher, like=student), on_request=True),), student)


def _moco(root: Node) -> Match | None:
    for at, node in (("state_dict", child(root, "state_dict")), ("model", child(root, "model")), ("", root)):
        weights = as_weights(node, at)
        if weights is None:
            continue
        weights = own_names(weights)
        query, key = _behind(weights, QUERY), _behind(weights, KEY)
        if query.tensors and key.tensors and query.tensors.keys() == key.tensors.keys():
            return Match("moco", (Average("encoder_k", key, on_request=True),), query)
    return None


def _behind(weights: WeightSet, prefix: str) -> WeightSet:
    tensors = {name.removeprefix(prefix): ref for name, ref in weights.tensors.items() if name.startswith(prefix)}
    others = {name.removeprefix(prefix): node for name, node in weights.others.items() if name.startswith(prefix)}
    return WeightSet(f"{weights.at}/{prefix}".lstrip("/").rstrip("."), tensors, others, _REMARK if prefix == KEY else "")


LAYOUT = Layout("momentum-encoder", (TEACHER, "encoder_k."), read)
