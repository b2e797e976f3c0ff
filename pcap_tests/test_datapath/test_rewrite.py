"""Rewriting: what leaves is what a sound stack with the new addresses would have sent."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from ctcore.types import RewriteFlag
from datapath import craft
from datapath.frame import frames_of
from datapath.rewrite import rewrite_in_place, rewritten
from pcap_tests.test_datapath.guarded import Guarded
from pcap_tests.test_datapath.translating import (
    DST,
    ECHO,
    INNER,
    PROTOS,
    SRC,
    Case,
    Ends,
    addresses,
    cases,
    contents,
    leaves,
    packet,
    pairs,
    told,
)  # fmt: skip

INSIDE, OUTSIDE = Ends("10.0.0.2", "198.51.100.1", 40000, 80), Ends("192.0.2.1", "198.51.100.1", 1024, 80)
ETHERNET = 14


# --- one packet of each kind ---------------------------------------------------------------------------------------------------------------


def test_a_source_is_translated():
    came = craft.tcp("10.0.0.2", "198.51.100.1", 40000, 80, "S", seq=7)
    assert leaves(came, told(OUTSIDE, craft.TCP, SRC)) == craft.tcp("192.0.2.1", "198.51.100.1", 1024, 80, "S", seq=7)


def test_the_answer_is_translated_back():
    came = craft.tcp("198.51.100.1", "192.0.2.1", 80, 1024, "SA")
    assert leaves(came, told(INSIDE.back(), craft.TCP, DST)) == craft.tcp("198.51.100.1", "10.0.0.2", 80, 40000, "SA")


def test_a_frame_without_flags_stays_and_the_others_do_not():
    frames = [craft.udp("10.0.0.2", "198.51.100.1", 40000, 80, b"x"), craft.udp("10.0.0.9", "198.51.100.1", 1, 2, b"y")]
    rows = np.repeat(told(OUTSIDE, craft.UDP, SRC), 2)
    rows["flags"][1] = 0
    memory, laid = rewritten(*frames_of(frames), rows)
    first, second = (memory[f["offset"] : f["offset"] + f["caplen"]].tobytes() for f in laid)
    assert first == craft.udp("192.0.2.1", "198.51.100.1", 1024, 80, b"x")
    assert second == frames[1]


def test_what_is_behind_vlan_tags_and_before_padding_is_found_and_left():
    def tagged(ends: Ends) -> bytes:
        return craft.eth(craft.tcp(ends.src, ends.dst, ends.sport, ends.dport, "S")[ETHERNET:], vlan=(7, 8), pad=90)

    assert leaves(tagged(INSIDE), told(OUTSIDE, craft.TCP, SRC)) == tagged(OUTSIDE)


def test_no_udp_checksum_stays_none():
    def bare(ends: Ends) -> bytes:
        return craft.udp(ends.src, ends.dst, ends.sport, ends.dport, b"x", l4_checksum=0)

    assert leaves(bare(INSIDE), told(OUTSIDE, craft.UDP, SRC)) == bare(OUTSIDE)


@pytest.mark.parametrize("builder", [craft.udp, craft.udplite])
def test_a_udp_checksum_that_becomes_zero_is_written_as_ffff(builder):
    """RFC 768: 0 says that there is none. The port is chosen so that the sum is zero."""
    for port in range(0x10000):
        wanted = builder("192.0.2.1", "198.51.100.1", port, 80, b"x")
        if wanted[ETHERNET + 26 : ETHERNET + 28] == b"\xff\xff":
            break
    else:
        pytest.fail("one of all ports gives that sum")
    proto = craft.UDP if builder is craft.udp else craft.UDPLITE
    assert leaves(builder("10.0.0.2", "198.51.100.1", 40000, 80, b"x"), told(replace(OUTSIDE, sport=port), proto, SRC)) == wanted


def test_a_checksum_of_ffff_becomes_zero_even_if_nothing_changes():
    """Both say the same; Linux never writes 0xFFFF where RFC 768 does not ask for it."""
    came = craft.tcp("10.0.0.2", "198.51.100.1", 40000, 80, "S", l4_checksum=0xFFFF)
    left = leaves(came, told(INSIDE, craft.TCP, SRC))
    assert left == craft.tcp("10.0.0.2", "198.51.100.1", 40000, 80, "S", l4_checksum=0)


@pytest.mark.parametrize(("kind", "ident"), [(128, 9), (129, 9), (139, 5), (140, 5)])
def test_of_icmpv6_only_echo_gets_another_id(kind, ident):
    """As in Linux: a node information query keeps the id that its tuple is told apart by."""
    to = Ends("2001:db8::9", "2001:db8::2", 9)
    left = leaves(craft.icmp("2001:db8::1", "2001:db8::2", kind, ident=5, payload=b"x"), told(to, craft.ICMPV6, SRC, kind=kind))
    assert left == craft.icmp("2001:db8::9", "2001:db8::2", kind, ident=ident, payload=b"x")


def test_gre_has_the_receivers_call_id_only():
    came, to = Ends("10.0.0.2", "198.51.100.1", 0, 7), Ends("192.0.2.1", "203.0.113.1", 5, 9)
    assert leaves(packet(craft.GRE, came, {}), told(to, craft.GRE, SRC)) == packet(craft.GRE, replace(came, src=to.src), {})
    assert leaves(packet(craft.GRE, came, {}), told(to, craft.GRE, DST)) == packet(craft.GRE, replace(came, dst=to.dst, dport=9), {})


def test_gre_version_0_is_translated_by_its_addresses():
    to = Ends("192.0.2.1", "203.0.113.1", 5, 9)
    left = leaves(craft.gre("10.0.0.2", "198.51.100.1", payload=b"12345678"), told(to, craft.GRE, SRC | DST))
    assert left == craft.gre("192.0.2.1", "203.0.113.1", payload=b"12345678")


@pytest.mark.parametrize(("version", "payload", "flags", "sent"), [(0, b"", SRC, False), (2, bytes(8), DST, False), (2, bytes(8), SRC, True)])
def test_gre_that_linux_cannot_translate_does_not_leave(version, payload, flags, sent):
    """Shorter than PPTP's header, or of an unknown version."""
    left = leaves(craft.gre("10.0.0.2", "198.51.100.1", version=version, payload=payload), told(OUTSIDE, craft.GRE, flags))
    assert (left is not None) == sent


