"""A node that offloads to the kernel's TC, as far as a kernel without flower goes: its threads, what it says, and what it does when something fails.

With a real TC: pcap_tests/vm/test_vm_node.
"""

from __future__ import annotations

import errno
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import numpy as np
import pytest

from ctcore.errors import ConfigError
from datapath.commands import offload_tc
from datapath.commands.offload_tc import Shared, TcFactory, entries_made
from datapath.commands.offload_ways import KERNEL, Probe, Way
from datapath.live import kernel_conntrack
from datapath.live.client import Client
from datapath.live.config import load
from datapath.live.control import Control
from datapath.live.message import RequestError
from datapath.live.node import Node
from datapath.live.succession import Taking, end
from datapath.oracle.namespace import Namespace
from offload.entry_lists import STATE_DTYPE
from offload.idle_devices import IdleDevices
from offload.netlink.conntrack import OFFLOAD, SETTINGS
from offload.netlink.extack import Answer
from offload.trials import FLOWER, PIPELINE, TRIALS, Tried
from pcap_tests.reachable import command
from pcap_tests.test_datapath.command import in_process
from pcap_tests.test_datapath.test_live.offloading_node import NOTHING, Offloading, said, talking
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, SERVER, address
from pcap_tests.test_datapath.test_live.test_workers import at_work, echoing_tcp, written
from pcap_tests.test_datapath.test_live.wires import until
from pcap_tests.test_offload.kept import Kernel, Made, commands

SECTION = '[offload]\nbackend = "tc"\nway = "exact"\nhardware = "no"\n'
SIDES = '[[offload.side]]\ndevice = "left"\nnetworks = ["10.9.0.1/32"]\n[[offload.side]]\ndevice = "right"\n'
FINE = Probe("", tuple(Tried(trial, Answer(0)) for trial in TRIALS), ())


def configured(folder: Path, section: str, driver: str = "xdp-native", workers: int = 1):
    name = written(folder, IPV4, driver, workers)
    with open(name, "a") as file:
        file.write(section)
    return load(name)


@pytest.fixture
def made(monkeypatch) -> Made:
    """What stands for the kernel in all workers."""
    made = Made()
    monkeypatch.setattr(TcFactory, "_backend", lambda self, shared, number, workers: made)
    return made


@contextmanager
def between(wires, folder: Path, section: str, driver: str = "xdp-native", workers: int = 1) -> Iterator[Offloading]:
    left, right = wires("left", queues=workers), wires("right", queues=workers)
    address(left, CLIENT)
    address(right, SERVER)
    config = configured(folder, section, driver, workers)
    with left.here.entered():
        node = Node(config, offload=TcFactory(config, lambda device: FINE))
    net = Offloading(node, left, right, folder / "rules.tc")
    net.socket = str(folder / "socket")
    try:
        with at_work(node), Control(node, net.socket), Client(net.socket) as net.client:
            yield net
    finally:
        node.close()


def test_connections_go_through_the_thread_and_status_tells_of_it(wires, tmp_path, made):
    with between(wires, tmp_path, SECTION + SIDES, workers=2) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        said(talker, 5)
        assert sum(len(kernel.rules) for kernel in made.all) == 2 and len(made.all) == 2
        assert {name for kernel in made.all for name in kernel.threads} <= {"offload-0", "offload-1"}
        status = in_process("offload", "status", "--socket", net.socket).stdout
        assert "tc, policy first-come, its limits divided among 2 workers" in status and "exact in the kernel: left, right" in status
        assert "2 working; 0 failures, 0 commands waiting" in status
        told = json.loads(in_process("offload", "status", "--json", "--socket", net.socket).stdout)["tc"]
        assert (told["way"], told["where"], told["devices"], told["rules"]) == ("exact", "the kernel", ["left", "right"], None)
        assert net.metric('ctmirror_offload_threads{state="working"}') == 2
        assert net.audit() == {**NOTHING, "held": 2, "wanted": 2}
    assert all(kernel.closed for kernel in made.all)


