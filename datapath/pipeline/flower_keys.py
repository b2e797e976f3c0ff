"""The keys of a flower filter: how each is written, read and printed. One table, for tc text, YAML and documentation.

tc reads numbers in a base that depends on the key (ip_proto and tcp_flags in hexadecimal, ports in decimal); in YAML all are decimal, 0x for
hexadecimal. What both print is read alike by both, but for ip_proto and ct_label, which each have a form of its own.
Invariant: KEYS has rules.FIELDS, in their order; read(write(match)) is the match. Not here: which keys go together (validate).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from datapath.pipeline import quantities
from datapath.pipeline.findings import Expected
from datapath.pipeline.quantities import ETHERTYPE_NAMES, PROTOCOLS, YAML, masked, number
from datapath.pipeline.rules import CT_STATES, ETH_IP, ETH_IPV6, FIELD, FIELDS, IP_FLAGS, Match

TC, PLAIN = True, False  # whose bases: tc's, or YAML's
TC_PROTOCOLS = ("tcp", "udp", "sctp", "icmp", "icmpv6")  # what tc knows by name
SHOWN_STATES = ("trk", "new", "est", "rel", "rpl", "inv")  # in the order in which people say them
ARP_OPERATIONS = {"request": 1, "reply": 2}
_STATE = re.compile("[+-](?:" + "|".join(CT_STATES) + ")")
_DEVICE = re.compile("[!-.0-9;-~]{1,15}")  # printable, neither / nor : (dev_valid_name of Linux)
# What stands for an interface until somebody knows which it is: a function and its NIC, of which / or : is a part (pf0vf3@0000:08:00.0).
_FUNCTION = re.compile(r"[0-9A-Za-z:]{1,32}@(?=[^:/]*[:/])[0-9A-Za-z_.:/-]{1,129}")

# Keys that tc knows, and that are not for us; each with the sentence that says so.
_TUNNEL = "tunnel metadata is not supported: expected keys of the packet itself"
_MPLS = "MPLS labels are not supported: expected keys of Ethernet, IP, ARP or conntrack"
_CLASS = "classes are for queueing, which is not done here: expected an action"
REFUSED_KEYS = {
    **dict.fromkeys(("enc_key_id", "enc_dst_ip", "enc_src_ip", "enc_dst_port", "enc_tos", "enc_ttl", "enc_flags"), _TUNNEL),
    **dict.fromkeys(("geneve_opts", "vxlan_opts", "erspan_opts", "gtp_opts", "pfcp_opts"), _TUNNEL),
    **dict.fromkeys(("mpls", "mpls_label", "mpls_tc", "mpls_bos", "mpls_ttl"), _MPLS),
    **dict.fromkeys(("pppoe_sid", "ppp_proto"), "PPPoE is not supported: expected keys of Ethernet, IP, ARP or conntrack"),
    **dict.fromkeys(("classid", "flowid"), _CLASS),
    "hw_tc": "hardware traffic classes are not supported: expected an action",
    "num_of_vlans": "the number of tags is not supported: expected vlan_id, or protocol 802.1Q",
    "eth_type": "not a key of tc: expected `protocol` before flower",
    "l2_miss": "bridge metadata is not supported: expected keys of the packet itself",
    "cfm": "CFM is not supported: expected keys of Ethernet, IP, ARP or conntrack",
    "spi": "IPsec SPIs are not supported: expected keys of Ethernet, IP, ARP or conntrack",
}

Values = tuple[int, int, int | None, str]  # value, mask, high, device: what is in a Match


class Key(NamedTuple):
    """form: how it is written; read: (text, IP version, TC or PLAIN) to Values; write: back, as tc has it; about: what it compares."""

    form: str
    read: Callable[[str, int, bool], Values]
    write: Callable[[Match], str]
    about: str


@lru_cache(1 << 14)  # rules that are made by a program say the same again and again
def read_key(name: str, text: str, ethertype: int, bases: bool) -> Match:
    """A match from its text. ethertype: the innermost one, which says of which version addresses are. Raises Expected."""
    if name in ("src_ip", "dst_ip") and ethertype not in (ETH_IP, ETH_IPV6):
        raise Expected("expected protocol ip or ipv6 with it")
    value, mask, high, device = KEYS[name].read(text, 6 if ethertype == ETH_IPV6 else 4, bases)
    return Match(name, value, mask, high, device)


def match_text(match: Match, ethertype: int = ETH_IP) -> str:
    """A match as tc has it: `ct_state +trk+new`. ethertype: the innermost one."""
    return f"{match.name} {_any_address(match, ethertype) or KEYS[match.name].write(match)}"


def _any_address(match: Match, ethertype: int) -> str:
    """::/0, which has nothing of IPv6 in its number."""
    return "::/0" if ethertype == ETH_IPV6 and not match.mask and match.name in ("src_ip", "dst_ip") else ""


def plain_text(match: Match, ethertype: int = ETH_IP) -> str:
    """A match's value as YAML has it."""
    if match.name == "ct_label":
        return f"{match.value:#x}" + ("" if match.mask == (1 << 128) - 1 else f"/{match.mask:#x}")
    if match.name == "ip_proto":
        return quantities.PROTO_NAMES.get(match.value, str(match.value))
    return _any_address(match, ethertype) or KEYS[match.name].write(match)


