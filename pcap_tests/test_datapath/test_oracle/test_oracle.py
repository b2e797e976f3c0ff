"""The running kernel as judge: what it says of plain traffic, that its settings are ours, and that nothing is left of it.

Invariant of every test: engine and kernel agree. Not here: adversarial traffic (fuzz_kernel), captures (test_diff).
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import closing

import pytest

from ctcore.config import Config
from ctcore.types import Dir, State, Status, Verdict
from datapath import craft
from datapath.errors import KernelError
from datapath.frame import frames_of
from datapath.link import inner
from datapath.oracle import namespace, ruleset
from datapath.oracle.compare import differences
from datapath.oracle.lockstep import Compared, Lockstep
from datapath.oracle.namespace import Tap
from datapath.oracle.oracle import Oracle, kernel_config, kernel_hz
from datapath.wire import parse_batch

A, B, A6, B6 = "10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"
HANDSHAKE = [
    craft.tcp(A, B, 40000, 80, "S", seq=100),
    craft.tcp(B, A, 80, 40000, "SA", seq=500, ack=101),
    craft.tcp(A, B, 40000, 80, "A", seq=101, ack=501),
]


def judge(*frames: bytes, zone: int = 0, **settings) -> Compared:
    """What both say of some frames; they have to agree in everything."""
    with Oracle(Config(**settings), zone=zone) as oracle:
        lockstep = Lockstep(oracle, zone=zone)
        compared = lockstep.run(*frames_of(frames))
        assert differences(compared, lockstep.config.hz) == []
        return compared


def kernel_says(compared: Compared, name: str) -> list[int]:
    return compared.theirs.decisions[name].tolist()


def test_a_handshake(running_kernel: None) -> None:
    compared = judge(*HANDSHAKE)
    assert kernel_says(compared, "state") == [State.NEW, State.ESTABLISHED, State.ESTABLISHED]
    assert kernel_says(compared, "dir") == [Dir.ORIG, Dir.REPLY, Dir.ORIG]
    assert kernel_says(compared, "status") == [
        Status.CONFIRMED, Status.CONFIRMED | Status.SEEN_REPLY, Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED,
    ]  # fmt: skip
    assert kernel_says(compared, "conn") == [0, 0, 0]
    assert compared.theirs.conns["tcp"]["side"]["end"].tolist() == [[101, 0], [101, 501], [101, 501]]
    assert compared.theirs.conns["flow"]["bytes"][2].tolist() == [80, 40]
    assert [list(sighting.events) for sighting in compared.sightings] == [["new"], ["update"], ["update"]]


def test_the_kernels_own_words_on_an_invalid_packet(running_kernel: None) -> None:
    compared = judge(*HANDSHAKE, craft.tcp(A, B, 40000, 80, "SF", seq=101, ack=501))
    assert kernel_says(compared, "state")[3] == State.INVALID
    assert compared.sightings[3].said == ["nf_ct_proto_6: invalid tcp flag combination"]
    assert compared.theirs.has_conn[3], "the connection its tuple belongs to is looked at as well"


def test_what_conntrack_does_not_track_and_does_not_see(running_kernel: None) -> None:
    solicitation = craft.icmp_error("fe80::1", "ff02::1:ff00:2", 135, 0, bytes(14) + bytes(16), ttl=255)
    compared = judge(solicitation, craft.udp(A, B, 1, 2, ip_checksum=0xDEAD), craft.eth(b"who has", 0x0806))
    assert kernel_says(compared, "state")[:2] == [State.UNTRACKED, State.NOT_SEEN]
    assert kernel_says(compared, "verdict")[:2] == [Verdict.ACCEPT, Verdict.DROP]
    assert compared.unshown == [None, None, "not IP"]


@pytest.mark.parametrize(
    "frames",
    [
        [craft.udp(A6, B6, 1, 2), craft.udp(B6, A6, 2, 1), craft.icmp_error(B6, A6, 1, 4, craft.udp(A6, B6, 1, 2))],
        [craft.icmp(A, B, 8, ident=7), craft.icmp(B, A, 0, ident=7), craft.icmp(B, A, 0, ident=8)],
        [craft.sctp(A, B, 1, 2, 0, craft.sctp_init(77)), craft.sctp(B, A, 2, 1, 77, craft.sctp_init(88, ack=True))],
        [craft.gre(A, B), craft.gre(B, A), craft.gre(A, B, version=1, proto=0x880B, call=5), craft.frame(A, B, 89, b"hello")],
        [craft.udplite(A, B, 1, 2, b"x"), craft.udplite(A, B, 1, 2, b"x", sum_proto=craft.UDP)],
    ],
    ids=["udp6-error", "icmp", "sctp", "gre-ospf", "udplite"],
)  # fmt: skip
def test_each_protocol(running_kernel: None, frames: list[bytes]) -> None:
    judge(*frames)


@pytest.mark.parametrize(
    "settings, frame, state",
    [
        ({"tcp_loose": True}, craft.tcp(A, B, 1, 2, "A", seq=5, ack=6), State.NEW),
        ({"tcp_loose": False}, craft.tcp(A, B, 1, 2, "A", seq=5, ack=6), State.INVALID),
        ({"checksum": True}, craft.tcp(A, B, 1, 2, "S", l4_checksum=0xDEAD), State.INVALID),
        ({"checksum": False}, craft.tcp(A, B, 1, 2, "S", l4_checksum=0xDEAD), State.NEW),
        ({"tcp_liberal": False}, craft.tcp(A, B, 40000, 80, "A", seq=9_999_999, ack=501), State.INVALID),
        ({"tcp_liberal": True}, craft.tcp(A, B, 40000, 80, "A", seq=9_999_999, ack=501), State.ESTABLISHED),
        ({"tcp_ignore_invalid_rst": False}, craft.tcp(B, A, 80, 40000, "R", seq=400), State.INVALID),
    ],
)
def test_settings_are_in_force_on_both_sides(running_kernel: None, settings: dict, frame: bytes, state: State) -> None:
    assert kernel_says(judge(*HANDSHAKE, frame, **settings), "state")[3] == state


def test_zone_and_timeouts(running_kernel: None) -> None:
    compared = judge(HANDSHAKE[0], zone=7, timeouts={"tcp_timeout_syn_sent": 9})
    assert kernel_says(compared, "zone") == [7] and compared.theirs.conns["flow"]["key"]["zone"][0].tolist() == [7, 7]
    assert kernel_says(compared, "timeout") == [9 * kernel_hz()]


def test_connections_expire_by_the_kernels_clock(running_kernel: None) -> None:
    with Oracle(Config(timeouts={"udp_timeout": 1})) as oracle:
        lockstep = Lockstep(oracle)
        query = frames_of([craft.udp(A, B, 1, 53)])
        both = [lockstep.run(*query)]
        time.sleep(1.1)
        both.append(lockstep.run(*query))
        assert [differences(compared, lockstep.config.hz) for compared in both] == [[], []]
        assert [kernel_says(compared, "conn") for compared in both] == [[0], [1]]


def test_a_connection_that_lives_for_no_time_is_none_to_an_invalid_packet(running_kernel: None) -> None:
    judge(craft.gre(A, B), craft.gre(A, B, version=1, proto=0x6558), timeouts={"gre_timeout": 0})


def test_reset_begins_anew(running_kernel: None) -> None:
    with Oracle(Config()) as oracle:
        lockstep = Lockstep(oracle)
        for _ in range(3):
            compared = lockstep.run(*frames_of(HANDSHAKE))
            assert differences(compared, lockstep.config.hz) == [] and kernel_says(compared, "conn") == [0, 0, 0]
            lockstep.reset()


def test_what_cannot_be_shown_leaves_no_trace_on_either_side(running_kernel: None) -> None:
    """Packets that our side could track, but a bridge would not judge as a router does, or that no device would carry."""
    jumbo = craft.eth(
        craft.ipv6(A6, B6, craft.UDP, craft.udp_segment(A6, B6, 5, 6), ext=((craft.HOP_BY_HOP, craft.options6()),), length=0), craft.ETH_IPV6
    )
    padded = craft.udp(A, B, 7, 8, b"x") + bytes(66_000)
    compared = judge(jumbo, craft.udp(A6, B6, 5, 6), padded, craft.udp(B, A, 8, 7), *HANDSHAKE)
    assert compared.unshown == ["jumbogram", *[None] * 6]
    assert kernel_says(compared, "conn")[1:] == [0, 1, 1, 2, 2, 2]


def test_a_connection_of_another_namespace_is_not_taken_for_ours(running_kernel: None) -> None:
    """The kernel uses the memory of a dead connection again, for whomever: an oracle that looks there has to see whose it is."""
    query = craft.udp(A, B, 1, 53)
    bad = craft.udp(A, B, 1, 53, l4_checksum=0xDEAD)
    row = parse_batch(*frames_of([query])).array[0]
    with Oracle(Config()) as one, Oracle(Config()) as other:
        first = one.show(4, query[14:], row["key"].tobytes)
        second = other.show(4, query[14:], row["key"].tobytes)
        assert first.leaving and second.leaving
        one._addresses[row["key"].tobytes()] = second.leaving.address
        assert one.show(4, bad[14:], row["key"].tobytes).asked is None
        assert other.show(4, bad[14:], row["key"].tobytes).asked is not None


def test_lost_messages_are_told(running_kernel: None) -> None:
    with Oracle(Config()) as oracle:
        lockstep = Lockstep(oracle)
        for sock in (oracle.listener._events, oracle.listener._log):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        memory, frames = frames_of([craft.udp(A, B, port, 53) for port in range(1, 40)])
        for place, frame in zip(inner(memory, frames), frames, strict=True):
            oracle.bridge.pass_(0x0800, memory[int(place["offset"]) : int(frame["offset"] + frame["caplen"])].tobytes())
        assert "(lost)" in oracle.listener.events()
        lockstep.reset()
        compared = lockstep.run(*frames_of(HANDSHAKE))
        assert differences(compared, lockstep.config.hz) == []


def left_behind() -> tuple[int, set[int], list[str]]:
    """What a leak would change: descriptors, this thread's CPUs, and interfaces in the namespace we live in."""
    return len(os.listdir("/proc/self/fd")), os.sched_getaffinity(0), [name for _, name in socket.if_nameindex()]