def test_at_the_end_hardware_is_emptied_before_the_kernel_is_given_connections(wires, tmp_path, made, monkeypatch):
    left = wires("left")
    wires("right")
    config = configured(tmp_path, SECTION + SIDES)
    with left.here.entered():
        node = Node(config, offload=TcFactory(config, lambda device: FINE))
    told = []

    def hand_over(trackers) -> SimpleNamespace:
        told.append([kernel.closed for kernel in made.all])
        return SimpleNamespace(told=dict)

    monkeypatch.setattr(kernel_conntrack, "hand_over", hand_over)
    try:
        assert [kernel.closed for kernel in made.all] == [False]
        end(node, Taking(handover=True))
    finally:
        node.close()
    assert told == [[True]]


def passed(net: Offloading, port: int) -> int:
    """Packets of the connection, of both directions, as `conntrack -L` has them."""
    (flow,) = (conn["flow"] for conn in net.node.trackers[0].conns() if conn["flow"]["key"][0]["dport"] == port)
    return int(flow["packets"].sum())


@pytest.mark.parametrize("how", ["suspended", "stopped"])
def test_what_hardware_has_counted_last_is_the_connection_s(wires, tmp_path, made, how):
    with between(wires, tmp_path, SECTION + SIDES) as net, echoing_tcp(net.right) as port, talking(net, port):
        (kernel,), (worker,) = made.all, net.node.workers
        before = net.node.ask(lambda node: passed(net, port)).result(10)
        now = net.node.ask(lambda node: node.trackers[0].now).result(10)
        for cookie in kernel.rules:
            assert kernel.hit(cookie >> 1 & 0xFFFFFFFF, cookie & 1, 1000, 100, now)
        if how == "suspended":
            worker.offload.threaded.suspend("rules in TC: others have changed them")
        else:
            assert net.node.ask(lambda node: node.take_out()).result(10)
            assert kernel.closed and net.node.ask(lambda node: passed(net, port)).result(10) >= before + 2000
        until(lambda: net.node.ask(lambda node: passed(net, port)).result(10) >= before + 2000, "it is told")
        assert net.node.ask(lambda node: node.workers[0].pipeline.flows.counters()).result(10)["hw_packets"] == 2000


def test_nothing_is_handed_over_while_a_thread_is_at_work_in_the_kernel(wires, tmp_path, made, monkeypatch, caplog):
    monkeypatch.setattr("offload.threaded.LIMIT", 0.1)
    left = wires("left")
    wires("right")
    config = configured(tmp_path, SECTION + SIDES)
    with left.here.entered():
        node = Node(config, offload=TcFactory(config, lambda device: FINE))
    told: list[str] = []
    monkeypatch.setattr(kernel_conntrack, "hand_over", lambda trackers: told.append("handed over"))
    (kernel,), (worker,), free = made.all, node.workers, Event()
    try:
        worker.offload.threaded.replies(0)
        worker.offload.threaded.submit(commands(20), 0)
        until(lambda: len(kernel.rules) == 20, "it has some")
        kernel.taking = free.wait
        end(node, Taking(handover=True))
        assert not told and not kernel.closed
    finally:
        free.set()
        until(worker.offload.close, "it has ended by now")
        node.close()
    said = [record.getMessage() for record in caplog.records]
    assert "connections are not handed over to the kernel: offloading has not ended, and takes out what it has there" in said
    assert "offload-0: does not end, and takes out nothing for 0.1 s: what it has in the kernel may be left there, 20 in all" in said


