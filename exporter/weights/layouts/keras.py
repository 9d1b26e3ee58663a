"""Keras' own averages (``use_ema=True``): variables of the optimizer, by name in old ``.h5`` files, by number alone in ``.keras``.

The optimizer's variables are iteration, learning rate, then, with ``use_ema``, an average of each trainable variable, then its slots,
which have the same shapes. Only ``config.json`` tells averages from slots, and only the order of its layers says whose they are. The
callback SwapEMAWeights exchanges the two copies without a trace, so an average is taken where it is named, never by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from exporter.artifacts import Checkpoint, Node, TensorRef
from exporter.weights.health import Schedule
from exporter.weights.layout import Average, Layout, Match, WeightSet
from exporter.weights.layouts.fields import count, number, text
from exporter.weights.state_dicts import child

__all__ = ["LAYOUT"]

NAME = "optimizer"
_LEADING = 2  # iteration and learning rate
_SWAPPED = "if SwapEMAWeights wrote the file, the plain weights are the average and these the raw ones: the file cannot tell"
_FINISHED = "training used use_ema and no average is beside the weights: fit() ends with the average in them, which the file cannot tell"

_AFFINE = (("gamma", "scale"), ("beta", "center"))
_KERNEL = (("kernel", ""), ("bias", "use_bias"))
_VARIABLES: dict[str, tuple[tuple[tuple[str, str], ...], tuple[str, ...]]] = {
    **{f"Conv{n}D{kind}": (_KERNEL, ()) for n in (1, 2, 3) for kind in ("", "Transpose")},
    **{f"DepthwiseConv{n}D": (_KERNEL, ()) for n in (1, 2)},
    "Dense": (_KERNEL, ()),
    "EinsumDense": ((("kernel", ""), ("bias", "bias_axes")), ()),
    "Embedding": ((("embeddings", ""),), ()),
    "LayerNormalization": (_AFFINE, ()),
    "GroupNormalization": (_AFFINE, ()),
    "BatchNormalization": (_AFFINE, ("moving_mean", "moving_variance")),
    "PReLU": ((("alpha", ""),), ()),
}
"""Class -> its trainable variables, each with the setting that it hangs on, then those that are not trained; in the order of the file."""


def read(checkpoint: Checkpoint) -> Match | None:
    """Recognise the tree of ``.keras``, ``.weights.h5`` or a whole-model ``.h5``."""
    weights = child(checkpoint.root, "weights")
    if checkpoint.container not in {"Keras", "HDF5"} or not isinstance(weights, Mapping):
        return None
    if "model_weights" in weights:
        return _by_name(weights, child(child(checkpoint.root, "training_config"), "optimizer_config"))
    if not isinstance(child(weights, "layers"), Mapping):
        return None
    return _by_number(weights, child(checkpoint.root, "config"))


def _by_name(weights: Mapping[str, Node], described: Node) -> Match:
    """Read a whole-model ``.h5``: the average of ``a/b`` is ``<optimizer>/a_b_average``, in tf-keras ``<optimizer>/average/a/b``."""
    raw: dict[str, TensorRef] = {}
    for layer in _branches(child(weights, "model_weights")):
        raw.update(_tensors(layer, ""))
    stored = dict(_tensors(child(weights, "optimizer_weights"), ""))
    found: dict[str, TensorRef] = {}
    taken: set[str] = set()
    optimizers = sorted({key.partition("/")[0] for key in stored})
    for name, ref in raw.items():
        for key in (
            form.format(optimizer, name, name.replace("/", "_")) for optimizer in optimizers for form in ("{0}/average/{1}", "{0}/{2}_average")
        ):
            if key in stored and stored[key].shape == ref.shape:
                if name in found or key in taken:
                    return Match("keras", (), WeightSet("weights/model_weights", raw), refusal=f"two names meet in the optimizer's {key!r}")
                found[name] = stored[key]
                taken.add(key)
    set_ = WeightSet("weights/model_weights", raw)
    counter = next((count(stored[key]) for key in stored if key.rpartition("/")[2] in {"iteration", "iter:0", "iteration:0"}), None)
    return _match(set_, found, child(described, "config"), counter, "weights/optimizer_weights")


def _by_number(weights: Mapping[str, Node], config: Node) -> Match:
    """Read ``layers/<group>/vars/<i>`` and ``optimizer/vars/<i>``."""
    layers = child(weights, "layers")
    groups = {text(child(child(group, "vars"), "<name>")) or key: group for key, group in layers.items()} if isinstance(layers, Mapping) else {}
    described = child(child(config, "config"), "layers")
    names, trainable = _named(groups, described)
    set_ = WeightSet("weights/layers", names)
    numbered = _numbered(child(child(weights, "optimizer"), "vars"))
    if config is None:
        remark = "without config.json an average cannot be told from a slot of the optimizer: give the .keras file of the same model"
        return Match("keras", (), WeightSet(set_.at, names, remark=remark if numbered else ""))
    if trainable is None:
        return Match("keras", (), WeightSet(set_.at, names, remark="its layers are not in a known order, so the optimizer's variables have no names"))
    settings = child(child(child(config, "compile_config"), "optimizer"), "config")
    averages = numbered[_LEADING : _LEADING + len(trainable)]
    found = dict(zip(trainable, averages, strict=False))
    if len(found) != len(trainable) or any(ref.shape != names[name].shape for name, ref in found.items()):
        found = {}
    return _match(set_, found, settings, count(numbered[0]) if numbered else None, "weights/optimizer/vars")


def _match(raw: WeightSet, averages: Mapping[str, TensorRef], settings: Node, updates: int | None, at: str) -> Match:
    if child(settings, "use_ema") is not True:
        return Match("keras", (), raw)
    if not averages:
        return Match("keras", (), replace(raw, remark=_FINISHED))
    schedule = Schedule("first copies", number(child(settings, "ema_momentum"), below=1))
    weights = WeightSet(at, averages, remark=_SWAPPED)
    average = Average(NAME, weights, schedule, updates, "may be absent", frozenset(raw.tensors) - frozenset(averages), on_request=True)
    return Match("keras", (average,), raw)


def _named(groups: Mapping[str, Node], described: Node) -> tuple[dict[str, TensorRef], list[str] | None]:
    """Return the tensors by name, and the names of the trainable ones in the optimizer's order; None where that is not known."""
    names: dict[str, TensorRef] = {}
    trainable: list[str] | None = [] if isinstance(described, list) else None
    for layer in described if isinstance(described, list) else ():
        settings, name = child(layer, "config"), text(child(child(layer, "config"), "name"))
        variables = _numbered(child(groups.get(name), "vars"))
        own, fixed = _VARIABLES.get(text(child(layer, "class_name")), ((), ()))
        trained = [variable for variable, setting in own if not setting or child(settings, setting) not in {False, None, ""}]
        called = [*trained, *fixed]
        below = dict(_tensors(groups.get(name), ""))
        if len(called) != len(variables) or len(below) != len(variables) or any(f"{name}/{variable}" in names for variable in called):
            trainable = None
            continue
        names.update({f"{name}/{variable}": ref for variable, ref in zip(called, variables, strict=True)})
        if trainable is not None and child(settings, "trainable") is not False:
            trainable += [f"{name}/{variable}" for variable in trained]
    known = {id(ref) for ref in names.values()}
    for name, group in groups.items():
        names.update({f"{name}/{place}": ref for place, ref in _tensors(group, "") if id(ref) not in known})
    return names, trainable if trainable is not None and len(known) == len(names) else None


def _numbered(variables: Node) -> list[TensorRef]:
    """Return the values under 0, 1, 2, ...; nothing where one is missing."""
    found = {key: ref for key, ref in variables.items() if isinstance(ref, TensorRef)} if isinstance(variables, Mapping) else {}
    return [found[str(i)] for i in range(len(found))] if all(str(i) in found for i in range(len(found))) else []


def _branches(node: Node) -> Iterator[Node]:
    yield from (value for value in node.values() if isinstance(value, Mapping)) if isinstance(node, Mapping) else ()


def _tensors(node: Node, prefix: str) -> Iterator[tuple[str, TensorRef]]:
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if isinstance(value, TensorRef):
            yield f"{prefix}{key}", value
        else:
            yield from _tensors(value, f"{prefix}{key}/")


LAYOUT = Layout("keras", ("optimizer_weights", "optimizer/vars"), read)
"""Keras 3 and tf-keras."""
