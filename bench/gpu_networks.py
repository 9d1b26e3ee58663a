"""ResNet-50, EfficientNet-B0, MobileNetV3-Large and ConvNeXt-T in plain torch, for machines that have nothing else.

Module names, shapes and outputs are those of torchvision's networks, so that either loads the other's weights. They are made for inference:
no dropout, no stochastic depth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "with_random_weights"]

NUM_CLASSES = 1000


def _conv_norm(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1, eps: float = 1e-5, act: type[nn.Module] | None = None
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=eps), *([act()] if act else []))


class Bottleneck(nn.Module):
    """Three convolutions and a shortcut; the one in the middle has the stride."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways, rectified."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """Of He et al., 2015, with the stride in the convolution of 3 x 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        channels = 64
        for index, (width, depth) in enumerate([(64, 3), (128, 4), (256, 6), (512, 3)]):
            first = Bottleneck(channels, width, 2 if index else 1)
            channels = 4 * width
            self.add_module(f"layer{index + 1}", nn.Sequential(first, *(Bottleneck(channels, width, 1) for _ in range(depth - 1))))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class SqueezeExcitation(nn.Module):
    """Scales channels by what two convolutions make of their means."""

    def __init__(self, channels: int, squeezed: int, act: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1)
        self.activation, self.scale_activation = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, scaled."""
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x))))) * x


class InvertedResidual(nn.Module):
    """Expand, convolve channel by channel, weigh the channels, project."""

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        *,
        act: type[nn.Module],
        eps: float = 1e-5,
        squeeze: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.use_shortcut = stride == 1 and inputs == outputs
        layers = [_conv_norm(inputs, expanded, 1, eps=eps, act=act)] if expanded != inputs else []
        layers += [_conv_norm(expanded, expanded, kernel, stride=stride, groups=expanded, eps=eps, act=act)]
        layers += [squeeze()] if squeeze else []
        self.block = nn.Sequential(*layers, _conv_norm(expanded, outputs, 1, eps=eps))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, with the shortcut where the shapes allow it."""
        return self.block(x) + x if self.use_shortcut else self.block(x)


class EfficientNetB0(nn.Module):
    """Of Tan and Le, 2019."""

    def __init__(self) -> None:
        super().__init__()
        silu, channels = nn.SiLU, 32
        layers: list[nn.Module] = [_conv_norm(3, channels, 3, stride=2, act=silu)]
        for expand, kernel, first_stride, outputs, depth in [
            (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
        ]:  # fmt: skip
            stage = []
            for index in range(depth):
                wide = expand * channels
                squeeze = partial(SqueezeExcitation, wide, channels // 4, silu, nn.Sigmoid)
                stage.append(InvertedResidual(channels, wide, outputs, kernel, 1 if index else first_stride, act=silu, squeeze=squeeze))
                channels = outputs
            layers.append(nn.Sequential(*stage))
        layers.append(_conv_norm(channels, 4 * channels, 1, act=silu))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Identity(), nn.Linear(4 * channels, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class MobileNetV3Large(nn.Module):
    """Of Howard et al., 2019."""

    def __init__(self) -> None:
        super().__init__()
        eps, channels, relu, swish = 1e-3, 16, nn.ReLU, nn.Hardswish
        layers: list[nn.Module] = [_conv_norm(3, channels, 3, stride=2, eps=eps, act=swish)]
        for kernel, wide, outputs, squeezed, act, stride in [
            (3, 16, 16, 0, relu, 1), (3, 64, 24, 0, relu, 2), (3, 72, 24, 0, relu, 1), (5, 72, 40, 24, relu, 2), (5, 120, 40, 32, relu, 1),
            (5, 120, 40, 32, relu, 1), (3, 240, 80, 0, swish, 2), (3, 200, 80, 0, swish, 1), (3, 184, 80, 0, swish, 1), (3, 184, 80, 0, swish, 1),
            (3, 480, 112, 120, swish, 1), (3, 672, 112, 168, swish, 1), (5, 672, 160, 168, swish, 2), (5, 960, 160, 240, swish, 1),
            (5, 960, 160, 240, swish, 1),
        ]:  # fmt: skip
            squeeze = partial(SqueezeExcitation, wide, squeezed, nn.ReLU, nn.Hardsigmoid) if squeezed else None
            layers.append(InvertedResidual(channels, wide, outputs, kernel, stride, act=act, eps=eps, squeeze=squeeze))
            channels = outputs
        layers.append(_conv_norm(channels, 6 * channels, 1, eps=eps, act=swish))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(6 * channels, 1280), swish(), nn.Identity(), nn.Linear(1280, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class LayerNorm2d(nn.LayerNorm):
    """Normalises over the channels, which are the second axis."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, normalised."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Permute(nn.Module):
    """Reorders the axes."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """Return a view."""
        return x.permute(self.axes)


class ConvNextBlock(nn.Module):
    """A large convolution channel by channel, two products over the channels, and a scaled shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 7, padding=3, groups=channels),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(channels, eps=1e-6),
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Linear(4 * channels, channels),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((channels, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both ways."""
        return self.layer_scale * self.block(x) + x


class ConvNextTiny(nn.Module):
    """Of Liu et al., 2022. It has no BatchNorm: nothing is folded, which is what it is here for."""

    def __init__(self) -> None:
        super().__init__()
        channels = 96
        layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(3, channels, 4, 4), LayerNorm2d(channels, eps=1e-6))]
        for depth, after in [(3, 192), (3, 384), (9, 768), (3, 0)]:
            layers.append(nn.Sequential(*(ConvNextBlock(channels) for _ in range(depth))))
            if after:
                layers.append(nn.Sequential(LayerNorm2d(channels, eps=1e-6), nn.Conv2d(channels, after, 2, 2)))
                channels = after
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(LayerNorm2d(channels, eps=1e-6), nn.Flatten(1), nn.Linear(channels, NUM_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.classifier(self.avgpool(self.features(x)))


NETWORKS: dict[str, type[nn.Module]] = {
    "resnet50": ResNet50,
    "efficientnet_b0": EfficientNetB0,
    "mobilenet_v3_large": MobileNetV3Large,
    "convnext_tiny": ConvNextTiny,
}


def with_random_weights(name: str) -> nn.Module:
    """Return a network in eval mode with statistics of random images, dark and bright, each moved at random: a fold changes every weight.

    Statistics that do not belong to the weights would let the signal grow or die from layer to layer, and every precision would agree on nothing.
    Scales of shortcuts are random too, so that every layer counts.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        network = NETWORKS[name]()
    generator = torch.Generator().manual_seed(1)
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, ConvNextBlock):
                part.layer_scale.uniform_(0.1, 1.0, generator=generator)
        for norm in norms:
            norm.momentum = None  # the mean of what is seen
        if norms:
            contrast = torch.logspace(-2, 0.5, 16)[:, None, None, None]
            brightness = torch.randn(16, 3, 1, 1, generator=generator)
            network.train()(contrast * torch.randn(16, 3, 128, 128, generator=generator) + brightness)
        for norm in norms:
            norm.momentum = 0.1
            norm.num_batches_tracked.zero_()
            norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn(norm.num_features, generator=generator))
            norm.running_var.mul_(0.5 + torch.rand(norm.num_features, generator=generator))
    return network.eval()