def behind_prefix(match: Match, text: str, ethertype: int) -> str:
    """What is to be said of an address with bits behind its prefix, which the kernel drops; nothing if there are none."""
    bare, slash, _ = text.partition("/")
    if not slash or KEYS[match.name].form != "ADDRESS[/PREFIX]" or int(quantities.address(quantities.whole(bare))) == match.value:
        return ""
    return f"bits behind the prefix do not count: this is {plain_text(match, ethertype)}"


def is_function(text: str) -> bool:
    """Whether a text calls a function of a NIC; no name of an interface looks like that."""
    return _FUNCTION.fullmatch(text) is not None


def device(text: str) -> str:
    """A device's name, or that of a NIC's function. Raises Expected."""
    if not is_function(text) and (not _DEVICE.fullmatch(text) or text in (".", "..")):
        raise Expected("expected a device's name, of 1 to 15 printable characters other than / and :")
    return text


# --- keys of one kind ------------------------------------------------------------------------------------------------------------------


def _numeric(form: str, bits: int, what: str, base: int | tuple[int, ...], mask_base: int, hexadecimal: bool, about: str) -> Key:
    """VALUE[/MASK]. base: of the value in tc, or several that tc tries one after the other; mask_base: of the mask."""

    def read(text: str, version: int, bases: bool) -> Values:
        if bases is PLAIN:
            return *masked(text, YAML, bits, what), None, ""
        value, slash, mask = text.partition("/")
        chosen = number(mask, mask_base, (1 << bits) - 1, f"a mask of {what}") if slash else (1 << bits) - 1
        tried = base if isinstance(base, tuple) else (base,)
        for each in tried:
            try:
                return number(value, each, (1 << bits) - 1, what) & chosen, chosen, None, ""
            except Expected:
                if each == tried[-1]:
                    raise
        raise AssertionError

    def write(match: Match) -> str:
        value = f"{match.value:#x}" if hexadecimal else str(match.value)
        mask = f"{match.mask:#x}" if mask_base != 10 else str(match.mask)
        return value if match.mask == (1 << bits) - 1 else f"{value}/{mask}"

    return Key(form, read, write, about)


def _exact(form: str, bits: int, what: str, about: str) -> Key:
    """A decimal number without a mask."""

    def read(text: str, version: int, bases: bool) -> Values:
        return number(text, 10 if bases is TC else YAML, (1 << bits) - 1, what), (1 << bits) - 1, None, ""

    return Key(form, read, lambda match: str(match.value), about)


def _ethertype(about: str) -> Key:
    def read(text: str, version: int, bases: bool) -> Values:
        return quantities.ethertype(text), 0xFFFF, None, ""

    return Key("PROTOCOL", read, lambda match: ethertype_text(match.value), about)


def ethertype_text(value: int) -> str:
    return ETHERTYPE_NAMES.get(value, f"{value:#06x}")