# --- every kind --------------------------------------------------------------------------------------------------------------------------


@given(cases())
def test_what_leaves_is_what_the_other_end_would_have_sent(case):
    """For every protocol and both families: a packet translated to a tuple has the bytes of one that was built with it."""
    assert leaves(case.before, case.row) == case.after


@given(cases())
def test_translated_back_every_packet_is_the_original(case):
    left = leaves(case.before, case.row)
    assert left is not None
    assert leaves(left, case.row_back) == case.before


@given(cases(), st.integers(0, 0xFFFF))
def test_a_wrong_checksum_stays_as_wrong(case, value):
    """Translating there and back gives a wrong checksum back, but for the two ways to write zero."""
    assume(case.proto in (craft.TCP, craft.UDP, craft.UDPLITE, *ECHO) and value not in (0, 0xFFFF))
    wrong = replace(case, what={**case.what, "l4_checksum": value})
    left = leaves(wrong.before, wrong.row)
    assert left is not None
    assert leaves(left, wrong.row_back) == wrong.before


@given(cases(family=4, proto=craft.TCP) | cases(family=4, proto=craft.UDP) | cases(family=6, proto=craft.TCP) | cases(family=6, proto=craft.UDP))
def test_scapy_finds_the_checksums_right(case):
    left = leaves(case.before, case.row)
    assert left is not None
    layer = TCP if case.proto == craft.TCP else UDP
    read, made = Ether(left), Ether(left)
    for packet_layer in (IP, IPv6, layer):
        if packet_layer in made and packet_layer is not IPv6:
            del made[packet_layer].chksum
    again = Ether(bytes(made))
    assert read[layer].chksum == again[layer].chksum
    assert IP not in read or read[IP].chksum == again[IP].chksum
    assert (read[layer].sport, read[layer].dport) == (case.to.sport, case.to.dport)


