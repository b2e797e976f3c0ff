"""Expectations of a running node, as records and as conntrack(8) lists them.

Not here: what is expected, and why (ctcore.expectations).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

from numpy.typing import NDArray

from ctcore.nat_rules import HELPERS
from ctcore.tracker import ExpectationRow
from ctcore.types import Dir
from datapath import fields
from datapath.export import NUMBERS
from datapath.fields import Record

ALL_PORTS = 65535


def expectation_records(rows: Sequence[ExpectationRow], masters: NDArray[Any]) -> Iterator[Record]:
    """One for each. masters: CONN_DTYPE[n]. src and sport are None where any will do; original: the tuple of the connection that it belongs to."""
    keys = fields.split(masters["flow"]["key"][:, Dir.ORIG])
    for row, key, helper in zip(rows, keys, masters["helper"].tolist(), strict=True):
        yield {
            "timeout": max(int(row.timeout), 0), "proto": fields.proto_name(row.proto), "src": None if row.src == "any" else row.src, "dst": row.dst,
            "sport": row.sport or None, "dport": row.dport, "zone": row.zone,
            "flags": [name for name in ("permanent", "inactive") if getattr(row, name)], "class": row.kind,
            "helper": HELPERS[helper - 1] if helper else None, "master": row.master, "original": fields.endpoints(key),
        }  # fmt: skip


def expect_line(record: Record) -> str:
    """As conntrack -L expect has it."""
    address = ip_address(record["dst"])
    nothing, whole = (type(address)(number) for number in (0, (1 << address.max_prefixlen) - 1))
    master = record["original"]
    parts = [
        f"{record['timeout']} proto={NUMBERS.get(record['proto'], record['proto'])}",
        f"src={record['src'] or nothing} dst={address} sport={record['sport'] or 0} dport={record['dport']}",
        f"mask-src={whole if record['src'] else nothing} mask-dst={whole} sport={ALL_PORTS if record['sport'] else 0} dport={ALL_PORTS}",
        f"master-src={master['src']} master-dst={master['dst']} sport={master['sport']} dport={master['dport']}",
    ]
    parts += [f"zone={record['zone']}"] if record["zone"] else []
    parts += [",".join(flag.upper() for flag in record["flags"])] if record["flags"] else []
    parts.append(f"class={record['class']}")
    parts += [f"helper={record['helper']}"] if record["helper"] else []
    return " ".join(parts)
