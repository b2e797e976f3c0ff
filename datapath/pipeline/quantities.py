"""Numbers, addresses, rates and sizes as tc writes them, and back.

A reader takes a text and gives numbers, or raises Expected with what was expected. tc reads numbers in a base that depends on the key: base 0 is C's,
0x for hexadecimal, 0 for octal; base YAML is that without octal. Not here: which key takes what (flower_keys, tc_actions).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_address

from ctcore.nat_rules import Address, Ports
from datapath.fields import PROTO_NAMES
from datapath.pipeline.findings import Expected
from datapath.pipeline.rules import ETH_ALL, ETH_ARP, ETH_IP, ETH_IPV6, ETH_QINQ, ETH_RARP, ETH_VLAN

_DIGITS = {
    10: re.compile("[0-9]{1,40}"),
    16: re.compile("(?:0[xX])?[0-9a-fA-F]{1,40}"),
    0: re.compile("0[xX][0-9a-fA-F]{1,40}|[0-9]{1,40}"),
    1: re.compile("0[xX][0-9a-fA-F]{1,40}|[0-9]{1,40}"),
}
YAML = 1  # the base of numbers in YAML
ETHERTYPES = {
    "ip": ETH_IP, "ipv4": ETH_IP, "ipv6": ETH_IPV6, "arp": ETH_ARP, "rarp": ETH_RARP, "802.1q": ETH_VLAN, "802.1ad": ETH_QINQ, "all": ETH_ALL,
    "mpls_uc": 0x8847, "mpls_mc": 0x8848, "ppp_disc": 0x8863, "ppp_ses": 0x8864, "lldp": 0x88CC, "loop": 0x0060, "x25": 0x0805, "bpq": 0x08FF,
    "ieeepup": 0x0A00, "ieeepupat": 0x0A01, "dec": 0x6000, "dna_dl": 0x6001, "dna_rc": 0x6002, "dna_rt": 0x6003, "lat": 0x6004, "diag": 0x6005,
    "cust": 0x6006, "sca": 0x6007, "teb": 0x6558, "atalk": 0x809B, "aarp": 0x80F3, "ipx": 0x8137, "atmmpoa": 0x884C, "atmfate": 0x8884,
    "profinet": 0x8892, "aoe": 0x88A2, "ethercat": 0x88A4, "tipc": 0x88CA,
}  # fmt: skip
ETHERTYPE_NAMES = {number: name for name, number in reversed(ETHERTYPES.items())} | {ETH_VLAN: "802.1Q", ETH_QINQ: "802.1ad"}
PROTOCOLS: dict[str, int] = {name: int(proto) for proto, name in PROTO_NAMES.items()}
_RATES = {"bit": 1, "bps": 8} | {
    f"{prefix}{infix}{unit}": (1024 if infix else 1000) ** power * factor
    for power, prefix in enumerate("kmgt", 1) for infix in ("", "i") for unit, factor in (("bit", 1), ("bps", 8))
}  # fmt: skip
_SIZES = {"": 1, "b": 1, "k": 1 << 10, "kb": 1 << 10, "m": 1 << 20, "mb": 1 << 20, "g": 1 << 30, "gb": 1 << 30} | {
    "kbit": 1 << 7, "mbit": 1 << 17, "gbit": 1 << 27,
}  # fmt: skip
_QUANTITY = re.compile(r"([0-9]{1,20}(?:\.[0-9]{0,9})?)([A-Za-z]*)")
_OCTETS = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){0,2}")
_PORT = re.compile("[0-9]{1,5}")
_MAC = re.compile("[0-9a-fA-F]{1,2}(?::[0-9a-fA-F]{1,2}){5}")
MAX_RATE, MAX_SIZE = (1 << 63) - 1, 0xFFFFFFFF


def number(text: str, base: int, high: int, what: str, low: int = 0) -> int:
    """A number in a base (0: C's, YAML) from low to high. what: it is, for the error."""
    value = None
    if _DIGITS[base].fullmatch(text):
        octal = base == 0 and len(text) > 1 and text[0] == "0" and text[1] not in "xX"
        if not octal or not set(text) - set("01234567"):
            value = int(text, 8 if octal else 16 if base == 16 or text[:2].lower() == "0x" else 10)
    if value is None or not low <= value <= high:
        form = " in hexadecimal" if base == 16 else ""
        raise Expected(f"expected {what} from {low} to {high}{form}" if base != 16 else f"expected {what} from {low:#x} to {high:#x}{form}")
    return value


def masked(text: str, base: int, bits: int, what: str) -> tuple[int, int]:
    """VALUE[/MASK]; without a mask all bits count. The value's bits outside of the mask are dropped, as the kernel does."""
    value, slash, mask = text.partition("/")
    full = (1 << bits) - 1
    chosen = number(mask, base, full, f"a mask of {what}") if slash else full
    return number(value, base, full, what) & chosen, chosen


def ports(text: str) -> Ports:
    """P or P-Q, in decimal, the lower one first."""
    low, dash, high = text.partition("-")
    for each in (low, high) if dash else (low,):
        if not _PORT.fullmatch(each) or int(each) > 0xFFFF:
            raise Expected("expected a port from 0 to 65535, or two of them with - between")
    if dash and int(low) > int(high):
        raise Expected("expected the lower port first")
    return int(low), int(high if dash else low)


def mac(text: str) -> int:
    if not _MAC.fullmatch(text):
        raise Expected("expected a MAC address, as in 02:00:00:00:00:01")
    return int("".join(each.zfill(2) for each in text.split(":")), 16)


def masked_mac(text: str) -> tuple[int, int]:
    """MAC[/MASK]: the mask as a MAC, or as a number of leading bits, of which tc misreads 0."""
    address, slash, mask = text.partition("/")
    full = (1 << 48) - 1
    if not slash:
        return mac(address), full
    chosen = mac(mask) if ":" in mask else full ^ (full >> number(mask, 10, 48, "a number of leading bits", low=1))
    return mac(address) & chosen, chosen


def mac_text(value: int) -> str:
    return ":".join(f"{value >> shift & 0xFF:02x}" for shift in range(40, -1, -8))


def address(text: str, version: int | None = None) -> Address:
    """An address without prefix or zone. version: 4, 6, or None for either."""
    kind = "an address" if version is None else f"an IPv{version} address"
    try:
        found = ip_address(text)
    except ValueError:
        found = None
    if found is None or version not in (None, found.version) or (isinstance(found, IPv6Address) and found.scope_id is not None):
        raise Expected(f"expected {kind}, as in {'2001:db8::1' if version == 6 else '192.0.2.1'}")
    return found


def whole(text: str) -> str:
    """An IPv4 address of which octets at the end are left out, with these; all other text as it is."""
    return text + ".0" * (3 - text.count(".")) if _OCTETS.fullmatch(text) else text


def prefix(text: str, version: int) -> tuple[int, int]:
    """ADDRESS[/LENGTH or /NETMASK] as value and mask. Bits behind the prefix are dropped, as the kernel does.

    As tc reads them, `10/8` is 10.0.0.0/8. Its words for every address (`any`) the kernel refuses.
    """
    bare, slash, length = text.partition("/")
    found, bits = address(whole(bare) if version == 4 else bare, version), 32 if version == 4 else 128
    full = (1 << bits) - 1
    if not slash:
        return int(found), full
    if "." in length and version == 4:
        try:
            mask = int(IPv4Address(length))
        except AddressValueError:
            mask = 5
        if not is_prefix(mask, bits):
            raise Expected("expected a netmask, as in 255.255.255.0")
    else:
        mask = full ^ (full >> number(length, 10, bits, "a prefix length"))
    return int(found) & mask, mask


def is_prefix(mask: int, bits: int) -> bool:
    """Whether the mask is of leading bits alone."""
    rest = ((1 << bits) - 1) ^ mask
    return rest & (rest + 1) == 0


def addresses(text: str) -> tuple[Address, Address]:
    """A or A-B: two addresses of one family, the lower one first."""
    low, dash, high = text.partition("-")
    first = address(low)
    last = address(high, first.version) if dash else first
    if int(first) > int(last):
        raise Expected("expected the lower address first")
    return first, last


def ethertype(text: str) -> int:
    """By name, in either case, or by number."""
    named = ETHERTYPES.get(text.lower())
    if named is not None:
        return named
    try:
        return number(text, 0, 0xFFFF, "an ethertype")
    except Expected:
        raise Expected("expected an ethertype, as in ip, ipv6, arp, 802.1q or all, or a number to 0xffff") from None


def rate(text: str) -> int:
    """Bits a second, of whole bytes: 10mbit, 1.5gbit, 100kbps (bytes). Units are powers of 1000, with an i (mibit) of 1024."""
    return int(_quantity(text, _RATES | {"": 1}, MAX_RATE, "a rate, as in 10mbit")) // 8 * 8


def size(text: str) -> int:
    """Bytes: 1500, 10k, 1mb. Units are powers of 1024."""
    return int(_quantity(text, _SIZES, MAX_SIZE, "a size, as in 100k"))


def _quantity(text: str, units: dict[str, int], high: int, what: str) -> float:
    found = _QUANTITY.fullmatch(text)
    unit = units.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise Expected(f"expected {what}; units are {', '.join(name for name in units if name)}")
    value = float(found[1]) * unit if "." in found[1] else int(found[1]) * unit
    if value > high:
        raise Expected(f"expected {what}, of at most {high}")
    return value


def class_id(text: str) -> int:
    """MAJOR:MINOR in hexadecimal, or a number in hexadecimal, root, none."""
    if text in ("root", "none"):
        return 0xFFFFFFFF if text == "root" else 0
    major, colon, minor = text.partition(":")
    if not colon:
        return number(major, 16, 0xFFFFFFFF, "a class")
    return (number(major, 16, 0xFFFF, "a major number") if major else 0) << 16 | (number(minor, 16, 0xFFFF, "a minor number") if minor else 0)


def label_bytes(text: str) -> int:
    """A label, or a mask of one, as tc writes it: the bytes as they lie in memory, the lowest first."""
    if not re.fullmatch("(?:[0-9a-fA-F]{2}){1,16}", text):
        raise Expected("expected up to 32 hexadecimal digits, two for each byte and the lowest byte first")
    return int.from_bytes(bytes.fromhex(text), "little")


def label(text: str) -> tuple[int, int]:
    """LABEL[/MASK] in tc's bytes."""
    value, slash, mask = text.partition("/")
    chosen = label_bytes(mask) if slash else (1 << 128) - 1
    return label_bytes(value) & chosen, chosen


def label_text(value: int) -> str:
    return value.to_bytes(16, "little").hex()


def keyword(word: str, words: Collection[str]) -> str | None:
    """The word itself if it is one of them, or the only one that it begins, as tc has it; None otherwise."""
    if word in words:
        return word
    begun = [each for each in words if word and each.startswith(word)]
    return begun[0] if len(begun) == 1 else None
