"""What a summary says of rules, that add up: who translated, who was never tracked, whose answers were dropped, which checksums were judged.

Not here: the rest of a replay through rules (test_replay_rules, test_ruled_records, test_policed).
"""

from __future__ import annotations

import pytest

from datapath import craft
from pcap_tests.test_datapath.command import records

CLIENT, SERVER = "10.0.0.2", "198.51.100.1"
IN = "tc filter add dev lan0 ingress protocol ip "


def syn(sport: int) -> bytes:
    return craft.tcp(CLIENT, SERVER, sport, 80, "S", seq=100)


def words(out: str) -> list[list[str]]:
    return [line.split() for line in out.splitlines()]


# --- translation ---------------------------------------------------------------------------------------------------------------------------


def test_a_range_has_the_names_of_its_rules(replayed):
    nat = "action ct commit nat src addr 192.0.2.7 port 30000-39999 pipe action pass\n"
    other = "action ct commit nat dst addr 10.0.0.9 pipe action pass\n"
    rules = f"{IN}prio 1 flower ip_proto tcp dst_port 80 {nat}{IN}prio 2 flower ip_proto tcp dst_port 81 {nat}{IN}prio 3 flower ip_proto udp {other}"
    out = replayed(rules, [syn(1), syn(2), craft.udp(CLIENT, SERVER, 5353, 53)])
    lines = words(out)
    at = lines.index(["snat", "192.0.2.7:30000-39999", "10,000", "2", "2", "0"])
    assert lines[at + 1] == ["by", "rules.tc:1,", "rules.tc:2"]
    at = next(i for i, line in enumerate(lines) if line[:2] == ["dnat", "10.0.0.9"])
    assert lines[at + 1] == ["by", "rules.tc:3"]


# --- never tracked -------------------------------------------------------------------------------------------------------------------------

SOME = f"{IN}prio 1 flower ip_proto tcp action ct commit pipe action pass\n{IN}prio 2 flower ip_proto icmp action drop\n"


def mixed() -> list[bytes]:
    arp, short = craft.eth(bytes(28), 0x0806), craft.eth(b"\x44" + bytes(19), 0x0800)
    return [syn(1), arp, short, craft.udp(CLIENT, SERVER, 5, 6), craft.udp(CLIENT, SERVER, 5, 6), craft.icmp(CLIENT, SERVER, 8, ident=1, sequence=1)]


@pytest.mark.parametrize("more", [(), ("--no-flowtable",)])
def test_what_no_rule_sent_to_conntrack_is_told(replayed, more):
    """So that the reasons of what was not seen add up to their state's number."""
    seen = records(replayed(SOME, mixed(), "--packets", "-", "-q", *more))
    untold = [each for each in seen if each["state"] == "not-seen" and each["reason"] in ("ok", "rule_drop")]
    lines = words(replayed(SOME, mixed(), *more))
    assert len(untold) == 3 and ["no", "rule", "sent", "it", "to", "conntrack", "3"] in lines
    assert ["not-seen", "5"] in [line[:2] for line in lines]


def test_what_a_tracker_would_have_refused_is_told_of_what_it_was_asked_about_alone(replayed):
    """The header goes beyond the frame: invalid to conntrack, and nothing to rules that do not ask it."""
    beyond = craft.eth(b"\x46" + bytes(19), 0x0800)
    lines = words(replayed(SOME, [beyond]))
    assert ["no", "rule", "sent", "it", "to", "conntrack", "1"] in lines and ["why", "invalid", "packets", "first", "at"] not in lines
    asking = f"{IN}prio 1 flower action ct pipe action pass\n"
    assert ["why", "invalid", "packets", "first", "at"] in words(replayed(asking, [beyond]))


def test_where_all_are_tracked_nothing_is_said(replayed):
    assert "no rule sent it" not in replayed(SOME, [syn(1), syn(2)])


# --- answers that rules drop ---------------------------------------------------------------------------------------------------------------

GATEWAY = (
    f"{IN}prio 1 chain 0 flower src_ip 10.0.0.0/8 ct_state -trk action ct pipe action goto chain 1\n"
    f"{IN}prio 2 chain 0 flower action drop\n"
    f"{IN}prio 1 chain 1 flower action ct commit pipe action mirred egress redirect dev wan0\n"
)


def talks(n: int) -> list[bytes]:
    """Both directions, as a capture of one interface has them."""
    said = []
    for port in range(40000, 40000 + n):
        said += [syn(port), craft.tcp(SERVER, CLIENT, 80, port, "SA", seq=500, ack=101), craft.tcp(CLIENT, SERVER, port, 80, "A", seq=101, ack=501)]
    return said


def test_a_hint_names_the_rule_that_dropped_the_answers(replayed):
    out = " ".join(replayed(GATEWAY, talks(12)).split())
    assert "12 of 12 TCP connections were seen in one direction only: their answers came to lan0 ingress too, it seems" in out
    assert "where rules.tc:2 dropped 12 packets: a capture of one interface that does not say directions brings all packets to one hook" in out
    assert "was it captured where both directions pass?" not in out


