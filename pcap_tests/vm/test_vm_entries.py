"""Connections that a backend puts into the kernel's conntrack, and rules with act_ct that find them: established, offloaded, translated, counted,
taken back. client (eth1) - eth0 [switch, with the rules] vf0 - server (vf1); the connections are real sockets'."""

from __future__ import annotations

import errno
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ctcore.types import Status
from offload.conntrack_entries import ConntrackEntries
from offload.netlink.conntrack import HW_OFFLOAD, OFFLOAD
from offload.records import Op
from pcap_tests.test_datapath.tabled import IN, OUT, Tcp
from pcap_tests.test_offload.commanded import TCP, UDP, Flow, S, asked, commands
from pcap_tests.test_offload.entering import FakeBypass
from pcap_tests.test_offload.mirrored import QuickRig
from pcap_tests.vm.test_vm_conntrack import CLIENT, LABEL, MARK, RULES, SERVER, ZONE, Across, port_of, talk
from pcap_tests.vm.test_vm_refusals import parsed

NO_LABELS = "\n".join(line for line in RULES.splitlines() if "chain 99" not in line)
LABELLED = LABEL | 0xABCD << 64


@pytest.fixture
def across() -> Iterator[Across]:
    with ExitStack() as stack:
        yield Across(stack)


@pytest.fixture
def backend(across) -> Iterator[ConntrackEntries]:
    with ConntrackEntries(bypass=FakeBypass()) as backend:
        yield backend
    assert len(across.listed()[0]) == 0


def flow_of(client: socket.socket, *, to: tuple[str, int] | None = None, row: int = 1) -> Flow:
    """to: what its destination becomes."""
    port = port_of(client)
    translated = (CLIENT, port, *to) if to else None
    return Flow(row, TCP, CLIENT, SERVER, port, 80, to=translated, zone=ZONE, mark=MARK, label=LABEL)


def until(backend: ConntrackEntries, wanted: Callable[[int], bool], seconds: float = 15.0) -> int:
    """The status of our one connection, once it is as wanted."""
    end = time.monotonic() + seconds
    while True:
        (state,) = backend.states()
        if wanted(int(state["status"])) or time.monotonic() > end:
            return int(state["status"])
        time.sleep(0.1)


def counted(backend: ConntrackEntries, flow: Flow, now: int) -> list[int]:
    backend.submit(commands(Op.STATS, flow), now)
    return [int(row["packets"]) for row in backend.replies(now) if row["op"] == Op.STATS]


def in_nic(nic, flow: Flow) -> list[str]:
    """Of what hardware has, and not of what is about to go from tests before."""
    return [line for line in nic.lines("conns") if f"_port {flow.sport} " in line]


def gone(backend: ConntrackEntries, seconds: float = 10.0) -> set[int]:
    """Cookies of what is there no more, once there is such news."""
    end = time.monotonic() + seconds
    while not (news := {int(row["cookie"]) for row in backend.replies(S) if row["op"] == Op.GONE}) and time.monotonic() < end:
        time.sleep(0.1)
    return news


# --- a connection of software's goes on in TC ------------------------------------------------------------------------------------------------


def test_it_is_established_offloaded_counted_and_over_after_a_fin(across, backend):
    client, listening = across.connected()
    flow = flow_of(client)
    assert asked(backend, Op.REPLACE, flow) == [0, 0]
    server = talk(across, client, listening)
    status = until(backend, lambda status: bool(status & OFFLOAD))
    assert status & OFFLOAD and status & Status.ASSURED
    assert min(counted(backend, flow, 5 * S)) >= 3 and np.isnan(backend.states()["left"]).all()
    for second in range(6, 50):  # until the last acknowledgement has come by
        if counted(backend, flow, second * S) == [0, 0]:
            break
        time.sleep(0.1)
    client.sendall(b"ping")
    assert server.recv(4) == b"ping"
    assert second < 49 and counted(backend, flow, 60 * S)[0] >= 1
    client.close()
    server.close()
    assert gone(backend) == {flow.cookie(0), flow.cookie(1)} and backend.bypass.keys == set() and backend.resets == 0
    subprocess.run(["conntrack", "-F"], check=True, capture_output=True)


