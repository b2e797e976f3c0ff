"""Flow table and mirror beside their readable twin, the contract: random conversations, random tuples.

Invariants: of every packet both say the same, have as many flows, and leave the connection as much time; every rule is the contract's, bit by bit.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ctcore.flow_changes import ASK_DTYPE, Asked, FlowFlag
from ctcore.types import Proto, State, Status, TcpState
from datapath import craft
from offload.contract import admission, aging, lookup, rule
from offload.contract.lookup import Looked, Packet
from offload.contract.objects import ORIG, REPLY, Conn, Flow, Tuple
from offload.contract.objects import FlowFlag as Flag
from offload.contract.why import Why
from offload.mirror import Mirror
from offload.records import Op
from pcap_tests.test_datapath.tabled import COMMITS, IN, SECOND
from pcap_tests.test_datapath.test_pipeline.laboratory import CLIENT, SERVER
from pcap_tests.test_offload.contracted import HZ, LINUX
from pcap_tests.test_offload.contracted import conn as conn_of
from pcap_tests.test_offload.contracted import flow as flow_of
from pcap_tests.test_offload.mirrored import Rig

ADDRESS = {CLIENT: bytes([10, 0, 0, 1]), SERVER: bytes([198, 51, 100, 7])}


# --- the flow table --------------------------------------------------------------------------------------------------------------------


@dataclass
class Twin:
    """A flow table of the contract's functions, told of each packet what the tracker made of it. Hardware accepts everything at once."""

    rig: Rig
    flows: dict[int, Flow] = field(default_factory=dict)  # by ordinal
    second: int = 0

    def alive(self, number: int) -> Any:
        """CONN_DTYPE[1], or [0] of a connection that is gone."""
        conns = self.rig.tracker.conns()
        return conns[conns["flow"]["id"][:, 0] == number]

    def know(self, flow: Flow) -> None:
        """What the tracker says of its connection; DYING once it is gone."""
        alive = self.alive(flow.conn.number)
        if not len(alive):
            flow.conn.status |= Status.DYING
            return
        flow.conn.status = int(alive["status"][0])
        flow.conn.timeout = self.rig.now * HZ // SECOND + int(alive["timeout"][0])  # packets that are tracked renew it
        if flow.conn.proto == Proto.PROTO_TCP:
            flow.conn.tcp_state = TcpState(int(alive["tcp"]["state"][0]))

    def rounds(self) -> None:
        """Each whole second until now, as flow tables of act_ct have them."""
        now = self.rig.now // SECOND
        for second in range(self.second + 1, now + 1) if self.second else ():
            for number, flow in list(self.flows.items()):
                torn = flow.flags & Flag.TEARDOWN
                if flow.conn.timeout < second * HZ:  # the tracker has let it expire; of the same moment, the round comes first
                    flow.conn.status |= Status.DYING
                aging.collect(flow, second * HZ, LINUX)
                if flow.flags & Flag.TEARDOWN:
                    del self.flows[number]
                    self.given_back(flow, bool(torn))
        self.second = now

    def given_back(self, flow: Flow, torn: bool) -> None:
        """What a round has torn down has as many ticks left in both; by a packet (torn), and the tracker has had its say since."""
        left, alive = flow.conn.timeout - self.rig.now * HZ // SECOND, self.alive(flow.conn.number)
        if not torn and not flow.conn.status & Status.DYING:
            assert (int(alive["timeout"][0]) if len(alive) else 0) == max(left, 0)

    def found(self, arrived: Tuple) -> tuple[Flow | None, int]:
        for flow in self.flows.values():
            for direction in (ORIG, REPLY):
                if flow.tuple(direction) == arrived:
                    return flow, direction
        return None, ORIG

    def packet(self, arrived: Tuple, packet: Packet, send: Any) -> None:
        """One packet through both; they have to agree."""
        self.rounds()
        now = self.rig.now * HZ // SECOND
        flow, direction = self.found(arrived)
        if flow is not None:
            self.know(flow)
        looked = lookup.look(flow, packet, direction, now, LINUX)
        said = send()
        if flow is not None and not flow.flags & Flag.TEARDOWN and not len(self.alive(flow.conn.number)):
            flow.flags |= Flag.TEARDOWN
        if len(self.alive(said.conn)):  # else this packet was its last
            assert said.offload == self.expected(looked, said, now), (looked, said)
        if looked.installs and flow is not None:  # hardware gets to it behind the packet
            self.know(flow)
            flow.flags |= Flag.HW_ESTABLISHED if flow.conn.status & Status.SEEN_REPLY else Flag(0)

    def expected(self, looked: Looked, said: Any, now: int) -> str:
        """Of both what the record says: served, taken in, or why not."""
        served = "software" if looked.served else f"not_{looked.why.removeprefix('not_')}" if looked.why else "none"
        if served == "software":
            return served
        where = self.admitted(said, now)
        torn = served.startswith("not_teardown")
        return served if served != "none" and (where == "software" or torn) else where

    def admitted(self, said: Any, now: int) -> str:
        row = self.alive(said.conn)
        keys = [Tuple(bytes(k["src"][:4]), bytes(k["dst"][:4]), int(k["sport"]), int(k["dport"]), int(k["proto"])) for k in row["flow"]["key"][0]]
        mine = self.flows.get(said.conn)
        if mine is not None and not mine.flags & Flag.TEARDOWN:
            return "software"
        state = TcpState(int(row["tcp"]["state"][0])) if keys[0].proto == Proto.PROTO_TCP else None
        conn = Conn(keys[0], keys[1], int(row["status"][0]) & ~(Status.OFFLOAD | Status.HW_OFFLOAD), state, number=said.conn)
        busy = {(0, flow.tuple(direction)) for flow in self.flows.values() for direction in (ORIG, REPLY)}
        made = admission.admit(conn, State[said.state.upper()], busy, now, LINUX)
        if isinstance(made, Flow):
            self.flows[said.conn] = made
            made.flags |= Flag.HW_ESTABLISHED if conn.status & Status.SEEN_REPLY else Flag(0)
            return "software"
        return f"not_{str(made).removeprefix('not_')}"


