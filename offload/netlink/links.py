"""Interfaces by name and number, in the network namespace of a channel, whichever this thread is in.

Not here: what else is known of an interface (datapath.live.interfaces).
"""

from __future__ import annotations

from struct import Struct

from offload.netlink.attributes import BYTES, TEXT, U32, Level
from offload.netlink.channel import Channel
from offload.netlink.filters import DUMP, message
from offload.netlink.pack import u32
from offload.netlink.read import Malformed, read

IFINFO = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
GET_LINK, NEW_LINK = 18, 16
LINK = Level("link", "IFLA_", {3: ("IFNAME", TEXT), 29: ("EXT_MASK", U32), 4: ("MTU", U32), 1: ("ADDRESS", BYTES)})
NO_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS


def links(channel: Channel) -> dict[str, int]:
    """The number of each interface. Raises NetlinkError, Malformed."""
    found = {}
    for kind, data in channel.dump(message(GET_LINK, DUMP, IFINFO.pack(0, 0, 0, 0, 0) + u32(LINK.numbers["EXT_MASK"], NO_STATISTICS))):
        if len(data) < IFINFO.size:
            raise Malformed(f"link: {len(data)} bytes: expected {IFINFO.size} or more")
        if kind == NEW_LINK:
            found[read(LINK, data[IFINFO.size :])["IFNAME"]] = IFINFO.unpack_from(data)[2]
    return found
