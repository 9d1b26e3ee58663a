"""Layouts that are recognised so that they are not misread: the copy that is called average is raw, or names are lost.

In several libraries the plainly named copy is the average and the one labelled ``ema`` or ``current`` the raw one. Taking the
label at its word would ship the wrong weights, so each is recognised by several keys together and refused with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping

from exporter.artifacts import Checkpoint
from exporter.weights.layout import Layout, Match
from exporter.weights.state_dicts import child

__all__ = ["LAYOUTS"]


def _lightning(checkpoint: Checkpoint) -> Match | None:
    root = checkpoint.root
    if not isinstance(child(root, "state_dict"), Mapping):
        return None
    if child(root, "current_model_state") is not None:
        return _refuse(
            "lightning",
            "Lightning's WeightAveraging writes the average to `state_dict` and the raw weights to `current_model_state`; "
            "after fit() both are the average. Names are those of the LightningModule",
        )
    callbacks = child(root, "callbacks")
    names = [key for key in callbacks if isinstance(key, str)] if isinstance(callbacks, Mapping) else []
    if any(name.startswith(("StochasticWeightAveraging", "EMAWeightAveraging", "WeightAveraging")) for name in names):
        return _refuse("lightning", "Lightning's averaging callback took part: which copy is the average depends on when it was saved")
    return None


def _mmengine(checkpoint: Checkpoint) -> Match | None:
    root = checkpoint.root
    ema = child(root, "ema_state_dict")
    if isinstance(child(root, "state_dict"), Mapping) and isinstance(ema, Mapping) and "steps" in ema:
        return _refuse("mmengine", "mmengine's EMAHook swaps when it saves: `ema_state_dict` holds the raw weights, `state_dict` the average")
    return None


def _mmcv(checkpoint: Checkpoint) -> Match | None:
    state = child(checkpoint.root, "state_dict")
    if not isinstance(state, Mapping) or not isinstance(child(checkpoint.root, "meta"), Mapping):
        return None
    twins = {f"ema_{key.replace('.', '_')}" for key in state if isinstance(key, str) and not key.startswith("ema_")}
    if twins & state.keys():
        return _refuse("mmcv", "mmcv's EMAHook swaps when it saves: the buffers `ema_...` are raw, the plain names the average")
    return None


def _composer(checkpoint: Checkpoint) -> Match | None:
    algorithms = child(child(checkpoint.root, "state"), "algorithms")
    entries = algorithms if isinstance(algorithms, (list, tuple)) else ()
    if any(isinstance(entry, (list, tuple)) and entry and entry[0] == "EMA" for entry in entries):
        return _refuse("composer", "composer's EMA swaps: with ema_weights_active `state.model` is the average, `ema_model` the raw weights")
    return None


def _latent_diffusion(checkpoint: Checkpoint) -> Match | None:
    state = child(checkpoint.root, "state_dict")
    if isinstance(state, Mapping) and {"model_ema.decay", "model_ema.num_updates"} <= state.keys():
        return _refuse("latent-diffusion", "LitEma drops the dots from its names (`model_ema.blockweight`), so that two tensors may share one")
    return None


def _ema_pytorch(checkpoint: Checkpoint) -> Match | None:
    root = checkpoint.root
    for node in (root, *(root.values() if isinstance(root, Mapping) else ())):
        keys = [key for key in node if isinstance(key, str)] if isinstance(node, Mapping) else []
        if "initted" in keys and any(key.startswith("ema_model.") for key in keys):
            return _refuse("ema-pytorch", "ema-pytorch keeps both copies in one flat dict under `online_model.` and `ema_model.`")
    return None


def _nameless(checkpoint: Checkpoint) -> Match | None:
    root = checkpoint.root
    for node in (root, *(root.values() if isinstance(root, Mapping) else ())):
        if isinstance(child(node, "shadow_params"), (list, tuple)):
            return _refuse("shadow-params", "`shadow_params` is a list without names (torch_ema, diffusers); its order is known to the model alone")
    return None


def _schedule_free(checkpoint: Checkpoint) -> Match | None:
    root = checkpoint.root
    for node in root.values() if isinstance(root, Mapping) else ():
        groups = child(node, "param_groups")
        for group in groups if isinstance(groups, list) else ():
            if child(group, "train_mode") is True:
                return _refuse("schedule-free", "saved in the train mode of a schedule-free optimizer: these weights are not the averaged ones")
    return None


def _refuse(layout: str, reason: str) -> Match:
    return Match(layout, refusal=reason, remarks=(f"not baked: {reason}",))


LAYOUTS: tuple[Layout, ...] = (
    Layout("lightning", (), _lightning),
    Layout("mmengine", (), _mmengine),
    Layout("mmcv", (), _mmcv),
    Layout("composer", (), _composer),
    Layout("latent-diffusion", (), _latent_diffusion),
    Layout("ema-pytorch", (), _ema_pytorch),
    Layout("shadow-params", (), _nameless),
    Layout("schedule-free", (), _schedule_free),
)
"""In order of their signatures, strictest first; names as shown and recorded."""
