"""`ct` actions: packets that are on their way at the same time, what happens between two actions, and what cannot be asked for.

Not here: one packet after the other (test_act).
"""

from __future__ import annotations

import pytest

from ctcore.ct_action import BARE_NAT, NO_ASSOCIATION, CtAction
from datapath import craft
from datapath.frame import frames_of
from datapath.wire import parse_batch
from pcap_tests.acting import Walker
from pcap_tests.scene import CLIENT, SERVER, established
from pcap_tests.scene import udp as udp_exchange


@pytest.fixture
def net(tracker):
    return Walker(tracker)


def question() -> bytes:
    return craft.udp(CLIENT, SERVER, 40000, 53)


def answer() -> bytes:
    return craft.udp(SERVER, CLIENT, 53, 40000)


# --- several packets at a time -----------------------------------------------------------------------------------------------------------


def test_two_packets_of_one_connection_that_is_not_there_yet(net):
    """Both are looked up before either is committed: the second commit finds the first one's connection."""
    first, second = net.take(question()), net.take(question())
    first.ct().is_("new", conn=None)
    second.ct().is_("new", conn=None)
    second.ct(commit=True).is_("new", conn=0)
    first.ct(commit=True).is_("new", conn=0)
    first.over()
    second.over()
    assert net.ordinals() == [0] and net.entry(0)["flow"]["packets"].tolist() == [2, 0]


def test_what_is_not_there_yet_is_looked_for_again_for_translation(make_tracker):
    """Not only by a commit."""
    net = Walker(make_tracker(nat_actions=True))
    first = net.take(question())
    first.ct(zone=4).is_("new", conn=None)
    net.look(question(), zone=4, commit=True, mark=(6, 0xFF)).is_("new", conn=0)
    first.ct(zone=4).is_("new", conn=None, mark=0)
    first.ct(zone=4, nat=BARE_NAT).is_("new", conn=0, mark=6)
    first.over()


def test_a_tuple_that_another_has_is_a_clash(make_tracker):
    """Answered at one address out of two zones, of which the answers know nothing."""
    net = Walker(make_tracker(zone_dir="original"))
    net.look(question(), zone=1, commit=True).is_("new", conn=0)
    did = net.look(question(), zone=2, commit=True)
    assert not did.goes_on
    did.is_("not-seen", reason="clash", verdict="drop", conn=None)
    net.look(question(), zone=2).is_("new", conn=None, verdict="accept")
    assert net.tracker.counters()["insert_failed"] == 1 and net.ordinals() == [0]


def test_a_connection_that_somebody_else_ends_meanwhile(net):
    """Then the packet has none, and is looked up anew."""
    net.send(question())
    packet = net.take(answer())
    packet.ct().is_("established", conn=0)
    net.tracker.flush()
    packet.ct().is_("new", conn=None, dir="original")
    packet.over()


def test_a_slot_that_another_connection_has_got_meanwhile(net):
    """It is not taken for the old one."""
    net.send(question())
    packet = net.take(answer())
    packet.ct().is_("established", conn=0)
    net.tracker.flush()
    net.send(craft.udp(CLIENT, SERVER, 40001, 53)).is_("new", conn=1)
    packet.ct(commit=True, mark=(1, 1)).is_("new", conn=2, dir="original", mark=1)
    packet.over()
    assert net.entry(1)["mark"] == 0


def test_time_ends_a_connection_between_two_actions(net):
    net.send(question())
    packet = net.take(answer())
    packet.ct().is_("established", conn=0)
    net.wait(31)
    packet.ct().is_("new", conn=None)
    packet.over()


def test_time_passes_between_packets(net):
    net.send(question())
    net.wait(31)
    net.look(answer()).is_("new", dir="original", conn=None)
    assert net.ordinals() == []


def test_actions_and_batches_may_be_mixed(net):
    conn = established(net.tracker)
    net.look(craft.tcp(SERVER, CLIENT, 80, 40000, "A", seq=501, ack=101), commit=True, mark=(2, 3)).is_("established", conn=0, dir="reply", mark=2)
    conn.orig("PA", payload=b"hello").is_("established", conn=0, mark=2)
    net.look(question(), commit=True)
    udp_exchange(net.tracker).reply().is_("established", conn=1, dir="reply")


# --- mistakes ----------------------------------------------------------------------------------------------------------------------------


def one(net: Walker, *frames: bytes):
    return parse_batch(*frames_of(list(frames), ts=net.now))


def test_one_packet_at_a_time(net):
    for frames in ((), (question(), answer())):
        with pytest.raises(ValueError, match="expected one"):
            net.tracker.act(one(net, *frames), CtAction())


def test_a_batch_passes_once(net):
    batch = one(net, question())
    net.tracker.act(batch, CtAction())
    with pytest.raises(ValueError):
        net.tracker.act(batch, CtAction())


def test_what_is_spent_is_spent(net):
    packet = net.take(question())
    carried = packet.ct().association
    packet.over()
    for misuse in (lambda: net.tracker.leave(carried), lambda: net.tracker.act(one(net, question()), CtAction(), carried)):
        with pytest.raises(ValueError, match="association"):
            misuse()
    net.tracker.leave(NO_ASSOCIATION)


def test_what_was_discarded_is_spent(net):
    packet = net.take(question())
    old = packet.ct().association
    packet.ct(commit=True)
    with pytest.raises(ValueError, match="association"):
        net.tracker.leave(old)
    packet.over()


def test_an_association_of_another_tracker(make_tracker):
    ours, theirs = Walker(make_tracker()), Walker(make_tracker())
    packet = ours.take(question())
    carried = packet.ct().association
    with pytest.raises(ValueError, match="association"):
        theirs.tracker.act(one(theirs, question()), CtAction(), carried)
    packet.over()


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"zone": 65536}, "zone"),
        ({"mark": (1 << 32, 1)}, "mark"),
        ({"label": (1, 1 << 128)}, "label"),
        ({"nat": 0}, "nat_actions"),
        ({"helper": "ftp"}, "helper_actions"),
        ({"helper": "smtp"}, "helper"),
    ],
)
def test_actions_that_cannot_be(net, action, message):
    before = net.known()
    batch = one(net, question())
    with pytest.raises(ValueError, match=message):
        net.tracker.act(batch, CtAction(commit=True, **action))
    assert net.known() == before
    net.tracker.act(batch, CtAction(commit=True))
