"""Connections that are put into the kernel's conntrack by hand are what act_ct finds: established at once, offloaded, and out again after a FIN.

client (eth1, in a namespace of its own) - eth0 [switch] vf0 - server (vf1, in another one); the switch has rules and no addresses.
"""

from __future__ import annotations

import errno
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from ctcore.ctnetlink import Ask
from ctcore.types import CONN_DTYPE, Status
from datapath.commands.tc.ask import KernelTc
from datapath.oracle.namespace import Namespace, cable
from offload.netlink.conntrack import HW_OFFLOAD, OFFLOAD, KernelConntrack
from pcap_tests.vm.test_vm_refusals import parsed

CLIENT, SERVER, ZONE, MARK, LABEL = "10.0.0.1", "10.0.0.2", 5, 0x42, 0x1122334455667788
LABEL_TEXT = LABEL.to_bytes(16, "little").hex()
ESTABLISHED = 3
# Only what has the zone, the mark and the label of an entry that was put there gets through; everything else of TCP is dropped.
RULES = f"""
tc qdisc add dev eth0 clsact
tc qdisc add dev vf0 clsact
tc filter add dev eth0 ingress protocol arp prio 1 chain 0 flower action mirred egress redirect dev vf0
tc filter add dev vf0 ingress protocol arp prio 1 chain 0 flower action mirred egress redirect dev eth0
tc filter add dev eth0 ingress protocol ip prio 2 chain 0 flower ct_state -trk action ct zone {ZONE} nat pipe action goto chain 1
tc filter add dev vf0 ingress protocol ip prio 2 chain 0 flower ct_state -trk action ct zone {ZONE} nat pipe action goto chain 1
tc filter add dev eth0 ingress protocol ip prio 3 chain 1 flower ct_state +trk+est ct_zone {ZONE} ct_mark {MARK} ct_label {LABEL_TEXT} \
action mirred egress redirect dev vf0
tc filter add dev vf0 ingress protocol ip prio 3 chain 1 flower ct_state +trk+est ct_zone {ZONE} action mirred egress redirect dev eth0
tc filter add dev eth0 ingress protocol ip prio 9 chain 99 flower action ct commit label {LABEL_TEXT} pipe action drop
"""  # the last one is never reached: it makes the namespace use labels


class Across:
    """Client, switch, server; rules and conntrack of the switch."""

    def __init__(self, stack: ExitStack, rules: str = RULES) -> None:
        self.client, self.switch, self.server = Namespace(), Namespace(), Namespace()
        for namespace in (self.client, self.switch, self.server):
            stack.callback(namespace.close)
        cable(self.client, self.switch, ("eth1", "eth0"), ("02:00:00:00:00:01", "02:00:00:00:00:10"))
        cable(self.switch, self.server, ("vf0", "vf1"), ("02:00:00:00:00:20", "02:00:00:00:00:02"))
        for namespace, device, address in ((self.client, "eth1", CLIENT), (self.server, "vf1", SERVER)):
            with namespace.netlink() as netlink:
                netlink.addr("add", index=netlink.link_lookup(ifname=device)[0], address=address, prefixlen=24)
        stack.enter_context(self.switch.entered())
        self.tc = stack.enter_context(KernelTc())
        assert [refusal.told() for refusal in self.tc.make(parsed(rules.replace("\\\n", "")))] == []
        self.conntrack = stack.enter_context(KernelConntrack())
        Path("/proc/sys/net/netfilter/nf_conntrack_acct").write_text("1")

    def connected(self, address: str = SERVER, port: int = 80) -> tuple[socket.socket, socket.socket]:
        """A client that tries to connect, and who listens for it; its opening segment comes again until it gets through."""
        with self.server.entered():
            listening = socket.create_server(("", 80))
        with self.client.entered():
            client = socket.socket()
        client.settimeout(10)
        client.setblocking(False)
        client.connect_ex((address, port))
        return client, listening

    def listed(self) -> tuple[np.ndarray, np.ndarray]:
        return self.conntrack.all()


@pytest.fixture
def across() -> Iterator[Across]:
    with ExitStack() as stack:
        yield Across(stack)


def entry(client_port: int, *, server_port: int = 80, reply_from: tuple[str, int] | None = None) -> np.ndarray:
    """An established connection; reply_from: whom its answers come from, where its destination is translated."""
    row = np.zeros(1, dtype=CONN_DTYPE)
    ends = ((CLIENT, client_port, SERVER, server_port), (*(reply_from or (SERVER, server_port)), CLIENT, client_port))
    for d, (src, sport, dst, dport) in enumerate(ends):
        key = row["flow"][0, d]["key"]
        key["src"][:4], key["dst"][:4] = list(socket.inet_aton(src)), list(socket.inet_aton(dst))
        key["sport"], key["dport"], key["zone"], key["family"], key["proto"] = sport, dport, ZONE, 4, 6
    row["status"] = int(Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED)
    if reply_from:
        row["status"] |= int(Status.DST_NAT)
    row["timeout"], row["mark"], row["label"], row["tcp"]["state"], row["tcp"]["scale"] = 600 * 250, MARK, (LABEL, 0), ESTABLISHED, 14
    return row


