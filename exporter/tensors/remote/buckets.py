"""Objects of S3 and of Google Cloud Storage, with the credentials that their own libraries find."""

from __future__ import annotations

import asyncio
import errno
from typing import Any

from exporter.errors import CheckpointError, MissingLibrary
from exporter.locations import RemotePath
from exporter.tensors.remote.transport import Found, Limits, Transient, changed, denied, malformed, missing

__all__ = ["GcsTransport", "S3Transport"]

_VERSION = "?versionId="


class S3Transport:
    """One object of a bucket of S3, or of a store that speaks its protocol."""

    def __init__(self, path: RemotePath, limits: Limits) -> None:
        try:
            import fsspec
            import s3fs
        except ImportError as err:
            facts = {"url": path, "found": f"no {err.name}"}
            raise MissingLibrary("E862", "reading s3:// needs s3fs", facts=facts, help="pip install exporter[s3]") from err
        self._path = path
        named, _, version = path.url.partition("://")[2].partition(_VERSION)
        bucket, _, key = named.partition("/")
        self._place = {"Bucket": bucket, "Key": key, **({"VersionId": version} if version else {})}
        configured = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        once = {"connect_timeout": limits.connect_s, "read_timeout": limits.silence_s, "retries": {"total_max_attempts": 1}}
        self._fs = s3fs.S3FileSystem(skip_instance_cache=True, config_kwargs={**once, **configured})
        self._fs.retries = 1  # requests are made again by whoever reads

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """fsspec's own."""
        loop: asyncio.AbstractEventLoop = self._fs.loop
        return loop

    async def find(self) -> Found:
        """Return what is there now."""
        answer = await self._call("head_object")
        return Found(int(answer["ContentLength"]), f"ETag {answer['ETag']}")

    async def get(self, begin: int, end: int, found: Found) -> bytes:
        """Return bytes ``begin`` to ``end`` of the object as it was found."""
        etag = found.version.removeprefix("ETag ")
        try:
            answer = await self._call("get_object", Range=f"bytes={begin}-{end - 1}", IfMatch=etag)
        except OSError as err:
            raise changed(self._path, "another object", found.version) from err
        body = answer["Body"]
        try:
            if answer["ETag"] != etag:
                raise changed(self._path, f"ETag {answer['ETag']}", found.version)
            if answer.get("ContentRange") != f"bytes {begin}-{end - 1}/{found.size_bytes}":
                raise malformed(self._path, f"Content-Range: {answer.get('ContentRange', 'none')}", f"bytes {begin} to {end - 1}, as asked for")
            return _exactly(await body.read(), end - begin)
        except _network_errors() as err:
            raise Transient(type(err).__name__) from err
        finally:
            body.close()

    async def _call(self, method: str, **more: str) -> Any:  # noqa: ANN401 - the library's answer
        import botocore.exceptions as botocore

        try:
            return await self._fs._call_s3(method, **self._place, **more)  # noqa: SLF001 - fsspec's name for the coroutine behind call_s3
        except FileNotFoundError as err:
            raise missing(self._path, "no such bucket or object") from err
        except PermissionError as err:
            raise denied(self._path, "access denied") from err
        except botocore.NoCredentialsError as err:
            raise denied(self._path, "no credentials: AWS_PROFILE, AWS_ACCESS_KEY_ID or the like") from err
        except (botocore.EndpointConnectionError, botocore.ConnectTimeoutError, botocore.SSLError) as err:
            raise Transient(type(err).__name__, code="E155") from err
        except OSError as err:
            if err.errno == errno.EINVAL and "IfMatch" in more:
                raise
            raise Transient(f"{type(err).__name__}: {err.strerror or 'the store failed'}") from err
        except botocore.BotoCoreError as err:
            raise Transient(type(err).__name__) from err
        except _network_errors() as err:
            raise Transient(type(err).__name__) from err


class GcsTransport:
    """One object of a bucket of Google Cloud Storage; a generation of it is asked for, which never changes."""

    def __init__(self, path: RemotePath, limits: Limits) -> None:  # noqa: ARG002 - the library has its own patience
        try:
            import gcsfs
        except ImportError as err:
            facts = {"url": path, "found": f"no {err.name}"}
            raise MissingLibrary("E863", "reading gs:// needs gcsfs", facts=facts, help="pip install exporter[gcs]") from err
        self._path = path
        self._name = path.url.partition("://")[2]
        self._fs = gcsfs.GCSFileSystem(skip_instance_cache=True, version_aware=True)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """fsspec's own."""
        loop: asyncio.AbstractEventLoop = self._fs.loop
        return loop

    async def find(self) -> Found:
        """Return what is there now."""
        answer = await self._call(self._fs._info(self._name))  # noqa: SLF001 - fsspec's name for the coroutine behind info
        if answer.get("type") != "file" or "generation" not in answer:
            raise missing(self._path, "a folder" if answer.get("type") == "directory" else "an object without a generation")
        return Found(int(answer["size"]), f"generation {answer['generation']}")

    async def get(self, begin: int, end: int, found: Found) -> bytes:
        """Return bytes ``begin`` to ``end`` of the object as it was found."""
        generation = found.version.removeprefix("generation ")
        try:
            content = await self._call(self._fs._cat_file(f"{self._name}#{generation}", start=begin, end=end))  # noqa: SLF001 - as above
        except CheckpointError as err:
            if err.code == "E151":
                raise changed(self._path, "another generation, or none", found.version) from err
            raise
        return _exactly(content, end - begin)

    async def _call(self, coroutine: Any) -> Any:  # noqa: ANN401 - the library's answer
        import google.auth.exceptions as auth

        try:
            return await coroutine
        except FileNotFoundError as err:
            raise missing(self._path, "no such bucket or object") from err
        except (PermissionError, auth.GoogleAuthError) as err:
            raise denied(self._path, "access denied, or no credentials") from err
        except _network_errors() as err:
            raise Transient(type(err).__name__) from err


def _exactly(content: bytes, size: int) -> bytes:
    if len(content) != size:
        raise Transient(f"{len(content)} bytes where {size} were asked for")
    return content


def _network_errors() -> tuple[type[Exception], ...]:
    import aiohttp

    return (OSError, asyncio.TimeoutError, aiohttp.ClientError)
