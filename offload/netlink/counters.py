"""What one filter has counted, out of its message: only what leads there is looked at, for a mirror asks for many.

Counters are those of the first action, which sees all that the filter matches. Not here: what they are the more of (offload.exact_rules).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from offload.netlink.attributes import ACTION, BASIC, FLOWER, STATS, TC, TIMES
from offload.netlink.filters import TCMSG
from offload.netlink.read import Malformed, attributes

TICK = 10_000_000  # ns: times of actions are told in hundredths of a second (USER_HZ)
TM = 1  # TCA_PEDIT_TM, TCA_MIRRED_TM, TCA_GACT_TM: of all actions that a filter of ours begins with
_U64 = Struct("=Q")
_OPTIONS, _ACT, _KIND = TC.numbers["OPTIONS"], FLOWER.numbers["ACT"], 1
_ACTION_OPTIONS, _STATS = ACTION.numbers["OPTIONS"], ACTION.numbers["STATS"]
_BASIC, _BASIC_HW, _PKT64 = (STATS.numbers[name] for name in ("BASIC", "BASIC_HW", "PKT64"))


class Counters(NamedTuple):
    """packets, octets: of hardware and of the kernel together; in_hardware: of hardware alone; idle: ns since the last one, 0 to 10 ms too few."""

    packets: int = 0
    octets: int = 0
    in_hardware: int = 0
    idle: int = 0


def counters_of(data: bytes) -> Counters:
    """Of a filter, from what follows its message's header. Raises Malformed; of a filter without actions all are 0."""
    action = _first(_only(_only(data[TCMSG.size :], _OPTIONS, "tc"), _ACT, "flower"))
    packets = octets = in_hardware = idle = 0
    for number, payload in attributes(action, "action"):
        if number == _ACTION_OPTIONS:
            times = _only(payload, TM, "times")
            if times:
                idle = TIMES.layout.unpack_from(times[: TIMES.layout.size].ljust(TIMES.layout.size, b"\0"))[1] * TICK
        elif number == _STATS:
            for which, value in attributes(payload, "stats"):
                if which in (_BASIC, _BASIC_HW) and len(value) < BASIC.layout.size:
                    raise Malformed(f"stats: {len(value)} bytes: expected {BASIC.layout.size} or more")
                if which == _BASIC:
                    octets, few = BASIC.layout.unpack_from(value)
                    packets = packets or few
                elif which == _BASIC_HW:
                    in_hardware = BASIC.layout.unpack_from(value)[1]
                elif which == _PKT64 and len(value) == _U64.size:
                    packets = _U64.unpack(value)[0]
    return Counters(packets, octets, in_hardware, idle)


def _only(data: bytes, wanted: int, where: str) -> bytes:
    return next((payload for number, payload in attributes(data, where) if number == wanted), b"")


def _first(actions: bytes) -> bytes:
    return next((payload for _, payload in attributes(actions, "actions")), b"")
