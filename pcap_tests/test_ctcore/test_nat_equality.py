"""Whatever packets come in whatever order under whatever rules: no two live connections share a tuple, every packet is translated as its connection
says, and engine and model agree on all of it, down to the ports they choose at random.

Few addresses and narrow ranges, so that tuples meet and ranges run out; answers go to where packets seemed to come from. Not here: untranslated
traffic in all its forms (test_equality).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.model.conn import Key
from ctcore.nat_rules import NatRule
from ctcore.types import Dir, Proto, RewriteFlag, Status, Verdict
from datapath import craft
from datapath.leave import CHANGES
from pcap_tests.router import ANY, dnat, masquerade, redirect, snat
from pcap_tests.scene import options
from pcap_tests.test_ctcore.test_equality import EXAMPLES, ICMP4, ICMP6, config, end_batch, pick, run, series, steps
from pcap_tests.test_ctcore.twins import Twins

CLIENTS = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1")
SERVERS = ("198.51.100.7", "203.0.113.9", "10.0.0.3")
CLIENTS6 = ("2001:db8:1::1", "2001:db8:1::2", "2001:db8:9::1")
SERVERS6 = ("2001:db8:2::7", "2001:db8:2::8")
PORTS = (1, 600, 5000, 5001, 40000)
SERVICES = (53, 80, 5000)
FLAGS = ("S", "S", "S", "A", "SA", "FA", "R", "RA")
ERRORS4, ERRORS6 = (3, 4, 5, 11, 12), (1, 2, 3, 4)

spans = st.sampled_from([None, None, 5000, (5000, 5001), (5000, 5040), (1, 2), (1024, 65535), (0, 300)])
ways = st.fixed_dictionaries({}, optional={name: st.booleans() for name in ("random", "fully_random", "persistent")})
matches = st.fixed_dictionaries(
    {},
    optional={
        "proto": st.sampled_from([Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_ICMP, Proto.PROTO_GRE]),
        "src": st.sampled_from(["10.0.0.0/8", "10.0.0.2/31", "192.0.2.0/24"]),
        "dst": st.sampled_from(["198.51.100.0/24", "203.0.113.9/32", "10.0.0.0/24"]),
        "sport": st.sampled_from([1, (1, 1023), (1024, 65535)]),
        "dport": st.sampled_from([53, (80, 5000)]),
    },
)
matches6 = st.fixed_dictionaries({}, optional={"src": st.just("2001:db8:1::/48"), "dst": st.just("2001:db8:2::7/128"), "dport": st.just(53)})


def rules_of(make, addresses: list[str], match: st.SearchStrategy) -> st.SearchStrategy[NatRule]:
    return st.builds(lambda address, ports, how, who: make(address, ports=ports, **how, **who), st.sampled_from(addresses), spans, ways, match)


rules = st.one_of(
    rules_of(snat, ["192.0.2.1", "192.0.2.1-192.0.2.3", "0.0.0.0", ANY], matches),
    rules_of(dnat, ["10.0.0.3", "10.0.0.2-10.0.0.4", "203.0.113.9", ANY], matches),
    rules_of(masquerade, ["192.0.2.1"], matches),
    rules_of(redirect, ["10.0.0.3"], matches),
    rules_of(snat, ["2001:db8:9::1", "2001:db8:9::1-2001:db8:9::3", "2001:db8:9::1-2001:db8:a::", "::"], matches6),
    rules_of(dnat, ["2001:db8:2::8", "2001:db8:1::1-2001:db8:1::2"], matches6),
)
translating = config(nat=st.lists(rules, min_size=1, max_size=5).map(tuple), max=st.sampled_from([16, 1000, 1000]))


class NatPlay:
    """Questions of every protocol, answers to what has left, and complaints about it."""

    def __init__(self, model):
        self.model = model

    def __call__(self, twins: Twins, step: bytes) -> None:
        asks = (self.udp, self.udp, self.tcp, self.tcp, self.tcp, self.ping, self.gre, self.other, self.sctp)
        if step[0] < 120:
            twins.packet(pick(asks, step[1])(step))
        elif step[0] < 250:
            twins.flush_batch()  # to know what lives
            for frame in self.end(step) if step[0] < 150 else self.known(step):
                twins.packet(frame)
        elif step[0] < 252:
            twins.call("prefer", pick((0, 1, 5000, 40000, 65535), step[1]))
        else:
            twins.call("expect", max(0, self.model._next_id - 1), pick(CLIENTS, step[1]), pick(SERVERS, step[2]), pick((6, 17, 47), step[3]), 53)

    def ends(self, step: bytes) -> tuple[str, str]:
        six = step[2] & 3 == 0
        return pick(CLIENTS6 if six else CLIENTS, step[3]), pick(SERVERS6 if six else SERVERS, step[4])

    def udp(self, step: bytes) -> bytes:
        make = craft.udp if step[7] & 7 else partial(craft.udplite, payload=b"1234", sum_proto=craft.UDP)
        return make(*self.ends(step), pick(PORTS, step[5]), pick(SERVICES, step[6]))

    def tcp(self, step: bytes) -> bytes:
        seq = pick((100, 1000, 1 << 20, 1 << 31), step[7])
        return craft.tcp(
            *self.ends(step), pick(PORTS, step[5]), pick(SERVICES, step[6]), pick(FLAGS, step[7] >> 2), seq=seq, options=options(wscale=2)
        )

    def ping(self, step: bytes) -> bytes:
        src, dst = self.ends(step)
        return craft.icmp(src, dst, pick(ICMP6 if ":" in src else ICMP4, step[5] & 6), step[6] & 1, ident=pick((0, 7, 5000), step[7]))

    def gre(self, step: bytes) -> bytes:
        version = pick((0, 0, 1, 2), step[5])
        return craft.gre(*self.ends(step), version=version, proto=0x880B, call=pick((0, 53), step[6]), payload=bytes(step[7] & 7))

    def other(self, step: bytes) -> bytes:
        return craft.frame(*self.ends(step), 89, b"whatever")

    def sctp(self, step: bytes) -> bytes:
        return craft.sctp(*self.ends(step), pick(PORTS, step[5]), pick(SERVICES, step[6]), 0, craft.sctp_init(7))

    def known(self, step: bytes) -> list[bytes]:
        """A packet of a live connection, in either direction, or an ICMP error about one that has left."""
        conns = self.model.conns()
        if not len(conns):
            return [self.udp(step)]
        conn = conns[step[1] % len(conns)]
        d = Dir.REPLY if step[2] & 3 else Dir.ORIG
        key = Key.of(conn["flow"][d]["key"].tobytes())
        frame = self.of(key, conn, d, step)
        if step[3] < 170:
            return [frame]
        about = self.of(key.inverted(), conn, 1 - d, step)  # as it has left
        src, dst = hosts(key)
        six = key.family == 6
        kind, sender = pick(ERRORS6 if six else ERRORS4, step[4]), pick((src, "2001:db8::250" if six else "10.0.0.250"), step[5])
        return [craft.icmp_error(sender, dst, kind, 0, about, quote=pick((1000, 28, 24, 48), step[6]))]

    def end(self, step: bytes) -> list[bytes]:
        """All that is left of a TCP connection's life: properly closed, or reset by the server."""
        conns = self.model.conns()
        conns = conns[conns["flow"]["key"]["proto"][:, 0] == Proto.PROTO_TCP]
        if not len(conns):
            return [self.tcp(step)]
        conn = conns[step[1] % len(conns)]
        key = [Key.of(conn["flow"][d]["key"].tobytes()) for d in Dir]
        client, server = int(conn["tcp"]["side"][0]["end"]), 500
        said = [(1, "SA", server, client), (0, "A", client, server + 1)]
        if step[2] & 3 == 0:
            said += [(1, "R", server + 1, 0)]
        else:
            said += [(0, "FA", client, server + 1), (1, "FA", server + 1, client + 1), (0, "A", client + 1, server + 2)]
        return [craft.tcp(*hosts(key[d]), key[d].sport, key[d].dport, flags, seq=seq, ack=ack) for d, flags, seq, ack in said]

    def of(self, key: Key | None, conn: np.void, d: int, step: bytes) -> bytes:
        assert key is not None
        if key.proto == Proto.PROTO_UDP:
            return craft.udp(*hosts(key), key.sport, key.dport)
        if key.proto == Proto.PROTO_TCP:
            own, peer = (int(conn["tcp"]["side"][e]["end"]) for e in (d, 1 - d))
            flags = pick(("SA", "A", "FA", "R", "A", "S"), step[7])
            return craft.tcp(*hosts(key), key.sport, key.dport, flags, seq=own or 500, ack=peer)
        if key.proto in (Proto.PROTO_ICMP, Proto.PROTO_ICMPV6):
            return craft.icmp(*hosts(key), key.dport >> 8, key.dport & 0xFF, ident=key.sport)
        if key.proto == Proto.PROTO_GRE:
            return craft.gre(*hosts(key), version=pick((0, 0, 1, 2), step[7]), proto=0x880B, call=key.dport, payload=bytes(step[6] & 7))
        if key.proto == Proto.PROTO_UDPLITE:
            return craft.udplite(*hosts(key), key.sport, key.dport, b"1234", sum_proto=craft.UDP)
        if key.proto == Proto.PROTO_SCTP:
            tag = int(conn["sctp"]["vtag"][d]) if d == Dir.REPLY else 0
            return craft.sctp(*hosts(key), key.sport, key.dport, tag, craft.sctp_init(7 + d, ack=d == Dir.REPLY))
        return craft.frame(*hosts(key), key.proto, b"whatever")


