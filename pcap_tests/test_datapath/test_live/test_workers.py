"""A node with several workers between two real stacks: what each connection's packets meet is one worker, whichever queue they come by; and what is
asked of the node is answered by all of them as by one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ctcore.errors import ConfigError
from ctcore.filter import Filter
from ctcore.steering import owner
from datapath.cli import main
from datapath.live import state_file
from datapath.live.client import Client
from datapath.live.config import load
from datapath.live.control import Control
from datapath.live.exposition import PLAIN, Exposition
from datapath.live.node import Node
from datapath.pipeline.rules import RuleError
from pcap_tests.required import cannot
from pcap_tests.test_datapath.test_live.services import attended
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, PUBLIC, REST, SERVER, TRANSLATING, Between, _mac, address, fetch, serving
from pcap_tests.test_datapath.test_live.test_xdp_filter import attached
from pcap_tests.test_datapath.test_live.wires import Wire, until

SHORT = (hashlib.sha256(b"short").hexdigest(), CLIENT)
ROOT = Path(__file__).parents[3]
DRIVERS = ["xdp-native", "packet"]


def written(folder: Path, rules: str, driver: str, workers: int = 2, more: str = "") -> str:
    """A node's configuration; its name."""
    (folder / "rules.tc").write_text(rules)
    ifaces = "".join(f'[[iface]]\nname = "{name}"\ndriver = "{driver}"\nring = 256\nfilter = {{ all = true }}\n' for name in ("left", "right"))
    head = f'rules = "rules.tc"\nworkers = {workers}\n{more}'
    (folder / "node.toml").write_text(f"{head}{ifaces}[conntrack]\nmax = 4000\n[control]\nsocket = '{folder}/socket'\n")
    return str(folder / "node.toml")


class Working(Between):
    """Two stacks, and a node of several workers between them that is at work."""

    def of_each(self, what: Callable[[object], object]) -> list:
        return [worker.ask(what).result(10) for worker in self.node.workers]

    def tuples(self, **wanted: object) -> list[list[tuple[bytes, bytes]]]:
        """By worker, both tuples of each connection."""
        found = self.of_each(lambda worker: worker.pipeline.tracker.select(Filter(**wanted)))
        return [[tuple(key.tobytes() for key in row["flow"]["key"]) for row in rows] for rows in found]

    def total(self, name: str) -> int:
        return self.node.ask(lambda node: node.loop_counters()).result(10)[name]


@contextmanager
def at_work(node: Node) -> Iterator[Node]:
    thread = threading.Thread(target=node.work)
    thread.start()
    try:
        yield node
        node.ask(lambda node: [tracker.check() for tracker in node.trackers]).result(10)
    finally:
        node.stop()
        thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def working(wires, tmp_path):
    """working(rules): a node of two workers with them between the stacks of CLIENT and SERVER."""

    @contextmanager
    def run(rules: str = IPV4, driver: str = "xdp-native", *, workers: int = 2, queues: int = 2) -> Iterator[Working]:
        left, right = wires("left", queues=queues), wires("right", queues=queues)
        address(left, CLIENT)
        address(right, SERVER)
        with left.here.entered():
            node = Node(load(written(tmp_path, rules, driver, workers)))
        try:
            with at_work(node):
                yield Working(node, left, right, tmp_path / "rules.tc")
            node.umem.check()
        finally:
            node.close()
        assert set(node.umem.places()) <= {"free", "held"}

    return run


def own_tuples(net: Working, reply: bool = True) -> int:
    """Each connection is in the table of the worker that its tuples belong to. How many there are."""
    for number, keys in enumerate(net.tuples()):
        for pair in keys:
            assert {owner(key, len(net.node.workers)) for key in pair} == {number}
    return sum(map(len, net.tuples()))


@pytest.mark.parametrize("driver", DRIVERS)
def test_many_connections_are_spread_over_both_workers(working, driver):
    with working(driver=driver) as net, serving(net.right, SERVER, b"short") as port:
        assert {fetch(net.left, SERVER, port) for _ in range(100)} == {SHORT}
        assert own_tuples(net) == 100
        assert all(20 < len(keys) < 80 for keys in net.tuples())
        assert net.total("handed") > 0 and net.total("handed") == net.total("taken")
        assert net.total("lane_full") == 0


def test_a_large_download_arrives_unchanged(working):
    body = bytes(range(256)) * 40_000
    with working() as net, serving(net.right, SERVER, body) as port:
        found = [fetch(net.left, SERVER, port)[0] for _ in range(4)]
        assert found == [hashlib.sha256(body).hexdigest()] * 4


