"""Entries in the running kernel's conntrack under random commands, faults, and doings of others: at any time the kernel has what the backend says it
holds, and what is let by to the kernel is what the kernel has an entry for.

Needs root and nf_conntrack_netlink; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1.
"""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ctcore.ctnetlink import Ask
from ctcore.types import TcpState
from datapath.oracle.namespace import Namespace
from offload.conntrack_entries import ConntrackEntries
from offload.entry import Entry, bypass_key, commands_of, rows_for, told_of
from offload.netlink.conntrack import KernelConntrack
from offload.netlink.extack import LOST, Answer
from offload.records import Ctinfo, Op
from pcap_tests.test_offload.commanded import GRE, UDP, Flow, S, commands
from pcap_tests.test_offload.entering import FakeBypass

# Among them two of the same tuple, one of another zone, and one that another's answers come to.
FLOWS = (
    Flow(0), Flow(1, sport=40_001, to=("10.1.0.7", 40_001, "203.0.113.5", 8080), mark=7), Flow(2), Flow(3, zone=5, sport=7),
    Flow(4, UDP, sport=5000, dport=53, to=("198.51.100.1", 6000, "192.0.2.9", 53)), Flow(5, UDP, "198.51.100.1", "192.0.2.9", 6000, 53),
    Flow(6, GRE, sport=0, dport=0), Flow(7, src="2001:db8:1::7", dst="2001:db8:2::9"),
)  # fmt: skip
FLOW = st.sampled_from(FLOWS)
FATES = st.lists(st.sampled_from([None] * 6 + [LOST, LOST, Answer(errno.ENOMEM), Answer(errno.EIO)]), max_size=6)


class EntriesMachine(RuleBasedStateMachine):
    """Eight connections; which directions are there says the backend by its replies alone."""

    def __init__(self) -> None:
        super().__init__()
        self.namespace, self.bypass = Namespace(), FakeBypass()
        with self.namespace.entered():
            self.backend, self.other = ConntrackEntries(bypass=self.bypass), KernelConntrack()
        self.there: dict[int, Flow] = {}  # by cookie
        self.fates: list[Answer | None] = []
        self.doubtful = False
        self.resets = 0
        ask = self.backend.kernel.channel.ask
        self.backend.kernel.channel.ask = lambda requests, *, sparing=False: [self.fated(answer) for answer in ask(requests, sparing=sparing)]

    def fated(self, answer: Answer) -> Answer:
        """What it said is lost, or it had no room; it was done all the same in the first case, and not in the second, where it was refused anyway."""
        fate = self.fates.pop() if self.fates else None
        return answer if fate is None or (fate is not LOST and answer.error == 0) else fate

    def hear(self) -> None:
        """What the backend says becomes the model."""
        for _ in range(2):
            for reply in self.backend.replies(S):
                cookie, op, error = int(reply["cookie"]), int(reply["op"]), int(reply["error"])
                flow = replace(FLOWS[cookie >> 1 & 0xFF])
                if op == Op.REPLACE and error in (0, errno.EEXIST):
                    self.there[cookie] = flow
                elif op == Op.GONE or (op in (Op.DESTROY, Op.STATS) and error in (0, errno.ENOENT) and (op == Op.DESTROY or error)):
                    self.there.pop(cookie, None)
            if self.backend.resets != self.resets:
                self.resets = self.backend.resets
                self.there.clear()

    @rule(
        flows=st.lists(FLOW, min_size=1, max_size=6),
        op=st.sampled_from([Op.REPLACE, Op.REPLACE, Op.DESTROY, Op.STATS]),
        both=st.booleans(),
        fates=FATES,
        new=st.booleans(),
    )
    def command(self, flows, op, both, fates, new) -> None:
        self.fates = fates
        wanted = commands(op, *flows, replies=both, ctinfo=Ctinfo.NEW if new else Ctinfo.ESTABLISHED)
        assert self.backend.submit(wanted, S) == len(wanted)
        self.fates = []
        self.hear()

    @rule(flow=FLOW)
    def the_answering_direction_alone(self, flow) -> None:
        self.backend.submit(commands(Op.REPLACE, flow)[1:], S)
        self.hear()

    @precondition(lambda self: len({cookie >> 1 for cookie in self.there}) > 1)
    @rule(which=st.integers(0, 7))
    def somebody_deletes_one(self, which) -> None:
        names = sorted({cookie >> 1 for cookie in self.there})
        self.theirs(Ask.DELETE, names[which % len(names)])
        self.hear()

    @precondition(lambda self: any(flow.proto == 6 for flow in self.there.values()))
    @rule(which=st.integers(0, 7))
    def the_kernel_sees_one_end(self, which) -> None:
        names = sorted({cookie >> 1 for cookie, flow in self.there.items() if flow.proto == 6})
        number = names[which % len(names)]
        self.theirs(Ask.CHANGE, number, TcpState.FIN_WAIT)
        self.hear()
        self.theirs(Ask.DELETE, number)  # as the kernel will some time later

    def theirs(self, ask: Ask, number: int, state: int | None = None) -> None:
        (command, _) = commands_of(commands(Op.REPLACE, FLOWS[number & 0xFF]))
        entry = Entry(command, 300.0, 0)
        entry.ctinfo = [Ctinfo.ESTABLISHED, Ctinfo.ESTABLISHED_REPLY]
        rows = rows_for([entry], 300 * 250)
        if state is not None:
            rows["tcp"]["state"] = state
        assert [answer.error for answer in self.other.ask(rows, ask)] == [0]

    @rule()
    def flush(self) -> None:
        rows, _ = self.other.all()
        self.other.ask(rows, Ask.DELETE)
        self.hear()

    @invariant()
    def the_kernel_has_what_is_held(self) -> None:
        held = self.backend.held()
        assert set(held["cookie"].tolist()) >= self.there.keys()
        doubtful = {entry.number for entry in self.backend.known if entry.doubtful}
        assert {cookie for cookie in held["cookie"].tolist() if cookie >> 1 not in doubtful} == {
            cookie for cookie in self.there if cookie >> 1 not in doubtful
        }
        kernel = {told.keys[0] for told in told_of(*self.other.all(), 250)}
        assert kernel >= {entry.keys[0] for entry in self.backend.known if not entry.doubtful}
        assert kernel <= {entry.keys[0] for entry in self.backend.known}

    @invariant()
    def what_is_let_by_has_an_entry(self) -> None:
        keys = {entry.number: entry.keys for entry in self.backend.known}
        certain = {bypass_key(keys[cookie >> 1][cookie & 1]) for cookie in self.there if not self.backend.known.numbered(cookie >> 1).doubtful}
        assert certain <= self.bypass.keys <= {bypass_key(key) for both in keys.values() for key in both}

    def teardown(self) -> None:
        self.backend.close()
        assert len(self.other.all()[0]) == 0 and not self.bypass.keys
        self.other.channel.close()
        self.namespace.close()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("running_kernel")
class TestEntries(EntriesMachine.TestCase):
    settings = settings(max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
