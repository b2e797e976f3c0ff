"""Whatever is said on helped connections, engine and model agree: on decisions, expectations, offsets, edits, and every field.

Payloads are valid commands that were damaged: bytes changed, cut, doubled, inserted. Some examples run under translation, some without.
"""

from __future__ import annotations

from ipaddress import ip_address

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.model.helpers.text import read_ip4, read_ip6
from ctcore.nat_rules import HelperRule, NatRule, Range
from ctcore.types import RewriteFlag
from datapath import craft
from pcap_tests.conftest import examples
from pcap_tests.test_ctcore.test_helpers.sip_messages import MESSAGES
from pcap_tests.test_ctcore.test_helpers.test_tftp_irc_pptp import (
    DISCONNECT,
    IN_CONNECTED,
    IN_REPLY,
    IN_REQUEST,
    OUT_REPLY,
    OUT_REQUEST,
    START_REPLY,
    START_REQUEST,
)
from pcap_tests.test_ctcore.twins import Twins, same

CLIENT, SERVER, OUTSIDE = ("10.0.0.1", "2001:db8::1"), ("10.0.0.2", "2001:db8::2"), ("192.0.2.99", "2001:db8:9::99")
PORTS = {"ftp": 21, "irc": 6667, "pptp": 1723, "sip": 5060, "sip-tcp": 5060, "tftp": 69}
OVER_UDP = {"sip", "tftp"}
RULES = tuple(HelperRule(name.removesuffix("-tcp"), 17 if name in OVER_UDP else 6, port) for name, port in PORTS.items())
SNAT = tuple(NatRule("snat", Range(ip_address(outside), ip_address(outside))) for outside in OUTSIDE)
COMMANDS: dict[str, tuple[tuple[int, bytes], ...]] = {
    "ftp": (
        (0, b"PORT 10,0,0,1,7,208\r\n"), (0, b"EPRT |1|10.0.0.1|2000|\r\n"), (0, b"EPRT |2|2001:db8::1|2000|\r\n"), (0, b"NOOP\r\n"),
        (0, b"EPRT |2|2001:db8:0::0.0.0.1|2000|\r\n"), (1, b"227 Passive (10,0,0,2,195,80).\r\n"), (1, b"229 Passive (|||50000|)\r\n"),
        (0, b"PORT 10,0,0,1,7,20"), (1, b"200 ok\r\n"),
    ),
    "irc": (
        (0, b"PRIVMSG x :\1DCC SEND t 167772161 2000\1\r\n"), (0, b" PRIVMSG x :\1DCC TSEND t 167772161  2001 7\1\n"), (1, b"PING\r\n"),
        (0, b"PRIVMSG x :\1DCC CHAT :\1DCC SCHAT t 3221226083 2000\1\n"),
    ),
    "pptp": (
        (0, START_REQUEST), (1, START_REPLY), (0, OUT_REQUEST), (1, OUT_REPLY), (1, IN_REQUEST), (0, IN_REPLY), (1, IN_CONNECTED), (1, DISCONNECT),
    ),
    "sip": MESSAGES,
    "sip-tcp": tuple((d, message.replace(b"/UDP", b"/TCP")) for d, message in MESSAGES),
    "tftp": ((0, b"\0\1f\0octet\0"), (0, b"\0\2f\0octet\0"), (0, b"\0\3\0\1"), (1, b"\0\5\0\0")),
}  # fmt: skip
GRE = [(back, call) for back in (0, 1) for call in (7, 99, 40000, 0)]

bites = st.tuples(st.sampled_from(["set", "cut", "double", "insert"]), st.one_of(st.integers(0, 60), st.integers(0, 600)), st.integers(0, 255))


def damaged(payload: bytes, bite: tuple[str, int, int] | None) -> bytes:
    if bite is None or not payload:
        return payload
    how, at, value = bite
    at %= len(payload)
    if how == "cut":
        return payload[:at]
    if how == "double":
        return payload[:at] + payload[at:] * 2
    return payload[:at] + bytes([value]) + payload[at + (how == "set") :]


