"""A run of many conversations through rules, a NIC that fails, and the mirror of both, under the eyes of watching.Invariants.

Not here: which runs (test_offload_invariants), the traffic (crowd).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.config import Config
from datapath.commands.nic_option import mirror_settings
from datapath.commands.nic_rules import nic_rules
from datapath.commands.offloaded import Offloaded
from datapath.pipeline import rules_file
from datapath.pipeline.findings import Findings
from datapath.pipeline.outputs import OutputFlag
from datapath.pipeline.rules import Hook, Ruleset
from datapath.ruled import RulePipeline
from offload.mirror import Mirror
from offload.mirror_settings import MirrorSettings
from offload.simnic import profile
from offload.simnic.faults import Fault
from pcap_tests.test_offload.crowd import WIDTH, Burst, Crowd, summed
from pcap_tests.test_offload.watching import SECOND, Invariants, SeenNic, Slack, hold

START = 1_700_000_000 * SECOND
PUBLIC, INSIDE = "192.0.2.1", "10.9.9.9"
DEVICES = ("in0", "out0", "in1", "out1")
NAT = {"none": "", "src": f"nat src addr {PUBLIC} ", "dst": f"nat dst addr {INSIDE} "}
GAPS = np.array([0.001, 0.02, 0.3, 1.1, 5, 20, 31, 70, 3600 * 6])
GAP_SHARES = np.array([0.25, 0.15, 0.2, 0.12, 0.1, 0.09, 0.05, 0.03, 0.01])
WAY = """
tc filter add dev {at} ingress chain 0 prio 1 protocol {every} flower ct_state -trk action ct zone {zone} {nat}pipe action goto chain 1
tc filter add dev {at} ingress chain 1 prio 1 protocol {every} flower {skip}ct_state +trk+est action mirred egress redirect dev {to}
tc filter add dev {at} ingress chain 1 prio 9 protocol {every} flower action drop
"""
COMMIT = """
tc filter add dev {at} ingress chain 1 prio {prio} protocol {family} flower ct_state +trk+new \\
    action ct commit zone {zone} {mark}{nat}pipe action mirred egress redirect dev {to}
"""


def ruleset_of(text: str) -> Ruleset:
    found = Findings()
    ruleset = rules_file.parse(text, "rules.tc", found)
    assert [str(error) for error in found.errors] == []
    return ruleset


def rules(nat: str, mark: bool, soft: bool) -> str:
    """Both pairs of devices: what is tracked and new is committed from inside, what is established passes both ways, everything else is dropped.
    soft: of one of them the rule for what is established is software's, so that hardware gives back what it has found."""
    text = "".join(f"tc qdisc add dev in{pair} clsact\ntc qdisc add dev out{pair} clsact\n" for pair in (0, 1))
    for pair, zone in ((0, 5), (1, 6)):
        near, far = f"in{pair}", f"out{pair}"
        for at, to in ((near, far), (far, near)):
            skip = "skip_hw " if soft and at == "in1" else ""
            text += WAY.format(skip=skip, at=at, to=to, zone=zone, every="all", nat="nat " if nat != "none" else "")
        for prio, family, does in ((2, "ip", NAT[nat]), (3, "all", "")):
            text += COMMIT.format(at=near, to=far, prio=prio, family=family, zone=zone, nat=does, mark="mark 7/7 " if mark else "")
    return text


def impatient(kind: profile.Profile, usual: MirrorSettings) -> MirrorSettings:
    """The same, but what is lost is given up sooner, if the latency allows it, and what is refused is tried again sooner."""
    limit = max(4.0, 4 * kind.rates.latency / 1000)
    return replace(usual, reply_limit=limit, window=max(2, int(usual.window * limit / usual.reply_limit)), backoff=0.5, backoff_most=8.0)


