"""Random traffic under random rules, at the level of bytes: what is written can be undone, and is sound."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.model.conn import Packet
from ctcore.model.l4 import inner_key
from ctcore.types import KEY_DTYPE, REWRITE_DTYPE, RewriteFlag, Verdict
from datapath import Pipeline, craft, frames_of
from datapath.fields import address
from datapath.rewrite import rewritten
from datapath.rule_text import parse_rule
from datapath.wire import parse_batch
from pcap_tests.test_datapath.translating import Ends, packet

INNER = RewriteFlag.REWRITE_INNER_SRC | RewriteFlag.REWRITE_INNER_DST
FAMILIES = {
    4: (["10.0.0.1", "10.0.0.2", "10.0.0.3"], ["198.51.100.1", "192.0.2.1"], ["192.0.2.1", "192.0.2.1-192.0.2.3", "10.0.0.1"]),
    6: (["2001:db8:1::1", "2001:db8:1::2"], ["2001:db8:2::1", "2001:db8:3::1"], ["2001:db8:3::1", "2001:db8:3::1-2001:db8:3::9", "2001:db8:1::1"]),
}
PORTS = [0, 1, 80, 600, 1024, 40000, 65535]  # few, of all classes, so that they clash
PROTOS = {4: [6, 17, 132, 136, 1, 47, 50], 6: [6, 17, 132, 136, 58, 47, 50]}


@st.composite
def rule_texts(draw: Any, family: int) -> tuple[str, str]:
    """A rule of any kind, for some or all packets."""
    kind = draw(st.sampled_from(["snat", "dnat", "masquerade", "redirect"]))
    addresses = draw(st.sampled_from(FAMILIES[family][2]))
    addresses = addresses.partition("-")[0] if kind in ("masquerade", "redirect") else addresses
    ports = draw(st.sampled_from(["", ":80", ":1024-1030", ":1-65535"]))
    flags = draw(st.sampled_from(["", ",random", ",fully-random", ",persistent"]))
    match = draw(st.sampled_from(["", "ip_proto tcp => ", "ip_proto udp dst_port 80 => ", "ip_proto icmp => "]))
    return kind, match + (f"[{addresses}]{ports}" if family == 6 and ports else addresses + ports) + flags


@dataclass(frozen=True)
class Step:
    """One packet: a new one, an answer to an earlier one, or an error about one. about: which earlier one, from the last on."""

    kind: str
    proto: int
    ends: Ends
    about: int
    what: dict[str, Any] = field(default_factory=dict)


@st.composite
def steps(draw: Any, family: int) -> Step:
    near, far, _ = FAMILIES[family]
    proto = draw(st.sampled_from(PROTOS[family]))
    ends = Ends(
        draw(st.sampled_from(near)), draw(st.sampled_from(far)), draw(st.sampled_from(PORTS)), draw(st.sampled_from(PORTS)) if proto != 1 else 0
    )
    kind = draw(st.sampled_from(["new", "new", "answer", "again", "error"]))
    return Step(kind, proto, ends, draw(st.integers(0, 5)), {"quote": draw(st.sampled_from([28, 48, 68, 500]))})


def contents(proto: int, answer: bool) -> dict[str, Any]:
    """What makes a packet open a connection, or answer one."""
    return {
        craft.TCP: {"flags": "SA" if answer else "S", "seq": 9, "ack": 1, "payload": b""},
        craft.UDP: {"payload": b"odd"},
        craft.UDPLITE: {"payload": b"odd", "sum_proto": craft.UDP},
        craft.SCTP: {"tag": 7 if answer else 0, "chunks": craft.sctp_init(9 if answer else 7, ack=answer)},
        craft.ICMP: {"kind": 0 if answer else 8, "sequence": 1, "payload": b"ping!"},
        craft.ICMPV6: {"kind": 129 if answer else 128, "sequence": 1, "payload": b"ping!"},
        craft.GRE: {"payload": b"12345"},
        craft.ESP: {"payload": b"12345"},
    }[proto]


def ends_of(frame: bytes) -> Ends:
    """Between whom a frame goes, as a record says it."""
    key = parse_batch(*frames_of([frame])).array["key"][0]
    return Ends(
        address(key["src"].tobytes(), int(key["family"])), address(key["dst"].tobytes(), int(key["family"])), int(key["sport"]), int(key["dport"])
    )


def next_frame(step: Step, left: list[tuple[int, bytes]]) -> tuple[int, bytes]:
    """The packet of a step, and its protocol. left: protocols and frames that have left, to be answered."""
    if not left or step.kind == "new":
        return step.proto, packet(step.proto, step.ends, contents(step.proto, answer=False))
    proto, about = left[-1 - step.about % len(left)]
    ends = ends_of(about)
    if step.kind == "error":
        kind, code = (3, 3) if ends.family == 4 else (1, 4)
        return proto, craft.icmp_error(ends.dst, ends.src, kind, code, about, quote=max(step.what["quote"], 48 if ends.family == 6 else 28))
    if step.kind == "again":
        return proto, packet(proto, step.ends, contents(proto, answer=False))
    back = Ends(ends.dst, ends.src, ends.sport, 0) if proto in (1, 58) else ends.back()
    return proto, packet(proto, back, contents(proto, answer=True))


def undone(key: np.void, row: np.void, told: np.void) -> np.ndarray:
    """The row that turns a packet back into what it was. key, row: as it came."""
    back = np.zeros(1, REWRITE_DTYPE)
    back["to"], back["flags"] = key, told["flags"]
    if int(told["flags"]) & INNER:  # then `to` is of the connection: the inverse of what the error quotes
        quoted, _ = inner_key(row)
        inverse = quoted.inverted() if quoted else None
        assert inverse is not None
        back["to"] = np.frombuffer(inverse.raw(), KEY_DTYPE)[0]
    return back


@pytest.mark.parametrize("family", [4, 6])
@given(data=st.data())
def test_whatever_leaves_is_sound_and_translated_back_is_the_original(family, data):
    """Under any rules, for any traffic: a packet that leaves has right checksums, the tuple that was told, and translated back is the original."""
    rules = data.draw(st.lists(rule_texts(family), min_size=1, max_size=3))
    traffic = data.draw(st.lists(steps(family), min_size=1, max_size=12))
    pipeline = Pipeline(Config(nat=tuple(parse_rule(*rule) for rule in rules)))
    left: list[tuple[int, bytes]] = []
    for step in traffic:
        proto, frame = next_frame(step, left)
        memory, frames = frames_of([frame])
        decisions, keys, rewrites = pipeline.process(memory, frames, keys=True, rewrites=True)
        out, laid, rows = pipeline.leaving(memory, frames, decisions, rewrites)
        assert len(rows) == (decisions["verdict"][0] == Verdict.ACCEPT), "what is accepted leaves"
        if not len(rows):
            continue
        before, after = parse_batch(memory, frames), parse_batch(out, laid)
        assert (after.array["reason"][0], after.array["l4_reason"][0]) == (before.array["reason"][0], before.array["l4_reason"][0])
        back = undone(keys[0], Packet.of(before.array[0], before.l4_bytes(0)), rewrites[0])
        again, _ = rewritten(out, laid, back)
        if not (rewrites["flags"][0] & INNER and proto == craft.SCTP):  # a quoted packet that was cut has a CRC of its own
            assert again.tobytes() == frame
        if step.kind != "error":
            left.append((proto, out.tobytes()))
    pipeline.tracker.check()
