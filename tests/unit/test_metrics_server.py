"""The HTTP server over loopback, and the status page."""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from nodeagent.errors import NodeAgentError
from nodeagent.lock.record import Owner
from nodeagent.metrics import server as module
from nodeagent.metrics.page import render_page
from nodeagent.metrics.server import MAX_CONNECTIONS, CannotListen, MetricsServer, Pages, directory_version
from nodeagent.snapshot import Snapshot
from tests.unit.test_health_facts import gpu, lost, node, uuid
from tests.unit.test_metrics_native import FULL, job, names, parse, snapshot

Answer = tuple[int, dict[str, str], bytes]


class FakeProvider:
    """What the agent would answer, set by hand; counts how often the locks were read."""

    def __init__(self) -> None:
        self.taken: Snapshot | None = snapshot(node(gpu(0, **FULL)))
        self.held: dict[str, Owner] = {}
        self.version: object = 1
        self.now = 1004.0
        self.reads = 0

    def snapshot(self) -> Snapshot | None:
        return self.taken

    def owners(self) -> Mapping[str, Owner]:
        self.reads += 1
        return self.held

    def locks_version(self) -> object:
        return self.version

    def status(self) -> Mapping[str, Any] | None:
        return None if self.taken is None else {"schema": "gpu-nodeagent/status/1", "node": self.taken.node}

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def provider() -> FakeProvider:
    return FakeProvider()


@pytest.fixture
def served(provider: FakeProvider) -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1:0", provider)
    server.start()
    yield server
    server.stop()


