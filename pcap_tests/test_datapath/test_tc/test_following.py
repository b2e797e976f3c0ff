"""A node's rules in TC as long as it runs, against a kernel that is none: installed or not at all, followed, put back, taken away. With a real one:
pcap_tests/vm/test_vm_node_rules."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

from ctcore.errors import CtmirrorError
from datapath.commands.offload_drift import found_of_rules
from datapath.commands.tc.ask import Refusal
from datapath.commands.tc.encode import PARENTS
from datapath.commands.tc.following import KernelRules, Unfit
from datapath.commands.tc.install import AHEAD, MARK, marked, name, ours
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import DROP, PASS, Control, Gact, Hook, Rule, Ruleset
from datapath.pipeline.rules_file import parse
from datapath.pipeline.tc_print import rule_line
from offload.drift import Drift, Finding
from offload.netlink.channel import NetlinkError
from offload.netlink.extack import Answer
from offload.netlink.filters import DELETE_FILTER, DELETE_QDISC, INGRESS_PARENT, NEW_FILTER, Where
from offload.netlink.links import NEW_LINK
from offload.netlink.monitor import DELETE_LINK, Change
from pcap_tests.test_datapath.test_tc.test_install import Kernel, installed

HEAD = "tc qdisc add dev eth0 clsact\n"
LINE = "tc filter add dev eth0 ingress protocol ip prio {0} chain {1} handle {0} flower ip_proto {2} action {3}\n"
ONE = HEAD + LINE.format(1, 0, "tcp", "goto chain 1") + LINE.format(2, 1, "tcp", "pass")
OTHER = HEAD + LINE.format(1, 0, "udp", "goto chain 1") + LINE.format(3, 1, "udp", "drop")
THROUGH = HEAD + LINE.format(1, 0, "tcp", "mirred egress redirect dev vf0") + LINE.format(2, 0, "udp", "pass")
ETH0, VF0 = 7, 9


def rules(text: str) -> Ruleset:
    return parse(text, "rules.tc", Findings())


class Tc(Kernel):
    """With interfaces, and a mind of its own: refuses rules whose prio is in `refuses`, and fails as often as `fails` says."""

    def __init__(self, *foreign: Rule) -> None:
        super().__init__(*foreign)
        self.devices = {"eth0": ETH0}
        self.down: set[str] = set()
        self.encoder = SimpleNamespace(where=lambda hook: Where(self.numbers[hook.device], PARENTS[hook.direction]))
        self.numbers: dict[str, int] = {}
        self.refuses: set[int] = set()
        self.fails = 0
        self.looks = 0
        self.channel = SimpleNamespace(close=lambda: setattr(self, "closed", True))
        self.closed = False

    def look_again(self) -> None:
        self.numbers.clear()
        self.numbers |= self.devices

    def running(self) -> dict[str, bool]:
        return {device: device not in self.down for device in self.devices}

    def listed(self, hooks):
        self.looks += 1
        if self.fails:
            self.fails -= 1
            raise NetlinkError("netlink: no answer within 30 s")
        return super().listed(hooks)

    def each(self, parts, do="add") -> list[Refusal]:
        refused = []
        for part in parts:
            if do != "delete" and isinstance(part, Rule) and part.prio in self.refuses:
                refused.append(Refusal(part, Answer(errno.EOPNOTSUPP, "not today")))
            else:
                super().each([part], do)
        return refused

    def overwrite(self, prio: int, action: Control = DROP, cookie: bytes = b"") -> Change:
        """As `tc filter replace` of somebody; what the kernel tells of it."""
        key, old = next((key, each) for key, each in self.rules.items() if key[2] == prio)
        self.rules[key] = installed(replace(old.rule, actions=(Gact(action),)), cookie)
        return Change(NEW_FILTER, ETH0, INGRESS_PARENT, key[1], prio, key[4])

    def lose_device(self, device: str) -> Change:
        """It is gone with all that it had; what the kernel tells of it."""
        self.unregister(device)
        return Change(DELETE_LINK, self.devices.pop(device))

    def lose(self, prio: int) -> None:
        self.rules = {key: each for key, each in self.rules.items() if key[2] != prio}

    def flush(self) -> None:
        self.rules.clear()
        self.qdiscs.clear()

    @property
    def prios(self) -> list[int]:
        return sorted(key[2] for key in self.rules)


class Heard:
    """A monitor that hears what a test says."""

    def __init__(self) -> None:
        ours, self.theirs = os.pipe()
        self.socket = os.fdopen(ours, "rb", buffering=0)
        os.set_blocking(self.socket.fileno(), False)
        self.waiting: list[Change] = []
        self.overrun = False

    def say(self, *changes: Change, overrun: bool = False) -> None:
        self.waiting += changes
        self.overrun |= overrun
        os.write(self.theirs, b".")

    def changes(self) -> Iterator[Change]:
        self.socket.read(100)
        found, self.waiting = self.waiting, []
        yield from found

    def close(self) -> None:
        self.socket.close()
        os.close(self.theirs)


class Told:
    """What connections are told; there: the priorities of rules that were there each time."""

    def __init__(self, tc: Tc) -> None:
        self.tc = tc
        self.all: list[str] = []
        self.there: list[list[int]] = []

    def broken(self, why: str) -> None:
        self.there.append(self.tc.prios)
        self.all.append(why)

    def mended(self) -> None:
        self.there.append(self.tc.prios)
        self.all.append("mended")


@contextmanager
def following(tc: Tc, text: str = ONE, **more) -> Iterator[tuple[KernelRules, Heard, Told]]:
    heard, told = Heard(), Told(tc)
    one = KernelRules(tc, heard, rules(text), broken=told.broken, mended=told.mended, pause=0.02, **more)
    one.start()
    try:
        yield one, heard, told
    finally:
        one.close()
    assert tc.closed


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.002)


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


def test_what_hardware_does_not_take_is_told():
    tc = Tc()
    with pytest.raises(Unfit, match=r"prio 1 .*: not in hardware"):
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


def test_an_interface_that_goes_is_waited_for():
    tc = Tc()
    with following(tc) as (one, heard, told):
        tc.flush()
        tc.devices = {}
        heard.say(Change(DELETE_LINK, ETH0))
        until(lambda: told.all)
        assert told.all == ["no interface eth0"]
        tc.devices = {"eth0": 12}
        until(lambda: told.all[-1] == "mended")
        assert tc.prios == [1, 2] and one.figures()["repairs"] == 1


@pytest.mark.parametrize("back", [True, False], ids=["back", "gone"])
def test_a_device_that_rules_only_send_packets_to_is_waited_for_too(back):
    """The kernel keeps these rules, which go nowhere, and tells of no filter."""
    tc = Tc()
    tc.devices["vf0"] = VF0
    with following(tc, THROUGH) as (one, heard, told):
        heard.say(tc.lose_device("vf0"))
        until(lambda: told.all)
        assert told.all == ["no interface vf0"] and one.figures()["whole"] == 0
        if back:
            tc.devices["vf0"] = VF0 + 1
            heard.say(Change(NEW_LINK, VF0 + 1))
            until(lambda: told.all[-1] == "mended")
            assert one.ask(found_of_rules) == [] and one.figures()["repairs"] == 1
    assert tc.rules == {} and tc.qdiscs == {}


def test_while_a_device_is_gone_what_is_done_to_filters_of_others_is_no_matter():
    """Only that interfaces come is."""
    tc = Tc()
    tc.devices["vf0"] = VF0
    with following(tc, THROUGH) as (one, heard, told):
        heard.say(tc.lose_device("vf0"))
        until(lambda: told.all)
        before = one.figures()["heard"]
        heard.say(Change(NEW_FILTER, 77, INGRESS_PARENT, 0, 1, 1), Change(DELETE_QDISC, 77, 1))
        until(lambda: not heard.waiting)
        one.ask(found_of_rules)
        assert one.figures()["heard"] == before == 1
        heard.say(Change(NEW_LINK, 78))
        until(lambda: one.figures()["heard"] == 2)


def test_devices_that_cannot_be_listed_just_now_are_no_matter_of_rules(caplog):
    tc = Tc()

    def not_now() -> dict[str, bool]:
        raise NetlinkError("netlink: what is listed changed meanwhile")

    with following(tc) as (_, heard, told):
        tc.running = not_now
        tc.lose(2)
        heard.say(Change(DELETE_FILTER, ETH0, 1, 1, 2, 2))
        until(lambda: told.all[-1:] == ["mended"])
        assert tc.prios == [1, 2] and told.all == ["others have changed rules in TC", "mended"]
    assert any("devices cannot be looked at: netlink: what is listed changed meanwhile" in record.getMessage() for record in caplog.records)


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


def test_a_device_that_is_down_is_told_and_so_is_that_it_is_up_again(caplog):
    caplog.set_level("INFO")
    tc = Tc()
    with following(tc) as (one, heard, told):
        for down in ({"eth0"}, set()):
            tc.down = down
            heard.say(Change(NEW_LINK, ETH0), Change(NEW_LINK, ETH0))
            until(lambda down=down: set(one.idle.idle) == down)
            assert one.ask(found_of_rules) == list(one.idle.findings())
        assert told.all == [] and one.figures()["repairs"] == 0
    said = [record.getMessage() for record in caplog.records if "eth0" in record.getMessage()]
    assert said == ["offload: eth0 is down: no packet comes through it", "offload: eth0 is up again"]


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
