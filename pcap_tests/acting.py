"""The tests' vocabulary for `ct` actions: packets in the hands of a pipeline, action by action.

    net = Walker(make_tracker(nat=(snat("192.0.2.1"),)), classic)          # each packet goes through this pipeline, and is over then
    talk = net.udp("10.0.0.1:40000 > 198.51.100.7:53")
    talk.orig().leaves("192.0.2.1:40000 > 198.51.100.7:53").is_("new", conn=0)

    packet = net.take(talk.frame(ORIG))                                     # one packet, step by step
    packet.ct(zone=5).is_("new", conn=None)
    packet.ct(zone=5, commit=True).is_("new", conn=0)
    packet.over()

What an action changes in a packet is carried out before the next one sees it. Talks and tuples are those of pcap_tests.router.
Invariants, proved at each step: the tracker's own, what is carried agrees with what was decided, and a sound packet stays sound.
Not here: rules (datapath.pipeline), expectations about traffic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ctcore.batch import Batch
from ctcore.ct_action import BARE_NAT, NO_ASSOCIATION, Acted, Association, CtAction, Outcome
from ctcore.model.conn import Packet
from ctcore.model.l4 import inner_key, is_icmp_error, is_icmp_of_family
from ctcore.types import Reason, State, Verdict
from datapath.frame import frames_of
from datapath.leave import CHANGES
from datapath.rewrite import translated
from datapath.wire import parse_batch
from pcap_tests.router import Passed, Router
from pcap_tests.test_ctcore.twins import leaves

WITH_CONNECTION = {State.NEW, State.ESTABLISHED, State.RELATED}


@dataclass(frozen=True)
class Did(Passed):
    """What one action made of a packet."""

    acted: Acted | None = None
    frame: bytes = b""  # afterwards

    @property
    def association(self) -> Association:
        assert self.acted is not None
        return self.acted.association

    @property
    def goes_on(self) -> bool:
        assert self.acted is not None
        return self.acted.outcome == Outcome.ON

    def untracked(self) -> Did:
        """It goes on as if it had never been tracked."""
        assert self.goes_on and self.association == NO_ASSOCIATION
        return self

    def lost(self, state: str = "invalid", **expected: Any) -> Did:
        """It goes on, tracked, without a connection."""
        self.is_(state, conn=None, **expected)
        assert (self.goes_on, self.association.tracked, self.association.token) == (True, True, None)
        return self


class Hand:
    """A packet between two actions."""

    def __init__(self, net: Walker, frame: bytes):
        self.net, self.frame, self.association = net, frame, NO_ASSOCIATION

    def ct(self, **action: Any) -> Did:
        """One action, by the fields of CtAction."""
        asked = CtAction(**action)
        batch = self.net.batch([self.frame])
        packet = Packet.of(batch.array[0], batch.l4_bytes(0))
        acted = self.net.tracker.act(batch, asked, self.association)
        self.net.tracker.check()
        self.association = acted.association
        if acted.outcome == Outcome.ON:
            self.frame = carried_out(self.frame, acted)
        error = is_icmp_of_family(packet.key) and is_icmp_error(packet)
        quoted = inner_key(packet)[0] if error else None
        did = Did(acted.decision[0], self.net.hz, packet.key, acted.rewrite[0], quoted, acted, self.frame)
        agrees(did, asked)
        return did

    def over(self) -> None:
        """Whatever it carries, it carries no further."""
        self.net.tracker.leave(self.association)
        self.association = NO_ASSOCIATION
        self.net.tracker.check()


def carried_out(frame: bytes, acted: Acted) -> bytes:
    """A frame as an action wants it. One that was sound stays so."""
    memory, frames = frames_of([frame])
    sound = parse_batch(memory, frames).array["l4_reason"][0] == Reason.R_OK
    if not int(acted.rewrite["flags"][0]) & CHANGES:
        return frame
    memory, frames, sent = translated(memory, frames, acted.rewrite, acted.edits)
    assert sent[0], "the action asks for what the frame has no room for"
    start, end = int(frames["offset"][0]), int(frames["offset"][0]) + int(frames["caplen"][0])
    after = memory[start:end].tobytes()
    row = parse_batch(*frames_of([after])).array[0]
    assert not sound or (row["l4_reason"], row["verdict"]) == (Reason.R_OK, Verdict.PENDING), "the checksums are not what the packet says any more"
    return after


def agrees(did: Did, asked: CtAction) -> None:
    """What is carried, and what was decided."""
    decision, carried = did.record, did.association
    assert did.goes_on == (decision["verdict"] != Verdict.DROP)
    assert decision["zone"] == asked.zone
    if not did.goes_on or asked.clear:
        assert carried == NO_ASSOCIATION and did.flags == 0 and len(did.acted.edits) == 0
        return
    assert (carried.tracked, carried.zone) == (True, asked.zone)
    assert (carried.token is not None) == (decision["state"] in WITH_CONNECTION)
    if carried.token is not None:
        assert (carried.state, carried.dir, carried.mark) == (decision["state"], decision["dir"], decision["mark"])
    if asked.nat is None:
        assert did.acted.rewrite["flags"][0] & CHANGES & 0xF == 0, "translated, and nobody asked for it"


Pipeline = Callable[[Hand], Did]


def lookup(packet: Hand) -> Did:
    """`ct nat`: what is known is translated, what is new is not."""
    return packet.ct(nat=BARE_NAT)


def classic(packet: Hand) -> Did:
    """The pipeline everybody has: `-trk: ct nat`, `+trk+new: ct commit nat src|dst` by the first rule."""
    did = packet.ct(nat=BARE_NAT)
    return packet.ct(commit=True, nat=0) if did.state in ("new", "related") and did.conn is None else did


def plain(packet: Hand) -> Did:
    """The same without translation."""
    did = packet.ct()
    return packet.ct(commit=True) if did.state in ("new", "related") and did.conn is None else did


class Walker(Router):
    """A tracker, its clock, and the pipeline that packets go through which nobody takes by hand."""

    def __init__(self, tracker: Any, pipeline: Pipeline = plain):
        super().__init__(tracker)
        self.pipeline = pipeline

    def batch(self, frames: list[bytes], *, zone: int = 0) -> Batch:
        config = self.tracker.config
        return parse_batch(*frames_of(frames, ts=self.now), zone=zone, checksum=self.checksum, nat=bool(config.nat or config.nat_actions))

    def take(self, frame: bytes) -> Hand:
        return Hand(self, frame)

    def send(self, frame: bytes, *, zone: int = 0) -> Did:
        packet = self.take(frame)
        did = self.pipeline(packet)
        packet.over()
        return did

    def look(self, frame: bytes, **action: Any) -> Did:
        """One action on a packet that is over then."""
        packet = self.take(frame)
        did = packet.ct(**action)
        packet.over()
        return did

    def known(self) -> dict[str, Any]:
        """Everything that can be seen of a tracker but its events."""
        counters = {name: n for name, n in self.tracker.counters().items() if name not in ("found", "invalid")}
        conns = {name: column.tolist() for name, column in leaves(self.tracker.conns(), "conns")}
        zones, pools, expected = self.tracker.zone_counts(), self.tracker.nat_pools(), self.tracker.expectations()
        return {"conns": conns, "counters": counters, "zones": zones, "pools": pools, "expectations": expected}
