"""Address translation beside the running kernel: tuples, status and the bytes that leave, for every kind of rule, protocol and family.

Invariant of every test: engine and kernel agree. Ports that the kernel draws at random are where our search begins; it ends there only if they are
legal.
"""

from __future__ import annotations

import struct
import time
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest

from ctcore.config import Config
from ctcore.nat_rules import KINDS, Match, NatRule, Range
from ctcore.types import State, Status, Verdict
from datapath import craft, fields
from datapath.errors import KernelError
from datapath.frame import frames_of
from datapath.oracle.compare import differences, out_differences, without_idents
from datapath.oracle.lockstep import Compared, Lockstep
from datapath.oracle.oracle import Oracle
from pcap_tests.fuzz_kernel.campaign import PLANS, Campaign, summary

A, B, C = ("10.0.0.1", "2001:db8::1"), ("10.0.0.2", "2001:db8::2"), ("10.0.0.3", "2001:db8::3")
NEW, OTHER = ("192.0.2.1", "2001:db8:9::1"), ("192.0.2.2", "2001:db8:9::2")
TCP, UDP = 6, 17
SEED, TRACES, PER_SETTING = 6, 160, 20
FAMILIES = pytest.mark.parametrize("v", [0, 1], ids=["ipv4", "ipv6"])


def rule(kind: str, address: str, high: str = "", ports: tuple[int, int] | None = None, *, random: bool = False, **match: object) -> NatRule:
    low = ip_address(address)
    return NatRule(kind, Range(low, ip_address(high) if high else low, ports, random=random), Match(**match))


def judge(rules: list[NatRule], *frames: bytes, **settings) -> Compared:
    """What both say of some frames; they have to agree in everything."""
    with Oracle(Config(nat=tuple(rules), **settings)) as oracle:
        lockstep = Lockstep(oracle)
        compared = lockstep.run(*frames_of(frames))
        assert differences(compared, lockstep.config.hz) == []
        return compared


def packet(proto: str, src: str, dst: str, sport: int, dport: int) -> bytes:
    """The first packet of a connection, or the answer to it if that is the same."""
    match proto:
        case "tcp":
            return craft.tcp(src, dst, sport, dport, "S", seq=100)
        case "udp":
            return craft.udp(src, dst, sport, dport, b"text")
        case "udp without a checksum":
            return craft.udp(src, dst, sport, dport, b"text", l4_checksum=0)
        case "udplite":
            return craft.udplite(src, dst, sport, dport, b"text", sum_proto=craft.UDP)
        case "sctp":
            return craft.sctp(src, dst, sport, dport, 0, craft.sctp_init(77))
        case "icmp":
            return craft.icmp(src, dst, 8 if "." in src else 128, ident=sport)
        case "gre":
            return craft.frame(src, dst, craft.GRE, bytes([0, 0, 8, 0, 0, 0, 0, 0]))
        case _:
            return craft.frame(src, dst, 253, b"text")


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("proto", ["tcp", "udp", "udp without a checksum", "udplite", "sctp", "icmp", "gre", "generic"])
def test_every_kind_of_rule_for_every_protocol(running_kernel: None, proto: str, kind: str, v: int) -> None:
    """Two clients that clash, on few ports; the answers to what left."""
    rules = [rule(kind, NEW[v], ports=(7000, 7003))]
    first = judge(rules, packet(proto, A[v], B[v], 1000, 53), packet(proto, C[v], B[v], 1000, 53))
    assert all(status & (Status.SRC_NAT | Status.DST_NAT) for status in first.theirs.decisions["status"][:1])
    assert first.theirs.out[0] != (packet(proto, A[v], B[v], 1000, 53)[14:],)


