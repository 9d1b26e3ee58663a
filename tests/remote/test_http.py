"""Checkpoints behind URLs: only what is needed is read, it is the same object throughout, and what goes wrong is said."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from exporter.checkpoint import open_checkpoint
from exporter.config import BakeConfig, load_config
from exporter.errors import CheckpointError, MissingLibrary
from exporter.locations import RemotePath
from exporter.tensors import read_tensor
from exporter.tensors.remote import transport
from exporter.weights import bake, read_layout
from tests.remote.http_server import Site, serving

SECRET = "5ecr3t"


@pytest.fixture(autouse=True)
def no_proxy_and_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers on this machine are asked directly, and given up soon."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(transport, "LIMITS", replace(transport.LIMITS, silence_s=1.0, request_s=1.5, pause_s=0.01))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A timm-like checkpoint of 21 MB whose average is 2 MB and whose optimizer state is 17."""
    torch_rng = torch.Generator().manual_seed(0)

    def tensors() -> dict[str, torch.Tensor]:
        state = {f"blocks.{i}.weight": torch.randn(64, 256, generator=torch_rng) for i in range(30)}
        return {**state, **{f"blocks.{i}.num_batches_tracked": torch.tensor(7) for i in range(5)}}

    raw, average = tensors(), tensors()
    slots = {i: {"step": torch.tensor(9.0), "exp_avg": torch.randn(1024, 256, generator=torch_rng)} for i in range(17)}
    path = tmp_path_factory.mktemp("saved") / "last.pt"
    optimizer = {"state": slots, "param_groups": [{"lr": 0.1, "params": list(range(17))}]}
    torch.save({"epoch": 3, "arch": "resnet18", "state_dict": raw, "state_dict_ema": average, "optimizer": optimizer}, path)
    return path


def site_of(path: Path, **more: Any) -> Site:
    return Site({f"/runs/{path.name}": path.read_bytes()}, **more)


def open_in(site: Site, name: str = "last.pt", query: str = "") -> Any:
    return open_checkpoint(f"{site.url}/runs/{name}{query}")


def failure(site: Site) -> CheckpointError:
    """Return the error of opening the file of ``site``."""
    with serving(site), pytest.raises(CheckpointError) as caught:
        open_in(site)
    return caught.value


def test_inspect_reads_a_small_part(saved: Path) -> None:
    """The structure and the layout of a file that is mostly optimizer state take less than 5 % of its bytes."""
    with serving(site_of(saved)) as site:
        remote = open_in(site)
        assert read_layout(remote) == read_layout(open_checkpoint(saved))
        assert site.num_bytes < 0.05 * saved.stat().st_size
        assert remote.size_bytes == saved.stat().st_size


def test_bake_reads_the_average_alone_and_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """The baked file is that of the file on this machine, bit for bit; what is read is the average and an eighth of it more."""
    config = BakeConfig(drift="never", digest="contents")
    there, here = tmp_path / "there.safetensors", tmp_path / "here.safetensors"
    bake(open_checkpoint(saved), config, here)
    with serving(site_of(saved)) as site:
        summary = bake(open_in(site), config, there).summary
        assert site.num_bytes < 1.125 * summary.size_bytes + 0.03 * saved.stat().st_size
    assert there.read_bytes() == here.read_bytes()


def test_without_being_asked_a_remote_file_is_not_read_whole(saved: Path, tmp_path: Path) -> None:
    """With the default settings neither a digest over all bytes is taken nor the drift measured; asked for, the digest is sha256sum's."""
    with serving(site_of(saved)) as site:
        baked = bake(open_in(site), BakeConfig(), tmp_path / "a.safetensors")
        assert baked.summary.drift == ()
        assert site.num_bytes < 0.2 * saved.stat().st_size
        whole = bake(open_in(site), BakeConfig(digest="file", drift="never"), tmp_path / "b.safetensors")
    local = bake(open_checkpoint(saved), BakeConfig(digest="file", drift="never"), tmp_path / "c.safetensors")
    assert whole.provenance.made_from == local.provenance.made_from


