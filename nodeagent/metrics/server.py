"""The agent's HTTP server: `/metrics`, `/api/v1/status` and the status page. It reads, and changes nothing.

Everybody who reaches the port may ask, so what one client can hold is limited: connections at once, idle time, and the
whole life of a connection. A scrape never waits for NVML: it shows the last snapshot and says how old it is.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import socketserver
import threading
import time
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from nodeagent.errors import NodeAgentError
from nodeagent.lock.record import Owner
from nodeagent.metrics.native import age, is_stale, render
from nodeagent.metrics.page import render_page
from nodeagent.snapshot import Snapshot

MAX_CONNECTIONS = 16
MAX_FROM_ONE = 6
"""Connections at once from one address: a job on the node must not keep the monitoring out."""
IDLE_SECONDS = 5.0
LIFE_SECONDS = 30.0
"""A connection older than this is closed, so that clients that send one byte at a time cannot keep the others out."""
TICK_NS = 20_000_000
"""Two ticks of the slowest kernel (100 Hz), in nanoseconds."""
TEXT = "text/plain; version=0.0.4; charset=utf-8"
JSON = "application/json"
HTML = "text/html; charset=utf-8"
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class CannotListen(NodeAgentError):
    """The address of `listen` cannot be had."""

    exit_code = 69

    def __init__(self, address: str, why: str) -> None:
        self.address = address
        self.why = why
        super().__init__(address, why)

    def __str__(self) -> str:
        return f"listen: {self.address}: {self.why}; set `listen` to another address, or to none"


class Provider(Protocol):
    """Where the pages come from. Called from the server's threads; each call returns at once."""

    def snapshot(self) -> Snapshot | None:
        """Return the last snapshot, the same object until there is a new one; None before the first."""

    def owners(self) -> Mapping[str, Owner]:
        """Return the owner of each held unit."""

    def locks_version(self) -> object:
        """Return something that differs after the locks changed (the directory's mtime); None if that is not known."""

    def status(self) -> Mapping[str, Any] | None:
        """Return the object that `status --json` prints; None before the first snapshot."""

    def monotonic(self) -> float:
        """Return the clock that the snapshot's times are of."""


def directory_version(path: str) -> object:
    """Return what `Provider.locks_version` wants of a directory, from its mtime.

    None where it changed just now: the kernel's file times move in ticks, so another change could get the same one.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return ()
    if abs(time.time_ns() - status.st_mtime_ns) < TICK_NS:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns


class Pages:
    """Makes the pages. The metrics are rendered once for each snapshot and state of the locks, not for each scrape."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._snapshot: Snapshot | None = None
        self._key: tuple[object, bool] | None = None
        self._rendered = b""

    def metrics(self) -> bytes:
        """Return `/metrics`."""
        snapshot = self._provider.snapshot()
        now = self._provider.monotonic()
        if snapshot is None:
            return render(None, {})
        # The version is taken before the locks are read: a change in between is seen at the next scrape at the latest.
        version = self._provider.locks_version()
        key = None if version is None else (version, is_stale(snapshot, now))
        with self._lock:
            if key is None or key != self._key or snapshot is not self._snapshot:
                self._rendered = render(snapshot, self._provider.owners(), now)
                self._snapshot, self._key = snapshot, key
            page = self._rendered
        return page + age(snapshot, now)

    def status(self) -> tuple[HTTPStatus, bytes]:
        """Return `/api/v1/status`, 503 before the first snapshot."""
        status = self._provider.status()
        if status is None:
            return HTTPStatus.SERVICE_UNAVAILABLE, b'{"error": "no verdict yet: the first cycle has not ended"}\n'
        return HTTPStatus.OK, json.dumps(status).encode() + b"\n"

    def front(self) -> bytes:
        """Return `/`."""
        return render_page(self._provider.snapshot(), self._provider.owners(), self._provider.monotonic())