def ask(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> Answer:
    with closing(http.client.HTTPConnection(host, port, timeout=10)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()


def talk(port: int, request: bytes) -> bytes:
    """Send bytes as they are and return everything until the server closes."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        connection.sendall(request)
        received = b""
        while True:
            chunk = connection.recv(65536)
            if not chunk:
                return received
            received += chunk


def test_metrics_with_the_age_of_now(served: MetricsServer, provider: FakeProvider) -> None:
    for now, expected in ((1004.0, 4.0), (1005.0, 5.0)):
        provider.now = now
        status, headers, body = ask(served.port, "/metrics?x=1")
        assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        samples = parse(body)
        assert samples["snapshot_age_seconds", ()] == expected
        assert samples["gpu_power_watts", (("uuid", uuid(0)),)] == 312.5
    assert provider.reads == 1, "rendered once a snapshot, not once a scrape"


def test_before_the_first_snapshot(served: MetricsServer, provider: FakeProvider) -> None:
    provider.taken = None
    assert parse(ask(served.port, "/metrics")[2]) == {("up", ()): 1}
    status, headers, body = ask(served.port, "/api/v1/status")
    assert (status, headers["content-type"]) == (503, "application/json")
    assert "error" in json.loads(body)
    assert b"No verdict yet" in ask(served.port, "/")[2]


def test_status_is_the_providers_object(served: MetricsServer) -> None:
    status, _, body = ask(served.port, "/api/v1/status")
    assert (status, json.loads(body)) == (200, {"schema": "gpu-nodeagent/status/1", "node": "n1"})


def test_the_cache_follows_snapshot_locks_and_staleness(provider: FakeProvider) -> None:
    pages = Pages(provider)

    def jobs() -> bool:
        return "gpu_job_info" in names(parse(pages.metrics()))

    assert not jobs()
    provider.held = {uuid(0): job(uuid(0))}
    assert not jobs(), "same snapshot, same version: the page made before"
    provider.version = 2
    assert jobs()
    provider.taken = replace(provider.taken, version="9") if provider.taken else None
    assert ("build_info", (("version", "9"),)) in parse(pages.metrics())
    provider.now = 1031.0
    assert "gpu_power_watts" not in names(parse(pages.metrics()))
    before = provider.reads
    provider.version = None
    pages.metrics()
    pages.metrics()
    assert provider.reads == before + 2, "a version that is not known is never the same"


def test_the_version_of_a_directory_changes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path)
    long_ago = time.time_ns() - 10**9
    os.utime(path, ns=(long_ago, long_ago))
    first = directory_version(path)
    assert first is not None
    assert directory_version(path) == first
    (tmp_path / "GPU-1").mkdir()
    with monkeypatch.context() as slow:  # so that this machine may take its time until it looks
        slow.setattr("nodeagent.metrics.server.TICK_NS", 60 * 10**9)
        assert directory_version(path) is None, "changed just now: it may change again within the same tick"
    os.utime(path, ns=(long_ago + 5, long_ago + 5))
    assert directory_version(path) not in (None, first)
    assert directory_version(f"{path}/none") == ()


def test_head_has_the_headers_of_get_and_no_body(served: MetricsServer) -> None:
    status, headers, body = ask(served.port, "/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["content-length"]) == len(ask(served.port, "/")[2])
    assert talk(served.port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"])
def test_other_methods_are_refused(served: MetricsServer, method: str) -> None:
    status, headers, _ = ask(served.port, "/metrics", method)
    assert (status, headers["allow"], headers["connection"]) == (405, "GET, HEAD", "close")


@pytest.mark.parametrize(
    "path", ["/x", "/metrics/", "/../../etc/passwd", "/%2e%2e/etc/passwd", "//metrics/..", "/api/v1"]
)
def test_other_paths_are_not_found(served: MetricsServer, path: str) -> None:
    assert ask(served.port, path)[0] == 404


def test_a_body_is_never_read_as_the_next_request(served: MetricsServer) -> None:
    smuggled = b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"GET /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
    received = talk(served.port, head + smuggled)
    assert received.count(b"HTTP/1.1 ") == 1
    assert received.startswith(b"HTTP/1.1 404 ")


def test_connections_are_kept_alive(served: MetricsServer) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)) as connection:
        for _ in range(3):
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            answer.read()
            assert not answer.will_close


def test_a_fault_in_a_page_is_an_answer(served: MetricsServer, provider: FakeProvider) -> None:
    def broken() -> Mapping[str, Any]:
        raise OSError("the state directory is gone")

    provider.status = broken  # type: ignore[method-assign]
    status, _, body = ask(served.port, "/api/v1/status")
    assert (status, body) == (500, b"OSError: the state directory is gone\n")


def test_nothing_is_written_to_stderr(served: MetricsServer, capfd: pytest.CaptureFixture[str]) -> None:
    ask(served.port, "/metrics")
    ask(served.port, "/x")
    assert b"400" in talk(served.port, b"nonsense\r\n\r\n")
    with closing(socket.create_connection(("127.0.0.1", served.port))) as rude:
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        rude.sendall(b"GET / HTTP/1.1\r\n")
    ask(served.port, "/metrics")
    assert capfd.readouterr() == ("", "")


def until(condition: Any) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return False


def test_one_connection_too_many_is_turned_away_and_a_place_is_given_back(served: MetricsServer) -> None:
    idle = [socket.create_connection(("127.0.0.1", served.port), timeout=10) for _ in range(MAX_CONNECTIONS)]
    try:
        with closing(socket.create_connection(("127.0.0.1", served.port), timeout=10)) as late:
            assert late.recv(100).startswith(b"HTTP/1.1 503 ")
        idle.pop().close()

        def served_again() -> bool:
            try:
                return ask(served.port, "/metrics")[0] == 200
            except OSError:
                return False

        assert until(served_again)
    finally:
        for connection in idle:
            connection.close()


def test_a_client_that_says_nothing_or_drips_is_cut_off(
    provider: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._Handler.timeout == module.IDLE_SECONDS
    monkeypatch.setattr(module._Handler, "timeout", 0.2)
    monkeypatch.setattr(module, "LIFE_SECONDS", 0.6)
    server = MetricsServer("127.0.0.1:0", provider)
    server.start()
    try:
        begun = time.monotonic()
        assert talk(server.port, b"GET / HT") == b""
        assert time.monotonic() - begun < 5
        with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as dripping:

            def cut() -> bool:
                try:
                    dripping.sendall(b"x")
                    time.sleep(0.05)
                except OSError:
                    return True
                return False

            assert until(cut), "each byte came in time, the request never would have"
    finally:
        server.stop()


def test_stop_ends_what_is_open_and_may_be_called_twice(provider: FakeProvider) -> None:
    server = MetricsServer("127.0.0.1:0", provider)
    server.stop()
    server.start()
    port = server.port
    with closing(socket.create_connection(("127.0.0.1", port), timeout=10)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(20).startswith(b"HTTP/1.1 200")
        begun = time.monotonic()
        server.stop()
        while connection.recv(65536):
            pass
        assert time.monotonic() - begun < 3, "it does not wait for the client to fall idle"
    server.stop()
    with pytest.raises(OSError, match="refused"):
        ask(port, "/metrics")


def test_a_port_alone_is_all_addresses(provider: FakeProvider) -> None:
    server = MetricsServer(":0", provider)
    server.start()
    try:
        assert ask(server.port, "/metrics")[0] == 200
        if socket.has_ipv6:
            try:
                socket.create_server(("::1", 0), family=socket.AF_INET6).close()
            except OSError:
                return  # no IPv6 on this host
            assert ask(server.port, "/metrics", host="::1")[0] == 200
    finally:
        server.stop()


def test_an_address_in_use_is_one_line(served: MetricsServer, provider: FakeProvider) -> None:
    for host in ("127.0.0.1", ""):
        second = MetricsServer(f"{host}:{served.port}", provider)
        with pytest.raises(CannotListen) as caught:
            second.start()
        assert isinstance(caught.value, NodeAgentError)
        assert str(caught.value) == (
            f"listen: {host}:{served.port}: Address already in use; set `listen` to another address, or to none"
        )


def test_an_address_of_another_host_is_refused(provider: FakeProvider) -> None:
    with pytest.raises(CannotListen):
        MetricsServer("192.0.2.1:0", provider).start()


class Cells(HTMLParser):
    """Collects the table's cells."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def cells(page: bytes) -> Cells:
    parser = Cells()
    parser.feed(page.decode())
    return parser


def test_the_page_shows_verdict_holder_temperature_and_utilisation() -> None:
    taken = snapshot(node(gpu(0, **FULL), lost(1)), retired={uuid(1): {"reason": "bad memory"}})
    page = render_page(taken, {f"{uuid(0)}@0": job("a", task="2"), f"{uuid(0)}@1": job("b", job="78")}, 1000.0)
    rows = [row for row in cells(page).rows if row]
    assert (rows[0][0], rows[0][4], rows[0][6:9]) == ("0", "OK", ["slurm 77.2 (ada), slurm 78 (ada)", "41 °C", "25 %"])
    assert (rows[1][4], rows[1][7]) == ("FAILED", "")
    assert rows[1][5].startswith("retired: bad memory; GPU 1 ")


def test_what_others_wrote_is_escaped_in_the_page() -> None:
    evil = "<script>alert(1)</script>"
    taken = snapshot(node(gpu(0, name=evil)), node=evil, drain_reason=evil)
    page = render_page(taken, {uuid(0): job(uuid(0), user=evil)}, 1000.0)
    assert "script" not in cells(page).tags
    assert page.count(b"&lt;script&gt;") == 5


def test_an_old_page_says_so_and_shows_no_values() -> None:
    page = render_page(snapshot(node(gpu(0, **FULL))), {}, 1031.0)
    assert b"These facts are old" in page
    assert "41 °C".encode() not in page


def test_the_page_loads_nothing_from_elsewhere(served: MetricsServer) -> None:
    _, headers, body = ask(served.port, "/")
    assert cells(body).tags.isdisjoint({"script", "link", "img", "iframe"})
    assert b"http://" not in body
    assert b"https://" not in body
    assert headers["content-security-policy"].startswith("default-src 'none'")
