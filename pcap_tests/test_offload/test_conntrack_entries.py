"""Connections as entries of the running kernel's conntrack, in a namespace of its own: made, changed, told, deleted; refused, lost, ended by others.

Needs root and nf_conntrack_netlink; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1. What act_ct makes of them: pcap_tests/vm.
"""

from __future__ import annotations

import errno
import gc
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ctcore.config import Config
from ctcore.ctnetlink import Ask
from ctcore.errors import ConfigError
from ctcore.types import Status, TcpState
from datapath.live.xdp_bypass import XdpBypass
from datapath.oracle import ruleset
from datapath.oracle.namespace import Namespace
from offload.conntrack_entries import ConntrackEntries
from offload.entry import Entry, bypass_key, commands_of, rows_for
from offload.netlink.conntrack import SETTINGS, KernelConntrack
from offload.netlink.extack import LOST, Answer
from offload.records import Ctinfo, Op
from pcap_tests.test_offload.commanded import GRE, ICMP, UDP, Flow, S, asked, commands

LEAST_RATE = 50_000  # connections a second, through submit()
SNAT = Flow(2, UDP, sport=5000, dport=53, to=("198.51.100.1", 6000, "192.0.2.9", 53))
DNAT = Flow(3, src="2001:db8:1::7", dst="2001:db8:2::9", to=("2001:db8:1::7", 40_000, "2001:db8:3::1", 8080))
BOTH = Flow(4, sport=41_000, to=("198.51.100.1", 6000, "203.0.113.5", 8080), zone=9, mark=0x42)
PLAIN = Flow(1)
ALL = (PLAIN, SNAT, DNAT, BOTH, Flow(5, GRE, sport=0, dport=0), Flow(6, UDP, dst="192.0.2.77"))
FIN_WAIT = int(TcpState.FIN_WAIT)
EVERYTHING = int(Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED)


class FakeBypass:
    """Keys that are let by; those of `taken` are another's, and there is room for `most`."""

    def __init__(self) -> None:
        self.keys: set[bytes] = set()
        self.taken: set[bytes] = set()
        self.most = 1 << 20

    def put(self, keys) -> list[int]:
        errors = []
        for key in keys:
            error = errno.EBUSY if key in self.taken or key in self.keys else errno.ENOSPC if len(self.keys) >= self.most else 0
            errors.append(error)
            if not error:
                self.keys.add(key)
        return errors

    def remove(self, keys) -> None:
        assert set(keys) <= self.keys
        self.keys -= set(keys)

    def shut(self) -> None:
        self.keys.clear()

    def open(self) -> None:
        pass


@pytest.fixture
def place(running_kernel) -> Iterator[Namespace]:
    namespace = Namespace()
    with namespace.entered():
        yield namespace
    namespace.close()


@pytest.fixture
def kernel(place) -> Iterator[KernelConntrack]:
    """Somebody else."""
    with KernelConntrack() as other:
        yield other


@pytest.fixture
def bypass() -> FakeBypass:
    return FakeBypass()


@pytest.fixture
def backend(place, bypass) -> Iterator[ConntrackEntries]:
    with ConntrackEntries(bypass=bypass) as backend:
        yield backend
    assert bypass.keys == set()
    with KernelConntrack() as after:
        assert ours(after) == 0


def ours(kernel: KernelConntrack) -> int:
    return len(kernel.all()[0])


def listed(kernel: KernelConntrack) -> dict[int, tuple[np.void, int]]:
    """Row and status by the source port of the original direction."""
    rows, status = kernel.all()
    return {int(row["flow"][0]["key"]["sport"]): (row, int(bits)) for row, bits in zip(rows, status, strict=True)}


def conntrack(*words: str) -> None:
    subprocess.run(["conntrack", *words], check=True, capture_output=True)


def gone(backend: ConntrackEntries) -> set[int]:
    """Cookies of rules of which news say that they are there no more."""
    return {int(row["cookie"]) for row in backend.replies(S) if row["op"] == Op.GONE}


# --- one after the other --------------------------------------------------------------------------------------------------------------------


