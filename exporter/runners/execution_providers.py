"""Execution providers of ONNX Runtime: the one that was asked for, or the reason why this machine does not have it.

ONNX Runtime goes on with another provider where one does not start, and says so on standard output at best. Here nothing falls back: what a
provider needs is looked at before a session is made, the session has to have it, and nodes of the model have to run on it.
"""

from __future__ import annotations

import ctypes
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exporter.errors import ConfigError, EnvironmentLacking, MissingLibrary

__all__ = ["CPU", "CUDA", "TENSORRT", "check_provider", "device_of", "did_not_start", "nodes_by_provider", "require_nodes", "with_options"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_ON_CUDA = {CUDA: "libonnxruntime_providers_cuda.so", TENSORRT: "libonnxruntime_providers_tensorrt.so"}
_NO_FILE = "cannot open shared object file"


def device_of(provider: str) -> str:
    """Return where inputs and outputs of a provider lie: ``cuda`` or ``cpu``."""
    return "cuda" if provider in _ON_CUDA else "cpu"


def with_options(provider: str, *, tf32: bool = False) -> list[Any]:
    """Return what a session is made with: TF32 as asked for, and CUDA stands behind TensorRT for the nodes that TensorRT does not take."""
    cuda = (CUDA, {"use_tf32": "1" if tf32 else "0"})
    if provider == TENSORRT:
        return [TENSORRT, cuda]
    return [cuda if provider == CUDA else provider]


def check_provider(provider: str, facts: Mapping[str, object]) -> None:
    """Refuse a provider that cannot start, without a word of ONNX Runtime's own.

    Raises:
        ConfigError: E551, there is no provider of this name.
        MissingLibrary: E841, this build of ONNX Runtime does not have it.
        EnvironmentLacking: E842, a library that it needs is missing.
    """
    import onnxruntime as ort

    available = ort.get_available_providers()
    if provider not in available:
        known = ort.get_all_providers()
        if provider not in known:
            near = difflib.get_close_matches(provider, known, n=2)
            help_text = f"did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError("E551", "ONNX Runtime knows no provider of this name", facts={**facts, "known": ", ".join(known)}, help=help_text)
        problem = "ONNX Runtime was built without the provider that was asked for; no other one was used"
        help_text = "exporter doctor; or take CPUExecutionProvider under [onnxruntime] providers"
        raise MissingLibrary("E841", problem, facts={**facts, "found": ", ".join(available)}, help=help_text)
    missing = _missing_library(Path(ort.__file__).parent / "capi" / _ON_CUDA[provider]) if provider in _ON_CUDA else ""
    if missing:
        raise did_not_start(facts, missing)


def did_not_start(facts: Mapping[str, object], found: str) -> EnvironmentLacking:
    """Return the error of a provider that is there and cannot be used (E842)."""
    problem = "the ONNX Runtime provider that was asked for did not start; no other one was used"
    help_text = "exporter doctor says which libraries and which driver it needs"
    return EnvironmentLacking("E842", problem, facts={**facts, "found": found}, help=help_text)


def nodes_by_provider(session: Any) -> dict[str, int]:  # noqa: ANN401 - onnxruntime is untyped
    """Return how many nodes run on each provider; empty where this release of ONNX Runtime does not tell."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return {}
    found: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        found[part.ep_name] = found.get(part.ep_name, 0) + len(part.get_nodes())
    return found


def require_nodes(provider: str, nodes: Mapping[str, int], facts: Mapping[str, object]) -> None:
    """Refuse a session that leaves the whole model to other providers.

    Raises:
        EnvironmentLacking: E550.
    """
    if nodes and not nodes.get(provider):
        found = ", ".join(f"{count} nodes on {name}" for name, count in nodes.items())
        help_text = "take the provider that they run on under [onnxruntime] providers"
        raise EnvironmentLacking(
            "E550", "no node of the model runs on the ONNX Runtime provider that was asked for", facts={**facts, "found": found}, help=help_text
        )


def _missing_library(path: Path) -> str:
    """Return the library that the one at ``path`` needs and that is not there; empty where that is not what is wrong with it."""
    try:
        ctypes.CDLL(str(path))
    except OSError as err:
        return str(err) if _NO_FILE in str(err) and path.exists() else ""
    return ""
