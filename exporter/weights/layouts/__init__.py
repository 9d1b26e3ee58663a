"""The layouts, one module each.

To add one: copy ``timm.py``, write a ``read`` function that returns a ``Match`` or None, and put its ``LAYOUT`` into the table;
``docs/adding-a-layout.md`` tells the rest. The first layout of the table that matches is taken, so a layout with a stricter
signature stands above a looser one.
"""

from __future__ import annotations

from exporter.weights.layout import Layout
from exporter.weights.layouts import (
    averaged_model,
    baked,
    composer,
    deepspeed,
    diffusers_folder,
    dit,
    ema_pytorch,
    fairseq,
    file_names,
    flax,
    k_diffusion,
    keras,
    lightning,
    lit_ema,
    mmcv,
    mmengine,
    momentum_encoder,
    named_dict,
    nemo,
    raw_only,
    rt_detr,
    schedule_free,
    shadow_backup,
    shadow_params,
    tensorflow_objects,
    tensorflow_saver,
    timm,
    torchvision,
    ultralytics,
    yolox,
)
from exporter.weights.layouts.registered import registered_layouts, registered_versions

__all__ = ["LAYOUTS", "layouts", "registered_versions"]

LAYOUTS: tuple[Layout, ...] = (
    baked.LAYOUT,
    lightning.LAYOUT,
    nemo.LAYOUT,
    mmengine.LAYOUT,
    mmcv.LAYOUT,
    composer.LAYOUT,
    lit_ema.LAYOUT,
    ema_pytorch.LAYOUT,
    shadow_params.LAYOUT,
    diffusers_folder.LAYOUT,
    shadow_backup.LAYOUT,
    deepspeed.LAYOUT,
    keras.LAYOUT,
    tensorflow_objects.LAYOUT,
    tensorflow_saver.LAYOUT,
    flax.LAYOUT,
    schedule_free.LAYOUT,
    ultralytics.LAYOUT,
    timm.LAYOUT,
    torchvision.LAYOUT,
    k_diffusion.LAYOUT,
    rt_detr.LAYOUT,
    yolox.LAYOUT,
    dit.LAYOUT,
    fairseq.LAYOUT,
    averaged_model.LAYOUT,
    named_dict.LAYOUT,
    momentum_encoder.LAYOUT,
    file_names.LAYOUT,
    raw_only.LAYOUT,
)
"""The built-in layouts, strictest first."""


def layouts() -> tuple[Layout, ...]:
    """Return the layouts that other distributions register, then the built-in ones.

    Raises:
        LayoutError: a registered one cannot be used (E224).
    """
    return (*registered_layouts(), *LAYOUTS)
