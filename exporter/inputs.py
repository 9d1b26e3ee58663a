"""What a configuration names: the checkpoint with its layout, the samples and the model; each is read when it is first asked for."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from exporter.artifacts import Checkpoint, Digest, LayoutReading, TensorSpec
from exporter.checkpoint import open_checkpoint
from exporter.config import Config, ModelConfig
from exporter.errors import ConfigError
from exporter.locations import Location
from exporter.weights import identify, read_layout

if TYPE_CHECKING:
    from exporter.samples import Samples

__all__ = ["Inputs"]

_NAME_A_MODEL = 'name the code that builds it: factory = "timm:resnet50", "package.module:callable" or "path/to/file.py:callable"'


class Inputs:
    """The inputs of one configuration.

    Args:
        config: the resolved configuration.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    @property
    def checkpoint_path(self) -> Location:
        """Return the checkpoint of the configuration.

        Raises:
            ConfigError: none is configured.
        """
        path = self.config.checkpoint_at
        if path is None:
            help_text = 'name it on the command line, or write checkpoint = "..." into exporter.toml (exporter init CKPT writes one)'
            raise ConfigError("E705", "no checkpoint is named", facts={"in": self.config.base / "exporter.toml"}, help=help_text)
        return path

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint, opened without loading a tensor and without running anything."""
        return open_checkpoint(self.checkpoint_path)

    @functools.cached_property
    def checkpoint_digest(self) -> Digest:
        """What identifies the checkpoint."""
        return identify(self.checkpoint, self.config.weights.digest)

    @functools.cached_property
    def reading(self) -> LayoutReading:
        """What the layout says of the checkpoint."""
        return read_layout(self.checkpoint, decay=self.config.weights.decay)

    @functools.cached_property
    def parameter_order(self) -> tuple[TensorSpec, ...] | None:
        """Name and shape of the model's parameters in its own order, where an average is a list without names and a model is known.

        Raises:
            ExportError: the model's code cannot be run.
        """
        if not self.reading.needs_parameter_order or (self.config.model.factory == "auto" and not self.reading.model):
            return None
        from exporter.factories import build_model

        parameters = build_model(self.model, base=self.config.base).named_parameters()
        return tuple(TensorSpec(name, tuple(parameter.shape), str(parameter.dtype).removeprefix("torch.")) for name, parameter in parameters)

    @functools.cached_property
    def samples(self) -> Samples | None:
        """The recorded samples, None where none are configured."""
        if self.config.samples.path is None:
            return None
        from exporter.samples import read_samples

        return read_samples(self.config.resolve(self.config.samples.path), labels=self.config.samples.labels)

    @functools.cached_property
    def model(self) -> ModelConfig:
        """The model with ``auto`` replaced by what the trainer wrote into the checkpoint; arguments that are configured count before its own.

        Raises:
            ConfigError: no model is named (E708), or ``auto`` was asked for and the checkpoint does not say which model it
                belongs to (E706).
        """
        if not self.config.model.factory:
            raise ConfigError("E708", "no model is named", facts={"at": "model -> factory", "found": "an empty text"}, help=_NAME_A_MODEL)
        if self.config.model.factory != "auto":
            return self.config.model
        if not self.reading.model:
            raise ConfigError(
                "E706",
                "the checkpoint does not say which model it belongs to",
                facts={"file": self.checkpoint.path, "layout": self.reading.layout, "at": "model -> factory", "found": "auto"},
                help=_NAME_A_MODEL,
            )
        arguments = {**self.reading.model_arguments, **self.config.model.arguments}
        return self.config.model.replace(factory=self.reading.model, arguments=arguments)

    @property
    def largest_batch(self) -> int:
        """Return the largest batch that any check runs."""
        return max(self.config.latency.batch, self.config.samples.random, *self.config.parity.batches)

    @property
    def stem(self) -> str:
        """Stem of the names of all artefacts."""
        return self.checkpoint_path.stem
