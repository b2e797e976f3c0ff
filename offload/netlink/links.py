"""Interfaces, in the network namespace of a channel, whichever this thread is in: the one place that has them listed.

Theory of operation: the kernel lists all there are, piece by piece, and marks the list if an interface comes or goes meanwhile, any of them; then it
is asked for again (Channel.whole). Whoever wants more of an interface than name, number and flags says which attributes, as a Level.
Not here: what else is known of an interface (datapath.live.interfaces, devlink.representors).
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from offload.netlink.attributes import TEXT, U32, Level
from offload.netlink.channel import Channel
from offload.netlink.filters import DUMP, message
from offload.netlink.pack import u32
from offload.netlink.read import Malformed, Values, read

IFINFO = Struct("=BxHiII")  # struct ifinfomsg: family, type, index, flags, change
GET_LINK, NEW_LINK = 18, 16
LINK = Level("link", "IFLA_", {3: ("IFNAME", TEXT), 29: ("EXT_MASK", U32)})
RUNNING = 0x41  # IFF_UP, IFF_RUNNING
NO_STATISTICS = 1 << 3  # RTEXT_FILTER_SKIP_STATS


class Interface(NamedTuple):
    """running: it is up, and has a carrier; values: what it has of the attributes that were asked for."""

    name: str
    number: int
    running: bool
    values: Values


def links(channel: Channel) -> dict[str, int]:
    """The number of each interface. Raises NetlinkError, Malformed."""
    return {each.name: each.number for each in interfaces(channel)}


def running(channel: Channel) -> dict[str, bool]:
    """Of each interface whether packets come through. Raises NetlinkError, Malformed."""
    return {each.name: each.running for each in interfaces(channel)}


def interfaces(channel: Channel, level: Level = LINK) -> list[Interface]:
    """All of them. level: what is wanted of each, its name among it. Raises NetlinkError, Malformed."""
    request = message(GET_LINK, DUMP, IFINFO.pack(0, 0, 0, 0, 0) + u32(LINK.numbers["EXT_MASK"], NO_STATISTICS))
    return [link_of(data, level) for data in channel.whole(request)]


def link_of(data: bytes, level: Level = LINK) -> Interface:
    """Of what follows the header of an RTM_NEWLINK. Raises Malformed."""
    if len(data) < IFINFO.size:
        raise Malformed(f"link: {len(data)} bytes: expected {IFINFO.size} or more")
    _, _, number, flags, _ = IFINFO.unpack_from(data)
    values = read(level, data[IFINFO.size :])
    if not values.get("IFNAME"):
        raise Malformed("link: an interface without a name")
    return Interface(values["IFNAME"], number, flags & RUNNING == RUNNING, values)