@given(cases(but=(craft.SCTP,)), st.data())
def test_of_a_packet_captured_in_part_that_part_is_translated(case, data):
    """What of a packet is there becomes what it would become in the whole packet: nothing depends on what was not captured, but SCTP's CRC."""
    whole = leaves(case.before, case.row)
    need = ETHERNET + header_length(case.came.family, case.what) + (20 if case.proto == craft.TCP else 8)
    caplen = data.draw(st.integers(min(need, len(case.before)), len(case.before)))
    assert whole is not None
    assert leaves(case.before, case.row, caplen=caplen) == whole[:caplen]


# --- ICMP errors -------------------------------------------------------------------------------------------------------------------------


def quoting(about: bytes, source: str, target: str, quote: int = 1232) -> bytes:
    kind, code = (1, 4) if ":" in source else (3, 3)
    return craft.icmp_error(source, target, kind, code, about, quote=quote)


def test_an_error_about_a_translated_packet_gets_home():
    """198.51.100.1 rejects what left as 192.0.2.1:1024; 10.0.0.2 is told that its own packet from port 40000 was rejected."""
    came = quoting(packet(craft.UDP, OUTSIDE, {"payload": b"x"}), "198.51.100.1", "192.0.2.1")
    left = leaves(came, told(INSIDE.back(), craft.UDP, DST | RewriteFlag.REWRITE_INNER_SRC))
    assert left == quoting(packet(craft.UDP, INSIDE, {"payload": b"x"}), "198.51.100.1", "10.0.0.2")


def test_a_router_that_sends_an_error_keeps_its_address():
    """Only the half that the connection has translated changes: here the error's destination."""
    came = quoting(packet(craft.UDP, OUTSIDE, {"payload": b"x"}), "203.0.113.5", "192.0.2.1")
    left = leaves(came, told(INSIDE.back(), craft.UDP, DST | RewriteFlag.REWRITE_INNER_SRC))
    assert left == quoting(packet(craft.UDP, INSIDE, {"payload": b"x"}), "203.0.113.5", "10.0.0.2")


@st.composite
def error_cases(draw, but=()):
    """An error as it came and as it is to leave, the row that says so, and the row back. The quoted packet went the other way."""
    family = draw(st.sampled_from((4, 6)))
    proto = draw(st.sampled_from([proto for proto in PROTOS[family] if proto not in (craft.GRE, *but)]))
    came, to = draw(pairs(family, proto))
    flags = draw(st.sampled_from([int(SRC), int(DST), int(SRC | DST)]))
    to = came.half(to, flags)
    what = draw(contents(family, proto))
    quoted_before, quoted_after = packet(proto, quoted(proto, came), what), packet(proto, quoted(proto, to), what)
    quote = len(quoted_before) - ETHERNET
    if proto != craft.SCTP:
        quote = draw(st.sampled_from([quote, min(quote, header_length(family, what) + 8)]))
    error = quoting(quoted_before, came.src, came.dst, quote), quoting(quoted_after, to.src, to.dst, quote)
    row = told(to, proto, flags | INNER[flags], kind=opposite(proto, what.get("kind", 0)))
    row_back = told(came, proto, flags | INNER[flags], kind=opposite(proto, what.get("kind", 0)))
    return error, row, row_back


def header_length(family: int, what: dict) -> int:
    return 20 + len(what.get("options", b"")) if family == 4 else 40 + sum(1 + len(rest) for _, rest in what["ext"])


def quoted(proto: int, ends: Ends) -> Ends:
    """The ends of the packet that an error between `ends` quotes."""
    return replace(ends.back(), sport=ends.sport, dport=0) if proto in ECHO else ends.back()


def opposite(proto: int, kind: int) -> int:
    if proto == craft.ICMPV6:
        return 257 - kind
    return {0: 8, 8: 0}.get(kind, kind + 1 if kind % 2 else kind - 1)


@given(error_cases())
def test_an_error_leaves_as_one_about_the_untranslated_packet(case):
    """For every protocol, with all of the quoted packet or its first 8 bytes: outer header, quoted header and both checksums."""
    (before, after), row, _ = case
    assert leaves(before, row) == after


