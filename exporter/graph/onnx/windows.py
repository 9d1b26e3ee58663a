"""Where convolutions and pooling look: padding as the attributes say it, whatever way they say it in."""

from __future__ import annotations

import onnx_ir as ir

from exporter.graph.abstract import Window

__all__ = ["paddings_of", "window_of"]


def paddings_of(node: ir.Node, shape: tuple[int | str, ...] | None, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the padding at the beginning and the end of every spatial axis, None where it depends on a size known at run time only.

    Args:
        node: a convolution or a pooling.
        shape: of its data.
        kernel: its size along every spatial axis.
    """
    spatial = len(kernel)
    mode = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    if mode == "VALID":
        return (0,) * spatial, (0,) * spatial
    if mode == "NOTSET":
        pads = tuple(node.attributes.get_ints("pads", ())) or (0,) * (2 * spatial)
        return (pads[:spatial], pads[spatial:]) if len(pads) == 2 * spatial else None
    strides, dilations = _each(node, "strides", spatial), _each(node, "dilations", spatial)
    if shape is None or len(shape) != spatial + 2 or mode not in {"SAME_UPPER", "SAME_LOWER"}:
        return None
    begins, ends = [], []
    for size, taps, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True):
        reach = dilation * (taps - 1) + 1
        if isinstance(size, int):
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
        elif stride == 1:
            total = reach - 1
        else:
            return None
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return tuple(begins), tuple(ends)


def window_of(node: ir.Node, kernel: tuple[int, ...], begins: tuple[int, ...]) -> Window:
    """Return where a convolution looks."""
    return Window(kernel, _each(node, "strides", len(kernel)), begins, _each(node, "dilations", len(kernel)))


def _each(node: ir.Node, name: str, spatial: int) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints(name, ())) or (1,) * spatial
