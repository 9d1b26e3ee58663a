"""Models of the libraries that most trainers build on, and programs saved by ``torch.export.save``.

Nothing is ever downloaded: weights come from the checkpoint alone.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import io
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from exporter.errors import ArtifactError, ConfigError, ExportError, MissingLibrary
from exporter.factories.reference import FactoryReference
from exporter.factories.user_code import running_user_code
from exporter.records import verify_record

if TYPE_CHECKING:
    from torch import nn

__all__ = ["library_factory", "module_from_pt2"]

_DOWNLOADS: dict[str, dict[str, object]] = {
    "timm": {"pretrained": False},
    "torchvision": {"weights": None, "weights_backbone": None},
    "ultralytics": {},
}


def library_factory(reference: FactoryReference, arguments: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the library's builder for ``reference.name`` and the arguments to call it with.

    Raises:
        MissingLibrary: the library is not installed (E811).
        ConfigError: the library has no such model (E304), or an argument would download weights (E308).
    """
    for argument, harmless in _DOWNLOADS[reference.scheme].items():
        if arguments.get(argument, harmless) not in {harmless, False, None}:
            facts = {"at": f"model -> arguments -> {argument}", "found": repr(arguments[argument])}
            raise ConfigError("E308", "this argument would download weights", facts=facts, help="remove it: the weights come from the checkpoint")
        arguments.pop(argument, None)
    builders = {"timm": _from_timm, "torchvision": _from_torchvision, "ultralytics": _from_ultralytics}
    return builders[reference.scheme](reference, arguments)


def module_from_pt2(reference: FactoryReference, *, trust_code: bool) -> nn.Module:
    """Return the network of a ``.pt2``. Loading one executes what is in it.

    Raises:
        ArtifactError: it was not written by this machine and ``trust_code`` is not set (E309).
        ExportError: torch cannot load it (E306).
    """
    path = reference.path
    if path is None:
        raise ConfigError("E303", "no .pt2 file is named", facts={"found": reference.text})
    content = path.read_bytes()
    if not trust_code:
        try:
            verify_record(path)
        except ArtifactError as err:
            help_text = "loading a .pt2 runs code from it; if you trust its author, say so: --trust-code (trust_code = true under [model])"
            raise ArtifactError(
                "E309", "this .pt2 was not written by exporter on this machine", facts={"file": path, "found": err.problem}, help=help_text
            ) from err
    import torch

    with running_user_code("E306", "the .pt2 cannot be loaded", kind=ExportError, facts={"file": path}):
        module: nn.Module = torch.export.load(io.BytesIO(content)).module()
    return module


def _from_timm(reference: FactoryReference, arguments: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    timm = _import("timm", reference)
    if not timm.is_model(reference.name.partition(".")[0]):
        raise _no_such_model(reference, timm.list_models())
    return timm.create_model, {"model_name": reference.name, "pretrained": False, **arguments}


def _from_torchvision(reference: FactoryReference, arguments: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    models = _import("torchvision.models", reference)
    if reference.name not in models.list_models():
        raise _no_such_model(reference, models.list_models())
    builder = models.get_model_builder(reference.name)
    nothing = {name: None for name in ("weights", "weights_backbone") if name in inspect.signature(builder).parameters}
    return builder, {**nothing, **arguments}


def _from_ultralytics(reference: FactoryReference, arguments: dict[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    tasks = _import("ultralytics.nn.tasks", reference)
    logging.getLogger("ultralytics").setLevel(logging.ERROR)  # its banners would go to stdout
    kinds = {"classify": "ClassificationModel", "segment": "SegmentationModel", "pose": "PoseModel", "obb": "OBBModel", "detect": "DetectionModel"}
    with running_user_code("E304", f"ultralytics has no model {reference.name}", kind=ExportError, facts={"factory": reference.text}):
        # the yaml of a library's own model carries no path: yolov8n.yaml means scale n of yolov8.yaml
        task = tasks.guess_model_task(tasks.yaml_model_load(reference.name))
    if task not in kinds:
        raise ExportError(
            "E310", f"ultralytics models of task {task} are not supported", facts={"factory": reference.text, "expected": ", ".join(kinds)}
        )
    return getattr(tasks, kinds[task]), {"cfg": reference.name, "verbose": False, **arguments}


def _import(module: str, reference: FactoryReference) -> Any:  # noqa: ANN401 - a library without types
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return importlib.import_module(module)
    except ModuleNotFoundError as err:
        library = module.partition(".")[0]
        facts = {"factory": reference.text, "missing": err.name or library}
        raise MissingLibrary("E811", f"the model needs {library}, which is not installed", facts=facts, help=f"pip install {library}") from err


def _no_such_model(reference: FactoryReference, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(reference.name, known, n=3)
    facts = {"at": "model -> factory", "found": reference.text, "known": f"{len(known)} models"}
    return ConfigError(
        "E304", f"{reference.scheme} has no model {reference.name}", facts=facts, help=f"did you mean {' or '.join(near)}?" if near else ""
    )