@given(error_cases())
def test_an_error_translated_back_is_the_original(case):
    (before, _), row, row_back = case
    left = leaves(before, row)
    assert left is not None
    assert leaves(left, row_back) == before


# Up to where the first 8 bytes behind all options of a quoted packet's IP header are there, or the first 20.
LEAST = {4: ETHERNET + 20 + 8 + 60 + 20, 6: ETHERNET + 40 + 8 + 40 + 24 + 20}


@given(error_cases(but=(craft.SCTP,)), st.data())
def test_of_an_error_captured_in_part_that_part_is_translated(case, data):
    """As long as the quoted packet's header is there. An SCTP packet's CRC needs all of it."""
    (before, after), row, _ = case
    least = min(LEAST[int(row["to"]["family"][0])], len(before))
    caplen = data.draw(st.integers(least, len(before)))
    assert leaves(before, row, caplen=caplen) == after[:caplen]


def test_a_quoted_sctp_packet_that_was_cut_gets_the_crc_of_what_is_there():
    """As in Linux, which does not know that the rest is missing."""
    chunks = craft.sctp_chunk(0, 3, b"data" * 5)
    about = craft.sctp(OUTSIDE.src, OUTSIDE.dst, OUTSIDE.sport, OUTSIDE.dport, 5, chunks)
    left = leaves(quoting(about, "198.51.100.1", "192.0.2.1", 20 + 12 + 8), told(INSIDE.back(), craft.SCTP, DST | RewriteFlag.REWRITE_INNER_SRC))
    assert left is not None
    quoted_sctp = left[-20:]
    assert struct.unpack("!HH", quoted_sctp[:4]) == (40000, 80)
    assert struct.unpack("<I", quoted_sctp[8:12])[0] == craft.crc32c(quoted_sctp[:8] + bytes(4) + quoted_sctp[12:])


@pytest.mark.parametrize(("proto", "size", "sent"), [(craft.TCP, 7, False), (craft.TCP, 8, True), (craft.UDP, 7, False), (craft.UDP, 8, True)])
def test_an_error_that_quotes_less_than_8_bytes_does_not_leave(proto, size, sent):
    """Linux finds the connection by 4 of them, and asks for 8 to translate."""
    came = quoting(packet(proto, OUTSIDE, {}), "198.51.100.1", "192.0.2.1", 20 + size)
    assert (leaves(came, told(INSIDE.back(), proto, DST | RewriteFlag.REWRITE_INNER_SRC)) is not None) == sent


@pytest.mark.parametrize(("proto", "check"), [(craft.UDP, (0xC000, 0x0201)), (craft.TCP, (0x9C40, 0x0201))], ids=["udp", "tcp"])
def test_ports_in_the_address_of_a_header_that_says_it_is_short(proto, check):
    """Three words long, it has its ports where its source is. Linux writes the port there, and then the address: its sum counts the port as old.

    check: what a sum of the transport counts as the old address: UDP's the one that came, TCP's with the port in it.
    """
    header = struct.pack("!BBHHHBBH4s4s", 0x43, 0, 80, 7, 0, 64, proto, 0x5555, craft.address("192.0.2.1"), craft.address("198.51.100.1"))
    came = quoting(bytes(ETHERNET) + header + bytes(range(1, 61)), "198.51.100.1", "192.0.2.1")
    row = told(INSIDE.back(), proto, DST | RewriteFlag.REWRITE_INNER_SRC)
    left = leaves(came, row)
    assert left is not None
    quote = left[ETHERNET + 28 :]
    new = (0x0A00, 0x0002)
    assert quote[12:16] == struct.pack("!2H", *new)
    assert quote[10:12] == adjusted(0x5555, (0x9C40, 0x0201), new)
    at = {craft.UDP: 12 + 6, craft.TCP: 12 + 16}[proto]
    assert quote[at : at + 2] == adjusted(int.from_bytes(came[ETHERNET + 28 :][at : at + 2], "big"), (*check, 0xC000), (*new, 0x9C40))


