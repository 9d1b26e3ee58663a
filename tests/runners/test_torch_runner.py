"""The torch runner: precisions, feeds, outputs by name, threads, timing."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from exporter.artifacts import TensorSpec
from exporter.config import InputConfig
from exporter.errors import InternalError, ModelNotSupported, NoGpu, SampleError
from exporter.runners import Runner, TorchRunner, torch_timing
from exporter.runners import torch as torch_runner

INPUTS = (TensorSpec("x", ("batch", 3), "float32"),)
FEED = {"x": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}


def linear() -> nn.Module:
    """Three inputs, two outputs, in training mode."""
    torch_rng = torch.Generator().manual_seed(0)
    module = nn.Linear(3, 2)
    with torch.no_grad():
        module.weight.copy_(torch.rand(2, 3, generator=torch_rng))
        module.bias.copy_(torch.rand(2, generator=torch_rng))
    return module.train()


@pytest.mark.parametrize("precision", ["float64", "float32", "float16", "bfloat16"])
def test_runs_in_the_declared_precision(precision):
    """Weights and floating inputs are cast; the output comes in that dtype; the caller's module stays as it was."""
    module = linear()
    with TorchRunner("torch", module, INPUTS, ("y",), precision=precision) as runner:
        assert isinstance(runner, Runner)
        output = runner.infer(FEED)["y"]
    assert output.dtype.name == precision
    exact = FEED["x"].astype(np.float64) @ module.weight.detach().double().numpy().T + module.bias.detach().double().numpy()
    eps = {"float64": 1e-15, "float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[precision]
    np.testing.assert_allclose(output.astype(np.float64), exact, atol=eps)
    assert module.weight.dtype is torch.float32
    assert module.training


def test_tf32_is_stated_and_off_unless_asked_for():
    """On CUDA the settings say whether float32 products may use TF32; the CPU has none to speak of."""
    asked = {tf32: TorchRunner("torch", linear(), INPUTS, ("y",), device="cuda", tf32=tf32).settings["tf32"] for tf32 in (False, True)}
    assert asked == {False: "off", True: "on"}
    assert TorchRunner("torch", linear(), INPUTS, ("y",), device="cuda").settings["tf32"] == "off"
    assert "tf32" not in TorchRunner("torch", linear(), INPUTS, ("y",), tf32=True).settings


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_set_while_a_block_runs_and_put_back(allowed):
    """Both switches of torch are as asked inside, and as they were outside."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with torch_runner._tf32_set(allowed):
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (allowed, allowed)
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


def test_module_in_training_mode_runs_in_eval_mode():
    """Dropout does nothing."""
    module = nn.Dropout(0.9).train()
    with TorchRunner("torch", module, INPUTS, ("y",)) as runner:
        np.testing.assert_array_equal(runner.infer(FEED)["y"], FEED["x"])


@pytest.mark.parametrize(
    ("feed", "code", "what"),
    [
        pytest.param({"z": FEED["x"]}, "E611", "expected: +x", id="other-name"),
        pytest.param({**FEED, "z": FEED["x"]}, "E611", "found: +x, z", id="one-too-many"),
        pytest.param({}, "E611", "nothing", id="none"),
        pytest.param({"x": FEED["x"][:, :2]}, "E612", r"\(2, 2\)", id="size"),
        pytest.param({"x": FEED["x"][None]}, "E612", r"\(1, 2, 3\)", id="rank"),
        pytest.param({"x": FEED["x"].astype(np.float64)}, "E613", "float64", id="dtype"),
    ],
)
def test_feed_that_does_not_fit_is_refused(feed, code, what):
    """Names, shapes and dtypes are checked before anything runs, and the message gives both sides."""
    with TorchRunner("torch", linear(), INPUTS, ("y",)) as runner, pytest.raises(SampleError, match=what) as caught:
        runner.infer(feed)
    assert caught.value.code == code


def test_inputs_that_disagree_on_a_dynamic_axis_are_refused():
    """The same axis name stands for one size."""
    inputs = (TensorSpec("a", ("batch", 3), "float32"), TensorSpec("b", ("batch", 3), "float32"))
    with TorchRunner("torch", Sum(), inputs, ("y",)) as runner, pytest.raises(SampleError, match="a: 2, b: 1"):
        runner.infer({"a": FEED["x"], "b": FEED["x"][:1]})


class Sum(nn.Module):
    def forward(self, a, b):
        return a - 2 * b


def test_inputs_are_matched_by_parameter_name():
    """Declaring the inputs in another order than ``forward`` has them changes nothing."""
    inputs = (TensorSpec("b", ("batch", 3), "float32"), TensorSpec("a", ("batch", 3), "float32"))
    with TorchRunner("torch", Sum(), inputs, ("y",)) as runner:
        output = runner.infer({"a": FEED["x"], "b": np.ones((2, 3), np.float32)})["y"]
    np.testing.assert_array_equal(output, FEED["x"] - 2)


class Two(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x):
        return {"dict": {"second": x + 1, "first": x}, "list": [x, x + 1], "nested": (x, (x + 1,))}[self.kind]


@pytest.mark.parametrize("kind", ["dict", "list", "nested"])
def test_outputs_have_the_declared_names(kind):
    """A dict is matched by its keys whatever their order; anything else in the order in which the module returns it."""
    with TorchRunner("torch", Two(kind), INPUTS, ("first", "second")) as runner:
        outputs = runner.infer(FEED)
    np.testing.assert_array_equal(outputs["first"], FEED["x"])
    np.testing.assert_array_equal(outputs["second"], FEED["x"] + 1)


def test_undeclared_output_is_refused():
    """No output of the module goes unnamed."""
    with TorchRunner("torch", Two("list"), INPUTS, ("first",)) as runner, pytest.raises(ModelNotSupported, match="2 tensors") as caught:
        runner.infer(FEED)
    assert caught.value.code == "E622"


class Svd(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x)


def test_operator_without_a_kernel_in_the_precision_is_named():
    """The singular values have no float16 kernel on the CPU: E621 says so, not a traceback of torch."""
    with TorchRunner("torch", Svd(), INPUTS, ("y",), precision="float16") as runner, pytest.raises(ModelNotSupported, match="float16") as caught:
        runner.infer(FEED)
    assert caught.value.code == "E621"


class CastsInside(nn.Module):
    def forward(self, x):
        return (x.to(torch.float32) / 3.0) * torch.ones(3, dtype=torch.float32)


def test_float64_reaches_through_casts_of_an_exported_graph():
    """A conversion to float32 that was traced does not limit the float64 reference."""
    program = torch.export.export(CastsInside(), (torch.rand(2, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    with TorchRunner("reference", program, INPUTS, ("y",), precision="float64") as runner:
        output = runner.infer(FEED)["y"]
    np.testing.assert_allclose(output, FEED["x"].astype(np.float64) / 3.0, rtol=1e-15)


def test_exported_program_keeps_its_own_weights():
    """Casting the runner's module leaves the program's weights in float32."""
    program = torch.export.export(linear().eval(), (torch.rand(2, 3),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    with TorchRunner("reference", program.module(), INPUTS, ("y",), precision="float64") as runner:
        assert runner.infer(FEED)["y"].dtype == np.float64
    assert {t.dtype for t in program.state_dict.values()} == {torch.float32}


def test_threads_are_set_while_running_and_put_back():
    """The number of threads is the runner's during a call and the caller's after it."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(torch.get_num_threads())
            return x

    before = torch.get_num_threads()
    with TorchRunner("torch", Spy(), INPUTS, ("y",), threads=before + 1) as runner:
        runner.infer(FEED)
        runner.prepare(FEED).run_block(1)
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before


def test_block_times_every_call():
    """As many times come back as calls were asked for, and each is a time."""
    with TorchRunner("torch", linear(), INPUTS, ("y",)) as runner:
        call = runner.prepare(FEED)
        times = call.run_block(7)
    assert call.clock == "perf_counter"
    assert times.shape == (7,)
    assert (times > 0).all()


def test_bfloat16_inputs_come_through():
    """Arrays of ml_dtypes become torch's own bfloat16 and back, bit for bit."""
    values = np.array([[1.5, -2.0, 3.140625]], ml_dtypes.bfloat16)
    with TorchRunner("torch", nn.Identity(), (TensorSpec("x", ("batch", 3), "bfloat16"),), ("y",), precision="bfloat16") as runner:
        output = runner.infer({"x": values})["y"]
    assert output.dtype == values.dtype
    assert output.tobytes() == values.tobytes()


def test_input_settings_become_specs():
    """An input of the configuration has a dynamic first axis unless it says otherwise."""
    settings = (InputConfig(name="x", shape=(2, 3, 8, 8)), InputConfig(name="y", shape=(2, 3, 8), dynamic={"2": "width"}))
    runner = TorchRunner("torch", linear(), settings, ("z",))
    assert [spec.shape for spec in runner.inputs] == [("batch", 3, 8, 8), (2, 3, "width")]


def test_cuda_without_a_gpu_is_an_environment_lacking(monkeypatch):
    """Exit status 6, never the CPU instead; the missing GPU is simulated where there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    runner = TorchRunner("torch", linear(), INPUTS, ("y",), device="cuda")
    with pytest.raises(NoGpu) as caught, runner:
        pass
    assert (caught.value.code, caught.value.exit_status) == ("E843", 6)


def test_use_outside_with_is_our_mistake():
    """A runner that was not entered holds no module."""
    with pytest.raises(InternalError, match="outside its with block"):
        TorchRunner("torch", linear(), INPUTS, ("y",)).infer(FEED)


def test_a_module_that_cannot_be_captured_is_launched_each_time(monkeypatch):
    """Where torch refuses a capture the call says why it is launched eagerly; running out of memory is no such refusal. CUDA is simulated."""

    class Launches:
        def __init__(self, module, tensors, running, launch="eager"):
            self.launch = launch

    def refuse(error):
        def capture(*_):
            raise error

        monkeypatch.setattr(torch_timing, "CudaGraphCall", capture)
        return torch_timing.cuda_call(linear(), (), None, cuda_graph=True)

    monkeypatch.setattr(torch_timing, "CudaCall", Launches)
    found = refuse(RuntimeError("operation not permitted when stream is capturing\nmore"))
    assert found.launch == "eager (no CUDA graph: operation not permitted when stream is capturing)"
    assert torch_timing.cuda_call(linear(), (), None, cuda_graph=False).launch == "eager"
    with pytest.raises(torch.OutOfMemoryError):
        refuse(torch.OutOfMemoryError("no memory"))
