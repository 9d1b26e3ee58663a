"""Real networks, in half precision on the CPU with every value rounded: what has to stay in float32 is found, and nothing else."""

from __future__ import annotations

import json

import pytest

from exporter.artifacts import Outcome
from exporter.cli.app import cli
from exporter.cli.screen import Screen
from exporter.config import OnnxruntimeConfig, ParityConfig
from exporter.errors import ConfigError, EnvironmentLacking, ExportError, ModelNotSupported
from exporter.gates import Gates, candidates_of
from exporter.islands import find_islands
from exporter.workspace import Workspace


def judged(workspace: Workspace, float32: tuple[str, ...]) -> Outcome:
    """Return the verdict of the network as a user gets it with this configuration."""
    configured = Workspace(workspace.config.replace(onnx=workspace.config.onnx.replace(float32=float32)))
    (verdict,) = Gates(configured).parity(candidates_of(configured.onnx, configured.config))
    return verdict.outcome


def test_a_network_that_needs_none(workspace):
    """One build says so, and nothing is to be configured."""
    found = find_islands(workspace("plain"))
    assert (found.outcome, found.islands, found.float32, found.num_builds) == (Outcome.PASS, (), (), 1)
    assert [verdict.outcome for verdict in found.verdicts] == [Outcome.PASS]


def test_a_provider_that_this_machine_lacks(workspace):
    """The others decide, and the result says which did not."""
    network = workspace("plain")
    providers = OnnxruntimeConfig(providers=("TensorrtExecutionProvider", "CPUExecutionProvider"))
    found = find_islands(Workspace(network.config.replace(onnxruntime=providers)))
    assert [verdict.subject for verdict in found.verdicts] == ["onnx"]
    assert found.not_verified == ("parity by TensorrtExecutionProvider, which this machine lacks",)
    with pytest.raises(EnvironmentLacking):
        find_islands(Workspace(network.config.replace(onnxruntime=OnnxruntimeConfig(providers=("TensorrtExecutionProvider",)))))


def test_an_overflow_that_the_export_refuses(workspace):
    """Exactly the convolution that the overflow goes through is found, without a search: the export would refuse anything else."""
    network = workspace("overflowing", size=5e4)
    with pytest.raises(ExportError, match="beyond float16"):
        judged(network, ())
    found = find_islands(network)
    assert (found.outcome, found.float32) == (Outcome.PASS, ("large.conv", "small.conv"))
    assert found.num_builds == 1
    assert all("beyond float16" in island.why for island in found.islands)
    assert judged(network, found.float32) is Outcome.PASS


def test_an_overflow_on_edge_samples_alone(workspace):
    """What no sample shows before the export is found by parity: infinity on ten times the range; default tolerances see it."""
    network = workspace("overflowing", size=1.3e4, parity=ParityConfig(batches=(2,)), softness=2.0)
    assert judged(network, ()) is Outcome.FAIL
    found = find_islands(network)
    assert (found.outcome, found.float32) == (Outcome.PASS, ("large.conv", "small.conv"))
    assert all("infinity" in island.why for island in found.islands)
    assert any("an eighth of that in bfloat16" in remark for remark in found.verdicts[0].evidence.remarks)
    assert judged(network, found.float32) is Outcome.PASS


@pytest.mark.parametrize(("precision", "by"), [("float16", 3e4), ("bfloat16", 3e3)])
def test_two_culprits_far_from_each_other(workspace, precision, by):
    """Both modules are found, each with its two nodes, in a few builds; one of them alone does not do, and the result says all that was seen."""
    network = workspace("shifting", precision=precision, first=by, second=by)
    found = find_islands(network)
    assert (found.outcome, found.float32) == (Outcome.PASS, ("first", "second"))
    assert [(island.op, island.module) for island in found.islands] == [("Add", "first"), ("Sub", "first"), ("Add", "second"), ("Sub", "second")]
    assert found.num_builds < 25
    assert found.verified == ("parity passes, exported with this configuration", "without any one of them it fails")
    assert found.not_verified == ("that no other set is smaller; it follows where more nodes in float32 do no harm",)
    assert [judged(network, names) for names in (("second",), ("first", "second"))] == [Outcome.FAIL, Outcome.PASS]


