"""A node's rules in TC as long as it runs, against a kernel that is none: installed or not at all, followed, put back, taken away. With a real one:
pcap_tests/vm/test_vm_node_rules."""

from __future__ import annotations

import os
import time

import pytest

from ctcore.errors import CtmirrorError
from datapath.commands.offload_drift import found_of_rules
from datapath.commands.tc.following import KernelRules, Unfit
from datapath.commands.tc.install import AHEAD, MARK, marked, name, ours
from datapath.pipeline.rules import DROP, PASS, Gact, Hook
from datapath.pipeline.tc_print import rule_line
from offload.drift import Drift, Finding
from offload.netlink.filters import DELETE_FILTER, DELETE_QDISC, INGRESS_PARENT, NEW_FILTER
from offload.netlink.monitor import Change
from pcap_tests.test_datapath.test_tc.followed import ETH0, HEAD, LINE, ONE, OTHER, Heard, Tc, following, rules, until
from pcap_tests.test_datapath.test_tc.test_install import installed

# --- at the start and at the end --------------------------------------------------------------------------------------------------------------


def test_rules_are_there_while_it_runs_and_gone_with_all_that_was_made_for_them():
    tc = Tc()
    with following(tc) as (one, _, told):
        assert tc.prios == [1, 2] and list(tc.qdiscs) == ["eth0"]
        assert one.figures() == {"rules": 2, "refused": 0, "changes": 0, "heard": 0, "repairs": 0, "ahead": 0, "whole": 1} and told.all == []
    assert tc.rules == {} and tc.qdiscs == {}


def test_rules_may_stay():
    tc = Tc()
    with following(tc, keep=True):
        pass
    assert tc.prios == [1, 2] and list(tc.qdiscs) == ["eth0"]


def test_a_filter_in_the_way_is_told_and_nothing_is_done():
    (foreign,) = (rule for rule in rules(ONE).rules if rule.chain == 1)
    tc = Tc(marked(foreign))
    before = dict(tc.rules)
    with pytest.raises(Unfit, match="there is another filter of this name, which is not ours"):
        KernelRules(tc, Heard(), rules(ONE))
    assert tc.rules == before and tc.qdiscs == {} and tc.closed


def test_what_the_kernel_refuses_leaves_nothing_of_the_others():
    tc = Tc()
    tc.refuses = {2}
    with pytest.raises(Unfit) as error:
        KernelRules(tc, Heard(), rules(ONE), keep=True)
    assert error.value.lines == (
        "rules.tc:3:1: tc filter add dev eth0 ingress protocol ip prio 2 chain 1 handle 0x2 flower ip_proto tcp action pass: "
        "Operation not supported: not today",
    )
    assert tc.rules == {} and tc.qdiscs == {} and tc.closed


def test_a_reason_that_several_rules_have_is_told_once():
    tc = Tc()
    tc.refuses = {1, 2}
    with pytest.raises(Unfit) as error:
        KernelRules(tc, Heard(), rules(ONE))
    (line,) = error.value.lines
    assert line.startswith("rules.tc:") and line.endswith(": Operation not supported: not today (and 1 more for the same reason)")


def test_what_hardware_does_not_take_is_told():
    tc = Tc()
    with pytest.raises(Unfit, match=r"prio 2 .*: not in hardware .and 1 more for the same reason"):
        KernelRules(tc, Heard(), rules(ONE), in_hardware=True)
    assert tc.rules == {}


def test_an_interface_that_is_not_there_is_told():
    tc = Tc()
    tc.devices = {}
    with pytest.raises(Exception, match="no interface eth0"):
        KernelRules(tc, Heard(), rules(ONE))
    assert tc.closed


# --- other rules ------------------------------------------------------------------------------------------------------------------------------


def test_other_rules_are_followed(caplog):
    caplog.set_level("INFO")
    tc = Tc()
    with following(tc) as (one, _, told):
        one.take(rules(OTHER))
        until(lambda: tc.prios == [1, 3] and one.figures()["changes"] == 1)
        until(lambda: any("rules in TC: " in record.getMessage() for record in caplog.records))
        assert told.all == ["they are being changed", "mended"] and one.figures()["rules"] == 2
        assert told.there == [[1, 2], [1, 3]], "a rule goes, and packets that are let by would miss it"
    assert tc.rules == {}


def test_other_rules_that_are_refused_make_connections_software_s_until_they_are_taken(caplog):
    caplog.set_level("INFO")
    tc = Tc()
    with following(tc) as (one, heard, told):
        tc.refuses = {3}
        one.take(rules(OTHER))
        until(lambda: len(told.all) > 1)
        assert "prio 3" in told.all[1] and "not today" in told.all[1] and one.figures()["whole"] == 0 and one.figures()["refused"] == 1
        tc.refuses = set()
        until(lambda: told.all[-1] == "mended")
        assert tc.prios == [1, 3] and told.all.count("mended") == 1 and one.figures()["refused"] == 0
        assert told.all[1:] == [told.all[1], "mended"], "it is told once, however often it is tried"
        assert one.figures()["repairs"] == one.figures()["heard"] == 0 and one.figures()["changes"] == 1
        tc.lose(3)
        heard.say(Change(DELETE_FILTER, ETH0, 1, 1, 3, 3))
        until(lambda: one.figures()["repairs"] == 1)
    said = [record.getMessage() for record in caplog.records]
    assert any("connections are software's; tried again in" in line for line in said)
    assert "rules in TC: taken now that they were tried again: 1 added, 0 changed, 0 removed; 1 as they were" in said
    assert sum("changed by others" in line for line in said) == 1


