"""Interfaces by name and number, in the network namespace of a channel, whichever this thread is in.

Not here: what else is known of an interface (datapath.live.interfaces).
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from offload.netlink.attributes import BYTES, TEXT, U32, Level
from offload.netlink.channel import Channel
from offload.netlink.filters import DUMP, message
from offload.netlink.pack import u32
from offload.netlink.read import Malformed, read

IFINFO = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
GET_LINK, NEW_LINK = 18, 16
LINK = Level("link", "IFLA_", {3: ("IFNAME", TEXT), 29: ("EXT_MASK", U32), 4: ("MTU", U32), 1: ("ADDRESS", BYTES)})
RUNNING = 0x41  # IFF_UP, IFF_RUNNING
NO_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS


def links(channel: Channel) -> dict[str, int]:
    """The number of each interface. Raises NetlinkError, Malformed."""
    return {name: number for name, number, _ in _listed(channel)}


def running(channel: Channel) -> dict[str, bool]:
    """Of each interface whether packets come through: it is up, and has a carrier. Raises NetlinkError, Malformed."""
    return {name: flags & RUNNING == RUNNING for name, _, flags in _listed(channel)}


def _listed(channel: Channel) -> Iterator[tuple[str, int, int]]:
    """Name, number, flags."""
    for kind, data in channel.dump(message(GET_LINK, DUMP, IFINFO.pack(0, 0, 0, 0, 0) + u32(LINK.numbers["EXT_MASK"], NO_STATISTICS))):
        if len(data) < IFINFO.size:
            raise Malformed(f"link: {len(data)} bytes: expected {IFINFO.size} or more")
        if kind == NEW_LINK:
            _, _, number, flags, _ = IFINFO.unpack_from(data)
            yield read(LINK, data[IFINFO.size :])["IFNAME"], number, flags