def test_translation_is_done_by_the_entry_alone(across, backend):
    """The client speaks to port 80, and the server has it on 8080."""
    client, listening = across.connected()
    listening.close()
    with across.server.entered():
        listening = socket.create_server(("", 8080))
    assert asked(backend, Op.REPLACE, flow_of(client, to=(SERVER, 8080))) == [0, 0]
    server = talk(across, client, listening)
    assert server.getsockname()[1] == 8080 and client.getpeername()[1] == 80
    assert until(backend, lambda status: bool(status & OFFLOAD)) & OFFLOAD
    assert asked(backend, Op.DESTROY, flow_of(client, to=(SERVER, 8080))) == [0, 0]
    client.close()
    server.close()


def test_what_a_flow_table_has_is_taken_back(across, backend):
    """This kernel does not delete it (EBUSY), and it goes all the same, with what it had counted; then its packets are nobody's."""
    client, listening = across.connected()
    flow = flow_of(client)
    asked(backend, Op.REPLACE, flow)
    server = talk(across, client, listening)
    assert until(backend, lambda status: bool(status & OFFLOAD)) & OFFLOAD
    backend.submit(commands(Op.DESTROY, flow), 9 * S)
    told = backend.replies(9 * S)
    assert told["error"].tolist() == [0, 0] and min(told["packets"]) >= 3
    assert len(across.listed()[0]) == 0 and backend.missed == 0 and len(backend.replies(9 * S)) == 0
    server.settimeout(1)
    client.sendall(b"lost")
    with pytest.raises(TimeoutError):
        server.recv(4)
    assert asked(backend, Op.REPLACE, flow) == [0, 0]  # and once more
    server.settimeout(20)
    assert server.recv(4) == b"lost"
    assert until(backend, lambda status: bool(status & OFFLOAD)) & OFFLOAD
    client.close()
    server.close()
    gone(backend)
    subprocess.run(["conntrack", "-F"], check=True, capture_output=True)


def test_a_nic_has_it_and_what_it_counts_comes_back(nic, across, backend):
    client, listening = across.connected()
    flow = flow_of(client)
    asked(backend, Op.REPLACE, flow)
    server = talk(across, client, listening)
    assert until(backend, lambda status: bool(status & HW_OFFLOAD)) & HW_OFFLOAD
    assert len(in_nic(nic, flow)) == 2
    counted(backend, flow, 5 * S)
    nic.hit("conns", f"src_port {flow.sport} dst_port 80 tcp_flags", 1000, 64_000)
    Path("/proc/sys/net/netfilter/nf_flowtable_tcp_timeout").write_text("5")
    seen, now, end = 0, 10 * S, time.monotonic() + 20
    while seen < 1000 and time.monotonic() < end:
        client.sendall(b"ping")
        server.recv(4)
        time.sleep(0.2)
        now += S
        seen += counted(backend, flow, now)[0]
    assert seen >= 1000
    assert asked(backend, Op.DESTROY, flow) == [0, 0]
    end = time.monotonic() + 10
    while in_nic(nic, flow) and time.monotonic() < end:
        time.sleep(0.2)
    assert in_nic(nic, flow) == []
    client.close()
    server.close()


def test_udp_by_its_original_direction_and_then_by_both(across, backend):
    rules = "\n".join(
        f"tc filter add dev {came} ingress protocol ip prio {prio} chain 1 flower ct_state {state} action mirred egress redirect dev {goes}"
        for came, goes, prio, state in (("eth0", "vf0", 5, "+trk+new"), ("eth0", "vf0", 6, "+trk+est"), ("vf0", "eth0", 6, "+trk+est"))
    )
    assert [refusal.told() for refusal in across.tc.make(parsed(rules))] == []
    with across.server.entered():
        far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        far.bind((SERVER, 7000))
    with across.client.entered():
        near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        near.bind((CLIENT, 5000))
    far.settimeout(10)
    near.settimeout(10)
    flow = Flow(1, UDP, CLIENT, SERVER, 5000, 7000, zone=ZONE)
    with near, far:
        assert asked(backend, Op.REPLACE, flow, ctinfo=1, replies=False) == [0]
        near.sendto(b"one", (SERVER, 7000))
        assert far.recvfrom(10) == (b"one", (CLIENT, 5000))
        assert asked(backend, Op.REPLACE, flow) == [0, 0]
        for _ in range(3):
            far.sendto(b"two", (CLIENT, 5000))
            assert near.recvfrom(10) == (b"two", (SERVER, 7000))
        assert until(backend, lambda status: bool(status & OFFLOAD)) & OFFLOAD
        assert counted(backend, flow, 9 * S) == [1, 3]
        assert counted(backend, flow, 10 * S) == [0, 0]