def test_other_rules_that_nobody_answered_for_are_tried_again_and_are_no_repair(caplog):
    caplog.set_level("INFO")
    tc = Tc()
    with following(tc) as (one, _, told):
        tc.fails = 3
        one.take(rules(OTHER))
        until(lambda: told.all[-1:] == ["mended"])
        assert told.all == ["netlink: no answer within 30 s", "mended"] and told.there == [[1, 2], [1, 3]]
        assert tc.prios == [1, 3] and one.figures()["repairs"] == 0 and one.figures()["changes"] == 1
    assert not any("by others" in record.getMessage() for record in caplog.records)


def test_what_others_took_and_the_kernel_will_not_have_back_at_once_is_a_repair_all_the_same():
    tc = Tc()
    with following(tc) as (one, heard, told):
        tc.refuses = {2}
        tc.lose(2)
        heard.say(Change(DELETE_FILTER, ETH0, 1, 1, 2, 2))
        until(lambda: len(told.all) > 1)
        looks = tc.looks
        until(lambda: tc.looks > looks + 1)
        tc.refuses = set()
        until(lambda: told.all[-1] == "mended")
        assert told.all == ["others have changed rules in TC", told.all[1], "mended"] and "not today" in told.all[1]
        assert one.figures()["repairs"] == 1


def test_more_rules_leave_connections_where_they_are():
    tc = Tc()
    with following(tc) as (one, _, told):
        one.take(rules(ONE + OTHER.splitlines()[-1] + "\n"))
        until(lambda: tc.prios == [1, 2, 3] and one.figures()["changes"] == 1)
        assert told.all == []


def test_what_an_interface_had_goes_where_other_rules_do_not_name_it():
    tc = Tc()
    tc.devices["eth1"] = 8
    with following(tc) as (one, _, _told):
        one.take(rules(ONE.replace("eth0", "eth1")))
        until(lambda: {key[0] for key in tc.rules} == {Hook("eth1")})
    assert tc.rules == {} and tc.qdiscs == {}


# --- others -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (Change(DELETE_FILTER, ETH0, 1, 1, 2, 2), lambda tc: tc.lose(2)),
        (Change(DELETE_QDISC, ETH0, 1), Tc.flush),
        (None, Tc.flush),
    ],
    ids=["filter", "qdisc", "overrun"],
)
def test_what_others_take_away_is_put_back(change, what, caplog):
    tc = Tc()
    with following(tc) as (one, heard, told):
        what(tc)
        heard.say(*([change] if change else []), overrun=change is None)
        until(lambda: told.all[-1:] == ["mended"])
        assert told.all == ["others have changed rules in TC", "mended"] and tc.prios == [1, 2] and one.figures()["repairs"] == 1
    assert any("rules in TC were changed by others" in record.getMessage() for record in caplog.records)


def test_what_others_do_elsewhere_or_with_their_own_is_no_matter():
    tc = Tc()
    with following(tc) as (one, heard, told):
        looks = tc.looks
        heard.say(Change(DELETE_FILTER, 99, 1, 0, 1, 1))
        heard.say(Change(DELETE_FILTER, ETH0, 1, 0, 40, 1))
        until(lambda: tc.looks > looks)
        assert told.all == [] and one.figures()["repairs"] == 0


def test_a_foreign_filter_in_the_place_of_ours_is_left_and_told():
    tc = Tc()
    with following(tc) as (_, heard, told):
        key, mine = next((key, each) for key, each in tc.rules.items() if key[2] == 2)
        tc.rules[key] = installed(mine.rule, b"theirs")
        heard.say(Change(DELETE_FILTER, ETH0, 1, 1, 2, 2))
        until(lambda: told.all)
        assert "which is not ours" in told.all[0] and tc.rules[key].counted[0].cookie == b"theirs"


@pytest.mark.parametrize(("action", "cookie"), [(DROP, b""), (PASS, b""), (DROP, MARK)], ids=["other", "unmarked", "marked"])
def test_a_rule_that_others_replace_is_put_back(action, cookie, caplog):
    tc = Tc()
    with following(tc) as (one, heard, told):
        heard.say(tc.overwrite(2, action, cookie))
        until(lambda: told.all[-1:] == ["mended"])
        assert told.all == ["others have changed rules in TC", "mended"] and one.figures()["repairs"] == one.figures()["heard"] == 1
        ((mine,),) = ([each for key, each in tc.rules.items() if key[2] == 2],)
        assert mine.rule.actions == (Gact(PASS),) and ours(mine)
    assert any("changed by others: 1 rule put back, 0 other steps" in record.getMessage() for record in caplog.records) and tc.rules == {}


