"""Established connections before new rules: which of them these would not let begin.

Theory of operation: for each connection its opening packet is made anew (SYN, INIT, echo request, a datagram) and sent, at each interface in turn,
through the new rules with an empty table. A connection that comes to be there is one that the rules want; one that never does is to go.
Invariants: nothing of the tables at work is changed here. What was expected by a helper stands and falls with its master.
What is not known of a packet long gone (MAC addresses, VLAN tags, TTL, TOS, marks, payload) is as in any plain frame: rules that ask for more than
addresses, protocol and ports do not match it, and their connections begin anew with their next packet.
Not here: deleting them (requests).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from ctcore.filter import Filter
from ctcore.types import Dir, Proto, Status
from datapath import craft, fields
from datapath.frame import frames_of
from datapath.pipeline.rules import Hook, Ruleset
from datapath.ruled import RulePipeline

PART = 256  # connections tried at a time
NO_EVENTS: frozenset[str] = frozenset()


def _icmp(ends: dict[str, Any]) -> bytes:
    return craft.icmp(ends["src"], ends["dst"], ends["type"], ends["code"], ident=ends["id"] or 0, sequence=1)


_OPENING: dict[int, Callable[[dict[str, Any]], bytes]] = {
    Proto.PROTO_TCP: lambda ends: craft.tcp(ends["src"], ends["dst"], ends["sport"], ends["dport"], "S", seq=1),
    Proto.PROTO_UDP: lambda ends: craft.udp(ends["src"], ends["dst"], ends["sport"], ends["dport"]),
    Proto.PROTO_UDPLITE: lambda ends: craft.udplite(ends["src"], ends["dst"], ends["sport"], ends["dport"]),
    Proto.PROTO_SCTP: lambda ends: craft.sctp(ends["src"], ends["dst"], ends["sport"], ends["dport"], 0, craft.sctp_init(1)),
    Proto.PROTO_GRE: lambda ends: craft.gre(ends["src"], ends["dst"]),
    Proto.PROTO_ICMP: _icmp,
    Proto.PROTO_ICMPV6: _icmp,
}  # fmt: skip


def opening(key: bytes) -> bytes:
    """The frame that a connection with this original tuple (the 40 bytes of a KEY_DTYPE) begins with."""
    proto, ends = key[38], fields.endpoints(key)
    make = _OPENING.get(proto)
    return make(ends) if make else craft.frame(ends["src"], ends["dst"], proto, bytes(8))


class Trial:
    """Connections before rules. config: the settings of the tracker at work; ifaces: names; routed: what a router forwards begins at egress, too."""

    def __init__(self, ruleset: Ruleset, config: Config, ifaces: Sequence[str], *, routed: bool = False) -> None:
        # Room for what one part begins in several zones; UDP-Lite's sums are as Linux wants them of few packets only.
        small = replace(
            config,
            max=8 * PART,
            events=NO_EVENTS,
            zone_limit=0,
            zone_limits={},
            zone_reserves={},
            helper_max=1024,
            nat=(),
            share=(0, 1),
            helpers=(),
            checksum=False,
        )
        self.pipeline = RulePipeline(ruleset, small, devices=list(ifaces), flowtable=False)
        hooks = [Hook(name, direction) for direction in ("ingress", "egress")[: 1 + routed] for name in ifaces]
        self.pipeline.arrive(hooks)
        self.n_hooks = len(hooks)
        self._seen: list[NDArray[np.int64]] = []  # ordinal, hash of the tuple, master: of each connection that was tried
        self._began: list[NDArray[np.int64]] = []  # hashes of the tuples that came to be connections

    def add(self, conns: NDArray[Any]) -> None:
        """Try these, CONN_DTYPE[n]."""
        for start in range(0, len(conns), PART):
            part = conns[start : start + PART]
            keys = fields.split(part["flow"]["key"][:, Dir.ORIG])
            masters = np.where(part["status"] & Status.EXPECTED, part["master"], -1)
            self._seen.append(np.column_stack([part["flow"]["id"][:, Dir.ORIG], _hashes(keys), masters]).astype(np.int64))
            for hook in range(self.n_hooks):
                self._try(keys, hook)

    def _try(self, keys: list[bytes], hook: int) -> None:
        memory, frames = frames_of([opening(key) for key in keys], np.full(len(keys), self.pipeline.tracker.now + 1, dtype=np.int64))
        frames["iface"] = hook
        self.pipeline.tracker.flush()
        self.pipeline.process(memory, frames, decisions=False)
        began = self.pipeline.tracker.select(Filter())
        self._began.append(_hashes(fields.split(began["flow"]["key"][:, Dir.ORIG])))

    def unwanted(self) -> list[int]:
        """Ordinals of the connections that the rules do not let begin."""
        if not self._seen:
            return []
        seen, began = np.concatenate(self._seen), np.concatenate(self._began)
        expected = seen[:, 2] >= 0
        gone = set(seen[~np.isin(seen[:, 1], began) & ~expected, 0].tolist())
        for ordinal, _, master in sorted(seen[expected].tolist()):  # a master is older than what it has announced
            if master in gone:
                gone.add(ordinal)
        return sorted(gone)


def _hashes(keys: Sequence[bytes]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, keys), dtype=np.int64, count=len(keys))


def parts(ordinals: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(ordinals), size):
        yield ordinals[start : start + size]