def test_entries_are_made_listed_and_deleted(backend, bypass, kernel):
    wanted = commands(Op.REPLACE, *ALL)
    assert asked(backend, Op.REPLACE, *ALL) == [0] * 12
    assert sorted(map(bytes, backend.held())) == sorted(map(bytes, wanted))
    assert ours(kernel) == 6
    assert bypass.keys == {bypass_key(command.match) for command in commands_of(wanted)}
    assert asked(backend, Op.DESTROY, *ALL) == [0] * 12
    assert (ours(kernel), bypass.keys, len(backend.held())) == (0, set(), 0)
    assert asked(backend, Op.DESTROY, *ALL) == [errno.ENOENT] * 12


def test_an_entry_has_all_that_act_ct_asks_for(backend, kernel):
    """Established, assured, liberal; zone, mark, translation."""
    asked(backend, Op.REPLACE, BOTH)
    row, status = listed(kernel)[41_000]
    assert status & EVERYTHING == EVERYTHING and status & Status.SRC_NAT and status & Status.DST_NAT
    assert (row["mark"], row["flow"][0]["key"]["zone"], row["tcp"]["state"], row["tcp"]["scale"].tolist()) == (0x42, 9, 3, [14, 14])
    assert all(flags & 0x08 for flags in row["tcp"]["flags"])  # IP_CT_TCP_FLAG_BE_LIBERAL
    assert 298 * 250 <= row["timeout"] <= 300 * 250


@pytest.mark.parametrize("first", [0, 1])
def test_either_direction_makes_the_entry_and_the_last_one_takes_it_away(backend, bypass, kernel, first):
    both = commands(Op.REPLACE, BOTH)
    for d, count in ((first, 1), (1 - first, 2)):
        assert backend.submit(both[d : d + 1], S) == 1
        assert [int(row["error"]) for row in backend.replies(S)] == [0]
        assert (ours(kernel), len(bypass.keys), len(backend.held())) == (1, count, count)
    both["op"] = Op.DESTROY
    for d, count in ((first, 1), (1 - first, 0)):
        backend.submit(both[d : d + 1], S)
        assert [int(row["error"]) for row in backend.replies(S)] == [0]
        assert (ours(kernel), len(bypass.keys), len(backend.held())) == (count, count, count)


def test_udp_is_answered_and_assured_by_and_by(backend, kernel):
    """A2.10: the original direction alone, then it has been answered, then both."""

    def status() -> int:
        return listed(kernel)[SNAT.sport][1] & EVERYTHING

    assert asked(backend, Op.REPLACE, SNAT, ctinfo=Ctinfo.NEW, replies=False) == [0] and status() == Status.CONFIRMED
    assert asked(backend, Op.REPLACE, SNAT, ctinfo=Ctinfo.NEW, replies=False) == [errno.EEXIST]
    assert [int(row["ctinfo"]) for row in backend.held()] == [Ctinfo.NEW]
    assert asked(backend, Op.REPLACE, SNAT, replies=False) == [0] and status() == Status.CONFIRMED | Status.SEEN_REPLY
    assert asked(backend, Op.REPLACE, SNAT) == [errno.EEXIST, 0] and status() == EVERYTHING


def test_a_mark_alone_is_no_news(backend, kernel):
    """A4.36; with another connection it is."""
    asked(backend, Op.REPLACE, BOTH)
    changed = commands(Op.REPLACE, BOTH)
    changed["mark"] = 7
    backend.submit(changed, S)
    assert [int(row["error"]) for row in backend.replies(S)] == [errno.EEXIST] * 2 and listed(kernel)[41_000][0]["mark"] == 0x42
    changed["conn"] = 1000
    backend.submit(changed, S)
    assert [int(row["error"]) for row in backend.replies(S)] == [0] * 2 and listed(kernel)[41_000][0]["mark"] == 7
    assert backend.held()["conn"].tolist() == [1000] * 2


def test_one_after_the_other_in_one_call(backend, kernel):
    """The same cookie several times, and all kinds of commands."""
    making, counting, ending = (commands(op, PLAIN, SNAT) for op in (Op.REPLACE, Op.STATS, Op.DESTROY))
    together = np.concatenate([making, counting, ending, ending, making[:2], making[:1], ending[:1]])
    assert backend.submit(together, S) == len(together)
    told = [(int(row["op"]), int(row["error"])) for row in backend.replies(S)]
    kinds = [(Op.REPLACE, 0)] * 4 + [(Op.STATS, 0)] * 4 + [(Op.DESTROY, 0)] * 4 + [(Op.DESTROY, errno.ENOENT)] * 4
    assert told == [*kinds, (Op.REPLACE, 0), (Op.REPLACE, 0), (Op.REPLACE, errno.EEXIST), (Op.DESTROY, 0)]
    assert [int(row["dir"]) for row in backend.held()] == [1]


