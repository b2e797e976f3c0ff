"""Entries that are in the way, and what goes wrong: refused, lost, not known."""

from __future__ import annotations

import errno
import subprocess
import sys
from contextlib import closing

import pytest

from ctcore.ctnetlink import Ask
from datapath.live.xdp_bypass import XdpBypass
from offload.conntrack_entries import ConntrackEntries
from offload.entry import bypass_key, commands_of
from offload.netlink.extack import LOST, Answer
from offload.records import Ctinfo, Op
from pcap_tests.test_offload.commanded import GRE, ICMP, UDP, Flow, S, asked, commands, through_a_small_buffer
from pcap_tests.test_offload.entering import (
    ALL,
    BOTH,
    DNAT,
    EVERYTHING,
    PLAIN,
    SNAT,
    conntrack,
    counted,
    emptied,
    kind_of,
    left_over,
    listed,
    ours,
)

# --- what is in the way ---------------------------------------------------------------------------------------------------------------------


def test_what_an_earlier_run_has_left_is_made_what_it_should_be(backend, kernel):
    left_over(kernel, *ALL, mark=99)
    assert asked(backend, Op.REPLACE, *ALL) == [0] * 12
    assert sorted(map(bytes, backend.held())) == sorted(map(bytes, commands(Op.REPLACE, *ALL)))
    assert {int(row["mark"]) for row, _ in listed(kernel).values()} == {0, 0x42}


def test_what_it_was_counted_before_is_not_told(backend, kernel, talk):
    near, _, flow = talk
    near.send(b"x")
    near.send(b"x")
    assert asked(backend, Op.REPLACE, flow) == [0, 0]
    assert counted(backend, flow, 10 * S) == [(0, 0, 0)] * 2


def test_an_entry_that_translates_otherwise_is_replaced(backend, kernel):
    left_over(kernel, Flow(1, to=("198.51.100.1", 999, "192.0.2.9", 80)))
    assert asked(backend, Op.REPLACE, PLAIN) == [0, 0]
    assert sorted(map(bytes, backend.held())) == sorted(map(bytes, commands(Op.REPLACE, PLAIN)))


def test_an_answered_entry_stays_answered(backend, kernel):
    """The kernel never takes that back."""
    left_over(kernel, SNAT)
    assert asked(backend, Op.REPLACE, SNAT, ctinfo=Ctinfo.NEW, replies=False) == [0]
    assert listed(kernel)[SNAT.sport][1] & EVERYTHING == EVERYTHING


def test_another_connection_with_the_tuple_of_the_answers_stays(backend, bypass, kernel):
    left_over(kernel, Flow(9, UDP, "198.51.100.1", "192.0.2.9", 6000, 53), Flow(8, src="192.0.2.9", dst="10.1.0.7", sport=80, dport=40_000))
    assert asked(backend, Op.REPLACE, SNAT, PLAIN) == [errno.EBUSY] * 4
    for conn in (101, 102):
        assert backend.refusal(conn) == "Device or resource busy: another connection of the kernel's has these addresses and ports"
    assert (ours(kernel), bypass.keys) == (2, set())
    conntrack("-F")


def test_the_same_tuple_in_another_zone_is_another_connection(backend, kernel):
    left_over(kernel, Flow(1, zone=3))
    assert asked(backend, Op.REPLACE, PLAIN) == [0, 0] and ours(kernel) == 2
    asked(backend, Op.DESTROY, PLAIN)
    assert [row["flow"][0]["key"]["zone"] for row, _ in listed(kernel).values()] == [3]
    conntrack("-F")


def test_what_is_let_by_knows_no_zones(backend, bypass, kernel):
    assert asked(backend, Op.REPLACE, PLAIN) == [0, 0]
    assert asked(backend, Op.REPLACE, Flow(2, zone=3)) == [errno.EOPNOTSUPP] * 2
    assert "of another zone has the same addresses and ports" in backend.refusal(102)
    assert (ours(kernel), len(bypass.keys)) == (1, 2)
    asked(backend, Op.DESTROY, PLAIN)
    assert asked(backend, Op.REPLACE, Flow(2, zone=3)) == [0, 0]


def test_a_full_bypass_is_full_hardware(backend, bypass, kernel):
    bypass.most = 3
    assert asked(backend, Op.REPLACE, PLAIN, SNAT) == [0, 0, 0, errno.ENOSPC]
    assert [int(row["dir"]) for row in backend.held() if row["conn"] == 102] == [0]
    assert backend.refusal(102) == "No space left on device: no room among what is let by to the kernel"
    assert asked(backend, Op.DESTROY, PLAIN) == [0, 0]
    assert asked(backend, Op.REPLACE, SNAT) == [errno.EEXIST, 0]


