"""The `ct` action for the interpreter: a rule's action done to a frame by any tracker that has act() and leave(), the model or the engine.

    config = settings_of(ruleset, Config())
    interpreter = Interpreter(ruleset, RuleTracker(ModelTracker(config)))

Theory of operation: what Linux does around connection tracking is done here (tcf_ct_act): fragments are put together in the action's zone, what lies
behind the IP packet is cut off, and what the tracker wants changed is changed at once, so that later rules see it. A datagram stays in one piece
until it leaves the hook; then it is cut up again as it came.
One packet: two fragments come to `ct nat`. The first is held, the second becomes the datagram, which is translated, matched, redirected, and leaves
as two fragments.
Invariants: a frame that goes on is an IP packet and its link header, nothing else; an association goes back to the tracker exactly once.
Not here: tracking (ctcore), rules (interpret), bytes (rewrite, edits, refragment). Slow, like all that the interpreter uses.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ctcore import reasons
from ctcore.batch import Batch
from ctcore.config import Config
from ctcore.ct_action import NO_ASSOCIATION, Acted, Association, CtAction, Outcome
from ctcore.errors import ConfigError
from ctcore.types import Dir, Reason, RewriteFlag, State, Verdict
from datapath.defragment import Gatherer
from datapath.frame import frames_of
from datapath.joined import joined
from datapath.leave import CHANGES
from datapath.pipeline.ct_settings import range_of, ranges_of
from datapath.pipeline.interpret import NOT_TRACKED, Piece, Tracked
from datapath.pipeline.munge import layers
from datapath.pipeline.rules import CT_STATES, ETH_IP, ETH_IPV6, Ct, CtNat
from datapath.refragment import Datagram, ip_length, refragment, wire_length
from datapath.rewrite import translated
from datapath.wire import parse_batch

SECOND = 1_000_000_000
LARGEST = 0xFFFF  # bytes of a datagram
FAMILIES = {ETH_IP: 4, ETH_IPV6: 6}
# tcf_classify() sees a connection's state in these bits (skb_flow_dissect_ct); of a packet that has none, but was tracked, that it is invalid.
STATE_BITS: dict[int, int] = {State.NEW: CT_STATES["new"], State.ESTABLISHED: CT_STATES["est"], State.RELATED: CT_STATES["rel"]}


class Acting(Protocol):
    """What is wanted of a tracker."""

    config: Config

    def act(self, batch: Batch, action: CtAction, before: Association = NO_ASSOCIATION) -> Acted: ...
    def leave(self, association: Association) -> None: ...


class Carried(NamedTuple):
    """What a frame has with it between two actions. datagram: where it was put together from fragments, how these were."""

    association: Association = NO_ASSOCIATION
    datagram: Datagram | None = None


NOTHING = Carried()


def state_bits(association: Association) -> int:
    """As flower matches it (rules.CT_STATES)."""
    if not association.tracked:
        return 0
    if association.token is None:
        return CT_STATES["trk"] | CT_STATES["inv"]
    return CT_STATES["trk"] | STATE_BITS[association.state] | (CT_STATES["rpl"] if association.dir == Dir.REPLY else 0)


def tracked_of(carried: Carried) -> Tracked:
    told = carried.association
    return Tracked(state_bits(told), told.zone, told.mark, told.label, carried)


# --- the action ------------------------------------------------------------------------------------------------------------------------


class RuleTracker:
    """interpret.Tracker on top of a tracker whose settings are settings_of() the rules. Errors are the caller's mistakes: ConfigError."""

    def __init__(self, tracker: Acting) -> None:
        self.tracker = tracker
        self._ranges = ranges_of(tracker.config)
        self._fragments = Fragments(tracker.config)

    def act(self, action: Ct, frame: bytes, now: int, before: Tracked, missing: int = 0) -> tuple[str, bytes, Tracked]:
        """What becomes of a frame ("go on", "drop", "held"), the frame, and what is said of it. missing: bytes that were not captured."""
        carried: Carried = before.conn or NOTHING
        if action.clear:
            acted = self.tracker.act(parse_batch(*row_of(frame, missing, now), at_hook=True), CtAction(clear=True), carried.association)
            return "go on", frame, tracked_of(Carried(acted.association, carried.datagram))
        if layers(frame).kind not in FAMILIES:
            return self._stop("drop", frame, before, Reason.R_NOT_IP)
        batch, datagram = self._fragments.gather(frame, missing, now, action.zone)
        if batch.array["verdict"][0] == Verdict.HELD:
            return self._stop("held", frame, before, Reason.R_FRAGMENT)
        acted = self.tracker.act(batch, self._asked(action, batch.array[0]), carried.association)
        if acted.outcome == Outcome.DROPPED:
            return self._stop("drop", frame, NOT_TRACKED, int(acted.decision["reason"][0]))
        joined_now = datagram is not None
        if datagram is not None:
            frame, missing = datagram.frame, LARGEST  # what is missing of it, its header says
        datagram = datagram or carried.datagram
        if datagram is not None:
            datagram = joined(datagram, batch, acted.decision[0], acted.rewrite[0])
        after = tracked_of(Carried(acted.association, datagram))
        frame, missing = trimmed(frame, missing)
        changed = carried_out(frame, missing, acted)
        if changed is None:
            return self._stop("drop", frame, after, Reason.R_HELPER_REFUSED if translates(frame, missing, acted) else Reason.R_RULE_FIELD)
        return "go on", changed, after._replace(missing=missing, joined=joined_now)

    def leave(self, tracked: Tracked) -> None:
        """A frame is over, or goes where nobody knows of its connection."""
        self.tracker.leave((tracked.conn or NOTHING).association)

    def cut(self, frame: bytes, tracked: Tracked, missing: int = 0) -> list[Piece]:
        """In what a frame leaves: in several pieces if it was put together from fragments; none if it cannot be cut up any more."""
        datagram = (tracked.conn or NOTHING).datagram
        if datagram is None:
            return [Piece(frame, missing)]
        where = layers(frame)
        if where.kind not in FAMILIES or where.l3 < 0:
            return []
        datagram = datagram._replace(l3=where.l3)
        try:
            return [Piece(piece, wire_length(piece, datagram) - len(piece)) for piece in refragment(frame, datagram)]
        except ValueError:
            return []

    def _stop(self, what: str, frame: bytes, tracked: Tracked, reason: int) -> tuple[str, bytes, Tracked]:
        """Here the frame ends, and gives back what it carries."""
        self.leave(tracked)
        return what, frame, NOT_TRACKED._replace(reason=reasons.NAMES[reason])

    def _asked(self, action: Ct, row: np.void) -> CtAction:
        """The same in the tracker's words."""
        helper = None
        if action.helper is not None:
            name, family, proto = action.helper
            # Of others Linux gives it to the connection as well, and never asks it (nf_ct_helper).
            helper = name if (family, proto) == (row["key"]["family"], row["key"]["proto"]) else None
        return CtAction(action.zone, action.commit, action.force, False, self._range(action.nat), action.mark, action.label, helper)

    def _range(self, nat: CtNat | None) -> int | None:
        try:
            return range_of(nat, self._ranges)
        except KeyError:
            raise ConfigError(f"ct: nat {nat and nat.kind} {nat and nat.low}: expected a tracker with settings_of() these rules") from None