def test_a_damaged_storage_is_found(saved: Path, tmp_path: Path) -> None:
    """The CRC-32 of what is copied is verified as for a file on this machine."""
    ref = open_checkpoint(saved).root["state_dict_ema"]["blocks.3.weight"]
    content = bytearray(saved.read_bytes())
    content[ref.storage.offset + 5] ^= 1
    site = Site({"/runs/last.pt": bytes(content)})
    output = tmp_path / "out.safetensors"
    with serving(site), pytest.raises(CheckpointError, match="E109"):
        bake(open_in(site), BakeConfig(), output)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["legacy", "pickle", "safetensors", "shards"])
def test_other_containers_are_read_by_ranges_too(kind: str, tmp_path: Path) -> None:
    """Every container whose reader asks for positions has the same tensors from a URL."""
    tensors = {name: torch.arange(70_000, dtype=torch.float32) + number for number, name in enumerate("abc")}
    if kind == "legacy":
        torch.save(tensors, tmp_path / "last.pt", _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        import pickle

        (tmp_path / "last.pt").write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in tensors.items()}, protocol=4))
    elif kind == "safetensors":
        save_file(tensors, tmp_path / "last.pt")
    else:
        save_file({"a": tensors["a"]}, tmp_path / "one.safetensors")
        save_file({"b": tensors["b"], "c": tensors["c"]}, tmp_path / "two.safetensors")
        index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}}
        (tmp_path / "last.pt").write_text(json.dumps(index))
    site = Site({f"/runs/{path.name}": path.read_bytes() for path in tmp_path.iterdir()})
    with serving(site):
        remote, local = open_in(site, query=f"?token={SECRET}"), open_checkpoint(tmp_path / "last.pt")
        assert remote.container == local.container
        for name in "abc":
            assert (read_tensor(remote.root[name]) == read_tensor(local.root[name])).all()
    assert remote.contents.of == "object"
    assert all(path.endswith(f"?token={SECRET}") for path, _ in site.requests)


def test_a_shard_is_never_looked_for_elsewhere(tmp_path: Path) -> None:
    """A name in an index that is a URL, a path or climbs is refused before anything is asked for."""
    for name in ("http://127.0.0.1:9/x.safetensors", "../x.safetensors", "/x.safetensors"):
        site = Site({"/runs/last.pt": json.dumps({"weight_map": {"a": name}}).encode()})
        with serving(site), pytest.raises(CheckpointError) as caught:
            open_in(site)
        assert caught.value.code == "E132"
        assert {path for path, _ in site.requests} == {"/runs/last.pt"}


def test_a_server_without_ranges_is_not_read(saved: Path) -> None:
    """A server that answers with the whole file is refused at once, saying what to do."""

    def whole(handler: Any, path: str, number: int) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", str(saved.stat().st_size))
        handler.end_headers()
        handler.close_connection = True
        return True

    error = failure(site_of(saved, trouble=whole))
    assert error.code == "E153"
    assert str(saved.stat().st_size) in str(error)
    assert "download" in error.help


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_now_and_then_is_asked_again(saved: Path, status: int) -> None:
    """Each request fails the first time, and the bytes are right all the same."""
    seen: set[str] = set()

    def fail(handler: Any, path: str, number: int) -> bool:
        is_first = handler.headers["Range"] not in seen
        seen.add(handler.headers["Range"])
        if is_first:
            handler.answer(status, b"later")
        return is_first

    local = open_checkpoint(saved).root["state_dict_ema"]
    with serving(site_of(saved, trouble=fail)) as site:
        remote = open_in(site).root["state_dict_ema"]
        assert all((read_tensor(remote[name]) == read_tensor(local[name])).all() for name in local)


def cut_short(handler: Any, path: str, number: int) -> bool:
    handler.answer(206, b"x" * 100, {"Content-Range": "bytes 0-65535/200000", "ETag": '"one"'}, promised=65536)
    return True


def slow(handler: Any, path: str, number: int) -> bool:
    handler.trickle(0, 65536, 200_000)
    return True


def silent(handler: Any, path: str, number: int) -> bool:
    handler.close_connection = True
    return True


