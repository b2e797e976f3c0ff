"""The socket of a node and its clients: who may come, and what those get who send garbage, half requests, too much, or never read."""

from __future__ import annotations

import grp
import os
import socket
import stat
import struct
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore.errors import ConfigError
from datapath import craft
from datapath.live import control as controls
from datapath.live import requests
from datapath.live.client import Client, NoNode
from datapath.live.control import MOST_CLIENTS, Control, listening
from datapath.live.message import LARGEST_REQUEST, VERSION, RequestError, packed, unpacked
from pcap_tests.conftest import examples
from pcap_tests.test_datapath.test_live.noded import running


@pytest.fixture
def rig(tmp_path):
    with running(tmp_path) as rig:
        yield rig


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    """A node that takes whatever a whole test sends it."""
    with running(tmp_path_factory.mktemp("lasting")) as rig:
        rig.send(craft.tcp("10.0.0.1", "10.0.0.2", 40000, 80, "S", seq=1))
        yield rig


def connected(rig):
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(10)
    made.connect(rig.path)
    return made


def answer(connection):
    """The next message, None at the end."""
    head = connection.recv(4, socket.MSG_WAITALL)
    if len(head) < 4:
        return None
    return unpacked(connection.recv(struct.unpack(">I", head)[0], socket.MSG_WAITALL))


def works(rig):
    """Somebody else is served, and the datapath comes to its jobs."""
    with rig.client() as client:
        assert client.ask("count")["max"] > 0
    before = time.monotonic()
    rig.job(lambda node: None)
    assert time.monotonic() - before < 1


# --- the socket -------------------------------------------------------------------------------------------------------------------------


def test_only_the_owner_may_connect(rig):
    mode = os.stat(rig.path).st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600


def test_a_group_may_be_let_in(tmp_path):
    own = grp.getgrgid(os.getgid())
    made = listening(str(tmp_path / "s"), own.gr_name)
    try:
        found = os.stat(tmp_path / "s")
        assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, own.gr_gid)
    finally:
        made.close()


def test_a_group_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ConfigError, match="there is no group 'nobody-has-this'"):
        listening(str(tmp_path / "s"), "nobody-has-this")


def test_a_group_that_may_not_be_let_in_leaves_nothing_behind(tmp_path, monkeypatch):
    def chown(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(controls.os, "chown", chown)
    with pytest.raises(ConfigError, match="s: Operation not permitted"):
        listening(str(tmp_path / "s"), grp.getgrgid(os.getgid()).gr_name)
    assert not (tmp_path / "s").exists()


def test_the_socket_is_gone_when_the_node_is(tmp_path):
    with running(tmp_path) as rig:
        assert os.path.exists(rig.path)
    assert not os.path.exists(rig.path)
    with pytest.raises(NoNode, match="no node is running there: expected one started by `ctmirror run`"):
        Client(rig.path)


def test_what_a_dead_node_has_left_is_replaced(tmp_path):
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / "control.sock"))
    left.close()
    with pytest.raises(NoNode, match="no node is running there any more"):
        Client(str(tmp_path / "control.sock"))
    with running(tmp_path) as rig:
        works(rig)


def test_a_living_node_keeps_its_socket(rig):
    with pytest.raises(ConfigError, match="another node listens there"):
        Control(rig.node, rig.path)
    works(rig)


