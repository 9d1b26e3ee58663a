"""A plan, by the shortest way: it is there, it was built once before, or it is built."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from exporter.artifacts import Digest, OnnxModel, Plan, Profile
from exporter.config import Config, TensorrtConfig
from exporter.engine.building import build_engine, plan_key
from exporter.engine.external_data import external_files
from exporter.engine.plans import load_plan, plan_from_content
from exporter.engine.support import EngineSupport
from exporter.errors import ArtifactError
from exporter.files import atomic_write, digest_of_file, digest_of_settings
from exporter.records import read_record, record_path, write_record

__all__ = ["cache_folder", "make_engine"]

MadeHow = Literal["made", "up to date", "from the cache"]


def cache_folder(config: Config) -> Path:
    """Return where timing caches and engines are kept: ``[tensorrt] cache``, else the user's cache folder."""
    if config.tensorrt.cache is not None:
        return config.resolve(config.tensorrt.cache)
    import platformdirs

    return Path(platformdirs.user_cache_dir("exporter")) / "tensorrt"


def make_engine(
    model: OnnxModel,
    path: Path,
    config: TensorrtConfig,
    profiles: tuple[Profile, ...],
    support: EngineSupport,
    *,
    cache: Path,
    progress: Callable[[str, int, int], bool] | None = None,
) -> tuple[Plan, MadeHow]:
    """Return the plan of ``model`` at ``path``, and how it came there.

    Args:
        model: the checked ONNX file.
        path: of the plan.
        config: settings of the build.
        profiles: see ``parse_profiles``.
        support: what ``require`` found.
        cache: folder of timing caches and engines.
        progress: see ``build_engine``.

    Raises:
        ExporterError: as ``build_engine``; ArtifactError besides, a file of the cache could not be written (E711).
    """
    key = plan_key(_content_of(model), config, profiles, support)
    plan = load_plan(path, key=key)
    if plan is not None:
        return plan, "up to date"
    engines = cache / "engines"
    kept = engines / f"{key[:32]}.plan"
    content = read_record(kept, key=key)
    if content is not None:
        _copy(kept, path)
        digest = write_record(path, key=key, content=content)
        with contextlib.suppress(OSError):  # used now: the last to be given up
            kept.touch()
        return plan_from_content(path, Digest(digest.hex), content), "from the cache"
    plan = build_engine(model, path, config, profiles, key=key, progress=progress, cache=cache)
    if config.cache_mib:
        built = read_record(path, key=key)
        if built is not None:
            _copy(path, kept)
            write_record(kept, key=key, content=built)
            _give_up_oldest(engines, config.cache_mib << 20)
    return plan, "made"


def _content_of(model: OnnxModel) -> Digest:
    """Return what identifies the model with the weights that lie beside its file."""
    beside = external_files(model)
    if not beside:
        return model.digest
    return digest_of_settings([model.digest.hex, *([name, digest_of_file(model.path.parent / name).hex] for name in beside)])


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, atomic_write(target) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _give_up_oldest(folder: Path, limit_bytes: int) -> None:
    """Remove the engines that were not used for longest, until the rest fits; the newest stays in any case."""
    try:
        plans = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in folder.glob("*.plan")), reverse=True)
        used = 0
        for number, (_, size, path) in enumerate(plans):
            used += size
            if number and used > limit_bytes:
                record_path(path).unlink(missing_ok=True)
                path.unlink(missing_ok=True)
    except OSError as err:
        raise ArtifactError("E711", "a file could not be written; nothing was changed", facts={"file": folder, "found": err.strerror or err}) from err
