"""Schedule-free files without the library: the order of the parameters is found, asked for, or refused, and never guessed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exporter.artifacts import LayoutReading, TensorSpec
from exporter.errors import LayoutError
from exporter.weights.naming import fit_in_order

Read = Callable[..., LayoutReading]
Bake = Callable[..., Any]
Shape = tuple[int, ...]


def content(model: dict[str, torch.Tensor], groups: list[list[torch.Tensor]], **settings: object) -> dict[str, object]:
    """Return a file in which each group has its tensors as z."""
    states = {index: {"z": z} for index, z in enumerate(z for group in groups for z in group)}
    counter = itertools.count()
    group = {"weight_sum": 1.0, "lr_max": 0.1, "train_mode": True, "k": 3, "betas": (0.5, 0.9), "weight_lr_power": 2.0, **settings}
    return {"model": model, "optimizer": {"state": states, "param_groups": [{**group, "params": [next(counter) for _ in g]} for g in groups]}}


def test_tied_parameters_are_one(baked: Bake) -> None:
    """A tensor that stands under two names in the state dict is one parameter, and both names get its average."""
    tied, other = torch.ones(3), torch.full((3,), 4.0)
    model = {"head.weight": tied, "body.weight": other, "embedding.weight": tied}
    _, arrays = baked(content(model, [[torch.full((3,), 2.0), torch.full((3,), 8.0)]]))
    assert [float(arrays[name][0]) for name in model] == [0.0, 0.0, 0.0]
    np.testing.assert_array_equal(arrays["head.weight"], arrays["embedding.weight"])


def test_half_precision_is_computed_in_float64(baked: Bake) -> None:
    """bfloat16 weights are combined with z in float64 and rounded once, to bfloat16."""
    y, z = torch.linspace(-1, 1, 101).bfloat16(), torch.linspace(1, 2, 101)
    _, arrays = baked(content({"w": y, "n": torch.tensor(3)}, [[z]], betas=(0.9, 0.99)))
    exact = y.double().numpy() * (1 / 0.9) + z.double().numpy() * (1 - 1 / 0.9)
    got = arrays["w"].astype(np.float64)
    neighbour = np.nextafter(arrays["w"], np.where(exact > got, np.inf, -np.inf).astype(arrays["w"].dtype)).astype(np.float64)
    assert np.all(np.abs(got - exact) <= np.abs(neighbour - exact))
    assert arrays["n"] == 3


@pytest.mark.parametrize("case", ["two optimizers", "no beta"])
def test_what_cannot_be_computed_is_refused(case: str, baked: Bake) -> None:
    """Two schedule-free optimizers, or one that does not say its beta: refused with the reason."""
    made = content({"w": torch.ones(3)}, [[torch.ones(3)]], **({"betas": None} if case == "no beta" else {}))
    if case == "two optimizers":
        made["other"] = made["optimizer"]
    with pytest.raises(LayoutError, match=r"(?s)E202.*(2 schedule-free optimizers|does not say its beta)"):
        baked(made)


def test_an_optimizer_that_never_stepped_is_not_one(read: Read) -> None:
    """Before the first step there is no z, and the weights are what the model began with: raw."""
    made = content({"w": torch.ones(3)}, [[]])
    assert read(made).layout == "raw"


@given(
    names=st.lists(st.sampled_from([(2,), (3,), (2, 2)]), max_size=6),
    belongs=st.lists(st.integers(min_value=-1, max_value=1), min_size=6, max_size=6),
    num_groups=st.integers(min_value=1, max_value=2),
)
def test_an_order_is_taken_only_if_it_is_the_only_one(names: list[Shape], belongs: list[int], num_groups: int) -> None:
    """Against every way of dealing names to groups: the one way that fits is returned, none or several give None."""
    order = [TensorSpec(f"n{index}", shape, "float32") for index, shape in enumerate(names)]
    groups = [[shape for shape, group in zip(names, belongs, strict=False) if group == wanted] for wanted in range(num_groups)]
    dealings = [
        [[spec for spec, group in zip(order, dealt, strict=True) if group == wanted] for wanted in range(num_groups)]
        for dealt in itertools.product(range(-1, num_groups), repeat=len(names))
    ]
    ways = [[spec.name for group in d for spec in group] for d in dealings if [[spec.shape for spec in group] for group in d] == groups]
    assert fit_in_order(groups, order) == (ways[0] if len(ways) == 1 else None)


def test_too_many_ways_are_an_open_order() -> None:
    """Groups of very many equal tensors end at once, without an order."""
    order = [TensorSpec(f"n{index}", (2,), "float32") for index in range(3000)]
    groups = [[(2,)] * 500 for _ in range(4)]
    assert fit_in_order(groups, order) is None
