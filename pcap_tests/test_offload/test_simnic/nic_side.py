"""Connections, frames and rules for tests of the simulated NIC, and what it made of them.

nic = forwarding(Conn("10.0.0.1", "192.0.2.9", 40000, 80, src="198.51.100.1"))
nic.frame(tcp("10.0.0.1", "192.0.2.9", 40000, 80, "A")).verdict
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datapath.craft import address
from datapath.frame import frames_of
from offload.records import COMMAND_DTYPE, Ctinfo, Op
from offload.simnic import profile
from offload.simnic.nic import Nic
from offload.simnic.results import Flag, OutputFlag, Verdict, Why
from offload.simnic.rules import Ct, Match, NicRule, NicRules, Send, Then

TCP, UDP, GRE = 6, 17, 47
IN, OUT, ZONE = 1, 2, 5
SECOND = 1_000_000_000
ONWARD = Then("goto", 1)
TRK, EST, NEW, RPL = 0x08, 0x02, 0x01, 0x20


@dataclass(frozen=True)
class Conn:
    """One direction of a connection. to_src, ...: what it leaves with, where that is something else."""

    src: str
    dst: str
    sport: int
    dport: int
    proto: int = TCP
    zone: int = ZONE
    to_src: str = ""
    to_dst: str = ""
    to_sport: int = 0
    to_dport: int = 0
    ctinfo: Ctinfo = Ctinfo.ESTABLISHED
    cookie: int = 2
    conn: int = 1
    mark: int = 0
    label: int = 0

    def command(self, op: Op = Op.REPLACE) -> NDArray[Any]:
        found = np.zeros(1, dtype=COMMAND_DTYPE)
        row = found[0]
        row["op"], row["cookie"], row["conn"], row["ctinfo"], row["mark"] = op, self.cookie, self.conn, self.ctinfo, self.mark
        row["dir"], row["label"] = self.cookie & 1, (self.label & (1 << 64) - 1, self.label >> 64)
        for key, src, dst, sport, dport in (
            (row["match"], self.src, self.dst, self.sport, self.dport),
            (row["to"], self.to_src or self.src, self.to_dst or self.dst, self.to_sport or self.sport, self.to_dport or self.dport),
        ):
            for name, text in (("src", src), ("dst", dst)):
                key[name].view(np.uint8)[: len(address(text))] = list(address(text))
            key["sport"], key["dport"], key["zone"], key["proto"], key["family"] = sport, dport, self.zone, self.proto, 6 if ":" in src else 4
        return found


class Seen(NamedTuple):
    """What became of one frame. left: bytes, iface, and whether it is a mirror's copy; data: the frame as the NIC leaves it to software."""

    verdict: Verdict
    why: Why
    row: Any
    left: list[tuple[bytes, int, bool]]
    data: bytes

    @property
    def state(self) -> int:
        """As flower has it."""
        return int(self.row["ct_state"]) & 0x3F

    @property
    def resumes(self) -> tuple[int, int, int]:
        """Chain, rule and action."""
        return int(self.row["chain"]), int(self.row["rule"]), int(self.row["action"])


def seen(nic: Nic, memory: NDArray[np.uint8], rows: NDArray[Any]) -> list[Seen]:
    """Each frame of a process()."""
    outputs, own = nic.outputs()

    def data(each: Any, changed: bool) -> bytes:
        return bytes((own if changed else memory)[each["offset"] : each["offset"] + each["caplen"]])

    found = []
    for row in rows:
        left = outputs[row["first_output"] : row["first_output"] + row["n_outputs"]]
        gone = [(data(out, bool(out["flags"] & OutputFlag.CHANGED)), int(out["iface"]), bool(out["flags"] & OutputFlag.COPY)) for out in left]
        found.append(Seen(Verdict(row["verdict"]), Why(row["why"]), row, gone, data(row, bool(row["flags"] & Flag.CHANGED))))
    return found


class Tried(Nic):
    """A NIC that is given one frame, one command at a time."""

    def frame(self, data: bytes, ts: int = 0, iface: int = IN, missing: int = 0) -> Seen:
        memory, frames = frames_of([data], ts)
        frames["iface"], frames["len"] = iface, len(data) + missing
        return seen(self, memory, self.process(memory, frames))[0]

    def replace(self, conn: Conn, now: int = 0) -> int:
        return self.told(conn.command(), now)

    def destroy(self, conn: Conn, now: int = 0) -> int:
        return self.told(conn.command(Op.DESTROY), now)

    def stats(self, conn: Conn, now: int = 0) -> Any:
        assert self.submit(conn.command(Op.STATS), now) == 1
        (reply,) = self.replies(now)
        return reply

    def told(self, command: NDArray[Any], now: int) -> int:
        """The error."""
        assert self.submit(command, now) == 1
        (reply,) = self.replies(now)
        assert reply["cookie"] == command["cookie"][0] and reply["op"] == command["op"][0]
        return int(reply["error"])


def kind(text: str = "") -> profile.Profile:
    """A profile without limits, but for what the text says."""
    return profile.parse("[counters]\nperiod = 0\n" + text if "[counters]" not in text else text, "test.toml")


def track(*, nat: bool = True, zone: int = ZONE, then: Then = ONWARD, chain: int = 0, number: int = 0) -> NicRule:
    return NicRule(number, 0, chain, (Match("ct_state", 0, TRK),) if not chain else (), (Ct(zone, nat, then=then),))


def established(number: int = 1, chain: int = 1) -> NicRule:
    return NicRule(number, 0, chain, (Match("ct_state", TRK | EST, TRK | EST),), (Send(OUT),))


def ruled(*rules: NicRule, of: profile.Profile | None = None, **more: Any) -> Tried:
    return Tried(of or kind(), NicRules(rules, {IN: 0}), **more)


def forwarding(*conns: Conn, of: profile.Profile | None = None, nat: bool = True, **more: Any) -> Tried:
    """Established connections are redirected to OUT."""
    nic = ruled(track(nat=nat), established(), of=of, **more)
    installed(nic, conns)
    return nic


def installed(nic: Tried, conns: Iterable[Conn]) -> None:
    for conn in conns:
        assert nic.replace(conn) == 0
