"""What compiled rules look like: a shape that NICs take, few of them, and what is not policy: spoofing, neighbours, related and invalid packets."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from datapath.pipeline.policy.clauses import Span, joined
from datapath.pipeline.policy.compiler import (
    ALLOWED,
    COMMIT,
    DENIED,
    FRESH,
    NETWORK,
    NOT_BLOCKED,
    SOFTWARE,
    STATE,
    Options,
    compile_policies,
    counts,
)
from datapath.pipeline.policy.devices import attach
from datapath.pipeline.policy.prefixes import aggregate, subtract
from datapath.pipeline.rules import CT_STATES, ETH_ARP, Ct, Gact, Qdisc
from pcap_tests.test_datapath.test_pipeline.test_policy.compared import Lab
from pcap_tests.test_datapath.test_pipeline.test_policy.machine import Frame
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import NAMES, Recipe, made, objects

A, B, C, OUTSIDE = map(ip_address, ("10.1.0.2", "10.1.0.3", "10.1.0.4", "198.51.100.7"))
LINK_LOCAL, ALL_NODES = ip_address("fe80::1"), ip_address("ff02::1")


def shop(*policies, dual=False, **labels):
    """Pods a, b, c of namespace shop, at A, B and C."""
    return made([*objects({"dual": dual, "pods": {f"shop/{name}": {"labels": {"app": name}} for name in "abc"}}), *policies])


def policy(app, **spec):
    selector = {"matchLabels": {"app": app}} if app else {}
    metadata = {"name": f"about-{app or 'all'}-{'-'.join(spec).lower()}", "namespace": "shop"}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": {"podSelector": selector, **spec}}


FROM_B = policy("a", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "b"}}}], "ports": [{"port": 80}]}])
KEPT_IN = policy("a", policyTypes=["Egress"])


def compiled(cluster, **options):
    return compile_policies(cluster, attach(cluster.pods), Options(**options))


# --- shape ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("established", ["packet", "connection"])
@pytest.mark.parametrize("name", NAMES)
def test_what_hardware_sees_is_what_hardware_takes(name, established):
    recipe = Recipe(name)
    cluster = recipe.cluster()
    ruleset = compile_policies(cluster, attach(pod for pod in cluster.pods if not pod.host_network), Options(established=established))
    heavy = CT_STATES["rel"] | CT_STATES["inv"] | CT_STATES["new"]
    for rule in ruleset.rules:
        by_name = {match.name: match for match in rule.matches}
        assert not by_name.keys() & {"ct_label", "ct_zone"}
        assert rule.skip_hw == (rule.chain in SOFTWARE)
        commits = any(isinstance(action, Ct) and action.commit for action in rule.actions)
        if not rule.skip_hw:
            assert not commits and not ("ct_state" in by_name and by_name["ct_state"].mask & heavy)
        assert "ct_mark" not in by_name or established == "packet"


@pytest.mark.parametrize("name", NAMES)
def test_rules_are_such_as_tc_takes(name):
    recipe = Recipe(name)
    cluster = recipe.cluster()
    ruleset = compile_policies(cluster, attach(pod for pod in cluster.pods if not pod.host_network))
    chains = {(rule.hook, rule.chain) for rule in ruleset.rules}
    protocols, handles = {}, set()
    for rule in ruleset.rules:
        # A priority of a chain is of one protocol; a handle is there once.
        assert protocols.setdefault((rule.hook, rule.chain, rule.prio), rule.protocol) == rule.protocol
        assert (rule.hook, rule.chain, rule.prio, rule.handle) not in handles and rule.prio and rule.handle
        handles.add((rule.hook, rule.chain, rule.prio, rule.handle))
        for action in rule.actions:
            assert action.control.kind != "goto" or (rule.hook, action.control.chain) in chains
            assert action.control.chain is None or action.control.chain > rule.chain, "forward only"
    reached = {(rule.hook, action.control.chain) for rule in ruleset.rules for action in rule.actions if action.control.kind == "goto"}
    assert {(hook, chain) for hook, chain in chains if chain} == reached, "no chain that nothing leads to"
    assert {rule.hook.device for rule in ruleset.rules} == {qdisc.device for qdisc in ruleset.qdiscs}


def test_every_pod_has_a_zone_of_its_own_and_both_hooks_share_it():
    ruleset = compiled(shop(policy("")))
    zones = {}
    for rule in ruleset.rules:
        for action in rule.actions:
            if isinstance(action, Ct) and not action.clear:
                zones.setdefault(rule.hook.device, set()).add(action.zone)
    assert sorted(zone for found in zones.values() for zone in found) == [1, 2, 3]
    assert ruleset.qdiscs == tuple(Qdisc(device) for device in zones)


def test_established_replies_are_decided_by_the_first_rule_of_the_second_chain():
    first = next(rule for rule in compiled(shop(FROM_B)).rules if rule.chain == STATE)
    state, mark = first.matches
    assert (state.value, state.mask) == (CT_STATES["trk"] | CT_STATES["est"] | CT_STATES["rpl"],) * 2
    assert mark == NOT_BLOCKED


def test_connection_semantics_need_neither_mark_nor_two_of_the_chains():
    ruleset = compiled(shop(FROM_B, KEPT_IN), established="connection")
    assert not {rule.chain for rule in ruleset.rules} & {ALLOWED, DENIED}
    assert all(match.name != "ct_mark" for rule in ruleset.rules for match in rule.matches)
    assert all(action.mark is None for rule in ruleset.rules for action in rule.actions if isinstance(action, Ct))


def test_what_is_for_a_pod_here_may_go_straight_to_its_device():
    lab = Lab(shop(FROM_B, dual=True), Options(forward="redirect"))
    assert lab.arrives(Frame(B, A)) and lab.machine.redirected == [lab.device(A)]
    assert lab.arrives(Frame(C, B)) and lab.machine.redirected == [lab.device(B)]
    assert lab.arrives(Frame(ip_address("fd00:1::3"), ip_address("fd00:1::4"))) and lab.machine.redirected == [lab.device(C)]
    assert lab.arrives(Frame(B, OUTSIDE)) and lab.machine.redirected == []
    assert lab.arrives(Frame(A, A)) and lab.machine.redirected == []


def test_a_pod_that_no_policy_concerns_is_not_tracked():
    ruleset = compiled(shop(FROM_B))
    devices = {title: found.device for title, found in attach(shop().pods).items()}
    of_b = [rule for rule in ruleset.rules if rule.hook.device == devices["shop/b"]]
    assert {(rule.hook.direction, rule.chain) for rule in of_b} == {("ingress", 0)}
    assert not any(isinstance(action, Ct) for rule in of_b for action in rule.actions)
    assert compiled(shop(), anti_spoof=False).rules == ()


# --- few rules --------------------------------------------------------------------------------------------------------------------------


def allow_rules(cluster):
    """Matches of what the network chain of pod a allows by policy, that is but for the pod itself."""
    device = attach(cluster.pods)["shop/a"].device
    return [
        {match.name: match for match in rule.matches}
        for rule in compiled(cluster).rules
        if rule.hook.device == device and rule.hook.direction == "egress" and rule.chain == NETWORK and rule.actions[0].control.chain == ALLOWED
    ][1:]


def test_neighbouring_addresses_become_one_prefix():
    pods = {"shop/a": {"labels": {"app": "a"}}} | {f"shop/p{i}": {"labels": {"app": "client"}, "ips": [f"10.2.0.{i}"]} for i in range(256)}
    allowing = policy("a", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}])
    (only,) = allow_rules(made([*objects({"pods": pods}), allowing]))
    assert (only["src_ip"].value, only["src_ip"].mask) == (int(ip_address("10.2.0.0")), 0xFFFFFF00)


def test_neighbouring_ports_become_one_range():
    ports = [{"port": 80}, {"port": 81}, {"port": 82, "endPort": 90}, {"port": 85}, {"port": 53, "protocol": "UDP"}]
    tcp, udp = allow_rules(shop(policy("a", ingress=[{"ports": ports}])))
    assert (tcp["dst_port"].value, tcp["dst_port"].high) == (80, 90)
    assert (udp["dst_port"].value, udp["dst_port"].mask, udp["dst_port"].high) == (53, 0xFFFF, None)


def test_what_is_allowed_anyway_is_not_allowed_again():
    everything = policy("a", ingress=[{"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}, {"from": [{"podSelector": {}}], "ports": [{"port": 80}]}])
    (only,) = allow_rules(shop(everything))
    assert only.keys() == {"src_ip"}
    whole = policy("a", ingress=[{"ports": [{"protocol": "TCP"}, {"port": 80}]}])
    (only,) = allow_rules(shop(whole))
    assert only.keys() == {"ip_proto"}


def test_spans_are_joined_where_they_touch():
    assert joined([Span(6, 5, 9), Span(6, 1, 4), Span(6, 11, 12), Span(17, 10, 10)]) == (Span(6, 1, 9), Span(6, 11, 12), Span(17, 10, 10))
    assert joined([Span(6, 5, 9), Span(6), Span(17, 1, 1)]) == (Span(6), Span(17, 1, 1))


def test_subtraction_of_prefixes():
    whole = ip_network("10.0.0.0/29")
    assert subtract(whole, [ip_network("10.0.0.0/30"), ip_network("10.0.0.6/32")]) == tuple(map(ip_network, ("10.0.0.4/31", "10.0.0.7/32")))
    assert subtract(whole, [whole]) == ()
    assert aggregate([ip_network("fd00::/65"), ip_network("10.0.0.0/9"), ip_network("fd00:0:0:0:8000::/65"), ip_network("10.128.0.0/9")]) == (
        ip_network("10.0.0.0/8"),
        ip_network("fd00::/64"),
    )


def test_the_counts_are_those_of_the_rules():
    ruleset = compiled(shop(FROM_B))
    assert sum(counts(ruleset).values()) == len(ruleset.rules)
    assert set(counts(ruleset)) == {"entry", "state", "fresh", "network", "allow", "commit", "deny", "forward"}


# --- what is not policy -----------------------------------------------------------------------------------------------------------------


def test_a_pod_cannot_send_from_another_address():
    lab = Lab(shop(FROM_B))
    device = lab.device(B)
    assert lab.machine.passes(device, "ingress", Frame(B, C))
    assert not lab.machine.passes(device, "ingress", Frame(A, C))
    assert not lab.machine.passes(device, "ingress", Frame(ip_address("fd00::1"), ip_address("fd00::2")))
    assert not lab.machine.passes(device, "ingress", Frame(B, C, ethertype=0x88CC))
    assert Lab(shop(FROM_B), Options(anti_spoof=False)).arrives(Frame(OUTSIDE, C))


@pytest.mark.parametrize(("sender", "passes"), [(A, True), (ip_address("0.0.0.0"), True), (B, False)])
def test_a_pod_says_by_arp_only_what_is_true(sender, passes):
    lab = Lab(shop(FROM_B))
    frame = Frame(sender, B, ethertype=ETH_ARP)
    assert lab.machine.passes(lab.device(A), "ingress", frame) == passes
    assert lab.machine.passes(lab.device(A), "egress", frame)


def test_neighbour_discovery_passes_without_conntrack_and_a_pod_is_no_router():
    lab = Lab(shop(policy("", policyTypes=["Ingress", "Egress"]), dual=True))

    def passes(direction, kind):
        return lab.machine.passes(lab.device(A), direction, Frame(LINK_LOCAL, ALL_NODES, 58, None, None, kind=kind))

    assert all(passes("ingress", kind) for kind in (131, 132, 133, 135, 136, 143))
    assert all(passes("egress", kind) for kind in (130, 134, 135, 136))
    assert not passes("ingress", 134) and not passes("ingress", 137) and not passes("egress", 128)
    assert not lab.machine.conns


def test_invalid_packets_are_dropped_or_judged():
    frame = Frame(B, A, claimed="inv")
    assert not Lab(shop(FROM_B)).arrives(frame)
    judged = Lab(shop(FROM_B), Options(invalid="policy"))
    assert judged.arrives(frame) and not judged.machine.conns
    assert not judged.arrives(Frame(C, A, claimed="inv"))


def test_a_refused_connection_is_stopped_in_both_directions_and_goes_on_when_it_is_allowed_again():
    before, after = Lab(shop(FROM_B)), Lab(shop(policy("a", policyTypes=["Ingress"])))
    frame = Frame(B, A)
    assert before.arrives(frame) and before.arrives(frame.reply()) and before.arrives(frame)
    after.machine.conns = before.machine.conns
    assert after.arrives(frame.reply()), "nobody has noticed yet"
    assert not after.arrives(frame)
    assert not after.arrives(frame.reply())
    assert [conn.mark for conn in before.machine.conns.values()] == [3]
    assert before.arrives(frame) and before.arrives(frame.reply())
    assert [conn.mark for conn in before.machine.conns.values()] == [2]


def test_commits_lie_where_software_looks():
    ruleset = compiled(shop(FROM_B, KEPT_IN))
    assert {rule.chain for rule in ruleset.rules if any(isinstance(each, Ct) and each.commit for each in rule.actions)} == {FRESH, COMMIT, DENIED}
    related = [rule for rule in ruleset.rules if rule.chain == FRESH and isinstance(rule.actions[0], Ct)]
    assert related and all(rule.actions[0].nat is not None and rule.actions[1].commit for rule in related)


def test_nothing_keeps_a_pod_from_itself():
    lab = Lab(shop(policy("", policyTypes=["Ingress", "Egress"])))
    assert lab.arrives(Frame(A, A)) and not lab.arrives(Frame(A, B))


def test_a_packet_leaves_no_conntrack_entry_to_the_host():
    forwards = [rule for rule in compiled(shop(FROM_B)).rules if rule.actions[-1] == Gact(rule.actions[-1].control) and rule.chain > DENIED]
    assert forwards and all(rule.actions[0].clear for rule in forwards)
