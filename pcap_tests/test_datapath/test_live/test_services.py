"""Services behind a node that routes, tracks and translates: HTTP, FTP, TFTP, names, ping, hairpins; real clients and servers at both ends."""

from __future__ import annotations

import hashlib
import http.client
import http.server
import logging
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import tftpy

from ctcore.config import Config
from ctcore.tracker import Tracker
from datapath import fields
from datapath.export import conntrack_line
from datapath.live import kernel_conntrack
from datapath.live.control import Control
from datapath.oracle import ruleset
from pcap_tests.netns import CLIENT, ROUTER, SERVER, V4, V6, Host
from pcap_tests.test_datapath.command import run
from pcap_tests.test_datapath.test_live.routed_network import FAMILIES, PATIENCE, Network, ask_udp, network, until
from pcap_tests.test_datapath.test_live.services import FILE, download_by_ftp, ftp_server, home, running, web

STREAM, DGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
PROTOCOL = {V4: "ip", V6: "ipv6"}
VIRTUAL = {V4: "203.0.113.80", V6: "2001:db8:80::80"}

pytestmark = pytest.mark.usefixtures("interfaces")
by_family = pytest.mark.parametrize("family", FAMILIES, ids=["IPv4", "IPv6"])


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Network]:
    """Each host knows the other's neighbour already: a router drops what it has to ask for one for."""
    with network(tmp_path, "xdp-native", home(ROUTER[1])) as net:
        for family in FAMILIES:
            ask_udp(net, family)
        yield net


# --- HTTP -------------------------------------------------------------------------------------------------------------------------------


def fetched(net: Network, address: str, size: int, times: int = 1) -> set[str]:
    """So many requests, each on a connection of its own; whom the server has seen."""
    seen = set()
    with net.client.entered():
        for _ in range(times):
            link = http.client.HTTPConnection(address, 80, timeout=PATIENCE)
            link.request("GET", f"/{size}")
            answer = link.getresponse()
            seen.add(answer.headers["X-From"])
            assert answer.status == 200 and answer.read() == FILE[:size]
            link.close()
    return seen


@by_family
def test_thousands_of_short_connections(house, family):
    with web(house.server, family), ThreadPoolExecutor(4) as clients:
        seen = list(clients.map(lambda _: fetched(house, SERVER[family], 300, 500), range(4)))
    assert set().union(*seen) == {ROUTER[1][family]}
    tracked = house.node.ask(lambda node: node.pipeline.tracker.conns()).result(PATIENCE)
    assert tracked["flow"]["id"].max() >= 2000, "some have had the ports of others that were closed"


@pytest.mark.parametrize(("family", "size"), [(V4, 1 << 30), (V6, 1 << 27)], ids=["IPv4", "IPv6"])
def test_a_gigabyte_arrives_as_it_was_sent(house, family, size):
    check = hashlib.blake2b()
    with web(house.server, family), house.client.entered():
        link = http.client.HTTPConnection(SERVER[family], 80, timeout=PATIENCE)
        link.request("GET", f"/{size}")
        answer = link.getresponse()
        while piece := answer.read(1 << 20):
            check.update(piece)
        link.close()
    expected, left = hashlib.blake2b(), size
    while left:
        expected.update(FILE[:left])
        left -= min(left, len(FILE))
    assert check.digest() == expected.digest()
    flows = house.node.ask(lambda node: node.pipeline.flows.counters()).result(PATIENCE)
    assert flows["served"] > 1000, "it went by the flow table"


# --- files -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passive", [True, False], ids=["passive", "active"])
@by_family
def test_ftp_through_source_translation(house, tmp_path, family, passive):
    """Active: the client's PORT or EPRT names an address that nobody can reach; what the server opens was announced."""
    (tmp_path / "file").write_bytes(FILE)
    with ftp_server(house.server, family, tmp_path):
        download_by_ftp(house.client, SERVER[family], 3, passive=passive)
    conns = house.node.ask(lambda node: node.pipeline.tracker.conns()).result(PATIENCE)
    masters = [int(conn["master"]) for conn in conns if int(conn["flow"][0]["key"]["dport"]) != 21 and int(conn["flow"][0]["key"]["proto"]) == 6]
    assert len(masters) == 4 and len(set(masters)) == 1 and masters[0] >= 0, "each transfer is the control connection's"


