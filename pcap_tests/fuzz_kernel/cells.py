"""For each cell of the state tables the shortest script that leads a packet to it; and the cells that no packet can reach, with the proof.

Theory of operation: breadth-first search. A script is a list of packets between two hosts; what it led to is asked of an engine of its own. Each is
continued by every packet of a small alphabet, made from what the connection remembers: every event from either host, its numbers such that the
window check or the tag check lets it pass, a little off, or new. A script is kept if it leads to a memory that none before has led to, as far as
`memory` tells them apart: by the state and by what most guards look at.
A cell is reached where the table was consulted for the packet: not if its flags, chunks or tag were refused before.
Not here: comparing with the kernel (test_cells).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from random import Random

import numpy as np

from ctcore import spec
from ctcore.config import Config
from ctcore.model.tcp_window import MASK32
from ctcore.types import Dir, Proto, Reason
from datapath.scenario.steps import DEFAULT_HOSTS, L4, Chunk, Option, Packet, Sctp, Step, Tcp
from pcap_tests.fuzz_kernel.draft import Draft, Settings, Watcher

CLIENT, SERVER = ("A", 40000), ("B", 80)
HOSTS = (CLIENT, SERVER)
ISN = (1000, 5000)
TAG = (0x11111111, 0x22222222)
NONE = 0  # the number of both tables' state NONE


@dataclass(frozen=True, order=True)
class Cell:
    """A cell, by the words of the table."""

    state: str
    event: str
    dir: str

    @classmethod
    def of(cls, table: spec.StateTable, direction: int, event: int, state: int) -> Cell:
        return cls(table.states[state], table.events[event], spec.DIRS[direction])

    def numbers(self, table: spec.StateTable) -> tuple[int, int, int]:
        """Direction, event, state."""
        return spec.DIRS.index(self.dir), table.events.index(self.event), table.states.index(self.state)


Script = tuple[Step, ...]
Memory = Callable[[np.void], Hashable]


@dataclass(frozen=True)
class Protocol:
    """What the search has to know of a protocol.

    alphabet: packets of one event, given what the connection remembers, or None, their direction, and the host they come from; refused: reasons that
    are given before the table is consulted; never_opens: events that are refused where there is no connection; memory: what tells connections apart.
    """

    table: spec.StateTable
    proto: int
    record: str
    alphabet: Callable[[np.void | None, int, int, str], Iterator[L4]]
    refused: frozenset[int]
    never_opens: frozenset[str]
    memory: Memory

    def cells(self) -> set[Cell]:
        shape = (range(2), range(len(self.table.events)), range(len(self.table.states)))
        return {Cell.of(self.table, d, e, s) for d in shape[0] for e in shape[1] for s in shape[2]}

    def unreachable(self) -> dict[Cell, str]:
        """The cells no packet reaches, with the proof."""
        proofs = {}
        for cell in self.cells():
            if cell.event == "none":
                proofs[cell] = "flags without SYN, FIN, ACK and RST are refused before the table is consulted"
            elif cell.state == "NONE" and cell.dir == "reply":
                proofs[cell] = "the packet that makes a connection defines its original direction; no packet leaves a connection in NONE"
            elif cell.state == "NONE" and cell.event in self.never_opens:
                proofs[cell] = "refused before the table is consulted: no association begins with it (RFC 9260 8.4)"
        return proofs


class Search:
    """Breadth-first, over the scripts of one protocol."""

    def __init__(self, protocol: Protocol) -> None:
        self.protocol, self.memory = protocol, protocol.memory
        self.watcher = Watcher(Settings(Config()))
        self.cells: dict[Cell, list[Script]] = {}  # shortest first
        self.ways: dict[Hashable, Script] = {}  # (memory, event, direction, variant) -> script

    def run(self, longest: int) -> Search:
        """Scripts of at most so many packets."""
        seen: set[Hashable] = set()
        queue: deque[Script] = deque([()])
        while queue:
            script = queue.popleft()
            for longer, memory in self.continued(script):
                if memory is not None and memory not in seen and len(longer) < longest:
                    seen.add(memory)
                    queue.append(longer)
        return self

    def continued(self, script: Script) -> Iterator[tuple[Script, Hashable]]:
        """The script with each packet of the alphabet behind it, and the memory that leads to, None if no connection is left."""
        before, directions = self.look(self.replay(script))
        for host in range(2):
            for event in self.protocol.table.events:
                record = None if before is None else before[self.protocol.record]
                for variant, l4 in enumerate(self.protocol.alphabet(record, directions[host], host, event)):
                    draft = self.replay(script)
                    decision = draft.send(packet(host, l4))
                    longer = tuple(draft.steps)
                    self.note(longer, before, directions[host], event, variant, int(decision["reason"]))
                    after, _ = self.look(draft)
                    yield longer, None if after is None else self.memory(after)

    def replay(self, script: Script) -> Draft:
        draft = Draft(Random(0), self.watcher, six=False, hosts=DEFAULT_HOSTS, strange=0)
        for step in script:
            draft.send(step.packet)  # type: ignore[arg-type]
        return draft

    def look(self, draft: Draft) -> tuple[np.void | None, tuple[int, int]]:
        """The connection (CONN_DTYPE), and the directions of packets from the two hosts."""
        found = draft.conn(packet(0, Tcp() if self.protocol.proto == Proto.PROTO_TCP else Sctp()))
        return (None, (Dir.ORIG, Dir.ORIG)) if found is None else (found[0], (found[1], 1 - found[1]))

    def note(self, script: Script, before: np.void | None, direction: int, event: str, variant: int, reason: int) -> None:
        """What the last packet of a script has reached."""
        state = NONE if before is None else int(before[self.protocol.record]["state"])
        self.ways.setdefault((None if before is None else self.memory(before), event, direction, variant), script)
        cell = Cell.of(self.protocol.table, direction, self.protocol.table.events.index(event), state)
        if reason not in self.protocol.refused and (state != NONE or event not in self.protocol.never_opens):
            self.cells.setdefault(cell, []).append(script)


def packet(host: int, l4: L4) -> Packet:
    (src, sport), (dst, dport) = HOSTS[host], HOSTS[1 - host]
    return Packet(src, dst, l4, sport, dport)


# --- TCP -------------------------------------------------------------------------------------------------------------------------------

TCP_FLAGS = {"syn": "S", "synack": "SA", "fin": "FA", "ack": "A", "rst": "R"}
SYN_OPTIONS = (Option("mss", (1460,)), Option("sackok"), Option("nop"), Option("wscale", (7,)))
FAR = 1_000_000


def tcp_packets(tcp: np.void | None, d: int, host: int, event: str) -> Iterator[Tcp]:
    """Fitting; then what a guard of the event looks at."""
    if event == "none":
        yield Tcp("P", ISN[host])
        return
    flags = TCP_FLAGS[event]
    options = SYN_OPTIONS if "S" in flags else ()
    if tcp is None:
        yield Tcp(flags, ISN[host], ISN[1 - host] if "A" in flags else 0, options=options)
        return
    s, r = ({name: int(tcp["side"][side][name]) for name in ("end", "maxack", "maxwin")} for side in (d, 1 - d))
    seq = s["end"] if s["maxwin"] else ISN[host]
    if event == "syn":
        yield Tcp(flags, (seq - 1) & MASK32, options=options)  # once more
        yield Tcp(flags, (seq + FAR) & MASK32, options=options)  # a new life
    elif event == "synack":
        again = seq - 1 if s["maxwin"] else seq
        yield Tcp(flags, again & MASK32, r["end"], options=options)
        yield Tcp(flags, (seq + FAR) & MASK32, int(tcp["last_end"]), options=options)  # to a SYN that was ignored
    elif event == "rst":
        yield Tcp(flags, r["maxack"] if r["maxack"] else seq)
        yield Tcp("RA", 0, r["end"])
        yield Tcp(flags, (r["maxack"] - 1) & MASK32)
        yield Tcp(flags, (seq + 1) & MASK32, int(tcp["last_end"]))
    else:
        yield Tcp(flags, seq, r["end"], data=0)
        yield Tcp(flags, seq, r["end"], data=10)
        yield Tcp(flags, (seq + FAR) & MASK32, r["end"])


def tcp_memory(conn: np.void) -> Hashable:
    return (*(int(conn["tcp"][name]) for name in ("state", "last_index", "last_dir")), int(conn["status"]))


TCP = Protocol(spec.tcp(), Proto.PROTO_TCP, "tcp", tcp_packets, frozenset({Reason.R_TCP_FLAGS}), frozenset(), tcp_memory)


# --- SCTP ------------------------------------------------------------------------------------------------------------------------------

CHUNKS = {
    "init": 1, "init_ack": 2, "abort": 6, "shutdown": 7, "shutdown_ack": 8, "error": 9, "cookie_echo": 10, "cookie_ack": 11, "shutdown_complete": 14,
    "heartbeat": 4, "heartbeat_ack": 5, "other": 0,
}  # fmt: skip
T_FLAG = 1


def sctp_packets(sctp: np.void | None, d: int, host: int, event: str) -> Iterator[Sctp]:
    """With the tag that is expected, with the other side's (reflected: flag T), and with one that nobody gave."""
    kind = CHUNKS[event]
    tags = (TAG[1 - host], TAG[host]) if sctp is None else (int(sctp["vtag"][d]), int(sctp["vtag"][1 - d]))
    if event == "init":
        yield Sctp(0, (Chunk(kind, tag=TAG[host]),))
        yield Sctp(0, (Chunk(kind, tag=TAG[host] + 1),))
        return
    own = TAG[host] if event == "init_ack" else None
    yield Sctp(tags[0] or TAG[1 - host], (Chunk(kind, tag=own),))
    yield Sctp(0 if sctp is None else tags[0], (Chunk(kind, tag=own),))
    yield Sctp(tags[1], (Chunk(kind, T_FLAG, tag=own),))
    yield Sctp(tags[0] ^ 0xFF, (Chunk(kind, tag=own),))


def sctp_memory(conn: np.void) -> Hashable:
    """With which tags there are, since the table is not consulted if they do not fit."""
    return int(conn["sctp"]["state"]), *(bool(tag) for tag in conn["sctp"]["vtag"])


SCTP = Protocol(
    spec.sctp(), Proto.PROTO_SCTP, "sctp", sctp_packets, frozenset({Reason.R_SCTP_TAG, Reason.R_SCTP_CHUNKS}),
    frozenset({"abort", "cookie_ack", "shutdown_complete"}), sctp_memory,
)  # fmt: skip
PROTOCOLS = {"tcp": TCP, "sctp": SCTP}
