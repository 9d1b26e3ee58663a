"""Small pieces of text that several commands print."""

from __future__ import annotations

from collections.abc import Sequence

from exporter.artifacts import OnnxModel, Profile, TensorSpec

__all__ = ["columns", "onnx_lines", "profile_text", "size_text", "spec_text"]


def spec_text(spec: TensorSpec) -> str:
    """Return ``image  float32 [batch, 1, 8, 8]``."""
    return f"{spec.name}  {spec.dtype} [{', '.join(str(n) for n in spec.shape)}]"


def profile_text(profile: Profile) -> str:
    """Return ``image 1x1x8x8 .. 32x1x8x8 .. 32x1x8x8``."""
    return "; ".join(f"{name} " + " .. ".join("x".join(map(str, shape)) for shape in shapes) for name, shapes in profile.shapes.items())


def size_text(size_bytes: int) -> str:
    """Return a size with a decimal unit: ``187.4 MB``."""
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


def onnx_lines(onnx: OnnxModel) -> list[str]:
    """Return where an ONNX model was written, and what is in it."""
    size = size_text(onnx.path.stat().st_size)
    graph = f"{onnx.num_nodes} nodes, {onnx.num_batch_norms} BatchNormalization"
    lines = [f"onnx → {onnx.path}   opset {onnx.opset}   IR {onnx.ir_version}   {graph}   {size}"]
    if onnx.precision != "float32":
        lines.append(f"       operators: {onnx.metadata['exporter.precision_shares']}")
    lines += [f"       input   {spec_text(spec)}" for spec in onnx.inputs]
    return [*lines, *(f"       output  {spec_text(spec)}" for spec in onnx.outputs)]


def columns(rows: Sequence[tuple[str, ...]], *, right: frozenset[int] = frozenset(), gap: str = "  ") -> list[str]:
    """Return rows as lines of aligned columns; those in ``right`` are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    lines = []
    for row in rows:
        cells = [cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))]
        lines.append(gap.join(cells).rstrip())
    return lines
