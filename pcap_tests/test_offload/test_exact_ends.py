"""Exact filters that are taken away: what they had counted is told, what is not ours stays, and what does not go is said. Against a kernel that is
none; with a real one: pcap_tests/vm/test_vm_exact."""

from __future__ import annotations

import errno

import numpy as np
import pytest

from ctcore.errors import ConfigError
from offload import exact_rules
from offload.exact_rules import ExactRules
from offload.netlink.channel import NetlinkError
from offload.netlink.extack import LOST, Answer
from offload.netlink.filters import CLSACT_PARENT, DELETE_FILTER, DELETE_QDISC, DUMP, GET_FILTER, MESSAGE, TCMSG
from offload.netlink.monitor import Change
from offload.own_filters import TRIES
from offload.records import Op
from offload.threaded import SUSPENDED, Threaded
from pcap_tests.test_offload.commanded import Flow, S, asked, commands
from pcap_tests.test_offload.feigned_tc import LEFT, RIGHT, SIDES, FeignedTc, Filter, exact_in, feigned
from pcap_tests.test_offload.kept import QUICK, answered, last

ONE, TWO = Flow(1), Flow(2, dport=81)


@pytest.fixture
def tc() -> FeignedTc:
    return FeignedTc([])


@pytest.fixture
def backend(monkeypatch, tc) -> ExactRules:
    return exact_in(monkeypatch, tc)


def emptied(backend: ExactRules, now: int = 9 * S) -> dict[int, tuple[int, int]]:
    """Packets and bytes that are told with the end of each filter, by cookie."""
    for _ in backend.empty(now):
        pass
    return of(backend.replies(now))


def of(rows: np.ndarray) -> dict[int, tuple[int, int]]:
    assert (rows["op"] == Op.GONE).all()
    return {int(row["cookie"]): (int(row["packets"]), int(row["bytes"])) for row in rows}


# --- what was counted last ------------------------------------------------------------------------------------------------------------------


def test_with_the_end_it_is_told_what_came_since_the_last_time(tc, backend):
    asked(backend, Op.REPLACE, ONE, TWO)
    tc.hit(ONE.cookie(), 7, 700)
    asked(backend, Op.STATS, ONE)
    tc.hit(ONE.cookie(), 2, 120)
    tc.hit(TWO.cookie(1), 1, 60)
    assert emptied(backend) == {ONE.cookie(0): (2, 120), ONE.cookie(1): (0, 0), TWO.cookie(0): (0, 0), TWO.cookie(1): (1, 60)}
    assert (backend.left, tc.filters) == (0, {})


def test_a_flush_tells_what_those_had_counted_that_were_left(tc, backend):
    """Those that somebody has taken away say nothing; and then all begins anew."""
    asked(backend, Op.REPLACE, ONE)
    tc.hit(ONE.cookie(0), 3, 180)
    tc.hit(ONE.cookie(1), 4, 240)
    tc.filters = {place: each for place, each in tc.filters.items() if place[0] != LEFT}
    tc.heard = [Change(DELETE_QDISC, LEFT, CLSACT_PARENT)]
    assert of(backend.replies(S)) == {ONE.cookie(0): (0, 0), ONE.cookie(1): (4, 240)} and backend.resets == 0
    assert len(backend.replies(S)) == 0 and backend.resets == 1


@pytest.mark.parametrize("how", ["suspended", "closed", "flushed"])
def test_through_a_thread_it_is_told_before_hardware_has_begun_anew(monkeypatch, tc, how):
    feigned(monkeypatch, tc)
    one = Threaded(lambda: ExactRules(SIDES), **QUICK)
    one.start()
    try:
        one.submit(commands(Op.REPLACE, ONE), S)
        answered(one, 2)
        tc.hit(ONE.cookie(1), 5, 300)
        if how == "suspended":
            one.suspend("rules are missing")
            assert one.state == SUSPENDED
        elif how == "closed":
            assert one.close()
        else:
            tc.filters = {place: each for place, each in tc.filters.items() if place[0] != LEFT}
            tc.heard = [Change(DELETE_QDISC, LEFT, CLSACT_PARENT)]
        assert last(one) == {ONE.cookie(0): (0, 0), ONE.cookie(1): (5, 300)} and tc.filters == {}
    finally:
        one.close()