def test_what_is_let_by_is_in_the_map_of_xdp(place):
    """The map of a node: full, taken, and empty again."""
    with closing(XdpBypass(most=4)) as bypass, ConntrackEntries(bypass=bypass) as backend:
        keys = [bypass_key(command.match) for command in commands_of(commands(Op.REPLACE, PLAIN, DNAT))]
        assert asked(backend, Op.REPLACE, PLAIN, DNAT) == [0] * 4
        assert [bypass.packets(key) for key in keys] == [0] * 4
        assert asked(backend, Op.REPLACE, SNAT) == [errno.ENOSPC] * 2
        assert asked(backend, Op.REPLACE, Flow(20, zone=3)) == [errno.EOPNOTSUPP] * 2
        asked(backend, Op.DESTROY, PLAIN)
        assert [bypass.packets(key) for key in keys] == [None, None, 0, 0]
        assert asked(backend, Op.REPLACE, SNAT) == [0, 0]
        emptied(backend)
        assert [bypass.packets(key) for key in keys] == [None] * 4


# --- what goes wrong ------------------------------------------------------------------------------------------------------------------------


def test_what_no_entry_can_do_is_not_asked_of_the_kernel(place, kernel):
    with ConntrackEntries(most=2) as backend:
        assert asked(backend, Op.REPLACE, Flow(1, ICMP), Flow(2, GRE, to=("10.1.0.7", 0, "203.0.113.5", 0))) == [errno.EOPNOTSUPP] * 4
        assert backend.refusal(101) == "Operation not supported: protocol 1: expected TCP, UDP or GRE"
        assert backend.refusal(102) == "Operation not supported: only TCP and UDP are translated in hardware (A4.32)"
        assert asked(backend, Op.REPLACE, Flow(3), Flow(4, dport=81), Flow(5, dport=82)) == [0] * 4 + [errno.ENOSPC] * 2
        assert asked(backend, Op.REPLACE, Flow(3, dport=99)) == [errno.EBUSY] * 2  # its place is another's
        asked(backend, Op.DESTROY, Flow(3))
        assert asked(backend, Op.REPLACE, Flow(7, dport=81)) == [errno.EBUSY] * 2 and backend.refusal(107).endswith(
            "another flow has the same packets"
        )
        assert ours(kernel) == 1