@by_family
def test_tftp_through_source_translation(house, tmp_path, family):
    (tmp_path / "file").write_bytes(FILE[:50_000])
    if family == V6:
        return tftp_by_hand(house)
    logging.getLogger("tftpy").setLevel(logging.ERROR)
    server = tftpy.TftpServer(str(tmp_path))
    with running(house.server, lambda: server.listen(SERVER[V4], 69, timeout=1), lambda: server.stop(now=True)), house.client.entered():
        assert server.is_running.wait(PATIENCE)
        tftpy.TftpClient(SERVER[V4], 69).download("file", str(tmp_path / "got"), timeout=5)
    assert (tmp_path / "got").read_bytes() == FILE[:50_000]


def tftp_by_hand(net: Network) -> None:
    """RFC 1350 over IPv6, which the library's server does not speak: the answer comes from another port."""
    with net.server.socket(V6, DGRAM) as well_known, net.server.socket(V6, DGRAM) as transfer, net.client.socket(V6, DGRAM) as sock:
        well_known.bind((SERVER[V6], 69))
        transfer.bind((SERVER[V6], 0))
        sock.sendto(b"\0\1file\0octet\0", (SERVER[V6], 69))
        _, peer = well_known.recvfrom(600)
        assert peer[0] == ROUTER[1][V6]
        transfer.sendto(b"\0\3\0\1" + FILE[:100], peer)
        data, answered = sock.recvfrom(600)
        assert (data[4:], answered[1]) == (FILE[:100], transfer.getsockname()[1])
        sock.sendto(b"\0\4\0\1", answered)
        assert transfer.recv(600) == b"\0\4\0\1"


# --- datagrams ----------------------------------------------------------------------------------------------------------------------------


@by_family
def test_names_are_asked_for_from_a_thousand_ports(house, family):
    """Each question from a port of its own, like a resolver's."""
    with house.echo(DGRAM, family) as seen:
        for i in range(1000):
            question = struct.pack("!6H", i, 0x100, 1, 0, 0, 0) + b"\7example\3com\0\0\1\0\1"
            with house.client.socket(family, DGRAM) as sock:
                sock.connect((SERVER[family], 7))
                sock.send(question)
                assert sock.recv(512) == question
    assert set(seen) == {ROUTER[1][family]}


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


@by_family
def test_pings_have_their_echoes(house, family):
    """From sockets as ping(8) has them, several at a time, and of a size that takes fragments."""
    asked, protocol = {V4: 8, V6: 128}[family], {V4: socket.IPPROTO_ICMP, V6: socket.IPPROTO_ICMPV6}[family]
    for size in (0, 56, 1400, 4000):
        socks = [house.client.socket(family, DGRAM, protocol) for _ in range(3)]
        for n, sock in enumerate(socks):
            sock.connect((SERVER[family], 0))
            sock.send(struct.pack("!BBHHH", asked, 0, 0, 0, n) + FILE[:size])
        for n, sock in enumerate(socks):
            answer = sock.recv(8192)
            assert answer[0] == {V4: 0, V6: 129}[family] and answer[6:] == struct.pack("!H", n) + FILE[:size]
            sock.close()


@by_family
def test_large_datagrams_go_in_fragments_both_ways(house, family):
    with house.echo(DGRAM, family) as seen, house.client.socket(family, DGRAM) as sock:
        for size in (1473, 8000, 40_000, 65_000):
            sock.sendto(FILE[:size], (SERVER[family], 7))
            assert sock.recv(1 << 16) == FILE[:size]
    assert set(seen) == {ROUTER[1][family]}