@pytest.mark.parametrize(
    ("trouble", "found"),
    [
        (lambda handler, path, number: handler.answer(500, b"") or True, "status 500, 4 times"),
        (cut_short, "4 times"),
        (slow, "not answered within 1.5 s, 4 times"),
        (silent, "4 times"),
    ],
    ids=["500", "truncated", "slow", "hangs up"],
)
def test_a_server_that_keeps_failing_is_given_up(saved: Path, trouble: Any, found: str) -> None:
    """After four attempts the error says what happened last."""
    error = failure(site_of(saved, trouble=trouble))
    assert error.code == "E156"
    assert found in str(error)


@pytest.mark.parametrize(
    ("status", "headers", "code"),
    [
        (404, {}, "E151"),
        (403, {}, "E152"),
        (206, {"Content-Range": "bytes 5-65540/100000", "ETag": '"one"'}, "E157"),
        (206, {"ETag": '"one"'}, "E157"),
        (206, {"Content-Range": "bytes 0-9/10", "ETag": '"one"', "Content-Encoding": "gzip"}, "E157"),
        (206, {"Content-Range": "bytes 0-9/10"}, "E157"),
        (302, {"Location": "ftp://127.0.0.1/last.pt"}, "E159"),
        (302, {"Location": "/runs/last.pt"}, "E159"),
    ],
    ids=["missing", "forbidden", "other range", "no range", "compressed", "no version", "other scheme", "in circles"],
)
def test_an_answer_that_is_no_range_of_the_file_is_refused(saved: Path, status: int, headers: dict[str, str], code: str) -> None:
    """Each answer that cannot be relied on has its error, and is not asked for again."""
    site = site_of(saved, trouble=lambda handler, path, number: handler.answer(status, b"0123456789", headers) or True)
    assert failure(site).code == code
    assert len(site.requests) == (1 if code != "E159" or "ftp" in headers["Location"] else 5)


@pytest.mark.parametrize("etag", ["quoted", "weak"])
def test_an_object_that_changes_is_an_error(saved: Path, tmp_path: Path, etag: str) -> None:
    """Another ETag in a later answer ends the job, and nothing is written."""
    form = '"{}"' if etag == "quoted" else 'W/"{}"'
    site = site_of(saved, etag=lambda number: form.format("new" if number > 6 else "old"))
    with serving(site), pytest.raises(CheckpointError) as caught:
        bake(open_in(site), BakeConfig(), tmp_path / "out.safetensors")
    assert caught.value.code == "E154"
    assert not list(tmp_path.iterdir())
    conditions = {headers.get("If-Match") for _, headers in site.requests[1:]}
    assert conditions == ({'"old"'} if etag == "quoted" else {None})


def test_redirects_are_followed_without_credentials(saved: Path) -> None:
    """A redirect to another server is followed; the password of the URL stays with the server that it names."""
    with serving(site_of(saved)) as other:
        site = site_of(saved, trouble=lambda handler, path, number: handler.answer(302, b"", {"Location": f"{other.url}{path}"}) or True)
        with serving(site):
            checkpoint = open_checkpoint(f"{site.url.replace('//', f'//reader:{SECRET}@')}/runs/last.pt")
            read_tensor(checkpoint.root["state_dict_ema"]["blocks.0.weight"])
    assert all("Authorization" in headers for _, headers in site.requests)
    assert other.requests
    assert not any("Authorization" in headers for _, headers in other.requests)