# --- what is not ours -----------------------------------------------------------------------------------------------------------------------


def test_what_others_have_put_into_our_priorities_stays(tc, backend):
    """At the end, and when all begins anew."""
    asked(backend, Op.REPLACE, ONE)
    theirs = {(LEFT, 1, 77): Filter(None), (RIGHT, 2, 5): Filter(None)}
    tc.filters.update(theirs)
    tc.filters.pop((LEFT, 1, (ONE.cookie() & 0xFFFFFFFF) + 1))
    tc.heard = [Change(DELETE_FILTER, LEFT, chain=0, prio=1)]
    backend.replies(S)
    assert tc.filters == theirs and len(backend.replies(S)) == 0 and backend.resets == 1
    asked(backend, Op.REPLACE, ONE)
    backend.close()
    assert tc.filters == theirs and "qdisc deleted" not in tc.order, "somebody uses them"


def test_one_that_somebody_has_replaced_stays(tc, backend):
    asked(backend, Op.REPLACE, ONE, TWO)
    place = LEFT, 1, (ONE.cookie() & 0xFFFFFFFF) + 1
    tc.filters[place] = Filter(None, 9, 900)
    told = emptied(backend)
    assert tc.filters == {place: Filter(None, 9, 900)} and told[ONE.cookie()] == (0, 0) and len(told) == 4


def test_one_of_an_earlier_run_that_somebody_has_replaced_since_it_was_listed_stays(monkeypatch, tc):
    place, whole = (LEFT, 1, 8), tc.whole
    tc.filters = {place: Filter(TWO.cookie()), (RIGHT, 2, 9): Filter(TWO.cookie(1))}

    def listed(request: bytes) -> list[bytes]:
        found = whole(request)
        tc.filters[place] = Filter(None, 9, 900) if MESSAGE.unpack_from(request)[1] == GET_FILTER and found else tc.filters[place]
        return found

    with exact_in(monkeypatch, tc) as backend:
        tc.filters[place], tc.whole = Filter(TWO.cookie()), listed  # type: ignore[method-assign]
        assert emptied(backend) == {} and tc.filters == {place: Filter(None, 9, 900)}


def test_handles_are_told_apart_by_their_priorities(monkeypatch, tc):
    tc.filters = {(LEFT, 1, 8): Filter(TWO.cookie()), (LEFT, 2, 8): Filter(ONE.cookie())}
    with exact_in(monkeypatch, tc):
        assert tc.filters == {}


def test_what_an_earlier_run_has_left_is_taken_away_and_no_more(monkeypatch, tc):
    tc.filters = {(LEFT, 1, 8): Filter(TWO.cookie()), (RIGHT, 2, 9): Filter(TWO.cookie(1)), (LEFT, 9, 8): Filter(None)}
    with exact_in(monkeypatch, tc) as backend:
        assert list(tc.filters) == [(LEFT, 9, 8)] and len(backend.replies(S)) == 0
    tc.filters = {(LEFT, 1, 8): Filter(None)}
    with pytest.raises(ConfigError, match="left has filters of others in chain 0, priority 1"):
        ExactRules(SIDES)
    assert list(tc.filters) == [(LEFT, 1, 8)]


@pytest.mark.parametrize("kind", [GET_FILTER, DELETE_FILTER])
def test_an_answer_that_is_lost_is_asked_for_again(tc, backend, kind):
    """It was done all the same; and if none ever comes nothing is deleted that nobody has looked at."""
    asked(backend, Op.REPLACE, ONE)
    ask = tc.ask
    lost: list[int] = []

    def forgetful(requests, sparing: bool = False):
        answers = ask(requests, sparing)
        if requests and MESSAGE.unpack_from(requests[0])[1] == kind and len(lost) < forgets:
            lost.append(len(requests))
            tc.echoed = []
            return [LOST] * len(requests)
        return answers

    tc.ask = forgetful  # type: ignore[method-assign]
    forgets = 100
    with pytest.raises(NetlinkError, match="2 of 2 filters are in TC still, or may be: No buffer space available"):
        emptied(backend)
    assert len(lost) == TRIES and len(tc.filters) == (2 if kind == GET_FILTER else 0)
    forgets = len(lost) + 1
    assert set(emptied(backend)) == {ONE.cookie(0), ONE.cookie(1)} and tc.filters == {}


