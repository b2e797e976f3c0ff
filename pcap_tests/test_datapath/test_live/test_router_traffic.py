"""Real stacks talk through a node that routes: TCP, UDP, traceroute, path MTU discovery, unreachable hosts, neighbours that change, translation."""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from datapath.live.figures import figures, look
from datapath.live.neighbour_table import NeighbourState
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import parse
from pcap_tests.netns import CLIENT, ROUTER, SERVER, V4, V6
from pcap_tests.test_datapath.test_live.routed_network import FAMILIES, Network, ask_udp, network, until

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
DATA = bytes(range(256)) * 800
MASQUERADE = """tc filter add dev wan egress protocol ip prio 1 flower action ct commit nat src addr {v4} pipe action pass
tc filter add dev wan ingress protocol ip prio 1 flower action ct nat pipe action pass
tc filter add dev wan egress protocol ipv6 prio 2 flower action ct commit nat src addr {v6} pipe action pass
tc filter add dev wan ingress protocol ipv6 prio 2 flower action ct nat pipe action pass
"""
# linux/in.h, linux/in6.h
IP_MTU_DISCOVER, IP_RECVERR, IP_MTU, PMTU_DO, PMTU_DONT = 10, 11, 14, 2, 0
IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_RECVERR = 23, 24, 25
LEVEL = {V4: socket.IPPROTO_IP, V6: socket.IPPROTO_IPV6}
RECVERR = {V4: IP_RECVERR, V6: IPV6_RECVERR}
HOPS = {V4: socket.IP_TTL, V6: socket.IPV6_UNICAST_HOPS}
DISCOVER = {V4: IP_MTU_DISCOVER, V6: IPV6_MTU_DISCOVER}
MTU = {V4: IP_MTU, V6: IPV6_MTU}

pytestmark = pytest.mark.usefixtures("interfaces")
by_family = pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6"])


@pytest.fixture(params=["xdp-native", "packet"])
def driver(request) -> str:
    return request.param


@pytest.fixture
def plain(tmp_path: Path, driver: str) -> Iterator[Network]:
    with network(tmp_path, driver) as net:
        yield net


def talk_tcp(net: Network, family: int) -> list[str]:
    """A quarter of a megabyte there and back; whom the server has seen."""
    with net.echo(STREAM, family) as seen, net.client.socket(family, STREAM) as sock:
        sock.connect((SERVER[family], 7))
        sent, back = 0, b""
        while len(back) < len(DATA):
            sent += sock.send(DATA[sent : sent + 8192]) if sent < len(DATA) else 0
            back += sock.recv(1 << 16)
        assert back == DATA
    return seen


def error_of(sock: socket.socket) -> tuple[int, int, int, str]:
    """(errno, ICMP type, code, who has said so) of the error that comes for a socket."""
    found: list[tuple[int, int, int, str]] = []

    def look() -> bool:
        try:
            _, ancillary, _, _ = sock.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            return False
        for _, _, data in ancillary:
            number, origin, kind, code = struct.unpack_from("IBBB", data)
            if origin in (2, 3) and len(data) >= 16 + 8:  # SO_EE_ORIGIN_ICMP, _ICMP6: the offender's address is behind
                family = struct.unpack_from("H", data, 16)[0]
                raw = data[20:24] if family == V4 else data[24:40]
                found.append((number, kind, code, socket.inet_ntop(family, raw)))
        return bool(found)

    until(look, "an ICMP error")
    return found[0]


def prober(net: Network, family: int, hops: int = 64) -> socket.socket:
    sock = net.client.socket(family, DGRAM)
    sock.setsockopt(LEVEL[family], RECVERR[family], 1)
    sock.setsockopt(LEVEL[family], HOPS[family], hops)
    sock.setblocking(False)
    return sock


@by_family
def test_tcp_and_udp_go_through(plain, family):
    assert talk_tcp(plain, family) == [CLIENT[family]]
    assert ask_udp(plain, family) == [CLIENT[family]]
    counts = figures(plain.node.ask(look).result(10), plain.node, 1.0)["router"]
    assert counts["forwarded"] > 300 and counts["neighbours"] >= 2 and counts["overruns"] == 0
    assert counts["malformed"] == counts["no_route"] == 0


@by_family
def test_a_traceroute_sees_the_router_and_then_the_server(plain, family):
    ask_udp(plain, family)
    with prober(plain, family, hops=1) as sock:
        sock.sendto(b"probe", (SERVER[family], 33434))
        kind = (11, 0) if family == V4 else (3, 0)
        assert error_of(sock) == (errno.EHOSTUNREACH, *kind, ROUTER[0][family])
    with prober(plain, family, hops=2) as sock:
        sock.sendto(b"probe", (SERVER[family], 33435))
        kind = (3, 3) if family == V4 else (1, 4)
        assert error_of(sock) == (errno.ECONNREFUSED, *kind, SERVER[family])