@pytest.mark.parametrize("accident", [OSError("in the middle"), KeyboardInterrupt()], ids=repr)
def test_nothing_is_left_whatever_happens(running_kernel: None, accident: BaseException) -> None:
    before = left_behind()
    with pytest.raises(type(accident)), Oracle(Config()) as oracle:
        Lockstep(oracle).run(*frames_of(HANDSHAKE))
        raise accident
    assert left_behind() == before


def test_nothing_is_left_of_an_oracle_that_could_not_be_made(running_kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = left_behind()
    monkeypatch.setattr(ruleset, "load", lambda *_, **__: (_ for _ in ()).throw(KernelError("no nftables")))
    with pytest.raises(KernelError, match="no nftables"):
        Oracle(Config())
    assert left_behind() == before


def test_a_setting_that_is_not_a_namespaces_own_is_refused(running_kernel: None) -> None:
    with pytest.raises(KernelError, match=r"--max 10: the kernel has one nf_conntrack_max for all namespaces, \d+,"):
        kernel_config(Config(max=10))


def test_a_sysctl_the_kernel_lacks_is_named(running_kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("datapath.oracle.oracle", fromlist=["SYSCTLS"]).SYSCTLS, "acct", "no_such_setting")
    with pytest.raises(KernelError, match="this kernel has no nf_conntrack_no_such_setting"):
        Oracle(Config())


def test_a_lost_fence_is_an_error_and_no_hang(running_kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Oracle(Config()) as oracle:
        oracle.bridge.out.settimeout(0.05)
        elsewhere = Tap(oracle.bridge.outside, "elsewhere", "02:00:00:00:00:05")
        monkeypatch.setattr(oracle.bridge, "into", elsewhere)
        with closing(elsewhere), pytest.raises(KernelError, match="a fence has not come through the bridge"):
            Lockstep(oracle).run(*frames_of(HANDSHAKE[:1]))


def test_a_kernel_without_taps_is_told(running_kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    before = left_behind()
    monkeypatch.setattr(namespace, "TUN_DEVICE", "/dev/net/no-such-device")
    with pytest.raises(KernelError, match=r"^/dev/net/no-such-device: No such file or directory: expected CONFIG_TUN, or modprobe tun$"):
        Oracle(Config())
    assert left_behind() == before
