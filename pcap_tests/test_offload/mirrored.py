"""The tests' vocabulary for what is mirrored: a pipeline with its flow table, a mirror and a NIC, by one clock. Not here: expectations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ctcore.types import Status
from offload.mirror import Mirror
from offload.mirror_settings import MirrorSettings
from offload.pump import pump
from pcap_tests.test_datapath.tabled import ANY, Net
from pcap_tests.test_offload.fake_nic import ACCEPT, SECOND, FakeNic
from pcap_tests.test_offload.mirror_both import Both


class Rig(Net):
    """A pipeline whose flow table is mirrored in a NIC; the arrays are carried after each packet, and each second of waiting.

    What the mirror says its twin in plain Python has to say, too, but in QuickRig, for long times.
    """

    Mirrors: Any = Both

    def __init__(self, text: str = ANY, *, nic: FakeNic | None = None, mirror: dict[str, Any] | None = None, asks: int = 65_536, **settings: Any):
        super().__init__(text, **settings)
        self.flows.mirrored(asks)
        self.nic = nic or FakeNic()
        self.mirror = self.Mirrors(self.flows.rows, MirrorSettings(**(mirror or {})))

    def pump(self) -> None:
        pump(self.flows, self.mirror, self.nic, self.now)
        self.mirror.check()
        self.flows.check()

    def send(self, frame: bytes, side: int = 0, **more: Any) -> SimpleNamespace:
        said = super().send(frame, side, **more)
        self.pump()
        return said

    def wait(self, seconds: float) -> None:
        until = self.now + round(seconds * SECOND)
        while self.now < until:
            self.now = min(until, self.now + SECOND)
            self.pump()

    def settle(self) -> None:
        """No job and no command is left on its way; it must not take forever."""
        for _ in range(100):
            if not any(self.mirror.counters()[f"pending_{job}"] for job in ("add", "del", "stats")) and not self.mirror.waiting:
                break
            self.wait(1)
        else:
            raise AssertionError(f"jobs that never end: {self.mirror.counters()}")

    def in_hardware(self, ordinal: int = 0) -> bool:
        return bool(self.conn(ordinal)["status"] & Status.HW_OFFLOAD)

    def directions(self) -> list[int]:
        return sorted(cookie & 1 for cookie in self.nic.rules)


class QuickRig(Rig):
    """The mirror alone."""

    Mirrors = Mirror


def ops(nic: FakeNic) -> list[tuple[str, int]]:
    """What a NIC has done, and of which direction."""
    return [(op, direction) for op, _, direction in nic.log]


def refusing(error: int) -> FakeNic:
    """A NIC that takes no rule."""
    nic = FakeNic()
    nic.fate = lambda command: error if command["op"] == 1 else ACCEPT
    return nic
