"""Somebody else's connections entered: what is checked, what is learnt anew, and that they live as all others do."""

from __future__ import annotations

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.nat_rules import HelperRule
from ctcore.tracker import Tracker
from ctcore.types import Status, TcpFlag
from datapath import craft
from pcap_tests.scene import CLIENT, SERVER
from pcap_tests.test_ctcore.test_state import say, talk

PLAIN = Config(max=100)


def foreign() -> np.ndarray:
    tracker = Tracker(PLAIN)
    talk(tracker, 80, (0, b"hello"), (1, b"world"))
    say(tracker, craft.udp(CLIENT, SERVER, 1000, 53), craft.sctp(CLIENT, SERVER, 5, 6, 0, craft.sctp_init(7)))
    return tracker.conns()


def adopting(conns: np.ndarray, config: Config = PLAIN) -> tuple[Tracker, int, dict[str, int]]:
    tracker = Tracker(config)
    say(tracker, craft.udp("10.9.9.9", SERVER, 1, 2))
    taken, out = tracker.adopt(conns)
    tracker.check()
    return tracker, taken, out


def test_all_are_entered_with_ordinals_of_their_own():
    conns = foreign()
    tracker, taken, out = adopting(conns)
    ours = tracker.conns()[1:]
    assert (taken, out) == (3, {}) and ours["flow"]["id"][:, 0].tolist() == [1, 2, 3]
    for name in ("timeout", "mark", "start"):
        assert ours[name].tolist() == conns[name].tolist()
    assert (ours["flow"]["key"] == conns["flow"]["key"]).all() and tracker.counters()["new"] == 1


def test_windows_are_learnt_anew_and_judged_liberally():
    tracker, *_ = adopting(foreign())
    conn = tracker.conn(1)[0]
    assert conn["tcp"]["side"]["maxwin"].tolist() == [0, 0] and all(flags & TcpFlag.TF_BE_LIBERAL for flags in conn["tcp"]["flags"])
    there = craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=9_000_000, ack=5_000_000)
    back = craft.tcp(SERVER, CLIENT, 80, 40000, "A", seq=5_000_000, ack=9_000_000)
    said = say(tracker, there, back)
    assert said["conn"].tolist() == [1, 1] and said["state"].tolist() == [2, 2]


def test_tuples_that_are_taken_are_left_out():
    conns = foreign()
    tracker, *_ = adopting(conns)
    assert tracker.adopt(conns) == (0, {"its tuple is another one's": 3})
    tracker.check()


def test_no_more_than_there_are_places_and_nobody_has_to_leave():
    tracker, taken, out = adopting(foreign(), Config(max=2))
    assert (taken, out, tracker.count) == (1, {"no room in the table": 2}, 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["tcp"].__setitem__("state", 0), lambda c: c["tcp"].__setitem__("state", 10), lambda c: c["tcp"]["scale"].__setitem__(0, 15),
        lambda c: c.__setitem__("status", 0), lambda c: c.__setitem__("timeout", 1 << 31), lambda c: c["flow"][1]["key"].__setitem__("family", 6),
        lambda c: c["flow"][1]["key"].__setitem__("proto", 17), lambda c: c["flow"][1]["key"].__setitem__("zone", 3),
        lambda c: c.__setitem__("status", int(c["status"]) | Status.SRC_NAT), lambda c: c.__setitem__("status", int(c["status"]) | Status.SEQ_ADJUST),
    ],
)  # fmt: skip
def test_what_is_refused(change):
    conns = foreign()[:1].copy()
    change(conns[0])
    tracker, taken, out = adopting(conns)
    assert taken == 0 and sum(out.values()) == 1 and tracker.count == 1


def test_helpers_are_given_where_there_are_any():
    conns = foreign()
    conns["helper"][0] = 1
    conns["flow"]["key"]["dport"][0, 0] = conns["flow"]["key"]["sport"][0, 1] = 21
    helped, taken, _ = adopting(conns, Config(max=100, helpers=(HelperRule("ftp", 6, 21),)))
    assert taken == 3 and helped.conn(1)["helper"][0] == 1 and helped.conn(1)["status"][0] & Status.HELPER
    say(helped, craft.tcp(CLIENT, SERVER, 40000, 21, "PA", seq=1, ack=1, payload=b"NOOP\r\n"))
    say(helped, craft.tcp(CLIENT, SERVER, 40000, 21, "PA", seq=7, ack=1, payload=b"PORT 10,0,0,1,7,208\r\n"))
    assert len(helped.expectations()) == 1
    bare, taken, _ = adopting(conns)
    assert taken == 3 and bare.conn(1)["helper"][0] == 0 and not bare.conn(1)["status"][0] & Status.HELPER


def test_what_is_no_array_of_connections():
    with pytest.raises(ValueError, match="expected a CONN_DTYPE"):
        Tracker(PLAIN).adopt(np.zeros(3))
