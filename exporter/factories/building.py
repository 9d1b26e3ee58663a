"""Build the network that a factory names: on the CPU, in eval mode, with the factory's own initial weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.config import ModelConfig
from exporter.errors import ConfigError, ExportError
from exporter.factories import libraries
from exporter.factories.modules import importing_from, read_callable
from exporter.factories.reference import FactoryReference, parse_reference
from exporter.factories.user_code import running_user_code

if TYPE_CHECKING:
    from torch import nn

__all__ = ["build_model"]


def build_model(config: ModelConfig, *, base: Path) -> nn.Module:
    """Run the factory of ``config`` and return its network in eval mode on the CPU; weights are loaded apart.

    Args:
        config: ``factory`` and ``arguments``; ``trust_code`` allows a ``.pt2`` that is not provably ours.
        base: folder that relative paths start from; Python files in it can be imported by the factory.

    Raises:
        ConfigError: the factory does not exist or is misspelt (E301 to E304), or an argument would download weights (E308).
        ExportError: it cannot be imported (E305), it raised (E306), or returned something else than a Module (E307).
        MissingLibrary: timm, torchvision or ultralytics is not installed (E811).
        ArtifactError: a ``.pt2`` that this machine did not write (E721 to E723) without ``trust_code``.
    """
    reference = parse_reference(config.factory, base=base)
    if reference.path is not None and not reference.path.is_file():
        raise ConfigError("E303", "the file with the model's code does not exist", facts={"file": reference.path, "at": "model -> factory"})
    if reference.scheme == "pt2":
        return _in_eval_mode(libraries.module_from_pt2(reference, trust_code=config.trust_code), reference)
    if reference.scheme not in {"file", "package"}:
        factory, arguments = libraries.library_factory(reference, dict(config.arguments))
        return _in_eval_mode(_call(factory, arguments, reference), reference)
    with importing_from(reference.path.parent if reference.path is not None else base):
        return _in_eval_mode(_call(read_callable(reference), dict(config.arguments), reference), reference)


def _call(factory: Callable[..., Any], arguments: dict[str, Any], reference: FactoryReference) -> Any:  # noqa: ANN401 - what the user's code returns
    facts = {"factory": reference.text, "arguments": ", ".join(f"{key}={value!r}" for key, value in arguments.items()) or "none"}
    with running_user_code("E306", "the factory did not return a network, it raised", kind=ExportError, facts=facts):
        return factory(**arguments)


def _in_eval_mode(network: Any, reference: FactoryReference) -> nn.Module:  # noqa: ANN401 - what the user's code returned
    import torch

    if not isinstance(network, torch.nn.Module):
        facts = {"factory": reference.text, "found": f"{type(network).__module__}.{type(network).__qualname__}", "expected": "torch.nn.Module"}
        raise ExportError("E307", "the factory returned something that is not a network", facts=facts)
    if isinstance(network, torch.fx.GraphModule) and reference.scheme == "pt2":
        return network.cpu()  # a traced program has one mode only, fixed when it was traced
    return network.cpu().eval()
