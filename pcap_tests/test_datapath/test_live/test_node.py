"""A node between two real stacks: their traffic passes as rules say, what they see of each other is right, and it can be changed while it runs."""

from __future__ import annotations

import hashlib
import http.server
import logging
import socket
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctcore.filter import Filter
from datapath.errors import KernelError
from datapath.live.config import NodeConfig, load
from datapath.live.drivers import Wanted, open_interface
from datapath.live.node import Node
from datapath.live.umem import Umem
from datapath.pipeline.rules import RuleError
from pcap_tests.test_datapath.test_live.services import attended
from pcap_tests.test_datapath.test_live.wires import Wire

CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
CLIENT6, SERVER6 = "fd09::1", "fd09::2"
PUBLIC = "10.9.0.77"
# What the inside begins may pass, and what belongs to it comes back; what is no IP passes both ways.
WALL = """
tc filter add dev left ingress protocol {family} prio 1 chain 0 flower ct_state -trk action ct pipe action goto chain 1
tc filter add dev left ingress protocol {family} prio 1 chain 1 flower ct_state +trk+new action ct commit pipe action mirred egress redirect dev right
tc filter add dev left ingress protocol {family} prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev right
tc filter add dev left ingress protocol {family} prio 3 chain 1 flower ct_state +trk+rel action mirred egress redirect dev right
tc filter add dev right ingress protocol {family} prio 1 chain 0 flower ct_state -trk action ct pipe action goto chain 1
tc filter add dev right ingress protocol {family} prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev left
tc filter add dev right ingress protocol {family} prio 3 chain 1 flower ct_state +trk+rel action mirred egress redirect dev left
"""
REST = """
tc filter add dev left ingress protocol arp prio 9 chain 0 flower action mirred egress redirect dev right
tc filter add dev right ingress protocol arp prio 9 chain 0 flower action mirred egress redirect dev left
"""
NEIGHBOURS = """
tc filter add dev left ingress protocol ipv6 prio 5 chain 1 flower ip_proto icmpv6 action mirred egress redirect dev right
tc filter add dev right ingress protocol ipv6 prio 5 chain 1 flower ip_proto icmpv6 action mirred egress redirect dev left
"""
IPV4, BOTH = WALL.format(family="ip") + REST, WALL.format(family="ip") + WALL.format(family="ipv6").replace("prio ", "prio 1") + NEIGHBOURS + REST
TRANSLATING = f"""
tc filter add dev left ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev left ingress protocol ip prio 1 chain 1 flower ct_state +trk+new action ct commit nat src addr {PUBLIC} pipe action goto chain 2
tc filter add dev left ingress protocol ip prio 2 chain 1 flower ct_state +trk action goto chain 2
tc filter add dev left ingress protocol ip prio 1 chain 2 flower action mirred egress redirect dev right
tc filter add dev right ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev right ingress protocol ip prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev left
{REST}"""


def address(wire: Wire, *addresses: str) -> None:
    """Addresses of the far stack; IPv6 is turned on for one of these."""
    with wire.there.netlink() as netlink:
        index = netlink.link_lookup(ifname=wire.far)[0]
        netlink.link("set", index=1, state="up")
        for text in addresses:
            six = ":" in text
            if six:
                wire.there.sysctl(f"ipv6/conf/{wire.far}/accept_dad", 0)
                wire.there.sysctl(f"ipv6/conf/{wire.far}/disable_ipv6", 0)
            netlink.addr("add", index=index, address=text, prefixlen=64 if six else 24)


class Between:
    """Two stacks, and a node between them."""

    def __init__(self, node: Node, left: Wire, right: Wire, rules: Path) -> None:
        self.node, self.left, self.right, self.rules = node, left, right, rules

    def reload(self) -> None:
        """Read the rules again, and go on with them."""
        program = self.node.load_rules()
        self.node.ask(lambda node: node.take_rules(program)).result(10)

    def conns(self, **wanted: object) -> list[tuple[int, int]]:
        """Protocol and status of the connections that fit."""
        rows = self.node.ask(lambda node: node.pipeline.tracker.select(Filter(**wanted))).result(10)  # type: ignore[arg-type]
        return [(int(row["flow"][0]["key"]["proto"]), int(row["status"])) for row in rows]


def config(folder: Path, rules: str, driver: str) -> NodeConfig:
    (folder / "rules.tc").write_text(rules)
    ifaces = "".join(f'[[iface]]\nname = "{name}"\ndriver = "{driver}"\nring = 256\nfilter = {{ all = true }}\n' for name in ("left", "right"))
    (folder / "node.toml").write_text(f'rules = "rules.tc"\n{ifaces}[conntrack]\nmax = 1000\n')
    return load(str(folder / "node.toml"))


@pytest.fixture
def between(wires, tmp_path):
    """between(rules): a node with them between the stacks of CLIENT and SERVER."""

    @contextmanager
    def run(rules: str = IPV4, driver: str = "xdp-native") -> Iterator[Between]:
        left, right = wires("left"), wires("right")
        address(left, CLIENT, CLIENT6)
        address(right, SERVER, SERVER6)
        with left.here.entered():
            node = Node(config(tmp_path, rules, driver))
        worker = threading.Thread(target=node.work)
        worker.start()
        try:
            yield Between(node, left, right, tmp_path / "rules.tc")
        finally:
            node.stop()
            worker.join(10)
            node.umem.check()
            node.close()
        assert not worker.is_alive()

    return run