# --- with a flow table and its mirror --------------------------------------------------------------------------------------------------------


@pytest.fixture
def rig(across) -> Iterator[QuickRig]:
    with ConntrackEntries(bypass=FakeBypass()) as backend:
        yield QuickRig(nic=backend, mirror={"backoff": 1.0})


def test_a_connection_of_software_is_an_entry_and_its_fin_takes_it_out(rig, across):
    conn = Tcp(rig).opened()
    assert rig.in_hardware() and len(across.listed()[0]) == 1 and len(rig.nic.bypass.keys) == 2
    rig.settle()
    assert len(rig.mirror.audit(rig.nic.held())) == 0
    conn.say(IN, "FA")
    rig.wait(3)
    assert not rig.in_hardware() and len(across.listed()[0]) == 0 and not rig.nic.bypass.keys


def test_what_others_delete_is_put_back_by_the_next_packet(rig, across):
    conn = Tcp(rig).opened()
    Tcp(rig, port=40_001).opened()
    subprocess.run(["conntrack", "-D", "-p", "tcp", "--orig-port-src", "40001"], check=True, capture_output=True)
    rig.pump()
    assert rig.in_hardware(0) and not rig.in_hardware(1) and rig.nic.resets == 0
    subprocess.run(["conntrack", "-F"], check=True, capture_output=True)
    rig.wait(2)
    conn.say(OUT, "PA", b"hello")
    rig.settle()
    assert rig.in_hardware(0) and rig.mirror.counters()["resets"] == 1
    assert len(rig.mirror.audit(rig.nic.held())) == 0


# --- what the kernel refuses ------------------------------------------------------------------------------------------------------------------


def test_a_full_conntrack_is_full_hardware(backend):
    limit = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    before = limit.read_text()
    first, second = (Flow(row, sport=row) for row in (1, 2))
    asked(backend, Op.REPLACE, first)
    try:
        with open("/proc/1/ns/net", "rb"):  # which alone may set it
            subprocess.run(["nsenter", "--net=/proc/1/ns/net", "sh", "-c", f"echo 1 > {limit}"], check=True)
        assert asked(backend, Op.REPLACE, second) == [errno.ENOMEM] * 2
        assert backend.refusal(102) == "Cannot allocate memory: the kernel's conntrack takes no more (nf_conntrack_max)"
    finally:
        subprocess.run(["nsenter", "--net=/proc/1/ns/net", "sh", "-c", f"echo {before.strip()} > {limit}"], check=True)
    assert asked(backend, Op.REPLACE, second) == [0, 0]


def test_where_rules_set_labels_an_entry_has_its_own(backend):
    assert asked(backend, Op.REPLACE, Flow(7, dport=88, label=LABELLED)) == [0, 0]
    assert [row["label"].tolist() for row in backend.held()] == [[LABEL, 0xABCD]] * 2


def test_without_such_rules_labels_are_kept_or_refused():
    """Up to Linux 6.11 they are kept; a change of what is there is refused by all."""
    with ExitStack() as stack:
        Across(stack, NO_LABELS)
        with ConntrackEntries() as backend:
            errors = asked(backend, Op.REPLACE, Flow(7, dport=88, label=LABELLED))
            held = [row["label"].tolist() for row in backend.held()]
            assert (errors, held) in (([0, 0], [[LABEL, 0xABCD]] * 2), ([errno.EOPNOTSUPP] * 2, []))
