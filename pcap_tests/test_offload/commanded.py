"""The tests' vocabulary for backends that are asked without a mirror: flows, the commands that a mirror would give for them, what was answered.

Not here: expectations, mirrors (mirrored).
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from ipaddress import ip_address

import numpy as np

from offload.backend import Backend
from offload.records import COMMAND_DTYPE, Ctinfo, Op

TCP, UDP, GRE, ICMP = 6, 17, 47, 1
S = 1_000_000_000


def address(text: str) -> np.ndarray:
    return np.frombuffer(ip_address(text).packed.ljust(16, b"\0"), dtype=np.uint8)


@dataclass
class Flow:
    """A connection of row `row`; what it becomes is `to` (src, sport, dst, dport), None: the same."""

    row: int
    proto: int = TCP
    src: str = "10.1.0.7"
    dst: str = "192.0.2.9"
    sport: int = 40_000
    dport: int = 80
    to: tuple[str, int, str, int] | None = None
    zone: int = 0
    serial: int = 1
    mark: int = 0
    label: int = 0

    def cookie(self, direction: int = 0) -> int:
        return (self.serial << 32 | self.row) << 1 | direction


def commands(op: Op, *flows: Flow, ctinfo: int = Ctinfo.ESTABLISHED, replies: bool = True) -> np.ndarray:
    """Both directions of each flow."""
    made = np.zeros(len(flows) * (1 + replies), dtype=COMMAND_DTYPE)
    for at, row in enumerate(made):
        flow, direction = (flows[at // 2], at % 2) if replies else (flows[at], 0)
        came = (flow.src, flow.sport, flow.dst, flow.dport)
        leaves = flow.to or came
        match, to = (came, leaves) if direction == 0 else ((leaves[2], leaves[3], leaves[0], leaves[1]), (came[2], came[3], came[0], came[1]))
        for name, (src, sport, dst, dport) in (("match", match), ("to", to)):
            row[name]["src"], row[name]["dst"] = address(src), address(dst)
            row[name]["sport"], row[name]["dport"], row[name]["zone"], row[name]["proto"] = sport, dport, flow.zone, flow.proto
            row[name]["family"] = 6 if ":" in src else 4
        row["cookie"], row["conn"], row["op"], row["dir"] = flow.cookie(direction), flow.row + 100, op, direction
        row["mark"], row["label"] = flow.mark, (flow.label & (1 << 64) - 1, flow.label >> 64)
        row["ctinfo"] = ctinfo if direction == 0 else Ctinfo.ESTABLISHED_REPLY
    return made


def asked(backend: Backend, op: Op, *flows: Flow, now: int = S, **more) -> list[int]:
    """The error of each reply."""
    wanted = commands(op, *flows, **more)
    assert backend.submit(wanted, now) == len(wanted)
    replies = {int(row["cookie"]): int(row["error"]) for row in backend.replies(now)}
    assert replies.keys() == {int(cookie) for cookie in wanted["cookie"]}
    return [replies[int(cookie)] for cookie in wanted["cookie"]]


def through_a_small_buffer(backend: Backend, asking: socket.socket) -> np.ndarray:
    """64 flows are made, counted and taken back, while the kernel throws most answers away, for they do not fit; each command has its reply all the
    same. The replies to the last ones."""
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is
    flows = [Flow(row, dport=row) for row in range(1, 65)]
    assert asked(backend, Op.REPLACE, *flows) == [0] * 128
    backend.submit(commands(Op.STATS, *flows), S)
    errors = [int(row["error"]) for row in backend.replies(S)]
    assert len(errors) == 128 and set(errors) <= {0, errno.ENOBUFS}
    backend.submit(commands(Op.DESTROY, *flows), S)
    done = backend.replies(S)
    assert {int(row["error"]) for row in done} <= {0, errno.ENOENT}
    return done


ALL = (
    Flow(1),
    Flow(2, UDP, sport=5000, dport=53, to=("198.51.100.1", 6000, "192.0.2.9", 53)),
    Flow(3, src="2001:db8:1::7", dst="2001:db8:2::9", to=("2001:db8:1::7", 40_000, "2001:db8:3::1", 8080)),
    Flow(4, GRE, sport=0, dport=0),
    Flow(5, sport=0, dport=0),
)