def hosts(key: Key) -> tuple[str, str]:
    size = 4 if key.family == 4 else 16
    return str(ip_address(key.src[:size])), str(ip_address(key.dst[:size]))


@given(translating, series)
@EXAMPLES
def test_engine_and_model_translate_alike(config, data):
    plays = {}
    run(config, data, lambda twins, step: plays.setdefault(0, NatPlay(twins.model))(twins, step))


crowded = config(nat=st.sampled_from([(snat("192.0.2.1", ports=(5000, last)),) for last in (5000, 5001, 5003, 5039)]), max=st.just(1000))


class CrowdedPlay(NatPlay):
    """Many clients who ask one server by TCP, end, and ask again."""

    def __call__(self, twins: Twins, step: bytes) -> None:
        if step[0] < 150:
            source = pick(CLIENTS[:3], step[1]), SERVERS[0], 1000 + step[2] % 40
            twins.packet(craft.tcp(*source, 80, pick(("S", "S", "S", "A"), step[3]), seq=pick((100, 1000, 1 << 20, 1 << 31), step[4]) + step[5]))
        else:
            super().__call__(twins, bytes([120 + step[0] % 100]) + step[1:])


@given(crowded, series)
@EXAMPLES
def test_a_few_ports_for_everybody(config, data):
    """Exhausted most of the time; closed connections give way."""
    plays = {}
    run(config, data, lambda twins, step: plays.setdefault(0, CrowdedPlay(twins.model))(twins, step))


