"""What a summary says of rules, that add up: who translated, who was never tracked, whose answers were dropped, which checksums were judged.

Not here: the rest of a replay through rules (test_replay_rules, test_ruled_records, test_policed).
"""

from __future__ import annotations

import pytest

from datapath import craft
from pcap_tests.test_datapath.command import records

CLIENT, SERVER = "10.0.0.2", "198.51.100.1"
IN = "tc filter add dev lan0 ingress protocol ip "


def syn(sport: int) -> bytes:
    return craft.tcp(CLIENT, SERVER, sport, 80, "S", seq=100)


def words(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


# --- translation ---------------------------------------------------------------------------------------------------------------------------


def test_a_range_has_the_names_of_its_rules(replayed):
    nat = "action ct commit nat src addr 192.0.2.7 port 30000-39999 pipe action pass\n"
    other = "action ct commit nat dst addr 10.0.0.9 pipe action pass\n"
    rules = f"{IN}prio 1 flower ip_proto tcp dst_port 80 {nat}{IN}prio 2 flower ip_proto tcp dst_port 81 {nat}{IN}prio 3 flower ip_proto udp {other}"
    out = replayed(rules, [syn(1), syn(2), craft.udp(CLIENT, SERVER, 5353, 53)])
    lines = words(out)
    at = lines.index(["snat", "192.0.2.7:30000-39999", "10,000", "2", "2", "0"])
    assert lines[at + 1] == ["by", "rules.tc:1,", "rules.tc:2"]
    at = next(i for i, line in enumerate(lines) if line[:2] == ["dnat", "10.0.0.9"])
    assert lines[at + 1] == ["by", "rules.tc:3"]