def row_of(frame: bytes, missing: int, now: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Memory and frames of one frame."""
    memory, frames = frames_of([frame], ts=now)
    frames["len"] += missing
    return memory, frames


def trimmed(frame: bytes, missing: int) -> tuple[bytes, int]:
    """Without what lies behind the IP packet, by the length in its header, which may be more than is there; and what of that was not captured.

    Source: nf_ct_skb_network_trim.
    """
    l3 = layers(frame).l3
    end = l3 + ip_length(frame[l3:])
    return frame[:end], min(max(end - len(frame), 0), missing)


def carried_out(frame: bytes, missing: int, acted: Acted) -> bytes | None:
    """A frame that ends with its IP packet as the tracker wants it; None if there is too little of it: Linux drops that."""
    if not int(acted.rewrite["flags"][0]) & CHANGES:
        return frame
    memory, frames, sent = translated(*row_of(frame, missing), acted.rewrite, acted.edits)
    start, size = int(frames["offset"][0]), int(frames["caplen"][0])
    return memory[start : start + size].tobytes() if sent[0] else None


def translates(frame: bytes, missing: int, acted: Acted) -> bool:
    """Whether it is a helper's edits that cannot be carried out, and nothing else."""
    told = acted.rewrite.copy()
    told["flags"] &= np.uint8(0xFF ^ RewriteFlag.REWRITE_EDIT)
    return carried_out(frame, missing, acted._replace(rewrite=told)) is not None


# --- fragments -------------------------------------------------------------------------------------------------------------------------


class Fragments:
    """Frames parsed, with fragments put together over all calls, and the link headers of those that wait: a datagram leaves with its first one's.

    A link header is kept no longer than any datagram waits.
    """

    def __init__(self, config: Config) -> None:
        self._gatherer = Gatherer(config, at_hook=True)
        self._longest = max(config.ticks(name) for name in ("ipfrag_time", "frag6_timeout")) * SECOND // config.hz
        self._links: dict[int, tuple[int, bytes]] = {}  # by number of the frame: when it came, and its link header
        self._parsed = 0
        self._now = 0

    def gather(self, frame: bytes, missing: int, now: int, zone: int) -> tuple[Batch, Datagram | None]:
        """The frame's row, and the datagram that it completes, as an Ethernet frame."""
        number, self._parsed, self._now = self._parsed, self._parsed + 1, max(self._now, now)
        while self._links and self._links[first := next(iter(self._links))][0] + self._longest < self._now:
            del self._links[first]
        self._gatherer.zone = zone
        batch = self._gatherer.parse(*row_of(frame, missing, now))
        link = frame[: int(batch.array["l3_off"][0])]
        if batch.array["verdict"][0] == Verdict.HELD:
            self._links[number] = self._now, link
        if not self._gatherer.datagrams:
            return batch, None
        (datagram,) = self._gatherer.datagrams
        waited = [self._links.pop(part, (now, link)) for part, _, _ in datagram.parts]  # by offset; the frame itself has not waited
        link = waited[0][1]
        return batch, datagram._replace(frame=link + datagram.frame[datagram.l3 :], l3=len(link))