@FAMILIES
def test_a_range_of_two_ports_serves_two_clients(running_kernel: None, v: int) -> None:
    clients = [craft.udp(client, B[v], 1000, 53) for client in (A[v], C[v], NEW[v])]
    compared = judge([rule("snat", OTHER[v], ports=(7000, 7001))], *clients)
    assert compared.theirs.decisions["verdict"].tolist() == [Verdict.ACCEPT, Verdict.ACCEPT, Verdict.DROP]
    assert compared.theirs.decisions["state"].tolist() == [State.NEW, State.NEW, State.NOT_SEEN]


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ports", [None, (5000, 5001)])
def test_all_zeros_keep_the_address(running_kernel: None, kind: str, ports: tuple[int, int] | None, v: int) -> None:
    """In words of nftables, which would translate to this very address: ports alone, or nothing."""
    keep = rule(kind, ("0.0.0.0", "::")[v], ports=ports)
    compared = judge([keep], *(craft.udp(client, B[v], 1000, 53, b"x") for client in (A[v], C[v])))
    orig, reply = (compared.theirs.conns["flow"]["key"][:, d] for d in (0, 1))
    assert orig["src"].tolist() == reply["dst"].tolist() and orig["dst"].tolist() == reply["src"].tolist()
    assert ((orig["sport"] != reply["dport"]) | (orig["dport"] != reply["sport"])).tolist() == [ports is not None] * 2


def test_no_rule_of_nftables_draws_any_port_at_the_packets_own_address(running_kernel: None) -> None:
    with pytest.raises(KernelError, match="expected an address or ports, or no random port"):
        judge([rule("snat", "0.0.0.0", random=True)])


@FAMILIES
def test_hairpin(running_kernel: None, v: int) -> None:
    """A client and its server behind one public address, and the server's answer."""
    rules = [rule("dnat", B[v], ports=(8080, 8080), dport=(80, 80)), rule("masquerade", NEW[v], dport=(8080, 8080))]
    frames = [craft.tcp(A[v], NEW[v], 1000, 80, "S", seq=100), craft.tcp(B[v], NEW[v], 8080, 1000, "SA", seq=500, ack=101)]
    compared = judge(rules, *frames)
    assert compared.theirs.out[1] == (craft.tcp(NEW[v], A[v], 80, 1000, "SA", seq=500, ack=101)[14:],)


@FAMILIES
@pytest.mark.parametrize("quote", [None, 28, 48, 60])
def test_errors_about_a_translated_flow_both_ways(running_kernel: None, v: int, quote: int | None) -> None:
    """From behind the translation about a question, from before it about an answer."""
    asked, left = craft.udp(A[v], B[v], 1000, 53, b"x" * 40), craft.udp(NEW[v], B[v], 1000, 53, b"x" * 40)
    answer, arrived = craft.udp(B[v], NEW[v], 53, 1000, b"y" * 40), craft.udp(B[v], A[v], 53, 1000, b"y" * 40)
    unreachable = ((3, 3), (1, 4))[v]
    size = {} if quote is None else {"quote": quote}
    errors = [craft.icmp_error(C[v], NEW[v], *unreachable, left, **size), craft.icmp_error(A[v], B[v], *unreachable, arrived, **size)]
    compared = judge([rule("snat", NEW[v])], asked, answer, *errors)
    if quote != 28 or v == 0:
        assert compared.theirs.decisions["state"].tolist()[2:] == [State.RELATED] * 2


# Source and destination port that a quoted header has where it is so many words long: version, length and type of service; identification and DF;
# TTL and protocol; then the addresses.
INSIDE_HEADER = {0: (0x4012, 80), 1: (0x1234, 0x4000), 2: (0x4000, 0x1234), 3: (0xC000, 0x0201), 4: (0x0A00, 0x0002)}


