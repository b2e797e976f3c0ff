"""A state that is saved while connections are in the flow table: they come back as a flush would leave them, and nothing changes by saving."""

from __future__ import annotations

import pytest

from ctcore.tracker import Tracker
from datapath.flowtable import Flows
from pcap_tests.test_datapath.tabled import COMMITS, IN, OUT, Net, Tcp, assured_udp


def tcp(net: Net) -> None:
    talk = Tcp(net)
    talk.say(IN, "S")
    talk.say(OUT, "SA")
    talk.say(IN)
    talk.say(OUT, "PA", b"hello")


@pytest.mark.parametrize("talk", [tcp, assured_udp])
def test_saved_as_if_handed_back(talk) -> None:
    net = Net(COMMITS)
    talk(net)
    net.wait(10)
    net.tracker.expire(net.now)
    assert net.offloaded()
    state = net.tracker.save()
    assert net.offloaded(), "nothing changes by it"
    after = Tracker(net.tracker.config)
    after.restore(state)
    after.check()
    net.flows.flush()
    assert after.conns().tobytes() == net.tracker.conns().tobytes()


def test_and_come_into_the_next_flow_table_with_their_next_packet() -> None:
    net = Net(COMMITS)
    talk = Tcp(net)
    talk.say(IN, "S")
    talk.say(OUT, "SA")
    talk.say(IN)
    after = Net(COMMITS)
    after.tracker.restore(net.tracker.save())
    assert isinstance(after.flows, Flows) and after.flows.count == 0
    talk.net = after
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert after.flows.count == 1
