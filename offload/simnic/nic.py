"""A NIC: rules and connections in hardware, frames through them, and a Backend for a mirror.

    nic = Nic(profile.load("connectx-7-hw"), rules)
    nic.submit(commands, now); nic.replies(now)
    rows = nic.process(memory, frames)

Time is the caller's, in ns; what is due happens before the next frame, command or answer is looked at. A batch of frames meets the tables as they are
when its first frame comes. Not here: what software does with what missed.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.records import COMMAND_DTYPE, REPLY_DTYPE, Op
from offload.simnic import commands as orders
from offload.simnic import connections, registers, tables, walk
from offload.simnic.arrivals import Arrived, Part, arrived
from offload.simnic.change import ROOM, TAG
from offload.simnic.faults import FOREVER, Fault, Faults
from offload.simnic.kept import Kept
from offload.simnic.lines import Line
from offload.simnic.profile import Profile
from offload.simnic.program import Program
from offload.simnic.results import COUNT_DTYPE, OUTPUT_DTYPE, RESULT_DTYPE
from offload.simnic.rules import NicRules
from offload.simnic.unheard import Unheard, rows_of, untold

SLACK = ROOM + 16 * TAG + 8  # bytes beside a frame's own in the NIC's memory


class Nic:
    """A NIC of a kind. rules: what it forwards by; faults: beside those of the profile, by the caller's clock; seed: of hashes and faults.

    Raises ValueError for ifaces that are no numbers from 0 to 65534.
    """

    def __init__(self, profile: Profile, rules: NicRules | None = None, faults: Iterable[Fault] = (), seed: int = 0) -> None:
        self.profile, self.faults = profile, Faults(faults, seed)
        self.line = Line(profile, self.faults)
        self.resets = self.heard = 0  # heard: packets in answers that were taken
        self.answered: Counter[tuple[int, int]] = Counter()  # by Op and error, 0: done
        self.unheard = Unheard()
        self._seed, self._labels, self._names = seed, {0: 0}, [0]
        self._tables = tables.made(tables.LEAST, seed)
        self._replies: list[NDArray[Any]] = []
        self._left, self._now, self._begun = list(self.faults.resets), -FOREVER, False
        self._own = np.zeros(0, dtype=np.uint8)
        self._out = np.zeros(0, dtype=OUTPUT_DTYPE)
        self._nic = np.zeros(8, dtype=np.int64)
        self._nic[registers.N_LENGTH] = profile.period_ns
        self._block = registers.block()
        self._option = np.array([profile.rules.resume == "action", profile.trims], dtype=np.int64)
        self._limit = np.zeros(6, dtype=np.int64)
        self._limit[orders.L_CAPACITY] = profile.table.capacity or -1
        self._limit[orders.L_BOTH] = profile.table.tables == "both"
        self._limit[orders.L_NEW] = profile.rules.new
        self._limit[orders.L_ACCOUNTING] = profile.counters.accounting
        self._limit[orders.L_OFFLOAD] = profile.rules.offload
        self._naming = threading.Lock()  # rules may be compiled beside frames
        self.program = self.compiled(rules or NicRules())

    # --- a backend -------------------------------------------------------------------------------------------------------------------

    def submit(self, commands: NDArray[Any], now: int) -> int:
        """See offload.backend. Raises ValueError for what is no COMMAND_DTYPE[n]."""
        if commands.dtype != COMMAND_DTYPE or commands.ndim != 1:
            raise ValueError("commands: expected a one-dimensional array of COMMAND_DTYPE")
        self.advance(now)
        return self.line.take(commands, now)

    def replies(self, now: int) -> NDArray[Any]:
        """See offload.backend."""
        self.advance(now)
        if not self._replies:
            return np.zeros(0, dtype=REPLY_DTYPE)
        found, self._replies = np.concatenate(self._replies), []
        self.heard += int(found["packets"].sum())
        return found

    def held(self) -> NDArray[Any]:
        """See offload.backend."""
        entry = self._tables.entry
        entry = entry[entry[:, tables.E_META] != 0]
        found = np.zeros(len(entry), dtype=COMMAND_DTYPE)
        words = found.view(np.int64).reshape(-1, orders.COMMAND_WORDS)
        words[:, : orders.M_TO] = entry[:, : orders.M_TO]
        words[:, orders.M_TO : orders.M_COOKIE] = entry[:, tables.E_TO : tables.E_TO + orders.M_TO]
        words[:, orders.M_COOKIE], words[:, orders.M_CONN] = entry[:, tables.E_COOKIE], entry[:, tables.E_CONN]
        words[:, orders.M_LABEL : orders.M_LABEL + 2] = entry[:, tables.E_LABEL : tables.E_LABEL + 2]
        meta = entry[:, tables.E_META]
        found["mark"], found["ctinfo"], found["dir"] = meta & 0xFFFFFFFF, meta >> 32 & 0xFF, meta >> 40 & 1
        found["op"] = Op.REPLACE
        return found

    def look(self, now: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """What a driver can do that is about to end: read all counters as they are, not as its cache has them. What it reads is told.

        Returns the rules, as held(), and a REPLY_DTYPE of each, as if STATS had been asked. While counters are stuck, it is the cache's.
        """
        self.advance(now)
        rules = self.held()
        reply = np.zeros(len(rules), dtype=REPLY_DTYPE)
        commands = rules.copy()
        commands["op"] = Op.STATS
        at, until = self.faults.stuck(now)
        self._limit[orders.L_PERIOD] = self._nic[registers.N_PERIOD] if at <= now < until else -1
        words, none = commands.view(np.int64).reshape(-1, orders.COMMAND_WORDS), np.zeros(len(rules), dtype=np.int64)
        orders.apply(self._tables, self._limit, words, none, none, reply)
        self.heard += int(reply["packets"].sum())
        return rules, reply

    def untold(self) -> NDArray[Any]:
        """UNHEARD_DTYPE[n]: what counters have and have not told yet."""
        return untold(self._tables)

    @property
    def entries(self) -> int:
        """Directions of connections in hardware."""
        return int(self._tables.state[tables.S_ENTRIES])

    @property
    def tabled(self) -> int:
        """Entries in CT and CT_NAT together: what the capacity is of."""
        return int(self._tables.state[tables.S_TABLED])

    @property
    def syns(self) -> int:
        """SYNs that were forwarded as of established connections (contract A4.27)."""
        return int(self._nic[registers.N_SYNS])

    # --- frames ----------------------------------------------------------------------------------------------------------------------

    def process(self, memory: NDArray[np.uint8], frames: NDArray[Any], ifaces: NDArray[Any] | None = None) -> NDArray[Any]:
        """Frames that are received, in order. Returns RESULT_DTYPE[n].

        memory: uint8[m]; frames: structured[n] with offset, caplen, len, ts (ns), link (LINKTYPE_*), iface; ifaces: integers[n] instead of the
        frames' own. Raises ValueError for frames that do not lie within memory, and for ifaces that do not fit the frames.
        """
        came = arrived(memory, frames, ifaces)
        rows = np.zeros(len(frames), dtype=RESULT_DTYPE)
        self.process_some(came, rows, Part(0, len(frames)))
        return rows

    def process_some(self, came: Arrived, rows: NDArray[Any], part: Part) -> int:
        """A part of what arrived, as process(). rows: RESULT_DTYPE[n], zeros, whose rows of this part are written; returns the row behind them."""
        if part.start == part.end:
            return part.end
        self.advance(int(came.frames["ts"][part.start]))
        self._make_room(came.frames[part.start : part.end])
        self._nic[[registers.N_USED, registers.N_OUT]] = 0
        state = registers.work(self._own, self._out, self._nic, self._option)
        return int(walk.run(state, self._block, self.program.arrays, self._tables, came, rows, part))

    def outputs(self) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """What left because of the last process(): OUTPUT_DTYPE[k], and the NIC's memory. Both are the NIC's own, until the next process()."""
        return self._out[: self._nic[registers.N_OUT]], self._own

    def _make_room(self, frames: NDArray[Any]) -> None:
        """Memory for every change that any rule may make: a copy of the frame, and one more after each that has left."""
        each = 1 + registers.MOST_OUTPUTS if self.program.copies else 1
        size = each * int(frames["caplen"].sum(dtype=np.int64) + SLACK * len(frames))
        if len(self._own) < size:
            self._own = np.empty(size, dtype=np.uint8)
        if len(self._out) < each * len(frames):
            self._out = np.zeros(each * len(frames), dtype=OUTPUT_DTYPE)

    # --- rules -----------------------------------------------------------------------------------------------------------------------

    def compiled(self, rules: NicRules) -> Program:
        """Rules, ready for load(); from any thread. Raises ValueError for ifaces that are no numbers from 0 to 65534."""
        return Program(rules, self.profile, self._label_id)

    def load(self, program: Program) -> None:
        """Forward by other rules from the next frame on. Connections stay; counters of rules and policers begin anew."""
        self.program = program

    def counters(self) -> NDArray[Any]:
        """COUNT_DTYPE[n], a copy, by number of a rule: what rules in hardware have counted."""
        counts: NDArray[Any] = self.program.arrays.counted.astype(COUNT_DTYPE)
        return counts

    def kept(self) -> Mapping[int, Kept]:
        """Why rules are in software only, by their numbers; those in hardware are not in it."""
        return self.program.kept_of()

    def _label_id(self, label: int) -> int:
        if label not in self._labels:
            with self._naming:
                self._names.append(label)
                self._labels.setdefault(label, len(self._names) - 1)
        return self._labels[label]

    def label(self, number: int) -> int:
        """What a number in RESULT_DTYPE.labels stands for."""
        return self._names[number]

    # --- time ------------------------------------------------------------------------------------------------------------------------

    @property
    def due(self) -> int:
        """ns: when there is something to be heard of the NIC; 0: already."""
        return 0 if self._replies else min(self.line.earliest, self._left[0] if self._left else FOREVER)

    def advance(self, now: int) -> None:
        """What has become due up to `now` happens. Time that goes back stands still; the first one is what the profile's faults count from."""
        if not self._begun:
            self._begun = True
            self.faults.begin(now, self.profile.faults.all)
            self._left = list(self.faults.resets)
        self._now = now = max(self._now, now)
        while self._left and self._left[0] <= now:
            self._carry_out(self._left[0])
            self._reset()
            del self._left[0]
        self._carry_out(now)

    def _carry_out(self, now: int) -> None:
        if now >= self._nic[registers.N_NEXT]:
            self._nic[registers.N_STUCK_FROM], self._nic[registers.N_STUCK_TO] = self.faults.stuck(now)
            connections.next_period(self._nic, now)
        due = self.line.due(now)
        due = due[~due["lost"]]
        if not len(due):
            return
        commands = np.ascontiguousarray(due["command"])
        self._grow(int(np.count_nonzero(commands["op"] == Op.REPLACE)))
        self._limit[orders.L_PERIOD] = self._nic[registers.N_PERIOD]
        reply = np.zeros(len(due), dtype=REPLY_DTYPE)
        words = commands.view(np.int64).reshape(-1, orders.COMMAND_WORDS)
        orders.apply(self._tables, self._limit, words, self._label_ids(commands), due["refused"].astype(np.int64), reply)
        self._unheard(commands, reply, due["silent"])
        kinds, counts = np.unique(reply[["op", "error"]], return_counts=True)
        for (op, error), n in zip(kinds.tolist(), counts.tolist(), strict=True):
            self.answered[op, error] += n
        reply = reply[~due["silent"]]
        if len(reply):
            self._replies.append(reply)

    def _unheard(self, commands: NDArray[Any], reply: NDArray[Any], silent: NDArray[Any]) -> None:
        """What goes with rules, and with answers that are lost. No answer tells of the former."""
        destroyed = reply["op"] == Op.DESTROY
        gone = (destroyed | silent) & (reply["packets"] > 0)
        if gone.any():
            self.unheard.add(rows_of(commands["conn"][gone], reply["packets"][gone], reply["bytes"][gone]))
        reply["packets"][destroyed] = reply["bytes"][destroyed] = 0

    def _label_ids(self, commands: NDArray[Any]) -> NDArray[Any]:
        """Most connections have no label, whose number is 0."""
        ids = np.zeros(len(commands), dtype=np.int64)
        for i in np.flatnonzero(commands["label"].any(axis=1)).tolist():
            low, high = commands["label"][i].tolist()
            ids[i] = self._label_id(low | high << 64)
        return ids

    def _grow(self, more: int) -> None:
        """Room for more entries, as far as the capacity lets them in."""
        wanted = self.entries + more
        if self.profile.table.capacity:
            wanted = min(wanted, self.profile.table.capacity)
        size = len(self._tables.entry)
        if wanted > size:
            self._tables = tables.grown(self._tables, 1 << (wanted - 1).bit_length())

    def _reset(self) -> None:
        self.line.forget()
        self.unheard.add(untold(self._tables))
        lost = np.concatenate([np.zeros(0, dtype=REPLY_DTYPE), *self._replies])
        self.unheard.add(rows_of(-1, lost["packets"], lost["bytes"]))
        self._replies.clear()
        self.resets += 1
        self._tables = tables.made(tables.LEAST, self._seed)

    def check(self) -> None:
        """Raises AssertionError where an invariant of the tables does not hold."""
        tables.check(self._tables)
        assert self.profile.table.capacity == 0 or self.tabled <= self.profile.table.capacity
