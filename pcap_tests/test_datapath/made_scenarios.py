"""Scenarios for property tests: every field of every part, each with any value that it may have.

Not here: scenarios that make sense (pcap_tests/scenarios).
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from ctcore import spec
from ctcore.nat_rules import HelperRule
from datapath.rule_text import parse_rule
from datapath.scenario import expectation as e
from datapath.scenario import steps as s

BYTE, SHORT, LONG = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))
NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,5}", fullmatch=True)
COMMENTS = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" #=>"), max_size=20).map(str.strip)
SECONDS = st.floats(0, 1e6).map(abs)
BYTES = st.binary(max_size=12)
DATA = BYTES | st.integers(0, 40)
SUM = st.just("good") | st.just("bad") | SHORT


def maybe(values):
    return st.none() | values


OPTIONS = st.one_of(
    st.builds(s.Option, st.just("mss"), st.tuples(SHORT)),
    st.builds(s.Option, st.just("wscale"), st.tuples(BYTE)),
    st.builds(s.Option, st.sampled_from(("sackok", "nop", "eol"))),
    st.builds(s.Option, st.just("sack"), st.lists(st.tuples(LONG, LONG), min_size=1, max_size=2).map(lambda pairs: sum(pairs, ()))),
    st.builds(s.Option, st.just("timestamp"), st.tuples(LONG, LONG)),
    st.builds(s.Option, st.just("raw"), st.binary(max_size=5)),
)
CHUNKS = st.builds(s.Chunk, BYTE, BYTE, maybe(LONG), DATA, maybe(SHORT))
FLAGS = st.lists(st.sampled_from("FSRPAUEC"), unique=True).map("".join)
WITH_PORTS = st.one_of(
    st.builds(s.Tcp, FLAGS, LONG, LONG, SHORT, SHORT, st.lists(OPTIONS, max_size=2).map(tuple), DATA, maybe(st.integers(0, 15)), SUM),
    st.builds(s.Udp, DATA, maybe(SHORT), SUM),
    st.builds(s.UdpLite, DATA, SHORT, SUM | st.just("udp")),
    st.builds(s.Sctp, LONG, st.lists(CHUNKS, max_size=3).map(tuple), BYTES, st.just("good") | st.just("bad") | LONG),
)
ENDS = st.builds(s.Ends, st.sampled_from(("A", "192.0.2.1", "2001:db8::9")), st.sampled_from(("B", "B6")), maybe(SHORT), maybe(SHORT))
WITHOUT = st.one_of(
    st.builds(s.Icmp, BYTE, BYTE, st.booleans(), SHORT, SHORT, st.just(None), maybe(ENDS), maybe(SHORT), DATA, SUM),
    st.builds(s.Gre, st.integers(0, 7), maybe(SHORT), SHORT, BYTE, DATA),
    st.builds(s.Other, BYTE, DATA),
)
FRAGS = st.tuples(st.integers(0, 8).map(lambda n: 8 * n), maybe(st.integers(0, 64)))
_COMMON = {
    "ttl": BYTE,
    "frag": maybe(FRAGS),
    "more": maybe(st.booleans()),
    "cut": maybe(st.integers(0, 60)),
    "pad": st.integers(0, 20),
    "zone": maybe(SHORT),
}
_LIES = {"version": maybe(st.integers(0, 15)), "length": maybe(SHORT)}
IPV4 = st.builds(
    s.Ip, tos=BYTE, ident=SHORT, df=st.booleans(), options=BYTES, ihl=maybe(st.integers(0, 15)), checksum=SUM, **_COMMON, **_LIES
)  # fmt: skip
IPV6 = st.builds(s.Ip, ident=LONG, ext=st.lists(st.builds(s.Ext, BYTE, maybe(BYTES)), max_size=2).map(tuple), **_COMMON, **_LIES)


def packets(hosts, ip):
    ends = st.sampled_from(hosts)
    return st.one_of(
        st.builds(s.Packet, ends, ends, WITH_PORTS, SHORT, SHORT, ip),
        st.builds(s.Packet, ends, ends, WITHOUT, ip=ip),
    )


PACKETS = packets(("A", "B", "10.9.8.7"), IPV4) | packets(("A6", "B6", "2001:db8::77"), IPV6) | st.builds(s.Raw, BYTES)
STATUS = st.frozensets(st.sampled_from(e.STATUS))
EXPECTATIONS = st.builds(
    s.Expect,
    state=maybe(st.sampled_from(e.STATES)),
    l4state=maybe(st.sampled_from(e.L4STATES)),
    timeout=maybe(SECONDS),
    dir=maybe(st.sampled_from(e.DIRS)),
    has=STATUS,
    lacks=STATUS,
    status=maybe(STATUS),
    verdict=maybe(st.sampled_from(e.VERDICTS)),
    conn=maybe(st.integers(s.NO_CONN, 1 << 20)),
    reason=maybe(st.sampled_from(e.REASONS)),
    zone=maybe(SHORT),
    mark=maybe(LONG),
    variables=st.dictionaries(st.sampled_from(e.NAMES), st.from_regex(r"[a-z0-9,.:-]{1,8}", fullmatch=True), max_size=2).map(
        lambda d: tuple(d.items())
    ),
).filter(lambda expect: expect != s.Expect())
STEPS = st.builds(s.Step, PACKETS, SECONDS, maybe(EXPECTATIONS), comments=st.lists(COMMENTS, max_size=2).map(tuple), remark=COMMENTS)
# test_rule_text has all there is to be written in a rule.
RULES = st.sampled_from(
    [
        replace(parse_rule(kind, text), text="") for kind, text in (
            ("snat", "192.0.2.1"), ("snat", "ip_proto tcp src_ip 10.0.0.0/8 => 192.0.2.1-192.0.2.9:1024-65535,random"), ("masquerade", "2001:db8::9"),
            ("dnat", "ip_proto udp dst_port 53 => [2001:db8::9]:5353"), ("redirect", "192.0.2.1:3128"), ("snat", ":1-2,fully-random,persistent"),
        )
    ]
)  # fmt: skip
HELPERS = st.builds(HelperRule, st.sampled_from(("ftp", "tftp")), st.sampled_from((6, 17)), st.integers(1, 65535))
PLACES = st.dictionaries(SHORT, st.integers(0, 9), max_size=2)  # reserves above limits are refused
ZONES = st.tuples(
    maybe(st.tuples(SHORT, st.sampled_from(("both", "original", "reply")))), maybe(st.integers(9, 99)),
    st.dictionaries(SHORT, st.integers(9, 99), max_size=2), PLACES,
)  # fmt: skip
SWITCHES = ("tcp_liberal", "tcp_loose", "tcp_ignore_invalid_rst", "checksum", "acct")


@st.composite
def scenarios(draw):
    """A scenario; some steps have a label, and ICMP errors quote some of them by number or label."""
    steps = draw(st.lists(STEPS, max_size=5))
    labelled = [replace(step, label=draw(st.sampled_from(("", f"l{i}")))) for i, step in enumerate(steps)]
    if labelled and draw(st.booleans()):
        about = draw(st.integers(0, len(labelled) - 1))
        error = s.Icmp(3, 1, about=labelled[about].label or about, quote=draw(maybe(SHORT)))
        labelled.append(s.Step(s.Packet("B", "A", error)))
    settings = draw(
        st.fixed_dictionaries({}, optional={**{name: st.integers(0, 1) for name in SWITCHES}, "seed": LONG, "max": st.just(0) | st.integers(18, 255)})
    )
    hosts = draw(st.dictionaries(NAMES.filter(lambda name: name != "set"), st.ip_addresses().map(str).filter(lambda a: "%" not in a), max_size=3))
    hosts = {name: address for name, address in hosts.items() if name not in s.DEFAULT_HOSTS}
    timeouts = draw(st.dictionaries(st.sampled_from(sorted(spec.timeouts())), SHORT, max_size=2))
    ending = tuple(draw(st.lists(COMMENTS, max_size=1))) if labelled else ()
    rules = (tuple(draw(st.lists(each, max_size=2))) for each in (RULES, HELPERS))
    comments = tuple(draw(st.lists(COMMENTS, max_size=2)))
    return s.Scenario(tuple(labelled), "made", hosts, settings, timeouts, *rules, comments, ending, *draw(ZONES))
