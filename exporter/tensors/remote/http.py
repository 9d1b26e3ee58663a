"""HTTP and HTTPS: range requests on the session that fsspec makes, each answer held against what was asked for."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

from exporter.errors import CheckpointError, MissingLibrary
from exporter.locations import RemotePath
from exporter.tensors.remote.transport import Found, Limits, Transient, changed, denied, malformed, missing

if TYPE_CHECKING:
    from aiohttp import ClientResponse

__all__ = ["HttpTransport"]

_HEAD_BYTES = 1 << 16
_MAX_REDIRECTS = 5
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_ENCODED = re.compile(r"[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+")
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})


class HttpTransport:
    """One object of a web server."""

    def __init__(self, path: RemotePath, limits: Limits) -> None:
        try:
            import aiohttp
            import fsspec
            import yarl
        except ImportError as err:
            facts = {"url": path, "found": f"no {err.name}"}
            raise MissingLibrary("E861", "reading URLs needs fsspec and aiohttp", facts=facts, help="pip install exporter[remote]") from err
        self._path = path
        url = path.url.partition("#")[0]
        self._url = yarl.URL(url, encoded=_ENCODED.fullmatch(url) is not None)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=limits.connect_s, sock_read=limits.silence_s)
        watch = aiohttp.TraceConfig()
        watch.on_request_redirect.append(self._check_redirect)
        configured = fsspec.config.conf.get(path.scheme, {}).get("client_kwargs", {})
        client = {"trust_env": True, **configured, "auto_decompress": False, "trace_configs": [watch]}
        self._fs = fsspec.filesystem(path.scheme, skip_instance_cache=True, client_kwargs=client)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """fsspec's own."""
        loop: asyncio.AbstractEventLoop = self._fs.loop
        return loop

    async def find(self) -> Found:
        """Return what is there now, with its first bytes: the request for them is the test of whether ranges are served."""
        return await self._request(0, _HEAD_BYTES, None)

    async def get(self, begin: int, end: int, found: Found) -> bytes:
        """Return bytes ``begin`` to ``end`` of the object as it was found."""
        return (await self._request(begin, end, found)).head

    async def _request(self, begin: int, end: int, found: Found | None) -> Found:
        import aiohttp

        headers = {"Accept-Encoding": "identity", "Range": f"bytes={begin}-{end - 1}"}
        if found is not None and found.version.startswith('ETag "'):  # a weak one never matches
            headers["If-Match"] = found.version.removeprefix("ETag ")
        path = self._path
        try:
            session = await self._fs.set_session()
            async with session.get(self._url, headers=headers, timeout=self._timeout, max_redirects=_MAX_REDIRECTS) as answer:
                return await self._checked(answer, begin, end, found)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError) as err:
            facts = {"url": path, "found": "a TLS connection that is not secure", "reason": _reason(err)}
            raise CheckpointError("E155", "the server of the URL cannot be reached", facts=facts, help="mend the server's certificate") from err
        except aiohttp.ClientConnectorDNSError as err:
            facts = {"url": path, "found": f"no address for the host {err.host}"}
            raise CheckpointError("E155", "the server of the URL cannot be reached", facts=facts, help="check the host's name") from err
        except (aiohttp.TooManyRedirects, aiohttp.RedirectClientError) as err:
            found_text = (
                f"more than {_MAX_REDIRECTS - 1} redirects"
                if isinstance(err, aiohttp.TooManyRedirects)
                else "a redirect to something else than a web page"
            )
            raise _redirect(path, found_text) from err
        except aiohttp.InvalidURL as err:
            raise CheckpointError("E150", "the URL of the checkpoint cannot be used", facts={"url": path, "found": "no URL of a web server"}) from err
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as err:
            raise Transient(_reason(err), code="E155") from err
        except asyncio.TimeoutError as err:
            raise Transient(f"no byte for {self._timeout.sock_read:g} s") from err
        except (aiohttp.ClientError, asyncio.IncompleteReadError, ConnectionError) as err:
            raise Transient(_reason(err)) from err

    async def _checked(self, answer: ClientResponse, begin: int, end: int, found: Found | None) -> Found:
        """Return size, version and the bytes of an answer that is what was asked for."""
        path, status = self._path, answer.status
        _refuse_status(path, answer)
        if status == 416 and found is None and answer.headers.get("Content-Range", "").replace(" ", "") == "bytes*/0":
            return Found(0, "empty")
        version = _version(answer)
        if found is not None and version and version != found.version:
            raise changed(path, version, found.version)
        if status == 200:
            size = f" of {answer.content_length} bytes" if answer.content_length is not None else ""
            facts = {"url": path, "found": f"the whole file{size} where a range of it was asked for", "expected": "a server that serves ranges"}
            raise CheckpointError("E153", "the server of the URL does not serve ranges", facts=facts, help="download the file, then name it")
        if found is not None and status in {412, 416}:
            raise changed(path, f"status {status}", found.version)
        if status != 206:
            raise malformed(path, f"status {status}", "206 Partial Content")
        place = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        first, last, size_bytes = map(int, place.groups()) if place else (-1, -1, -1)
        if found is not None and place and size_bytes != found.size_bytes:
            raise changed(path, f"{size_bytes} bytes", f"{found.size_bytes} bytes")
        if (first, last) != (begin, min(end, size_bytes) - 1):
            told = answer.headers.get("Content-Range", "none")[:80]
            raise malformed(path, f"Content-Range: {told}", f"bytes {begin} to {end - 1}, as asked for")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise malformed(path, f"Content-Encoding: {answer.headers['Content-Encoding'][:40]}", "the bytes as they are stored")
        if not version:
            raise malformed(path, "neither ETag nor Last-Modified", "one of them: without it a change while reading goes unseen")
        content = await answer.content.readexactly(last + 1 - first)
        if await answer.content.read(1):
            raise malformed(path, "more bytes than its header says", f"{len(content)} bytes")
        return Found(size_bytes, version, content)

    async def _check_redirect(self, session: object, context: object, step: Any) -> None:  # noqa: ANN401, ARG002 - aiohttp's signature
        from yarl import URL

        target = step.response.headers.get("Location") or step.response.headers.get("URI", "")
        if step.url.scheme == "https" and step.url.join(URL(target)).scheme != "https":
            step.response.close()
            raise _redirect(self._path, "a redirect from https to a connection that is not secure")


