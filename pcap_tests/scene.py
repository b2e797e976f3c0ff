"""The tests' vocabulary: traffic that is said in a line, sent as real frames, and judged in a line.

    conn = established(tracker, client_isn=100, server_isn=500)
    conn.orig("A", seq=101, ack=501).is_("established", reason="ok", l4state="ESTABLISHED", timeout=432000)
    conn.wait(10)
    conn.reply("R", seq=400).is_("invalid", reason="tcp_rst_below_maxack")

There is one constructor for each TCP state. Every packet goes through datapath.wire, as a captured one would.
Invariant: whatever passed, the tracker's check() holds after each packet.
Not here: expectations about traffic; those are the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ctcore import reasons, spec
from ctcore.types import Dir, End, EventKind, Proto, State, Status, Verdict
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
CLIENT, SERVER = "10.0.0.1", "10.0.0.2"
CLIENT6, SERVER6 = "2001:db8::1", "2001:db8::2"
CPORT, SPORT = 40000, 80
L4STATES = {Proto.PROTO_TCP: spec.tcp().states, Proto.PROTO_SCTP: spec.sctp().states}
ALL_STATUS = tuple(status for status in Status if status.name.isupper())
OPTIONS = {"wscale": lambda n: bytes([3, 3, n, 1]), "sack_perm": lambda _: bytes([4, 2, 1, 1])}


def name(value: int, enum: type) -> str:
    """`SEEN_REPLY` -> "seen-reply"."""
    return enum(value).name.lower().replace("_", "-")


def status_names(status: int) -> set[str]:
    return {name(bit, Status) for bit in ALL_STATUS if status & bit}


@dataclass(frozen=True)
class Seen:
    """One packet's decision, in words."""

    record: np.void
    hz: int

    @property
    def words(self) -> dict:
        r = self.record
        l4states = L4STATES.get(int(r["proto"]), ())
        return {
            "state": name(r["state"], State),
            "reason": reasons.NAMES[r["reason"]],
            "verdict": name(r["verdict"], Verdict),
            "dir": {Dir.ORIG: "original", Dir.REPLY: "reply"}.get(int(r["dir"])),
            "conn": int(r["conn"]) if r["conn"] >= 0 else None,
            "timeout": int(r["timeout"]) / self.hz if r["timeout"] >= 0 else None,
            "l4state": l4states[r["l4state"]] if r["l4state"] < len(l4states) else None,
            "status": status_names(int(r["status"])),
            "mark": int(r["mark"]),
            "zone": int(r["zone"]),
        }

    def __getattr__(self, word: str):
        return self.words[word]

    def is_(self, state: str, **expected) -> Seen:
        """Compare what is named; has=... wants these status bits among others, lacks=... none of these."""
        words = self.words
        has, lacks = set(expected.pop("has", ())), set(expected.pop("lacks", ()))
        expected["state"] = state
        assert {word: words[word] for word in expected} == expected, words
        assert has <= words["status"] and not lacks & words["status"], words
        return self


class Scene:
    """A tracker and its clock."""

    def __init__(self, tracker, *, checksum: bool = True):
        self.tracker = tracker
        self.checksum = checksum
        self.now = max(START, tracker.now)

    @property
    def hz(self) -> int:
        return self.tracker.config.hz

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def batch(self, frames: list[bytes], *, zone: int = 0):
        nat = bool(self.tracker.config.nat)
        return parse_batch(*frames_of(frames, ts=self.now), zone=zone, checksum=self.checksum, nat=nat)

    def send(self, frame: bytes, *, zone: int = 0) -> Seen:
        seen = Seen(self.tracker.advance(self.batch([frame], zone=zone))[0], self.hz)
        self.tracker.check()
        return seen

    def entry(self, ordinal: int) -> np.void:
        """The connection's record as it is now."""
        self.tracker.expire(self.now)
        conns = self.tracker.conns()
        return conns[conns["flow"]["id"][:, 0] == ordinal][0]

    def ordinals(self) -> list[int]:
        return [int(i) for i in self.tracker.conns()["flow"]["id"][:, 0]]


