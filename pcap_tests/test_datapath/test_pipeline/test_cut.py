"""Datagrams cut up again on their way out of a hook: what datapath.refragment and datapath.joined say of any of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ctcore.types import DECISION_DTYPE, REWRITE_DTYPE, Proto, RewriteFlag, Status
from datapath import craft
from datapath.frame import frames_of
from datapath.joined import _pulled, joined
from datapath.pipeline.cut import cut_up, joined_of
from datapath.refragment import Datagram, refragment, wire_length
from datapath.wire import parse_batch

ENDS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("2001:db8::1", "2001:db8::2")}
COPIED, NOT_COPIED = b"\x83\x03\x04\x01", b"\x07\x07\x04\0\0\0\0\x01"  # loose source route, record route


@dataclass(frozen=True)
class Case:
    frame: bytes
    datagram: Datagram
    joined: int


def parts_of(lengths: list[int]) -> tuple[tuple[int, int, int], ...]:
    starts = accumulate(lengths, initial=0)
    return tuple((number, at, length) for number, (at, length) in enumerate(zip(starts, lengths, strict=False)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A datagram of some parts, with a payload as long as these or a helper's edit longer, and tags in front."""
    version = draw(st.sampled_from([4, 6]))
    lengths = [*draw(st.lists(st.integers(1, 12).map(lambda n: 8 * n), min_size=1, max_size=6)), draw(st.integers(1, 100))]
    head = 20 if version == 4 else 40
    options = draw(st.sampled_from([b"", COPIED, NOT_COPIED, COPIED + NOT_COPIED, b"\x01\x07\x09\0", b"\0\x07\x03\0"])) if version == 4 else b""
    ext = draw(st.sampled_from([(), ((0, craft.options6()),), ((43, craft.options6()), (60, craft.options6(1)))])) if version == 6 else ()
    size = max(sum(lengths) + draw(st.sampled_from([0, 0, 0, 0, 1, -3, 8, 200])), 1)
    payload = draw(st.binary(min_size=size, max_size=size))
    if version == 4:
        packet = craft.ipv4(*ENDS[4], 17, payload, options=options, tos=draw(st.integers(0, 255)))
        head += len(options)
    else:
        packet = craft.ipv6(*ENDS[6], 17, payload, ext=ext)
    link = craft.eth(b"", 0x0800 if version == 4 else 0x86DD, vlan=draw(st.sampled_from([(), (5,), (5, 6, 7)])))
    frame = link + packet
    carried = sum(lengths)
    largest = draw(st.sampled_from([head + 8 * (version == 6) + max(lengths), head + 30, head + 7, 1280, 1500]))
    length = head + carried if version == 4 else len(packet) - size + carried
    datagram = Datagram(0, b"", len(link), length, largest, draw(st.booleans()), draw(st.integers(0, 0xFFFFFFFF)), parts_of(lengths))
    cut = draw(st.sampled_from([0, 0, 0, 30])) if version == 4 and not options else 0
    return Case(frame[: len(frame) - cut] if len(frame) - cut > len(link) + head else frame, datagram, draw(st.integers(0, carried)))


def slowly(case: Case) -> list[tuple[bytes, int]]:
    datagram = case.datagram._replace(parts=_pulled(case.datagram.parts, case.joined))
    try:
        return [(piece, wire_length(piece, datagram) - len(piece)) for piece in refragment(case.frame, datagram)]
    except ValueError:
        return []


@given(cases())
def test_a_draft_is_cut_as_a_frame_is(case: Case) -> None:
    """Whatever was joined, edited or not captured: the same pieces, to the byte."""
    assert cut_up(case.frame, case.datagram, case.joined) == slowly(case)


def test_old_borders_new_ones_and_none() -> None:
    """800 + 400 + 56 again; in one piece up to the middle of the second; anew where it has become longer; not at all without room."""
    frame = craft.udp(*ENDS[4], 1, 2, bytes(1248))
    datagram = Datagram(0, b"", 14, 1276, 820, False, 1, parts_of([800, 400, 56]))
    for case, sizes in (
        (Case(frame, datagram, 20), [800, 400, 56]),
        (Case(frame, datagram, 1000), [800, 456]),
        (Case(frame, datagram._replace(largest=1276), 1000), [1000, 200, 56]),
        (Case(frame, datagram._replace(largest=1276), 1001), [1256]),
        (Case(craft.udp(*ENDS[4], 1, 2, bytes(1249)), datagram, 0), [800, 457]),
        (Case(frame, datagram._replace(largest=27), 0), []),
    ):
        assert [len(piece) - 34 for piece, _ in cut_up(case.frame, case.datagram, case.joined)] == sizes
        assert cut_up(case.frame, case.datagram, case.joined) == slowly(case)


QUOTED = RewriteFlag.REWRITE_INNER_SRC | RewriteFlag.REWRITE_INNER_DST
FLAGS = st.lists(st.sampled_from(list(RewriteFlag)), max_size=3).map(lambda flags: sum(set(flags)) & 0xFF)
L4 = st.sampled_from(
    [
        lambda ends, payload: craft.tcp(*ends, 1, 2, "A", options=bytes([1] * 12), payload=payload),
        lambda ends, payload: craft.tcp(*ends, 1, 2, "S", payload=payload),
        lambda ends, payload: craft.udp(*ends, 1, 2, payload),
        lambda ends, payload: craft.sctp(*ends, 1, 2, 7, payload),
        lambda ends, payload: craft.icmp_error(*ends, 3 if ":" not in ends[0] else 1, 1, craft.tcp(*ends[::-1], 1, 2, "S", payload=payload)),
        lambda ends, payload: craft.frame(*ends, 89, payload + bytes(4)),
        lambda ends, payload: craft.gre(*ends, payload=payload),
    ]
)


@given(make=L4, version=st.sampled_from([4, 6]), payload=st.binary(max_size=40), flags=FLAGS, extra=st.sampled_from([0, 8, 16]), data=st.data())
def test_as_much_is_in_one_piece_as_tracking_wanted(make, version, payload, flags, extra, data) -> None:
    """What an action writes to, or looks at, before the datagram is cut up again. extra: headers behind the fragment header."""
    memory, frames = frames_of([make(ENDS[version], payload)])
    batch = parse_batch(memory, frames, checksum=False)
    if batch.array["key"]["proto"][0] not in (Proto.PROTO_ICMP, Proto.PROTO_ICMPV6):
        flags &= 0xFF ^ QUOTED  # only errors quote anything
    decision, told = np.zeros(1, DECISION_DTYPE)[0], np.zeros(1, REWRITE_DTYPE)[0]
    told["flags"], told["to"]["proto"] = flags, data.draw(st.sampled_from([*Proto, 89]))
    decision["status"] = data.draw(st.sampled_from([0, Status.SEQ_ADJUST]))
    verified, carried = data.draw(st.booleans()), int(batch.array["l4_len"][0]) + extra
    datagram = Datagram(0, b"", 14, 0, 0, False, 0, tuple((i, i, 1) for i in range(carried)), verified)
    done = joined(datagram, batch, decision, told)
    assert max(joined_of(batch, decision, told, carried, verified=verified), 1) == done.parts[0][2]