def test_a_file_of_somebody_is_no_socket_to_replace(tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(ConfigError, match="is there and no socket"):
        listening(str(tmp_path / "s"))
    assert (tmp_path / "s").read_text() == "precious"


def test_a_socket_that_somebody_has_put_there_meanwhile_stays(tmp_path):
    with running(tmp_path) as rig:
        os.unlink(rig.path)
        other = listening(rig.path)
    assert os.path.exists(rig.path)
    other.close()


def test_its_folder_is_made(tmp_path):
    made = listening(str(tmp_path / "run" / "ctmirror" / "s"))
    made.close()
    assert (tmp_path / "run" / "ctmirror" / "s").is_socket()


# --- clients that do as they should not ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "a message of 1195725856 bytes: expected 2 to 65536"),
        (struct.pack(">I", LARGEST_REQUEST + 1), "a message of 65537 bytes"),
        (struct.pack(">I", 0), "a message of 0 bytes"),
        (struct.pack(">I", 5) + b"{{{{{", "no JSON"),
        (struct.pack(">I", 5) + b"[1,2]", "expected a JSON object"),
        (struct.pack(">I", 4) + b"\xff\xfe{}", "no JSON"),
        (packed({"v": VERSION + 1, "do": "count"}), "version '2': expected 1"),
        (packed({"do": "count"}), "version 'None': expected 1"),
        (packed({"v": 1, "id": ["x"], "do": "count"}), "id: expected a number, or at most 64 characters"),
    ],
)
def test_garbage_gets_one_error_and_the_end(rig, sent, said):
    with connected(rig) as client:
        client.sendall(sent)
        assert said in answer(client)["error"]
        assert answer(client) is None
    assert rig.counts["garbage"] == 1
    works(rig)


def test_deeply_nested_json_is_garbage_too(rig):
    body = b'{"v":1,"do":' + b"[" * 30000 + b"]" * 30000 + b"}"
    with connected(rig) as client:
        client.sendall(struct.pack(">I", len(body)) + body)
        assert "error" in answer(client)
    works(rig)


def test_half_a_request_is_waited_for_only_so_long(rig, monkeypatch):
    monkeypatch.setattr(controls, "PATIENCE", 0.2)
    with connected(rig) as client:
        client.sendall(packed({"v": 1, "id": 1, "do": "count"})[:9])
        works(rig)
        assert answer(client) is None
    assert rig.counts["stalled"] == 1


def test_one_byte_at_a_time_is_a_request_all_the_same(rig):
    with connected(rig) as client:
        for byte in packed({"v": 1, "id": "a", "do": "count"}):
            client.sendall(bytes([byte]))
        assert answer(client) == {"id": "a", "end": {"count": 0, "max": 262144}}


def test_many_requests_at_once_are_answered_in_order(rig):
    with connected(rig) as client:
        client.sendall(b"".join(packed({"v": 1, "id": i, "do": "count"}) for i in range(200)))
        assert [answer(client)["id"] for _ in range(200)] == list(range(200))


def test_who_is_idle_for_too_long_makes_room(rig, monkeypatch):
    monkeypatch.setattr(controls, "IDLE", 0.1)
    with connected(rig) as client:
        assert answer(client) is None
    assert rig.counts["stalled"] == 0


def test_a_client_too_many_is_told_so(rig):
    clients = [connected(rig) for _ in range(MOST_CLIENTS)]
    rig.until(lambda: rig.counts["clients"] == MOST_CLIENTS)
    with connected(rig) as late:
        assert "16 clients are served already" in answer(late)["error"]
        assert answer(late) is None
    clients.pop().close()
    rig.until(lambda: len(rig.control._clients) < MOST_CLIENTS)
    with rig.client() as client:
        assert client.ask("count")["count"] == 0
    for each in clients:
        each.close()
    assert rig.counts["refused"] == 1


def many(rig, n):
    for start in range(0, n, 500):
        rig.send(*(craft.udp(f"10.0.{i >> 8}.{i & 255}", "10.9.9.9", 1000, 53, b"x") for i in range(start, min(start + 500, n))))


def test_who_never_reads_is_dropped_and_holds_up_nobody(rig, monkeypatch):
    monkeypatch.setattr(controls, "PATIENCE", 0.5)
    many(rig, 6000)  # some 4 MB of answer, more than all buffers on the way
    with connected(rig) as client:
        client.sendall(packed({"v": 1, "id": 1, "do": "list"}))
        works(rig)
        rig.until(lambda: rig.counts["stalled"] == 1)
        works(rig)
    assert not rig.control.listeners()


def test_who_hangs_up_in_the_middle_of_an_answer_leaves_nothing(rig):
    many(rig, 6000)
    for _ in range(20):
        with connected(rig) as client:
            client.sendall(packed({"v": 1, "id": 1, "do": "list"}))
            client.recv(10)
    rig.until(lambda: not rig.control._clients)
    assert rig.counts["stalled"] == 0
    works(rig)


