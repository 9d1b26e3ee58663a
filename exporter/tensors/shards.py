"""Tensors that were saved in parts: boxes of elements that tile the whole tensor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from exporter.artifacts import ShardRef, TensorRef

__all__ = ["Box", "NotTiled", "bands", "check_tiling", "narrow"]

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Where a box begins on every axis, and where it ends."""


class NotTiled(ValueError):
    """The boxes do not tile the tensor; ``limit`` is True where that could not be found out in the steps allowed."""

    def __init__(self, found: str, *, limit: bool = False) -> None:
        super().__init__(found)
        self.limit = limit


def bands(ref: TensorRef) -> Iterator[tuple[int, int, list[ShardRef]]]:
    """Yield ``(begin, end, shards)`` along the first axis of a tensor in parts; between the two, no shard begins or ends."""
    shards = [shard for shard in ref.shards if shard.tensor.num_elements]
    for begin, end, indices in _cut([(shard.begin[0], shard.begin[0] + shard.tensor.shape[0]) for shard in shards]):
        yield begin, end, [shards[index] for index in indices]


def narrow(shard: ShardRef, begin: int, end: int) -> TensorRef:
    """Return rows ``begin`` to ``end`` of the whole tensor, as far as this shard has them."""
    whole = shard.tensor
    offset = whole.offset + (begin - shard.begin[0]) * whole.strides[0]
    return replace(whole, shape=(end - begin, *whole.shape[1:]), offset=offset)


def check_tiling(shape: tuple[int, ...], boxes: Sequence[Box], *, max_steps: int) -> int:
    """Check that the boxes cover every element of ``shape`` exactly once; return the steps that it took.

    Boxes without elements do not count. Each axis is cut where a box begins or ends, and the boxes of every band are checked on
    the next axis.

    Raises:
        NotTiled: a gap, an overlap, a box that reaches outside, or more than ``max_steps`` steps.
    """
    if 0 in shape:
        return 0
    solid = [box for box in boxes if all(begin < end for begin, end in zip(*box, strict=True))]
    steps = 0
    todo: list[tuple[int, list[Box]]] = [(0, solid)]
    while todo:
        axis, group = todo.pop()
        if axis == len(shape):
            if len(group) != 1:
                raise NotTiled(f"{len(group)} parts for the same elements" if group else "no part at all")
            continue
        position = 0
        for begin, end, indices in _cut([(box[0][axis], box[1][axis]) for box in group]):
            steps += 1 + len(indices)
            if steps > max_steps:
                raise NotTiled("parts cut more finely than any trainer cuts them", limit=True)
            if begin != position or not indices:
                raise NotTiled(f"no part for {position} to {begin if begin != position else end} on axis {axis}")
            position = end
            todo.append((axis + 1, [group[index] for index in indices]))
        if position != shape[axis]:
            raise NotTiled(f"parts up to {position} on axis {axis}, which has {shape[axis]}")
    return steps


def _cut(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, list[int]]]:
    """Cut an axis wherever a span begins or ends; yield each piece with the spans that cover it, by index."""
    starting: dict[int, list[int]] = {}
    for index, (begin, _) in enumerate(spans):
        starting.setdefault(begin, []).append(index)
    cuts = sorted({place for span in spans for place in span})
    active: list[int] = []
    for begin, end in itertools.pairwise(cuts):
        active = [index for index in active if spans[index][1] > begin] + starting.get(begin, [])
        yield begin, end, active
