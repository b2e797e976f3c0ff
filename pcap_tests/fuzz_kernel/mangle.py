"""IP headers that are not plain: options, extension headers, odd lengths and versions, packets that end too early.

Fragments are left out: of a datagram in fragments only the whole is judged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from datapath import craft
from datapath.scenario.steps import Ext, Ip

if TYPE_CHECKING:
    from pcap_tests.fuzz_kernel.draft import Draft

# IPv4 options: no-operation, record route, timestamp, router alert, strict and loose source route, end; then such as make no sense.
OPTIONS4 = (
    b"\1\1\1\1", bytes([7, 7, 4, 0, 0, 0, 0, 0]), bytes([68, 8, 5, 0, 0, 0, 0, 0]), bytes([148, 4, 0, 0]), bytes([131, 7, 4, 10, 0, 0, 9, 0]),
    bytes([137, 7, 4, 10, 0, 0, 9, 0]), bytes(4), bytes([7, 60, 4, 0]), bytes([7, 1, 0, 0]), bytes([99, 0, 0, 0]), bytes([255] * 4), b"\1" * 40,
)  # fmt: skip
SEGMENTS = bytes([2, 4, 1, 0, 0, 0, 0]) + bytes(16)  # RFC 8754 2
MOBILE = bytes([2, 2, 1, 0, 0, 0, 0]) + bytes(16)  # RFC 6275 6.4
AUTHENTICATION = bytes([4]) + bytes(22)  # RFC 4302 2
# Only ever the first header: behind a fragment header that was taken out, a bridge looks at it once more, but no router does.
MALFORMED = tuple(
    Ext(craft.HOP_BY_HOP, options) for options in (
        bytes([0, 194, 4, 0, 1, 0, 0]), bytes([0, 200, 9, 0, 0, 0, 0]), bytes([0, 1, 5, 0, 0, 0, 0]), bytes([0, 0, 0, 0, 0, 0, 5]),
        bytes([1, *[0] * 13, 5]), bytes([200, 1, 4, 0, 0, 0, 0]),
    )
)  # fmt: skip
EXTENSIONS = (
    Ext(craft.HOP_BY_HOP), Ext(craft.HOP_BY_HOP, craft.options6(1)), Ext(craft.HOP_BY_HOP, bytes([0, 5, 2, 0, 0, 1, 0])),
    Ext(craft.HOP_BY_HOP, bytes([0, 200, 4, 0, 0, 0, 0])), Ext(craft.HOP_BY_HOP, bytes([0, *[0] * 6])),
    Ext(craft.DESTINATION), Ext(craft.DESTINATION, craft.options6(2)), Ext(craft.ROUTING, bytes(7)), Ext(craft.ROUTING, SEGMENTS),
    Ext(craft.ROUTING, MOBILE), Ext(craft.AH, AUTHENTICATION), Ext(craft.FRAGMENT, craft.fragment6()), Ext(craft.NO_NEXT, bytes(7)),
    Ext(craft.DESTINATION, bytes([200]) + bytes(6)), Ext(craft.AH, bytes([255]) + bytes(6)), Ext(craft.ROUTING, bytes([255, 0, 0, 0, 0, 0, 0])),
)  # fmt: skip


def strange_ip(draft: Draft, ip: Ip) -> Ip:
    """One or two things about the header that are not usual."""
    for _ in range(draft.pick((1, 1, 1, 2))):
        ip = replace(ip, **draft.pick(STRANGE6 if draft.six else STRANGE4)(draft))
    # A packet without a length, but with hop-by-hop options, cannot be shown to a bridge.
    return replace(ip, length=None) if ip.length == 0 and ip.ext[:1] and ip.ext[0].type == craft.HOP_BY_HOP else ip


def _cut(draft: Draft) -> dict:
    return {"cut": draft.pick((0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 15, 16, 19, 20, 21, 24, 28, 32))}


def _hops(draft: Draft) -> dict:
    return {"ttl": draft.pick((0, 1, 2, 255))}


def _padded(draft: Draft) -> dict:
    return {"pad": draft.pick((1, 2, 6, 18))}


STRANGE4 = (
    _cut, _hops, _padded,
    lambda draft: {"options": draft.pick(OPTIONS4)},
    lambda draft: {"tos": draft.pick((1, 3, 0x10, 0xB8, 0xFF))},
    lambda draft: {"ident": draft.pick((0, 0xFFFF)), "df": draft.chance(0.7)},
    lambda draft: {"version": draft.pick((0, 3, 5, 6, 15))},
    lambda draft: {"ihl": draft.pick((0, 1, 4, 6, 7, 10, 15))},
    lambda draft: {"length": draft.pick((0, 10, 19, 20, 21, 24, 28, 32, 39, 40, 41, 60, 2000, 65535))},
    lambda draft: {"checksum": draft.pick(("bad", 0, 0xFFFF))},
)  # fmt: skip
STRANGE6 = (
    _cut, _hops, _padded,
    lambda draft: {"ext": tuple(draft.pick(EXTENSIONS) for _ in range(draft.pick((1, 1, 1, 2, 3))))},
    lambda draft: {"ext": (draft.pick(MALFORMED), *(draft.pick(EXTENSIONS) for _ in range(draft.pick((0, 0, 1)))))},
    lambda draft: {"ext": (draft.pick(EXTENSIONS[:12]),)},
    lambda draft: {"ext": tuple(draft.pick(EXTENSIONS[:12]) for _ in range(2))},
    lambda draft: {"version": draft.pick((0, 4, 5, 7, 15))},
    lambda draft: {"length": draft.pick((0, 1, 3, 4, 7, 8, 12, 19, 20, 21, 40, 2000, 65535))},
)  # fmt: skip
