"""Why one connection is, or was, not in hardware: what flow table and mirror said of it while a capture went by, and what hardware has counted of it.

    found = followed(capture, tracking, nic, 17)
    for label, text in lines(found): ...

Invariant: what nobody knows is said to be unknown, and never 0 (contract A6.50). Not here: the codes (offload.contract.why).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.errors import CtmirrorError
from ctcore.flow_changes import Answered, Asked, FlowFlag
from ctcore.types import Dir
from datapath.app import Outputs, Progress, Tracking, replay
from datapath.commands.offload_said import cited, described, says
from datapath.commands.offload_series import Reasons
from datapath.commands.offload_watch import Seen
from datapath.commands.offloaded import Offloaded
from datapath.commands.offloaded_run import NicGiven, behind_nic
from datapath.hints import counted
from datapath.wire import parse_batch
from offload.contract.why import OF_OFFLOAD, Why
from offload.simnic.profile import Profile
from offload.simnic.results import Flag, Verdict

MOST_EVENTS = 12


@dataclass(frozen=True)
class Event:
    """Something that flow table or mirror said of the connection. time: ns; packet: how many packets had come; what: a word of WHAT."""

    time: int
    packet: int
    what: str
    text: str


@dataclass
class Followed:
    """A Watch that follows one connection. software, hardware: its packets by who forwarded them; syns: numbers of SYNs that hardware forwarded as if
    established (A4.27); told: packets and bytes by direction, and of nobody knows which; why: the last code of the flow table or the mirror,
    None while it is in hardware; entered: whether it was there at some time; reports: how often hardware told its counters; unheard: packets and
    bytes that it has counted and nobody was told."""

    work: Offloaded
    conn: int
    tuple_: str = ""
    first: int = 0
    frames: int = 0
    software: int = 0
    hardware: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    syns: list[int] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    unheard: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, dtype=np.int64))
    told: NDArray[np.int64] = field(default_factory=lambda: np.zeros((2, 2), dtype=np.int64))
    unsplit: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, dtype=np.int64))
    reports: int = 0
    in_hardware: bool = False
    entered: bool = False
    in_table: bool = False
    why: str = ""

    def __post_init__(self) -> None:
        self._reasons = Reasons(self.work)
        self._row: tuple[int, int] | None = None  # of the flow table, and its life
        self._both = False
        self._before = 0  # packets that hardware had forwarded when it was asked for this life of the row
        self.work.nic.unheard.follow()

    @property
    def known(self) -> bool:
        return bool(self.software or self.hardware)

    @property
    def was_there(self) -> bool:
        """In hardware at some time, whether or not the answer came that says so."""
        return self.entered or bool(self.hardware)

    # --- packets ---------------------------------------------------------------------------------------------------------------------------

    def slice(self, seen: Seen) -> None:
        if not self.frames:
            self.first = int(seen.frames["ts"][0])
        done = (seen.found["verdict"] != Verdict.MISSED) & ((seen.found["flags"] & Flag.CT) != 0)
        hard = np.flatnonzero(done & (seen.found["conn"] == self.conn))
        self.hardware += len(hard)
        syns = hard[(seen.found["flags"][hard] & Flag.SYN) != 0]
        self.syns += (self.frames + seen.into[syns]).tolist()
        if seen.decisions is not None and (seen.decisions["conn"] == self.conn).any():
            self._software(seen)
        self.frames += len(seen.frames)

    def _software(self, seen: Seen) -> None:
        assert seen.decisions is not None
        ours = seen.decisions["conn"] == self.conn
        rows = set(seen.soft[ours].tolist())
        if not self.known:
            row = seen.soft[ours][0]
            key = parse_batch(seen.memory, seen.frames[row : row + 1], checksum=False, at_hook=True).array["key"][0]
            turned = seen.decisions["dir"][ours][0] == Dir.REPLY
            self.tuple_ = described(key, turned=bool(turned))
        for row, code in self._reasons.of(seen):
            if row in rows:
                self.software += 1
                self.codes[code] += 1
                self.why = self.why if self.in_table else code

    # --- what is said of it ------------------------------------------------------------------------------------------------------------------

    def _say(self, now: int, what: str, text: str) -> None:
        self.events.append(Event(now, self.frames, what, text))

    def asked(self, asks: NDArray[Any], now: int) -> None:
        self._reasons.asked(asks)
        for ask in asks[asks["conn"] == self.conn]:
            row, both = (int(ask["row"]), int(ask["serial"])), bool(ask["flags"] & FlowFlag.FLOW_BIDIRECTIONAL)
            if ask["ask"] == Asked.REMOVE:
                if not self.in_table:
                    continue  # asked again, for the first one was dropped (A3.21)
                self.why, self.in_table = str(OF_OFFLOAD[int(ask["cause"])] or Why.DYING), False
                self._say(now, "left", f"left the flow table: {self.why}: {says(self.why)}")
            elif ask["ask"] == Asked.INSTALL and row != self._row:
                self._row, self._both, self.in_table, self._before = row, both, True, self.hardware
                which = "both directions" if both else "the original direction"
                self._say(now, "admitted", f"admitted to the flow table, and asked for in hardware: {which}")
            elif ask["ask"] == Asked.INSTALL and both and not self._both:
                self._both = True
                self._say(now, "replies", "replies may be served, too: asked for in hardware")

    def answered(self, answers: NDArray[Any], now: int) -> None:
        if self._row is None:
            return
        for answer in answers[(answers["row"] == self._row[0]) & (answers["serial"] == self._row[1])]:
            kind = int(answer["answer"])
            if kind == Answered.COUNTED:
                self._count(answer)
            elif kind == Answered.INSTALLED and not self.in_hardware:
                self.in_hardware = self.entered = True
                self._say(now, "installed", "in hardware")
            elif kind == Answered.REMOVED:
                was = self.in_hardware or self.hardware > self._before  # an answer that was lost told nobody
                self._say(now, "removed", "its rules are gone from hardware" if was else "nothing of it was in hardware")
                self.in_hardware, self._row = False, None
                break
            elif kind == Answered.REFUSED:
                self._refused(now)
        if self.in_table:
            self.why = self._of_mirror()

    def _of_mirror(self) -> str:
        """Why it is not in hardware, by the mirror; nothing: it is."""
        said = self.work.mirror.why(self._row[0]) if self._row else None
        code = Why.PENDING if said is None else said["why"]
        return "" if code is None else str(code)

    def _refused(self, now: int) -> None:
        code = self._of_mirror() or str(Why.PENDING)
        if self.in_hardware or code != self.why:
            self._say(now, "refused", f"{'no longer' if self.in_hardware else 'not'} in hardware: {code}: {says(code)}")
        self.in_hardware, self.why = False, code

    def _count(self, answer: NDArray[Any]) -> None:
        each = np.array([answer["packets"], answer["bytes"]], dtype=np.int64)
        if not answer["used"] and not each.any():
            return  # nothing is known
        self.reports += 1
        if answer["flags"] & FlowFlag.FLOW_SPLIT:
            self.told += each
        else:
            self.unsplit += each.sum(axis=1)

    def turned(self, now: int) -> None:
        self._forgotten(self.work.nic.unheard.take())

    def close(self) -> None:
        """The replay is over. What was not told until now will not be."""
        self._forgotten(self.work.nic.unheard.take())
        self._forgotten(self.work.nic.untold())
        self.reports += self.conn in self.work.looked  # 0 is known, too

    def _forgotten(self, rows: NDArray[Any]) -> None:
        ours = rows[rows["conn"] == self.conn]
        self.unheard += [int(ours["packets"].sum()), int(ours["bytes"].sum())]


def followed(capture: str, tracking: Tracking, profile: Profile, conn: int, progress: Progress | None = None) -> tuple[Followed, list[str]]:
    """Replay a capture behind a NIC, with an eye on one of its connections. Also what stopped the reading. Raises CtmirrorError if there is none."""
    made: list[Followed] = []

    def watch(work: Offloaded) -> Followed:
        made.append(Followed(work, conn))
        return made[0]

    tracking, kind = behind_nic(tracking, NicGiven(profile, watch=watch, framed=True))
    result = replay([capture], tracking, Outputs(), summary=False, progress=progress, kind=kind)
    if result.interrupted:
        raise KeyboardInterrupt
    if not made[0].known:
        if result.errors:
            more = f"; before that there is no connection {conn}" if made[0].frames else ""
            raise CtmirrorError(result.errors[0] + more)
        raise CtmirrorError(f"{capture}: connection {conn}: there is none: expected {_range(result.counters['new'])}")
    made[0].close()
    return made[0], result.errors


def _range(conns: int) -> str:
    return f"a number from 0 to {conns - 1:,}" if conns > 1 else "number 0" if conns else "a capture with connections"


# --- in words -----------------------------------------------------------------------------------------------------------------------------


def lines(it: Followed) -> Iterator[tuple[str, str]]:
    """(label, sentence) of all there is to say."""
    yield "connection", f"{it.conn}  {it.tuple_}"
    yield "NIC", it.work.nic.profile.name
    yield "packets", f"{counted(it.hardware, 'packet')} forwarded in hardware, {it.software:,} in software"
    yield "at the end", _state(it)
    for event in it.events[:MOST_EVENTS]:
        yield f"+{(event.time - it.first) / 1e9:.6f}", f"{event.text} (behind packet {event.packet - 1})"
    if len(it.events) > MOST_EVENTS:
        yield "", f"... {len(it.events) - MOST_EVENTS} more"
    for code, packets in it.codes.most_common():
        yield "in software", f"{counted(packets, 'packet')}: {cited(code)}"
    yield from _counts(it)
    for number in it.syns:
        yield "SYN", f"packet {number}: hardware forwarded a SYN as if of the established connection; software has not seen it (A4.27)"


def _state(it: Followed) -> str:
    if it.in_hardware:
        return "in hardware"
    if it.in_table and not it.entered and it.hardware:
        return "unknown: hardware has forwarded packets of it, and has not answered that it has it"
    return f"not in hardware: {cited(it.why)}" if it.why else "not in hardware yet"


def _counts(it: Followed) -> Iterator[tuple[str, str]]:
    """As far as it is known; what is not is called so (A6.50)."""
    if not it.was_there:
        return
    if not it.reports:
        yield "counted", "unknown: hardware has told of no packet"
    elif it.unsplit.any():
        yield "counted", f"{_amount(it.unsplit)} in both directions; of each: unknown, since one counter serves both (A6.50)"
    else:
        yield "counted", f"original {_amount(it.told[:, Dir.ORIG])}, reply {_amount(it.told[:, Dir.REPLY])}, as hardware told last"
    if it.unheard.any():
        yield "unknown", f"{_amount(it.unheard)}: hardware has counted them, and told nobody"


def _amount(each: NDArray[np.int64]) -> str:
    packets, size = each.tolist()
    return f"{counted(packets, 'packet')} of {size:,} bytes"
