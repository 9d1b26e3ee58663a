"""Networks as the report shows them: sketches with what became of their BatchNorms."""

from __future__ import annotations

import dataclasses
from typing import Literal

from exporter.artifacts import Cost, Folded, Refusal, RefusalReason, Report, Sketch, SketchNode
from exporter.artifacts.sketch import Part
from tests.report import builders

__all__ = ["Net", "dense", "mixed_net", "networked"]


class Net:
    """A network that is written down operator by operator."""

    def __init__(self) -> None:
        self.nodes = [SketchNode("the input image", "input", "input", "N x 3 x 32 x 32")]
        self.folded: list[Folded] = []
        self.refusals: list[Refusal] = []

    def add(self, module: str, kind: str, part: Part, *reads: int) -> int:
        """Add an operator, by default behind the last one; return its place."""
        self.nodes.append(SketchNode(module, kind, part, "N x 16 x 32 x 32", reads or (len(self.nodes) - 1,)))
        return len(self.nodes) - 1

    def conv(self, module: str, *reads: int) -> int:
        """Add a convolution."""
        return self.add(module, "conv2d", "product", *reads)

    def norm(self, module: str, into: str = "", direction: Literal["back", "ahead", "beside"] = "back", *reads: int) -> int:
        """Add a BatchNorm that was folded into ``into``; one that was kept where that is empty."""
        place = self.add(module, "batch_norm", "batch_norm", *reads)
        if into:
            self.folded.append(Folded(module, into, "conv2d+bn", 16, 2.5, direction))
        else:
            self.refusals.append(Refusal(module, RefusalReason.NOT_LINEAR, ("act",), f"behind {module}.act (relu); add reads it"))
        return place

    def report(self) -> Report:
        """Return a passing report of this network."""
        nodes = (*self.nodes[:-1], dataclasses.replace(self.nodes[-1], is_output=True))
        costs = (Cost(12_000_000, 3_400_000), Cost(11_900_000, 2_100_000))
        fold = {"folded": tuple(self.folded), "refusals": tuple(self.refusals), "costs": costs}
        return dataclasses.replace(builders.passing(), sketch=Sketch(nodes), **fold)


def mixed_net(num_blocks: int = 3, stem: str = "backbone.stages") -> Net:
    """Return a network with every fate of a BatchNorm in each block: taken, kept, folded ahead, beside and through others."""
    net = Net()
    net.conv("stem.conv")
    net.norm("stem.bn", "stem.conv")
    net.add("stem.act", "relu_", "other")
    for number in range(num_blocks):
        block = f"{stem}.{number}"
        entry = len(net.nodes) - 1
        net.conv(f"{block}.conv1")
        net.norm(f"{block}.bn1", f"{block}.conv1")
        inner = net.add(f"{block}.act1", "silu", "other")
        side = net.norm(f"{block}.identity", f"{block}.conv1", "beside", entry)
        joined = net.add("", "add", "sum", inner, side)
        net.norm(f"{block}.pre", "", "back", joined)
        net.add(f"{block}.act2", "gelu", "other")
        net.norm(f"{block}.norm", f"{block}.conv2", "ahead")
        tail = net.conv(f"{block}.conv2")
        shortcut = net.conv(f"{block}.shortcut", entry)
        net.add("", "cat", "concat", tail, shortcut)
        net.norm(f"{block}.after", f"{block}.conv2", "back")
        net.add(f"{block}.pool", "max_pool2d", "passes")
    net.add("flatten", "flatten", "passes")
    net.add("head", "linear", "product")
    return net


def dense(num_layers: int = 24) -> Net:
    """Return a block in which every layer reads all layers before it: as many lanes as layers."""
    net = Net()
    parts = [net.conv("features.conv0")]
    for number in range(num_layers):
        layer = f"features.denseblock1.denselayer{number + 1}"
        net.add("", "cat", "concat", *parts)
        net.norm(f"{layer}.norm1")
        net.add(f"{layer}.relu1", "relu", "other")
        net.conv(f"{layer}.conv1")
        net.norm(f"{layer}.norm2", f"{layer}.conv1")
        parts.append(net.conv(f"{layer}.conv2"))
    net.add("", "cat", "concat", *parts)
    return net


def networked() -> Report:
    """Return a report with a picture of a small network, in which everything occurs."""
    return mixed_net().report()
