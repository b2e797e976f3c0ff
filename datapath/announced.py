"""What helpers and zones have to do with a packet that is explained: what was announced, what was awaited, which limit was reached.

Not here: the other lines (narrate), finding things out (explain).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ctcore.config import Config
from ctcore.nat_rules import HELPERS
from ctcore.tracker import ExpectationRow
from ctcore.types import Proto, State, Status
from datapath import fields
from datapath.explain import Explained
from datapath.hints import counted
from datapath.stages import Line

UDP_HEADER = 8


def zone_limit_text(config: Config, zone: int, counts: Mapping[int, int]) -> str:
    """Which limit a new connection of a zone would have gone beyond."""
    own = zone in config.zone_limits
    limit = config.zone_limits[zone] if own else config.zone_limit
    return f"zone {zone} has {counted(counts.get(zone, 0), 'connection')} and may have {limit:,} (--zone-limit {f'{zone}=' if own else ''}{limit})"


def helper_lines(it: Explained) -> Iterator[Line]:
    """Whether a helper read the packet and what it announced; and whether the packet is one that was announced."""
    fresh = appeared(it.awaited, it.awaits)
    helper = int(it.conn["helper"]) if it.conn is not None else 0
    if helper and _is_read(it):
        name = HELPERS[helper - 1]
        announced = [f"announces {expectation_text(row)}, within {row.timeout:g} s" for row in fresh]
        for i, text in enumerate(announced or ["announces no connection"]):
            yield "helper" if i == 0 else "", f"{name} has read its payload, which {text}" if i == 0 else f"and {text}"
    if it.begins and it.conn is not None and int(it.conn["status"]) & Status.EXPECTED:
        gone = appeared(it.awaits, it.awaited)
        awaited = f": {expectation_text(gone[0])}" if len(gone) == 1 else ""
        yield "expected", f"conn {int(it.conn['master'])} has announced this connection{awaited}"


def appeared(before: Sequence[ExpectationRow], after: Sequence[ExpectationRow]) -> list[ExpectationRow]:
    """Those after that were not there before; the time they have left does not tell them apart."""
    known = {row._replace(timeout=0.0) for row in before}
    return [row for row in after if row._replace(timeout=0.0) not in known]


def _is_read(it: Explained) -> bool:
    """Whether there was payload in a packet that was taken for one of the connection's own."""
    if it.error or it.decision["state"] not in (State.NEW, State.ESTABLISHED, State.RELATED) or not it.l4:
        return False
    return int(it.packet["l4_len"]) > (int(it.packet["doff"]) if it.proto == Proto.PROTO_TCP else UDP_HEADER)


def expectation_text(row: ExpectationRow) -> str:
    """An expectation: protocol, and both ends as far as they are known."""
    source = row.src if not row.sport else f"{row.src} sport {row.sport}"
    inactive = ", which is not active yet" if row.inactive else ""
    return f"{fields.proto_name(row.proto)} {source} > {row.dst} dport {row.dport}{inactive}"
