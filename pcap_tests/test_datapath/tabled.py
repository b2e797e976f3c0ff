"""The tests' vocabulary for flow tables: a pipeline with one, a clock, and conversations.

Not here: expectations (test_flowtable, test_flowtable_ends).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ctcore import spec
from ctcore.config import Config
from ctcore.reasons import NAMES
from ctcore.types import Offload, State, Status
from datapath import craft
from datapath.pipeline.rules import Hook
from datapath.ruled import RulePipeline
from pcap_tests.scene import START, status_names
from pcap_tests.test_datapath.flowing import Coming, seen_by
from pcap_tests.test_datapath.test_pipeline.laboratory import CLASSIC, CLIENT, SERVER, ruleset_of

SECOND, DAY = 1_000_000_000, 86400
IN, OUT = 0, 1
FTP = CLASSIC.replace("ct commit pipe", "ct commit helper ipv4-tcp-ftp pipe")
ANY = CLASSIC.replace("protocol ip ", "protocol all ")
# Everything is tracked and committed at once, wherever it comes from.
COMMITS = "".join(f"tc filter add dev {dev} ingress protocol all flower action ct commit pipe action pass\n" for dev in ("in0", "out0"))


class Net:
    """A pipeline with a flow table, and a clock."""

    def __init__(self, text: str = CLASSIC, **settings: Any):
        self.pipeline = RulePipeline(ruleset_of(text), Config(**settings))
        self.pipeline.arrive([Hook("in0"), Hook("out0")])
        self.tracker, self.now = self.pipeline.tracker, START

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def send(self, frame: bytes, side: int = IN, *, outputs: bool = False, missing: int = 0) -> SimpleNamespace:
        """One packet, and what is said of it: timeout in seconds, offload by its name."""
        seen = seen_by(self.pipeline, [Coming(frame, side, self.now, missing)], outputs)
        said = seen.decisions[0]
        self.flows.check()
        self.pipeline.cuts.check()
        self.tracker.check()
        states = spec.tcp().states
        return SimpleNamespace(
            offload=Offload(int(said["offload"])).name.removeprefix("OFFLOAD_").lower(),
            state=State(int(said["state"])).name.lower(),
            status=status_names(int(said["status"])),
            timeout=int(said["timeout"]) / 250,
            reason=NAMES[said["reason"]],
            l4state=states[said["l4state"]] if said["l4state"] < len(states) else None,
            conn=int(said["conn"]),
            left=seen.left[0],
        )

    @property
    def flows(self) -> Any:
        return self.pipeline.flows

    def conn(self, ordinal: int = 0) -> Any:
        return self.tracker.conn(ordinal)[0]

    def left(self, ordinal: int = 0) -> float:
        """Seconds that a connection has left, now."""
        self.tracker.expire(self.now)
        return int(self.conn(ordinal)["timeout"]) / 250

    def offloaded(self, ordinal: int = 0) -> bool:
        return bool(self.conn(ordinal)["status"] & Status.OFFLOAD)

    def tick(self) -> None:
        """Somebody else's packet, so that time is seen to pass."""
        self.send(craft.udp("10.0.0.99", SERVER, 9, 9))


class Tcp:
    """A conversation from CLIENT:40000 to SERVER:80, on its way."""

    def __init__(self, net: Net, *, port: int = 40000, server: int = 80):
        self.net, self.next = net, [100, 500]
        self.ends = ((CLIENT, SERVER, port, server), (SERVER, CLIENT, server, port))

    def say(self, side: int, flags: str = "A", payload: bytes = b"", **fields: Any) -> SimpleNamespace:
        seq, ack = fields.pop("seq", self.next[side]), fields.pop("ack", self.next[1 - side] if "A" in flags else 0)
        keep = {name: fields.pop(name) for name in ("outputs", "missing") if name in fields}
        self.next[side] += len(payload) + ("S" in flags) + ("F" in flags)
        if options := fields.pop("ip_options", b""):
            segment = craft.tcp_segment(*self.ends[side], flags, seq=seq, ack=ack, payload=payload)
            return self.net.send(craft.frame(*self.ends[side][:2], 6, segment, options=options), side)
        return self.net.send(craft.tcp(*self.ends[side], flags, seq=seq, ack=ack, payload=payload, **fields), side, **keep)

    def opened(self) -> Tcp:
        """After the handshake."""
        for side, flags in ((IN, "S"), (OUT, "SA"), (IN, "A")):
            self.say(side, flags)
        return self


def udp(net: Net, side: int = IN, **fields: Any) -> SimpleNamespace:
    ends = (CLIENT, SERVER, 40000, 53) if side == IN else (SERVER, CLIENT, 53, 40000)
    return net.send(craft.udp(*ends, b"datagram", **fields), side)


def assured_udp(net: Net) -> None:
    """A stream of both directions, more than two seconds old."""
    udp(net)
    udp(net, OUT)
    net.wait(2.5)
    udp(net, OUT)
