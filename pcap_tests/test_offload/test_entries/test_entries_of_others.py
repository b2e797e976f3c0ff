"""What others do to our entries, and what is heard of it."""

from __future__ import annotations

import errno
import socket

import pytest

from ctcore.ctnetlink import Ask
from ctcore.errors import ConfigError
from datapath.oracle.namespace import Namespace
from offload.conntrack_entries import ConntrackEntries
from offload.netlink.extack import Answer
from offload.records import Op
from pcap_tests.test_offload.commanded import Flow, S, asked, commands
from pcap_tests.test_offload.entering import (
    ALL,
    BOTH,
    FIN_WAIT,
    PLAIN,
    SNAT,
    conntrack,
    gone,
    kind_of,
    left_over,
    listed,
    ours,
    told_to,
)


def test_what_others_delete_comes_back_to_software_at_once(backend, bypass, kernel):
    asked(backend, Op.REPLACE, *ALL)
    conntrack("-D", "-p", "tcp", "--orig-port-src", "41000", "-w", "9")
    assert gone(backend) == {BOTH.cookie(0), BOTH.cookie(1)}
    assert len(bypass.keys) == 10 and (backend.missed, backend.resets) == (1, 0)
    assert asked(backend, Op.STATS, BOTH) == [errno.ENOENT] * 2
    assert asked(backend, Op.REPLACE, BOTH) == [0, 0] and ours(kernel) == 6


def test_a_connection_that_the_kernel_has_seen_end_comes_back_to_software(backend, bypass, kernel):
    """What becomes of the entry is the kernel's business from then on."""
    asked(backend, Op.REPLACE, PLAIN, BOTH)
    told_to(kernel, Ask.CHANGE, PLAIN, state=FIN_WAIT)
    assert gone(backend) == {PLAIN.cookie(0), PLAIN.cookie(1)} and len(bypass.keys) == 2
    assert ours(kernel) == 2 and backend.resets == 0
    assert asked(backend, Op.REPLACE, PLAIN) == [0, 0]
    assert listed(kernel)[40_000][0]["tcp"]["state"] == 3


def test_a_flush_is_a_reset(backend, bypass, kernel):
    asked(backend, Op.REPLACE, *ALL)
    conntrack("-F")
    assert len(gone(backend)) == 12 and bypass.keys == set()  # first what was counted
    backend.submit(commands(Op.REPLACE, PLAIN), S)
    assert len(backend.replies(S)) == 0 and backend.resets == 1  # what was asked before is not answered
    assert (ours(kernel), len(backend.held())) == (0, 0)
    assert asked(backend, Op.REPLACE, *ALL) == [0] * 12
    assert backend.resets == 1


def test_what_others_do_with_their_own_is_nothing(backend, kernel):
    asked(backend, Op.REPLACE, PLAIN)
    left_over(kernel, BOTH, SNAT)
    conntrack("-D", "-p", "udp")
    told_to(kernel, Ask.CHANGE, BOTH, state=FIN_WAIT)
    told_to(kernel, Ask.CHANGE, PLAIN, mark=5)
    assert len(backend.replies(S)) == 0 and (backend.missed, backend.resets) == (0, 0)
    conntrack("-D", "-p", "tcp", "-w", "9")


def test_our_own_doings_are_no_news(backend, kernel):
    for _ in range(3):
        assert asked(backend, Op.REPLACE, *ALL) == [0] * 12
        assert asked(backend, Op.DESTROY, *ALL) == [0] * 12
    assert len(backend.replies(S)) == 0 and backend.missed == 0


def test_where_news_were_lost_the_list_is_looked_at(backend, bypass, kernel):
    flows = [Flow(row, dport=row) for row in range(1, 201)]
    asked(backend, Op.REPLACE, *flows)
    backend.events.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    conntrack("-D", "-p", "tcp", "--orig-src", "10.1.0.7")
    assert len(gone(backend)) == 400 and bypass.keys == set()
    backend.replies(S)
    assert backend.resets == 1 and not backend.events.overrun


def test_where_news_are_lost_all_the_time_the_list_is_looked_at_now_and_then(backend, kernel):
    """Others' connections may be many, and their news more than there is room for: commands are carried out all the same."""
    asked(backend, Op.REPLACE, PLAIN)
    looked: list[int] = []
    entries = backend.kernel.entries
    backend.kernel.entries = lambda: looked.append(1) or entries()
    for tenth in range(120):  # twelve seconds
        backend.events.overrun = True
        backend.replies(tenth * S // 10)
    assert len(looked) == 3
    conntrack("-D", "-p", "tcp", "--orig-src", "10.1.0.7")
    list(backend.events.events())
    assert gone(backend) == set()
    assert {int(row["op"]) for row in backend.replies(20 * S)} == {Op.GONE}


def test_a_kernel_that_does_not_delete_what_a_flow_table_has(backend, kernel):
    """Before Linux 6.5: EBUSY. Its lifetime ends instead; what is heard of that is our own doing."""
    asked(backend, Op.REPLACE, PLAIN, BOTH)
    refused: list[bytes] = []
    ask = backend.kernel.channel.ask

    def busy(requests, *, sparing=False):
        some = [request for request in requests if kind_of(request) is not Ask.DELETE or refused.count(request) >= 1]
        answers = iter(ask(some, sparing=sparing))
        backend.kernel.channel.told = {}
        made = []
        for request in requests:
            if kind_of(request) is Ask.DELETE and refused.count(request) < 1:
                refused.append(request)
                made.append(Answer(errno.EBUSY))
            else:
                made.append(next(answers))
        return made

    backend.kernel.channel.ask = busy
    assert asked(backend, Op.DESTROY, PLAIN) == [0, 0] and refused
    assert set(listed(kernel)) == {41_000} and backend.missed == 0 and len(backend.replies(S)) == 0


def test_a_namespace_whose_name_goes_lives_on(running_kernel):
    """As long as somebody has a socket in it."""
    namespace = Namespace()
    with namespace.entered():
        backend = ConntrackEntries()
        asked(backend, Op.REPLACE, PLAIN)
    namespace.close()
    with backend:
        assert asked(backend, Op.STATS, PLAIN) == [0, 0] and len(backend.held()) == 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        backend.submit(commands(Op.REPLACE, PLAIN), S)


@pytest.mark.parametrize("wrong", [{"lease": 0}, {"lease": 86_401}, {"most": 0}])
def test_settings_that_make_no_sense_are_an_error(wrong):
    with pytest.raises(ConfigError, match="expected 1 to 86400 s, and 1 to 4294967296 connections"):
        ConntrackEntries(**wrong)