@dataclass
class Conversation:
    """Both ends of one TCP connection. Sequence numbers and acknowledgements follow by themselves unless they are given."""

    scene: Scene
    next: list[int]
    address: tuple[str, str] = (CLIENT, SERVER)
    port: tuple[int, int] = (CPORT, SPORT)
    zone: int = 0
    ordinal: int | None = None
    sent: list[bool] = field(default_factory=lambda: [False, False])

    def send(self, d: int, flags: str, *, seq: int | None = None, ack: int | None = None, payload: bytes = b"", **fields) -> Seen:
        """d is the end that sends: 0 the one that opened. Without ack, everything the other end sent is acknowledged."""
        if seq is None:
            seq = self.next[d]
        if ack is None:
            ack = self.next[1 - d] if "A" in flags and self.sent[1 - d] else 0
        self.next[d] = (seq + len(payload) + ("S" in flags) + ("F" in flags)) & 0xFFFFFFFF
        self.sent[d] = True
        frame = craft.tcp(*self.ends(d), flags, seq=seq, ack=ack, payload=payload, **fields)
        seen = self.scene.send(frame, zone=self.zone)
        if seen.conn is not None:
            self.ordinal = seen.conn
        return seen

    def ends(self, d: int) -> tuple[str, str, int, int]:
        """Addresses and ports of a packet that end d sends."""
        return self.address[d], self.address[1 - d], self.port[d], self.port[1 - d]

    def orig(self, flags: str, **fields) -> Seen:
        return self.send(Dir.ORIG, flags, **fields)

    def reply(self, flags: str, **fields) -> Seen:
        return self.send(Dir.REPLY, flags, **fields)

    def wait(self, seconds: float) -> Conversation:
        self.scene.wait(seconds)
        return self

    @property
    def entry(self) -> np.void:
        return self.scene.entry(self.ordinal)

    @property
    def tcp(self) -> np.void:
        return self.entry["tcp"]

    @property
    def state(self) -> str:
        return spec.tcp().states[self.tcp["state"]]

    @property
    def left(self) -> float:
        """Seconds until it expires."""
        return int(self.entry["timeout"]) / self.scene.hz

    @property
    def status(self) -> set[str]:
        return status_names(int(self.entry["status"]))

    def side(self, d: int) -> dict[str, int]:
        """What is known of one end: end, maxend, maxwin, maxack, scale, flags."""
        tcp = self.tcp
        known = {field: int(tcp["side"][d][field]) for field in tcp["side"].dtype.names}
        return {**known, "scale": int(tcp["scale"][d]), "flags": int(tcp["flags"][d])}


def options(*, wscale: int | None = None, sack_perm: bool = False) -> bytes:
    """A TCP option area."""
    chosen = [("wscale", wscale)] * (wscale is not None) + [("sack_perm", 1)] * sack_perm
    return b"".join(OPTIONS[kind](value) for kind, value in chosen)


def sack(*blocks: tuple[int, int]) -> bytes:
    """A SACK option with these left and right edges, padded."""
    edges = b"".join((edge & 0xFFFFFFFF).to_bytes(4, "big") for block in blocks for edge in block)
    return b"\1\1" + bytes([5, 2 + len(edges)]) + edges


# --- one constructor for each TCP state ------------------------------------------------------------------------------------------------


def conversation(tracker, *, client_isn: int = 100, server_isn: int = 500, scene: Scene | None = None, **where) -> Conversation:
    """Two ends that have not said anything. where: address, port, zone."""
    return Conversation(scene or Scene(tracker), [client_isn, server_isn], **where)


def syn_sent(tracker, *, syn: dict | None = None, **ends) -> Conversation:
    """syn, synack: fields of these packets, such as win and options."""
    conn = conversation(tracker, **ends)
    conn.orig("S", **(syn or {})).is_("new", l4state="SYN_SENT")
    return conn


def syn_recv(tracker, *, synack: dict | None = None, **ends) -> Conversation:
    conn = syn_sent(tracker, **ends)
    conn.reply("SA", **(synack or {})).is_("established", l4state="SYN_RECV")
    return conn


def established(tracker, **ends) -> Conversation:
    conn = syn_recv(tracker, **ends)
    conn.orig("A").is_("established", l4state="ESTABLISHED", has={"assured"})
    return conn