def _refuse_status(path: RemotePath, answer: ClientResponse) -> None:
    status = answer.status
    if status in {404, 410}:
        raise missing(path, f"status {status}")
    if status in {401, 403, 407}:
        raise denied(path, f"status {status}")
    if status in _LATER:
        wish = answer.headers.get("Retry-After", "")
        raise Transient(f"status {status}", pause_s=float(wish) if wish.isdigit() and len(wish) < 6 else 0.0)


def _version(answer: ClientResponse) -> str:
    """Return what says whether the object is still the same: printable text of the server's."""
    for header in ("ETag", "Last-Modified"):
        value = answer.headers.get(header, "")
        if value and value.isprintable() and len(value) <= 1024:
            return f"{header} {value}"
    return ""


def _redirect(path: RemotePath, found: str) -> CheckpointError:
    facts = {"url": path, "found": found, "expected": f"at most {_MAX_REDIRECTS - 1} redirects to web servers, and from https to https alone"}
    return CheckpointError("E159", "the URL leads elsewhere, and is not followed there", facts=facts)


def _reason(err: Exception) -> str:
    """Return what happened without the text of the exception, which may hold the URL with its secrets."""
    cause = getattr(err, "os_error", None) or getattr(err, "certificate_error", None) or err
    verify = getattr(cause, "verify_message", "")
    if verify:
        return str(verify)
    strerror = getattr(cause, "strerror", None)
    return str(strerror) if strerror else type(err).__name__
