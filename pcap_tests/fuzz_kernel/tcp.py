"""Two TCP endpoints that really talk, badly: loss, duplication, reordering, and packets aimed at every edge of what conntrack remembers of them.

Theory of operation: each endpoint knows what it sends next and what it has received. A sound move does what the connection's state asks for; an edge
move takes its numbers from the connection in the engine's table (ends, windows, last_*), at, below and beyond them; an odd move breaks a packet.
Not here: IP headers (mangle), errors about these packets (icmp).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ctcore.model.tcp_window import LEAST_ACK_WINDOW, MASK32
from ctcore.model.tcp_window import Tcp as Memory
from ctcore.types import Dir
from ctcore.types import TcpState as S
from datapath.scenario.steps import Ip, Option, Packet, Tcp
from pcap_tests.fuzz_kernel.draft import Draft

WINDOWS = (8192, 8192, 8192, 65535, 1000, 100, 2, 1, 0)
LENGTHS = (0, 0, 0, 0, 1, 1, 2, 100, 1000, 1460)
SCALES = (0, 1, 2, 7, 14, 15, 255)
ISNS = (0, 1, 100, 1 << 31, (1 << 31) - 1, MASK32, MASK32 - 1, MASK32 - 1000, MASK32 - 8192)
NUDGES = (0, 0, 0, 0, 1, -1, 2, -2, 1000, -1000, 1 << 31, (1 << 31) - 1)
FLAGS = ("S", "SA", "A", "A", "A", "A", "PA", "FA", "FA", "R", "RA", "R", "SU", "FAU", "AU", "SEC", "AEC")
STAMP = (Option("nop"), Option("nop"), Option("timestamp", (1, 2)))
JUNK = (
    b"",
    b"\0",
    b"\1",
    b"\2",
    b"\5",
    b"\3\3",
    b"\3\3\7",
    b"\3\2",
    b"\3\4\7\7",
    b"\4\3\1",
    b"\4\1",
    b"\5\2",
    b"\5\x09" + bytes(7),
    b"\x08\x28",
    b"\xfd\x06abcd",
)


class TcpTalk:
    """names, ports: of the two endpoints; the first one is the client."""

    def __init__(self, draft: Draft, names: tuple[str, str], ports: tuple[int, int]) -> None:
        self.draft, self.names, self.ports = draft, names, ports
        self.next = [self.isn(), self.isn()]  # what each endpoint sends next
        self.got = [0, 0]  # what each has received up to
        self.options = [self.syn_options(), self.syn_options()]
        self.sent: list[Packet] = []
        self.held: list[Packet] = []
        moves: dict[Callable[[], None], int] = {self.sound: 12, self.edge: 5, self.odd: 1, self.again: 1, self.burst: 1, self.release: 1}
        if draft.chance(0.3):  # a calm one, which gets far
            moves |= {self.sound: 30, self.edge: 3}
        elif draft.chance(0.2):  # a wild one
            moves |= {self.sound: 4, self.edge: 12, self.odd: 3}
        self.moves = tuple(move for move, weight in moves.items() for _ in range(weight))

    def isn(self) -> int:
        return self.draft.pick(ISNS) if self.draft.chance(0.4) else self.draft.dice.getrandbits(32)

    def step(self) -> None:
        self.draft.pick(self.moves)()

    # --- what there is to know -------------------------------------------------------------------------------------------------------------

    def packet(self, side: int, tcp: Tcp, ip: Ip | None = None) -> Packet:
        return Packet(self.names[side], self.names[1 - side], tcp, self.ports[side], self.ports[1 - side], ip or Ip())

    def memory(self) -> tuple[Memory, int] | None:
        """What conntrack remembers, and which endpoint sends in the original direction."""
        found = self.draft.conn(self.packet(0, Tcp()))
        return (Memory.of(found[0]["tcp"]), found[1]) if found else None

    # --- moves -----------------------------------------------------------------------------------------------------------------------------

    def sound(self) -> None:
        known = self.memory()
        if known is None:
            self.opening()
            return
        memory, client = known
        choices = SOUND[memory.state]
        who, flags = self.draft.pick(choices)
        side = self.draft.pick((0, 1)) if who is None else client ^ who
        if "S" in flags:
            self.syn(side, flags, fresh=memory.state >= S.TIME_WAIT or self.draft.chance(0.1))
            return
        data = 0 if "R" in flags or self.draft.chance(0.5) else self.draft.pick(LENGTHS)
        self.say(side, flags, data)

    def opening(self) -> None:
        kind = self.draft.dice.random()
        if kind < 0.75:
            self.syn(0 if self.draft.chance(0.9) else 1, "S", fresh=bool(self.sent))
        elif kind < 0.95:
            side = self.draft.pick((0, 1))
            self.got = [self.next[1], self.next[0]]
            self.say(side, self.draft.pick(("A", "A", "PA")), self.draft.pick(LENGTHS))
        else:
            self.say(self.draft.pick((0, 1)), self.draft.pick(FLAGS), 0)

    def syn(self, side: int, flags: str, *, fresh: bool) -> None:
        """A SYN or SYN/ACK; again with the number of before, or with a fresh one."""
        if fresh:
            jump = (1, 1000, 70000, -1, -1000, self.draft.dice.getrandbits(32))
            self.next[side] = (self.next[side] + self.draft.pick(jump)) & MASK32
            self.options[side] = self.syn_options()
        elif self.sent:
            before = [
                p.l4 for p in self.sent if p.src == self.names[side] and p.sport == self.ports[side] and isinstance(p.l4, Tcp) and "S" in p.l4.flags
            ]
            if before:
                self.next[side] = before[-1].seq
        self.say(side, flags, self.draft.pick((0,) * 9 + (10,)), self.options[side])

    def say(self, side: int, flags: str, data: int, options: tuple[Option, ...] | None = None) -> None:
        """What a sound endpoint sends, if it is not lost on the way to conntrack, or behind it."""
        draft = self.draft
        ack = self.got[side] if "A" in flags or draft.chance(0.1) else 0
        if options is None:
            options = self.plain_options(side)
        tcp = Tcp(flags, seq=self.next[side], ack=ack, win=draft.pick(WINDOWS), options=options, data=data)
        end = (tcp.seq + data + ("S" in flags) + ("F" in flags)) & MASK32
        fate = draft.dice.random()
        if not draft.chance(0.15):  # else it will send the same once more
            self.next[side] = end
        if fate > 0.08:
            self.got[1 - side] = end
        if fate < 0.04:
            return
        packet = self.packet(side, tcp)
        if draft.chance(0.05):
            self.held.append(packet)
            return
        self.emit(packet)

    def edge(self) -> None:
        """Numbers at the edges of what is remembered."""
        known = self.memory()
        side = self.draft.pick((0, 1))
        if known is None:
            tcp = Tcp(self.draft.pick(FLAGS), self.next[side], self.got[side], self.draft.pick(WINDOWS))
        else:
            memory, client = known
            tcp = self.aimed(memory, Dir.ORIG if side == client else Dir.REPLY, side)
        self.emit(self.packet(side, tcp))

    def aimed(self, memory: Memory, d: int, side: int) -> Tcp:
        """A segment of direction d whose numbers lie at, beside or far off the bounds of the window check and of the guards."""
        draft = self.draft
        s, r = memory.side[d], memory.side[1 - d]
        remembered = (memory.last_seq, memory.last_end, memory.last_ack)
        seqs = (s.end, s.end, s.maxend, s.maxend, s.end - r.maxwin, r.maxack, r.maxack, *remembered, 0, self.next[side])
        acks = (r.end, r.end, r.end, s.maxack, r.end - max(s.maxwin, LEAST_ACK_WINDOW), r.maxend, *remembered, 0, self.got[side])
        flags = draft.pick(FLAGS)
        data = 0 if "R" in flags or "S" in flags else draft.pick((*LENGTHS, min(r.maxwin, 3000), min((s.maxend - s.end) & MASK32, 3000)))
        seq = draft.pick(seqs) + draft.pick(NUDGES)
        if draft.chance(0.5):  # aim with its end
            seq -= data + ("S" in flags) + ("F" in flags)
        ack = draft.pick(acks) + draft.pick(NUDGES)
        win = memory.last_win if draft.chance(0.2) else draft.pick(WINDOWS)
        if "S" in flags:
            options = self.syn_options()
        elif draft.chance(0.2):
            edges = [(draft.pick(acks) + draft.pick(NUDGES)) & MASK32 for _ in range(draft.pick((2, 2, 4, 6, 8)))]
            options = (Option("nop"), Option("nop"), Option("sack", tuple(edges)))
        else:
            options = self.plain_options(side)
        return Tcp(flags, seq & MASK32, ack & MASK32, win, options=options, data=data)

    def odd(self) -> None:
        """A packet that no stack sends."""
        draft, side = self.draft, self.draft.pick((0, 1))
        tcp = Tcp("A", self.next[side], self.got[side], options=self.plain_options(side), data=draft.pick(LENGTHS))
        known = self.memory()
        if known and draft.chance(0.5):
            tcp = self.aimed(known[0], Dir.ORIG if side == known[1] else Dir.REPLY, side)
        ip = Ip()
        match draft.pick(("flags", "flags", "doff", "sum", "cut", "options", "urgent")):
            case "flags":
                tcp = replace(tcp, flags="".join(letter for letter in "FSRPAUEC" if draft.chance(0.4)))
            case "doff":
                tcp = replace(tcp, doff=draft.pick((0, 1, 4, 5, 6, 7, 8, 10, 15)))
            case "sum":
                tcp = replace(tcp, checksum=draft.pick(("bad", "bad", 0, 0xFFFF)))
            case "cut":
                ip = Ip(cut=draft.pick((0, 1, 2, 3, 4, 8, 12, 13, 16, 19, 20)))
            case "options":
                tcp = replace(tcp, options=self.junk_options())
            case "urgent":
                tcp = replace(tcp, urg=draft.pick((1, 0xFFFF)), flags=tcp.flags.replace("U", "") + draft.pick(("", "U")))
        self.emit(self.packet(side, tcp, ip))

    def again(self) -> None:
        """An earlier packet once more."""
        if self.sent:
            self.emit(self.draft.pick(self.sent[-12:]))

    def burst(self) -> None:
        """The last packet, several times: retransmissions are counted."""
        for _ in range(self.draft.pick((1, 2, 3, 4, 5)) if self.sent else 0):
            self.emit(self.sent[-1])

    def release(self) -> None:
        """What was held back comes late."""
        if self.held:
            self.emit(self.held.pop(0))

    def emit(self, packet: Packet) -> None:
        self.sent.append(packet)
        self.draft.send(packet)

    # --- options ---------------------------------------------------------------------------------------------------------------------------

    def syn_options(self) -> tuple[Option, ...]:
        draft = self.draft
        if draft.chance(0.05):
            return self.junk_options()
        options = [Option("mss", (1460,))] if draft.chance(0.7) else []
        options += [Option("sackok")] if draft.chance(0.6) else []
        options += [Option("timestamp", (1, 0))] if draft.chance(0.3) else []
        options += [Option("nop"), Option("wscale", (draft.pick(SCALES),))] if draft.chance(0.6) else []
        return tuple(options)

    def plain_options(self, side: int) -> tuple[Option, ...]:
        draft = self.draft
        if draft.chance(0.6):
            return ()
        stamp = STAMP if draft.chance(0.6) else ()
        if not draft.chance(0.4):
            return stamp
        base = self.got[side]
        blocks = [(base + draft.pick((0, 1, 100, 1000, 1460, -100, 70000)) + i * 100) & MASK32 for i in range(draft.pick((2, 2, 4, 6)))]
        return (*stamp, Option("nop"), Option("nop"), Option("sack", tuple(blocks)))

    def junk_options(self) -> tuple[Option, ...]:
        draft = self.draft
        raw = b"".join(draft.pick(JUNK) for _ in range(draft.pick((1, 2, 3, 4))))[:40]
        return (Option("raw", raw),)


# What a sound pair does in each state: (direction, or None: either, flags), by how often it stands there.
BOTH = (None, "A"), (None, "A"), (None, "PA")
CLOSING = (0, "A"), (1, "A"), (0, "A"), (1, "A"), (0, "FA"), (1, "FA"), (None, "A"), (None, "R"), (None, "S"), (1, "SA")
SOUND: dict[int, tuple[tuple[int | None, str], ...]] = {
    S.TCP_NONE: ((0, "S"),),
    S.SYN_SENT: ((1, "SA"),) * 8 + ((0, "S"), (1, "S"), (1, "S"), (1, "RA"), (1, "A"), (0, "A"), (0, "R")),
    S.SYN_RECV: ((0, "A"),) * 6 + ((0, "PA"), (1, "SA"), (0, "FA"), (1, "A"), (0, "S"), (1, "R"), (0, "SA"), (1, "FA"), (0, "R")),
    S.TCP_ESTABLISHED: BOTH * 8 + ((0, "FA"), (1, "FA"), (None, "FA"), (None, "R"), (0, "S"), (1, "SA"), (1, "S"), (0, "SA")),
    S.FIN_WAIT: CLOSING,
    S.CLOSE_WAIT: (*CLOSING, (0, "FA"), (1, "FA"), (0, "FA"), (1, "FA")),
    S.LAST_ACK: (*CLOSING, (0, "S"), (1, "A"), (0, "A")),
    S.TIME_WAIT: ((0, "S"), (1, "S"), (0, "A"), (1, "A"), (None, "FA"), (None, "R"), (1, "SA")),
    S.CLOSE: ((0, "S"), (1, "S"), (0, "S"), (1, "S"), (None, "A"), (None, "FA"), (None, "R"), (1, "SA"), (0, "SA")),
    S.SYN_SENT2: ((0, "SA"), (1, "SA"), (0, "SA"), (1, "SA"), (None, "S"), (1, "A"), (0, "A"), (None, "RA"), (None, "FA")),
}
