"""What of a datagram is in one piece before it is cut up again.

Not here: the kernel's own opinion (test_kernel/test_what_leaves.py, with the scenarios of fragments).
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.types import DECISION_DTYPE, REWRITE_DTYPE, RewriteFlag, Status
from datapath import craft
from datapath.defragment import Gatherer
from datapath.frame import LINK_RAW, frames_of
from datapath.joined import joined
from datapath.refragment import Datagram
from datapath.wire import parse_batch

ENDS, ENDS6 = ("10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::2")
SRC, INNER, QUOTE, WHOLE = (RewriteFlag[f"REWRITE_{name}"] for name in ("SRC", "INNER_DST", "QUOTE", "WHOLE"))
OSPF = 89


def made(ends: tuple[str, str], proto: int, payload: bytes, *sizes: int, checksum: bool = True) -> Datagram:
    """A datagram put together from fragments of so many bytes, and one of what is left."""
    frames, at = [], 0
    for size in (*sizes, len(payload) - sum(sizes)):
        more = at + size < len(payload)
        how = {"ext": ((craft.FRAGMENT, craft.fragment6(at, more)),)} if ends == ENDS6 else {"frag": at // 8 | more << 13}
        frames.append(craft.frame(*ends, proto, payload[at : at + size], **how))
        at += size
    gatherer = Gatherer(Config(checksum=checksum))
    gatherer.parse(*frames_of(frames))
    (datagram,) = gatherer.datagrams
    return datagram


def lengths(datagram: Datagram, flags: int | None = 0, *, quoted: int = 0, status: int = 0) -> list[int]:
    """Of the parts, when Linux has had its way. flags: of what is to be changed; None: nothing ever is; quoted: protocol of what an error quotes."""
    memory, place = frames_of([datagram.frame[datagram.l3 :]], link=LINK_RAW)
    told, decision = np.zeros(1, REWRITE_DTYPE), np.zeros(1, DECISION_DTYPE)
    told["flags"], told["to"]["proto"], decision["status"] = flags or 0, quoted, status
    done = joined(datagram, parse_batch(memory, place, checksum=False), decision[0], None if flags is None else told[0])
    assert sum(length for _, _, length in done.parts) == sum(length for _, _, length in datagram.parts)
    return [length for _, _, length in done.parts]


def segment(flags: str) -> bytes:
    """TCP: 20 bytes of header, 12 of options, 40 of payload."""
    return craft.tcp_segment(*ENDS, 1, 2, flags, options=bytes([1] * 12), payload=bytes(40))


def test_what_nobody_writes_to_stays_apart():
    datagram = made(ENDS, craft.TCP, segment("A"), 16, 8)
    assert lengths(datagram) == lengths(datagram, None) == [16, 8, 48]


def test_translation_writes_to_a_header_in_one_piece():
    assert lengths(made(ENDS, craft.TCP, segment("A"), 16, 8), SRC) == [20, 4, 48]
    assert lengths(made(ENDS, craft.TCP, segment("A"), 16, 48), SRC) == [20, 44, 8]
    assert lengths(made(ENDS, craft.TCP, segment("A"), 24, 8), SRC) == [24, 8, 40]
    assert lengths(made(ENDS, craft.UDP, craft.udp_segment(*ENDS, 1, 2, bytes(60)), 8, 8), SRC) == [8, 8, 52]


def test_numbers_that_move_take_the_options_along():
    assert lengths(made(ENDS, craft.TCP, segment("A"), 16, 8), SRC, status=Status.SEQ_ADJUST) == [32, 40]
    assert lengths(made(ENDS, craft.TCP, segment("S"), 16, 8), SRC, status=Status.SEQ_ADJUST) == [20, 4, 48]


def test_a_helper_may_want_all_of_it():
    assert lengths(made(ENDS, craft.TCP, segment("A"), 16, 8), WHOLE) == [72]


@pytest.mark.parametrize(("checksum", "parts"), [(True, [12, 20]), (False, [8, 24])])
def test_the_checksum_of_sctp_is_looked_for_as_if_it_were_to_be_written(checksum: bool, parts: list[int]):
    packet = craft.sctp_packet(1, 2, 0, craft.sctp_init(7))
    assert lengths(made(ENDS, craft.SCTP, packet, 8, checksum=checksum), None) == parts


def test_headers_behind_the_fragment_header_count():
    packet = bytes([craft.SCTP, 0, 1, 4, 0, 0, 0, 0]) + craft.sctp_packet(1, 2, 0, craft.sctp_init(7))
    assert lengths(made(ENDS6, craft.DESTINATION, packet, 16), None) == [20, 20]


@pytest.mark.parametrize(("proto", "there", "end"), [(craft.UDP, 60, 36), (craft.TCP, 60, 48), (craft.TCP, 12, 36), (OSPF, 60, 28)])
def test_an_error_is_in_one_piece_as_far_as_what_it_quotes_is_written_to(proto: int, there: int, end: int):
    """there: bytes that are quoted behind the quoted IP header."""
    message = craft.icmp_message(*ENDS, 3, 4, payload=craft.ip(*ENDS, proto, b"\0\1\0\2" + bytes(there - 4)))
    datagram = made(ENDS, craft.ICMP, message, 8)
    assert lengths(datagram, SRC | INNER | QUOTE, quoted=proto) == [end, len(message) - end]
    assert lengths(datagram, QUOTE) == [28, len(message) - 28]


@pytest.mark.parametrize(("ext", "end"), [((), 56), (((craft.DESTINATION, craft.options6()),), 64)])
def test_of_ipv6_too(ext: tuple, end: int):
    message = craft.icmp_message(*ENDS6, 1, 4, payload=craft.ip(*ENDS6, craft.UDP, craft.udp_segment(*ENDS6, 1, 2, bytes(52)), ext=ext))
    datagram = made(ENDS6, craft.ICMPV6, message, 16)
    assert lengths(datagram, SRC | INNER | QUOTE, quoted=craft.UDP) == [end, len(message) - end]
    assert lengths(datagram, QUOTE) == [48, len(message) - 48]


@given(units=st.lists(st.integers(1, 4), min_size=1, max_size=3), flags=st.sampled_from([0, SRC, WHOLE, SRC | WHOLE]))
def test_only_the_first_grows_and_only_the_next_one_that_is_left_shrinks(units: list[int], flags: int):
    sizes = [8 * n for n in units]
    before = [*sizes, 132 - sum(sizes)]
    after = lengths(made(ENDS, craft.TCP, craft.tcp_segment(*ENDS, 1, 2, payload=bytes(112)), *sizes), flags)
    gone = len(before) - len(after)
    assert after[0] >= before[0] and sum(after) == sum(before)
    assert after[2:] == before[gone + 2 :]
    assert len(after) == 1 or after[1] <= before[gone + 1]