def fin_wait(tracker, **ends) -> Conversation:
    conn = established(tracker, **ends)
    conn.orig("FA").is_("established", l4state="FIN_WAIT")
    return conn


def close_wait(tracker, **ends) -> Conversation:
    conn = fin_wait(tracker, **ends)
    conn.reply("A").is_("established", l4state="CLOSE_WAIT")
    return conn


def last_ack(tracker, **ends) -> Conversation:
    conn = close_wait(tracker, **ends)
    conn.reply("FA").is_("established", l4state="LAST_ACK")
    return conn


def time_wait(tracker, **ends) -> Conversation:
    conn = last_ack(tracker, **ends)
    conn.orig("A").is_("established", l4state="TIME_WAIT")
    return conn


def close(tracker, **ends) -> Conversation:
    """Reset by the server."""
    conn = established(tracker, **ends)
    conn.reply("R").is_("established", l4state="CLOSE")
    return conn


def syn_sent2(tracker, **ends) -> Conversation:
    """Both ends sent a SYN."""
    conn = syn_sent(tracker, **ends)
    conn.reply("S").is_("established", l4state="SYN_SENT2")
    return conn


STATES = {
    "NONE": conversation,
    "SYN_SENT": syn_sent,
    "SYN_RECV": syn_recv,
    "ESTABLISHED": established,
    "FIN_WAIT": fin_wait,
    "CLOSE_WAIT": close_wait,
    "LAST_ACK": last_ack,
    "TIME_WAIT": time_wait,
    "CLOSE": close,
    "SYN_SENT2": syn_sent2,
}


# --- protocols without a handshake of their own ----------------------------------------------------------------------------------------


@dataclass
class Exchange:
    """Two hosts and their ports. make: a function of datapath.craft that takes both addresses, and both ports if there are any."""

    scene: Scene
    make: Callable[..., bytes]
    address: tuple[str, str] = (CLIENT, SERVER)
    port: tuple[int, int] | None = (CPORT, 53)
    zone: int = 0
    ordinal: int | None = None

    def frame(self, d: int, *rest, **fields) -> bytes:
        ports = (self.port[d], self.port[1 - d]) if self.port else ()
        return self.make(self.address[d], self.address[1 - d], *ports, *rest, **fields)

    def send(self, d: int, *rest, **fields) -> Seen:
        seen = self.scene.send(self.frame(d, *rest, **fields), zone=self.zone)
        if seen.conn is not None:
            self.ordinal = seen.conn
        return seen

    def orig(self, *rest, **fields) -> Seen:
        return self.send(Dir.ORIG, *rest, **fields)

    def reply(self, *rest, **fields) -> Seen:
        return self.send(Dir.REPLY, *rest, **fields)

    def wait(self, seconds: float) -> Exchange:
        self.scene.wait(seconds)
        return self

    @property
    def entry(self) -> np.void:
        return self.scene.entry(self.ordinal)

    @property
    def left(self) -> float:
        return int(self.entry["timeout"]) / self.scene.hz

    @property
    def status(self) -> set[str]:
        return status_names(int(self.entry["status"]))

    @property
    def packets(self) -> list[int]:
        return self.entry["flow"]["packets"].tolist()


def udp(tracker, **where) -> Exchange:
    """A question-and-answer pair that has not begun. where: address, port, zone, scene."""
    return Exchange(where.pop("scene", None) or Scene(tracker), craft.udp, **where)


# --- events ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """One event, in words."""

    record: np.void
    hz: int

    @property
    def kind(self) -> str:
        return EventKind(int(self.record["kind"])).name.removeprefix("EVENT_").lower()

    @property
    def end(self) -> str:
        return End(int(self.record["end"])).name.removeprefix("END_").lower()

    @property
    def conn(self) -> int:
        return int(self.record["conn"]["flow"]["id"][0])

    @property
    def status(self) -> set[str]:
        return status_names(int(self.record["conn"]["status"]))

    @property
    def left(self) -> float:
        return int(self.record["timeout"]) / self.hz


def events(tracker) -> list[Told]:
    """The pending events, oldest first."""
    return [Told(record, tracker.config.hz) for record in tracker.events()]