@pytest.mark.parametrize("kinds", [("snat",), ("dnat",), ("dnat", "snat")], ids="-".join)
@pytest.mark.parametrize("words", INSIDE_HEADER)
@pytest.mark.parametrize("proto", ["tcp", "udp", "udplite", "sctp"])
def test_a_quoted_header_whose_ports_are_its_own_fields(running_kernel: None, proto: str, words: int, kinds: tuple[str, ...]) -> None:
    """Linux believes it to be as short as it says. What is written last stays, and the sums count what was there by then."""
    number = {"tcp": TCP, "udp": UDP, "udplite": 136, "sctp": 132}[proto]
    sport, dport = INSIDE_HEADER[words]
    if words == 2:
        sport |= number
    front = OTHER[0] if "dnat" in kinds else B[0]
    source = NEW[0] if "snat" in kinds else A[0]
    rules = [rule("dnat", B[0])] * ("dnat" in kinds) + [rule("snat", NEW[0], ports=(sport, sport))] * ("snat" in kinds)
    head = bytearray(struct.pack("!BBHHHBBH4s4s", 0x40 | words, 0x12, 80, 7, 0, 64, number, 0x5555, craft.address(source), craft.address(B[0])))
    head[4 * words : 4 * words + 4] = struct.pack("!2H", sport, dport)
    error = craft.icmp_error(C[0], source, 3, 3, bytes(14) + bytes(head) + bytes(range(60)), quote=60)
    compared = judge(rules, packet(proto, A[0], front, 1000 if "snat" in kinds else sport, dport), error)
    # Without SNAT, the third word is 10.0.0.1, and no connection has those ports.
    found = State.INVALID if words == 3 and "snat" not in kinds else State.RELATED
    assert compared.theirs.decisions["state"].tolist()[1] == found


def closed(v: int, how: str) -> list[bytes]:
    """A's connection from port 7000, which it keeps, until it is in TIME_WAIT or CLOSE."""
    here, there = (A[v], B[v], 7000, 80), (B[v], NEW[v], 80, 7000)
    handshake = [craft.tcp(*here, "S", seq=100), craft.tcp(*there, "SA", seq=500, ack=101), craft.tcp(*here, "A", seq=101, ack=501)]
    if how == "CLOSE":
        return [*handshake, craft.tcp(*there, "R", seq=501)]
    farewell = [craft.tcp(*here, "FA", seq=101, ack=501), craft.tcp(*there, "FA", seq=501, ack=102), craft.tcp(*here, "A", seq=102, ack=502)]
    return [*handshake, *farewell]


TAKEN, REFUSED = Verdict.ACCEPT, Verdict.DROP


@FAMILIES
@pytest.mark.parametrize(("how", "end"), [("TIME_WAIT", 102), ("CLOSE", 101)])
@pytest.mark.parametrize(
    ("flags", "beyond", "verdict"),
    [("S", 5000, TAKEN), ("S", 1, TAKEN), ("S", 0, REFUSED), ("S", -50, REFUSED), ("S", 1 << 31, REFUSED), ("A", 5000, REFUSED)],
)
def test_a_newer_syn_takes_the_tuple_of_a_closed_connection(
    running_kernel: None, v: int, how: str, end: int, flags: str, beyond: int, verdict: Verdict
) -> None:
    """Of two ports one belongs to a closed connection, the other one to one in SYN_SENT. A single port would not be searched for.

    end: of what the client sent on the closed one; beyond: by how much the new one's first packet ends later (RFC 1122 4.2.2.13).
    """
    seq = end + beyond - len(flags.replace("A", ""))
    held = craft.tcp(OTHER[v], B[v], 7001, 80, "S", seq=100)
    late = craft.tcp(C[v], B[v], 1000, 80, flags, seq=seq, ack=501 * (flags == "A"))
    compared = judge([rule("snat", NEW[v], ports=(7000, 7001))], held, *closed(v, how), late)
    assert fields.l4state_name(TCP, int(compared.theirs.decisions["l4state"][-2])) == how
    assert compared.theirs.decisions["verdict"][-1] == verdict


def test_an_open_connection_keeps_its_tuple(running_kernel: None) -> None:
    """However new the SYN is: both ports are held in SYN_SENT."""
    syns = [craft.tcp(A[0], B[0], sport, 80, "S", seq=100) for sport in (1000, 1001)]
    compared = judge([rule("snat", NEW[0], ports=(7000, 7001))], *syns, craft.tcp(C[0], B[0], 1000, 80, "S", seq=5000))
    assert compared.theirs.decisions["verdict"][2] == Verdict.DROP


def fragments6(ident: int, *offsets: int) -> tuple[bytes, ...]:
    exts = [((craft.FRAGMENT, craft.fragment6(offset, True, ident)),) for offset in offsets]
    return tuple(craft.ipv6(A[1], B[1], UDP, bytes(16), ext=ext) for ext in exts)


