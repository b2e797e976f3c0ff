"""What can be seen of an offload from outside (A9.72): how much is in hardware, what was dropped on its way back, what was refused and why."""

from __future__ import annotations

from typing import Any

from ctcore.config import Config
from ctcore.filter import Filter
from ctcore.types import Reason
from datapath import craft
from datapath.commands.nic_rules import nic_rules
from datapath.commands.offloaded import Offloaded
from datapath.frame import frames_of
from datapath.pipeline.rules import Hook
from datapath.ruled import RulePipeline
from offload.contract.why import Why
from offload.mirror import Mirror
from offload.simnic import profile
from offload.simnic.nic import Nic
from offload.simnic.results import Why as Missed
from pcap_tests.scene import SECOND, START
from pcap_tests.test_datapath.test_pipeline.laboratory import CLASSIC, CLIENT, SERVER, ruleset_of

# A rule that software has for itself: hardware finds the connection, and gives the packet to the host behind that.
HALF = CLASSIC.replace("flower ct_state +trk+est", "flower skip_hw ct_state +trk+est")


class Wire:
    """Packets of a NIC's wire, a second apart."""

    def __init__(self, text: str, capacity: int = 0) -> None:
        kind = profile.load("perfect")
        kind = kind.model_copy(update={"table": kind.table.model_copy(update={"capacity": capacity})})
        pipeline = RulePipeline(ruleset_of(text), Config(max=100))
        self.nic = Nic(kind, nic_rules(pipeline.program.ruleset, pipeline.program.device))
        assert pipeline.flows is not None
        self.offloaded = Offloaded(pipeline, self.nic, Mirror(pipeline.flows.rows))
        self.offloaded.arrive([Hook("in0"), Hook("out0")])
        self.now = START

    def send(self, frame: bytes, side: int = 0) -> Any:
        memory, frames = frames_of([frame], self.now)
        frames["iface"] = side
        self.now += SECOND // 100
        return self.offloaded.process(memory, frames, results=True)[2][0]

    def opened(self, port: int) -> None:
        self.send(craft.tcp(CLIENT, SERVER, port, 80, "S", seq=99))
        self.send(craft.tcp(SERVER, CLIENT, 80, port, "SA", seq=499, ack=100), 1)
        self.send(craft.tcp(CLIENT, SERVER, port, 80, "A", seq=100, ack=500))


def data(port: int) -> bytes:
    return craft.tcp(CLIENT, SERVER, port, 80, "PA", seq=100, ack=500, payload=b"hello")


def test_a9_72_how_many_are_offloaded() -> None:
    wire = Wire(CLASSIC)
    for port in range(40000, 40005):
        wire.opened(port)
    counts = wire.offloaded.mirror.counters()
    assert (counts["flows"], counts["offloaded"], counts["rules"], wire.nic.entries) == (5, 5, 10, 10)
    assert wire.send(data(40003))["reason"] == Reason.R_OK
    assert wire.offloaded.shares.hardware == 1
    wire.offloaded.settle(wire.now + 40 * SECOND)
    assert (wire.offloaded.mirror.counters()["offloaded"], wire.nic.entries) == (0, 0)


def test_a9_72_what_cannot_be_restored_is_dropped_and_counted() -> None:
    """The connection is deleted while hardware still has its rule: who comes back from there belongs to nobody."""
    wire = Wire(HALF)
    wire.opened(40000)
    assert wire.send(data(40000))["reason"] == Reason.R_OK
    wire.offloaded.tracker.delete(Filter(proto=6))
    assert wire.send(data(40000))["reason"] == Reason.R_RULE_RESTORE
    assert (wire.offloaded.count(Reason.R_RULE_RESTORE), wire.offloaded.summary()["dropped"]) == (1, 1)
    assert wire.offloaded.shares.why[Missed.IN_SOFTWARE] == 2


def test_a9_72_what_is_refused_is_told_by_reason() -> None:
    wire = Wire(CLASSIC, capacity=2)
    for port in range(40000, 40004):
        wire.opened(port)
    counts = wire.offloaded.mirror.counters()
    assert wire.offloaded.mirror.reasons() == {None: 1, Why.HW_FULL: 3}
    assert (counts["refused_full"] >= 1, counts["refused_other"], counts["refused_unsupported"]) == (True, 0, 0)
    assert wire.offloaded.shares.why[Missed.CT_MISS] == 12


def test_a11_a_busy_flow_never_expires_in_two_hours_of_a_nic_s_time() -> None:
    """Of a connection that says something every 25 s only hardware sees anything; then it leaves within its time and three seconds."""
    wire = Wire(CLASSIC)
    wire.opened(40000)
    said = 2 * 3600 // 25
    for _ in range(said):
        wire.now += 25 * SECOND - SECOND // 100
        wire.send(data(40000))
    assert (wire.offloaded.shares.hardware, wire.offloaded.flows.counters()["teardown_idle"]) == (said, 0)
    assert int(wire.offloaded.tracker.conn(0)[0]["flow"]["packets"].sum()) in (said + 2, said + 3)  # the last one was not told yet
    wire.offloaded.settle(wire.now + 33 * SECOND)
    assert wire.nic.entries == 0