FLAGS = st.sampled_from(["S", "SA", "A", "A", "PA", "FA", "RA"])
TTLS, WAITS = st.sampled_from([64, 64, 64, 64, 1]), st.sampled_from([0, 0, 0.1, 0.7, 1, 2.6, 13, 29, 31, 125])
PROTOS, SIDES = st.sampled_from(["udp", "udp", "tcp"]), st.sampled_from([0, 0, 1])
STEPS = st.lists(st.tuples(PROTOS, st.integers(0, 1), SIDES, FLAGS, TTLS, WAITS), min_size=4, max_size=25)
OPENED = [("tcp", 0, 0, "S", 64, 0), ("tcp", 0, 1, "SA", 64, 0), ("tcp", 0, 0, "A", 64, 0)]
ASSURED = [("udp", 0, 0, "", 64, 0), ("udp", 0, 1, "", 64, 2.6), ("udp", 0, 1, "", 64, 0)]


# A RST that the table does not serve (TTL 1) closes the connection under a flow that is in it: it expires there.
EXPIRES = [("udp", 0, 0, "S", 64, 0), ("udp", 0, 0, "S", 64, 0), ("udp", 0, 0, "S", 64, 0), ("tcp", 0, 0, "RA", 1, 0), ("udp", 0, 0, "S", 64, 13)]