def test_a_backend_that_fails_is_told_and_connections_are_software_s_until_it_works_again(wires, tmp_path, made):
    def fail() -> None:
        raise OSError(errno.ENOBUFS, "no buffers")

    with between(wires, tmp_path, SECTION + SIDES) as net, echoing_tcp(net.right) as port, talking(net, port) as talker:
        made.broken = OSError(errno.ENODEV, "no such device")
        made.all[0].during = fail
        net.node.workers[0].offload.threaded.ask(lambda backend: setattr(backend, "resets", 1))
        until(lambda: net.status()["tc"]["threads"]["failed"] == 1, "it has failed")
        said(talker, 5)
        assert net.status()["entries"] == 0
        until(lambda: "no such device" in net.status()["tc"]["said"][0], "it was tried again")
        assert "no such device" in in_process("offload", "status", "--socket", net.socket).stdout
        assert net.metric("ctmirror_offload_failures_total") >= 1
        with pytest.raises(RequestError, match=r"there is no backend now: .*no such device"):
            net.audit()
        made.broken = None
        until(lambda: [said(talker), net.status()["flows"]["installed"] == 1][1], "it works again")
        assert net.audit()["differ"] == 0


def test_a_refused_connection_is_told_with_the_kernel_s_sentence(wires, tmp_path, made, monkeypatch):
    monkeypatch.setattr(Kernel, "refusal", lambda self, conn: f"Cannot allocate memory: of connection {conn}")
    with between(wires, tmp_path, SECTION + SIDES) as net, echoing_tcp(net.right) as port:
        made.all[0].fate = lambda command: errno.ENOMEM
        with net.left.there.entered():
            talker = socket.create_connection((SERVER, port), timeout=5)
        with talker:
            said(talker, 3)
            until(lambda: net.why(dport=port)[0]["offload"]["refusals"], "it was refused")
            (number,) = (conn["conn"] for conn in net.client.conns("list", which={"dport": port}))
            why = in_process("offload", "why", "--conn", number, "--socket", net.socket).stdout
            assert f"kernel      Cannot allocate memory: of connection {number}" in why
            told = json.loads(in_process("offload", "why", "--json", "--conn", number, "--socket", net.socket).stdout)
            assert told["offload"]["kernel"] == f"Cannot allocate memory: of connection {number}"


def test_what_differs_for_a_moment_only_is_no_difference(wires, tmp_path, made):
    with between(wires, tmp_path, SECTION + SIDES) as net, echoing_tcp(net.right) as port, talking(net, port):
        (kernel,) = made.all
        whole, looks = kernel.held, []
        kernel.held = lambda: [looks.append(1), whole()[: 1 if len(looks) == 1 else 2]][1]
        assert net.audit()["differ"] == 0 and len(looks) == 2
        kernel.held = lambda: [looks.append(1), whole()[:1]][1]
        told = net.audit()
        assert (told["differ"], len(told["differences"]), len(looks)) == (1, 1, 5)


def test_while_rules_are_missing_an_audit_says_so_and_devices_without_packets_are_told(wires, tmp_path, made):
    with between(wires, tmp_path, SECTION + SIDES) as net, echoing_tcp(net.right) as port, talking(net, port):
        (worker,) = net.node.workers
        worker.offload.shared.idle.look(lambda: {"left": False}, ("left", "right"))
        told = net.audit()
        assert (told["differ"], told["drift"], [each["what"] for each in told["findings"]]) == (0, 2, ["device_down", "device_missing"])
        worker.offload.threaded.suspend("rules in TC: others have changed them")
        until(lambda: net.status()["entries"] == 0, "it is software's")
        audit = in_process("offload", "audit", "--socket", net.socket)
        assert (audit.returncode, audit.stdout.splitlines()[:-1]) == (1, [
            "device down: left: no packet comes through it", "device missing: right",
            "suspended: worker 0: rules in TC: others have changed them",
        ])  # fmt: skip
        assert audit.stdout.splitlines()[-1].startswith("0 rules in hardware, 0 that should be")
        document = json.loads(in_process("offload", "audit", "--json", "--socket", net.socket).stdout)
        assert (document["agree"], document["drift"], document["entries"]) == (False, 3, None)
        lines = in_process("offload", "status", "--socket", net.socket).stdout.splitlines()
        assert ["device", "left:", "down"] in [line.split() for line in lines] and ["device", "right:", "missing"] in [line.split() for line in lines]
        assert net.status()["tc"]["idle"] == {"left": "device down", "right": "device missing"} and net.metric("ctmirror_offload_tc_idle") == 2


