"""Reading nodes: their kinds, the modules that they belong to, what they read from around a subgraph."""

from __future__ import annotations

import re
from collections.abc import Iterator

import onnx_ir as ir

__all__ = ["captured_by", "inner_nodes", "is_standard", "label_of", "module_of", "module_type_of", "name_of", "nested_graphs"]

_LONGEST_SCOPES = 20_000
_TEXT = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_NORM_STEP = re.compile(r"(FusedBatchNorm|BatchNormalization|batchnorm)[^/]*$")


def is_standard(node: ir.Node) -> bool:
    """Return whether a node is an operator of the ONNX standard, not of somebody's own domain."""
    return node.domain in {"", "ai.onnx"}


def name_of(node: ir.Node) -> str:
    """Return the name that an operator is known by: that of its first output, which no other has."""
    return next((value.name for value in node.outputs if value.name), "")


def module_of(node: ir.Node) -> str:
    """Return the name of the user's module that a node came from, empty where the file does not say.

    torch's exporter notes the scopes of every node; the older one writes them into its name: ``/layer1/layer1.0/bn1/BatchNormalization``.
    """
    if "exporter.module" in node.metadata_props:
        return node.metadata_props["exporter.module"]
    scopes = _scopes(node, "pkg.torch.onnx.name_scopes")
    if scopes:
        return scopes[-2] if len(scopes) > 1 else ""
    if (node.name or "").startswith("/"):
        return _joined((node.name or "")[1:].split("/")[:-1])
    return ""


def module_type_of(node: ir.Node) -> str:
    """Return the class of the module that a node came from, empty where the file does not say."""
    classes = _scopes(node, "pkg.torch.onnx.class_hierarchy")
    return classes[-2] if len(classes) > 1 else ""


def label_of(node: ir.Node) -> str:
    """Return what to call a node for people: its module, else its name, else that of its output."""
    return module_of(node) or _NORM_STEP.sub("", node.name or "").rstrip("/") or node.name or name_of(node)


def nested_graphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs among the attributes of a node: the branches of an If, the body of a Loop or Scan."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """Yield the nodes of the graphs among the attributes of a node, at every depth."""
    todo = list(nested_graphs(node))
    while todo:
        for inner in todo.pop():
            yield inner
            todo += nested_graphs(inner)


def captured_by(node: ir.Node) -> list[ir.Value]:
    """Return the values from around it that the graphs of a node read."""
    own: set[ir.Value] = set()
    read: dict[ir.Value, None] = {}
    todo = list(nested_graphs(node))
    while todo:
        graph = todo.pop()
        own.update(graph.inputs, graph.initializers.values())
        for inner in graph:
            own.update(inner.outputs)
            read.update(dict.fromkeys(value for value in inner.inputs if value is not None))
            todo += nested_graphs(inner)
        read.update(dict.fromkeys(graph.outputs))
    return [value for value in read if value not in own]


def _scopes(node: ir.Node, key: str) -> list[str]:
    """Return a list that torch noted with a node, written as Python writes it."""
    noted = node.metadata_props.get(key, "")
    if not noted.startswith("[") or len(noted) > _LONGEST_SCOPES:
        return []
    return [one or other for one, other in _TEXT.findall(noted)]


def _joined(steps: list[str]) -> str:
    """Return the name of the module behind the steps of a scope: ``layer1``, ``layer1.0``, ``bn1`` are ``layer1.0.bn1``."""
    names: list[str] = []
    for step in steps:
        if names and step.startswith(f"{names[-1]}."):
            names[-1] = step
        else:
            names.append(step)
    return ".".join(names)
