"""Devices of a node's rules in TC that go, come back and are down, against a kernel that is none. With a real one: pcap_tests/vm/test_vm_node."""

from __future__ import annotations

import pytest

from datapath.commands.offload_drift import found_of_rules
from offload.netlink.channel import NetlinkError
from offload.netlink.filters import DELETE_FILTER, DELETE_QDISC, INGRESS_PARENT, NEW_FILTER
from offload.netlink.links import NEW_LINK
from offload.netlink.monitor import DELETE_LINK, Change
from pcap_tests.test_datapath.test_tc.followed import ETH0, THROUGH, VF0, Tc, following, until


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


def test_a_device_that_goes_while_somebody_asks_is_noticed():
    """Whoever asks has interfaces looked at, and by then its number is nobody's."""
    tc = Tc()
    tc.devices["vf0"] = VF0
    with following(tc, THROUGH) as (one, heard, told):
        change = tc.lose_device("vf0")
        one.ask(found_of_rules)
        assert told.all == []
        heard.say(change)
        until(lambda: told.all)
        assert told.all == ["no interface vf0"]


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