class Helped(Twins):
    """Twins that compare the offsets and edits as well."""

    def flush_batch(self, piece: int = 1 << 20) -> np.ndarray:
        return super().flush_batch(1 << 20)

    def watch(self, decisions, rewrites, frames, times) -> None:
        ours, theirs = self.engine.edits(), self.model.edits()
        moved = (rewrites["flags"] & RewriteFlag.REWRITE_SEQ) != 0
        same(rewrites["seq_delta"][moved], self.theirs["seq_delta"][moved], "seq_delta")
        same(rewrites["ack_delta"][moved], self.theirs["ack_delta"][moved], "ack_delta")
        for our, their in zip(rewrites, self.theirs, strict=True):
            if our["flags"] & RewriteFlag.REWRITE_EDIT:
                pair = [edits[int(r["first_edit"]) :][: int(r["n_edits"])] for edits, r in ((ours, our), (theirs, their))]
                same(*pair, "edits")

    def advance(self, tracker, frames, times):
        decisions, rewrites = super().advance(tracker, frames, times)
        if tracker is self.model:
            self.theirs = rewrites
        return decisions, rewrites


steps = st.lists(
    st.tuples(
        st.integers(0, 30), st.one_of(st.none(), st.none(), bites), st.sampled_from([0, 0, 0, 0, 0, 1, -1, 7, -19]),
        st.sampled_from([0, 0, 0, 1, 31, 299, 301]),
    ),
    min_size=4, max_size=24,
)  # fmt: skip


SHARES = [(0, 1), (0, 1), (0, 3), (2, 3)]  # of several trackers, only the first one has helpers


# A control connection expires that nothing was said on, beside a tunnel that nobody announced.
SILENT = [(23, None, 0, 299), (1, None, 0, 1), (23, None, 0, 0), (0, None, 0, 0)]