def test_a_node_that_stops_says_so_to_who_asks(tmp_path):
    with running(tmp_path) as rig:
        rig.node.stop()
        with rig.client() as client, pytest.raises(RequestError, match="the node is stopping"):
            client.ask("count")
        rig.node.ask = lambda job: _Nothing()  # what running() would still ask


class _Nothing:
    def result(self, _):
        return None


def test_a_node_ends_quietly_while_clients_are_there(tmp_path, caplog):
    with running(tmp_path) as rig:
        clients = [connected(rig) for _ in range(3)]
        clients[0].sendall(packed({"v": 1, "id": 1, "do": "events"}))
        rig.until(lambda: len(rig.control._clients) == 3 and len(rig.control.listeners()) == 1)
    for client in clients:
        while answer(client) is not None:
            pass
        client.close()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def test_what_fails_unexpectedly_is_told_and_the_client_goes_on(rig, monkeypatch, caplog):
    def fail(node):
        raise MemoryError("no more")

    monkeypatch.setattr(requests, "look", fail)
    with rig.client() as client:
        with pytest.raises(RequestError, match="internal error: MemoryError: no more"):
            client.ask("stats")
        assert client.ask("count")["count"] == 0


# --- fuzz -------------------------------------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
NAMES = (
    "src",
    "dst",
    "family",
    "proto",
    "sport",
    "zone",
    "mark",
    "mark_mask",
    "label",
    "label_mask",
    "status",
    "not_status",
    "translated",
    "l4state",
)
LIKELY = VALUES | st.sampled_from(["10.0.0.0/8", "::1", "any", ["assured"], ["snat", "dnat"], "0x1", 4, 6, 17, "ESTABLISHED"])
WHICH = st.dictionaries(st.sampled_from(NAMES), LIKELY, max_size=3) | VALUES
CHANGE = st.dictionaries(st.sampled_from(["mark", "mark_mask", "timeout", "label", "label_mask", "status"]), LIKELY, max_size=3) | VALUES
DOS = ("list", "delete", "update", "count", "counters", "stats", "flush", "text", "rules", "log", "nothing")


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    do=st.sampled_from(DOS) | VALUES,
    which=WHICH,
    change=CHANGE,
    others=st.dictionaries(st.sampled_from(["text", "level", "name", "established"]), VALUES),
)
def test_every_request_is_answered_and_the_node_goes_on(lasting, do, which, change, others):
    """Invariant: a request of the right form gets an end or an error, in one line, whatever it holds; the next one is answered as well."""
    with connected(lasting) as client:
        client.sendall(packed({"v": 1, "id": 1, "do": do, "which": which, "change": change, **others}))
        while True:
            told = answer(client)
            assert told is not None and told["id"] == 1
            if "error" in told:
                assert told["error"] and "\n" not in told["error"]
            if "error" in told or "end" in told:
                break
        client.sendall(packed({"v": 1, "id": 2, "do": "count"}))
        assert answer(client)["id"] == 2


@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=200))
def test_bytes_at_random_end_in_an_error_or_wait_for_more(lasting, data):
    """Invariant: the connection's fate is decided by its own bytes; nobody else's suffers."""
    with connected(lasting) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while (told := answer(client)) is not None:
            assert "error" in told or "end" in told
    with lasting.client() as other:
        assert "count" in other.ask("count")


def test_jobs_from_many_threads_are_all_done_and_none_stops_the_datapath(rig):
    """Who rings while the loop is just answering somebody else is heard, and no bell rings on for nobody."""

    def ask(answers):
        for i in range(3000):
            answers.append(rig.node.ask(lambda node, i=i: i).result(10))

    answers = [[] for _ in range(4)]
    threads = [threading.Thread(target=ask, args=(each,)) for each in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [list(range(3000))] * 4
    before = rig.job(lambda node: node.loop.counters()["rounds"])
    time.sleep(0.3)
    # It sleeps again: 256 rounds behind each job, those of the control thread too; one that does not sleep makes hundreds of thousands.
    assert rig.job(lambda node: node.loop.counters()["rounds"]) - before < 20_000
