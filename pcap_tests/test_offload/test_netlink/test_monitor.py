"""What others do to qdiscs and interfaces of the running kernel is heard, and what our own socket does is not. Filters are in pcap_tests/vm.

Needs root; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1.
"""

from __future__ import annotations

import socket

import pytest

from datapath.oracle.namespace import Namespace
from offload.netlink.channel import Channel
from offload.netlink.filters import (
    CLSACT_PARENT,
    DELETE_FILTER,
    DELETE_QDISC,
    INGRESS_PARENT,
    MESSAGE,
    NEW_CHAIN,
    NEW_FILTER,
    NEW_QDISC,
    TCMSG,
    delete_qdisc,
    new_qdisc,
)
from offload.netlink.links import NEW_LINK, links
from offload.netlink.listener import attach
from offload.netlink.monitor import DELETE_LINK, WATCHED, Change, Monitor, change_of, program
from offload.netlink.read import Malformed


@pytest.fixture
def place(running_kernel):
    """A namespace with a device, our socket and its listener, and somebody else's."""
    namespace = Namespace()
    with namespace.netlink() as netlink:
        netlink.link("add", ifname="a0", kind="veth", peer={"ifname": "b0"})
    with namespace.entered(), Channel() as ours, Channel() as theirs, Monitor(ours.socket) as monitor:
        yield namespace, ours, theirs, monitor
    namespace.close()


def test_others_are_heard_and_we_are_not(place):
    _, ours, theirs, monitor = place
    number = links(ours)["a0"]
    ours.ask([new_qdisc(number), delete_qdisc(number)])
    assert list(monitor.changes()) == []
    theirs.ask([new_qdisc(number), delete_qdisc(number)])
    assert list(monitor.changes()) == [Change(kind, number, CLSACT_PARENT) for kind in (NEW_QDISC, DELETE_QDISC)] and not monitor.overrun


def test_interfaces_that_come_and_go_are_heard(place):
    namespace, ours, _, monitor = place
    number = links(ours)["a0"]
    with namespace.netlink() as netlink:
        netlink.link("del", index=number)
        netlink.link("add", ifname="c0", kind="veth", peer={"ifname": "d0"})
    changes = list(monitor.changes())
    assert Change(DELETE_LINK, number) in changes and Change(NEW_LINK, links(ours)["c0"]) in changes


def test_what_did_not_fit_is_an_overrun(place):
    _, ours, theirs, monitor = place
    monitor.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    number = links(ours)["a0"]
    theirs.ask([new_qdisc(number), delete_qdisc(number)] * 50)
    assert 0 < len(list(monitor.changes())) < 100 and monitor.overrun


@pytest.mark.parametrize("kind", [DELETE_FILTER, DELETE_QDISC, NEW_LINK])
def test_what_is_too_short_is_an_error(kind):
    with pytest.raises(Malformed, match="3 bytes: expected"):
        change_of(kind, bytes(3))


def test_what_is_not_watched_is_nothing():
    assert change_of(NEW_CHAIN, bytes(TCMSG.size)) is None


# --- what is let through ------------------------------------------------------------------------------------------------------------------------

OURS, THEIRS = 0x12345678, 0x12345679


def filter_message(kind: int, port: int, prio: int) -> bytes:
    body = TCMSG.pack(0, 7, 1, INGRESS_PARENT, prio << 16 | 8)
    return MESSAGE.pack(MESSAGE.size + len(body), kind, 0, 1, port) + body


@pytest.mark.parametrize("prios", [(), (5, 6)], ids=["all", "two"])
def test_of_filters_only_those_of_others_in_our_priorities_are_let_through(prios):
    """The same code on a socket that anybody may send to."""
    sent = [
        filter_message(kind, port, prio)
        for kind in (*WATCHED, NEW_CHAIN, 99)
        for port in (0, OURS, THEIRS)
        for prio in (0, 5, 6, 7, 5 << 8)
    ]  # fmt: skip
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        attach(other, program(OURS, prios=prios))
        other.setblocking(False)
        for data in sent:
            one.send(data)
            kind, port = MESSAGE.unpack_from(data)[1], MESSAGE.unpack_from(data)[4]
            prio = TCMSG.unpack_from(data, MESSAGE.size)[4] >> 16
            wanted = kind in WATCHED and port != OURS and (not prios or kind not in (NEW_FILTER, DELETE_FILTER) or prio in (0, 5, 6))
            try:
                assert other.recv(100) == data and wanted, (kind, port, prio)
            except BlockingIOError:
                assert not wanted, (kind, port, prio)