# --- destinations translated -------------------------------------------------------------------------------------------------------------

IN = "tc filter add dev lan ingress protocol {p} prio"
FORWARDED = (
    IN
    + """ 1 flower dst_ip {virtual} ip_proto tcp dst_port 80 action ct commit nat dst addr {server} port 8080
tc filter add dev wan ingress protocol {p} prio 1 flower action ct nat
"""
)
HAIRPIN = f"""{IN} 1 flower dst_ip {{virtual}} ip_proto tcp action ct commit zone 1 nat dst addr {{client}}
{IN} 2 flower dst_ip {{own}} ip_proto tcp action ct zone 2 nat pipe action ct zone 1 nat
tc filter add dev lan egress protocol {{p}} prio 1 flower dst_ip {{client}} src_ip {{client}} action ct commit zone 2 nat src addr {{own}}
"""


@by_family
def test_a_port_of_a_virtual_address_is_a_server_s(tmp_path, family):
    rules = FORWARDED.format(p=PROTOCOL[family], virtual=VIRTUAL[family], server=SERVER[family])
    with network(tmp_path, "xdp-native", rules) as net, web(net.server, family, 8080):
        assert fetched(net, VIRTUAL[family], 100_000, 20) == {CLIENT[family]}


@by_family
def test_a_host_reaches_its_own_service_by_its_outer_address(tmp_path, family):
    """A hairpin: out and in by the same interface, both addresses translated, each in a zone of its own."""
    rules = HAIRPIN.format(p=PROTOCOL[family], virtual=VIRTUAL[family], client=CLIENT[family], own=ROUTER[0][family])
    with network(tmp_path, "xdp-native", rules) as net, web(net.client, family):
        assert fetched(net, VIRTUAL[family], 100_000, 20) == {ROUTER[0][family]}


# --- rates --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@by_family
def test_streams_at_full_rate(house, family, up):
    """Two seconds of four TCP connections, as iperf3 has them. What was sent has arrived, all of it."""
    with house.server.socket(family, STREAM) as listener:
        listener.bind((SERVER[family], 5201))
        listener.listen()
        pairs = []
        for _ in range(4):
            sock = house.client.socket(family, STREAM)
            sock.connect((SERVER[family], 5201))
            pairs.append((sock, listener.accept()[0]) if up else (listener.accept()[0], sock))
    totals: dict[str, int] = {"sent": 0, "received": 0}
    lock = threading.Lock()
    ended = threading.Event()

    def count(what: str, n: int) -> None:
        with lock:
            totals[what] += n

    def push(sock: socket.socket) -> None:
        while not ended.is_set():
            count("sent", sock.send(FILE))
        sock.shutdown(socket.SHUT_WR)

    def pull(sock: socket.socket) -> None:
        while piece := sock.recv(1 << 20):
            count("received", len(piece))

    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(push, sender) for sender, _ in pairs] + [pool.submit(pull, receiver) for _, receiver in pairs]
        ended.wait(2)
        ended.set()
        for each in work:
            each.result(PATIENCE)
    for sender, receiver in pairs:
        sender.close()
        receiver.close()
    assert totals["received"] == totals["sent"] > 10 << 20


@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
@by_family
def test_datagrams_at_a_set_rate(house, family, up):
    """20,000 of 1,000 bytes, a hundred every 5 ms: most arrive, none twice, none changed."""
    near, far = (house.client, house.server) if up else (house.server, house.client)
    with far.socket(family, DGRAM) as receiver, near.socket(family, DGRAM) as sender:
        receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE
        receiver.bind((SERVER[family] if up else CLIENT[family], 5201))
        if up:
            sender.connect((SERVER[family], 5201))
        else:  # the client asks first, so that the server may answer
            sender.bind((SERVER[family], 5202))
            receiver.connect((SERVER[family], 5202))
            receiver.send(b"start")
            sender.connect(sender.recvfrom(100)[1])
        pause = threading.Event()
        for i in range(20_000):
            sender.send(i.to_bytes(4, "big") + FILE[:996])
            if i % 100 == 0:
                pause.wait(0.005)
        numbers: list[int] = []
        receiver.settimeout(0.5)
        try:
            while True:
                data = receiver.recv(2048)
                assert data[4:] == FILE[:996]
                numbers.append(int.from_bytes(data[:4], "big"))
        except TimeoutError:
            pass
    assert len(set(numbers)) == len(numbers) > 19_000


