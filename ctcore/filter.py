"""Which connections: a frozen value that names some of what a connection has, as conntrack(8) -L, -D and -U take it.

What is None, or 0 in a mask, is not looked at; a Filter() with nothing in it fits every connection.
Invariant: fields that contradict each other are refused when the value is made, not found to fit nothing later.
Not here: looking for them (admin_api, model.admin).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from struct import Struct

from ctcore.config import whole
from ctcore.errors import ConfigError
from ctcore.types import Status

KEY = Struct("=16s16sHHHBB")
ALL_MARKS = (1 << 32) - 1
ALL_LABELS = (1 << 128) - 1
# The bits that ctnetlink lets be set; it lets none be taken back (nf_ct_change_status_common).
CHANGEABLE = Status.SEEN_REPLY | Status.ASSURED | Status.FIXED_TIMEOUT

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# The fields of one direction, by their names in the original one, and the largest value of those that are numbers.
ENDS = ("src", "dst")
NUMBERS = {"sport": 0xFFFF, "dport": 0xFFFF}


@dataclass(frozen=True)
class Filter:
    """Connections that agree with all that is given.

    src, dst: an address or a network, as text or a value of ipaddress; sport, dport: of ICMP the id, and type << 8 | code; of GRE the keys. These
    are of the original tuple, those with reply_ of the other one, which under address translation has other addresses. original, reply: a
    tuple whole, the 40 bytes of a KEY_DTYPE, which is found without a search. zone: the connection's. status, not_status: bits of Status of which
    all are set, and none is. mark and label count under their masks. Raises ConfigError.
    """

    family: int | None = None  # 4 or 6
    proto: int | None = None
    src: str | Address | Network | None = None
    dst: str | Address | Network | None = None
    sport: int | None = None
    dport: int | None = None
    reply_src: str | Address | Network | None = None
    reply_dst: str | Address | Network | None = None
    reply_sport: int | None = None
    reply_dport: int | None = None
    original: bytes | None = None
    reply: bytes | None = None
    zone: int | None = None
    mark: int | None = None
    mark_mask: int = ALL_MARKS
    label: int | None = None
    label_mask: int = ALL_LABELS
    status: int = 0
    not_status: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("proto", 0, 255), ("zone", 0, 0xFFFF), ("mark", 0, ALL_MARKS), ("label", 0, ALL_LABELS)):
            if getattr(self, name) is not None:
                whole(f"filter: {name} =", getattr(self, name), low, high)
        for name, high in (("mark_mask", ALL_MARKS), ("label_mask", ALL_LABELS), ("status", 0xFFFF), ("not_status", 0xFFFF)):
            whole(f"filter: {name} =", getattr(self, name), 0, high)
        if self.family not in (None, 4, 6):
            raise ConfigError(f"filter: family = {self.family!r}: expected 4 or 6")
        if self.status & self.not_status:
            raise ConfigError(f"filter: status {self.status & self.not_status:#x} is to be set and not set: expected one of both")
        self.keys()

    def keys(self) -> tuple[tuple[bytes, bytes], tuple[bytes, bytes]]:
        """Of each direction the value and the mask of a key, 40 bytes each: a connection's key fits if it is the value under the mask."""
        networks = self.networks()
        families = {network.version for pair in networks for network in pair if network} | ({self.family} if self.family else set())
        if len(families) > 1:
            raise ConfigError("filter: addresses of both families, or not of its own: expected one family")
        family = families.pop() if families else None
        original, reply = (self._key(pair, prefix, family) for pair, prefix in zip(networks, ("", "reply_"), strict=True))
        return original, reply

    def networks(self) -> tuple[tuple[Network | None, Network | None], tuple[Network | None, Network | None]]:
        """Source and destination of the original tuple, and of the reply."""
        original, reply = (tuple(_network(prefix + name, getattr(self, prefix + name)) for name in ENDS) for prefix in ("", "reply_"))
        return (original[0], original[1]), (reply[0], reply[1])

    def _key(self, networks: tuple[Network | None, Network | None], prefix: str, family: int | None) -> tuple[bytes, bytes]:
        values, masks = _Fields(), _Fields()
        for name, network in zip(ENDS, networks, strict=True):
            if network is not None:
                values[name] = network.network_address.packed.ljust(16, b"\0")
                masks[name] = network.netmask.packed.ljust(16, b"\xff")
        numbers = {name: (getattr(self, prefix + name), most) for name, most in NUMBERS.items()}
        for name, (number, most) in {**numbers, "proto": (self.proto, 0xFF), "family": (family, 0xFF)}.items():
            if number is not None:
                values[name], masks[name] = whole(f"filter: {prefix}{name} =", number, 0, most), most
        return _with_tuple("reply" if prefix else "original", self.reply if prefix else self.original, values.pack(), masks.pack())


class _Fields(dict[str, "bytes | int"]):
    """Some fields of a key; the others are 0."""

    def pack(self) -> bytes:
        names = {"src": bytes(16), "dst": bytes(16), "sport": 0, "dport": 0, "zone": 0, "proto": 0, "family": 0}
        return KEY.pack(*{**names, **self}.values())


def _with_tuple(name: str, whole_tuple: bytes | None, value: bytes, mask: bytes) -> tuple[bytes, bytes]:
    """Value and mask with a tuple that is given whole."""
    if whole_tuple is None:
        return value, mask
    if len(whole_tuple) != KEY.size:
        raise ConfigError(f"filter: {name}: expected the {KEY.size} bytes of a KEY_DTYPE, found {len(whole_tuple)}")
    if any((given ^ wanted) & bits for given, wanted, bits in zip(whole_tuple, value, mask, strict=True)):
        raise ConfigError(f"filter: {name}: contradicts the other fields: expected a tuple that fits them")
    return bytes(whole_tuple), b"\xff" * KEY.size


def _network(name: str, given: str | Address | Network | None) -> Network | None:
    if given is None:
        return None
    try:
        return ipaddress.ip_network(given)
    except ValueError:
        raise ConfigError(f"filter: {name} = '{given}': expected an address, or a network without bits behind its prefix, as in 10.0.0.0/8") from None