def test_fifty_thousand_a_second(place):
    """Through submit(), both directions, what Python does and what the kernel does; in this thread's time, the best of three."""
    flows = [Flow(row, src=f"10.{row >> 14}.0.1", sport=1024 + (row & 0x3FFF)) for row in range(20_000)]
    wanted = commands(Op.REPLACE, *flows)
    with ConntrackEntries(bypass=FakeBypass()) as backend:
        gc.collect()
        gc.freeze()  # what the tests have loaded is not gone through again and again
        rates = []
        for _ in range(3):
            begun = time.thread_time()
            for at in range(0, len(wanted), 4000):
                backend.submit(wanted[at : at + 4000], S)
                assert not backend.replies(S)["error"].any()
            rates.append(len(flows) / (time.thread_time() - begun))
            assert len(backend.held()) == len(wanted)
            backend._purge()
        gc.unfreeze()
        print(f"{max(rates):,.0f} connections a second through submit()")
        assert max(rates) >= LEAST_RATE


# --- counters -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def talk(place) -> Iterator[tuple[socket.socket, socket.socket, Flow]]:
    """Two sockets of the namespace that talk by an address of its own; conntrack looks on, for a rule asks for it."""
    with place.netlink() as netlink:
        netlink.link("set", index=1, state="up")
    ruleset.load(place, Config())
    near, far = socket.socket(socket.AF_INET, socket.SOCK_DGRAM), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    near.bind(("127.0.0.1", 5000))
    far.bind(("127.0.0.2", 53))
    near.connect(("127.0.0.2", 53))
    far.connect(("127.0.0.1", 5000))
    with near, far:
        yield near, far, Flow(21, UDP, "127.0.0.1", "127.0.0.2", 5000, 53)


def counted(backend: ConntrackEntries, flow: Flow, now: int) -> list[tuple[int, int, int]]:
    backend.submit(commands(Op.STATS, flow), now)
    return [(int(row["packets"]), int(row["bytes"]), int(row["used"])) for row in backend.replies(now) if row["op"] == Op.STATS]


def test_counters_are_told_as_what_came_since_the_last_time(backend, talk):
    near, far, flow = talk
    assert backend.counting.on and backend.counting.changed
    assert asked(backend, Op.REPLACE, flow) == [0, 0]
    assert counted(backend, flow, 10 * S) == [(0, 0, 0), (0, 0, 0)]
    for _ in range(3):
        near.send(b"x" * 72)
    far.send(b"y" * 22)
    assert counted(backend, flow, 20 * S) == [(3, 300, 20 * S), (1, 50, 20 * S)]
    assert counted(backend, flow, 30 * S) == [(0, 0, 20 * S), (0, 0, 20 * S)]
    near.send(b"x" * 72)
    assert counted(backend, flow, 40 * S) == [(1, 100, 40 * S), (0, 0, 20 * S)]


def test_one_question_serves_both_directions(backend, talk):
    """They are asked for one after the other (offload.mirror)."""
    near, _, flow = talk
    asked(backend, Op.REPLACE, flow)
    asking = commands(Op.STATS, flow)
    questions: list[int] = []
    tell = backend.kernel.tell
    backend.kernel.tell = lambda requests: questions.append(len(requests)) or tell(requests)
    for now in (10 * S, 20 * S):
        near.send(b"x" * 72)
        for d in range(2):
            backend.submit(asking[d : d + 1], now)
            assert int(backend.replies(now)["packets"][0]) == 1 - d
    assert sum(questions) == 2
    backend.submit(asking[1:], 30 * S)
    assert sum(questions) == 3  # nobody has asked for that lately


def test_what_was_counted_last_is_told_at_the_end(backend, talk):
    near, far, flow = talk
    asked(backend, Op.REPLACE, flow)
    near.send(b"x" * 72)
    counted(backend, flow, 10 * S)
    near.send(b"x" * 72)
    far.send(b"x" * 72)
    backend.submit(commands(Op.DESTROY, flow), 20 * S)
    assert [(row["error"], row["packets"], row["bytes"], row["used"]) for row in backend.replies(20 * S)] == [(0, 1, 100, 20 * S)] * 2