# --- the kernel's own conntrack ------------------------------------------------------------------------------------------------------------

TRACKED = "".join(
    f"tc filter add dev {dev} {hook} protocol {p} prio {n} flower action ct commit pipe action pass\n"
    for dev, hook in (("lan", "ingress"), ("lan", "egress")) for n, p in ((1, "ip"), (2, "ipv6"))
)  # fmt: skip


def listed(text: str) -> list[str]:
    """conntrack's lines without what two who look at different times, and one of whom does not count packets, say differently."""
    plain = re.sub(r"^(\w+ +\d+) \d+ ", r"\1 ", re.sub(r" (packets|bytes|mark|use)=\d+", "", text), flags=re.MULTILINE)
    return sorted(
        line for line in plain.splitlines() if not line.startswith("icmpv6 ")
    )  # neighbour discovery: the node's own is none of the client's


def listed_by_kernel(host: Host) -> list[str]:
    """What the kernel has of a namespace, in the same words."""
    tracker = Tracker(Config(max=1000))
    with host.entered():
        kernel_conntrack.adopt([tracker], time.time_ns())
    return listed("\n".join(conntrack_line(record) for record in fields.conn_records(tracker.conns(), tracker.config.hz, False)))


def test_what_the_node_lists_is_what_the_client_s_kernel_lists(tmp_path, capfd):
    """Connections of all kinds, at all stages: the same tuples, states and flags."""
    with (
        network(tmp_path, "xdp-native", TRACKED, top="flowtable = false\n") as net,
        Control(net.node, str(tmp_path / "socket")),
        ExitStack() as stack,
    ):
        ruleset.load(net.client, Config())
        for family in FAMILIES:
            stack.enter_context(web(net.server, family))
            fetched(net, SERVER[family], 1000, 5)
            echo = stack.enter_context(net.echo(DGRAM, family))
            talking, once, opened, refused = (stack.enter_context(net.client.socket(family, kind)) for kind in (DGRAM, DGRAM, STREAM, STREAM))
            talking.connect((SERVER[family], 7))
            for _ in range(3):
                talking.send(b"hello")
                talking.recv(100)
            once.sendto(b"hello", ({V4: "198.51.100.77", V6: "2001:db8:2::77"}[family], 9))
            opened.connect((SERVER[family], 80))
            with pytest.raises(ConnectionRefusedError):
                refused.connect((SERVER[family], 81))
            assert echo
        with net.client.socket(V4, DGRAM, socket.IPPROTO_ICMP) as ping:
            ping.sendto(struct.pack("!BBHHH", 8, 0, 0, 0, 1), (SERVER[V4], 0))
            ping.recv(100)

        def agree() -> bool:
            code, out, _ = run(capfd, "conntrack", "-L", "--socket", str(tmp_path / "socket"))
            found.update(node=listed(out), kernel=listed_by_kernel(net.client))
            return code == 0 and found["node"] == found["kernel"]

        found: dict[str, list[str]] = {}
        with suppress(AssertionError):  # the difference says more
            until(agree, "the same list")
        assert found["node"] == found["kernel"]
        said = "\n".join(found["node"])
        assert len(found["node"]) == 2 * (5 + 1 + 1 + 1) + 1, "the one that was refused is gone, as nothing but a RST came back"
        assert all(word in said for word in ("ESTABLISHED", "TIME_WAIT", "[UNREPLIED]", "[ASSURED]", "icmp"))
