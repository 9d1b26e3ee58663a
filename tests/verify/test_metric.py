"""The task metric side by side: accuracy and a user's own, with an allowed drop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import Outcome, TensorSpec
from exporter.config import MetricConfig
from exporter.errors import SampleError
from exporter.runners import TorchRunner
from exporter.samples import Samples
from exporter.verify import measure_metric

INPUTS = (TensorSpec("x", ("batch", 3), "float32"),)
X = np.random.default_rng(0).standard_normal((150, 3)).astype(np.float32)
SAMPLES = Samples({"x": X}, X.argmax(1))


class Scores(nn.Module):
    """The input itself, with the largest entry moved in the first ``wrong`` rows of every batch of 64."""

    def __init__(self, wrong=0):
        super().__init__()
        self.wrong = wrong

    def forward(self, x):
        return torch.cat([-x[: self.wrong], x[self.wrong :]])


def measure(config=MetricConfig(), samples=SAMPLES, base=None, **modules):  # noqa: B008
    """Measure modules by name."""
    modules = modules or {"ema": Scores(), "fused": Scores()}
    runners = {name: TorchRunner(name, module, INPUTS, ("scores",)).__enter__() for name, module in modules.items()}
    return measure_metric(runners, samples, config, reference="ema", base=base)


def test_accuracy_is_the_default_where_there_are_labels():
    """Measure modules by name."""
    """Every contestant's value is in the evidence; raw weights are shown and not judged."""
    (verdict,) = measure(raw=Scores(wrong=10), ema=Scores(), fused=Scores())
    assert (verdict.check, verdict.subject, verdict.outcome) == ("metric", "fused", Outcome.PASS)
    assert verdict.evidence.values == {"raw": 1 - 30 / 150, "ema": 1.0, "fused": 1.0}
    assert (verdict.evidence.metric, verdict.evidence.num_samples) == ("accuracy", 150)


@pytest.mark.parametrize(("allowed", "outcome"), [(0.0, Outcome.FAIL), (0.019, Outcome.FAIL), (0.02, Outcome.PASS)])
def test_drop_beyond_the_allowed_fails(allowed, outcome):
    """One wrong row in each of three batches is a drop of 2 %; exactly the allowed drop passes."""
    (verdict,) = measure(MetricConfig(allowed_drop=allowed), ema=Scores(), fused=Scores(wrong=1))
    assert verdict.outcome is outcome


def test_without_labels_and_without_a_function_there_is_no_metric():
    """Nothing to judge is no verdict; a function without labels is a mistake."""
    unlabelled = Samples({"x": X}, None)
    assert measure(samples=unlabelled) == ()
    with pytest.raises(SampleError, match="labels"):
        measure(MetricConfig(function="accuracy"), samples=unlabelled)


def test_users_own_metric_from_a_file(tmp_path):
    """``file.py:callable`` is relative to the configuration's folder and gets the only output as an array."""
    (tmp_path / "metrics.py").write_text("def minus_error(scores, labels):\n    return -float((scores.argmax(1) != labels).sum())\n")
    (verdict,) = measure(MetricConfig(function="metrics.py:minus_error"), base=tmp_path, ema=Scores(), fused=Scores(wrong=2))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.evidence.values == {"ema": 0.0, "fused": -6.0}


@pytest.mark.parametrize(
    ("function", "code"),
    [
        pytest.param("metrics.py", "E635", id="no-callable"),
        pytest.param("missing.py:metric", "E635", id="no-file"),
        pytest.param("no_such_module_anywhere:metric", "E635", id="no-module"),
        pytest.param("metrics.py:absent", "E635", id="no-attribute"),
        pytest.param("metrics.py:NUMBER", "E635", id="not-callable"),
        pytest.param("metrics.py:breaks", "E634", id="raises"),
        pytest.param("metrics.py:no_number", "E634", id="no-number"),
    ],
)
def test_metric_that_cannot_be_computed_is_an_error_with_a_code(tmp_path, function, code):
    """A mistake in the user's file is shown as one, without a traceback of ours."""
    (tmp_path / "metrics.py").write_text(
        "NUMBER = 3\ndef breaks(scores, labels):\n    return {}['missing']\ndef no_number(scores, labels):\n    return 'high'\n"
    )
    with pytest.raises(SampleError) as caught:
        measure(MetricConfig(function=function), base=tmp_path)
    assert caught.value.code == code


def test_nan_is_no_pass(tmp_path):
    """A metric that is not a number fails the gate."""
    (tmp_path / "metrics.py").write_text("def nan(scores, labels):\n    return float('nan')\n")
    (verdict,) = measure(MetricConfig(function="metrics.py:nan"), base=tmp_path)
    assert verdict.outcome is Outcome.FAIL


class TwoOutputs(nn.Module):
    def forward(self, x):
        return x, -x


def test_output_is_named_where_there_are_several():
    """Accuracy of which output is not guessed; a name that is not there is refused."""
    with TorchRunner("ema", TwoOutputs(), INPUTS, ("good", "bad")) as ema, TorchRunner("fused", TwoOutputs(), INPUTS, ("good", "bad")) as fused:
        runners = {"ema": ema, "fused": fused}
        with pytest.raises(SampleError, match="several outputs"):
            measure_metric(runners, SAMPLES, MetricConfig(), reference="ema", base=None)
        with pytest.raises(SampleError, match="does not have"):
            measure_metric(runners, SAMPLES, MetricConfig(output="best"), reference="ema", base=None)
        (verdict,) = measure_metric(runners, SAMPLES, MetricConfig(output="good"), reference="ema", base=None)
    assert verdict.evidence.values["ema"] == 1.0