def test_what_others_end_tells_what_it_had_counted(backend, bypass, talk):
    near, _, flow = talk
    asked(backend, Op.REPLACE, flow, PLAIN)
    near.send(b"x" * 72)
    conntrack("-D", "-p", "udp", "--orig-src", "127.0.0.1")
    told = backend.replies(5 * S)
    assert [(row["op"], row["cookie"], row["packets"], row["bytes"]) for row in told] == [
        (Op.GONE, flow.cookie(0), 1, 100), (Op.GONE, flow.cookie(1), 0, 0),
    ]  # fmt: skip
    assert len(bypass.keys) == 2 and (backend.missed, backend.resets) == (1, 0)
    assert asked(backend, Op.REPLACE, flow, PLAIN) == [0, 0, errno.EEXIST, errno.EEXIST]


@pytest.fixture
def tcp(place) -> Iterator[tuple[socket.socket, Flow]]:
    """The near end of a connection through conntrack."""
    with place.netlink() as netlink:
        netlink.link("set", index=1, state="up")
    ruleset.load(place, Config())
    with socket.create_server(("127.0.0.2", 80)) as server, socket.create_connection(("127.0.0.2", 80), source_address=("127.0.0.1", 5000)) as near:
        far, _ = server.accept()
        with far:
            yield near, Flow(22, src="127.0.0.1", dst="127.0.0.2", sport=5000)


def test_what_it_had_counted_is_told_when_the_kernel_sees_it_end(backend, tcp):
    """News of a change have no counters."""
    near, flow = tcp
    assert asked(backend, Op.REPLACE, flow) == [0, 0]
    near.sendall(b"x" * 100)
    near.shutdown(socket.SHUT_WR)
    orig, reply = told = backend.replies(20 * S)
    for d, row in enumerate(told):
        assert (row["op"], row["cookie"], row["used"], row["shared"]) == (Op.GONE, flow.cookie(d), 20 * S, 0)
    assert (orig["packets"], orig["bytes"]) == (2, 100 + 2 * 52)
    assert reply["bytes"] == 52 * reply["packets"] > 0  # one acknowledgement or two
    conntrack("-F")


def test_one_that_is_asked_about_has_no_five_days_to_live(backend, tcp):
    """As each packet gives it: it would be there long after a process that was killed."""
    near, flow = tcp
    asked(backend, Op.REPLACE, flow)
    near.sendall(b"x")
    assert backend.states()["left"][0] > 86_400
    counted(backend, flow, 10 * S)
    assert 298 <= backend.states()["left"][0] <= 300


def test_without_counters_nothing_is_told_but_that_packets_came(place, talk):
    """A6.50: what is not known is not said to be nought of each direction; and one that is busy is not idle."""
    near, _, flow = talk
    with ConntrackEntries(lease=20) as backend:
        (SETTINGS / "nf_conntrack_acct").write_text("0")
        asked(backend, Op.REPLACE, flow)

        def told(now: int) -> tuple[int, int, bool]:
            backend.submit(commands(Op.STATS, flow)[:1], now)
            (row,) = backend.replies(now)
            return int(row["packets"]), int(row["used"]), bool(row["shared"])

        assert told(2 * S) == (0, 0, True)
        near.send(b"x")  # it lives for 120 s from now on
        assert told(3 * S) == (0, 3 * S, True)
        assert told(4 * S) == (0, 3 * S, True)
        assert not backend.states()["counted"].any()


def test_counting_is_set_once_and_stays(place):
    setting = SETTINGS / "nf_conntrack_acct"
    setting.write_text("0")
    with ConntrackEntries() as backend:
        assert backend.counting.on and backend.counting.changed
    with ConntrackEntries() as backend:
        assert backend.counting.on and not backend.counting.changed
    assert setting.read_text().strip() == "1"


def test_a_setting_that_cannot_be_made_is_said(place, monkeypatch):
    monkeypatch.setattr("offload.netlink.conntrack.SETTINGS", Path("/proc/sys/net/nowhere"))
    with ConntrackEntries() as backend:
        assert backend.counting == (False, False, "/proc/sys/net/nowhere/nf_conntrack_acct: No such file or directory")
        assert backend.lacks == ["entries have no counters: /proc/sys/net/nowhere/nf_conntrack_acct: No such file or directory"]


