"""Two SCTP endpoints: the handshake and its end, and chunks that do not belong where they are.

Theory of operation: as in tcp: a sound move does what the association's state asks for, with the tags that conntrack expects; the others take a tag
that is near, the other side's, or none, and any chunks.
Not here: IP headers (mangle).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ctcore.types import SctpState as S
from datapath.scenario.steps import Chunk, Ip, Packet, Sctp
from pcap_tests.fuzz_kernel.draft import Draft

DATA, INIT, INIT_ACK, SACK, HEARTBEAT, HEARTBEAT_ACK, ABORT, SHUTDOWN, SHUTDOWN_ACK, ERROR, COOKIE_ECHO, COOKIE_ACK, COMPLETE = (
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14,
)  # fmt: skip
KINDS = (
    DATA,
    INIT,
    INIT_ACK,
    SACK,
    HEARTBEAT,
    HEARTBEAT_ACK,
    ABORT,
    SHUTDOWN,
    SHUTDOWN_ACK,
    ERROR,
    COOKIE_ECHO,
    COOKIE_ACK,
    COMPLETE,
    12,
    64,
    192,
    255,
)
WITH_TAG = (INIT, INIT_ACK)
TAGLESS = 0
TAGS = (0, 1, 0x01000000, 0xFFFFFFFF)


class SctpTalk:
    """names, ports: of the two endpoints."""

    def __init__(self, draft: Draft, names: tuple[str, str], ports: tuple[int, int]) -> None:
        self.draft, self.names, self.ports = draft, names, ports
        self.tags = [self.fresh_tag(), self.fresh_tag()]  # what each endpoint wants to find in packets to it
        self.sent: list[Packet] = []
        moves = {self.sound: 12, self.strange: 4, self.bundle: 2, self.odd: 1, self.again: 1}
        if draft.chance(0.3):
            moves |= {self.sound: 30}
        self.moves = tuple(move for move, weight in moves.items() for _ in range(weight))

    def fresh_tag(self) -> int:
        return self.draft.pick(TAGS[1:]) if self.draft.chance(0.2) else self.draft.dice.getrandbits(32)

    def step(self) -> None:
        self.draft.pick(self.moves)()

    def memory(self) -> tuple[np.void, int] | None:
        """What conntrack remembers, and which endpoint sends in the original direction."""
        found = self.draft.conn(self.packet(0, Sctp()))
        return (found[0]["sctp"], found[1]) if found else None

    def packet(self, side: int, sctp: Sctp, ip: Ip | None = None) -> Packet:
        return Packet(self.names[side], self.names[1 - side], sctp, self.ports[side], self.ports[1 - side], ip or Ip())

    def chunk(self, side: int, kind: int) -> Chunk:
        """A chunk that `side` sends."""
        if kind not in WITH_TAG:
            return Chunk(kind, body=self.draft.pick((0, 0, 4, 12, 13)))
        if self.draft.chance(0.1):
            self.tags[side] = self.fresh_tag()
        return Chunk(kind, tag=self.tags[side])

    def sound(self) -> None:
        known, draft = self.memory(), self.draft
        if known is None:
            side, kinds = draft.pick((0, 0, 0, 1)), draft.pick(OPENING)
        else:
            who, kinds = draft.pick(SOUND[int(known[0]["state"])])
            side = draft.pick((0, 1)) if who is None else known[1] ^ who
        tag = TAGLESS if INIT in kinds else self.tags[1 - side]
        if known is not None and INIT not in kinds and draft.chance(0.8):
            tag = int(known[0]["vtag"][0 if side == known[1] else 1])
        self.emit(self.packet(side, Sctp(tag, tuple(self.chunk(side, kind) for kind in kinds))))

    def strange(self) -> None:
        """One chunk of any kind, and a tag that may be anybody's."""
        draft, side = self.draft, self.draft.pick((0, 1))
        chunk = self.chunk(side, draft.pick(KINDS))
        if draft.chance(0.3):
            chunk = replace(chunk, flags=draft.pick((1, 1, 1, 2, 3, 255)))
        self.emit(self.packet(side, Sctp(self.some_tag(side), (chunk,))))

    def some_tag(self, side: int) -> int:
        draft, known = self.draft, self.memory()
        tags = [*TAGS, self.tags[side], self.tags[1 - side], self.tags[1 - side]]
        if known:
            tags += [int(tag) for tag in known[0]["vtag"]] * 3
        return (draft.pick(tags) + draft.pick((0,) * 8 + (1, -1))) & 0xFFFFFFFF

    def bundle(self) -> None:
        draft, side = self.draft, self.draft.pick((0, 1))
        kinds = tuple(draft.pick(KINDS) for _ in range(draft.pick((0, 2, 2, 2, 3, 4))))
        if draft.chance(0.5):
            kinds = draft.pick(BUNDLES)
        self.emit(self.packet(side, Sctp(self.some_tag(side), tuple(self.chunk(side, kind) for kind in kinds))))

    def odd(self) -> None:
        draft, side = self.draft, self.draft.pick((0, 1))
        kind = draft.pick(KINDS)
        sctp = Sctp(self.some_tag(side), (self.chunk(side, kind),))
        ip = Ip()
        match draft.pick(("length", "length", "sum", "cut", "cut", "tail", "short")):
            case "length":
                sctp = replace(
                    sctp, chunks=(replace(sctp.chunks[0], length=draft.pick((0, 1, 2, 3, 4, 5, 8, 15, 16, 19, 20, 21, 100, 65535))), *sctp.chunks)
                )
            case "sum":
                sctp = replace(sctp, checksum=draft.pick(("bad", 0)))
            case "cut":
                ip = Ip(cut=draft.pick((4, 8, 11, 12, 13, 15, 16, 20, 24, 31, 32)))
            case "tail":
                sctp = replace(sctp, tail=draft.pick((b"\0", b"\0\0\0", b"\0\0\0\0", b"\1\0\0\4", b"\7\0\0\10", b"\6\0\0\4junk", b"\0\0\0\4")))
            case "short":
                sctp = replace(sctp, chunks=(Chunk(draft.pick(WITH_TAG), body=draft.pick((0, 4, 8, 15, 16, 17))),))
        self.emit(self.packet(side, sctp, ip))

    def again(self) -> None:
        if self.sent:
            self.emit(self.draft.pick(self.sent[-8:]))

    def emit(self, packet: Packet) -> None:
        self.sent.append(packet)
        self.draft.send(packet)