def test_three_workers_where_there_are_four_queues(working):
    with working(workers=3, queues=4) as net, serving(net.right, SERVER, b"short") as port:
        assert {fetch(net.left, SERVER, port) for _ in range(60)} == {SHORT}
        assert 55 <= own_tuples(net) <= 60 and all(net.tuples()), "a port may have been drawn twice"


def test_translated_tuples_come_back_to_who_chose_them(working):
    """The public port is chosen so that answers belong to the same worker as what was asked."""
    with working(TRANSLATING) as net, serving(net.right, SERVER, b"short") as port:
        known(net)
        assert {fetch(net.left, SERVER, port) for _ in range(100)} == {(SHORT[0], PUBLIC)}
        assert own_tuples(net) == 100
        changed = [pair for keys in net.tuples() for pair in keys if pair[0][32:34] != pair[1][34:36]]
        assert 20 < len(changed) < 80, "half of the ports could stay"


def known(net: Working) -> None:
    """Nobody answers for the public address."""
    with net.right.there.netlink() as netlink:
        netlink.neigh("add", dst=PUBLIC, lladdr=_mac(net.left), ifindex=netlink.link_lookup(ifname=net.right.far)[0])


def test_errors_meet_the_connections_that_they_are_about(working):
    """Each from a port of its own: a RST is an answer, and an ICMP error goes by what it quotes."""
    with working() as net, net.left.there.entered():
        net.right.there.sysctl("ipv4/icmp_ratelimit", 0)
        for _ in range(20):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((SERVER, 9), timeout=5)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talker:
                talker.settimeout(5)
                talker.connect((SERVER, 9))
                talker.send(b"question")
                with pytest.raises(ConnectionRefusedError):
                    talker.recv(100)


@pytest.mark.parametrize("rules", [IPV4, TRANSLATING], ids=["plain", "translated"])
def test_fragments_follow_their_first_one(working, rules):
    """Of questions and answers that are cut up: whoever gathers a datagram, its owner puts it together."""
    with working(rules) as net, echoing(net.right) as port, net.left.there.entered():
        known(net)
        for size in (3000, 10_000, 100):
            for _ in range(20):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as talker:
                    talker.settimeout(5)
                    talker.connect((SERVER, port))
                    question = os.urandom(size)
                    talker.send(question)
                    assert talker.recv(65535) == question
        assert 55 <= own_tuples(net) <= 60 and all(net.tuples()), "a port may have been drawn twice"
        assert net.total("fragments_late") == net.total("fragments_crowded") == net.total("fragments_untold") == 0


@contextmanager
def echoing(wire: Wire) -> Iterator[int]:
    """A UDP server that says what it hears; its port."""
    with wire.there.entered():
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((SERVER, 0))
    server.settimeout(0.1)
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                data, who = server.recvfrom(65535)
                server.sendto(data, who)
            except TimeoutError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server.getsockname()[1]
    finally:
        ended.set()
        thread.join(10)
        server.close()


def test_other_rules_while_downloads_are_under_way(working):
    body = bytes(1_000_000)
    with working() as net, serving(net.right, SERVER, body) as port:
        done: list[str] = []
        for _ in range(5):
            clients = [threading.Thread(target=lambda: done.append(fetch(net.left, SERVER, port)[0])) for _ in range(4)]
            for client in clients:
                client.start()
            net.reload()
            for client in clients:
                client.join(20)
        assert done == [hashlib.sha256(body).hexdigest()] * 20
        net.rules.write_text(REST)
        net.reload()
        with net.left.there.entered(), pytest.raises(TimeoutError):
            socket.create_connection((SERVER, port), timeout=0.5)