@settings(max_examples=examples(120), suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@example("pptp", 0, False, 1, SILENT, (0, 1))
@given(st.sampled_from(sorted(PORTS)), st.integers(0, 1), st.booleans(), st.sampled_from([1, 2, 4096]), steps, st.sampled_from(SHARES))
def test_engine_and_model_agree(helper, six, translated, expect_max, said, share):
    events = frozenset({"new", "update", "destroy"})
    twins = Helped(Config(helpers=RULES, nat=SNAT if translated else (), expect_max=expect_max, max=1000, events=events, share=share))
    talk(twins, helper, six, translated, said)
    twins.flush_batch()
    twins.take_events()
    twins.call("expire", twins.now + 10**15)
    twins.take_events()


def talk(twins: Helped, helper: str, six: int, translated: bool, said) -> None:
    """A control connection, what is said on it, and now and then a connection that may have been announced."""
    client, server = CLIENT[six], SERVER[six]
    outside = OUTSIDE[six] if translated else client
    port, following = PORTS[helper], [100, 500]
    ends = ((client, server, 40000, port), (server, outside, port, 40000))
    make = craft.udp if helper in OVER_UDP else craft.tcp

    def send(d: int, payload: bytes, flags: str = "PA", off: int = 0) -> None:
        if helper in OVER_UDP:
            twins.packet(make(*ends[d], payload=payload))
            return
        twins.packet(make(*ends[d], flags, seq=following[d] + off, ack=following[1 - d] if "A" in flags else 0, payload=payload))
        following[d] = max(following[d], following[d] + off + len(payload) + ("S" in flags))

    if helper not in OVER_UDP:
        send(0, b"", "S")
        send(1, b"", "SA")
        send(0, b"NOOP\r\n")
        send(1, b"200 ok\r\n")
    for which, bite, off, wait in said:
        twins.wait(wait)
        if which % 7 == 6:
            twins.packet(error_about((client, server, outside), port, helper, which, bite, off))
        elif which < 22:
            d, payload = COMMANDS[helper][which % len(COMMANDS[helper])]
            send(d, damaged(payload, bite), off=off)
        elif helper == "pptp" and not six:
            back, call = GRE[which % len(GRE)]
            twins.packet(craft.gre(*((server, outside) if back else (client, server)), version=1, proto=0x880B, call=call, payload=b"x"))
        else:
            open_announced(twins, outside, server, client, which)
        if which % 3 == 0:
            twins.flush_batch()


def error_about(hosts: tuple[str, str, str], port: int, helper: str, which: int, bite: tuple[str, int, int] | None, off: int) -> bytes:
    """An ICMP error from either side. What it quotes is taken for a TCP header where numbers are moved: its identification may be anything."""
    client, server, outside = hosts
    six = ":" in client
    quotes_client = which % 2
    ends = (outside, server, 40000, port) if quotes_client else (server, client, port, 40000)
    fields = {} if six else {"ident": (which * 0x0F0D + off) & 0xFFFF | (0x10 if which % 3 else 0)}
    quoted = craft.udp(*ends, b"x", **fields) if helper in OVER_UDP else craft.tcp(*ends, "PA", seq=500, ack=101, payload=bytes(40), **fields)
    quote = 48 if bite is None or six else 28 + bite[1] % 30
    who, whom = (server, outside) if quotes_client else (client, server)
    return craft.icmp_error(who, whom, *((1, 4) if six else (3, 3)), quoted, quote=quote)


def open_announced(twins: Helped, outside: str, server: str, client: str, which: int) -> None:
    twins.flush_batch()
    for row in twins.engine.expectations()[: which % 3]:
        src = row.src if row.src != "any" else "203.0.113.9"
        twins.packet((craft.udp if row.proto == 17 else craft.tcp)(src, row.dst, 20 + which, row.dport, *(() if row.proto == 17 else ("S",))))
    twins.packet(craft.tcp(server, outside, 20, 2000, "S", seq=which))
    twins.packet(craft.tcp(client, server, 20, 50000, "S", seq=which))


# --- addresses -------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=examples(400))
@given(st.text("0123456789abcdefABCDEF:.:|g ", max_size=45), st.sampled_from([b"|", b"!", b"a", b".", b":"]))
def test_ip6_is_read_as_the_engine_reads_it(text, end):
    """Through an EPRT, the engine's only way to read one; the address matters only if it is the sender's, so whether it drops is what is compared."""
    twins = Helped(Config(helpers=RULES, max=1000))
    talk(twins, "ftp", 1, False, [])
    delimiter = end
    command = b"EPRT " + delimiter + b"2" + delimiter + text.encode() + delimiter + b"2000" + delimiter + b"\r\n"
    twins.packet(craft.tcp(CLIENT[1], SERVER[1], 40000, 21, "PA", seq=107, ack=509, payload=command))
    twins.flush_batch()


def test_addresses_of_the_model():
    full = ip_address("2001:db8::1").packed
    for text in ("2001:db8::1", "2001:0DB8:0:0:0:0:0:0001", "02001:db8::0.0.0.1", "2001:db8:0:0:0::0:1"):
        assert read_ip6(text.encode() + b"|", 0, b"|") == (full, len(text))
    for text in ("", ":", ":::", "1:2:3", "1::2::3", "12345::", "::g", "1:2:3:4:5:6:7:8:9", ":1::", "1:::2", ":::1.2.3.4", "::1.2.3", "::256.1.1.1"):
        assert read_ip6(text.encode() + b"|", 0, b"|") is None
    assert read_ip4(b"10.0.00.001:5", 0, None) == (bytes([10, 0, 0, 1]).ljust(16, b"\0"), 11)
    assert read_ip4(b"10.0.0.1a", 0, None) is None and read_ip4(b"10.0.0.1x", 0, None)