def test_what_is_configured_stays(workspace):
    """A pattern of the configuration is kept in front, is not examined, and the result says that."""
    found = find_islands(workspace("shifting", float32=("fir*",)))
    assert found.float32 == ("fir*", "second")
    assert "that what [onnx] float32 names already is needed" in found.not_verified


def test_a_part_of_a_module_is_named_by_its_nodes(workspace):
    """A module of which a part does not matter is not named whole."""
    network = workspace("shifting", first=0.0, second=3e4, wide=1.0)
    found = find_islands(network)
    assert [island.module for island in found.islands] == ["second", "second"]
    assert found.float32 == tuple(island.node for island in found.islands)
    assert judged(network, found.float32) is Outcome.PASS


def test_a_network_that_no_island_saves(workspace):
    """Infinite in float32 too: two builds, and an error that says so."""
    with pytest.raises(ModelNotSupported, match="no island saves this network") as caught:
        find_islands(workspace("hopeless"))
    assert caught.value.code == "E565"
    assert "infinity" in caught.value.facts["found"]


def test_the_limit_is_kept(workspace):
    """With too few builds the result is a set that passes, which may be too large and is not called anything else."""
    network = workspace("shifting")
    found = find_islands(network, builds=9)
    assert (found.outcome, found.num_builds) == (Outcome.INCONCLUSIVE, 9)
    assert {"first", "second"} <= set(found.float32)
    assert any("the limit of 9 builds was reached" in text for text in found.not_verified)
    assert judged(network, found.float32) is Outcome.PASS


def test_a_limit_that_leaves_the_two_ends(workspace):
    """Where nothing but all nodes has passed, that is no result, and the message says how to get one."""
    with pytest.raises(ModelNotSupported, match="too few builds") as caught:
        find_islands(workspace("shifting"), builds=2)
    assert (caught.value.code, caught.value.help) == ("E568", "--builds 4")


def test_float32_has_no_islands(workspace):
    """The question is one of half precision."""
    with pytest.raises(ConfigError, match="in half precision only") as caught:
        find_islands(workspace("plain", precision="float32"))
    assert caught.value.code == "E566"


def test_an_interrupted_search_leaves_nothing(workspace):
    """Whoever stops a search finds weights and graph in the folder, as after any command, and nothing of the search."""
    network = workspace("shifting")
    network.progress = lambda what, done, total: not (what == "islands of onnx" and done == 3)
    with pytest.raises(KeyboardInterrupt):
        find_islands(network)
    names = {path.name for path in network.folder.iterdir()}
    assert not any(name.endswith(".onnx") or "islands" in name for name in names), names


def test_the_command(workspace, tmp_path, monkeypatch, capsys):
    """The screen has the verdict, each node with its reason and the configuration; ``--json`` has the same facts; too few builds are status 3."""
    workspace("shifting")
    (tmp_path / "exporter.toml").write_text(
        'checkpoint = "net.pt"\n[model]\nfactory = "networks.py:shifting"\ninputs = [{name = "x", shape = [2, 4, 5, 5]}]\n'
        '[weights]\nchoice = "raw"\n[onnx]\nprecision = "float16"\n[samples]\nrandom = 4\n'
        "[parity]\natol = 0.02\nrtol = 0.02\nfactor = 0.001\nfloor = 0.01\nbatches = [2]\n"
    )
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        with Screen() as screen:
            status = cli.main(arguments, obj=screen, standalone_mode=False)
        return status, *capsys.readouterr()

    status, out, _ = run("check")
    assert status == 3
    assert "which layers have to stay in float32: exporter check --find-islands" in out
    status, out, err = run("check", "--find-islands", "--json")
    assert status == 0
    assert json.loads(out)["float32"] == ["first", "second"]
    assert "islands ✓ PASS onnx: 4 of 14 nodes in float16 have to stay in float32" in err
    assert "(Sub of second)   without it: output on" in err
    assert '[onnx]\nprecision = "float16"\nfloat32 = ["first", "second"]\n' in err
    status, out, _ = run("check", "--find-islands", "--builds", "9")
    assert status == 3
    assert "islands - INCONCLUSIVE onnx: it passes with" in out