def _mac(about: str) -> Key:
    def write(match: Match) -> str:
        address, rest = quantities.mac_text(match.value), (1 << 48) - 1 ^ match.mask
        if not rest:
            return address
        short = match.mask and quantities.is_prefix(match.mask, 48)
        return f"{address}/{48 - rest.bit_length() if short else quantities.mac_text(match.mask)}"

    return Key("MAC[/MASK]", lambda text, version, bases: (*quantities.masked_mac(text), None, ""), write, about)


def _prefix(about: str, arp: bool = False) -> Key:
    def read(text: str, version: int, bases: bool) -> Values:
        return *quantities.prefix(text, 4 if arp else version), None, ""

    return Key("ADDRESS[/PREFIX]", read, _prefix_text, about)


def _prefix_text(match: Match) -> str:
    """An address is of IPv6 if its mask is of more than 32 bits, which only a prefix of no bits leaves open (_any_address)."""
    wide = match.mask >> 32 != 0
    address: object = quantities.IPv6Address(match.value) if wide else quantities.IPv4Address(match.value)
    bits = match.mask.bit_count()
    return str(address) if bits == (128 if wide else 32) else f"{address}/{bits}"


def _port(about: str) -> Key:
    def read(text: str, version: int, bases: bool) -> Values:
        if "," in text:
            raise Expected("expected one value, or a range, as in 80-90: a rule for each")
        if "-" in text:
            low, high = quantities.ports(text)
            if not 0 < low < high:
                raise Expected("expected a range of ports from 1 up, the lower one first")
            return low, 0xFFFF, high, ""
        value, slash, mask = text.partition("/")
        chosen = number(mask, 0 if bases is TC else YAML, 0xFFFF, "a mask of a port") if slash else 0xFFFF
        port = number(value, 10 if bases is TC else YAML, 0xFFFF, "a port")
        if bases is TC and not port and not slash:
            raise Expected("expected a mask with port 0, as tc wants it: 0/0xffff")
        return port & chosen, chosen, None, ""

    def write(match: Match) -> str:
        if match.high is not None:
            return f"{match.value}-{match.high}"
        # tc takes port 0 only with a mask.
        return str(match.value) if match.mask == 0xFFFF and match.value else f"{match.value}/{match.mask:#x}"

    return Key("PORT[/MASK] | LOW-HIGH", read, write, about)


# --- keys of their own -----------------------------------------------------------------------------------------------------------------


def _read_proto(text: str, version: int, bases: bool) -> Values:
    named = quantities.keyword(text, TC_PROTOCOLS) if text not in PROTOCOLS else text
    try:
        value = PROTOCOLS[named] if named else number(text, 16 if bases is TC else YAML, 0xFF, "a protocol")
    except Expected:
        raise Expected(f"expected {', '.join(TC_PROTOCOLS)}, or a number to {'ff in hexadecimal' if bases is TC else '255'}") from None
    return value, 0xFF, None, ""


def _write_proto(match: Match) -> str:
    name = quantities.PROTO_NAMES.get(match.value, "")
    return name if name in TC_PROTOCOLS else f"{match.value:#x}"