def test_what_is_asked_of_the_node_is_answered_by_all_workers(working, tmp_path):
    """Lists, counts, figures and events are those of one tracker; ordinals are unique."""
    with working() as net, serving(net.right, SERVER, b"short") as port, Control(net.node, str(tmp_path / "socket")), ExitStack() as stack:
        client, listener = (stack.enter_context(Client(str(tmp_path / "socket"))) for _ in range(2))
        parts = listener.events(kinds=["new"])
        next(parts)
        for _ in range(50):
            fetch(net.left, SERVER, port)
        events: list = []
        while len(events) < 50:
            events += next(parts)["events"]
        conns = list(client.conns("list"))
        assert len(conns) == client.ask("count")["count"] == 50
        assert client.ask("count")["max"] == 4000
        ordinals = {conn["conn"] for conn in conns}
        assert len(ordinals) == 50 and {ordinal % 2 for ordinal in ordinals} == {0, 1}
        assert {event["conn"] for event in events} == ordinals
        numbers = [event["seq"] for event in events]
        assert numbers == sorted(set(numbers)), "events of other kinds lie between"
        stats = client.ask("stats")
        assert stats["table"] == {"connections": 50, "max": 4000, "zones": {"0": 50}}
        assert stats["tracker"]["new"] == 50 and len(stats["workers"]) == 2
        assert stats["loop"]["frames"] == sum(worker["frames"] for worker in stats["workers"]) == stats["packets"]
        assert sum(rule["packets"] for rule in stats["rules"]["top"]) > 50
        assert client.ask("delete", which={"sport": conns[0]["original"]["sport"]})["count"] == 1
        assert client.ask("flush")["count"] == 49 and net.node.ask(lambda node: node.count).result(10) == 0


def test_what_two_workers_save_others_take_up(wires, tmp_path):
    """Two, one, three: connections live on, whoever has them, and what they say arrives."""
    left, right = wires("left", queues=4), wires("right", queues=4)
    address(left, CLIENT)
    address(right, SERVER)
    path = str(tmp_path / "state")
    talkers: list[socket.socket] = []
    with echoing_tcp(right) as port:
        for workers in (2, 1, 3):
            with left.here.entered():
                node = Node(load(written(tmp_path, IPV4, "xdp-native", workers)))
            with node:
                found = state_file.restore_node(node, path, 60)
                assert found is None or (found.conns, found.left_out) == (20, 0)
                with at_work(node):
                    if not talkers:
                        with left.there.entered():
                            talkers = [socket.create_connection((SERVER, port), timeout=5) for _ in range(20)]
                    for talker in talkers:
                        talker.settimeout(5)
                        talker.send(b"still there?")
                        assert talker.recv(100) == b"still there?"
                    assert node.ask(lambda node: node.count).result(10) == 20, "none began anew"
                    assert node.ask(lambda node: sum(tracker.counters()["new"] for tracker in node.trackers)).result(10) == (
                        20 if found is None else 0
                    )
                    state_file.save_node(node, path)
        for talker in talkers:
            talker.close()


