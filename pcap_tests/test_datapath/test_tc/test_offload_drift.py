"""What differs in the kernel's TC from a rules file, in words: from values alone. With a real kernel: pcap_tests/vm/test_vm_drift."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from datapath import doctor
from datapath.commands import offload_drift
from datapath.commands.offload_drift import lines, of_plan, zones_meant
from datapath.commands.tc.ask import Listed
from datapath.commands.tc.install import MARK, hooks_of, marked, planned
from datapath.oracle.namespace import Namespace
from datapath.pipeline.rules import DROP, PASS, Gact, Match, Mirred, Qdisc, Ruleset
from offload.drift import Drift, Finding, Zone
from offload.netlink.channel import NetlinkError
from pcap_tests.test_datapath.command import run
from pcap_tests.test_datapath.test_tc.test_install import installed, nowhere
from pcap_tests.vm.test_vm_install import read

TEXT = """
tc qdisc add dev eth0 clsact
tc chain add dev eth0 ingress protocol ip chain 5 flower ip_proto tcp dst_port 0/0xffff
tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct zone 7 pipe action goto chain 5
tc filter add dev eth0 ingress protocol ip prio 1 chain 5 flower ip_proto tcp dst_port 80 action pass
tc filter add dev eth0 ingress protocol ip prio 2 chain 5 flower ip_proto tcp dst_port 81 action ct clear pipe action drop
"""
WANTED = read(TEXT)


def there(rules: Ruleset, *, without: int | None = None, cookie: bytes = MARK) -> Listed:
    """As the kernel lists what has been installed. without: the number of the rule that is not."""
    left = [installed(marked(rule), cookie) for number, rule in enumerate(rules.rules) if number != without]
    return Listed(rules.qdiscs, rules.templates, tuple(left), ())


def found(listed: Listed) -> list[Drift]:
    return [finding.what for finding in of_plan(planned(WANTED, listed))]


def test_what_is_meant_is_nothing():
    assert found(there(WANTED)) == []


@pytest.mark.parametrize("number", range(3))
def test_a_filter_that_is_not_there(number):
    (finding,) = of_plan(planned(WANTED, there(WANTED, without=number)))
    assert finding.what is Drift.FILTER_MISSING and finding.drift and finding.about.startswith("tc filter add dev eth0 ingress")


def test_a_filter_that_does_something_else_is_changed_whether_or_not_the_kernel_would_replace_it():
    rules = list(WANTED.rules)
    for other in (replace(rules[1], actions=(Gact(DROP),)), replace(rules[1], matches=(Match("ip_proto", 17, 0xFF),))):
        assert found(there(replace(WANTED, rules=(rules[0], other, rules[2])))) == [Drift.FILTER_CHANGED]


def test_a_filter_that_goes_nowhere_since_its_device_has_gone_is_changed():
    sent = replace(WANTED, rules=(replace(WANTED.rules[1], actions=(Mirred("redirect", "vf0"),)),))
    listed = Listed(sent.qdiscs, sent.templates, (installed(nowhere(sent.rules[0], "vf0")),), ())
    (finding,) = of_plan(planned(sent, listed))
    assert finding.what is Drift.FILTER_CHANGED and "redirect dev vf0" in finding.about


def test_a_filter_of_ours_that_is_not_meant():
    extra = replace(WANTED.rules[1], prio=9, actions=(Gact(PASS),))
    assert found(there(replace(WANTED, rules=(*WANTED.rules, extra)))) == [Drift.FILTER_EXTRA]


def test_filters_of_others_in_the_way():
    assert set(found(there(WANTED, cookie=b"theirs"))) == {Drift.FILTER_FOREIGN}


def test_nothing_is_there():
    assert found(Listed((), (), (), ())) == [Drift.QDISC_MISSING, Drift.CHAIN_MISSING, *[Drift.FILTER_MISSING] * 3]
    assert found(Listed((Qdisc("eth0"),), (), (), ()))[0] is Drift.CHAIN_MISSING
    assert [hook.device for hook in hooks_of(WANTED)] == ["eth0", "eth0"]


def test_zones_are_those_that_connections_are_tracked_in():
    """`ct clear` forgets one."""
    assert zones_meant(WANTED) == {7}


def test_lines_end_with_what_it_comes_to():
    findings = [Finding(Drift.DEVICE_DOWN, "eth0", "no packet comes through it"), Finding(Drift.NOT_OFFLOADED, "zone 7", "2 of 3")]
    assert list(lines(findings, [Zone(7, 3, 3, 1, 0)], 5, 6)) == [
        "device down: eth0: no packet comes through it",
        "not offloaded: zone 7: 2 of 3",
        "zone 7: 3 connections, 3 established, 1 offloaded, 0 in hardware",
        "5 of 6 rules as they are meant; 1 difference",
    ]
    assert list(lines([], [], 1, 1)) == ["1 of 1 rule as they are meant; nothing differs"]


# --- the command ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.tc"
    path.write_text(TEXT)
    return path


def test_a_device_that_is_not_there_is_said_with_what_it_lacks(running_kernel, rules, capfd):
    namespace = Namespace()
    with namespace.entered():
        code, out, _ = run(capfd, "offload", "audit", "--kernel", rules)
        assert (code, out) == (1, "device missing: eth0: 3 rules of it not there\n0 of 3 rules as they are meant; 1 difference\n")
        code, out, _ = run(capfd, "offload", "audit", "--kernel", rules, "--json")
        document = json.loads(out)
        assert document["findings"] == [{"what": "device_missing", "drift": True, "about": "eth0", "why": "3 rules of it not there"}]
        assert (document["same"], document["zones"], document["rules"]) == (0, [], str(rules))
        assert run(capfd, "offload", "audit", "--kernel", rules, "--quiet") == (1, "", "")
    namespace.close()


def test_a_device_that_is_not_there_and_packets_would_be_sent_to_is_said(running_kernel, rules, capfd):
    rules.write_text("tc filter add dev lo ingress protocol ip prio 1 chain 0 flower indev vf1 action mirred egress redirect dev vf0\n")
    namespace = Namespace()
    with namespace.entered():
        _, out, _ = run(capfd, "offload", "audit", "--kernel", rules)
    namespace.close()
    missing = [line for line in out.splitlines() if line.startswith("device missing")]
    assert missing == [f"device missing: {device}: rules of other devices name it" for device in ("vf0", "vf1")]


@pytest.mark.parametrize("there", [False, True])
def test_a_kernel_without_flower_is_said_once_and_first(running_kernel, rules, capfd, monkeypatch, there):
    rules.write_text(TEXT.replace("dev eth0", "dev lo"))
    monkeypatch.setattr(offload_drift, "tc_flower", lambda: doctor.Finding("TC flower", there, "cls_flower is nowhere"))
    namespace = Namespace()
    with namespace.entered():
        code, out, _ = run(capfd, "offload", "audit", "--kernel", rules)
        document = json.loads(run(capfd, "offload", "audit", "--kernel", rules, "--json")[1])
    namespace.close()
    cause = "no flower: cls_flower is nowhere: expected a kernel with CONFIG_NET_CLS_FLOWER (ctmirror doctor)"
    lines = out.splitlines()
    missing = [line for line in lines if line.startswith("filter missing: ")]
    assert code == 1 and len(missing) == 3 and lines.count(cause) == (not there)
    assert (lines[0] == cause) is not there
    assert [finding["drift"] for finding in document["findings"] if finding["what"] == "no_flower"] == [False] * (not there)
    assert lines[-1] == f"0 of 3 rules as they are meant; {sum(finding['drift'] for finding in document['findings'])} differences"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--socket", "x"], "expected no --socket with it"),
        (["some.pcap"], "expected no CAPTURE with it"),
        (["--nic", "tiny"], "--nic: not with --kernel"),
    ],
)
def test_words_of_the_other_forms_are_refused(rules, capfd, words, said):
    code, _, err = run(capfd, "offload", "audit", "--kernel", rules, *words)
    assert code == 2 and said in err


def test_a_rules_file_in_place_of_a_capture_is_no_answer(rules, capfd):
    code, out, err = run(capfd, "offload", "audit", rules)
    assert (code, out) == (2, "") and "not a capture" in err and f"(a rules file? --kernel {rules})" in err


@pytest.mark.parametrize("error", [NetlinkError("netlink: Operation not permitted", 1), PermissionError(1, "Operation not permitted")])
@pytest.mark.parametrize(("asked", "what"), [("KernelTc", "TC"), ("KernelConntrack", "conntrack")])
def test_what_is_not_permitted_is_said_with_what_it_takes(running_kernel, rules, capfd, monkeypatch, error, asked, what):
    def refuse(*_):
        raise error

    namespace = Namespace()
    with namespace.entered():
        monkeypatch.setattr(offload_drift, asked, refuse)
        code, out, err = run(capfd, "offload", "audit", "--kernel", rules)
    namespace.close()
    assert (code, out) == (2, "")
    assert err == f"ctmirror: the kernel's {what} cannot be listed: not permitted: expected root, or cap_net_admin\n"


def test_a_file_that_is_none(tmp_path, capfd):
    code, _, err = run(capfd, "offload", "audit", "--kernel", tmp_path / "nowhere.tc")
    assert code == 2 and "nowhere.tc" in err and len(err.splitlines()) == 1