def port_of(client: socket.socket) -> int:
    return client.getsockname()[1]


def talk(across: Across, client: socket.socket, listening: socket.socket) -> socket.socket:
    """Once packets pass, the handshake ends by itself; then data go both ways."""
    listening.settimeout(15)
    server, _ = listening.accept()
    for sock in (client, server):
        sock.setblocking(True)
        sock.settimeout(10)
    for _ in range(3):
        client.sendall(b"ping")
        assert server.recv(4) == b"ping"
        server.sendall(b"pong")
        assert client.recv(4) == b"pong"
    return server


def until(across: Across, wanted, seconds: float = 15.0) -> int:
    """The status of the one connection of our zone, once it is as wanted."""
    end = time.monotonic() + seconds
    while True:
        rows, status = across.listed()
        (found,) = status[rows["flow"][:, 0]["key"]["zone"] == ZONE]
        if wanted(int(found)) or time.monotonic() > end:
            return int(found)
        time.sleep(0.1)


def test_an_entry_that_was_put_there_is_established_and_offloaded(across):
    client, listening = across.connected()
    time.sleep(0.3)
    rows, _ = across.listed()
    assert len(rows) == 0  # the opening segment was dropped: nobody has committed it
    row = entry(port_of(client))
    assert [answer.told() for answer in across.conntrack.ask(row, Ask.CREATE)] == ["done"]
    server = talk(across, client, listening)
    assert until(across, lambda status: status & OFFLOAD) & OFFLOAD
    rows, _ = across.listed()
    (one,) = rows
    assert (one["mark"], int(one["label"][0]), one["flow"][0]["key"]["zone"]) == (MARK, LABEL, ZONE)
    assert one["flow"][0]["packets"] >= 3 and one["flow"][1]["packets"] >= 3
    client.close()
    server.close()
    assert not until(across, lambda status: not status & OFFLOAD) & OFFLOAD


def test_translation_that_was_put_there_is_done(across):
    """The client speaks to port 80, and the server has it on 8080: the entry says so, and no rule does."""
    client, listening = across.connected(port=80)
    listening.close()
    with across.server.entered():
        listening = socket.create_server(("", 8080))
    assert [answer.error for answer in across.conntrack.ask(entry(port_of(client), reply_from=(SERVER, 8080)), Ask.CREATE)] == [0]
    server = talk(across, client, listening)
    assert server.getsockname()[1] == 8080 and client.getpeername()[1] == 80
    server.close()
    client.close()


def test_without_its_zone_no_entry_is_removed(across):
    row = entry(1000)
    assert [answer.error for answer in across.conntrack.ask(row, Ask.CREATE)] == [0]
    elsewhere = row.copy()
    elsewhere["flow"]["key"]["zone"] = 0
    assert [answer.error for answer in across.conntrack.ask(elsewhere, Ask.DELETE)] == [errno.ENOENT]
    assert [answer.error for answer in across.conntrack.ask(row, Ask.DELETE)] == [0]
    assert len(across.listed()[0]) == 0


def test_conntrack_itself_lists_what_was_put_there(across):
    across.conntrack.ask(entry(1000), Ask.CREATE)
    done = subprocess.run(["conntrack", "-L", "-o", "labels"], capture_output=True, text=True, check=True)
    there, back = f"src={CLIENT} dst={SERVER} sport=1000 dport=80", f"src={SERVER} dst={CLIENT} sport=80 dport=1000"
    assert f"{there} packets=0 bytes=0 {back} packets=0 bytes=0 [ASSURED] mark={MARK} zone={ZONE}" in done.stdout


def test_a_nic_has_the_connection_and_its_counters_come_back(nic, across):
    client, listening = across.connected()
    across.conntrack.ask(entry(port_of(client)), Ask.CREATE)
    server = talk(across, client, listening)
    assert until(across, lambda status: status & HW_OFFLOAD) & HW_OFFLOAD
    conns = nic.lines("conns")
    assert len(conns) == 2
    label = LABEL.to_bytes(16, "little").hex()
    assert sum(f"metadata(mark {MARK:#x} labels {label}" in line for line in conns) == 2
    before = int(across.listed()[0][0]["flow"][0]["packets"])
    nic.hit("conns", "dst_port 80 tcp_flags", 1000, 64000)
    Path("/proc/sys/net/netfilter/nf_flowtable_tcp_timeout").write_text("5")
    end = time.monotonic() + 20
    while (now := int(across.listed()[0][0]["flow"][0]["packets"])) < before + 1000 and time.monotonic() < end:
        client.sendall(b"ping")
        server.recv(4)
        time.sleep(0.2)
    assert now >= before + 1000
    client.close()
    server.close()
    assert not until(across, lambda status: not status & (OFFLOAD | HW_OFFLOAD)) & HW_OFFLOAD
    end = time.monotonic() + 10
    while nic.lines("conns") and time.monotonic() < end:
        time.sleep(0.2)
    assert nic.lines("conns") == []
