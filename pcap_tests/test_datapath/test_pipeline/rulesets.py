"""Whole rulesets as hypothesis draws them: all keys, all actions, everything as validate leaves it, so that text and back is the same value.

Not here: rules that are wrong; those are written by hand where they are tested.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from hypothesis import strategies as st

from datapath.pipeline.header_fields import HEADER_FIELDS
from datapath.pipeline.rule_checks import ct_state_error
from datapath.pipeline.rules import (
    CONTROLS,
    ETH_ALL,
    ETH_ARP,
    ETH_IP,
    ETH_IPV6,
    ETH_QINQ,
    ETH_RARP,
    ETH_VLAN,
    FIELD_ORDER,
    MOST_VLAN,
    PIPE,
    Control,
    Csum,
    Ct,
    CtNat,
    Gact,
    Hook,
    Match,
    Mirred,
    Munge,
    Pedit,
    Police,
    Qdisc,
    Rule,
    Ruleset,
    Skbedit,
    Template,
    Vlan,
    goto,
)
from datapath.pipeline.tc_actions import CSUM_ORDER, PTYPES

DEVICES = ("eth0", "eth1", "vf0", "vf1")
U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


def masked(bits: int):
    """Value and mask of so many bits; the mask of all of them often enough."""
    full = (1 << bits) - 1
    return st.tuples(st.integers(0, full), st.just(full) | st.integers(0, full)).map(lambda pair: (pair[0] & pair[1], pair[1]))


def prefixed(bits: int):
    """Value and mask of leading bits."""
    full = (1 << bits) - 1
    masks = st.integers(0, bits).map(lambda length: full ^ (full >> length))
    return st.tuples(st.integers(0, full), masks).map(lambda pair: (pair[0] & pair[1], pair[1]))


def exact(high: int, bits: int):
    return st.integers(0, high).map(lambda value: (value, (1 << bits) - 1))


def match(name: str, values) -> st.SearchStrategy[Match]:
    return values.map(lambda pair: Match(name, *pair))


def port(name: str) -> st.SearchStrategy[Match]:
    ends = st.lists(st.integers(1, 0xFFFF), min_size=2, max_size=2, unique=True).map(sorted)
    return match(name, masked(16)) | ends.map(lambda pair: Match(name, pair[0], 0xFFFF, pair[1]))


STATES = masked(6).filter(lambda pair: pair[1] and not ct_state_error(pair[0]))
ANYWHERE = [
    st.sampled_from(DEVICES).map(lambda name: Match("indev", 0, 0, None, name)),
    match("dst_mac", masked(48) | prefixed(48)),
    match("src_mac", masked(48) | prefixed(48)),
    match("ct_state", STATES),
    match("ct_zone", masked(16)),
    match("ct_mark", masked(32)),
    match("ct_label", masked(128)),
]
ARP = [
    match("arp_sip", prefixed(32)),
    match("arp_tip", prefixed(32)),
    match("arp_op", exact(2, 8)),
    match("arp_sha", masked(48)),
    match("arp_tha", prefixed(48)),
]
FLAGS = masked(2).filter(lambda pair: pair[1])


@st.composite
def layer_four(draw, protocol: int) -> list[Match]:
    """ip_proto and what may go with it."""
    icmp = 1 if protocol == ETH_IP else 58
    other = 58 if protocol == ETH_IP else 1
    proto = draw(st.sampled_from([6, 17, 132, icmp]) | U8.filter(lambda number: number != other))
    keys = [port("dst_port"), port("src_port")] if proto in (6, 17, 132) else []
    keys += [match("tcp_flags", masked(12))] if proto == 6 else []
    keys += [match("type", masked(8)), match("code", masked(8))] if proto == icmp else []
    return [Match("ip_proto", proto, 0xFF), *draw(some(keys))]


@st.composite
def some(draw, keys) -> list[Match]:
    """Any of the keys, each at most once."""
    chosen = draw(st.lists(st.sampled_from(range(len(keys))), unique=True)) if keys else []
    return [draw(keys[i]) for i in chosen]


@st.composite
def matches(draw, protocol: int) -> tuple[Match, ...]:
    """Keys that fit the protocol and each other, in the order of FIELDS."""
    found, inner = draw(some(ANYWHERE)), protocol
    for tag in ("vlan", "cvlan"):
        if inner not in (ETH_VLAN, ETH_QINQ):
            break
        found += draw(some([match(f"{tag}_id", exact(0xFFF, 12)), match(f"{tag}_prio", exact(7, 3))]))
        inner = draw(st.sampled_from([ETH_IP, ETH_IPV6, ETH_ARP] + [ETH_VLAN, ETH_QINQ] * (tag == "vlan") + [0x88CC]))
        found.append(Match(f"{tag}_ethtype", inner, 0xFFFF))
    if inner in (ETH_IP, ETH_IPV6):
        bits = 32 if inner == ETH_IP else 128
        keys = [match("ip_tos", masked(8)), match("ip_ttl", masked(8)), match("ip_flags", FLAGS)]
        keys += [match("dst_ip", prefixed(bits)), match("src_ip", prefixed(bits))]
        found += draw(some(keys)) + draw(st.just([]) | layer_four(inner))
    elif inner in (ETH_ARP, ETH_RARP):
        found += draw(some(ARP))
    return tuple(sorted(found, key=lambda each: FIELD_ORDER[each.name]))


# --- actions ----------------------------------------------------------------------------------------------------------------------------

FALLBACK = st.sampled_from(CONTROLS[:5]).map(Control)  # what a policer may do with what conforms
CONTROL = FALLBACK | st.integers(0, (1 << 28) - 1).map(goto)


def ordered(values):
    return st.lists(values, min_size=2, max_size=2).map(lambda pair: tuple(sorted(pair)))


def nat(version: int | None):
    kinds = {4: ordered(U32.map(IPv4Address)), 6: ordered(st.integers(0, (1 << 128) - 1).map(IPv6Address))}
    addresses = kinds[version] if version else kinds[4] | kinds[6]
    return st.builds(lambda kind, ends, ports: CtNat(kind, *ends, ports), st.sampled_from(["src", "dst"]), addresses, st.none() | ordered(U16))


HELPERS = st.tuples(st.sampled_from(["ftp", "tftp", "sip", "irc"]), st.sampled_from([4, 6]), st.sampled_from([6, 17]))


def ct(version: int | None):
    told = {"zone": U16, "mark": st.none() | masked(32), "label": st.none() | masked(128), "helper": st.none() | HELPERS, "control": CONTROL}
    plain = st.builds(Ct, **told, force=st.booleans(), nat=st.none() | st.just(CtNat()))
    commit = st.builds(Ct, **told, force=st.booleans(), commit=st.just(True), nat=st.none() | nat(version))
    return plain | commit | st.builds(Ct, zone=U16, clear=st.just(True), control=CONTROL)


@st.composite
def munges(draw) -> Munge:
    (header, name), field = draw(st.sampled_from(sorted(HEADER_FIELDS.items())))
    full = (1 << field.bits) - 1
    mask = field.mask if field.whole else draw(st.just(field.mask) | st.integers(0, full))
    return Munge(header, name, draw(st.sampled_from(["set", "add"][: 1 + field.addable])), draw(st.integers(0, full)) & mask, mask)


CSUM = st.lists(st.sampled_from(CSUM_ORDER), min_size=1, unique=True).map(lambda names: tuple(sorted(names, key=CSUM_ORDER.index)))
SKBEDIT = st.builds(
    Skbedit, st.none() | masked(32), st.none() | U32, st.none() | U16, st.sampled_from(["", *PTYPES]), CONTROL
).filter(lambda each: (each.mark, each.priority, each.queue, each.ptype) != (None, None, None, ""))  # fmt: skip
TAGS = st.none() | st.sampled_from([ETH_VLAN, ETH_QINQ])
VLAN = st.builds(Vlan, st.sampled_from(["push", "modify"]), st.integers(0, MOST_VLAN), TAGS, st.none() | st.integers(0, 7), CONTROL)
SIZE = st.integers(1, 0xFFFFFFFF)
POLICE = st.builds(
    lambda rate, burst, mtu, exceed, control: Police(rate * 8, burst, None, None, mtu, exceed, control),
    st.integers(1, 10**11), st.integers(1, 1 << 20), st.none() | st.integers(64, 65535), CONTROL, FALLBACK,
) | st.builds(Police, packet_rate=SIZE, packet_burst=st.integers(1, 1000), exceed=CONTROL, control=FALLBACK)  # fmt: skip
MIRRED = st.builds(Mirred, st.just("mirror"), st.sampled_from(DEVICES), st.sampled_from(["egress", "ingress"]), CONTROL) | st.builds(
    Mirred, st.just("redirect"), st.sampled_from(DEVICES), st.sampled_from(["egress", "ingress"]), st.just(PIPE)
)


def actions(version: int | None):
    return st.one_of(
        st.builds(Gact, CONTROL),
        ct(version),
        MIRRED,
        st.builds(Pedit, st.lists(munges(), min_size=1, max_size=4).map(tuple), CONTROL),
        st.builds(Csum, CSUM, CONTROL),
        SKBEDIT,
        VLAN,
        st.builds(Vlan, st.just("pop"), control=CONTROL),
        POLICE,
    )


# --- the whole --------------------------------------------------------------------------------------------------------------------------

PROTOCOLS = st.sampled_from([ETH_IP, ETH_IPV6, ETH_ARP, ETH_RARP, ETH_VLAN, ETH_QINQ, ETH_ALL, 0x88CC, 0x1234])
CHAINS = st.sampled_from([0, 0, 1, 2, (1 << 28) - 1])


@st.composite
def rules(draw, hook: Hook, prio: int) -> Rule:
    protocol = draw(PROTOCOLS)
    keys = draw(matches(protocol))
    inner = next((each.value for name in ("cvlan_ethtype", "vlan_ethtype") for each in keys if each.name == name), protocol)
    version = {ETH_IP: 4, ETH_IPV6: 6}.get(inner)
    does = tuple(draw(st.lists(actions(version), max_size=4)))
    skip_sw, skip_hw = draw(st.sampled_from([(False, False), (True, False), (False, True)]))
    return Rule(hook, protocol, keys, does, prio, draw(CHAINS), draw(st.integers(1, 0xFFFFFFFF)), skip_sw, skip_hw)


@st.composite
def rulesets(draw) -> Ruleset:
    """Qdiscs for all devices or for none; rules with a prio each; templates of chains that have no rules."""
    blocks = draw(st.tuples(st.none() | st.just(7), st.none() | st.just(8)))
    qdiscs = draw(st.sampled_from([(), (Qdisc("eth0"), Qdisc("eth1", "ingress"), Qdisc("vf0", "clsact", *blocks))]))
    hooks = [Hook("eth0"), Hook("eth0", "egress"), Hook("eth1")]
    hooks += [Hook("", "", block) for block in blocks if block is not None]
    prios = draw(st.lists(st.integers(1, 0xFFFF), unique=True, max_size=5))
    made = tuple(draw(rules(draw(st.sampled_from(hooks)), prio)) for prio in prios)
    templates = []
    for chain in draw(st.lists(st.integers(100, 110), unique=True, max_size=2)):
        protocol = draw(PROTOCOLS)
        templates.append(Template(draw(st.sampled_from(hooks)), protocol, chain, draw(matches(protocol))))
    return Ruleset(qdiscs, tuple(templates), made)
