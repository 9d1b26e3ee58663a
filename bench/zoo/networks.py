"""The networks of the zoo, with random weights and the BatchNorm statistics of trained ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from exporter.config import InputConfig, ModelConfig
from exporter.factories import build_model

__all__ = ["NETWORKS", "Network", "build", "network_of", "with_statistics"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_WIDE = {"init_weights": False}
_ZOO: tuple[tuple[str, int, dict[str, object]], ...] = (
    *((f"timm:{name}", 64, {}) for name in (
        "resnet18", "resnet50", "resnet152", "resnet50d", "resnext50_32x4d", "seresnet50", "wide_resnet50_2", "resnetblur50", "ecaresnet50t", "skresnet18",  # noqa: E501
        "resnest14d", "res2net50_26w_4s", "densenet121", "densenet201", "dpn68", "dla34", "dla60", "hrnet_w18_small", "selecsls42", "vovnet39a",
        "ese_vovnet19b_dw", "cspresnet50", "cspdarknet53", "darknet53", "gernet_s", "regnetx_002", "regnety_002", "regnetv_040", "regnetz_b16",
        "mobilenetv2_100", "mobilenetv3_small_050", "mobilenetv3_large_100", "mobilenetv4_conv_small", "mobilenetv4_hybrid_medium", "mnasnet_100",
        "semnasnet_100", "spnasnet_100", "fbnetc_100", "fbnetv3_b", "efficientnet_b0", "efficientnetv2_rw_t", "tf_efficientnet_b0", "tf_efficientnet_b7",  # noqa: E501
        "tf_efficientnetv2_s", "tf_mixnet_s", "mixnet_s", "ghostnet_100", "ghostnetv2_100", "ghostnetv3_100", "repghostnet_050", "hardcorenas_a",
        "tinynet_a", "lcnet_050", "rexnet_100", "nasnetalarge", "pnasnet5large", "inception_v3", "inception_v4", "inception_resnet_v2", "xception",
        "xception41", "xception41p", "xception65", "legacy_xception", "repvgg_a0", "repvgg_b1g4", "mobileone_s0", "mobileone_s1", "fastvit_t8", "levit_128s",  # noqa: E501
        "coatnet_bn_0_rw_224", "maxvit_nano_rw_256", "xcit_tiny_12_p8_224", "convmixer_768_32", "lambda_resnet26t", "halonet26t", "botnet26t_256",
        "swiftformer_xs", "efficientformer_l1", "efficientformerv2_s0", "efficientvit_b0", "efficientvit_m0", "tiny_vit_5m_224", "mobilevit_xxs",
        "mobilevitv2_050", "edgenext_xx_small", "poolformerv2_s12", "starnet_s1", "repvit_m0_9", "nf_resnet26", "resnetv2_50d_evos", "visformer_tiny",
        "hgnet_tiny", "hgnetv2_b0", "crossvit_9_240",
    )),
    *((f"torchvision:{name}", 64, {}) for name in ("resnet50", "densenet121", "mnasnet1_0", "shufflenet_v2_x1_0", "regnet_y_400mf", "mobilenet_v2")),
    ("torchvision:googlenet", 96, _WIDE),
    ("torchvision:inception_v3", 96, _WIDE),
    ("torchvision:vgg11_bn", 224, {}),
    ("torchvision:deeplabv3_mobilenet_v3_large", 64, {}),
    *((f"ultralytics:{name}.yaml", 64, {}) for name in ("yolov8n", "yolo11n", "yolov10n", "yolov8n-seg")),
)  # fmt: skip
_LARGER = {
    **dict.fromkeys(
        ("timm:levit_128s", "timm:coatnet_bn_0_rw_224", "timm:xcit_tiny_12_p8_224", "timm:visformer_tiny", "timm:efficientformer_l1"), 224
    ),
    **dict.fromkeys(("timm:efficientformerv2_s0", "timm:tiny_vit_5m_224", "timm:swiftformer_xs", "timm:efficientvit_m0"), 224),
    **dict.fromkeys(("timm:maxvit_nano_rw_256", "timm:botnet26t_256", "timm:halonet26t", "timm:lambda_resnet26t", "timm:mobilevit_xxs"), 256),
    "timm:mobilevitv2_050": 256,
    "timm:crossvit_9_240": 240,
    **dict.fromkeys(("timm:nasnetalarge", "timm:pnasnet5large", "timm:inception_v3", "timm:inception_v4", "timm:inception_resnet_v2"), 96),
}


def with_statistics(network: nn.Module) -> nn.Module:
    """Give every BatchNorm the statistics of training: some gamma negative, some near zero, variances around one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in network.modules():
            if isinstance(norm, _NORMS) and norm.running_mean is not None:
                size = norm.num_features
                norm.running_mean.copy_(0.1 * torch.randn(size, generator=generator))
                norm.running_var.copy_(0.5 + torch.rand(size, generator=generator))
                if norm.weight is not None:
                    gamma = 0.6 + 0.8 * torch.rand(size, generator=generator)
                    chance = torch.rand(size, generator=generator)
                    gamma[chance < 0.12] *= -1
                    gamma[chance > 0.94] *= 1e-6
                    norm.weight.copy_(gamma)
                    norm.bias.copy_(0.1 * torch.randn(size, generator=generator))
    return network


@dataclass(frozen=True, slots=True)
class Network:
    """A network of a library, and the side of the images that it gets."""

    factory: str
    side: int
    arguments: dict[str, object]

    @property
    def config(self) -> ModelConfig:
        """Return what `exporter` is told of it: a batch of two images, whose size may vary along the batch."""
        inputs = (InputConfig(name="image", shape=(2, 3, self.side, self.side)),)
        return ModelConfig(factory=self.factory, arguments=self.arguments, inputs=inputs)


NETWORKS = tuple(Network(factory, _LARGER.get(factory, side), arguments) for factory, side, arguments in _ZOO)


def network_of(factory: str) -> Network:
    """Return the network of the zoo that is made so; any other factory makes one for images of 64 pixels."""
    return next((network for network in NETWORKS if network.factory == factory), Network(factory, 64, {}))


def build(network: Network) -> nn.Module:
    """Return the network in eval mode, the same numbers each time."""
    torch.manual_seed(0)  # noqa: TID251 - the libraries draw their weights from the global generator
    return with_statistics(build_model(network.config, base=Path()))
