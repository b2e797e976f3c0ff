"""What `rules check` warns of: what can never come to anything is, and what might is not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from datapath.pipeline.doubts import ARP_TOO, doubt
from datapath.pipeline.findings import Findings
from datapath.pipeline.interpret import Interpreter, Piece, Tracked
from datapath.pipeline.policy.compiler import Options, compile_policies
from datapath.pipeline.policy.devices import attach
from datapath.pipeline.rules import Ct, Match, Place
from datapath.pipeline.rules_file import parse
from datapath.pipeline.tc_print import print_ruleset
from datapath.pipeline.yaml_rules import dump
from pcap_tests.test_datapath.test_pipeline.random_pipelines import ENTRIES, SECOND, some_control, some_frame, some_ruleset
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import NAMES, Recipe

ROOT = Path(__file__).parents[3]
FILTER = "tc filter add dev eth0 ingress protocol ip"
CT = f"{FILTER} prio 1 flower ct_state -trk action ct pipe action"


def warnings(*lines: str) -> list[str]:
    found = Findings()
    parse("\n".join(lines) + "\n", "r", found)
    assert not found.errors
    return found.warnings


# --- what is never matched --------------------------------------------------------------------------------------------------------------


def test_tracked_packets_where_nothing_tracks():
    idle = f"{FILTER} prio 2 flower ct_state +trk+est action pass"
    said = ["r:1:58: 'ct_state +trk+est': never matches: no `ct` action comes before it, on any way to chain 0"]
    assert warnings(idle) == said
    assert warnings(idle, f"{FILTER} prio 3 flower ct_state +trk+new action pass") == [f"{said[0]} (and 1 more of this chain)"]
    assert warnings(idle.replace("ingress", "egress"))[0].endswith("chain 0 (in Linux, what its own netfilter has tracked)")


def test_a_chain_that_is_gone_to_before_it_tracks():
    there = f"{FILTER} prio 1 chain 1 flower ct_state +trk+est action pass"
    assert warnings(f"{FILTER} prio 1 flower ip_proto tcp action goto chain 1", there) == [
        "r:2:66: 'ct_state +trk+est': never matches: no `ct` action comes before it, on any way to chain 1"
    ]
    assert not warnings(f"{FILTER} prio 1 flower ip_proto tcp action ct pipe action goto chain 1", there)
    assert len(warnings(f"{FILTER} prio 1 flower ip_proto tcp action ct pipe action ct clear pipe action goto chain 1", there)) == 1


@pytest.mark.parametrize("control", ["continue", "reclassify"])
def test_packets_that_were_tracked_come_back(control):
    assert not warnings(f"{CT} {control}", f"{FILTER} prio 2 flower ct_state +trk+est action pass")


@pytest.mark.parametrize("control", ["pass", "drop"])
def test_packets_that_were_tracked_are_gone(control):
    assert len(warnings(f"{CT} {control}", f"{FILTER} prio 2 flower ct_state +trk+est action pass")) == 1


# --- what is never tried or done ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        ("drop action pass", "'pass': never done: what is before it ends with 'drop': expected pipe there"),
        ("mirred egress redirect dev eth1 action drop", "'drop': never done: 'mirred egress redirect dev eth1' before it takes the packet away"),
        ("pedit ex munge ip ttl set 3 action csum ip4h pipe",
         "'csum ip4h pipe': never done: what is before it ends with 'pass', as in tc where nothing is written: expected pipe there"),
        ("police rate 1mbit burst 10k conform-exceed drop action pass", "ends with 'pass', as in tc where nothing is written: expected pipe there"),
    ],
)  # fmt: skip
def test_an_action_that_nothing_reaches(actions, said):
    (line,) = warnings(f"{FILTER} prio 1 flower ip_proto tcp action {actions}")
    assert said in line


@pytest.mark.parametrize(
    "actions",
    ["pipe action pass", "mirred egress mirror dev eth1 action drop", "police rate 1mbit burst 10k conform-exceed drop/pipe action pass"],
)
def test_an_action_that_something_reaches(actions):
    assert not warnings(f"{FILTER} prio 1 flower ip_proto tcp action {actions}")


def test_rules_behind_one_that_takes_everything():
    everything, behind = f"{FILTER} prio 2 flower action pass", f"{FILTER} prio 3 flower ip_proto tcp action drop"
    said = ["r:2:1: 'prio 3': never tried: prio 2, in line 1, takes everything of protocol ip before it"]
    assert warnings(everything, behind) == said
    assert warnings(everything, behind, behind.replace("tcp", "udp")) == [f"{said[0]} (and 1 more of this chain)"]
    assert warnings(everything.replace("protocol ip ", "protocol all "), behind) == [said[0].replace(" of protocol ip", "")]
    assert not warnings(everything, behind.replace("prio 3", "prio 1"))
    assert not warnings(everything.replace("pass", "continue"), behind)
    assert not warnings(everything, behind.replace("protocol ip ", "protocol ipv6 "))
    assert not warnings(everything.replace("flower", "flower skip_hw"), behind)
    assert warnings(everything.replace("flower", "flower skip_hw"), behind.replace("flower", "flower skip_hw")) == said


def test_a_rule_without_any_action():
    assert warnings(f"{FILTER} prio 1 flower ip_proto tcp") == ["r:1:1: 'prio 1': no action, which is `action pass`: expected that, or another"]


# --- what is more, or less, than it looks like ---------------------------------------------------------------------------------------------


def test_a_drop_of_all_protocols_that_nobody_wrote():
    assert warnings("tc filter add dev eth0 ingress prio 1 flower action drop") == [f"r:1:1: {ARP_TOO}"]
    assert warnings("rules:", "  - {device: eth0, prio: 1, actions: [drop]}") == [f"r:2:5: {ARP_TOO}"]
    assert not warnings("rules:", "  - {device: eth0, prio: 1, protocol: all, actions: [drop]}", "  - {device: eth1, actions: [pass]}")


def test_bits_behind_a_prefix():
    assert warnings(f"{FILTER} prio 1 flower src_ip 10.0.0.1/8 action pass") == [
        "r:1:58: 'src_ip 10.0.0.1/8': bits behind the prefix do not count: this is 10.0.0.0/8"
    ]
    assert warnings("rules:", "  - {device: e, protocol: ipv6, match: {dst_ip: '2001:db8::1/32'}, actions: [pass]}") == [
        "r:2:41: 'dst_ip: '2001:db8::1/32'': bits behind the prefix do not count: this is 2001:db8::/32"
    ]
    assert not warnings(f"{FILTER} prio 1 flower src_ip 10.0.0.0/8 dst_ip 10.0.0.1/32 action pass", f"{FILTER} prio 2 flower src_ip 10/8 action pass")


@pytest.mark.parametrize(
    ("chain", "match", "action", "loops"),
    [
        (0, "", "goto chain 0", True),
        (0, "ip_proto tcp", "goto chain 0", True),  # what matched once matches again
        (3, "", "goto chain 3", True),
        (0, "", "reclassify", True),
        (3, "", "reclassify", False),  # from chain 0 it may go elsewhere
        (0, "", "goto chain 3", False),
        (0, "ct_state -trk", "ct pipe action goto chain 0", False),  # it has changed
        (0, "", "police pkts_rate 10 pkts_burst 10 conform-exceed drop/pipe action goto chain 0", False),
    ],
)
def test_a_loop(chain, match, action, loops):
    rest = [f"{FILTER} prio 9 flower dst_ip 10.0.0.1 action goto chain 3", f"{FILTER} prio 9 chain 3 flower dst_ip 10.0.0.2 action pass"]
    found = [said for said in warnings(f"{FILTER} prio 5 chain {chain} flower {match} action {action}", *rest) if "never tried" not in said]
    assert [said.partition(", so that")[0].partition(": '")[2] for said in found] == [f"{action}': a loop: nothing has changed"] * loops


def test_what_may_have_changed_before_is_no_loop():
    """The first time it is tracked and goes on; the second time the rule before may take it."""
    tracked = [f"{FILTER} prio 1 flower ct_state +trk+est action pass", f"{FILTER} prio 2 flower ct_state -trk action ct continue"]
    back = f"{FILTER} prio 3 flower action goto chain 0"
    assert not warnings(*tracked, back)
    assert len(warnings(tracked[0].replace("ct_state +trk+est", "ip_proto tcp"), back)) == 1


# --- no false alarm ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["deploy/node.tc", "examples/vm-behind-vf/rules.tc", "examples/vm-behind-vf/rules.yaml"])
def test_our_own_rules_raise_no_doubts(name):
    assert not warnings((ROOT / name).read_text())


@pytest.mark.parametrize("forward", ["pass", "redirect"])
@pytest.mark.parametrize("name", NAMES)
def test_compiled_policies_raise_no_doubts(name, forward):
    cluster = Recipe(name).cluster()
    made = compile_policies(cluster, attach(pod for pod in cluster.pods if not pod.host_network), Options(forward=forward))
    assert not warnings(print_ruleset(made)) and not warnings(dump(made))


class _Tracks:
    """A tracker for which all packets are established."""

    def act(self, action: Ct, frame: bytes, now: int, before: Tracked, missing: int = 0) -> tuple[str, bytes, Tracked]:
        return "go on", frame, Tracked() if action.clear else Tracked(0x0A)

    def leave(self, tracked: Tracked) -> None:
        pass

    def cut(self, frame: bytes, tracked: Tracked, missing: int = 0) -> list[Piece]:
        return [Piece(frame, missing)]


def test_what_is_doubted_is_never_hit():
    """Any rules, any frames: no rule of which it is said that it never matches, or is never tried, is one that a frame hits."""
    random, doubted, hits, looped = Random(5), 0, 0, 0
    for _ in range(300):
        more = {"actions": lambda random, inner: Ct(clear=random.randrange(4) == 0, control=some_control(random)),
                "matches": lambda random: [Match("ct_state", 8, 8)] if random.randrange(3) == 0 else []}  # fmt: skip
        made, found = some_ruleset(random, **more), Findings()
        made = replace(made, rules=tuple(replace(rule, place=Place("r", line)) for line, rule in enumerate(made.rules, 1)))
        doubt(made, found)
        round_ = {int(line.split(":")[1]) for line in found.warnings if "a loop: nothing has changed" in line}
        never = {int(line.split(":")[1]) for line in found.warnings if re.search("never (matches|tried)|never tried$", line)}
        doubted += len(never)
        interpreter = Interpreter(made, _Tracks())
        for i in range(30):
            sent = interpreter.deliver(some_frame(random), i * SECOND, random.choice(ENTRIES))
            hit = {each.rule.place.line for each in sent.hits}
            hits += len(hit)
            assert not hit & never
            if hit & round_:
                looped += 1
                assert any(walk.verdict == "drop" and walk.reason == "rule_chains" for walk in sent.walks)
    assert doubted > 100 and hits > 1000 and looped > 20