def test_of_what_the_kernel_has_otherwise_only_what_stays_so_is_drift(wires, tmp_path, made, monkeypatch):
    """Marks of entries, more of them than there are lines for; the first look finds one that the others do not."""
    looks: list[int] = []

    def listed(kernel: Kernel):
        looks.append(1)
        states = np.zeros(300, dtype=STATE_DTYPE)
        states["conn"], states["mark"][: 200 if many else 1] = np.arange(300) + (len(looks) if not many else 0), 9
        states["counted"], states["packets"], states["status"][:250] = True, 5, OFFLOAD
        return kernel.held(), states

    monkeypatch.setattr(offload_tc, "_listed", listed)
    with between(wires, tmp_path, SECTION + SIDES) as net:
        many = False
        told = net.audit()
        assert (told["drift"], told["entries"], len(looks)) == (0, {"entries": 300, "offloaded": 250, "in_hardware": 0}, 2)
        assert {(each["what"], each["drift"]) for each in told["findings"]} == {("not_offloaded", False)}
        assert in_process("offload", "audit", "--quiet", "--socket", net.socket).returncode == 0
        many = True
        told = net.audit()
        assert (told["drift"], len(told["findings"]), {each["what"] for each in told["findings"]}) == (200, 100, {"mark_changed"})
        audit = in_process("offload", "audit", "--socket", net.socket)
        assert audit.returncode == 1 and "mark changed: connection 0: 0x9, and was made with 0x0" in audit.stdout
        assert "300 of the kernel's connections are ours: 250 offloaded, 0 in hardware" in audit.stdout


# --- what cannot be -----------------------------------------------------------------------------------------------------------------------------


def test_an_interface_that_could_only_be_opened_by_AF_PACKET_is_an_error(wires, tmp_path, made, monkeypatch):
    left = wires("left")
    wires("right")
    config = configured(tmp_path, SECTION + SIDES, "auto")
    monkeypatch.setattr("datapath.live.drivers.AUTO", ("packet",))
    with left.here.entered(), pytest.raises(ConfigError, match=r"offload: left: left: AF_PACKET.*: expected XDP: TC has the same frames"):
        Node(config, offload=TcFactory(config, lambda device: FINE))
    assert made.all[0].closed


def test_a_node_without_a_way_works_and_says_why(wires, tmp_path, caplog):
    caplog.set_level("INFO")
    left, right = wires("left"), wires("right")
    address(left, CLIENT)
    address(right, SERVER)
    config = configured(tmp_path, SECTION.replace('way = "exact"\n', "") + SIDES)
    why = "not exact in the kernel: left: flower (a filter): No such file or directory (and 1 more for the same reason)"
    nothing = Probe("", tuple(Tried(trial, Answer(errno.ENOENT if trial is FLOWER else 0)) for trial in TRIALS), ())
    with left.here.entered():
        node = Node(config, offload=TcFactory(config, lambda device: nothing))
    try:
        net = Offloading(node, left, right, tmp_path / "rules.tc")
        with at_work(node), Control(node, str(tmp_path / "socket")), Client(str(tmp_path / "socket")) as net.client, echoing_tcp(right) as port:
            with left.there.entered():
                talker = socket.create_connection((SERVER, port), timeout=5)
            with talker:
                said(talker, 3)
            with pytest.raises(RequestError, match="nothing is offloaded, for no way is left: not pipeline in the kernel: ") as error:
                net.status()
            assert f"; {why}" in str(error.value)
    finally:
        node.close()
    messages = [record.getMessage() for record in caplog.records]
    assert "offload: nothing is offloaded: no way of offloading to TC is left" in messages
    assert f"offload: {why}" in messages


