"""Link types: which captures can be read, and what the others are called in the line that refuses them.

Numbers are LINKTYPE_* of the registry (https://www.tcpdump.org/linktypes.html). Not here: what frames of a link type look like (wire).
"""

from __future__ import annotations

from datapath import frame

SUPPORTED_LINKS = (
    frame.LINK_NULL,
    frame.LINK_ETHERNET,
    frame.LINK_RAW_12,
    frame.LINK_RAW_14,
    frame.LINK_RAW,
    frame.LINK_LOOP,
    frame.LINK_SLL,
    frame.LINK_IPV4,
    frame.LINK_IPV6,
    frame.LINK_SLL2,
)
EXPECTED_LINKS = "Ethernet, Linux cooked (SLL, SLL2), raw IP or BSD loopback"

LINK_NAMES = {
    0: "BSD loopback",
    1: "Ethernet",
    6: "token ring",
    7: "ARCNET",
    8: "SLIP",
    9: "PPP",
    10: "FDDI",
    12: "raw IP",
    14: "raw IP",
    50: "PPP in HDLC framing",
    51: "PPPoE session",
    100: "ATM",
    101: "raw IP",
    104: "Cisco HDLC",
    105: "802.11",
    107: "frame relay",
    108: "OpenBSD loopback",
    113: "Linux cooked",
    114: "LocalTalk",
    117: "pflog",
    119: "802.11 + Prism header",
    122: "IP over Fibre Channel",
    127: "802.11 + radiotap",
    129: "ARCNET, Linux",
    140: "MTP2",
    141: "MTP3",
    142: "SCCP",
    143: "DOCSIS",
    144: "IrDA",
    163: "802.11 + AVS header",
    166: "PPP with direction",
    177: "LAPD",
    187: "Bluetooth HCI",
    189: "USB, Linux",
    192: "per-packet information",
    195: "802.15.4",
    201: "Bluetooth HCI + direction",
    215: "802.15.4 without preamble",
    220: "USB, Linux, padded",
    226: "IP of Solaris ipnet",
    227: "CAN",
    228: "raw IPv4",
    229: "raw IPv6",
    230: "802.15.4 without FCS",
    231: "D-Bus",
    239: "nflog",
    248: "SCTP",
    249: "USBPcap",
    251: "Bluetooth LE",
    252: "exported upper PDU",
    253: "netlink",
    254: "Bluetooth, Linux monitor",
    258: "packet summary of Solaris",
    272: "Nordic BLE",
    274: "Ethernet mPacket",
    276: "Linux cooked v2",
}
LINK_NAMES.update((147 + i, f"user-defined {i}") for i in range(16))


def link_name(link: int) -> str:
    """How messages speak of a link type: `link type 127 (802.11 + radiotap)`."""
    return f"link type {link}" + (f" ({LINK_NAMES[link]})" if link in LINK_NAMES else "")