@by_family
def test_a_smaller_mtu_behind_us_is_discovered(plain, family):
    """Set while the node works: it hears of it."""
    ask_udp(plain, family)
    shrink(plain, 1300)
    with prober(plain, family) as sock:
        sock.setsockopt(LEVEL[family], DISCOVER[family], PMTU_DO)
        sock.connect((SERVER[family], 9))

        def discovered() -> bool:
            with suppress(OSError):  # EMSGSIZE, once it has been told
                sock.send(bytes(1400))
            return sock.getsockopt(LEVEL[family], MTU[family]) == 1300

        until(discovered, "the path's MTU")
    assert plain.counters()["too_big"] > 0
    assert talk_tcp(plain, family) == [CLIENT[family]]


def shrink(net: Network, mtu: int) -> None:
    """The cable between router and server."""
    net.set(net.middle, "wan", mtu=mtu)
    net.set(net.server, "eth0", mtu=mtu)


def test_without_df_a_datagram_arrives_in_pieces(plain):
    shrink(plain, 1000)
    with plain.echo(DGRAM, V4) as seen, plain.client.socket(V4, DGRAM) as sock:
        sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, PMTU_DONT)
        sock.settimeout(0.3)

        def answered() -> bool:
            sock.sendto(DATA[:1400], (SERVER[V4], 7))
            try:
                return sock.recv(2048) == DATA[:1400] and plain.counters()["cut"] > 0
            except TimeoutError:
                return False

        until(answered, "an answer to a datagram that was cut")
    assert set(seen) == {CLIENT[V4]}


@by_family
def test_where_no_route_and_no_host_is(plain, family):
    nowhere = {V4: "203.0.113.5", V6: "2001:db8:99::5"}[family]
    nobody = {V4: "198.51.100.99", V6: "2001:db8:2::99"}[family]
    ask_udp(plain, family)  # so that the client is known, whom errors go to
    with prober(plain, family) as sock:
        sock.sendto(b"probe", (nowhere, 9))
        assert error_of(sock)[1:] == ((3, 0) if family == V4 else (1, 0)) + (ROUTER[0][family],)
    with prober(plain, family) as sock:

        def failed() -> bool:
            with suppress(OSError):  # the error that came for the one before
                sock.sendto(b"probe", (nobody, 9))
            found = plain.neighbour("wan", nobody)
            return found is not None and found[0] == NeighbourState.NEIGHBOUR_FAILED and plain.counters()["unreachable"] > 0

        until(failed, "a neighbour that does not answer")
        assert error_of(sock)[1:] == ((3, 1) if family == V4 else (1, 3)) + (ROUTER[0][family],)


@by_family
def test_the_first_packet_to_a_neighbour_arrives(plain, family):
    """It waits in the node until the kernel has asked for its next hop; so does the SYN, which is not sent twice."""
    with plain.echo(DGRAM, family) as seen, plain.client.socket(family, DGRAM) as sock:
        sock.settimeout(10)
        sock.sendto(b"first", (SERVER[family], 7))
        assert sock.recv(100) == b"first"
    counts = plain.counters()
    assert seen == [CLIENT[family]]
    assert counts["held"] >= 1 and counts["held_dropped"] == counts["unreachable"] == 0


@by_family
def test_the_sender_of_the_first_packet_to_a_dead_host_is_told(plain, family):
    """A single packet, as long after it as Linux takes to give up."""
    nobody = {V4: "198.51.100.99", V6: "2001:db8:2::99"}[family]
    with prober(plain, family) as sock:
        begin = time.monotonic()
        sock.sendto(b"probe", (nobody, 9))
        assert error_of(sock)[1:] == ((3, 1) if family == V4 else (1, 3)) + (ROUTER[0][family],)
        assert 2 < time.monotonic() - begin < 6


@by_family
def test_a_neighbour_gets_another_mac_address(plain, family):
    ask_udp(plain, family)
    plain.set(plain.server, "eth0", address="02:00:00:00:dd:77")
    with plain.server.socket(family, DGRAM) as sock:  # what it sends makes it ask for us, and so tell its own
        sock.sendto(b"hello", (ROUTER[1][family], 9))
    until(lambda: plain.neighbour("wan", SERVER[family])[1] == bytes.fromhex("02000000dd77"), "the new address")
    assert ask_udp(plain, family)[-1] == CLIENT[family]


def test_a_link_that_goes_down_and_up(plain):
    ask_udp(plain, V4)
    plain.set(plain.middle, "wan", state="down")

    def told() -> bool:
        with prober(plain, V4) as sock:
            sock.sendto(b"probe", (SERVER[V4], 9))
        return plain.counters()["down"] + plain.counters()["no_route"] > 0

    until(told, "a packet that finds the link down")
    plain.set(plain.middle, "wan", state="up")
    assert ask_udp(plain, V4) == [CLIENT[V4]]


def test_a_route_to_a_network_behind_the_server(tmp_path, driver):
    """Static, its interface found by the gateway; and one that leads nowhere until its network is there."""
    sections = '[[route]]\nprefix = "203.0.113.0/24"\nvia = "198.51.100.10"\n[[route]]\nprefix = "10.9.0.0/16"\nvia = "10.8.0.1"\n'
    with network(tmp_path, driver, sections=sections) as net:
        with net.server.netlink() as netlink:
            netlink.addr("add", index=1, address="203.0.113.5", prefixlen=32)
        assert ask_udp(net, V4, to="203.0.113.5") == [CLIENT[V4]]


