"""Find a callable in a Python file or in a package, without a trace left on ``sys.path``."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from exporter.errors import ConfigError, ExportError
from exporter.factories.reference import FactoryReference
from exporter.factories.user_code import running_user_code

__all__ = ["importing_from", "read_callable"]


def read_callable(reference: FactoryReference) -> Callable[..., Any]:
    """Return the callable that ``reference`` (of scheme ``file`` or ``package``) names; call inside ``importing_from``.

    Raises:
        ConfigError: the file (E303) or the callable (E304) does not exist.
        ExportError: the file or package cannot be imported (E305).
    """
    module = _load_file(reference) if reference.path is not None else _import_package(reference)
    found: Any = module
    for step in reference.name.split("."):
        if not hasattr(found, step):
            own = sorted(name for name, value in vars(found).items() if callable(value) and not name.startswith("_"))
            near = difflib.get_close_matches(step, own, n=3)
            facts = {"in": reference.path or reference.source, "found": ", ".join(own) or "nothing that can be called", "expected": reference.name}
            raise ConfigError(
                "E304", f"there is no {reference.name} in the model's code", facts=facts, help=f"did you mean {' or '.join(near)}?" if near else ""
            )
        found = getattr(found, step)
    if not callable(found):
        facts = {
            "in": reference.path or reference.source,
            "found": f"{reference.name} is a {type(found).__name__}",
            "expected": "a function or class that returns the network",
        }
        raise ConfigError("E304", f"{reference.name} cannot be called", facts=facts)
    return found  # type: ignore[no-any-return]  # checked with callable()


@contextlib.contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let imports see ``folder`` first; afterwards ``sys.path`` is as before and modules found there are forgotten.

    They are forgotten so that a ``blocks.py`` of another model's folder is not mistaken for this one.
    """
    folder = folder.resolve()
    path_before, modules_before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path_before
        for name in set(sys.modules) - modules_before:
            if _is_in(folder, name.partition(".")[0]):
                del sys.modules[name]


def _is_in(folder: Path, top: str) -> bool:
    module = sys.modules.get(top)
    origin = getattr(module, "__file__", None)
    if origin is None:
        return False
    return Path(origin).resolve() in {folder / f"{top}.py", folder / top / "__init__.py"}


def _load_file(reference: FactoryReference) -> types.ModuleType:
    path = reference.path
    try:
        source = path.read_bytes() if path is not None else b""
    except OSError as err:
        raise ConfigError("E303", "the file with the model's code cannot be read", facts={"file": path, "found": err.strerror or err}) from err
    full = str(Path(path or "").resolve())
    module = types.ModuleType(f"exporter_model_{hashlib.sha256(full.encode()).hexdigest()[:12]}")
    module.__file__ = full
    with running_user_code("E305", "the file with the model's code cannot be run", kind=ExportError, facts={"file": path}):
        code = compile(source, full, "exec")
        sys.modules[module.__name__] = module  # dataclasses and pickle look classes up there
        exec(code, module.__dict__)  # noqa: S102 - code that the user names on purpose
    return module


def _import_package(reference: FactoryReference) -> types.ModuleType:
    facts = {"at": "model -> factory", "found": reference.text}
    try:
        spec = importlib.util.find_spec(reference.source)
    except ModuleNotFoundError as err:
        raise ConfigError(
            "E303",
            f"there is no module {reference.source}",
            facts={**facts, "missing": err.name},
            help="install it, or name a file: path/to/file.py:callable",
        ) from err
    if spec is None:
        raise ConfigError("E303", f"there is no module {reference.source}", facts=facts, help="install it, or name a file: path/to/file.py:callable")
    with running_user_code("E305", f"the module {reference.source} cannot be imported", kind=ExportError, facts=facts):
        return importlib.import_module(reference.source)