# --- what does not go -----------------------------------------------------------------------------------------------------------------------


def test_what_the_kernel_does_not_delete_is_an_error_at_the_end_and_at_the_start(monkeypatch, tc, backend):
    asked(backend, Op.REPLACE, ONE)
    tc.refuses[DELETE_FILTER] = errno.EPERM
    with pytest.raises(NetlinkError, match="2 of 2 filters are in TC still, or may be: Operation not permitted"):
        backend.close()
    assert tc.closed and backend.left == 2
    with pytest.raises(NetlinkError, match="2 of 2 filters are in TC still"):
        exact_in(monkeypatch, tc)
    tc.refuses.clear()
    with exact_in(monkeypatch, tc):
        assert tc.filters == {}


def test_what_does_not_go_at_first_is_tried_again_as_long_as_less_is_left(tc, backend):
    asked(backend, Op.REPLACE, ONE, TWO)
    answer, unwilling = tc.answer, {place[2]: times for times, place in enumerate(tc.filters)}  # by handle: how often it is refused

    def refused(kind: int, body: bytes) -> Answer:
        handle = TCMSG.unpack_from(body)[2]
        if kind == DELETE_FILTER and unwilling[handle]:
            unwilling[handle] -= 1
            return Answer(errno.EBUSY)
        return answer(kind, body)

    tc.answer = refused  # type: ignore[method-assign]
    assert len(emptied(backend)) == 4 and tc.filters == {}


def test_a_qdisc_that_does_not_go_is_an_error(tc, backend):
    tc.refuses[DELETE_QDISC] = errno.EBUSY
    with pytest.raises(NetlinkError, match=f"the qdisc of interface {LEFT} is there still, or may be: Device or resource busy"):
        backend.close()
    assert tc.closed


def test_what_does_not_go_is_in_the_log_of_a_thread(monkeypatch, tc, caplog):
    feigned(monkeypatch, tc)
    one = Threaded(lambda: ExactRules(SIDES), **QUICK)
    one.start()
    one.submit(commands(Op.REPLACE, ONE), S)
    answered(one, 2)
    tc.refuses[DUMP] = errno.ENOMEM
    one.close()
    said = [record.getMessage() for record in caplog.records]
    assert "offload: what was in the kernel may be left there: netlink: no list" in said and tc.closed


def test_what_is_known_goes_before_anything_is_listed(tc, backend):
    """A list of many takes longer than whoever waits for less to be left has patience."""
    asked(backend, Op.REPLACE, ONE, TWO)
    tc.refuses[DUMP] = errno.ENOMEM
    with pytest.raises(NetlinkError, match="no list"):
        emptied(backend)
    assert (tc.filters, backend.left) == ({}, 0)


def test_what_goes_meanwhile_is_no_reason_to_look_at_all_that_is_left(monkeypatch, tc):
    """The kernel tells that a chain is gone when its last filter is, as if others had taken it away."""
    monkeypatch.setattr(exact_rules, "AT_ONCE", 1)
    with exact_in(monkeypatch, tc) as backend:
        asked(backend, Op.REPLACE, ONE)
        steps = backend.empty(S)
        next(steps)
        tc.refuses[DUMP], tc.heard = errno.ENOMEM, [Change(DELETE_FILTER, LEFT, chain=0, prio=1)]
        assert len(backend.replies(S)) == 1 and backend.left == 1
        tc.refuses.clear()
        assert len(list(steps)) == 1 and backend.left == 0 and backend.resets == 0


def test_many_go_some_at_a_time(monkeypatch, tc):
    """So that whoever waits for it sees that it goes on."""
    monkeypatch.setattr(exact_rules, "AT_ONCE", 16)
    with exact_in(monkeypatch, tc) as backend:
        asked(backend, Op.REPLACE, *(Flow(row, dport=row) for row in range(1, 51)))
        assert [backend.left for _ in backend.empty(S)] == [84, 68, 52, 36, 20, 4, 0]