class _Handler(BaseHTTPRequestHandler):
    """One connection: GET and HEAD of three fixed names; there is no path to any file."""

    protocol_version = "HTTP/1.1"
    server_version = "gpu-nodeagent"
    sys_version = ""
    timeout = IDLE_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Answer a request."""
        path = self.path.partition("?")[0]
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body would be read as the next request
        try:
            status, kind, body = self._page(path)
        except Exception as error:  # noqa: BLE001 - a page's fault must be an answer, not a dropped connection
            status, kind = HTTPStatus.INTERNAL_SERVER_ERROR, TEXT
            body = f"{type(error).__name__}: {error}\n".encode()
        self._answer(status, kind, body)

    do_HEAD = do_GET

    def _page(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        pages = self.server.pages
        if path == "/metrics":
            return HTTPStatus.OK, TEXT, pages.metrics()
        if path == "/api/v1/status":
            status, body = pages.status()
            return status, JSON, body
        if path == "/":
            return HTTPStatus.OK, HTML, pages.front()
        return HTTPStatus.NOT_FOUND, TEXT, b"not found; there are / /metrics /api/v1/status\n"

    def _refuse(self) -> None:
        self.close_connection = True
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, TEXT, b"GET and HEAD only\n")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Log nothing: a scrape is no news, and stderr is the journal."""


class _Server(ThreadingHTTPServer):
    """A threading server that takes so many connections and no more, and ends those that last too long."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 2 * MAX_CONNECTIONS

    def __init__(self, family: socket.AddressFamily, address: tuple[Any, ...], pages: Pages) -> None:
        self.address_family = family
        self.pages = pages
        self._open: dict[socket.socket, float] = {}
        self._lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, for IPv4 too where all addresses were meant; look up no name, which could take its time."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self.server_address[0] != "::"))
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """Take a connection, or turn it away if there are enough."""
        with self._lock:
            peers = [_peer(other) for other in self._open]
            full = len(peers) >= MAX_CONNECTIONS or peers.count(_peer(request)) >= MAX_FROM_ONE
            if not full:
                self._open[request] = time.monotonic() + LIFE_SECONDS
        if not full:
            super().process_request(request, client_address)
            return
        try:
            request.setblocking(False)
            request.send(_BUSY)
        except OSError:
            pass  # it is turned away all the same
        self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """End a connection and give its place back."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """End connections that have lasted too long; called by the loop between requests."""
        now = time.monotonic()
        self._end_those_due(now)

    def end_all(self) -> None:
        """End every connection."""
        self._end_those_due(float("inf"))

    def _end_those_due(self, now: float) -> None:
        with self._lock:
            for request, due in self._open.items():
                if due <= now:
                    try:
                        request.shutdown(socket.SHUT_RDWR)  # its thread notices and closes it
                    except OSError:
                        continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away in the middle is no news, and a page's fault was answered with 500."""


def _peer(connection: socket.socket) -> str:
    """Return the address at the other end; empty if it is gone."""
    try:
        return str(connection.getpeername()[0])
    except OSError:
        return ""


class MetricsServer:
    """Serves the pages at `address` (`HOST:PORT`, `:PORT` for all addresses) from `start` to `stop`."""

    def __init__(self, address: str, provider: Provider) -> None:
        self._address = address
        self._pages = Pages(provider)
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port, once started (with port 0 the kernel chooses one)."""
        return 0 if self._server is None else self._server.server_port

    @property
    def url(self) -> str:
        """The address for people, once started."""
        host = self._address.rpartition(":")[0]
        return f"http://{host or socket.gethostname()}:{self.port}"

    def start(self) -> None:
        """Bind and serve in a thread of its own.

        Raises:
            CannotListen: the address is taken, or is none of this host's.

        """
        self._server = self._bound()
        arguments = {"poll_interval": 0.2}
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs=arguments, name="metrics", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the server and its connections; may be called twice, and without `start`."""
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is None or thread is None:
            return
        server.shutdown()
        server.server_close()
        server.end_all()
        thread.join()

    def _bound(self) -> _Server:
        host, _, port = self._address.rpartition(":")
        try:
            if host not in ("", "*"):
                found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
                family, _, _, _, address = found[0]
                return _Server(family, address, self._pages)
            try:
                return _Server(socket.AF_INET6, ("::", int(port)), self._pages)
            except OSError as error:
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.ENOPROTOOPT):
                    raise
                return _Server(socket.AF_INET, ("", int(port)), self._pages)
        except (OSError, ValueError) as error:
            raise CannotListen(self._address, getattr(error, "strerror", None) or str(error)) from error
