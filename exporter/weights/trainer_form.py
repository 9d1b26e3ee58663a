"""The form in which a trainer's own loader reads weights back: under which key, by which names, and what it asks for beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from exporter.artifacts import Checkpoint
from exporter.weights.layouts import layouts
from exporter.weights.layouts.fields import text
from exporter.weights.state_dicts import child

__all__ = ["TrainerForm", "trainer_form"]


@dataclass(frozen=True, slots=True)
class TrainerForm:
    """How a state dict stands in a torch file.

    Attributes:
        under: its key; empty where the file is the state dict.
        prefix: put in front of every name.
        beside: key -> text beside it; only with a key.
    """

    under: str = ""
    prefix: str = ""
    beside: Mapping[str, str] = field(default_factory=dict)


def trainer_form(checkpoint: Checkpoint, layout: str, *, stripped: str = "") -> TrainerForm:
    """Return the form that the loader of the trainer reads, by its layout; a bare state dict where it has no form of its own.

    Args:
        checkpoint: where the text beside the weights is copied from.
        layout: its name, as the bake recorded it.
        stripped: the prefix that was taken off the names; a trainer that reads a key reads its own names under it.

    Raises:
        LayoutError: a registered layout cannot be used (E224).
    """
    found = next((known for known in layouts() if known.name == layout), None)
    if found is None or not found.under:
        return TrainerForm()
    beside = {key: value for key in found.beside if (value := text(child(checkpoint.root, key)))}
    return TrainerForm(found.under, stripped, beside)