def test_hosts_that_are_not_there_are_said_to_be_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused connection, an unknown host and a server without TLS are an error that names the cause."""
    site = Site({})
    with serving(site):
        port = site.url.rpartition(":")[2]
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(f"https://127.0.0.1:{port}/last.pt?key={SECRET}")
        assert caught.value.code in {"E155", "E156"}
    for url in (f"http://127.0.0.1:{port}/last.pt?key={SECRET}", f"http://no-such-host.invalid/last.pt?key={SECRET}"):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(url)
        assert caught.value.code == "E155"
        assert SECRET not in str(caught.value)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Reading a file of 200 MB from a URL, in order, keeps no more than 64 MB."""
    size = 200 << 20
    script = """
import resource, sys
import aiohttp, fsspec
from exporter.locations import RemotePath
from exporter.tensors.sources import open_regular
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with open_regular(RemotePath(sys.argv[1])) as file:
    before, position, buffer = peak(), 0, memoryview(bytearray(1 << 20))
    file.expect([(0, file.size_bytes)])
    while position < file.size_bytes:
        position += file.read_into(buffer, position)
print(position, peak() - before)
"""
    with serving(Site({"/big": bytes(size)})) as site:
        done = subprocess.run([sys.executable, "-c", script, f"{site.url}/big"], capture_output=True, text=True, check=True)
    position, grown_kib = map(int, done.stdout.split())
    assert position == size
    assert grown_kib < 64 << 10


def test_the_command_line_takes_urls_and_shows_no_secret(saved: Path, tmp_path: Path) -> None:
    """`inspect`, `bake-ema`, `average` and `init` work on a URL; neither output, record nor baked file holds password or query."""
    with serving(site_of(saved)) as site:
        url = f"{site.url.replace('//', f'//reader:{SECRET}@')}/runs/last.pt?X-Signature={SECRET}"
        outputs = [
            subprocess.run(
                [sys.executable, "-c", "from exporter.cli.app import main; main()", *arguments], capture_output=True, cwd=tmp_path, check=False
            )
            for arguments in (
                ["inspect", url],
                ["inspect", "--json", url],
                ["bake-ema", url],
                ["bake-ema", "--json", url],
                ["average", url, str(saved)],
                ["init", url],
            )
        ]
        config = load_config(tmp_path / "exporter.toml")
    assert [done.returncode for done in outputs] == [0] * 6, outputs
    assert isinstance(config.checkpoint, RemotePath)
    assert (tmp_path / "last.baked.safetensors").is_file()
    assert f"{site.url}/runs/last.pt".encode() in outputs[0].stdout
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    shown = [stream for done in outputs for stream in (done.stdout, done.stderr)]
    assert len(written) == 5
    assert not any(SECRET.encode() in content for content in [*written, *shown])


def test_a_configuration_with_a_url(tmp_path: Path) -> None:
    """`checkpoint = "https://..."` stays a URL, hides its query when it is written, and names the artefacts."""
    from exporter.workspace import Workspace

    path = tmp_path / "exporter.toml"
    path.write_text(f'checkpoint = "https://models.example/runs/last.pt?key={SECRET}"\n')
    config = load_config(path)
    assert str(config.checkpoint_at) == "https://models.example/runs/last.pt"
    assert SECRET not in json.dumps(config.to_json())
    assert SECRET not in repr(config)
    assert Workspace(config).stem == "last"


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without aiohttp, s3fs or gcsfs the error says what to install."""
    for scheme, module, code in (("https", "aiohttp", "E861"), ("s3", "s3fs", "E862"), ("gs", "gcsfs", "E863")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingLibrary) as caught:
            open_checkpoint(f"{scheme}://models.example/last.pt")
        assert caught.value.code == code
        assert "pip install exporter[" in caught.value.help


def test_a_container_for_another_program_is_fetched_whole(tmp_path: Path) -> None:
    """A source gives a descriptor of a private copy, once; above the limit it is refused."""
    from exporter.tensors.remote import file as remote_file
    from exporter.tensors.sources import open_regular

    content = bytes(range(256)) * 20_000
    with serving(Site({"/model.h5": content})) as site, open_regular(RemotePath(f"{site.url}/model.h5")) as source:
        with open(source.fileno(), "rb", closefd=False) as copy:
            copy.seek(0)
            assert zlib.crc32(copy.read()) == zlib.crc32(content)
        num_requests = len(site.requests)
        assert source.read(10, 300) == content[300:310]
        assert len(site.requests) == num_requests
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remote_file, "MAX_WHOLE_BYTES", 1000)
            with open_regular(RemotePath(f"{site.url}/model.h5")) as other, pytest.raises(CheckpointError, match="E158"):
                other.fileno()