def _read_state(text: str, version: int, bases: bool) -> Values:
    found = _STATE.findall(text)
    if not found or "".join(found) != text:
        raise Expected(f"expected + or - before each of {', '.join(SHOWN_STATES)}")
    names = [each[1:] for each in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise Expected(f"expected {twice} once")
    value = sum(CT_STATES[each[1:]] for each in found if each[0] == "+")
    return value, sum(CT_STATES[name] for name in names), None, ""


def _write_state(match: Match) -> str:
    return "".join(f"{'+' if match.value & CT_STATES[name] else '-'}{name}" for name in SHOWN_STATES if match.mask & CT_STATES[name])


def _read_ip_flags(text: str, version: int, bases: bool) -> Values:
    value = mask = 0
    for word in text.split("/"):
        bit = IP_FLAGS.get(word.removeprefix("no"))
        if bit is None:
            raise Expected("expected frag, nofrag, firstfrag, nofirstfrag, with / between")
        if mask & bit:
            raise Expected(f"expected {word.removeprefix('no')} once")
        mask |= bit
        value |= 0 if word.startswith("no") else bit
    return value, mask, None, ""


def _write_ip_flags(match: Match) -> str:
    return "/".join(f"{'' if match.value & bit else 'no'}{name}" for name, bit in IP_FLAGS.items() if match.mask & bit)


def _read_arp_op(text: str, version: int, bases: bool) -> Values:
    value, slash, mask = text.partition("/")
    chosen = number(mask, 10 if bases is TC else YAML, 0xFF, "a mask of an operation") if slash else 0xFF
    if value in ARP_OPERATIONS:
        return ARP_OPERATIONS[value] & chosen, chosen, None, ""
    try:
        return number(value, 10, 2, "an operation") & chosen, chosen, None, ""
    except Expected:
        raise Expected("expected request, reply, or 0 to 2") from None


def _write_arp_op(match: Match) -> str:
    return str(match.value) if match.mask == 0xFF else f"{match.value}/{match.mask}"


def _read_label(text: str, version: int, bases: bool) -> Values:
    return *(quantities.label(text) if bases is TC else masked(text, YAML, 128, "a label")), None, ""


def _write_label(match: Match) -> str:
    full = match.mask == (1 << 128) - 1
    return quantities.label_text(match.value) + ("" if full else f"/{quantities.label_text(match.mask)}")


KEYS: dict[str, Key] = {
    "indev": Key("DEVICE", lambda text, version, bases: (0, 0, None, device(text)), lambda match: match.device, "the device it came in by"),
    "dst_mac": _mac("Ethernet destination"),
    "src_mac": _mac("Ethernet source"),
    "vlan_id": _exact("ID", 12, "a VLAN id", "outer tag: id"),
    "vlan_prio": _exact("PRIORITY", 3, "a VLAN priority", "outer tag: priority"),
    "vlan_ethtype": _ethertype("what the outer tag is before"),
    "cvlan_id": _exact("ID", 12, "a VLAN id", "inner tag: id"),
    "cvlan_prio": _exact("PRIORITY", 3, "a VLAN priority", "inner tag: priority"),
    "cvlan_ethtype": _ethertype("what the inner tag is before"),
    "ip_proto": Key("NAME | NUMBER", _read_proto, _write_proto, "protocol of layer four; in tc numbers are hexadecimal"),
    "ip_tos": _numeric("TOS[/MASK]", 8, "a TOS", (10, 16), 16, True, "IPv4 TOS, IPv6 traffic class"),
    "ip_ttl": _numeric("TTL[/MASK]", 8, "a TTL", (10, 16), 16, False, "IPv4 TTL, IPv6 hop limit"),
    "dst_ip": _prefix("destination address"),
    "src_ip": _prefix("source address"),
    "dst_port": _port("destination port"),
    "src_port": _port("source port"),
    "tcp_flags": _numeric("FLAGS[/MASK]", 12, "TCP flags", 16, 16, True, "TCP flags; in tc hexadecimal"),
    "type": _numeric("TYPE[/MASK]", 8, "an ICMP type", 10, 10, False, "ICMP or ICMPv6 type"),
    "code": _numeric("CODE[/MASK]", 8, "an ICMP code", 10, 10, False, "ICMP or ICMPv6 code"),
    "arp_sip": _prefix("ARP: the sender's IPv4 address", arp=True),
    "arp_tip": _prefix("ARP: the target's IPv4 address", arp=True),
    "arp_op": Key("request | reply | NUMBER[/MASK]", _read_arp_op, _write_arp_op, "ARP operation"),
    "arp_sha": _mac("ARP: the sender's MAC address"),
    "arp_tha": _mac("ARP: the target's MAC address"),
    "ip_flags": Key("[no]frag[/[no]firstfrag]", _read_ip_flags, _write_ip_flags, "whether it is a fragment, and the first one"),
    "ct_state": Key("(+|-)STATE...", _read_state, _write_state, "what conntrack said: " + ", ".join(SHOWN_STATES)),
    "ct_zone": _numeric("ZONE[/MASK]", 16, "a zone", 0, 0, False, "conntrack zone"),
    "ct_mark": _numeric("MARK[/MASK]", 32, "a mark", 0, 0, True, "conntrack mark"),
    "ct_label": Key("LABEL[/MASK]", _read_label, _write_label, "conntrack label; in tc bytes in hexadecimal, the lowest first"),
}
assert list(KEYS) == [each.name for each in FIELDS] and all(name in FIELD for name in KEYS)