@dataclass(frozen=True)
class Plan:
    """What a run is drawn as. capacity, inserts, latency: of the NIC, 0: what its kind has; slots: conns that the tracker has room for."""

    seed: int = 0
    talks: int = 200
    density: int = 1000
    kind: str = "perfect"
    capacity: int = 0
    inserts: float = 0
    latency: float = 0
    accounting: bool = True
    policy: str = "first-come"
    nat: str = "none"
    mark: bool = False
    soft: bool = False
    slots: int = 20_000
    faults: tuple[Fault, ...] = ()
    odd: float = 0.01

    def profile(self) -> profile.Profile:
        kind = profile.load(self.kind)
        table = kind.table.model_copy(update={"capacity": self.capacity or kind.table.capacity})
        rates = {"inserts": self.inserts or kind.rates.inserts, "latency": self.latency or kind.rates.latency}
        kind = kind.model_copy(update={"rates": kind.rates.model_copy(update=rates)})
        return kind.model_copy(update={"table": table, "counters": kind.counters.model_copy(update={"accounting": self.accounting})})


@dataclass
class Run:
    """hardware: what kind of NIC, for tests that break it."""

    plan: Plan
    hardware: type[SeenNic] = SeenNic
    now: int = START
    packets: int = 0
    watch: Any = field(init=False)
    offloaded: Any = field(init=False)

    def __post_init__(self) -> None:
        plan = self.plan
        settings = impatient(plan.profile(), mirror_settings(plan.profile(), plan.policy))
        faults = [replace(fault, at=START + fault.at, until=START + min(fault.until, 1 << 61)) for fault in plan.faults]
        pipeline = RulePipeline(ruleset_of(rules(plan.nat, plan.mark, plan.soft)), Config(max=plan.slots, seed=plan.seed))
        self.watch = Invariants(Slack.of(plan.profile(), faults, settings))
        nic = self.hardware(self.watch, plan.profile(), nic_rules(pipeline.program.ruleset, pipeline.program.device), faults, plan.seed)
        self.offloaded = Offloaded(pipeline, nic, Mirror(pipeline.flows.rows, settings))
        self.offloaded.arrive([Hook(device) for device in DEVICES])
        self.offloaded.watch = self.watch
        self.watch.offloaded, self.watch.width = self.offloaded, WIDTH
        self.rng = np.random.default_rng(plan.seed)
        self.conn_of = np.full(plan.talks, -1)
        self.crowd = Crowd(self.rng, plan.talks, PUBLIC if plan.nat == "src" else "", INSIDE if plan.nat == "dst" else "", plan.odd)

    def go(self, packets: int) -> None:
        """So many packets, then silence until everything has aged out."""
        while self.packets < packets:
            span = int(self.rng.choice([1, 4, 40])) * SECOND // 1000
            self.send(self.crowd.burst(self.plan.density, self.now, span))
            self.now += span + round(float(self.rng.choice(GAPS, p=GAP_SHARES)) * 1e9)
        self.silence()

    def send(self, burst: Burst) -> None:
        self.watch.flags, self.watch.left, self.watch.said = burst.flags, [], []
        self.offloaded.process(burst.memory, burst.frames, decisions=False, outputs=True)
        self.packets += len(burst.frames)
        rows, changed = self.offloaded.outputs()
        rows = rows[(rows["flags"] & OutputFlag.OUTPUT_COPY) == 0]
        left = left_rows(rows, burst.memory, changed)
        self.left(burst, rows)
        self.translated(burst, rows, left)
        first = np.flatnonzero(burst.opener[rows["frame"]])
        self.crowd.far(burst.talk[rows["frame"][first]], left[first])

    def left(self, burst: Burst, rows: NDArray[Any]) -> None:
        """What may leave leaves once, and nothing else does; fragments and the like apart. What conntrack has found invalid belongs to no connection,
        and refreshes one all the same."""
        offsets, conns, leaves = (np.concatenate(each) for each in zip(*self.watch.said, strict=True))
        times, may = np.bincount(rows["frame"], minlength=len(burst.frames)), np.zeros(len(burst.frames), dtype=bool)
        may[offsets.astype(np.int64) // WIDTH] = leaves
        wrong = np.flatnonzero((times != may) & burst.sound)
        hold(not len(wrong), "exactly once", f"frames {wrong[:5]} left {times[wrong[:5]]} times, and may: {may[wrong[:5]]}")
        frame = offsets.astype(np.int64) // WIDTH
        self.conn_of[burst.talk[frame[conns >= 0]]] = conns[conns >= 0]
        of = self.conn_of[burst.talk[frame]]
        np.maximum.at(self.watch.last, of[of >= 0], burst.frames["ts"][frame[of >= 0]])

    def translated(self, burst: Burst, rows: NDArray[Any], left: NDArray[np.uint8]) -> None:
        """What hardware has sent, and software, is what the connection says: addresses, ports, and checksums made anew from scratch."""
        offsets, conn, back = (np.concatenate(each) for each in zip(*self.watch.left, strict=True))
        frame = offsets.astype(np.int64) // WIDTH
        known = np.array([self.watch.keys.get(number) is not None for number in conn.tolist()], dtype=bool)
        frame, conn, back = frame[known], conn[known], back[known]
        if not len(frame):
            return
        at = np.full(len(burst.frames), -1)
        at[rows["frame"]] = np.arange(len(rows))
        keys = np.array([self.watch.keys[number][1 - way] for number, way in zip(conn.tolist(), back.tolist(), strict=True)])
        wanted = readdressed(burst.rows[frame], keys)
        sound = burst.sound[frame]
        same = (wanted == left[at[frame]]).all(axis=1) | ~sound
        wrong = np.flatnonzero(~same)[:1].tolist()
        hold(
            same.all(),
            "same bytes",
            "".join(f"{bytes(rows[wrong[0]]).hex()}\n" for rows in (burst.rows[frame], wanted, left[at[frame]])) if wrong else "",
        )

    def silence(self) -> None:
        """Nobody says anything any more: everything is idle, and leaves."""
        ends = max((START + fault.until for fault in self.plan.faults if fault.kind != "reset" and fault.until < 1 << 61), default=0)
        ends = max(ends, *(START + fault.at for fault in self.plan.faults), self.now) if self.plan.faults else self.now
        mirror = self.offloaded.mirror
        until = max(self.now, ends) + 45 * SECOND
        while self.now < until or (mirror.counters()["flows"] and self.now < until + 600 * SECOND):
            self.now += SECOND
            self.offloaded.settle(self.now)
        self.watch.nothing_left()
        self.offloaded.nic.check()
        mirror.check()
        self.offloaded.flows.check()
        self.offloaded.tracker.check()


def left_rows(rows: NDArray[Any], memory: NDArray[np.uint8], changed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What left, as rows of WIDTH bytes with zeros behind."""
    left = np.zeros((len(rows), WIDTH), dtype=np.uint8)
    column = np.arange(WIDTH)
    for which, where in ((0, memory), (1, changed)):
        of = np.flatnonzero((rows["flags"] & OutputFlag.OUTPUT_CHANGED != 0) == bool(which))
        if len(of):
            at = rows["offset"][of].astype(np.int64)[:, None] + column
            there = column < rows["caplen"][of][:, None]
            left[of] = np.where(there, where[np.minimum(at, len(where) - 1)], 0)
    return left


def readdressed(rows: NDArray[np.uint8], keys: NDArray[Any]) -> NDArray[np.uint8]:
    """Frames as they leave: to what the other direction answers, turned round; all checksums made anew."""
    rows = rows.copy()
    four = keys["family"] == 4
    for version in (True, False):
        of = np.flatnonzero(four == version)
        at, size = (26, 4) if version else (22, 16)
        l4 = at + 2 * size
        part, key = rows[of], keys[of]
        part[:, at : at + size], part[:, at + size : l4] = key["dst"][:, :size], key["src"][:, :size]
        ports = np.isin(key["proto"], (6, 17))
        for where, name in ((l4, "dport"), (l4 + 2, "sport")):
            part[ports, where], part[ports, where + 1] = key[name][ports] >> 8, key[name][ports] & 255
        rows[of] = part
    return summed(rows, four)
