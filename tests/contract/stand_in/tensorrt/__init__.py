"""A package ``tensorrt`` for tests: the real bindings, with fakes where they cannot go on without a GPU. See ``small_tensorrt``."""

import json
import os
import sys

import tensorrt_bindings
from small_tensorrt import World

sys.modules[__name__] = World(tensorrt_bindings, json.loads(os.environ.get("EXPORTER_CONTRACT_SCENARIO", "{}"))).module()
