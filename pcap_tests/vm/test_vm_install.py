"""Rules files in a real kernel: installed, changed to other ones with no more than what differs, taken out; what others have there is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from random import Random

from datapath.cli import main
from datapath.commands.tc.ask import KernelTc
from datapath.commands.tc.decode import kept
from datapath.commands.tc.install import MARK, Keeper, carried_out, hooks_of, marked, planned, removal
from datapath.live.privileges import keep_only
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import GONE, Hook, Mirred, Qdisc, Ruleset
from datapath.pipeline.validate import validate
from pcap_tests.test_datapath.command import run
from pcap_tests.vm.test_vm_refusals import parsed
from pcap_tests.vm.test_vm_rules import some_sound_rule

HOOK = Hook("eth0")
HEAD = "tc filter add dev eth0 ingress protocol ip"
FIRST = f"""
tc qdisc add dev eth0 clsact
tc qdisc add dev vf0 clsact
tc chain add dev eth0 ingress protocol ip chain 5 flower ip_proto tcp dst_port 0/0xffff
{HEAD} prio 1 chain 0 flower ct_state -trk action ct zone 7 pipe action goto chain 1
{HEAD} prio 1 chain 1 flower ct_state +trk+est action mirred egress redirect dev vf0
{HEAD} prio 2 chain 1 flower ct_state +trk+new ip_proto tcp dst_port 80 action ct commit zone 7 pipe action mirred egress redirect dev vf0
{HEAD} prio 3 chain 1 flower action drop
{HEAD} prio 1 chain 5 flower ip_proto tcp dst_port 80 action pass
tc filter add dev vf0 ingress protocol ipv6 prio 4 chain 0 flower
"""


def read(text: str) -> Ruleset:
    found = Findings()
    rules = validate(parsed(text), found)
    assert not found.errors
    return rules


def tc(line: str) -> None:
    subprocess.run(["tc", *line.split()], check=True)


def lost(device: str) -> None:
    """Its driver takes it away. Filters elsewhere that send packets to it stay."""
    subprocess.run(["ip", "link", "del", device], check=True)


def back(device: str) -> None:
    """Another one of its name is there."""
    subprocess.run(["ip", "link", "add", device, "up", "type", "veth", "peer", "name", f"{device}_"], check=True)


def installed(kernel: KernelTc, rules: Ruleset) -> tuple[int, int, int, int]:
    """How many rules were added, changed, removed, and stay; what is there then is what is meant, and a second time nothing is to be done."""
    plan = planned(rules, kernel.listed(hooks_of(rules)))
    assert plan.conflicts == () and [refusal.told() for refusal in carried_out(kernel, plan)] == []
    there = kernel.listed(hooks_of(rules))
    assert {each.rule for each in there.rules if each.counted[0].cookie == MARK} == {kept(marked(rule)) for rule in rules.rules}
    assert planned(rules, there).steps == ()
    return plan.count("add"), plan.count("replace"), plan.count("delete"), plan.same


def test_a_file_is_installed_once_and_changed_by_what_differs(switch):
    with KernelTc(MARK) as kernel:
        assert installed(kernel, read(FIRST)) == (6, 0, 0, 0)
        assert installed(kernel, read(FIRST)) == (0, 0, 0, 6)
        assert installed(kernel, read(FIRST.replace("action drop", "action pass"))) == (0, 1, 0, 5)  # in place
        other = FIRST.replace("action drop", "action pass").replace("dst_port 80 action ct", "dst_port 443 action ct")
        assert installed(kernel, read(other)) == (0, 1, 0, 5)  # in place, too: the same masks
        assert installed(kernel, read(other.replace("dst_port 443 action ct", "action ct"))) == (1, 0, 1, 5)
        without = "\n".join(line for line in other.splitlines() if "prio 3 chain 1" not in line)
        assert installed(kernel, read(without)) == (1, 0, 2, 4)


def test_a_priority_of_another_protocol_is_made_anew(switch):
    with KernelTc(MARK) as kernel:
        installed(kernel, read(f"tc qdisc add dev eth0 clsact\n{HEAD} prio 3 chain 0 flower ip_proto tcp action drop"))
        assert installed(kernel, read(f"tc qdisc add dev eth0 clsact\n{HEAD}v6 prio 3 chain 0 flower ip_proto tcp action drop")) == (1, 0, 1, 0)


def test_rules_that_change_places_are_not_in_each_others_way(switch):
    with KernelTc(MARK) as kernel:
        lines = [f"{HEAD} prio 3 chain 0 handle {number} flower ip_proto {proto} action drop" for number, proto in ((1, "tcp"), (2, "udp"))]
        installed(kernel, read("\n".join(["tc qdisc add dev eth0 clsact", *lines])))
        swapped = [line.replace("tcp", "x").replace("udp", "tcp").replace("x", "udp") for line in lines]
        assert installed(kernel, read("\n".join(["tc qdisc add dev eth0 clsact", *swapped]))) == (2, 0, 2, 0)


def test_another_template_is_another_chain(switch):
    with KernelTc(MARK) as kernel:
        installed(kernel, read(FIRST))
        wider = FIRST.replace("flower ip_proto tcp dst_port 0/0xffff", "flower ip_proto tcp dst_port 0/0xffff src_ip 0.0.0.0/8")
        assert installed(kernel, read(wider)) == (5, 0, 5, 1)
        (template,) = kernel.listed([HOOK]).templates
        assert {match.name: match.mask for match in template.matches}["src_ip"] == 0xFF000000


def test_what_others_have_is_left_alone(switch):
    with KernelTc(MARK) as kernel:
        tc("qdisc add dev eth0 clsact")
        tc("filter add dev eth0 ingress protocol ip prio 7 chain 1 flower ip_proto udp action pass")
        tc("filter add dev eth0 egress protocol all prio 1 matchall action pass")
        assert installed(kernel, read(FIRST)) == (6, 0, 0, 0)
        carried_out(kernel, removal(kernel.listed(hooks_of(read(FIRST))), read(FIRST).templates))
        there = kernel.listed(hooks_of(read(FIRST)))
        assert [(each.rule.prio, each.rule.chain) for each in there.rules] == [(7, 1)] and there.templates == ()
        assert there.foreign == ("a filter of matchall: expected flower",)


def test_a_filter_of_others_with_a_rules_name_is_in_the_way_and_nothing_is_done(switch):
    tc("qdisc add dev eth0 clsact")
    tc("filter add dev eth0 ingress protocol ip prio 3 chain 1 handle 1 flower ip_proto udp action pass")
    with KernelTc(MARK) as kernel, Keeper(kernel, read(FIRST)) as keeper:
        (conflict,) = keeper.plan.conflicts
        assert "prio 3 chain 1 handle 0x1" in conflict and "not ours" in conflict
        assert len(kernel.listed([HOOK]).rules) == 1
    with KernelTc(MARK) as kernel:
        assert len(kernel.listed([HOOK]).rules) == 1


def test_another_qdisc_is_in_the_way(switch):
    tc("qdisc add dev eth0 ingress")
    with KernelTc(MARK) as kernel:
        assert planned(read(FIRST), kernel.listed(hooks_of(read(FIRST)))).conflicts == (
            "tc qdisc add dev eth0 clsact: there is another one: tc qdisc add dev eth0 ingress",
        )


def test_a_keeper_takes_all_away_that_was_made_for_it(switch):
    tc("qdisc add dev vf0 clsact")
    with KernelTc(MARK) as kernel:
        with Keeper(kernel, read(FIRST)) as keeper:
            assert keeper.refused == [] and len(kernel.listed([HOOK]).rules) == 5
        there = kernel.listed([HOOK, Hook("vf0")])
        assert (there.rules, there.templates, [qdisc.device for qdisc in there.qdiscs]) == ((), (), ["vf0"])
        with Keeper(kernel, read(FIRST), keep=True):
            pass
        assert len(kernel.listed([HOOK]).rules) == 5


def test_what_a_nic_does_not_take_is_told_and_the_rest_is_there(nic, switch):
    nic.set(takes_ct=0)
    with KernelTc(MARK) as kernel, Keeper(kernel, read(FIRST.replace("prio 1 chain 1 flower", "prio 1 chain 1 flower skip_sw"))) as keeper:
        (refused,) = keeper.refused
        assert refused.told().endswith("Operation not supported: feigned_nic: this NIC matches no conntrack")
        assert len(kernel.listed([HOOK]).rules) == 4


def test_what_goes_nowhere_since_its_device_has_gone_is_ours_and_put_right(switch):
    """`indev` is lost in the same way."""
    text = FIRST.replace("flower action drop", "flower indev vf0 action drop")
    with KernelTc(MARK) as kernel:
        installed(kernel, read(text))
        theirs = "dev eth0 ingress protocol ip prio 9 chain 1 handle 9"
        tc(f"filter add {theirs} flower action mirred egress redirect dev vf0")
        for _ in range(2):
            lost("vf0")
            kernel.look_again()
            sent = [(each.rule, action) for each in kernel.listed([HOOK]).rules for action in each.rule.actions if isinstance(action, Mirred)]
            assert sorted((rule.prio, action.device) for rule, action in sent) == [(1, GONE), (2, GONE), (9, GONE)]
            back("vf0")
            kernel.look_again()
            assert installed(kernel, read(text)) == (2, 2, 1, 2)
    tc(f"filter del {theirs} flower")


def test_random_files_one_after_the_other(switch):
    """Of 60 rules each time some stay, some are changed, some go; names and priorities are shared."""
    random = Random(int(os.environ.get("CTMIRROR_SEED", "11")))
    pool = [some_sound_rule(random, 1 + number // 3) for number in range(90)]
    with KernelTc(MARK) as kernel:
        for _ in range(6):
            rules, taken, protocols = [], set(), {}
            for rule in random.sample(pool, 60):
                rule = replace(rule, handle=random.randrange(1, 4), chain=random.randrange(3))
                place = (rule.chain, rule.prio)
                if (*place, rule.handle) in taken or (*place, rule.matches) in taken or protocols.setdefault(place, rule.protocol) != rule.protocol:
                    continue
                taken |= {(*place, rule.handle), (*place, rule.matches)}
                rules.append(rule)
            installed(kernel, Ruleset((Qdisc("eth0"),), (), tuple(rules)))


# --- the command ----------------------------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_what_tc_would_do_as_well(capfd, switch, tmp_path):
    file = tmp_path / "rules.tc"

    def tc_does(*words: str) -> None:
        code, out, err = run(capfd, "offload", *words, file, "--dry-run")
        assert (code, err) == (0, "")
        subprocess.run(["sh", "-e"], input=out, text=True, check=True)

    file.write_text(FIRST)
    run(capfd, "offload", "install", file, "--dry-run")
    with KernelTc(MARK) as kernel:
        assert kernel.listed([HOOK]).rules == ()
        tc_does("install", "-q")
        assert planned(read(FIRST), kernel.listed(hooks_of(read(FIRST)))).steps == ()
    file.write_text(FIRST.replace("action drop", "action pass").replace("+trk+est", "+trk+est+rpl").replace("0/0xffff", "0/0xffff src_ip 0.0.0.0/8"))
    tc_does("install", "-q")
    code, out, _ = run(capfd, "offload", "install", file)
    assert (code, out) == (0, "rules: 0 added, 0 changed, 0 removed; 6 as they were\n")
    tc_does("remove", "-q")
    with KernelTc(MARK) as kernel:
        there = kernel.listed(hooks_of(read(FIRST)))
        assert (there.rules, there.templates, len(there.qdiscs)) == ((), (), 2)


def test_the_command_installs_says_what_it_did_and_removes(capfd, switch, tmp_path):
    file = tmp_path / "rules.tc"
    file.write_text(FIRST)
    assert run(capfd, "offload", "install", file)[1] == "rules: 6 added, 0 changed, 0 removed; 0 as they were\n"
    tc("filter add dev eth0 ingress protocol ip prio 77 flower ip_proto udp action pass")
    assert run(capfd, "offload", "remove") == (0, "6 rules removed\n", "")
    with KernelTc() as kernel:
        assert [each.rule.prio for each in kernel.listed([HOOK]).rules] == [77]
    file.write_text(FIRST.replace("eth0", "eth9"))
    assert run(capfd, "offload", "install", "-q", file) == (2, "", f"ctmirror: {file}:2:1: no interface eth9 here: expected those of the rules\n")
    file.write_text(f"{HEAD} prio 77 chain 0 handle 1 flower action drop\n")
    code, _, err = run(capfd, "offload", "install", file)
    assert code == 1 and "there is another filter of this name, which is not ours" in err


def test_the_command_puts_right_and_removes_what_goes_nowhere_since_its_device_has_gone(capfd, switch, tmp_path):
    file = tmp_path / "rules.tc"
    file.write_text(
        FIRST.replace("tc qdisc add dev vf0 clsact\n", "").replace("tc filter add dev vf0 ingress protocol ipv6 prio 4 chain 0 flower\n", "")
    )
    run(capfd, "offload", "install", "-q", file)
    lost("vf0")
    code, out, err = run(capfd, "offload", "install", file)
    assert (code, out) == (1, "rules: 0 added, 0 changed, 0 removed, 2 refused; 3 as they were\n") and err.count("no interface vf0") == 1
    back("vf0")
    assert run(capfd, "offload", "install", file)[:2] == (0, "rules: 0 added, 2 changed, 0 removed; 3 as they were\n")
    assert run(capfd, "offload", "install", file)[1] == "rules: 0 added, 0 changed, 0 removed; 5 as they were\n"
    lost("vf0")
    assert run(capfd, "offload", "remove", file)[:2] == (0, "5 rules removed\n")
    with KernelTc() as kernel:
        assert kernel.listed([HOOK])[1:] == ((), (), ())


def in_child(before: Callable[[], None], *words: object) -> int:
    """A child that is on its way with a command; its output is captured as ours is."""
    child = os.fork()
    if child == 0:
        before()
        code = main([str(word) for word in words])
        sys.stdout.flush()
        os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_without_the_right_to_it_is_said_once(capfd, switch, tmp_path):
    file = tmp_path / "rules.tc"
    file.write_text(FIRST)
    assert ended(in_child(lambda: keep_only(()), "offload", "install", "-q", file, "--dry-run")) == 0
    out, err = capfd.readouterr()
    assert (len(out.splitlines()), err) == (9, "")
    assert ended(in_child(lambda: keep_only(()), "offload", "install", "-q", file)) == 2
    assert capfd.readouterr() == ("", "ctmirror: TC cannot be changed: not permitted: expected root, or cap_net_admin\n")


def test_until_exit_is_until_it_is_told_to_end(capfd, switch, tmp_path):
    file = tmp_path / "rules.tc"
    file.write_text(FIRST)
    with KernelTc() as kernel:
        child = in_child(lambda: None, "offload", "install", "-q", file, "--until-exit")
        hooks = hooks_of(read(FIRST))
        until = time.monotonic() + 30
        while len(kernel.listed(hooks).rules) < len(read(FIRST).rules) and time.monotonic() < until:
            time.sleep(0.02)
        assert len(kernel.listed(hooks).rules) == 6
        os.kill(child, signal.SIGTERM)
        assert ended(child) == 0
        there = kernel.listed(hooks)
        assert (there.rules, there.templates, there.qdiscs) == ((), (), ())