@contextmanager
def serving(wire: Wire, host: str, body: bytes) -> Iterator[int]:
    """An HTTP server at the far end; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("X-Client", self.client_address[0])
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    with attended(wire.there, lambda: Server((host, 0), Handler)) as port:
        yield port


def fetch(wire: Wire, host: str, port: int) -> tuple[str, str]:
    """Digest of what comes, and who the server thinks we are."""
    with wire.there.entered(), urllib.request.urlopen(f"http://{f'[{host}]' if ':' in host else host}:{port}/", timeout=10) as answer:
        return hashlib.sha256(answer.read()).hexdigest(), answer.headers["X-Client"]


@pytest.mark.parametrize("driver", ["xdp-native", "packet"])
def test_a_large_download_arrives_unchanged(between, driver):
    body = bytes(range(256)) * 40_000
    with between(driver=driver) as net, serving(net.right, SERVER, body) as port:
        assert fetch(net.left, SERVER, port) == (hashlib.sha256(body).hexdigest(), CLIENT)
        assert net.node.loop.ifaces[0].statistics()["rx_completed"] > 0, "local stacks leave checksums to their NIC"


def test_many_short_connections(between):
    with between() as net, serving(net.right, SERVER, b"short") as port:
        digests = {fetch(net.left, SERVER, port) for _ in range(200)}
        assert digests == {(hashlib.sha256(b"short").hexdigest(), CLIENT)}
        assert len(net.conns(proto=6)) == 200


def test_both_families(between):
    with between(BOTH) as net, serving(net.right, SERVER6, b"six") as port:
        assert fetch(net.left, SERVER6, port) == (hashlib.sha256(b"six").hexdigest(), CLIENT6)
        assert len(net.conns(family=6, proto=6)) == 1


def test_the_outside_begins_nothing(between):
    with between() as net, serving(net.left, CLIENT, b"inside") as port:
        with net.right.there.entered(), pytest.raises(TimeoutError):
            socket.create_connection((CLIENT, port), timeout=0.5)
        assert net.conns() == []
        assert net.node.loop.counters()["nobody"] > 0


def test_a_closed_port_is_refused_at_once_and_an_error_comes_back(between):
    """A RST is an answer, and an ICMP error is related: both come through to where the question was asked."""
    with between() as net, net.left.there.entered():
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((SERVER, 9), timeout=5)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talker:
            talker.settimeout(5)
            talker.connect((SERVER, 9))
            talker.send(b"question")
            with pytest.raises(ConnectionRefusedError):
                talker.recv(100)


def test_translated_both_ways(between):
    with between(TRANSLATING) as net, serving(net.right, SERVER, b"x" * 100_000) as port:
        with net.right.there.netlink() as netlink:  # nobody answers for the public address
            mac = _mac(net.left)
            netlink.neigh("add", dst=PUBLIC, lladdr=mac, ifindex=netlink.link_lookup(ifname=net.right.far)[0])
        assert fetch(net.left, SERVER, port) == (hashlib.sha256(b"x" * 100_000).hexdigest(), PUBLIC)


def _mac(wire: Wire) -> str:
    with wire.there.netlink() as netlink:
        return netlink.get_links(netlink.link_lookup(ifname=wire.far)[0])[0].get_attr("IFLA_ADDRESS")


def test_other_rules_while_a_download_is_under_way(between):
    """Connections stay; what new rules forbid is forbidden from the next packet on."""
    body = bytes(1_000_000)
    with between() as net, serving(net.right, SERVER, body) as port:
        done = []
        for _ in range(5):
            worker = threading.Thread(target=lambda: done.append(fetch(net.left, SERVER, port)[0]))
            worker.start()
            net.reload()
            worker.join(20)
        assert done == [hashlib.sha256(body).hexdigest()] * 5
        net.rules.write_text(REST)
        net.reload()
        with net.left.there.entered(), pytest.raises(TimeoutError):
            socket.create_connection((SERVER, port), timeout=0.5)


def test_wrong_rules_leave_the_old_ones(between):
    with between() as net, serving(net.right, SERVER, b"still") as port:
        net.rules.write_text("tc filter add dev left ingress flower nonsense 1\n")
        with pytest.raises(RuleError, match=r"rules\.tc:1:"):
            net.reload()
        assert fetch(net.left, SERVER, port)[0] == hashlib.sha256(b"still").hexdigest()


def test_what_fails_while_opening_leaves_nothing_open(wires, tmp_path):
    left = wires("left")
    with left.here.entered():
        for _ in range(2):
            with pytest.raises(KernelError, match="right"):
                Node(config(tmp_path, IPV4, "xdp-native"))
        open_interface(Umem(512), "left", Wanted(driver="xdp-native")).close()


def test_jobs_after_the_end_are_refused(between, caplog):
    caplog.set_level(logging.INFO, "ctmirror")
    with between() as net:
        node = net.node
    with pytest.raises(RuntimeError, match="stopping"):
        node.ask(lambda node: node).result(5)
