"""For users of torch: a module -> the same module with its BatchNorms folded, without files and without a configuration."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec

from exporter.artifacts import Folded, Graph, Provenance, Refusal, TensorSpec
from exporter.config import FoldConfig, InputConfig
from exporter.errors import FoldError, SampleError
from exporter.factories.inputs import BATCH
from exporter.graph.aten.calls import dtype_name
from exporter.graph.folding import fold_recorded
from exporter.graph.replay.document import FoldPlan
from exporter.graph.tracing import trace

__all__ = ["FoldedModule", "Sample", "fold_module"]

Sample: TypeAlias = "Tensor | Sequence[Tensor] | Mapping[str, Tensor]"


@dataclass(frozen=True, slots=True, eq=False)
class _TracedForward:
    """The code of a traced network, which reads weights and specs from its first argument; nothing in here ever changes."""

    forward: Callable[..., Any]
    in_spec: TreeSpec
    out_spec: TreeSpec

    def __deepcopy__(self, memo: dict[int, object]) -> _TracedForward:
        return self

    def __reduce__(self) -> NoReturn:
        """Refuse to be pickled: the code was made while tracing, and no module has it from which a pickle could take it by name."""
        help_text = (
            "as a program, with its weights: torch.export.save(torch.export.export(folded, (sample,)), 'folded.pt2')\n"
            "or the weights alone, for the same network folded again: torch.save(folded.state_dict(), 'folded.pt')"
        )
        raise FoldError("E353", "a folded network cannot be pickled as a whole: its code is in no module", help=help_text)


class FoldedModule(nn.Module):
    """A traced network in eval mode without the BatchNorms that could be folded; made by ``exporter.fold``.

    Parameters and buffers have the names of the original's, so ``state_dict``, ``to`` and ``deepcopy`` work as they do there. They are
    copies, for inference, and require no gradient. It is called as the original is, by position or by the names of the inputs.
    ``torch.export`` takes and stores it; a pickle, and so ``torch.save`` of the whole, is refused (E353).

    Attributes:
        folded: the BatchNorms that are gone, and what each was folded into.
        refusals: those that are left, each with its reason.
        absorbed: products and sums with constants that stood alone and are gone, such as layer scales.
        inputs, outputs: names, shapes and dtypes; a text in a shape is an axis that may vary.
    """

    def __init__(self, graph: Graph, plan: FoldPlan | FoldError, original: nn.Module) -> None:
        super().__init__()
        program = graph.folded_program.module(check_guards=False)
        _part_from_(program, original)
        own = vars(program)  # what a module is made of; as a child it would lengthen every name
        vars(self).update({name: own[name] for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")})
        self._traced = _TracedForward(type(program).forward, own["_in_spec"], own["_out_spec"])
        self.folded: tuple[Folded, ...] = graph.folded
        self.refusals: tuple[Refusal, ...] = graph.refusals
        self.absorbed: tuple[Folded, ...] = graph.absorbed
        self.inputs: tuple[TensorSpec, ...] = graph.inputs
        self.outputs: tuple[TensorSpec, ...] = graph.outputs
        self._plan = plan
        super().train(mode=False)

    @property
    def plan(self) -> FoldPlan:
        """Return the plan that folds new weights of the same network: ``exporter.apply_plan``.

        Raises:
            FoldError: this fold cannot be applied again by numbers alone (E360).
        """
        if isinstance(self._plan, FoldError):
            raise self._plan
        return self._plan

    @property
    def _in_spec(self) -> TreeSpec:
        return self._traced.in_spec

    @property
    def _out_spec(self) -> TreeSpec:
        return self._traced.out_spec

    def forward(self, *inputs: Tensor, **named: Tensor) -> Any:  # noqa: ANN401 - whatever the network returns
        """Run the network.

        Raises:
            SampleError: the inputs are not those that it was traced with (E352).
        """
        return self._traced.forward(self, *_fitting(self.inputs, inputs, named))

    def train(self, mode: bool = True) -> FoldedModule:  # noqa: FBT001, FBT002 - torch's signature
        """Stay in eval mode: a traced network has one mode, and a folded one has no statistics to train.

        Raises:
            ValueError: ``mode`` is True.
        """
        if mode:
            raise ValueError("a folded network cannot be trained; train the original and fold it again")
        return self

    def extra_repr(self) -> str:
        """Return the numbers of folds, for ``print``."""
        return f"{len(self.folded)} BatchNorms folded, {len(self.refusals)} kept"


def fold_module(
    module: nn.Module, sample: Sample, *, dynamic: Mapping[str, Mapping[int, str]] | None = None, config: FoldConfig | None = None
) -> FoldedModule:
    """Return ``module`` in eval mode with every BatchNorm folded that has an exact fold; ``module`` stays as it is.

    Args:
        module: any network that ``torch.export`` can trace; it is traced in eval mode, whatever mode it is in.
        sample: its inputs, batch first: a tensor, several by position, or several by the names of ``forward``. Only shape and dtype
            count.
        dynamic: input -> axis -> name of the axes that may vary; the batch alone where nothing is said.
        config: which BatchNorms to keep.

    Raises:
        SampleError: ``sample`` is not made of tensors (E351).
        ConfigError: it does not fit ``forward`` (E331).
        ExportError: the network cannot be traced (E333 to E336).
    """
    inputs = tuple(_input(name, tensor, (dynamic or {}).get(name, {})) for name, tensor in _named(module, sample))
    with _in_eval_mode(module):
        graph, plan = fold_recorded(trace(module, inputs), config or FoldConfig(), provenance=Provenance("graph"))
    return FoldedModule(graph, plan, module)


def _named(module: nn.Module, sample: object) -> list[tuple[str, Tensor]]:
    """Return the tensors of ``sample`` with names: its own, else those of the parameters of ``forward``."""
    given = [sample] if isinstance(sample, Tensor) else sample
    if isinstance(given, Mapping):
        found = list(given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str):
        parameters = [p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD}]
        names = parameters if len(parameters) >= len(given) else [f"input_{number}" for number in range(len(given))]
        found = list(zip(names, given, strict=False))
    else:
        found = [("sample", sample)]
    for name, tensor in found:
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            facts = {
                "at": name,
                "found": f"a {type(tensor).__name__}" if not isinstance(tensor, Tensor) else "a tensor without axes",
                "expected": "a tensor, a tuple of tensors or a dict of tensors, each with the batch as its first axis",
            }
            raise SampleError("E351", "the sample is not made of tensors", facts=facts)
    return found


def _input(name: str, tensor: Tensor, dynamic: Mapping[int, str]) -> InputConfig:
    shape = tuple(tensor.shape)
    if shape[0] == 1 and (not dynamic or 0 in dynamic):
        shape = (BATCH, *shape[1:])  # a tracer takes a size of one for a constant
    return InputConfig(name=name, shape=shape, dtype=dtype_name(tensor.dtype), dynamic={str(axis): text for axis, text in dynamic.items()})


@contextlib.contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put ``module`` in eval mode and back, and give it back the attributes that it sets while it runs: a tracer leaves no real tensors in them."""
    before = [(part, dict(vars(part))) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, attributes in before:
            vars(part).clear()
            vars(part).update(attributes)


def _part_from_(program: nn.Module, module: nn.Module) -> None:
    """Give ``program`` tensors of its own where it shares memory with ``module``; what is tied stays tied."""
    theirs = {_memory(tensor) for tensor in (*module.parameters(), *module.buffers())}
    own: dict[tuple[object, ...], Tensor] = {}

    def parted(tensor: Tensor) -> Tensor:
        place = (type(tensor), _memory(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        if place not in own or not tensor.numel():
            alone = tensor.detach().clone() if _memory(tensor) in theirs else tensor.detach()
            own[place] = nn.Parameter(alone, requires_grad=False) if isinstance(tensor, nn.Parameter) else alone
        return own[place]

    for part in program.modules():
        for name, tensor in [(name, value) for name, value in vars(part).items() if isinstance(value, Tensor)]:
            delattr(part, name)  # a plain attribute, which would stay behind when the module is moved
            part.register_buffer(name, tensor, persistent=False)
        for name in (*dict(part.named_parameters(recurse=False)), *dict(part.named_buffers(recurse=False))):
            setattr(part, name, parted(getattr(part, name)))


def _memory(tensor: Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _fitting(specs: tuple[TensorSpec, ...], inputs: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> list[Tensor]:
    """Return the inputs in order, or refuse them: a traced network takes the sizes that it was traced with for granted."""
    names = [spec.name for spec in specs]
    given = {**dict(zip(names, inputs, strict=False)), **named}
    sizes: dict[str, int] = {}
    fits = len(inputs) + len(named) == len(names) and set(given) == set(names)
    for spec in specs if fits else ():
        shape = tuple(given[spec.name].shape)
        fits &= len(shape) == len(spec.shape)
        fits &= all(
            size == (sizes.setdefault(expected, size) if isinstance(expected, str) else expected)
            for size, expected in zip(shape, spec.shape, strict=False)
        )
    if not fits:
        facts = {
            "found": ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items()),
            "expected": ", ".join(f"{spec.name} [{', '.join(map(str, spec.shape))}]" for spec in specs),
        }
        help_text = "fold it for these sizes: exporter.fold(module, sample, dynamic={...}) names the axes that may vary"
        raise SampleError("E352", "the inputs are not those that the network was traced with", facts=facts, help=help_text)
    return [given[name] for name in names]
