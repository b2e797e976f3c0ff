"""Packets are let by to a backend as long as it has their direction, and no moment longer, whatever goes wrong."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from offload.bypassed import Bypassed
from offload.records import COMMAND_DTYPE, Op
from pcap_tests.test_offload.fake_nic import FakeNic


class Map:
    """A bypass. order: what was done to it and to the backend, in order."""

    def __init__(self, room: int, order: list[str]) -> None:
        self.keys: set[bytes] = set()
        self.room, self.order = room, order

    def put(self, keys):
        self.order += ["put"] * len(keys)
        errors = []
        for key in keys:
            error = errno.EBUSY if key in self.keys else errno.ENOSPC if len(self.keys) >= self.room else 0
            if not error:
                self.keys.add(key)
            errors.append(error)
        return errors

    def remove(self, keys):
        self.order += ["remove"] * len(keys)
        self.keys -= set(keys)

    def shut(self):
        self.keys.clear()

    def open(self):
        pass


class Exact(FakeNic):
    """Filters in the kernel."""

    closed = False

    def __init__(self, order: list[str]) -> None:
        super().__init__()
        self.order = order
        self.emptying = lambda: None

    def reset(self):
        """Some have been lost, so all are taken away."""
        self.emptying()
        self.order.append("empty")
        super().reset()

    def carry_out(self, command):
        self.order.append(Op(command["op"]).name.lower())
        return super().carry_out(command)

    def refusal(self, conn):
        return "the kernel's"

    def close(self):
        self.order.append("close")


class Rig:
    def __init__(self, room: int = 100) -> None:
        self.order: list[str] = []
        self.map, self.exact = Map(room, self.order), Exact(self.order)
        self.both = Bypassed(self.exact, self.map)

    def ask(self, *commands) -> list[tuple[int, int]]:
        """(cookie, error) of what is answered."""
        rows = np.concatenate(commands)
        assert self.both.submit(rows, 0) == len(rows)
        return [(int(row["cookie"]), int(row["error"])) for row in self.both.replies(0)]


def command(op: Op, cookie: int, port: int = 0, zone: int = 0) -> np.ndarray:
    row = np.zeros(1, dtype=COMMAND_DTYPE)
    row["cookie"], row["op"], row["conn"] = cookie, op, cookie >> 1
    match = row["match"]
    match["src"][0, :4], match["dst"][0, :4] = [10, 0, 0, 1], [10, 0, 0, 2]
    match["sport"], match["dport"], match["proto"], match["family"], match["zone"] = port or cookie, 80, 6, 4, zone
    return row


def test_a_direction_is_let_by_from_its_answer_on_until_it_is_to_go():
    rig = Rig()
    assert rig.ask(command(Op.REPLACE, 2), command(Op.REPLACE, 3)) == [(2, 0), (3, 0)]
    assert rig.map.keys == {
        bytes([10, 0, 0, 1]) + bytes(12) + bytes([10, 0, 0, 2]) + bytes(12) + bytes([0, port, 0, 80, 6, 4, 0, 0]) for port in (2, 3)
    }
    rig.ask(command(Op.DESTROY, 2))
    assert len(rig.map.keys) == 1 and rig.order == ["replace", "replace", "put", "put", "remove", "destroy"]


def test_what_the_backend_refuses_is_not_let_by():
    rig = Rig()
    rig.exact.capacity = 1
    assert rig.ask(command(Op.REPLACE, 2), command(Op.REPLACE, 4)) == [(2, 0), (4, errno.ENOSPC)]
    assert len(rig.map.keys) == 1 and rig.both.refusal(2) == "the kernel's"


def test_what_the_backend_does_not_take_is_not_waited_for():
    """It is asked once more, or never."""
    rig = Rig()
    rig.exact.intake = 1
    rows = np.concatenate([command(Op.REPLACE, 2), command(Op.REPLACE, 4)])
    assert rig.both.submit(rows, 0) == 1 and len(rig.both.replies(0)) == 1 and len(rig.map.keys) == 1
    assert rig.both._asked == {}
    assert rig.both.submit(rows[1:], 0) == 1 and len(rig.both.replies(0)) == 1 and len(rig.map.keys) == 2


def test_one_that_is_there_already_is_let_by_once():
    rig = Rig()
    rig.ask(command(Op.REPLACE, 2))
    assert rig.ask(command(Op.REPLACE, 2)) == [(2, errno.EEXIST)] and len(rig.map.keys) == 1 and rig.order.count("put") == 1


def test_what_is_told_is_what_is_in_the_way_now():
    """First the map was full, then the kernel is."""
    rig = Rig(1)
    rig.ask(command(Op.REPLACE, 2, port=7))
    assert rig.ask(command(Op.REPLACE, 4, port=8)) == [(4, errno.ENOSPC)] and "no room among" in rig.both.refusal(2)
    rig.exact.capacity = 1
    assert rig.ask(command(Op.REPLACE, 4, port=8)) == [(4, errno.ENOSPC)] and rig.both.refusal(2) == "the kernel's"


@pytest.mark.parametrize(
    ("room", "error", "said"),
    [(100, errno.EOPNOTSUPP, "a connection of another zone has the same addresses"), (1, errno.ENOSPC, "no room among what is let by")],
)
def test_what_cannot_be_let_by_is_taken_out_again_and_refused(room, error, said):
    rig = Rig(room)
    rig.ask(command(Op.REPLACE, 2, port=7))
    other = command(Op.REPLACE, 4, port=7 if room > 1 else 8, zone=5)
    assert rig.ask(other) == [(4, error)] and said in rig.both.refusal(2)
    assert len(rig.both.replies(0)) == 0, "that it was taken out again is nobody's business"
    assert list(rig.exact.rules) == [2] and len(rig.map.keys) == 1
    if room > 1:
        rig.ask(command(Op.DESTROY, 2))
        assert rig.ask(other) == [(4, 0)] and rig.both.refusal(2) == "the kernel's"


def test_after_a_reset_nothing_is_let_by():
    rig = Rig()
    rig.ask(command(Op.REPLACE, 2), command(Op.REPLACE, 3))
    rig.exact.reset()
    rig.both.replies(0)
    assert not rig.map.keys and rig.both.resets == 1 and rig.order[-3:] == ["remove", "remove", "empty"], "while filters are there still"
    assert rig.ask(command(Op.REPLACE, 2)) == [(2, 0)] and len(rig.map.keys) == 1


def test_one_that_is_asked_for_and_taken_back_at_once_is_not_let_by():
    rig = Rig()
    assert rig.ask(command(Op.REPLACE, 2), command(Op.DESTROY, 2)) == [(2, 0), (2, 0)]
    assert not rig.map.keys and rig.order == ["replace", "destroy"]
    assert rig.ask(command(Op.REPLACE, 2), command(Op.DESTROY, 2), command(Op.REPLACE, 2)) == [(2, 0)] * 3 and len(rig.map.keys) == 1


def test_one_whose_removal_was_asked_for_is_not_let_by_when_its_answer_comes_later():
    rig = Rig()
    rig.exact.latency = 5
    for op in (Op.REPLACE, Op.DESTROY):
        rig.both.submit(command(op, 2), 0)
    assert [int(row["op"]) for row in rig.both.replies(5)] == [Op.REPLACE, Op.DESTROY]
    assert not rig.map.keys and rig.order == ["replace", "destroy"]


def test_one_that_others_delete_before_its_answer_is_taken_is_not_let_by():
    rig = Rig()
    rig.ask(command(Op.REPLACE, 4))
    rig.both.submit(command(Op.REPLACE, 2), 0)
    whole = rig.exact.replies

    def replies(now):
        rows = whole(now)
        if 2 in rig.exact.rules:
            rig.exact.take_away(2)
            rows = np.concatenate([rows, whole(now)])
        return rows

    rig.exact.replies = replies
    assert [(int(row["cookie"]), Op(row["op"])) for row in rig.both.replies(0)] == [(2, Op.REPLACE), (2, Op.GONE)]
    assert [key[33] for key in rig.map.keys] == [4]


def test_a_bypass_that_is_shut_refuses_and_the_filter_goes():
    rig = Rig()
    rig.map.put = lambda keys: [errno.ESHUTDOWN] * len(keys)
    assert rig.ask(command(Op.REPLACE, 2)) == [(2, errno.ESHUTDOWN)] and "its packets cannot be let by" in rig.both.refusal(1)
    assert len(rig.both.replies(0)) == 0 and not rig.exact.rules


def test_filters_that_others_delete_or_replace_one_by_one_are_not_let_by_any_more():
    rig = Rig()
    rig.ask(command(Op.REPLACE, 2), command(Op.REPLACE, 3))
    rig.exact.take_away(2)
    (gone,) = rig.both.replies(0)
    assert (gone["cookie"], gone["op"], [key[33] for key in rig.map.keys]) == (2, Op.GONE, [3])
    assert rig.order[-1] == "remove" and len(rig.both.replies(0)) == 0, "what is not ours is not deleted"
    assert rig.ask(command(Op.REPLACE, 2)) == [(2, 0)] and len(rig.map.keys) == 2


def test_one_that_is_found_missing_is_not_let_by_any_more():
    rig = Rig()
    rig.ask(command(Op.REPLACE, 2))
    rig.exact.rules.clear()
    assert rig.ask(command(Op.STATS, 2)) == [(2, errno.ENOENT)] and not rig.map.keys


def test_at_the_end_nothing_is_let_by_before_filters_go():
    rig = Rig()
    rig.ask(command(Op.REPLACE, 2))
    rig.both.close()
    assert not rig.map.keys and rig.order[-2:] == ["remove", "close"]


def test_at_the_end_filters_go_also_if_the_bypass_fails():
    rig = Rig()
    rig.ask(command(Op.REPLACE, 2))

    def fail(keys):
        raise OSError(errno.EPERM, "not permitted")

    rig.map.remove = fail
    with pytest.raises(OSError, match="not permitted"):
        rig.both.close()
    assert rig.order[-1] == "close"
