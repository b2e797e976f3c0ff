"""The running kernel's connections taken over, and given back to it: real ones, through a router that translates, in namespaces.

The proof that what is given back is right: the kernel forgets everything, gets our connections, and the same sockets go on talking through it.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from ctcore import ctnetlink
from ctcore.config import Config
from ctcore.ctnetlink import attribute
from ctcore.tracker import Tracker
from ctcore.types import REWRITE_DTYPE, Dir, Status
from datapath import craft
from datapath.frame import frames_of
from datapath.live import kernel_conntrack as kc
from datapath.oracle import ruleset
from datapath.wire import parse_batch
from pcap_tests.netns import CLIENT, ROUTER, SERVER, V4, V6, Network, unavailable
from pcap_tests.required import cannot
from pcap_tests.router import dnat, snat

NOW = 1_800_000_000 * 10**9
FAMILIES = {4: V4, 6: V6}
SERVICE, OTHER = 80, 8080
DELETE = 1 << 8 | 2


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> None:
    if why := unavailable():
        cannot(why)


@pytest.fixture
def network() -> Iterator[Network]:
    """What the client sends seems to come from the router, and its port 8080 is the server's 80."""
    rules = [snat(ROUTER[1][family]) for family in (V4, V6)]
    for family, bits in ((V4, 32), (V6, 128)):
        rules.append(dnat(SERVER[family], ports=SERVICE, proto=6, dst=f"{ROUTER[0][family]}/{bits}", dport=OTHER))
    with Network() as net:
        ruleset.load(net.router, Config(nat=tuple(rules)))
        yield net


def translating(**settings) -> Tracker:
    return Tracker(Config(max=1000, nat_actions=True, **settings))


def taken(net: Network, tracker: Tracker) -> kc.Moved:
    with net.router.entered():
        return kc.adopt([tracker], NOW)


def given(net: Network, tracker: Tracker) -> kc.Moved:
    with net.router.entered():
        return kc.hand_over([tracker])


def forget(net: Network) -> None:
    """The kernel's table is empty after this."""
    with net.router.entered(), kc._socket() as sock:
        body = kc.FAMILY.pack(socket.AF_UNSPEC, 0, 0)
        assert kc._ask(sock, [kc.MESSAGE.pack(kc.MESSAGE.size + len(body), DELETE, kc.REQUEST | ctnetlink.ACK, 0, 0) + body]) == [0]
        assert list(kc.dumped(sock)) == []


