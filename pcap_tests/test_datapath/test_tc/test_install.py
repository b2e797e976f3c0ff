"""What has to be done for a rules file, from values alone: against a kernel that is none, and refuses what a real one refuses. With a real one:
pcap_tests/vm/test_vm_install."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest

from datapath.commands.offload_install import say_refused
from datapath.commands.tc.ask import Listed, Refusal, Unsaid
from datapath.commands.tc.decode import Counted, Installed, kept
from datapath.commands.tc.install import AHEAD, MARK, REPLACE, Keeper, Step, carried_out, hooks_of, marked, name, planned, removal
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import DROP, ETH_IP, ETH_IPV6, GONE, PASS, Gact, Hook, Match, Mirred, Qdisc, Rule, Ruleset, Template
from datapath.pipeline.rules_file import parse
from datapath.pipeline.tc_print import rule_line
from offload.netlink.channel import NetlinkError
from offload.netlink.extack import Answer

HOOK = Hook("eth0")


def installed(rule: Rule, cookie: bytes = MARK) -> Installed:
    return Installed(kept(rule), False, 0, tuple(Counted(0, 0, 0, 0, cookie, 0) for _ in rule.actions))


class Kernel:
    """Filters by name. A priority has one protocol and no keys twice; what is replaced keeps its masks (EEXIST, EINVAL of Linux)."""

    def __init__(self, *foreign: Rule) -> None:
        self.rules = {name(rule): installed(rule, b"theirs") for rule in foreign}
        self.qdiscs: dict[str, Qdisc] = {}
        self.templates: dict[tuple[Hook, int], Template] = {}

    def listed(self, hooks: Iterable[Hook]) -> Listed:
        hooks = set(hooks)
        rules = tuple(each for each in self.rules.values() if each.rule.hook in hooks)
        return Listed(tuple(self.qdiscs.values()), tuple(each for each in self.templates.values() if each.hook in hooks), rules, ())

    def each(self, parts, do="add") -> list[Refusal]:
        for part in parts:
            getattr(self, f"{do}_{type(part).__name__.lower()}")(part)
        return []

    def add_qdisc(self, qdisc: Qdisc) -> None:
        assert qdisc.device not in self.qdiscs
        self.qdiscs[qdisc.device] = qdisc

    def delete_qdisc(self, qdisc: Qdisc) -> None:
        del self.qdiscs[qdisc.device]

    def add_template(self, template: Template) -> None:
        assert not any((each.rule.hook, each.rule.chain) == (template.hook, template.chain) for each in self.rules.values())
        assert self.templates.setdefault((template.hook, template.chain), template) is template

    def delete_template(self, template: Template) -> None:
        del self.templates[template.hook, template.chain]
        self.rules = {key: each for key, each in self.rules.items() if key[:2] != (template.hook, template.chain)}

    def beside(self, rule: Rule) -> list[Rule]:
        """Of the same priority, but for the one of this name."""
        mine = (rule.hook, rule.chain, rule.prio)
        return [each.rule for key, each in self.rules.items() if (key[0], key[1], key[2]) == mine and key != name(rule)]

    def add_rule(self, rule: Rule) -> None:
        new = kept(rule)
        assert name(rule) not in self.rules and all(each.protocol == new.protocol and each.matches != new.matches for each in self.beside(rule))
        self.rules[name(rule)] = installed(rule)

    def replace_rule(self, rule: Rule) -> None:
        old, new = self.rules[name(rule)].rule, kept(rule)
        assert [(each.name, each.mask) for each in old.matches] == [(each.name, each.mask) for each in new.matches]
        assert all(each.matches != new.matches for each in self.beside(rule))
        self.rules[name(rule)] = installed(rule)

    def delete_rule(self, rule: Rule) -> None:
        del self.rules[name(rule)]

    def unregister(self, device: str) -> None:
        """A device goes, with its qdisc and all that hangs there. What sends packets to it from elsewhere stays, and goes nowhere."""
        self.qdiscs.pop(device, None)
        self.templates = {key: each for key, each in self.templates.items() if key[0].device != device}
        left = {key: each for key, each in self.rules.items() if key[0].device != device}
        self.rules = {key: each._replace(rule=nowhere(each.rule, device)) for key, each in left.items()}


def nowhere(rule: Rule, device: str) -> Rule:
    """As it is listed when a device has gone."""
    sent = [replace(each, device=GONE) if isinstance(each, Mirred) and each.device == device else each for each in rule.actions]
    return replace(rule, actions=tuple(sent))


def some_rules(random: Random) -> Ruleset:
    """A few of few kinds, so that names, priorities and keys meet."""
    found: dict[object, Rule] = {}
    keys: set[object] = set()
    protocols: dict[tuple[int, int], int] = {}
    for _ in range(random.randrange(1, 16)):
        chain, prio, handle = random.randrange(2), random.randrange(1, 3), random.randrange(1, 4)
        protocol = protocols.setdefault((chain, prio), random.choice((ETH_IP, ETH_IPV6)))
        matches = random.choice([(), (Match("ip_proto", 6, 0xFF),), (Match("ip_proto", 17, 0xFF),), (Match("ip_tos", random.choice((0, 4)), 4),)])
        actions = random.choice([(), (Gact(PASS),), (Gact(DROP),)])
        rule = Rule(HOOK, protocol, matches, actions, prio, chain, handle)
        if name(rule) not in found and (chain, prio, matches) not in keys:
            keys.add((chain, prio, matches))
            found[name(rule)] = rule
    return Ruleset((Qdisc("eth0"),), (), tuple(found.values()))


@pytest.mark.parametrize("seed", range(40))
def test_any_file_after_any_other_is_installed_without_a_refusal(seed):
    random = Random(seed)
    theirs = Rule(HOOK, ETH_IP, (Match("ip_proto", 1, 0xFF),), (Gact(PASS),), 9, 0, 1)
    kernel = Kernel(theirs)
    for _ in range(10):
        wanted = some_rules(random)
        plan = planned(wanted, kernel.listed([HOOK]))
        assert plan.conflicts == () and carried_out(kernel, plan) == []
        there = kernel.listed([HOOK])
        assert {each.rule for each in there.rules} == {kept(theirs), *(kept(marked(rule)) for rule in wanted.rules)}
        again = planned(wanted, there)
        assert again.steps == () and again.same == len(wanted.rules) == plan.same + plan.count("add") + plan.count("replace")
    carried_out(kernel, removal(kernel.listed([HOOK])))
    assert [each.rule for each in kernel.rules.values()] == [kept(theirs)]


TEXT = """
tc qdisc add dev eth0 clsact
tc qdisc add dev vf0 ingress_block 9 clsact
tc chain add dev eth0 ingress protocol ip chain 5 flower ip_proto tcp
tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower action goto chain 5
tc filter add dev eth0 ingress protocol ip prio 1 chain 5 flower ip_proto tcp action pass
tc filter add block 9 protocol all prio 1 chain 0 flower action drop
"""


def read(text: str) -> Ruleset:
    found = Findings()
    rules = parse(text, "rules.tc", found)
    assert not found.errors
    return rules


def test_chains_are_filled_before_what_leads_to_them_and_emptied_behind_it():
    rules, kernel = read(TEXT), Kernel()
    plan = planned(rules, kernel.listed(()))
    order = [(step.do, getattr(step.part, "chain", None)) for step in plan.steps]
    assert order == [("add", None), ("add", None), ("add", 5), ("add", 5), ("add", 0), ("add", 0)]
    carried_out(kernel, plan)
    gone = removal(kernel.listed(hooks_of(rules)), rules.templates)
    assert [(step.do, step.part.chain, type(step.part)) for step in gone.steps] == [
        ("delete", 0, Rule), ("delete", 0, Rule), ("delete", 5, Rule), ("delete", 5, Template),
    ]  # fmt: skip


def test_hooks_are_all_that_a_file_says_something_of():
    assert hooks_of(read(TEXT)) == [HOOK, Hook("", "", 9), Hook("eth0", "egress"), Hook("vf0", "egress")]


def test_a_file_without_qdiscs_gets_those_that_it_needs():
    rules = read("tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower action drop")
    assert planned(rules, Kernel().listed(())).steps[0].part == Qdisc("eth0")


def test_lines_are_those_of_tc_with_the_cookie_that_marks_them():
    rules, kernel = read(TEXT), Kernel()
    plan = planned(rules, kernel.listed(()))
    cookie = MARK.hex()
    assert [step.line() for step in plan.steps] == [
        "tc qdisc add dev eth0 clsact",
        "tc qdisc add dev vf0 ingress_block 9 clsact",
        "tc chain add dev eth0 ingress protocol ip chain 5 flower ip_proto tcp",
        f"tc filter add dev eth0 ingress protocol ip prio 1 chain 5 handle 0x1 flower ip_proto tcp action pass cookie {cookie}",
        f"tc filter add dev eth0 ingress protocol ip prio 1 chain 0 handle 0x1 flower action goto chain 5 cookie {cookie}",
        f"tc filter add block 9 protocol all prio 1 chain 0 handle 0x1 flower action drop cookie {cookie}",
    ]
    carried_out(kernel, plan)
    changed = planned(read(TEXT.replace("action drop", "action pass")), kernel.listed(hooks_of(rules)))
    assert [step.line() for step in changed.steps] == [
        f"tc filter replace block 9 protocol all prio 1 chain 0 handle 0x1 flower action pass cookie {cookie}"
    ]
    gone = removal(kernel.listed(hooks_of(rules)), rules.templates)
    assert [step.line() for step in gone.steps][-2:] == [
        "tc filter del dev eth0 ingress protocol ip prio 1 chain 5 handle 0x1 flower",
        "tc chain del dev eth0 ingress chain 5",
    ]


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (Qdisc("vf0"), "tc qdisc add dev vf0 ingress_block 9 clsact: there is another one: tc qdisc add dev vf0 clsact"),
        (Qdisc("eth0", "ingress"), "tc qdisc add dev eth0 clsact: there is another one: tc qdisc add dev eth0 ingress"),
    ],
)
def test_a_qdisc_of_another_kind_is_in_the_way(there, said):
    kernel = Kernel()
    kernel.add_qdisc(there)
    assert planned(read(TEXT), kernel.listed(())).conflicts == (said,)


def test_a_filter_of_others_is_in_the_way_by_its_name_and_in_a_chain_with_another_template():
    (rule,) = [rule for rule in read(TEXT).rules if rule.chain == 5]
    conflicts = planned(read(TEXT), Kernel(replace(rule, actions=(Gact(DROP),))).listed(hooks_of(read(TEXT)))).conflicts
    assert [line.rpartition(": ")[2] for line in conflicts] == [
        "there are filters in this chain that are not ours", "there is another filter of this name, which is not ours",
    ]  # fmt: skip


def test_a_filter_of_which_only_a_part_is_marked_is_not_ours():
    rule = replace(read(TEXT).rules[0], actions=(Gact(PASS), Gact(PASS)))
    kernel = Kernel(rule)
    each = kernel.rules[name(rule)]
    kernel.rules[name(rule)] = each._replace(counted=(each.counted[0]._replace(cookie=MARK), each.counted[1]))
    assert removal(kernel.listed([HOOK])).steps == ()


def test_a_keeper_that_cannot_begin_does_nothing():
    kernel = Kernel()
    kernel.add_qdisc(Qdisc("eth0", "ingress"))
    with Keeper(kernel, read(TEXT)):
        assert kernel.rules == {}
    assert list(kernel.qdiscs) == ["eth0"]


class Silent(Kernel):
    """It refuses the last of the rules, and then says nothing once."""

    refused = False

    def each(self, parts, do="add") -> list[Refusal]:
        if do == "add" and isinstance(parts[-1], Rule) and not self.refused:
            self.refused = True
            return [*super().each(parts[:-1], do), Refusal(parts[-1], Answer(95, "not today"))]
        return super().each(parts, do)

    def listed(self, hooks):
        if self.refused and self.rules:
            self.refused = False
            raise NetlinkError("netlink: no answer within 30 s")
        return super().listed(hooks)


def test_a_keeper_that_fails_on_its_way_in_leaves_nothing():
    kernel = Silent()
    with pytest.raises(NetlinkError, match="no answer"), Keeper(kernel, read(REDIRECT)):
        pytest.fail("it is not entered")
    assert (kernel.rules, kernel.qdiscs, kernel.refused) == ({}, {}, False)


def test_a_keeper_leaves_a_qdisc_that_somebody_uses_by_now():
    kernel = Kernel()
    with Keeper(kernel, read(TEXT)):
        theirs = Rule(Hook("eth0", "egress"), ETH_IP, (), (Gact(PASS),), 9, 0, 1)
        kernel.rules[name(theirs)] = installed(theirs, b"theirs")
    assert list(kernel.qdiscs) == ["eth0"] and list(kernel.rules) == [name(theirs)]


def test_what_is_refused_is_told_with_its_place():
    rule = read(TEXT).rules[0]
    assert Refusal(rule, Answer(28, "no room")).told().startswith("rules.tc:5:1: tc filter add dev eth0")


def test_what_is_refused_is_not_counted_as_done():
    wanted = read(TEXT)
    plan = planned(wanted, Kernel().listed([HOOK]))
    rules = [step.part for step in plan.steps if isinstance(step.part, Rule)]
    others = [step.part for step in plan.steps if not isinstance(step.part, Rule)]
    no = Answer(errno.EOPNOTSUPP, "not today")
    assert plan.told() == f"{len(rules)} added, 0 changed, 0 removed; 0 as they were"
    assert plan.told([Refusal(rules[0], no)]) == f"{len(rules) - 1} added, 0 changed, 0 removed, 1 refused; 0 as they were"
    everything = f"0 added, 0 changed, 0 removed, {len(rules)} refused; 0 as they were; {len(others)} refused of qdiscs and chains"
    assert plan.told([Refusal(part, no) for part in (*others, *rules)]) == everything and others


def test_one_reason_for_all_is_said_once(capfd):
    rules = read(TEXT).rules
    first = Refusal(rules[0], Answer(errno.ENOENT, "TC classifier not found"))
    say_refused([first, *(first._replace(part=rule) for rule in rules[1:])])
    (line,) = capfd.readouterr().err.splitlines()
    assert line.endswith(
        f"TC classifier not found: expected a kernel with CONFIG_NET_CLS_FLOWER (ctmirror doctor) (and {len(rules) - 1} more for the same reason)"
    )
    assert str(rules[0].place) in line
    say_refused([first, Refusal(rules[1], Answer(errno.EOPNOTSUPP, "not today"))])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].endswith("not today")
    say_refused([first, Refusal(rules[1], Answer(errno.EOPNOTSUPP, "not today")), first._replace(part=rules[2])])
    lines = capfd.readouterr().err.splitlines()
    assert [line.endswith("(and 1 more for the same reason)") for line in lines] == [True, False]
    with pytest.raises(PermissionError):
        say_refused([Refusal(rules[0], Answer(errno.EPERM))])


# --- devices that go ------------------------------------------------------------------------------------------------------------------------

REDIRECT = """
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower action goto chain 5
tc filter add dev eth0 ingress protocol ip prio 1 chain 5 flower ip_proto tcp action mirred egress redirect dev vf0
tc filter add dev eth0 ingress protocol ip prio 2 chain 5 flower action mirred egress mirror dev vf0 pipe action drop
"""


def test_what_sent_packets_to_a_device_that_has_gone_is_ours_and_replaced_in_its_place():
    """When another device of its name is there; a filter that the kernel has still cannot be made."""
    rules, kernel = read(REDIRECT), Kernel()
    carried_out(kernel, planned(rules, kernel.listed([HOOK])))
    kernel.unregister("vf0")
    plan = planned(rules, kernel.listed([HOOK]))
    dead = [rule for rule in rules.rules if rule.chain == 5]
    assert (plan.conflicts, plan.ahead, plan.same, plan.steps) == ((), (), 1, tuple(Step(REPLACE, rule) for rule in dead))
    assert carried_out(kernel, plan) == [] and planned(rules, kernel.listed([HOOK])).steps == ()


def test_what_sent_packets_to_a_device_that_has_gone_is_removed_like_the_rest():
    rules, kernel = read(REDIRECT), Kernel()
    with Keeper(kernel, rules):
        kernel.unregister("vf0")
    assert (kernel.rules, kernel.qdiscs) == ({}, {})


def test_what_somebody_else_sent_to_a_device_that_has_gone_is_left_and_told_if_it_is_ahead():
    (theirs,) = read("tc filter add dev eth0 ingress protocol ip prio 1 chain 5 handle 9 flower action mirred egress redirect dev vf0").rules
    rules, kernel = read(REDIRECT), Kernel(theirs)
    carried_out(kernel, planned(rules, kernel.listed([HOOK])))
    kernel.unregister("vf0")
    assert planned(rules, kernel.listed([HOOK])).ahead == (f"{rule_line(nowhere(theirs, 'vf0'))}: {AHEAD}",)
    carried_out(kernel, removal(kernel.listed([HOOK])))
    assert list(kernel.rules) == [name(theirs)]


# --- what others have done ------------------------------------------------------------------------------------------------------------------


def test_what_others_have_put_in_the_place_of_ours_is_replaced_where_it_is_known_to_be_so():
    mine = Rule(HOOK, ETH_IP, (), (Gact(PASS),), 2, 1, 1)
    wanted = Ruleset((Qdisc("eth0"),), (), (mine,))
    for theirs in (replace(mine, actions=(Gact(DROP),)), mine):
        there = Listed((Qdisc("eth0"),), (), (installed(theirs, b""),), ())
        assert planned(wanted, there).conflicts != ()
        plan = planned(wanted, there, {name(mine)})
        assert (plan.conflicts, plan.steps, plan.same) == ((), (Step(REPLACE, mine),), 0)
    strange = Unsaid("action gate")
    strange.place = (HOOK, 1, 2, 1)
    plan = planned(wanted, Listed((Qdisc("eth0"),), (), (), (strange,)), {name(mine)})
    assert (plan.steps, plan.same, plan.ahead) == ((Step(REPLACE, mine),), 0, ())


@pytest.mark.parametrize(("chain", "prio", "ahead"), [(1, 1, True), (1, 3, True), (1, 4, False), (0, 1, False)])
def test_filters_of_others_ahead_of_ours(chain, prio, ahead):
    wanted = Ruleset((Qdisc("eth0"),), (), tuple(Rule(HOOK, ETH_IP, (), (Gact(PASS),), prio, 1, 1) for prio in (2, 3)))
    mine = [installed(rule) for rule in wanted.rules]
    theirs = Rule(HOOK, ETH_IP, (Match("ip_proto", 1, 0xFF),), (Gact(DROP),), prio, chain, 7)
    strange = Unsaid("a filter of matchall: expected flower")
    strange.place = (HOOK, chain, prio, 7)
    lines = [f"{rule_line(theirs)}: {AHEAD}", f"dev eth0 ingress chain {chain} prio {prio}: a filter of matchall: expected flower: {AHEAD}"]
    plan = planned(wanted, Listed((Qdisc("eth0"),), (), (*mine, installed(theirs, b"theirs")), (strange, Unsaid("a template of matchall"))))
    assert plan.ahead == (tuple(lines) if ahead else ()) and plan.steps == () and plan.conflicts == ()