def test_without_rights_there_is_no_backend(place):
    code = (
        "import ctypes, struct\nfrom offload.conntrack_entries import ConntrackEntries\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.capset(struct.pack('II', 0x20080522, 0), bytes(24)) == 0\n"
        "try:\n    ConntrackEntries()\nexcept PermissionError:\n    print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


class Faulty:
    """The kernel's answers, some of them others. fate(request, answer) -> answer."""

    def __init__(self, backend: ConntrackEntries, fate) -> None:
        self.ask, self.fate = backend.kernel.channel.ask, fate
        backend.kernel.channel.ask = self

    def __call__(self, requests, *, sparing=False) -> list[Answer]:
        return [self.fate(request, answer) for request, answer in zip(requests, self.ask(requests, sparing=sparing), strict=True)]


@pytest.mark.parametrize("kind", [Ask.CREATE, Ask.CHANGE, Ask.DELETE])
def test_answers_that_are_lost_are_asked_for_again(backend, kernel, kind):
    lost: list[bytes] = []

    def fate(request: bytes, answer: Answer) -> Answer:
        if kind_of(request) is kind and len(lost) < 4:
            lost.append(request)
            return LOST
        return answer

    asked(backend, Op.REPLACE, SNAT, replies=False, ctinfo=Ctinfo.NEW)
    Faulty(backend, fate)
    assert asked(backend, Op.REPLACE, PLAIN, BOTH, DNAT) == [0] * 6
    assert asked(backend, Op.REPLACE, SNAT) == [0, 0]
    assert ours(kernel) == 4
    assert asked(backend, Op.DESTROY, PLAIN, SNAT, BOTH, DNAT) == [0] * 8
    assert ours(kernel) == 0 and lost


def test_what_nobody_can_find_out_is_not_answered_and_still_destroyed(backend, kernel):
    faulty = Faulty(backend, lambda request, answer: LOST)
    backend.submit(commands(Op.REPLACE, PLAIN), S)
    assert len(backend.replies(S)) == 0 and ours(kernel) == 1
    backend.submit(commands(Op.DESTROY, PLAIN), S)
    assert len(backend.replies(S)) == 0
    faulty.fate = lambda request, answer: answer
    left_over(kernel, PLAIN)
    assert asked(backend, Op.REPLACE, PLAIN) == [0, 0]
    assert asked(backend, Op.STATS, PLAIN) == [0, 0]
    assert asked(backend, Op.DESTROY, PLAIN) == [0, 0] and ours(kernel) == 0


def test_a_removal_whose_answer_is_lost_and_that_is_refused_then_may_have_been_done(backend, bypass, kernel):
    """It is not said to be there still, and its packets are software's."""
    fates = iter([LOST, *[Answer(errno.ENOMEM)] * 9])
    asked(backend, Op.REPLACE, PLAIN)
    faulty = Faulty(backend, lambda request, answer: next(fates) if kind_of(request) is Ask.DELETE else answer)
    backend.submit(commands(Op.DESTROY, PLAIN), S)
    assert len(backend.replies(S)) == 0 and not bypass.keys and ours(kernel) == 0
    faulty.fate = lambda request, answer: answer
    assert asked(backend, Op.DESTROY, PLAIN) == [errno.ENOENT] * 2 and len(backend.held()) == 0


def test_a_buffer_that_is_too_small_loses_no_command(backend, kernel):
    through_a_small_buffer(backend, backend.kernel.channel.socket)


@pytest.mark.parametrize(
    ("error", "told", "sentence"),
    [
        (errno.ENOMEM, errno.ENOMEM, "Cannot allocate memory: the kernel's conntrack takes no more (nf_conntrack_max)"),
        (errno.EPERM, errno.EPERM, "Operation not permitted: expected CAP_NET_ADMIN in this network namespace"),
        (errno.EOPNOTSUPP, errno.EOPNOTSUPP, "Operation not supported"),
    ],
)
def test_refusals_are_told_by_number_and_sentence(backend, bypass, kernel, error, told, sentence):
    refused = Flow(2, dport=81)

    def fate(request: bytes, answer: Answer) -> Answer:
        if kind_of(request) is Ask.CREATE and (81).to_bytes(2, "big") in request:
            kernel.tell([request[:4] + b"\x02\x01\x05\x00" + request[8:]])
            return Answer(error)
        return answer

    faulty = Faulty(backend, fate)
    assert asked(backend, Op.REPLACE, PLAIN, refused) == [0, 0, told, told]
    assert backend.refusal(102) == sentence and backend.refusal(101) == ""
    assert len(bypass.keys) == 2 and len(backend.held()) == 2
    faulty.fate = lambda request, answer: answer
    assert asked(backend, Op.REPLACE, refused) == [0, 0] and backend.refusal(102) == ""


@pytest.mark.parametrize("heard", [True, False])
def test_one_that_ends_while_it_is_changed_is_software_s(backend, bypass, kernel, heard):
    """Made anew it would be ended by the news of the first one, and nobody would know of it. Also where the kernel has no news of it."""
    asked(backend, Op.REPLACE, PLAIN, replies=False)
    ask = backend.kernel.channel.ask

    def meanwhile(requests, *, sparing=False):
        if kind_of(requests[0]) is Ask.CHANGE and ours(kernel):
            conntrack("-D", "-p", "tcp", "--orig-port-src", "40000")
            if not heard:
                list(backend.events.events())
        return ask(requests, sparing=sparing)

    backend.kernel.channel.ask = meanwhile
    backend.submit(commands(Op.REPLACE, PLAIN), S)
    told = [(int(row["op"]), int(row["cookie"]), int(row["error"])) for row in backend.replies(S)]
    assert told == [(Op.REPLACE, PLAIN.cookie(0), errno.EEXIST), (Op.REPLACE, PLAIN.cookie(1), errno.ENOENT), (Op.GONE, PLAIN.cookie(0), 0)]
    assert (ours(kernel), len(backend.held()), bypass.keys) == (0, 0, set())
    assert backend.refusal(101) == "No such file or directory: somebody has ended its entry meanwhile"
    backend.replies(S)
    assert asked(backend, Op.REPLACE, PLAIN) == [0, 0]


def test_a_change_that_is_refused_changes_nothing_of_what_was_meant(backend, kernel):
    asked(backend, Op.REPLACE, BOTH)
    changed = commands(Op.REPLACE, BOTH)
    changed["conn"], changed["mark"] = 1000, 7
    put = backend.kernel.put
    backend.kernel.put = lambda entries, ask: [Answer(errno.EIO)] * len(entries)
    backend.submit(changed, S)
    backend.kernel.put = put
    assert [int(row["error"]) for row in backend.replies(S)] == [errno.EIO] * 2
    (state,) = backend.states()
    assert (state["conn"], state["mark"], state["meant"]) == (104, 0x42, 0x42)