def test_without_drops_it_is_the_capture_that_is_asked_about(replayed):
    asked = [frame for i, frame in enumerate(talks(12)) if i % 3 != 1]
    out = " ".join(replayed(GATEWAY, asked).split())
    assert "12 of 12 TCP connections were seen in one direction only: was it captured where both directions pass?" in out


# --- checksums that nobody judged ------------------------------------------------------------------------------------------------------------


def test_the_hint_about_checksums_agrees_with_the_table(replayed):
    """Three are of a connection in the flow table."""
    rules = f"{IN}prio 1 flower action ct commit pipe action pass\n"
    served = [craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=101, ack=501, l4_checksum=0)] * 3
    frames = [*talks(1), *served, craft.tcp(CLIENT, SERVER, 40001, 80, "S", l4_checksum=0)]
    out = " ".join(replayed(rules, frames).split())
    assert "bad TCP checksum 1 #6" in out
    assert "4 of 4 bad TCP and UDP checksums are what an offloading NIC leaves: try --checksum 0; conntrack has looked at 1 of them" in out
    assert "conntrack has looked at" not in replayed(rules, frames, "--no-flowtable")


# --- what rules do not see -----------------------------------------------------------------------------------------------------------------


def flat(out: str) -> str:
    return " ".join(out.split())


def test_bad_header_checksums_are_told_though_rules_do_not_look_at_them(replayed):
    bad = [data[:24] + b"\x12\x34" + data[26:] for data in (syn(1), syn(2), syn(3))]
    said = "3 of 13 packets have bad IPv4 header checksums, which rules do not look at"
    good = [syn(port) for port in range(10, 20)]
    out = replayed(SOME, [*bad, *good])
    assert said in flat(out) and "not-seen" not in out  # they were tracked all the same
    assert "tc and its ct come before the part of Linux that drops such packets (as a replay without rules does)" in flat(out)
    assert "header checksums" not in replayed(SOME, [*bad[:2], *good])


def tagged(kind: int, inner: bytes) -> bytes:
    """A frame with four bytes of a tag or a label between Ethernet and IP."""
    return inner[:12] + kind.to_bytes(2, "big") + (b"\0\5" + inner[12:14] if kind in (0x8100, 0x88A8) else b"\0\0\1\x40") + inner[14:]


@pytest.mark.parametrize(
    ("kind", "protocol", "said"),
    [
        (0x8100, "ip", "3 with an 802.1Q tag: rules with `protocol ip` or `ipv6` do not see these, as in tc; rules for them want `protocol 802.1Q`"),
        (0x88A8, "802.1Q", "3 with an 802.1ad tag: "),
        (0x8847, "ip", "3 with MPLS labels: rules with `protocol ip` or `ipv6` do not see these, as in tc; rules for them want `protocol all`"),
        (0x8100, "802.1Q", ""),
        (0x8100, "all", ""),
    ],
)
def test_packets_behind_tags_are_told_where_no_rule_is_for_them(replayed, kind, protocol, said):
    rules = f"tc filter add dev lan0 ingress protocol {protocol} prio 1 flower action pass\n"
    out = flat(replayed(rules, [*(tagged(kind, syn(port)) for port in (1, 2, 3)), syn(4)]))
    assert (f"of 4 packets, {said}" in out) if said else ("do not see these" not in out)


def test_few_tags_are_nothing_to_speak_of(replayed):
    assert "do not see these" not in replayed(SOME, [tagged(0x8100, syn(1)), tagged(0x8100, syn(2)), syn(3)])


@pytest.mark.parametrize(
    ("hidden", "said"),
    [
        (craft.eth(craft.pppoe(syn(1)[14:]), 0x8864), "3 in PPPoE: rules do not look behind these"),
        (craft.eth(craft.pppoe(syn(1)[14:]), 0x8864, vlan=(5, 6)), "3 in PPPoE: "),
        (craft.eth(craft.mpls(syn(1)[14:], 16), 0x8847, vlan=(5,)), "3 with MPLS labels: "),
        (craft.eth(syn(1)[14:], vlan=(5, 6, 7)), "3 with more than two VLAN tags: "),
        (craft.eth(syn(1)[14:], vlan=(5, 6)), ""),
    ],
)
def test_packets_that_no_rule_looks_into_are_told_where_rules_let_them_by(replayed, hidden, said):
    rules = "tc filter add dev lan0 ingress protocol all prio 1 flower action pass\n"
    out = flat(replayed(rules, [hidden] * 3 + [syn(4)]))
    assert (f"of 4 packets, {said}" in out) if said else ("do not look behind" not in out)
    assert "do not look behind" not in replayed(rules, [hidden] * 2 + [syn(4)]), "few are nothing to speak of"


# --- what matched nothing ------------------------------------------------------------------------------------------------------------------


def test_rules_that_matched_nothing_have_names_with_v(replayed):
    rules = "".join(f"{IN}prio {n} flower ip_proto udp dst_port {n} action pass\n" for n in range(1, 31))
    assert "29 rules matched nothing\n" in replayed(rules, [craft.udp(CLIENT, SERVER, 5, 2)])
    out = flat(replayed(rules, [craft.udp(CLIENT, SERVER, 5, 2)], "-v"))
    named = ", ".join(f"rules.tc:{n}" for n in range(1, 26) if n != 2)
    assert f"29 rules matched nothing: {named}, and 5 more" in out