OPENING: tuple[tuple[int, ...], ...] = ((INIT,),) * 8 + (
    (HEARTBEAT,),
    (HEARTBEAT,),
    (SHUTDOWN_ACK,),
    (COOKIE_ECHO,),
    (HEARTBEAT_ACK,),
    (DATA,),
    (ERROR,),
    (INIT_ACK,),
    (ABORT,),
)
BUNDLES: tuple[tuple[int, ...], ...] = (
    (COOKIE_ECHO, DATA), (COOKIE_ACK, DATA), (SACK, DATA), (DATA, HEARTBEAT), (DATA, HEARTBEAT_ACK), (HEARTBEAT, HEARTBEAT_ACK), (DATA, COOKIE_ECHO),
    (INIT, DATA), (DATA, INIT), (ABORT, DATA), (SHUTDOWN, SACK), (HEARTBEAT, SHUTDOWN), (COMPLETE, DATA), (HEARTBEAT_ACK, ABORT), (ERROR, COOKIE_ACK),
    (SHUTDOWN, SHUTDOWN_ACK), (HEARTBEAT, HEARTBEAT), (COOKIE_ECHO, ERROR), (SHUTDOWN_ACK, ABORT), (ERROR, HEARTBEAT),
)  # fmt: skip
TALK = ((None, (DATA,)), (None, (SACK,)), (None, (SACK, DATA)), (None, (HEARTBEAT,)), (None, (HEARTBEAT_ACK,)))
END = ((0, (SHUTDOWN,)), (1, (SHUTDOWN,)), (0, (SHUTDOWN_ACK,)), (1, (SHUTDOWN_ACK,)), (None, (COMPLETE,)), (None, (ABORT,)), (None, (INIT,)))
# What a sound pair does in each state: (direction, or None: either, chunks), by how often it stands there.
SOUND: dict[int, tuple[tuple[int | None, tuple[int, ...]], ...]] = {
    S.SCTP_NONE: ((0, (INIT,)),),
    S.SCTP_CLOSED: ((1, (INIT_ACK,)),) * 8 + ((0, (INIT,)), (1, (ABORT,)), (1, (INIT,)), (None, (DATA,))),
    S.SCTP_COOKIE_WAIT: ((0, (COOKIE_ECHO,)),) * 8 + ((0, (COOKIE_ECHO, DATA)), (1, (INIT_ACK,)), (0, (INIT,)), (1, (ABORT,)), (1, (INIT,))),
    S.SCTP_COOKIE_ECHOED: ((1, (COOKIE_ACK,)),) * 8 + ((0, (COOKIE_ECHO,)), (1, (COOKIE_ACK, DATA)), (1, (ERROR,)), (1, (ABORT,)), (0, (INIT,))),
    S.SCTP_ESTABLISHED: TALK * 3 + END,
    S.SCTP_SHUTDOWN_SENT: ((1, (SHUTDOWN_ACK,)), (None, (SHUTDOWN_ACK,)), *END),
    S.SCTP_SHUTDOWN_RECD: ((0, (SHUTDOWN_ACK,)), (None, (SHUTDOWN_ACK,)), *END),
    S.SCTP_SHUTDOWN_ACK_SENT: ((0, (COMPLETE,)), (1, (COMPLETE,)), *END),
    S.SCTP_HEARTBEAT_SENT: ((1, (HEARTBEAT_ACK,)), (1, (HEARTBEAT_ACK,)), (None, (HEARTBEAT,)), (0, (INIT,)), (1, (DATA,)), (None, (ABORT,))),
}