def test_fragments_may_have_any_identification_but_one() -> None:
    assert without_idents(fragments6(7, 0, 16)) == without_idents(fragments6(9, 0, 16))
    mixed = (*fragments6(7, 0), *fragments6(9, 16))
    assert without_idents(mixed) == mixed
    assert without_idents(fragments6(7, 0, 16)) != without_idents(fragments6(7, 0, 8))


@FAMILIES
def test_a_translated_datagram_leaves_in_fragments(running_kernel: None, v: int) -> None:
    """Asked and answered in fragments, the last one first; held ones leave nothing behind."""
    frames = []
    for src, dst, sport, dport in ((A[v], B[v], 1000, 53), (B[v], NEW[v], 53, 1000)):
        whole = craft.udp_segment(src, dst, sport, dport, b"x" * 2000)
        for offset, size, more in ((1304, 704, False), (0, 1304, True)):
            part = whole[offset : offset + size]
            if v:
                frames.append(craft.frame(src, dst, UDP, part, ext=((craft.FRAGMENT, craft.fragment6(offset, more, 5)),)))
            else:
                frames.append(craft.frame(src, dst, UDP, part, ident=5, frag=offset // 8 | 0x2000 * more))
    compared = judge([rule("snat", NEW[v])], *frames)
    assert [len(left) for left in compared.theirs.out] == [0, 2, 0, 2]
    assert compared.theirs.decisions["verdict"].tolist() == [Verdict.HELD, Verdict.ACCEPT] * 2


@pytest.mark.parametrize(("size", "cut"), [(1200, 600), (1200, 8), (1232, 1000), (1400, 704)])
def test_small_fragments_of_ipv6_keep_their_borders(running_kernel: None, size: int, cut: int) -> None:
    """The first packet of all has a translated destination, and the whole would fit into 1,280 bytes."""
    frames = []
    for offset, length, more in ((0, cut, True), (cut, size - cut, False)):
        part = craft.udp_segment(A[1], NEW[1], 1000, 53, bytes(size - 8))[offset : offset + length]
        frames.append(craft.frame(A[1], NEW[1], UDP, part, ext=((craft.FRAGMENT, craft.fragment6(offset, more, 5)),)))
    compared = judge([rule("dnat", B[1])], *frames)
    headers = 48  # IPv6 and fragment
    sizes = [headers + cut, headers + size - cut] if size + headers - 8 > headers + max(cut, size - cut) else [headers - 8 + size]
    assert [len(packet) for packet in compared.theirs.out[1]] == sizes


@FAMILIES
def test_a_header_that_comes_in_pieces_is_translated_in_one(running_kernel: None, v: int) -> None:
    """The old borders are gone then: it is cut anew at the largest size. IPv6 drops a datagram whose first fragment ends so early (RFC 7112 5)."""
    whole = craft.tcp_segment(A[v], B[v], 1000, 80, "PA", seq=1, ack=1, payload=bytes(1196))
    frames = []
    for start, end in ((0, 8), (8, 16), (16, 24), (24, 1024), (1024, len(whole))):
        more = end < len(whole)
        if v:
            frames.append(craft.frame(A[1], B[1], TCP, whole[start:end], ext=((craft.FRAGMENT, craft.fragment6(start, more, 5)),)))
        else:
            frames.append(craft.frame(A[0], B[0], TCP, whole[start:end], ident=5, frag=start // 8 | 0x2000 * more))
    assert len(judge([rule("snat", NEW[v])], *frames).theirs.out[-1]) == (2, 0)[v]


@pytest.mark.parametrize("kept", [True, False])
def test_the_df_bit_of_fragments(running_kernel: None, kept: bool) -> None:
    """A bridge that cuts a datagram anew knows nothing of it any more, where a router sets it if the largest fragment had it."""
    whole = craft.tcp_segment(A[0], B[0], 1000, 80, "S", seq=1, payload=bytes(24))
    cuts = (0, 24, len(whole)) if kept else (0, 8, 24, len(whole))
    frames = [craft.frame(A[0], B[0], TCP, whole[a:b], ident=5, frag=a // 8 | 0x2000 * (b < len(whole)) | 0x4000) for a, b in pairwise(cuts)]
    assert not any(packet[6] & 0x40 for packet in judge([rule("snat", NEW[0])], *frames).theirs.out[-1])


@pytest.mark.parametrize("rules", [[], [rule("snat", NEW[1])]], ids=["plain", "snat"])
@pytest.mark.parametrize("before", [(), ((craft.DESTINATION, bytes(7)),), ((craft.AH, bytes([4]) + bytes(22)),)], ids=["alone", "options", "ah"])
def test_atomic_fragments_leave_without_their_header(running_kernel: None, rules: list[NatRule], before: tuple) -> None:
    """RFC 6946: an atomic fragment is a whole datagram."""
    segment = craft.udp_segment(A[1], B[1], 1000, 53, b"text")
    frame = craft.frame(A[1], B[1], UDP, segment, ext=(*before, (craft.FRAGMENT, craft.fragment6(0, False, 7))))
    compared = judge(rules, frame)
    assert [len(packet) for packet in compared.theirs.out[0]] == [len(frame) - 14 - 8]


def test_bytes_that_differ_are_told() -> None:
    assert out_differences((b"abcd",), (b"abXd",)) == {"out.bytes[2:3]": ("63", "58")}
    assert out_differences((b"abcd",), ()) == {"out.lengths": ([4], [])}
    assert out_differences((b"ab", b"cd"), (b"ab", b"ce")) == {"out[1].bytes[1:2]": ("64", "65")}


def test_a_short_run_of_random_rules_finds_no_difference(running_kernel: None, tmp_path) -> None:
    said: list[str] = []
    tally = Campaign(SEED, tmp_path, PER_SETTING, said.append, PLANS["nat"]).run(traces=TRACES, slow=False)
    assert not tally.differing, "\n".join(said)
    assert tally.packets > 5000
    assert {"nat_exhausted", "nat_icmp", "nat_gre"} <= set(tally.reasons), summary(SEED, tally)
    assert {"fragment", "fragment_duplicate", "fragment_overlap", "helper_partial"} <= set(tally.reasons), summary(SEED, tally)


@FAMILIES
def test_an_id_that_the_destination_drew_and_the_source_hid(running_kernel: None, v: int) -> None:
    """A ping whose id is drawn with the destination, and then becomes what another ping of that very id has: the drawn one is nowhere to be seen.

    Sixteen pings to another server have the sixteen ids, and one of a hundred each outside.
    """
    proto, kind = ((1, 8), (58, 128))[v]
    rules = [
        rule("dnat", B[v], ports=(500, 515), random=True, proto=proto, dst=ip_network(OTHER[v])),
        rule("snat", NEW[v], ports=(600, 700), proto=proto),
    ]
    pings = [craft.icmp(A[v], C[v], kind, ident=500 + i) for i in range(16)]
    compared = judge(rules, *pings, craft.icmp(A[v], OTHER[v], kind, ident=7))
    ids = compared.theirs.conns["flow"]["key"][:, 1]["sport"].tolist()
    assert ids[-1] in ids[:-1]


@FAMILIES
def test_an_expired_connection_lends_its_port_to_nobody(running_kernel: None, v: int) -> None:
    """A client whose port was taken got another one. Once both connections are over it keeps its own; a kernel that did not look would not know."""
    with Oracle(Config(nat=(rule("snat", NEW[v]),), timeouts={"udp_timeout": 1})) as oracle:
        lockstep = Lockstep(oracle)
        for wait, client, server, kept in ((0, A, B, True), (0, C, B, False), (1.1, C, OTHER, True)):
            time.sleep(wait)
            compared = lockstep.run(*frames_of([craft.udp(client[v], server[v], 1000, 53, b"text")]))
            assert differences(compared, oracle.config.hz) == []
            assert (compared.theirs.conns["flow"]["key"]["dport"][0, 1] == 1000) == kept
