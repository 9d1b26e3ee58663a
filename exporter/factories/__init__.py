"""From the name of a model to the network: factories, strict loading of weights, example inputs.

A factory is code that the user names on purpose, and it runs. Nothing here reads a name of code out of a checkpoint.
Importing this package does not import torch.
"""

from exporter.factories.building import build_model
from exporter.factories.identity import installed_version, model_identity
from exporter.factories.inputs import example_inputs
from exporter.factories.loading import load_weights_
from exporter.factories.normalisation import normalise_inputs_
from exporter.factories.reference import FactoryReference, parse_reference
from exporter.factories.user_code import running_user_code

__all__ = [
    "FactoryReference",
    "build_model",
    "example_inputs",
    "installed_version",
    "load_weights_",
    "model_identity",
    "normalise_inputs_",
    "parse_reference",
    "running_user_code",
]