@pytest.mark.parametrize("lost", ["deleted", "overrun"])
def test_what_has_the_name_of_ours_and_may_be_another_one_is_left(lost):
    """Others have deleted ours before; or nobody knows whether they have."""
    tc = Tc()
    with following(tc) as (_, heard, told):
        made = tc.overwrite(2)
        heard.say(*([made._replace(kind=DELETE_FILTER)] if lost == "deleted" else []), made, overrun=lost == "overrun")
        until(lambda: told.all)
        assert "which is not ours" in told.all[0] and [ours(each) for key, each in tc.rules.items() if key[2] == 2] == [False]


def test_a_filter_of_others_ahead_of_ours_is_told_once_and_left(caplog):
    tc = Tc()
    with following(tc) as (one, heard, told):
        (theirs,) = rules(HEAD + LINE.format(1, 1, "sctp", "drop")).rules
        tc.rules[name(theirs)] = installed(theirs, b"theirs")
        for looks in (1, 2):
            heard.say(Change(NEW_FILTER, ETH0, INGRESS_PARENT, 1, 1, 1))
            until(lambda looks=looks: one.figures()["heard"] == looks and one.figures()["ahead"] == 1)
        assert one.ask(found_of_rules) == [Finding(Drift.FILTER_FOREIGN, f"{rule_line(theirs)}: {AHEAD}")]
        assert told.all == [] and name(theirs) in tc.rules and one.figures()["whole"] == 1
        del tc.rules[name(theirs)]
        heard.say(Change(DELETE_FILTER, ETH0, INGRESS_PARENT, 1, 1, 1))
        until(lambda: one.figures()["ahead"] == 0)
    (line,) = (record.getMessage() for record in caplog.records if "not ours" in record.getMessage())
    assert "ip_proto sctp action drop" in line


def test_a_look_that_took_long_does_not_keep_the_next_one_or_the_end_waiting():
    tc = Tc()
    begun = time.monotonic()
    with following(tc) as (one, heard, told):
        one._took = 60.0
        tc.flush()
        heard.say(Change(DELETE_QDISC, ETH0, 1))
        until(lambda: told.all[-1:] == ["mended"])
    assert time.monotonic() - begun < 5


def test_what_is_asked_of_a_thread_that_has_ended_is_refused():
    tc = Tc()
    with following(tc) as (one, _, _told):
        assert one.ask(found_of_rules) == []
        with pytest.raises(ZeroDivisionError):
            one.ask(lambda rules, kernel: 1 // 0)
        tc.lose(2)
        assert [finding.what for finding in one.ask(found_of_rules)] == [Drift.FILTER_MISSING]
    with pytest.raises(CtmirrorError, match="not looked after any more"):
        one.ask(found_of_rules)


def test_a_kernel_that_does_not_answer_is_asked_again():
    tc = Tc()
    with following(tc) as (_, heard, told):
        tc.fails = 2
        tc.flush()
        heard.say(Change(DELETE_QDISC, ETH0, 1))
        until(lambda: told.all[-1:] == ["mended"])
        assert told.all[0] == "netlink: no answer within 30 s" and tc.prios == [1, 2]


def test_connections_are_software_s_before_anything_is_put_back_and_until_all_is_there():
    tc = Tc()
    with following(tc) as (_, heard, told):
        tc.lose(2)
        heard.say(Change(DELETE_FILTER, ETH0, 1, 1, 2, 2))
        until(lambda: told.all[-1:] == ["mended"])
        assert told.there == [[1], [1, 2]]


def test_connections_are_software_s_before_a_thread_that_dies_takes_the_rules_away():
    tc = Tc()
    with following(tc) as (_, heard, told):
        heard.changes = lambda: [][1]
        heard.say(Change(DELETE_FILTER, ETH0, 1, 1, 2, 2))
        until(lambda: tc.closed)
        assert told.there == [[1, 2]] and tc.rules == {}


def test_nobody_else_s_file_is_rung_when_a_thread_has_ended():
    """A descriptor that is closed is the next file's number."""
    tc = Tc()
    with following(tc) as (one, heard, _):
        heard.changes = lambda: [][1]
        heard.say(Change(DELETE_FILTER, ETH0, 1, 1, 2, 2))
        until(lambda: tc.closed and not one._thread.is_alive())
        others = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(16)]
        one.take(rules(OTHER))
        for other in others:
            with pytest.raises(BlockingIOError):
                os.eventfd_read(other)
            os.close(other)


def test_a_thread_that_dies_says_so_and_makes_connections_software_s(caplog):
    tc = Tc()
    with following(tc) as (_, heard, told):
        tc.look_again = lambda: [][1]
        heard.say(Change(DELETE_QDISC, ETH0, 1))
        until(lambda: told.all)
        assert told.all == ["rules in TC are not looked after any more: list index out of range"]
    assert any("the thread of rules in TC has ended" in record.getMessage() for record in caplog.records)