def tcp_pair(net: Network, family: int, to: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    listening = net.server.socket(family, socket.SOCK_STREAM)
    listening.bind((SERVER[family], SERVICE))
    listening.listen()
    client = net.client.socket(family, socket.SOCK_STREAM)
    client.connect(to)
    server, _ = listening.accept()
    server.settimeout(10)
    listening.close()
    return client, server


def talk(client: socket.socket, server: socket.socket, *said: bytes) -> None:
    for text in said:
        client.sendall(text)
        assert server.recv(100) == text
        server.sendall(text[::-1])
        assert client.recv(100) == text[::-1]


def only_tcp(tracker: Tracker) -> np.void:
    conns = tracker.conns()
    conns = conns[conns["flow"]["key"]["proto"][:, 0] == 6]
    assert len(conns) == 1
    return conns[0]


def ends(conn: np.void, d: int) -> tuple[str, str, int, int]:
    key = conn["flow"][d]["key"]
    family, size = (socket.AF_INET, 4) if key["family"] == 4 else (socket.AF_INET6, 16)
    return (*(socket.inet_ntop(family, key[half][:size].tobytes()) for half in ("src", "dst")), int(key["sport"]), int(key["dport"]))


@pytest.mark.parametrize("v", [4, 6])
def test_a_tcp_connection_is_taken_over(network: Network, v: int) -> None:
    family = FAMILIES[v]
    client, server = tcp_pair(network, family, (SERVER[family], SERVICE))
    talk(client, server, b"hello")
    tracker = translating()
    assert taken(network, tracker).conns >= 1
    tracker.check()
    conn = only_tcp(tracker)
    port = client.getsockname()[1]
    assert ends(conn, 0) == (CLIENT[family], SERVER[family], port, SERVICE)
    assert ends(conn, 1) == (SERVER[family], ROUTER[1][family], SERVICE, port)
    assert {Status.SRC_NAT, Status.ASSURED, Status.SEEN_REPLY, Status.CONFIRMED} <= {bit for bit in Status if conn["status"] & bit}
    assert conn["tcp"]["state"] == 3 and (conn["tcp"]["scale"] > 0).all() and 431_000 * 250 < conn["timeout"] <= 432_000 * 250
    client.close()
    server.close()


def test_and_its_next_packets_are_its_own(network: Network) -> None:
    client, server = tcp_pair(network, V4, (SERVER[V4], SERVICE))
    talk(client, server, b"hello")
    tracker = translating()
    taken(network, tracker)
    conn = only_tcp(tracker)
    segments = [craft.tcp(*ends(conn, d), "A", seq=7_000_000 + d, ack=7_000_001 - d, payload=b"more") for d in (0, 1, 0)]
    rewrites = np.zeros(3, dtype=REWRITE_DTYPE)
    decisions = tracker.advance(parse_batch(*frames_of(segments, ts=np.full(3, NOW, dtype=np.int64))), rewrites)
    assert decisions["state"].tolist() == [2] * 3 and decisions["dir"].tolist() == [Dir.ORIG, Dir.REPLY, Dir.ORIG]
    assert (rewrites["flags"] != 0).all()
    tracker.check()
    client.close()
    server.close()


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("forwarded", [False, True])
def test_what_is_given_back_goes_on(network: Network, v: int, forwarded: bool) -> None:
    """Both translations at once where the port is forwarded. Nothing is picked up by the way: the kernel is told not to."""
    family = FAMILIES[v]
    network.router.sysctl("netfilter/nf_conntrack_tcp_loose", 0)
    to = (ROUTER[0][family], OTHER) if forwarded else (SERVER[family], SERVICE)
    client, server = tcp_pair(network, family, to)
    talk(client, server, b"hello")
    tracker = translating()
    taken(network, tracker)
    conn = only_tcp(tracker)
    tracker.set_mark(int(conn["flow"][0]["id"]), 0xC0FFEE)
    tracker.set_label(int(conn["flow"][0]["id"]), 1 << 77 | 5)
    forget(network)
    done = given(network, tracker)
    assert (done.conns, done.left_out) == (tracker.count, {})
    talk(client, server, b"and", b"on", b"it", b"goes")
    after = translating()
    taken(network, after)
    kept = only_tcp(after)
    assert kept["mark"] == 0xC0FFEE and ends(kept, 0) == ends(conn, 0) and ends(kept, 1) == ends(conn, 1)
    assert kept["status"] == conn["status"] and kept["tcp"]["state"] == 3 and kept["tcp"]["scale"].tolist() == conn["tcp"]["scale"].tolist()
    client.close()
    server.close()


def test_what_the_kernel_still_has_is_changed(network: Network) -> None:
    client, server = tcp_pair(network, V4, (SERVER[V4], SERVICE))
    talk(client, server, b"hello")
    tracker = translating()
    taken(network, tracker)
    tracker.set_mark(int(only_tcp(tracker)["flow"][0]["id"]), 77)
    assert given(network, tracker) == kc.Moved(tracker.count, {})
    after = translating()
    taken(network, after)
    assert only_tcp(after)["mark"] == 77
    client.close()
    server.close()


def test_datagrams_and_pings(network: Network) -> None:
    server, client = network.server.socket(V4, socket.SOCK_DGRAM), network.client.socket(V4, socket.SOCK_DGRAM)
    server.bind((SERVER[V4], 53))
    client.sendto(b"?", (SERVER[V4], 53))
    _, back = server.recvfrom(10)
    server.sendto(b"!", back)
    assert client.recv(10) == b"!"
    ping = network.client.socket(V4, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
    ping.sendto(struct.pack(">BBHHH", 8, 0, 0, 0, 1) + b"echo", (SERVER[V4], 0))
    assert ping.recv(100)
    tracker = translating()
    taken(network, tracker)
    seen = {int(conn["flow"][0]["key"]["proto"]): conn for conn in tracker.conns() if conn["flow"][0]["key"]["family"] == 4}
    assert {1, 17} <= set(seen) and all(conn["status"] & Status.SEEN_REPLY for conn in (seen[1], seen[17]))
    forget(network)
    assert given(network, tracker).left_out == {}
    server.sendto(b"late", back)
    assert client.recv(10) == b"late", "an answer finds its way back by what the kernel was given"
    after = translating()
    taken(network, after)
    assert {ends(conn, 1) for conn in (seen[1], seen[17])} <= {ends(conn, 1) for conn in after.conns()}
    for sock in (server, client, ping):
        sock.close()


def test_what_cannot_be_taken_is_counted(network: Network) -> None:
    client, server = tcp_pair(network, V4, (SERVER[V4], SERVICE))
    tracker = Tracker(Config(max=1000))
    found = taken(network, tracker)
    assert sum(count for why, count in found.left_out.items() if "translates" in why) >= 1
    full = translating()
    small = Tracker(Config(max=1, nat_actions=True))
    both = taken(network, small)
    assert small.count == 1 and both.conns == 1
    assert taken(network, full).conns and taken(network, full).conns == 0, "its tuples are taken the second time"
    client.close()
    server.close()


def test_a_kernel_that_refuses_is_an_error(network: Network) -> None:
    with network.router.entered(), kc._socket() as sock:
        body = kc.FAMILY.pack(V4, 0, 0) + attribute(1, b"")
        assert (
            kc._ask(sock, [kc.MESSAGE.pack(kc.MESSAGE.size + len(body), kc.CT_NEW, kc.REQUEST | ctnetlink.ACK | ctnetlink.CREATE, 0, 0) + body])[0]
            > 0
        )
