"""The layouts, one module each.

To add one: copy ``timm.py``, write a ``read`` function that returns a ``Match`` or None, and put its ``LAYOUT`` into the table.
The first layout of the table that matches is taken, so a layout with a stricter signature stands above a looser one.
"""

from __future__ import annotations

from exporter.weights.layout import Layout
from exporter.weights.layouts import averaged_model, named_dict, raw_only, refused, timm, torchvision, ultralytics

__all__ = ["LAYOUTS"]

LAYOUTS: tuple[Layout, ...] = (
    *refused.LAYOUTS,
    ultralytics.LAYOUT,
    timm.LAYOUT,
    torchvision.LAYOUT,
    averaged_model.LAYOUT,
    named_dict.LAYOUT,
    raw_only.LAYOUT,
)
