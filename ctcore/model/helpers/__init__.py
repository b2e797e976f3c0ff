"""Helpers in the model: what protocols say of connections to come.

A helper is a function of an Aid (aid.py): it reads the payload, announces expectations, and gives a reason if the packet had better be dropped.
Which connection has one is told by rules (Config.helpers) and by expectations. Not here: expectations' own life (model.expectations).
"""

from __future__ import annotations

from collections.abc import Callable

from ctcore.config import Config
from ctcore.model.conn import MASK32, Conn, Key, Packet
from ctcore.model.helpers import ftp, irc, pptp, sip, tftp
from ctcore.model.helpers.aid import Aid, Edit, Extension
from ctcore.model.seqadj import SeqAdjust
from ctcore.model.tcp_window import OPT_END, OPT_NOP, OPT_SACK
from ctcore.nat_rules import HELPER_PROTOS
from ctcore.types import Dir, Proto, Status

HELPERS: dict[str, Callable[[Aid], int]] = {"ftp": ftp.help, "tftp": tftp.help, "sip": sip.help, "irc": irc.help, "pptp": pptp.help}
ONLY_IPV4 = {"irc", "pptp"}  # DCC and PPTP name no IPv6 addresses
UDP_HEADER, TCP_HEADER = 8, 20


def rule_for(conn: Conn, config: Config) -> str | None:
    """The helper that the rules have for a new connection's first tuple. What was expected needs none."""
    key = conn.key[Dir.ORIG]
    if conn.has(Status.EXPECTED):
        return None
    name = next((rule.name for rule in config.helpers if (rule.proto, rule.port) == (key.proto, key.dport)), None)
    return name if name and speaks(name, key) else None


def speaks(name: str, key: Key) -> bool:
    """Whether Linux has the helper for packets of a tuple's protocol and family."""
    return key.proto in HELPER_PROTOS[name] and not (name in ONLY_IPV4 and key.family == 6)


def payload_of(packet: Packet) -> bytes | None:
    """What is behind the transport header, or None if the capture does not hold all of it: half a command is worse than none."""
    header = packet.doff if packet.key.proto == Proto.PROTO_TCP else UDP_HEADER
    return packet.l4[header:] if len(packet.l4) >= packet.l4_len >= header else None


def sack_edits(header: bytes, end: int, adjust: SeqAdjust) -> list[Edit] | None:
    """The edges of all SACK options (RFC 2018) up to end, moved back; None if an option is cut off, as Linux then drops the packet."""
    edits, at = [], TCP_HEADER
    while at < end:
        kind = header[at]
        if kind == OPT_END:
            break
        if kind == OPT_NOP:
            at += 1
            continue
        if at + 1 == end or header[at + 1] < 2 or at + header[at + 1] > end:
            return None
        size = header[at + 1]
        if kind == OPT_SACK and size >= 10 and size % 8 == 2:
            for edge in range(at + 2, at + size, 4):
                number = int.from_bytes(header[edge : edge + 4], "big")
                by = adjust.of_ack(number)
                if by:
                    edits.append(Edit(edge, 4, ((number - by) & MASK32).to_bytes(4, "big")))
        at += size
    return edits


__all__ = ["HELPERS", "Aid", "Edit", "Extension", "payload_of", "rule_for", "sack_edits", "speaks"]
