"""What the tests of parse() share: a SYN over IPv6, and a row's outcome in words.

Not here: tests.
"""

from __future__ import annotations

import numpy as np

from ctcore import reasons
from ctcore.types import State, Verdict
from datapath import craft as t
from datapath.frame import frames_of
from datapath.wire import parse_batch

A6, B6 = "2001:db8::1", "2001:db8::2"
SYN6 = t.tcp_segment(A6, B6, 1, 2, "S")
FINAL = {"not_ip": Verdict.ACCEPT, "snapped": Verdict.ACCEPT, "fragment": Verdict.HELD}


def parse(packet: bytes, *, checksum: bool = True, **kwargs) -> np.void:
    """The row of one packet."""
    return parse_batch(*frames_of([packet], **kwargs), checksum=checksum).array[0]


def name(code: int) -> str:
    return reasons.NAMES[code]


def outcome(row: np.void) -> tuple[str, str, str, str]:
    """(verdict, state, reason, l4_reason), in words."""
    return Verdict(row["verdict"]).name, State(row["state"]).name, name(row["reason"]), name(row["l4_reason"])


def assert_l4(row: np.void, reason: str) -> None:
    """Pending, and its tracker will hold `reason` against it."""
    assert outcome(row) == ("PENDING", "NOT_SEEN", "ok", reason)


def assert_invalid(row: np.void, reason: str) -> None:
    assert outcome(row) == ("ACCEPT", "INVALID", reason, "ok")


def assert_not_seen(row: np.void, reason: str) -> None:
    assert outcome(row) == (FINAL.get(reason, Verdict.DROP).name, "NOT_SEEN", reason, "ok")


def eth6(**fields) -> bytes:
    return t.eth(t.ipv6(A6, B6, t.TCP, SYN6, **fields), t.ETH_IPV6)