@example(steps=EXPIRES, before=OPENED)
@settings(max_examples=150, deadline=None)
@given(steps=STEPS, before=st.sampled_from([[], OPENED, ASSURED, OPENED + ASSURED]))
def test_flow_table_and_contract_agree_on_every_packet(steps, before):
    rig = Rig(COMMITS)
    twin = Twin(rig)
    next_of: dict[tuple[int, int], int] = {}
    for proto, port, side, flags, ttl, wait in [*before, *steps]:
        ends = (CLIENT, SERVER, 40000 + port, 80) if side == IN else (SERVER, CLIENT, 80, 40000 + port)
        number = Proto.PROTO_TCP if proto == "tcp" else Proto.PROTO_UDP
        arrived = Tuple(ADDRESS[ends[0]], ADDRESS[ends[1]], *ends[2:], number)
        if proto == "udp":
            frame = craft.udp(*ends, b"datagram", ttl=ttl)
        else:
            seq, ack = (next_of.setdefault((port, which), 100 + 400 * which) for which in (side, 1 - side))
            frame = craft.tcp(*ends, flags, seq=seq, ack=ack if "A" in flags else 0, ttl=ttl)
            next_of[port, side] += ("S" in flags) + ("F" in flags)
        bits = sum({"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}[letter] for letter in flags) if proto == "tcp" else 0
        twin.packet(arrived, Packet(number, bits, hop_limit=ttl), lambda frame=frame, side=side: rig.send(frame, side))
        for flow in twin.flows.values():
            twin.know(flow)
        rig.wait(wait)
        twin.rounds()
        assert rig.flows.count == len(twin.flows)
    assert rig.flows.counters()["served"] + rig.flows.counters()["admitted"] > 0 or not before


# --- rules -----------------------------------------------------------------------------------------------------------------------------

PORT = st.integers(0, 65_535)


@st.composite
def flows(draw: Any) -> Flow:
    """A flow of any protocol and family, translated or not."""
    proto, size = draw(st.sampled_from([6, 17, 47])), draw(st.sampled_from([4, 16]))
    addresses = st.binary(min_size=size, max_size=size)
    ports = st.tuples(PORT, PORT) if proto != Proto.PROTO_GRE else st.just((0, 0))
    orig = Tuple(draw(addresses), draw(addresses), *draw(ports), proto)
    reply, status = orig.inverse(), Status.CONFIRMED | draw(st.sampled_from([0, Status.SEEN_REPLY, Status.SEEN_REPLY | Status.ASSURED]))
    if draw(st.booleans()):
        other = Tuple(draw(addresses), draw(addresses), *draw(ports), proto)
        reply, status = (
            draw(st.sampled_from([other, Tuple(orig.dst, other.src, orig.dport, orig.sport, proto)])),
            status | Status.SRC_NAT | Status.DST_NAT,
        )
    one = flow_of(proto, status, orig=orig, reply=reply, zone=draw(PORT), mark=draw(st.integers(0, 2**32 - 1)), number=draw(st.integers(0, 2**60)))
    one.conn.labels = draw(st.integers(0, 2**128 - 1))
    return one


def ask_of(flow: Flow) -> Any:
    """The INSTALL that a flow table would give."""
    ask = np.zeros(1, dtype=ASK_DTYPE)
    for direction in (ORIG, REPLY):
        key, of = ask["key"][0, direction], flow.tuple(direction)
        for end in ("src", "dst"):
            key[end][: len(getattr(of, end))] = list(getattr(of, end))
        key["sport"], key["dport"], key["zone"], key["proto"], key["family"] = of.sport, of.dport, flow.conn.zone, of.proto, of.l3
        ask["key"][0, direction] = key
    ask["row"], ask["serial"], ask["ask"], ask["conn"], ask["mark"] = 3, 9, Asked.INSTALL, flow.conn.number, flow.conn.mark
    ask["label"] = [flow.conn.labels & (1 << 64) - 1, flow.conn.labels >> 64]
    both, seen = bool(flow.flags & Flag.HW_BIDIRECTIONAL), bool(flow.conn.status & Status.SEEN_REPLY)
    ask["flags"] = both * FlowFlag.FLOW_BIDIRECTIONAL + seen * FlowFlag.FLOW_SEEN_REPLY
    return ask


def tuple_of(key: Any) -> Tuple:
    size = 4 if key["family"] == 4 else 16
    return Tuple(bytes(key["src"][:size]), bytes(key["dst"][:size]), int(key["sport"]), int(key["dport"]), int(key["proto"]))


@settings(max_examples=300, deadline=None)
@given(flow=flows())
def test_the_mirrors_commands_are_the_contracts_rules(flow):
    mirror = Mirror(8)
    mirror.feed(ask_of(flow), 5)
    rules = [rule.rule_of(flow, direction) for direction in rule.directions(flow)]
    commands = mirror.commands()
    if errno.EOPNOTSUPP in rules:
        assert (len(commands), mirror.why(3)["why"]) == (0, Why.DRV_UNSUPPORTED)
        return
    assert commands["op"].tolist() == [Op.REPLACE] * len(rules)
    for command, made, direction in zip(commands, rules, (ORIG, REPLY), strict=False):
        assert isinstance(made, rule.Rule)
        match, to = tuple_of(command["match"]), tuple_of(command["to"])
        assert (match, command["match"]["zone"]) == (made.match, made.zone)
        assert rule.writes_of(match, to, Status.SRC_NAT) == made.writes
        assert (int(command["conn"]), int(command["ctinfo"]), int(command["mark"])) == (*made.metadata.cookie, made.metadata.mark)
        low, high = (int(word) for word in command["label"])
        assert (low & 0xFFFFFFFF, low >> 32, high & 0xFFFFFFFF, high >> 32) == made.metadata.labels
        assert (int(command["dir"]), int(command["cookie"])) == (direction, (9 << 32 | 3) << 1 | direction)


@pytest.mark.parametrize("status", [Status.CONFIRMED, Status.CONFIRMED | Status.SEEN_REPLY])
def test_a4_35_of_the_mirror_is_that_of_the_contract(status):
    one = Flow(conn_of(17, status), Flag.HW, 0)
    mirror = Mirror(8)
    mirror.feed(ask_of(one), 5)
    assert int(mirror.commands()["ctinfo"][0]) == rule.ctinfo_of(one, ORIG)