@contextmanager
def echoing_tcp(wire: Wire, host: str = SERVER) -> Iterator[int]:
    """A TCP server that says what it hears; its port."""

    class Echo(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while data := self.request.recv(1000):
                self.request.send(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with attended(wire.there, lambda: Server((host, 0), Echo)) as port:
        yield port


def test_rules_that_several_workers_cannot_do(tmp_path):
    text = "tc filter add dev left ingress protocol ip prio 1 flower action pedit ex munge ip dst set 10.0.0.1 pipe action pass\n"
    tracked = "tc filter add dev left ingress protocol ip prio 2 flower action ct commit\n"
    helped = "tc filter add dev left ingress protocol ip prio 1 flower ip_proto tcp dst_port 2121 action ct commit helper ipv4-tcp-ftp\n"
    for rules, said in (
        (tracked + text, r"rules\.tc:2.*pedit ip dst among rules with `ct`: expected `ct nat` instead, or workers = 1"),
        (helped, r"rules\.tc:1.*helper ftp: expected a rule for ip_proto tcp dst_port 21, whose connections are one worker's, or workers = 1, not 2"),
    ):
        with pytest.raises(RuleError, match=said):
            Node(load(written(tmp_path, rules, "packet")))


def test_fewer_queues_than_workers(wires, tmp_path):
    wire = wires("left", queues=2)
    wires("right", queues=2)
    with (
        wire.here.entered(),
        pytest.raises(ConfigError, match=r"left: 2 queues: expected 3 at least, one for each worker \(ethtool -L left combined 3"),
    ):
        Node(load(written(tmp_path, IPV4, "xdp-native", 3)))


@pytest.mark.parametrize(
    "more, said",
    [
        ("cpu = 0\n", r"node\.toml:3: cpu: expected `cpus`, one for each of 2 workers"),
        ("cpus = [0]\n", r"node\.toml:3: cpus: 1 of them: expected one for each of 2 workers"),
        ("cpus = [0, 0]\n", r"node\.toml:3: cpus: expected each CPU once"),
        ("cpu = 0\ncpus = [0, 1]\n", r"node\.toml:3: cpu: expected `cpu` or `cpus`, not both"),
    ],
)
def test_cpus_that_contradict_the_workers(tmp_path, more, said):
    with pytest.raises(ConfigError, match=said):
        load(written(tmp_path, IPV4, "packet", 2, more))


def test_a_cpu_that_is_not_there(tmp_path):
    config = load(written(tmp_path, IPV4, "packet", 2, "cpus = [0, 100000]\n"))
    with pytest.raises(ConfigError, match=r"cpus: 100000: expected one of 0"):
        Node(config)


def test_each_worker_has_a_cpu_of_its_own(wires, tmp_path):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        cannot("one CPU: two workers have no CPU each")
    wire = wires("left", queues=2)
    wires("right", queues=2)
    with wire.here.entered():
        node = Node(load(written(tmp_path, IPV4, "xdp-native", 2, f"cpus = {cpus}\n")))
    with node, at_work(node):
        found = [worker.ask(lambda _: os.sched_getaffinity(0)).result(10) for worker in node.workers]
    assert found == [{cpu} for cpu in cpus]


def test_killed_it_leaves_nothing(wires, tmp_path):
    """kill -9 of a node with two workers: no program stays at an interface, and the next node starts."""
    left, right = wires("left", queues=2), wires("right", queues=2)
    name = written(tmp_path, IPV4, "xdp-native")
    with left.here.entered():
        node = subprocess.Popen([sys.executable, "-m", "datapath", "run", "--config", name], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert node.stderr is not None
        while "running" not in (line := node.stderr.readline()):
            assert line, "it has ended"
        assert attached(left) and attached(right)
        os.kill(node.pid, signal.SIGKILL)
        node.wait()
        until(lambda: not attached(left) and not attached(right), "no program any more")
        with left.here.entered():
            Node(load(name)).close()
    finally:
        node.kill()
        node.wait()
        node.stderr.close()


def test_a_tap_has_a_queue_for_each_worker(wires, tmp_path):
    """A stack behind it talks through both."""
    right = wires("right", queues=2)
    address(right, SERVER)
    name = written(tmp_path, IPV4, "packet")
    text = Path(name).read_text().replace('name = "left"\ndriver = "packet"', 'name = "left"\ndriver = "tap"')
    Path(name).write_text(text)
    with right.here.entered():
        node = Node(load(name))
    with node, at_work(node), right.here.netlink() as netlink:
        index = netlink.link_lookup(ifname="left")[0]
        netlink.link("set", index=index, state="up")
        netlink.addr("add", index=index, address=CLIENT, prefixlen=24)
        with serving(right, SERVER, b"short") as port:
            for _ in range(40):
                with right.here.entered(), urllib.request.urlopen(f"http://{SERVER}:{port}/", timeout=10) as answer:
                    assert answer.read() == b"short"
        counts = node.ask(
            lambda node: [[len(tracker.conns()) for tracker in node.trackers], [worker.loop.counters()["taken"] for worker in node.workers]]
        )
        conns, taken = counts.result(10)
        assert sum(conns) == 40 and all(conns)
        assert sum(taken) > 0


def test_a_worker_that_fails_ends_the_others(wires, tmp_path, monkeypatch):
    wire = wires("left", queues=2)
    wires("right", queues=2)
    with wire.here.entered():
        node = Node(load(written(tmp_path, IPV4, "xdp-native")))
    with node:
        node.opened[0].ifaces[1].close()  # of the second worker
        with pytest.raises(RuntimeError, match="left: is closed"):
            node.work()
        with pytest.raises(RuntimeError, match="stopping"):
            node.ask(lambda node: node).result(5)


def test_what_check_says_of_rules_that_need_one_worker(tmp_path, capfd):
    rules = "tc filter add dev left ingress protocol ip prio 1 flower action ct commit helper ipv4-tcp-ftp\n"
    assert main(["run", "--config", written(tmp_path, rules, "packet"), "--check"]) == 2
    assert "rules.tc:1" in (said := capfd.readouterr().err) and said.count("\n") == 1
    assert main(["run", "--config", written(tmp_path, rules, "packet", 1), "--check"]) == 0


def test_metrics_are_of_all_workers(working):
    """What Prometheus gets counts the connections of both tables."""
    with working() as net, serving(net.right, SERVER, b"short") as port:
        for _ in range(30):
            fetch(net.left, SERVER, port)
        said = asyncio.run(Exposition(net.node).text(PLAIN)).decode()
        found = [float(line.split(" ")[1]) for line in said.splitlines() if line.startswith("ctmirror_connections{")]
        assert sum(found) == 30