class Witness(Twins):
    """Twins that also prove, of every batch, what is true of any translation at all."""

    def watch(self, decisions: np.ndarray, rewrites: np.ndarray, frames: Sequence[bytes], times: np.ndarray) -> None:
        keys = [Key.of(row["key"].tobytes()) for row in self.batch(frames, times).array]
        conns = {int(conn["flow"][0]["id"]): conn for conn in self.model.conns()}
        tuples = [Key.of(conn["flow"][d]["key"].tobytes()) for conn in conns.values() for d in Dir]
        mirrored = sum(conn["flow"][0]["key"] == conn["flow"][1]["key"] for conn in conns.values())
        assert len(set(tuples)) == len(tuples) - mirrored, "two connections share a tuple"
        for decision, rewrite, key in zip(decisions, rewrites, keys, strict=True):
            self.packet_left(decision, int(rewrite["flags"]), Key.of(rewrite["to"].tobytes()), key, conns.get(int(decision["conn"])))

    def packet_left(self, decision: np.void, flags: int, to: Key, key: Key, conn: np.void | None) -> None:
        if decision["verdict"] != Verdict.ACCEPT or decision["conn"] < 0:
            assert flags == 0, "changed, though it has no connection or does not leave"
        if not flags & CHANGES:
            return
        assert decision["status"] & (Status.SRC_NAT | Status.DST_NAT), "changed, though its connection is not translated"
        outer = bool(flags & RewriteFlag.REWRITE_SRC), bool(flags & RewriteFlag.REWRITE_DST)
        inner = bool(flags & RewriteFlag.REWRITE_INNER_DST), bool(flags & RewriteFlag.REWRITE_INNER_SRC)
        assert inner in (outer, (False, False)), "what is quoted changes the other way round"
        if conn is None or any(inner):
            return
        d = int(decision["dir"])
        came, answer = (Key.of(conn["flow"][e]["key"].tobytes()) for e in (d, 1 - d))
        assert key == came and to == answer.inverted(), "it leaves as the answers to it say"
        # Translated back: the answer to what left, told the way of the other direction, is the answer to what came.
        assert changed(to.inverted(), came.inverted(), outer[::-1]) == came.inverted()


def changed(key: Key | None, to: Key | None, halves: tuple[bool, bool]) -> Key:
    """A tuple with its source, its destination, or both taken from another; an ICMP id goes with either."""
    assert key is not None and to is not None
    icmp = key.proto in (Proto.PROTO_ICMP, Proto.PROTO_ICMPV6)
    if halves[0]:
        key = key._replace(src=to.src, sport=to.sport)
    if halves[1]:
        key = key._replace(dst=to.dst, **({"sport": to.sport} if icmp else {"dport": to.dport}))
    return key


@given(translating, series)
@EXAMPLES
def test_no_two_connections_share_a_tuple_and_every_way_leads_back(config: Config, data: bytes):
    twins = Witness(config)
    play = NatPlay(twins.model)
    for step in steps(data):
        twins.wait((0, 0, 0, 0, 0.5, 10, 31, 121)[step[-1] & 7])
        play(twins, step[:-1])
        if step[-1] >= 0xC0:
            end_batch(twins, step[-2] & 0xFE)
    twins.flush_batch()
