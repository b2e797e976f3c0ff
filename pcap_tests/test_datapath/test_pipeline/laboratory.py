"""The tests' vocabulary for whole pipelines with connection tracking: two devices, rules as people write them, and what leaves.

    net = lab(SNAT)                                                         # the fixture of conftest: on engine and model
    assert net.through(udp(CLIENT, SERVER, 40000, 53)) == udp(PUBLIC, SERVER, 40000, 53)

Invariants, proved at each packet: the tracker's own; what leaves is sound.
Not here: expectations about traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctcore.config import Config
from ctcore.types import Reason, Verdict
from datapath import craft
from datapath.frame import frames_of
from datapath.pipeline import rules_file
from datapath.pipeline.ct_settings import settings_of
from datapath.pipeline.findings import Findings
from datapath.pipeline.interpret import Interpreter, Walk
from datapath.pipeline.reference import RuleTracker
from datapath.pipeline.rules import Hook, Ruleset
from datapath.wire import parse_batch
from pcap_tests.conftest import TRACKERS
from pcap_tests.scene import START

CLIENT, SERVER, PUBLIC, INSIDE = "10.0.0.1", "198.51.100.7", "192.0.2.1", "10.0.0.7"
CLIENT6, SERVER6 = "2001:db8:1::1", "2001:db8:2::7"
MILLISECOND = 1_000_000

QDISCS = "tc qdisc add dev in0 clsact\ntc qdisc add dev out0 clsact\n"
# The pipeline everybody has: what is not tracked is; what is new is committed from inside, what is established passes both ways.
CLASSIC = """
tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower ct_state -trk action ct pipe action goto chain 1
tc filter add dev in0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+new action ct commit pipe action mirred egress redirect dev out0
tc filter add dev in0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+est action mirred egress redirect dev out0
tc filter add dev in0 ingress chain 1 prio 3 protocol all flower action drop
tc filter add dev out0 ingress chain 0 prio 1 protocol ip flower ct_state -trk action ct pipe action goto chain 1
tc filter add dev out0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+est action mirred egress redirect dev in0
tc filter add dev out0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+rel action mirred egress redirect dev in0
tc filter add dev out0 ingress chain 1 prio 3 protocol all flower action drop
"""
# The same with the source translated on its way out.
SNAT = r"""
tc filter add dev in0 ingress chain 0 prio 1 protocol ip flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev in0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+new \
    action ct commit nat src addr 192.0.2.1 pipe action mirred egress redirect dev out0
tc filter add dev in0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+est action mirred egress redirect dev out0
tc filter add dev out0 ingress chain 0 prio 1 protocol ip flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev out0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+est action mirred egress redirect dev in0
tc filter add dev out0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+rel action mirred egress redirect dev in0
tc filter add dev out0 ingress chain 1 prio 3 protocol all flower action drop
"""


def ruleset_of(text: str) -> Ruleset:
    found = Findings()
    ruleset = rules_file.parse(QDISCS + text, "rules.tc", found)
    assert [str(error) for error in found.errors] == []
    return ruleset


@dataclass
class Lab:
    """Two devices, the rules between them, and a clock."""

    tracker: Any
    interpreter: Interpreter
    now: int = START

    def send(self, frame: bytes, device: str = "in0", missing: int = 0) -> Walk:
        walk = self.interpreter.run(frame, self.now, Hook(device), missing)
        self.tracker.check()
        return walk

    def through(self, frame: bytes, device: str = "in0") -> bytes:
        """The one frame that leaves by a redirect, which is sound."""
        walk = self.send(frame, device)
        assert (walk.verdict, len(walk.sent)) == ("redirect", 1), walk
        return sound(walk.sent[0].frame)

    def verdict(self, frame: bytes, device: str = "in0") -> str:
        return self.send(frame, device).verdict

    def tcp(self, *steps: tuple[str, str]) -> list[str]:
        """A TCP conversation, port 40000 to 80: who sends ("client", "server") and which flags; what becomes of each packet."""
        ends = {"client": (CLIENT, SERVER, 40000, 80, "in0"), "server": (SERVER, CLIENT, 80, 40000, "out0")}
        number, verdicts = {"client": 100, "server": 500}, []
        for who, flags in steps:
            *addresses, device = ends[who]
            ack = number["server" if who == "client" else "client"] if "A" in flags else 0
            verdicts.append(self.verdict(craft.tcp(*addresses, flags, seq=number[who], ack=ack), device))
            number[who] += ("S" in flags) + ("F" in flags)
        return verdicts

    @property
    def conns(self) -> int:
        return self.tracker.count


def lab_of(kind: str, text: str, settings: dict[str, Any]) -> Lab:
    """The rules at work, with a tracker of a kind (pcap_tests.conftest.TRACKERS) that can do what they ask for."""
    ruleset = ruleset_of(text)
    tracker = TRACKERS[kind](settings_of(ruleset, Config(**settings)))
    return Lab(tracker, Interpreter(ruleset, RuleTracker(tracker)))


def left(walk: Walk) -> list[bytes]:
    """The frames in which it passes."""
    assert walk.verdict == "pass"
    return [piece.frame for piece in walk.pieces]


def row(frame: bytes) -> Any:
    return parse_batch(*frames_of([frame])).array[0]


def sound(frame: bytes) -> bytes:
    """Every checksum is right, and the frame ends with its IP packet."""
    parsed = row(frame)
    assert (parsed["verdict"], parsed["l4_reason"]) == (Verdict.PENDING, Reason.R_OK)
    assert len(frame) == parsed["l3_off"] + parsed["ip_len"]
    return frame


def udp(src: str, dst: str, sport: int, dport: int, payload: bytes = b"question", **fields: Any) -> bytes:
    return craft.udp(src, dst, sport, dport, payload, **fields)
