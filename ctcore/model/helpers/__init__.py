"""Helpers in the model: what protocols say of connections to come.

A helper is a function of an Aid (aid.py): it reads the payload, announces expectations, and gives a reason if the packet had better be dropped.
Which connection has one is told by rules (Config.helpers) and by expectations. Not here: expectations' own life (model.expectations).
"""

from __future__ import annotations

from collections.abc import Callable

from ctcore.config import Config
from ctcore.model.conn import Conn, Packet
from ctcore.model.helpers import ftp, tftp
from ctcore.model.helpers.aid import Aid, Extension
from ctcore.types import Dir, Proto, Status

HELPERS: dict[str, Callable[[Aid], int]] = {"ftp": ftp.help, "tftp": tftp.help}
ONLY_IPV4 = {"irc", "pptp"}  # DCC and PPTP name no IPv6 addresses
UDP_HEADER = 8


def rule_for(conn: Conn, config: Config) -> str | None:
    """The helper that the rules have for a new connection's first tuple. What was expected needs none."""
    key = conn.key[Dir.ORIG]
    if conn.has(Status.EXPECTED):
        return None
    name = next((rule.name for rule in config.helpers if (rule.proto, rule.port) == (key.proto, key.dport)), None)
    return None if name in ONLY_IPV4 and key.family == 6 else name


def payload_of(packet: Packet) -> bytes | None:
    """What is behind the transport header, or None if the capture does not hold all of it: half a command is worse than none."""
    header = packet.doff if packet.key.proto == Proto.PROTO_TCP else UDP_HEADER
    return packet.l4[header:] if len(packet.l4) >= packet.l4_len >= header else None


__all__ = ["HELPERS", "Aid", "Extension", "payload_of", "rule_for"]
