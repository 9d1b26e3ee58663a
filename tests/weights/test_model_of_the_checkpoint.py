"""The model that a trainer wrote down: its name, and those of its arguments that change the network in eval mode."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest
import torch

from exporter.artifacts import LayoutReading

Read = Callable[..., LayoutReading]
STATE = {"conv.weight": torch.ones(2, 1, 3, 3), "fc.weight": torch.ones(7, 2), "fc.bias": torch.ones(7)}


def timm_reading(read: Read, **arguments: object) -> LayoutReading:
    """Read a file of timm's saver with training arguments."""
    return read({"arch": "resnet10t", "version": 2, "state_dict": STATE, "args": argparse.Namespace(model="resnet10t", **arguments)})


def test_timm_builds_with_the_arguments_of_its_script(read: Read) -> None:
    """Classes, channels, pooling, epsilon and model_kwargs are taken; what only training uses is not."""
    arguments = {"num_classes": 7, "in_chans": 1, "gp": "max", "bn_eps": 0.01, "drop": 0.2, "model_kwargs": {"stem_width": 16, "aa_layer": "blur"}}
    found = timm_reading(read, **arguments).model_arguments
    assert found == {"num_classes": 7, "in_chans": 1, "global_pool": "max", "bn_eps": 0.01, "stem_width": 16, "aa_layer": "blur"}


def test_channels_of_an_image_size(read: Read) -> None:
    """Without in_chans the first number of input_size counts, as in timm's script; what is None is left to the library."""
    found = timm_reading(read, num_classes=None, in_chans=None, input_size=(4, 32, 32), gp=None, bn_eps=None).model_arguments
    assert found == {"in_chans": 4}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("checkpoint_path", "/elsewhere/model.pth"),
        ("pretrained", True),
        ("pretrained_cfg_overlay", {"file": "/elsewhere"}),
        ("cache_dir", "/elsewhere"),
        ("a name", 1),
        ("huge", 1 << 40),
        ("nested", [[1], [2]]),
        ("long", [1] * 1000),
        ("object", torch.device("cpu")),
    ],
)
def test_a_checkpoint_brings_no_files_and_no_objects(name: str, value: object, read: Read) -> None:
    """Arguments that name other files, and values that are not plain and small, are not taken from a checkpoint."""
    assert timm_reading(read, model_kwargs={name: value}).model_arguments == {}


def torchvision_reading(read: Read, model: str, state: dict[str, torch.Tensor], **arguments: object) -> LayoutReading:
    """Read a file of torchvision's reference scripts."""
    args = argparse.Namespace(model=model, data_path="images", **arguments)
    return read({"model": state, "optimizer": {}, "lr_scheduler": {"last_epoch": 1}, "epoch": 1, "args": args})


def test_torchvision_tells_the_classes_by_their_shape(read: Read) -> None:
    """The script takes the number of classes from the data, so the last layer says it; a file without averages is one of its too."""
    reading = torchvision_reading(read, "resnet18", STATE)
    assert (reading.layout, reading.model, reading.model_arguments) == ("torchvision", "torchvision:resnet18", {"num_classes": 7})
    regions = {**STATE, "roi_heads.box_predictor.cls_score.bias": torch.ones(3), "roi_heads.box_predictor.bbox_pred.bias": torch.ones(12)}
    assert torchvision_reading(read, "fasterrcnn_resnet50_fpn", regions).model_arguments == {"num_classes": 3}
    anchors = {**STATE, "head.regression_head.bbox_reg.bias": torch.ones(36)}
    assert torchvision_reading(read, "retinanet_resnet50_fpn", anchors).model_arguments == {}


def test_auxiliary_heads_and_scaled_input(read: Read) -> None:
    """Auxiliary heads are told by their tensors; that published weights were the beginning, by the arguments."""
    auxiliary = {"backbone.weight": torch.ones(1), "classifier.4.bias": torch.ones(5), "aux_classifier.4.bias": torch.ones(5)}
    assert torchvision_reading(read, "fcn_resnet50", auxiliary).model_arguments == {"num_classes": 5, "aux_loss": True}
    found = torchvision_reading(read, "inception_v3", STATE, weights="IMAGENET1K_V1").model_arguments
    assert found == {"num_classes": 7, "aux_logits": False, "transform_input": True}
