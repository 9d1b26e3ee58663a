"""A web server on this machine that serves one file in ranges, counts what it sends, and misbehaves when told to."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What is served, and what was asked for.

    Attributes:
        files: path -> content.
        trouble: called with the handler, path and number of the request before it is answered; True: it was dealt with.
        requests: (path with query, headers) of each.
        num_bytes: sent in bodies.
    """

    files: dict[str, bytes]
    etag: Callable[[int], str | None] = lambda number: '"one"'
    trouble: Callable[[Handler, str, int], bool] = lambda handler, path, number: False
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    num_bytes: int = 0
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        site = self.site
        with site.lock:
            site.requests.append((self.path, dict(self.headers)))
            number = len(site.requests)
        path = self.path.partition("?")[0]
        if site.trouble(self, path, number):
            return
        content = site.files.get(path)
        if content is None:
            self.answer(404, b"")
            return
        begin, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups())
        etag = site.etag(number)
        if begin >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        last = min(last, len(content) - 1)
        headers = {"Content-Range": f"bytes {begin}-{last}/{len(content)}"} | ({"ETag": etag} if etag else {})
        self.answer(206, content[begin : last + 1], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, promised: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        self.wfile.write(body)
        with self.site.lock:
            self.site.num_bytes += len(body)
        if promised is not None and promised != len(body):
            self.close_connection = True

    def trickle(self, begin: int, size: int, total: int) -> None:
        """Answer with a body of which a byte comes now and then."""
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {begin}-{begin + size - 1}/{total}")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(size))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(50):
                self.wfile.write(b"x")
                time.sleep(0.1)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve ``site`` on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneSite", (Handler,), {"site": site}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
