"""Load baked weights into a network: by name, all of them, and never with a loss.

The network is built in float32. Half and bfloat16 weights are widened, which is exact; float64 weights for a float32
parameter are refused, because they would be rounded without anyone having asked for it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from exporter.errors import ArtifactError, LayoutError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["load_weights_"]

_SHOWN = 12
_WIDER = {
    ("float16", "float32"), ("float16", "float64"), ("bfloat16", "float32"), ("bfloat16", "float64"), ("float32", "float64"),
}  # fmt: skip


def load_weights_(module: nn.Module, weights_path: Path) -> None:
    """Copy every tensor of the safetensors file at ``weights_path`` into ``module``, in place.

    Raises:
        ArtifactError: the file cannot be read (E321).
        LayoutError: tensors are missing, unexpected or misshapen (E322), or would lose precision (E323). Nothing was loaded.
    """
    tensors = _read(weights_path)
    own = {name: tensor for name, tensor in module.state_dict().items() if hasattr(tensor, "dtype")}
    _check_names(own, tensors, weights_path)
    _check_dtypes(own, tensors, weights_path)
    module.load_state_dict(tensors, strict=True)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as err:
        raise ArtifactError(
            "E321", "the baked weights cannot be read", facts={"file": path, "found": err}, help="exporter bake-ema makes them again"
        ) from err


def _check_names(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    misshapen = [
        f"{name}: got {tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if not (missing or unexpected or misshapen):
        return
    facts: dict[str, object] = {"file": path, "model": f"{len(own)} tensors, {len(own) - len(missing)} of them in the file"}
    for label, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen)):
        if names:
            facts[label] = _listed(names)
    facts["note"] = "nothing was loaded"
    raise LayoutError("E322", "the weights do not fit the model", facts=facts, help=_hint(missing, unexpected, misshapen))


def _check_dtypes(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    lossy = []
    for name, target in own.items():
        got, expected = (str(t.dtype).removeprefix("torch.") for t in (tensors[name], target))
        if got != expected and (got, expected) not in _WIDER:
            lossy.append(f"{name}: got {got}, expected {expected}")
    if lossy:
        help_text = 'cast them on purpose when baking: [weights] dtype = "float32"'
        raise LayoutError(
            "E323",
            "the weights would lose precision in this model",
            facts={"file": path, "tensors": _listed(lossy), "note": "nothing was loaded"},
            help=help_text,
        )


def _listed(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return "\n".join([f"{len(names)}:"] * (len(names) > 1) + names[:_SHOWN] + ([f"... and {more} more"] if more > 0 else []))


def _hint(missing: list[str], unexpected: list[str], misshapen: list[str]) -> str:
    for lacking, having, text in ((missing, unexpected, "in the file begin with"), (unexpected, missing, "in the model begin with")):
        prefixes = {name.removesuffix(wanted) for wanted in lacking for name in having if name != wanted and name.endswith("." + wanted)}
        common = [prefix for prefix in prefixes if sum(prefix + wanted in set(having) for wanted in lacking) * 2 > len(lacking)]
        if common:
            prefix = min(common, key=len)
            remedy = f"bake with --strip-prefix {prefix}" if lacking is missing else "build the model without this prefix"
            return f"the names {text} {prefix!r}: {remedy}"
    pairs = [(name, difflib.get_close_matches(name, unexpected, n=1)) for name in missing[:_SHOWN]]
    near = [f"{name} is {close[0]}" for name, close in pairs if close]
    if near:
        return f"perhaps {near[0]}? The factory's arguments may differ from those of the training"
    return "give the factory the arguments of the training ([model.arguments])" if misshapen or missing or unexpected else ""