# --- in which order ---------------------------------------------------------------------------------------------------------------------------


class Ordered:
    """Stands for anything that is told something: the order in which all of them were."""

    def __init__(self, name: str, order: list[str]) -> None:
        self._name, self._order = name, order

    def __getattr__(self, what: str):
        return lambda *_: self._order.append(f"{self._name} {what}")


def shared(order: list[str]) -> Shared:
    made = Shared(Way(PIPELINE, KERNEL, ("left",)), (), Ordered("rules", order), Ordered("bypass", order), IdleDevices())
    made.threads.append(Ordered("thread", order))
    return made


def test_nothing_is_let_by_while_rules_are_missing():
    order: list[str] = []
    one = shared(order)
    one.broken("gone")
    one.mended()
    assert order == ["thread suspend", "bypass shut", "bypass open", "thread resume"]


def test_nothing_is_let_by_when_rules_are_taken_away_also_if_a_thread_hangs():
    order: list[str] = []
    one = shared(order)
    one.open = 2
    one.close()
    assert order == [], "there is another worker"
    one.close()
    assert order == ["bypass shut", "rules close", "bypass close"]


# --- rights ---------------------------------------------------------------------------------------------------------------------------------------

SERVED = """
import os, sys, threading, time
from datapath.commands.offload_tc import TcFactory
from datapath.commands.offload_ways import Probe
from datapath.live import service
from datapath.live.config import load
from offload.netlink.extack import Answer
from offload.trials import TRIALS, Tried
from pcap_tests.test_offload.kept import Kernel

def caps():
    return [line.split()[1] for line in open("/proc/thread-self/status") if line.startswith(("CapEff", "Uid"))]

class Telling(Kernel):
    told = False
    def replies(self, now):
        if not self.told and threading.current_thread().name.startswith("offload"):
            self.told = True
            sys.stdout.write(" ".join([threading.current_thread().name, *caps()]) + "\\n")  # in one piece: there are two threads
            sys.stdout.flush()
        return super().replies(now)

TcFactory._backend = lambda self, shared, number, workers: Telling
config = load(sys.argv[1])
fine = Probe("", tuple(Tried(trial, Answer(0)) for trial in TRIALS), ())
sys.exit(service.serve(config, "info", offload=TcFactory(config, lambda device: fine)))
"""


def test_threads_keep_the_one_right_that_they_need(wires, tmp_path):
    left = wires("left", queues=2)
    wires("right", queues=2)
    tmp_path.chmod(0o755)
    configured(tmp_path, SECTION + SIDES + '[privileges]\nuser = "nobody"\n', workers=2)
    (tmp_path / "node.toml").chmod(0o644)
    with left.here.entered():
        argv = command([sys.executable, "-c", SERVED, str(tmp_path / "node.toml")], tmp_path)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stderr is not None
        found = sorted(process.stdout.readline().split() for _ in range(2))
        assert found == [[f"offload-{n}", "65534", f"{1 << 12:016x}"] for n in (0, 1)]
        while "running" not in (line := process.stderr.readline()):
            assert line, "it has ended"
    finally:
        process.terminate()
        log = process.communicate(timeout=20)[1]
    assert process.returncode == 0 and "Traceback" not in log


def test_what_entries_have_set_in_the_kernel_and_miss_there_is_in_the_log(running_kernel, caplog):
    caplog.set_level("INFO")
    namespace = Namespace()
    with namespace.entered():
        (SETTINGS / "nf_conntrack_acct").write_text("0")
        entries_made(250, 1, None).close()
        (SETTINGS / "nf_conntrack_events").write_text("0")
        entries_made(250, 1, None).close()
    namespace.close()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "offload: nf_conntrack_acct is 1 from now on, so that entries have counters"),
        ("WARNING", "offload: the kernel tells nothing of entries that others end, which is found later: expected nf_conntrack_events 1 or 2"),
    ]
