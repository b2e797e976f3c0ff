"""The server of metrics before clients that mean no good: each gets its line and is gone, and neither the datapath nor the next scrape waits."""

from __future__ import annotations

import socket
import time
import urllib.error
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.errors import ConfigError
from datapath import craft
from datapath.live import exposition, metrics_server
from datapath.live.config import listen_address, parse
from datapath.live.metrics_server import LARGEST_HEAD, MOST_CLIENTS, bound
from pcap_tests.conftest import examples
from pcap_tests.test_datapath.test_live.test_metrics import free_port, got, measured

GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def served(tmp_path):
    with measured(tmp_path) as (rig, server, url):
        yield rig, server, url


def call(server, data: bytes) -> bytes:
    """All that comes back of a connection on which this is sent."""
    with socket.create_connection(server.address, timeout=10) as client:
        client.sendall(data)
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
        return answer


@pytest.mark.parametrize(
    ("request_head", "status", "said"),
    [
        (GET, "200 OK", "ctmirror_uptime_seconds"),
        (b"GET /metrics?a=b HTTP/1.0\r\n\r\n", "200 OK", "ctmirror_uptime_seconds"),
        (b"GET /healthz HTTP/1.1\r\n\r\n", "200 OK", "ok"),
        (b"GET / HTTP/1.1\r\n\r\n", "404 Not Found", "expected /metrics or /healthz"),
        (b"GET /../etc/passwd HTTP/1.1\r\n\r\n", "404 Not Found", "expected /metrics or /healthz"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "405 Method Not Allowed", "expected GET or HEAD"),
        (b"\xff\x00 /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed", "expected GET or HEAD"),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", "400 Bad Request", "expected GET /metrics HTTP/1.1"),
        (b"GET /metrics HTTP/2\r\n\r\n", "400 Bad Request", "expected GET /metrics HTTP/1.1"),
        (b"\r\n\r\n", "400 Bad Request", "expected GET /metrics HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n", "400 Bad Request", "expected GET /metrics HTTP/1.1"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * LARGEST_HEAD + b"\r\n\r\n", "431 Request Header Fields Too Large", "expected at most 8192 bytes"),
    ],
)
def test_what_a_request_is_answered(served, request_head, status, said):
    head, _, body = call(served[1], request_head).decode().partition("\r\n\r\n")
    lines = head.split("\r\n")
    assert lines[0] == f"HTTP/1.1 {status}" and said in body
    assert f"Content-Length: {len(body)}" in lines and "Connection: close" in lines


def test_head_is_get_without_the_body(served):
    head, _, body = call(served[1], b"HEAD /healthz HTTP/1.1\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"Content-Length: 3" in head and body == b""


@settings(max_examples=examples(30))
@given(st.binary(max_size=300))
def test_garbage_is_answered_or_dropped_and_the_next_scrape_is_fine(shared, data):
    """Whatever it is, it harms nobody."""
    answer = call(shared, data + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert call(shared, b"GET /healthz HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\nok\n")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with measured(tmp_path_factory.mktemp("shared")) as (_, server, _):
        yield server


def test_who_sends_slowly_has_as_long_as_everybody(served, monkeypatch):
    """Each byte in time does not make the whole request in time."""
    monkeypatch.setattr(metrics_server, "PATIENCE", 0.5)
    _, server, url = served
    with socket.create_connection(server.address, timeout=10) as slow:
        start = time.monotonic()
        slow.settimeout(0.1)
        answer = b""
        while not answer and time.monotonic() - start < 5:
            slow.sendall(b"G")
            try:
                answer = slow.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 Request Timeout") and 0.4 < time.monotonic() - start < 2
    assert "ctmirror_up" in got(f"{url}/metrics")[1]


def test_more_than_there_is_room_for_are_told_so_and_others_go_on(served):
    rig, server, _ = served
    with ExitStack() as stack:
        for _ in range(MOST_CLIENTS):
            stack.enter_context(socket.create_connection(server.address, timeout=10)).sendall(b"GET ")
        rig.until(lambda: len(server._clients) == MOST_CLIENTS)
        assert b"503 Service Unavailable" in call(server, GET) and server.counts["crowded"] == 1
        assert len(rig.send(craft.udp("10.0.0.1", "10.0.0.2", 1, 2, b"x"))) == 1  # packets do not care
    rig.until(lambda: not server._clients)
    assert b"200 OK" in call(server, GET)


def test_who_does_not_read_is_dropped(served, monkeypatch):
    monkeypatch.setattr(metrics_server, "PATIENCE", 0.3)
    rig, server, _ = served
    server._exposition._texts = {exposition.PLAIN: b"#" * (16 << 20)}
    server._exposition.read_at = time.monotonic() + 60
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(server.address)
        deaf.sendall(GET)
        rig.until(lambda: server.counts["stalled"] == 1)
    rig.until(lambda: not server._clients)


def test_a_datapath_that_hangs_fails_the_scrape_and_the_probe(served, monkeypatch):
    monkeypatch.setattr(exposition, "PATIENCE", 0.3)
    rig, _, url = served
    stuck = rig.node.ask(lambda node: time.sleep(1.5))
    for path in ("metrics", "healthz"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            got(f"{url}/{path}")
        assert caught.value.code == 503 and caught.value.read() == b"the datapath does not come to its jobs\n"
    stuck.result(10)
    assert got(f"{url}/healthz")[1] == "ok\n" and "ctmirror_rules 2.0" in got(f"{url}/metrics")[1]


def test_scrapes_at_the_same_time_share_one_reading(served, monkeypatch):
    _, server, _ = served
    looks = []
    monkeypatch.setattr(exposition, "look", lambda node, look=exposition.look: (looks.append(1), time.sleep(0.2), look(node))[2])
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(server.address, timeout=10)) for _ in range(10)]
        for client in clients:
            client.sendall(GET)
        assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients)
    assert len(looks) == 1


# --- where it listens -------------------------------------------------------------------------------------------------------------------------

HEAD = 'rules = "node.tc"\n[[iface]]\nname = "eth0"\n'


def test_it_is_off_by_default_and_says_what_addresses_are():
    assert parse(HEAD, "n").metrics.listen is None
    assert listen_address("127.0.0.1:9464") == ("127.0.0.1", 9464) and listen_address("[::1]:1") == ("::1", 1)


@pytest.mark.parametrize(
    "listen", ["9464", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:65536", "localhost:9464", "::1:9464", "[127.0.0.1]:9464", "[::1]:x", "1.2.3:80"]
)
def test_what_is_no_address_is_said_by_line(listen):
    with pytest.raises(ConfigError) as caught:
        parse(f'{HEAD}[metrics]\nlisten = "{listen}"\n', "n")
    assert str(caught.value) == f"n:5: metrics.listen: expected an address and a port, as '127.0.0.1:9464' or '[::1]:9464', not '{listen}'"


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"metrics.listen: {listen}: Address already in use"):
            bound(listen)


def test_beyond_this_machine_is_warned_of(caplog):
    bound(f"127.0.0.1:{free_port()}").close()
    assert caplog.text == ""
    bound(f"0.0.0.0:{free_port()}").close()
    assert "is no loopback address: whoever reaches it can read them, without encryption or password" in caplog.text