def test_an_entry_lives_while_somebody_asks(place, kernel):
    with ConntrackEntries(lease=3) as backend:
        asked(backend, Op.REPLACE, PLAIN, SNAT)
        for second in range(6):
            time.sleep(1)
            assert counted(backend, PLAIN, (second + 5) * S) == [(0, 0, 0)] * 2
        assert set(listed(kernel)) == {40_000}
        assert asked(backend, Op.STATS, SNAT) == [errno.ENOENT] * 2


def test_states_are_what_the_kernel_has(backend, kernel):
    asked(backend, Op.REPLACE, BOTH, SNAT)
    told_to(kernel, Ask.CHANGE, BOTH, mark=9, timeout=77 * 250)
    told = {int(row["conn"]): row for row in backend.states()}
    assert told[104]["mark"] == 9 and 75 <= told[104]["left"] <= 77 and told[104]["state"] == 3 and told[104]["cookie"] == BOTH.cookie()
    assert told[102]["status"] & EVERYTHING == EVERYTHING and told[102]["counted"]
    assert {row["mark"] for row in backend.held()} == {9, 0}


# --- what is in the way ---------------------------------------------------------------------------------------------------------------------


def told_to(kernel: KernelConntrack, ask: Ask, *flows: Flow, **changes) -> None:
    """Somebody else makes or changes entries."""
    entries: dict[int, Entry] = {}
    for command in commands_of(commands(Op.REPLACE, *flows)):
        entry = entries.setdefault(command.cookie >> 1, Entry(command, 300.0, 0))
        entry.ctinfo[command.cookie & 1] = command.ctinfo
    rows = rows_for(list(entries.values()), 300 * 250)
    for name, value in changes.items():
        (rows["tcp"] if name == "state" else rows)[name] = value
    assert [answer.error for answer in kernel.ask(rows, ask)] == [0] * len(rows)


def left_over(kernel: KernelConntrack, *flows: Flow, **changes) -> None:
    """Entries of an earlier run."""
    told_to(kernel, Ask.CREATE, *flows, **changes)


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
        backend._purge()
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


def kind_of(request: bytes) -> Ask:
    kind, flags = int.from_bytes(request[4:6], "little") & 0xFF, int.from_bytes(request[6:8], "little")
    return (Ask.CREATE if flags & 0x400 else Ask.CHANGE, Ask.GET, Ask.DELETE)[kind]


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


def test_a_buffer_that_is_too_small_loses_no_command(backend, kernel):
    """The kernel throws answers away that do not fit; each command has its reply all the same."""
    backend.kernel.channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is
    flows = [Flow(row, dport=row) for row in range(1, 65)]
    assert asked(backend, Op.REPLACE, *flows) == [0] * 128
    backend.submit(commands(Op.STATS, *flows), S)
    errors = [int(row["error"]) for row in backend.replies(S)]
    assert len(errors) == 128 and set(errors) <= {0, errno.ENOBUFS}
    backend.submit(commands(Op.DESTROY, *flows), S)
    assert {int(row["error"]) for row in backend.replies(S)} <= {0, errno.ENOENT}


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


# --- labels ---------------------------------------------------------------------------------------------------------------------------------


LABELLED = Flow(7, dport=88, label=0x1122334455667788 << 64 | 5)


def test_a_label_that_the_kernel_does_not_keep_is_a_refusal(backend, bypass, kernel):
    """Linux 6.12 and later make the entry without it, and say nothing: rules that ask for the label would not find it."""
    left_over(kernel, Flow(7, dport=88))
    assert asked(backend, Op.REPLACE, PLAIN, LABELLED, Flow(8, dport=89, label=7)) == [0, 0] + [errno.EOPNOTSUPP] * 4
    for conn in (107, 108):
        assert backend.refusal(conn).startswith("Operation not supported: the kernel keeps no labels: expected a rule")
    assert len(backend.held()) == 2 and len(bypass.keys) == 2
    conntrack("-F")
    backend.replies(S)
    backend.replies(S)


# --- what others do -------------------------------------------------------------------------------------------------------------------------


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
