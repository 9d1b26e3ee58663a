"""What is asked of an engine, looked at before a worker is started."""

from __future__ import annotations

from exporter.config import TensorrtConfig
from exporter.errors import ConfigError
from exporter.trt_worker import find_plugins

__all__ = ["check_settings"]


def check_settings(config: TensorrtConfig) -> None:
    """Refuse settings that no engine can have together, and plugin libraries that are none.

    Raises:
        ConfigError: E555.
        ArtifactError: E556.
    """
    if config.version_compatible and (config.refittable or config.stripped):
        other = "stripped" if config.stripped else "refittable"
        facts = {"found": f"version_compatible and {other}", "expected": "one of them: what runs the plan in a later release takes no new weights"}
        raise ConfigError("E555", "two settings of the engine exclude each other", facts=facts, help=f"leave [tensorrt] {other} out")
    find_plugins(config)
