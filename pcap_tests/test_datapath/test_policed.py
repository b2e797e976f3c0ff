"""What records, counters, summary and explain tell of packets for which a policer had no token.

Not here: who has one (test_pipeline/test_walk, test_interpret).
"""

from __future__ import annotations

import pytest

from datapath import craft
from pcap_tests.test_datapath.command import records

CLIENT, SERVER = "10.0.0.2", "198.51.100.1"
POLICED = """
tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct commit pipe action goto chain 1
tc filter add dev eth0 ingress protocol ip prio 1 chain 1 flower ip_proto udp action police pkts_rate 1 pkts_burst 2 conform-exceed drop/pass
tc filter add dev eth0 ingress protocol ip prio 2 chain 1 flower action drop
"""
MARKING = POLICED.replace("drop/pass", "continue/pass")


def said(n: int) -> list[bytes]:
    """Questions of one client, answered once: in the flow table they are assured, and policed all the same."""
    answer = craft.udp(SERVER, CLIENT, 53, 5353, b"you!")
    return [craft.udp(CLIENT, SERVER, 5353, 53, b"who?"), answer, *[craft.udp(CLIENT, SERVER, 5353, 53, b"who?")] * (n - 2)]


@pytest.mark.parametrize("more", [(), ("--no-flowtable",)])
def test_what_a_policer_drops_has_a_reason_of_its_own(replayed, more):
    seen = records(replayed(POLICED, said(6), "--packets", "-", "-q", *more))
    assert [each["reason"] for each in seen] == ["ok", "ok"] + ["rule_police"] * 4
    assert {each["rule"].rpartition(":")[2] for each in seen} == {"3"}


@pytest.mark.parametrize("more", [(), ("--no-flowtable",)])
def test_rules_count_what_they_dropped_and_what_had_no_token(replayed, more):
    other = craft.tcp(CLIENT, SERVER, 40000, 80, "S")
    for rules, expected in ((POLICED, [(0, 0), (4, 4), (2, 0)]), (MARKING, [(0, 0), (0, 4), (6, 0)])):
        counted = records(replayed(rules, [*said(6), other, other], "--rule-counters", "-", "-q", *more))
        assert [(each["drops"], each["overlimits"]) for each in counted] == expected


def test_what_a_flow_in_the_table_is_dropped_by_is_counted_too(replayed):
    """By a shortcut, whose rules count later."""
    dropping = POLICED.replace("action police pkts_rate 1 pkts_burst 2 conform-exceed drop/pass", "ct_state +trk+est ct_state -rpl action drop")
    dropping = dropping.replace("ct_state +trk+est ct_state -rpl", "ct_state +trk+est-rpl").replace("flower action drop", "flower action pass")
    with_it, without = (
        [each["drops"] for each in records(replayed(dropping, said(9), "--rule-counters", "-", "-q", *more))] for more in ((), ("--no-flowtable",))
    )
    assert with_it == without == [0, 7, 0]


def test_the_summary_says_that_a_policer_dropped_and_which(replayed):
    out = replayed(POLICED, said(6))
    lines = [line.split() for line in out.splitlines()]
    assert ["a", "policer", "has", "no", "token", "left", "for", "it", "4", "#2"] in lines and "a rule says so" not in out
    assert ["rule", "packets", "wire", "bytes", "drops", "overlimits"] in lines
    (policer,) = (line for line in lines if line[:1] == ["rules.tc:3"])
    assert policer[1] == "6" and policer[4:6] == ["4", "4"]


def test_columns_of_what_never_happened_are_left_out(replayed):
    assert "overlimits" not in replayed(POLICED, said(2)) and "drops" not in replayed(POLICED, said(2))