def test_routes_of_the_kernel_come_and_go(tmp_path):
    with network(tmp_path, "xdp-native", sections="[router]\nkernel_routes = true\n") as net:
        with net.server.netlink() as netlink:
            netlink.addr("add", index=1, address="203.0.113.5", prefixlen=32)
        net.middle.route("add", V4, "203.0.113.0/24", gateway=SERVER[V4])
        assert ask_udp(net, V4, to="203.0.113.5") == [CLIENT[V4]]
        net.middle.route("del", V4, "203.0.113.0/24", gateway=SERVER[V4])
        before = net.counters()["no_route"]

        def told() -> bool:
            with prober(net, V4) as sock:
                sock.sendto(b"probe", ("203.0.113.5", 9))
            return net.counters()["no_route"] > before

        until(told, "the route to go")


@by_family
def test_masquerade_behind_the_router_s_own_address(tmp_path, family):
    """The host has the address, too; what comes to it is the rules' all the same, as they translate to it."""
    rules = MASQUERADE.format(v4=ROUTER[1][V4], v6=ROUTER[1][V6])
    with network(tmp_path, "xdp-native", rules) as net:
        assert talk_tcp(net, family) == [ROUTER[1][family]]
        assert ask_udp(net, family)[-1] == ROUTER[1][family]
        with prober(net, family, hops=1) as sock:
            sock.sendto(b"probe", (SERVER[family], 33434))
            assert error_of(sock)[3] == ROUTER[0][family]
        with prober(net, family, hops=2) as sock:
            sock.sendto(b"probe", (SERVER[family], 33435))
            assert error_of(sock)[0] == errno.ECONNREFUSED


def test_a_router_says_that_new_rules_want_an_address_of_the_host(tmp_path, caplog):
    rules = MASQUERADE.format(v4=ROUTER[1][V4], v6=ROUTER[1][V6])
    with network(tmp_path, "xdp-native") as net:
        net.node.load_rules(parse(MASQUERADE.format(v4="203.0.113.9", v6="2001:db8:5::9"), "new.tc", Findings()))
        assert "restart" not in caplog.text
        net.node.load_rules(parse(rules, "new.tc", Findings()))
    assert f"{ROUTER[1][V4]}, {ROUTER[1][V6]}: the host's, and rules translate to it now" in caplog.text


@by_family
def test_translation_to_an_address_that_is_routed_to_us(tmp_path, driver, family):
    outside = {V4: "203.0.113.9", V6: "2001:db8:5::9"}
    with network(tmp_path, driver, MASQUERADE.format(v4=outside[V4], v6=outside[V6])) as net:
        with net.server.netlink() as netlink:
            for one in FAMILIES:
                netlink.route("add", family=one, dst=outside[one], dst_len=32 if one == V4 else 128, gateway=ROUTER[1][one])
        assert talk_tcp(net, family) == [outside[family]]
        assert ask_udp(net, family)[-1] == outside[family]


def test_the_kernel_is_asked_for_few_of_many_neighbours(plain):
    """A scan of an empty network, four times, as fast as a socket sends: each address is asked for once at most, and others are served."""
    ask_udp(plain, V4)
    with plain.client.socket(V4, DGRAM) as sock:
        for _ in range(4):
            for host in range(100, 250):
                with suppress(OSError):  # told that a host does not answer
                    sock.sendto(b"scan", (f"198.51.100.{host}", 9))
        until(lambda: plain.counters()["no_neighbour"] + plain.counters()["unreachable"] >= 300, "half of what was sent")
    assert ask_udp(plain, V4) == [CLIENT[V4]]
    counts = plain.counters()
    assert 64 <= counts["asked"] < counts["asked"] + counts["not_asked"]
    assert len(plain.node.neighbours.asked) <= 152


def test_lost_messages_lead_to_reading_everything_again(plain):
    """As if the kernel had had no room for them (ENOBUFS): what has changed meanwhile is there afterwards."""
    watching = plain.node.neighbours
    before = watching.syncs

    class Full:
        def recv(self, size: int) -> bytes:
            raise (OSError(errno.ENOBUFS, "") if not watching.overruns else BlockingIOError())

    assert watching._listen(Full())
    assert watching.overruns == 1
    plain.set(plain.middle, "wan", mtu=1400)
    until(lambda: watching.syncs > before, "everything to be read again")


def test_the_host_keeps_what_is_its_own(tmp_path):
    """By XDP: the node's namespace answers at its own addresses, while packets of others are routed."""
    with network(tmp_path, "xdp-native") as net:
        ask_udp(net, V4)
        for family in FAMILIES:
            with net.middle.socket(family, DGRAM) as own, net.client.socket(family, DGRAM) as sock:
                own.bind(("", 700))
                sock.sendto(b"hello", (ROUTER[0][family], 700))
                assert own.recv(100) == b"hello"
        assert net.counters()["own"] == 0