def adjusted(value: int, old: tuple[int, ...], new: tuple[int, ...]) -> bytes:
    """RFC 1624, equation 3, of 16-bit words."""
    total = 0xFFFF - value + sum(0xFFFF - word for word in old) + sum(new)
    return (0xFFFF - ((total - 1) % 0xFFFF + 1)).to_bytes(2, "big")


# --- sequence numbers ---------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF), st.integers(-100, 100), st.integers(-100, 100), st.sampled_from([4, 6]))
def test_sequence_numbers_and_acknowledgments_move(seq, ack, by, back, family):
    ends = INSIDE if family == 4 else Ends("2001:db8::1", "2001:db8::2", 1, 2)
    row = told(ends, craft.TCP, RewriteFlag.REWRITE_SEQ, seq=by, ack=back)
    left = leaves(craft.tcp(ends.src, ends.dst, 1, 2, "A", seq=seq, ack=ack, payload=b"x"), row)
    assert left == craft.tcp(ends.src, ends.dst, 1, 2, "A", seq=seq + by, ack=ack + back, payload=b"x")


def test_without_ack_there_is_nothing_to_acknowledge():
    row = told(INSIDE, craft.TCP, RewriteFlag.REWRITE_SEQ, seq=5, ack=7)
    assert leaves(craft.tcp("10.0.0.2", "10.0.0.3", 1, 2, "R", seq=1, ack=1), row) == craft.tcp("10.0.0.2", "10.0.0.3", 1, 2, "R", seq=6, ack=1)


# --- hostile -----------------------------------------------------------------------------------------------------------------------------

GUARD = Guarded()


@given(cases() | error_cases().map(lambda case: (case[0][0], case[1])), st.data())
def test_no_byte_beyond_the_capture_is_touched(case, data):
    """Whatever the packet, wherever it was cut off, whatever byte of it is wrong: reads and writes stay within the captured bytes, on both sides."""
    frame, row = (case.before, case.row) if isinstance(case, Case) else case
    hostile = bytearray(frame[: data.draw(st.integers(1, len(frame)))])
    for _ in range(data.draw(st.integers(0, 3))):
        hostile[data.draw(st.integers(0, len(hostile) - 1))] = data.draw(st.integers(0, 255))
    row = row.copy()
    row["flags"] = data.draw(st.integers(1, 31))
    row["to"]["proto"] = data.draw(st.sampled_from([int(row["to"]["proto"][0]), 1, 6, 17, 47, 50, 58, 132, 136]))
    for place in (GUARD.at_end, GUARD.at_start):
        frames = place(bytes(hostile), wire_len=data.draw(st.sampled_from([len(hostile), len(frame)])))
        before = GUARD.memory.copy()
        try:
            rewrite_in_place(GUARD.memory, frames, row)
        except ValueError:
            continue  # of the other family by now
        start, size = int(frames["offset"][0]), int(frames["caplen"][0])
        changed = np.flatnonzero(GUARD.memory != before)
        assert len(changed) == 0 or (start <= changed[0] and changed[-1] < start + size)


def test_a_tuple_of_the_other_family_is_refused():
    with pytest.raises(ValueError, match=r"rewrites\[0\]: expected a tuple of IPv4"):
        leaves(craft.udp("10.0.0.1", "10.0.0.2", 1, 2), told(Ends("2001:db8::1", "2001:db8::2", 1, 2), craft.UDP, SRC))


def test_as_many_rows_as_frames_are_asked_for():
    memory, frames = frames_of([craft.udp("10.0.0.1", "10.0.0.2", 1, 2)])
    with pytest.raises(ValueError, match="rewrites: expected"):
        rewritten(memory, frames, told(OUTSIDE, craft.UDP, SRC)[:0])
    with pytest.raises(ValueError, match="rewrites: expected"):
        rewritten(memory, frames, np.zeros(1, np.uint8))


@given(addresses(4))
def test_no_frames_and_no_bytes_are_no_trouble(address):
    memory, frames = rewritten(*frames_of([]), told(Ends(address, address), craft.UDP, SRC)[:0])
    assert len(memory) == len(frames) == 0
