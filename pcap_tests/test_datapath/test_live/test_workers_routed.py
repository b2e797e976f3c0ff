"""A node of two workers that routes and translates: real stacks talk through it as through one of one."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ctcore.steering import owner
from ctcore.types import Status
from datapath.live.figures import figures, look
from pcap_tests.netns import ROUTER, SERVER, V4, V6
from pcap_tests.test_datapath.test_live.routed_network import FAMILIES, PATIENCE, Network, ask_udp, network
from pcap_tests.test_datapath.test_live.services import FILE, download_by_ftp, ftp_server, home
from pcap_tests.test_datapath.test_live.test_router_traffic import DGRAM, MASQUERADE, talk_tcp

TWO = "workers = 2\n"
OUTSIDE = {V4: "203.0.113.9", V6: "2001:db8:5::9"}
POLICED = "tc filter add dev lan ingress protocol ip prio 1 flower ip_proto udp action police pkts_rate 1 pkts_burst 5 conform-exceed drop/pass\n"

pytestmark = pytest.mark.usefixtures("interfaces")
by_family = pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6"])


def tuples(net: Network) -> list[set[int]]:
    """By worker, whose both tuples of its connections are."""
    found = net.node.ask(lambda node: [tracker.conns()["flow"]["key"] for tracker in node.trackers]).result(PATIENCE)
    return [{owner(key.tobytes(), 2) for key in keys.reshape(-1)} for keys in found]


@contextmanager
def translating(folder: Path, rules: str = MASQUERADE.format(v4=OUTSIDE[V4], v6=OUTSIDE[V6])) -> Iterator[Network]:
    """Under addresses that the server sends to the router."""
    with network(folder, "packet", rules, top=TWO) as net:
        with net.server.netlink() as netlink:
            for family in FAMILIES:
                netlink.route("add", family=family, dst=OUTSIDE[family], dst_len=32 if family == V4 else 128, gateway=ROUTER[1][family])
        with net.middle.netlink() as netlink:  # the host sees AF_PACKET's frames as well, and says of IPv6 that it knows no route
            for family in FAMILIES:
                netlink.route("add", family=family, dst=OUTSIDE[family], dst_len=32 if family == V4 else 128, type="blackhole")
        yield net


@by_family
def test_many_talk_to_a_server_under_one_address(tmp_path: Path, family: int) -> None:
    with translating(tmp_path) as net:
        for _ in range(8):
            assert talk_tcp(net, family) == [OUTSIDE[family]]
        for size in (100, 5000):  # the larger ones go in fragments, both ways
            for _ in range(10):
                assert ask_udp(net, family, bytes(size)) == [OUTSIDE[family]]
        assert tuples(net) == [{0}, {1}]


@by_family
def test_errors_come_back_through_translation(tmp_path: Path, family: int) -> None:
    """Of a closed port; each question from another one, so that both workers have some."""
    with translating(tmp_path) as net:
        net.server.sysctl("ipv4/icmp_ratelimit" if family == V4 else "ipv6/icmp/ratelimit", 0)
        talk_tcp(net, family)  # so that all neighbours are known
        for _ in range(10):
            with net.client.socket(family, DGRAM) as sock:
                sock.settimeout(PATIENCE)
                sock.connect((SERVER[family], 9))
                sock.send(b"question")
                with pytest.raises(OSError) as error:
                    sock.recv(100)
                assert error.value.errno == errno.ECONNREFUSED


def test_neighbours_are_both_workers(tmp_path: Path) -> None:
    """Each has asked for the server by itself, or was told of it."""
    with network(tmp_path, "packet", top=TWO) as net:
        for _ in range(6):
            assert talk_tcp(net, V4)
        known = net.node.ask(lambda node: [len(worker.router.neighbours) for worker in node.workers]).result(PATIENCE)
        assert known[0] == known[1] >= 2
        stats = figures(net.node.ask(look).result(PATIENCE), net.node, 1.0)
        assert stats["router"]["neighbours"] == known[0] and stats["router"]["forwarded"] > 50
        assert len(stats["ifaces"]) == 4 and {iface["queue"] for iface in stats["ifaces"]} == {0, 1}


def test_a_policer_is_one(tmp_path: Path) -> None:
    """Five tokens, whoever spends them; a sixth datagram finds none."""
    with network(tmp_path, "packet", POLICED, top=TWO) as net:
        talk_tcp(net, V4)  # so that all neighbours are known
        with net.echo(DGRAM, V4) as seen:
            asked(net, seen)


def asked(net: Network, seen: list[str]) -> None:
    """By forty sockets at once."""
    with ExitStack() as stack:
        socks = [stack.enter_context(net.client.socket(V4, DGRAM)) for _ in range(40)]
        for sock in socks:
            sock.settimeout(0.1)
            sock.sendto(b"token", (SERVER[V4], 7))
        answered = sum(_answered(sock) for sock in socks)
    assert 5 <= answered <= 5 + 6, "a token a second comes while we wait"
    assert len(seen) == answered


def _answered(sock: socket.socket) -> bool:
    try:
        return sock.recv(100) == b"token"
    except TimeoutError:
        return False


# --- what helpers announce ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passive", [True, False], ids=["passive", "active"])
@by_family
def test_ftp_through_source_translation(tmp_path: Path, family: int, passive: bool) -> None:
    """Data connections have any ports; they are the control connection's worker's, who knows what was announced."""
    (tmp_path / "file").write_bytes(FILE)
    with translating(tmp_path, home(OUTSIDE)) as net, ftp_server(net.server, family, tmp_path):
        talk_tcp(net, family)  # so that all neighbours are known
        download_by_ftp(net.client, SERVER[family], 24, passive=passive)
        first, second = net.node.ask(lambda node: [tracker.conns() for tracker in node.trackers]).result(PATIENCE)
        expected = (first["status"] & Status.EXPECTED) != 0
        assert expected.sum() == 25 and not (second["status"] & Status.EXPECTED).any()
        elsewhere = [owner(key.tobytes(), 2) for key in first[expected]["flow"]["key"][:, 0]]
        assert any(elsewhere) or passive, "by their hash, some of 25 would be the other one's"
        strays = net.node.exchange.strays
        assert len(strays) == 50, "both tuples of each"
        assert net.node.ask(lambda node: node.trackers[0].flush()).result(PATIENCE) > 25
        assert len(strays) == 0


@by_family
def test_tftp_through_source_translation(tmp_path: Path, family: int) -> None:
    with translating(tmp_path, home(OUTSIDE)) as net:
        talk_tcp(net, family)
        for _ in range(6):
            tftp_by_hand(net, family)


def tftp_by_hand(net: Network, family: int) -> None:
    """RFC 1350: the answer comes from another port."""
    with net.server.socket(family, DGRAM) as well_known, net.server.socket(family, DGRAM) as transfer, net.client.socket(family, DGRAM) as sock:
        for one in (well_known, transfer, sock):
            one.settimeout(PATIENCE)
        well_known.bind((SERVER[family], 69))
        transfer.bind((SERVER[family], 0))
        sock.sendto(b"\0\1file\0octet\0", (SERVER[family], 69))
        _, peer = well_known.recvfrom(600)
        assert peer[0] == OUTSIDE[family]
        transfer.sendto(b"\0\3\0\1" + FILE[:100], peer)
        data, answered = sock.recvfrom(600)
        assert (data[4:], answered[1]) == (FILE[:100], transfer.getsockname()[1])
        sock.sendto(b"\0\4\0\1", answered)
        assert transfer.recv(600) == b"\0\4\0\1"
