"""A frame's way through chains and CT tables (offload contract A9), by item."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from datapath import craft
from offload.records import Ctinfo
from offload.simnic.kept import KEPT, Kept
from offload.simnic.profile import load
from offload.simnic.results import NO_RULE, WHY, Verdict, Why
from offload.simnic.rules import (
    DROP,
    PASS,
    PIPE,
    Ct,
    Edit,
    Mark,
    Match,
    Munge,
    NicRule,
    NicRules,
    Plain,
    Police,
    Send,
    Sum,
    Tag,
    Then,
)  # fmt: skip
from pcap_tests.test_offload.test_simnic import nic_side as side
from pcap_tests.test_offload.test_simnic.nic_side import IN, OUT, ZONE, Conn, established, forwarding, installed, kind, ruled, track

A = Conn("10.0.0.1", "192.0.2.9", 40000, 80)
NATED = replace(A, to_src="198.51.100.1", to_sport=1024)
FRAME = craft.tcp("10.0.0.1", "192.0.2.9", 40000, 80, "A", payload=b"payload")
LEFT = craft.tcp("198.51.100.1", "192.0.2.9", 1024, 80, "A", payload=b"payload")
IP4 = (Match("eth_type", 0x0800, 0xFFFF), Match("family", 4, 0xFF))
ANY_LABEL = (1 << 128) - 1


def one(*actions, matches=(), **more) -> NicRule:
    return NicRule(0, 0, 0, matches, actions, **more)


def state(value: int, mask: int | None = None) -> Match:
    return Match("ct_state", value, value if mask is None else mask)


def test_a9_62_registers_are_what_the_connection_says():
    nic = ruled(track(then=PASS))
    installed(nic, [replace(A, mark=7, label=9, ctinfo=Ctinfo.ESTABLISHED_REPLY, cookie=3)])
    row = nic.frame(FRAME).row
    assert (row["zone"], row["mark"], row["zone_restore"]) == (ZONE, 7, ZONE)
    assert row["ct_state"] == side.TRK | side.EST | side.RPL | 0x40 and nic.label(int(row["labels"])) == 9


def test_a9_63_actions_before_and_behind_ct_are_done_in_their_order():
    nic = ruled(NicRule(0, 0, 0, (), (Send(3, copy=True), Ct(ZONE, True), Send(4, copy=True), Send(OUT))))
    installed(nic, [NATED])
    assert nic.frame(FRAME).left == [(FRAME, 3, True), (LEFT, 4, True), (LEFT, OUT, False)]


def test_a9_64_a_tracked_packet_is_not_looked_up_again_in_its_zone():
    nic = ruled(track(), NicRule(1, 0, 1, (), (Ct(ZONE, True), Send(OUT))))
    installed(nic, [A])
    assert nic.frame(FRAME).verdict == Verdict.FORWARDED
    assert nic.stats(A)["packets"] == 1


def test_a9_64_another_zone_is_another_look_up():
    nic = ruled(track(), NicRule(1, 0, 1, (), (Ct(ZONE + 1), Send(OUT))))
    installed(nic, [A])
    missed = nic.frame(FRAME)
    assert missed.why == Why.CT_MISS and missed.resumes == (1, 1, 0)
    installed(nic, [replace(A, zone=ZONE + 1, cookie=4, conn=2)])
    row = nic.frame(FRAME).row
    assert (row["verdict"], row["zone"], row["conn"]) == (Verdict.FORWARDED, ZONE + 1, 2)


def test_a9_64_a_tracked_packet_is_looked_up_again_where_translation_is_asked_for():
    nic = ruled(track(nat=False), NicRule(1, 0, 1, (), (Ct(ZONE, True), Send(OUT))), of=kind('[table]\ntables = "both"\n'))
    installed(nic, [NATED])
    assert nic.frame(FRAME).left == [(LEFT, OUT, False)]
    assert nic.stats(NATED)["packets"] == 2


def test_a9_65_a_translated_packet_is_looked_up_by_what_it_has_become():
    nic = ruled(track(), NicRule(1, 0, 1, (), (Ct(ZONE + 1), Send(OUT))))
    installed(nic, [NATED, Conn("198.51.100.1", "192.0.2.9", 1024, 80, zone=ZONE + 1, cookie=4)])
    assert nic.frame(FRAME).left == [(LEFT, OUT, False)]


@pytest.mark.parametrize(("tables", "conn", "nat", "why"), [
    ("one", A, False, Why.NONE),
    ("one", A, True, Why.NONE),
    ("one", NATED, True, Why.NONE),
    ("one", NATED, False, Why.CT_TABLE),
    ("both", A, False, Why.NONE),
    ("both", A, True, Why.NONE),
    ("both", NATED, True, Why.NONE),
    ("both", NATED, False, Why.NONE),
])  # fmt: skip
def test_a9_66_a_plain_ct_misses_where_entries_are_in_one_table(tables, conn, nat, why):
    nic = forwarding(conn, of=kind(f'[table]\ntables = "{tables}"\n'), nat=nat)
    got = nic.frame(FRAME)
    assert got.why == why
    assert got.left == ([] if why else [(LEFT if nat and conn is NATED else FRAME, OUT, False)])


def test_a9_67_software_resumes_at_the_action_that_missed():
    nic = ruled(NicRule(4, 0, 0, (), (Send(3, copy=True), Tag("push", 5), Ct(ZONE), Send(OUT))))
    missed = nic.frame(FRAME)
    assert missed.resumes == (0, 4, 2) and missed.verdict == Verdict.MISSED
    assert missed.left == [(FRAME, 3, True)]
    assert missed.data == FRAME[:12] + b"\x81\x00\x00\x05" + FRAME[12:], "what was done stays done"
    assert nic.counters()["packets"][4] == 0, "software counts it"


def test_a9_67_older_software_resumes_at_the_chain():
    nic = ruled(track(), established(), of=kind('[rules]\nresume = "chain"\n'))
    assert nic.frame(FRAME).resumes == (0, NO_RULE, 0)
    late = NicRule(0, 0, 0, (), (Tag("push", 5), Ct(ZONE), Send(OUT)))
    nic = ruled(late, of=kind('[rules]\nresume = "chain"\n'))
    assert nic.kept() == {0: Kept.CT_LATE}
    assert nic.frame(FRAME).data == FRAME


def test_a9_68_a_miss_behind_a_hit_tells_the_zone_and_leaves_the_translated_frame():
    nic = ruled(track(number=3), of=kind())
    installed(nic, [NATED])
    missed = nic.frame(FRAME)
    assert (missed.verdict, missed.why, missed.resumes) == (Verdict.MISSED, Why.NO_RULE, (1, NO_RULE, 0))
    assert (missed.row["zone_restore"], missed.row["conn"], missed.data) == (ZONE, 1, LEFT)
    assert nic.counters()["packets"][3] == 1, "the rule that it is through with"


@pytest.mark.parametrize(("match", "why"), [
    (state(side.TRK | side.EST), Kept.NO),
    (state(0, side.TRK), Kept.NO),
    (state(side.TRK, side.TRK | side.RPL), Kept.NO),
    (state(side.TRK | side.NEW), Kept.NO),
    (state(side.TRK, side.TRK | 0x04 | 0x10), Kept.NO),
    (state(side.TRK | 0x04), Kept.REL_INV),
    (state(side.TRK | 0x10), Kept.REL_INV),
    (Match("ct_zone", 5, 0xFFFF), Kept.NO),
    (Match("ct_zone", 5, 0xFF), Kept.MASK),
    (Match("ct_mark", 5, 0xFF), Kept.NO),
    (Match("ct_label", 5, ANY_LABEL), Kept.NO),
    (Match("ct_label", 5, 0xFF), Kept.MASKED_LABEL),
    (Match("arp_op", 1, 0xFF), Kept.FIELD),
])  # fmt: skip
def test_a9_69_what_can_be_matched(match, why):
    nic = ruled(one(Plain(DROP), matches=(match,)))
    assert nic.kept() == ({0: why} if why else {})


def test_a9_69_new_is_matched_from_linux_6_3_on():
    old = kind("[rules]\nnew = false\n")
    nic = ruled(one(Plain(DROP), matches=(state(side.TRK | side.NEW),)), of=old)
    assert nic.kept() == {0: Kept.NEW}
    assert nic.replace(replace(A, ctinfo=Ctinfo.NEW)) != 0
    assert not ruled(one(Plain(DROP), matches=(state(side.TRK, side.TRK | side.NEW),)), of=old).kept(), "-new: a zero bit"


@pytest.mark.parametrize(("label", "hits"), [(0, False), (9, True), (8, False)])
def test_a9_69_labels_are_matched_as_a_whole(label, hits):
    label_rule = NicRule(1, 0, 1, (Match("ct_label", 9, ANY_LABEL),), (Send(OUT),))
    nic = ruled(track(), label_rule)
    installed(nic, [replace(A, label=label)])
    assert (nic.frame(FRAME).verdict == Verdict.FORWARDED) == hits


def test_a9_69_a_rule_that_is_in_software_is_not_passed_over():
    masked = NicRule(1, 0, 1, (state(side.TRK), Match("ct_label", 1, 1)), (Plain(DROP),))
    nic = ruled(track(), masked, NicRule(2, 0, 1, (), (Send(OUT),)))
    installed(nic, [A])
    missed = nic.frame(FRAME)
    assert (missed.why, missed.resumes) == (Why.IN_SOFTWARE, (1, 1, 0))


def test_a9_69_a_rule_for_what_hardware_never_has_stands_in_nobodys_way():
    invalid = NicRule(1, 0, 1, (state(side.TRK | 0x10),), (Plain(DROP),))
    nic = ruled(track(), invalid, NicRule(2, 0, 1, (), (Send(OUT),)))
    installed(nic, [A])
    assert nic.frame(FRAME).verdict == Verdict.FORWARDED


def test_a9_70_ct_clear_zeroes_all_registers():
    nic = ruled(track(then=PIPE), *[NicRule(9, 0, 1)])
    nic = ruled(NicRule(0, 0, 0, (), (Ct(ZONE), Ct(clear=True, then=Then("goto", 1)))), NicRule(1, 0, 1, (state(0, side.TRK),), (Send(OUT),)))
    installed(nic, [replace(A, mark=3, label=4)])
    row = nic.frame(FRAME).row
    assert row["verdict"] == Verdict.FORWARDED
    assert [int(row[name]) for name in ("ct_state", "zone", "mark", "labels", "zone_restore", "conn")] == [0, 0, 0, 0, 0, -1]


@pytest.mark.parametrize(("action", "why"), [
    (Ct(helper=True), Kept.CT_HELPER),
    (Ct(force=True), Kept.CT_FORCE),
    (Ct(commit=True, sets=True), Kept.CT_SETS),
    (Ct(commit=True), Kept.NO),
    (Send(OUT, ingress=True), Kept.RULES_BEHIND),
    (Send(OUT, rules=True), Kept.RULES_BEHIND),
    (Plain(Then("continue")), Kept.CONTROL),
    (Plain(Then("reclassify")), Kept.CONTROL),
    (Sum(frozenset(("sctp",))), Kept.CSUM),
    (Mark((1, 1)), Kept.SKBEDIT),
    (Police(8000, 1000), Kept.POLICE),
    (Edit((Munge("ip", "ttl", 8, b"\xff", b"\xff", True),)), Kept.PEDIT),
])  # fmt: skip
def test_a9_70_what_can_be_done(action, why):
    nic = ruled(one(action))
    assert nic.kept() == ({0: why} if why else {})
    if why:
        assert nic.frame(FRAME).why == Why.IN_SOFTWARE


def test_a9_70_a_commit_of_a_connection_that_is_there_changes_nothing_and_of_another_misses():
    nic = ruled(one(Ct(ZONE, True, commit=True), Send(OUT)))
    assert nic.frame(FRAME).why == Why.CT_MISS
    installed(nic, [A])
    assert nic.frame(FRAME).verdict == Verdict.FORWARDED


def test_skip_hw_misses_at_its_place_and_skip_sw_is_hardwares_alone():
    nic = ruled(one(Plain(DROP), skip_hw=True), NicRule(1, 0, 0, (), (Send(OUT),)))
    assert nic.frame(FRAME).resumes == (0, 0, 0)
    nic = ruled(one(Plain(DROP), skip_sw=True))
    assert nic.frame(FRAME).verdict == Verdict.DROPPED
    nic = ruled(one(Ct(helper=True), skip_sw=True), NicRule(1, 0, 0, (), (Send(OUT),)))
    assert nic.frame(FRAME).verdict == Verdict.FORWARDED, "nobody has the rule: software would not stop there either"


# --- actions, counters ------------------------------------------------------------------------------------------------------------------


def test_rules_count_what_they_are_through_with():
    nic = forwarding(A)
    for ts in (5, 9, 7):
        nic.frame(FRAME, ts)
    nic.frame(craft.tcp("10.0.0.2", "192.0.2.9", 40000, 80, "A"))
    assert [tuple(row)[:3] for row in nic.counters().tolist()] == [(3, 3 * len(FRAME), 9)] * 2


def test_a_drop_is_counted_as_one():
    nic = ruled(one(Plain(DROP)))
    got = nic.frame(FRAME)
    assert (got.verdict, got.why, got.left, int(got.row["rule"])) == (Verdict.DROPPED, Why.RULE, [], 0)
    assert nic.counters()["drops"].tolist() == [1]


def test_what_passes_is_given_to_the_host():
    got = ruled(one()).frame(FRAME)
    assert (got.verdict, got.left) == (Verdict.PASSED, [(FRAME, IN, False)])


def test_an_iface_without_rules_sends_everything_to_the_host():
    got = forwarding(A).frame(FRAME, iface=700)
    assert (got.verdict, got.why, got.resumes) == (Verdict.MISSED, Why.NO_RULE, (0, NO_RULE, 0))


def test_chains_in_a_circle_end_with_a_miss():
    nic = ruled(one(Plain(Then("goto", 0))))
    assert nic.frame(FRAME).why == Why.CHAINS


def test_a_goto_where_no_rules_are_misses_there():
    assert ruled(one(Plain(Then("goto", 77)))).frame(FRAME).resumes == (77, NO_RULE, 0)


def test_pedit_and_csum_change_the_ttl_and_a_mirror_before_keeps_the_old_one():
    ttl = Edit((Munge("ip", "ttl", 8, b"\xff", b"\xff", True),))
    nic = ruled(one(ttl, Send(3, copy=True), ttl, Sum(frozenset(("ip4h", "tcp"))), Send(OUT), matches=IP4))
    copy, final = nic.frame(FRAME).left
    packet = Ether(final[0])
    assert (Ether(copy[0])[IP].ttl, packet[IP].ttl) == (63, 62)
    del packet[IP].chksum, packet[TCP].chksum
    assert bytes(packet) == final[0]


def test_tags_are_pushed_changed_and_popped():
    push, pop = Tag("push", 5, protocol=0x88A8), Tag("pop")
    got = ruled(one(push, Send(3, copy=True), Tag("modify", 0x6007, 0), Send(4, copy=True), pop, pop, Send(OUT))).frame(FRAME).left
    assert got == [
        (FRAME[:12] + b"\x88\xa8\x00\x05" + FRAME[12:], 3, True), (FRAME[:12] + b"\x81\x00\x60\x07" + FRAME[12:], 4, True), (FRAME, OUT, False),
    ]  # fmt: skip


def test_rules_see_what_earlier_rules_changed():
    port = Edit((Munge("tcp", "dport", 2, (8080).to_bytes(2, "big"), b"\xff\xff"),), Then("goto", 1))
    nic = ruled(one(port, matches=(*IP4, Match("ip_proto", 6, 0xFF))), NicRule(1, 0, 1, (Match("dst_port", 8000, 0xFFFF, 8100),), (Send(OUT),)))
    assert nic.frame(FRAME).verdict == Verdict.FORWARDED


def test_a_checksum_of_a_frame_that_was_not_captured_as_a_whole_misses_before_anything_is_done():
    nic = ruled(one(Send(3, copy=True), Sum(frozenset(("tcp",))), Send(OUT)))
    got = nic.frame(FRAME[:-1], missing=1)
    assert (got.why, got.left, got.resumes) == (Why.SUM, [], (0, 0, 0))


def test_a_policer_in_hardware():
    nic = ruled(one(Police(packet_rate=1, packet_burst=2), Send(OUT)), of=kind("[rules]\npolice = true\n"))
    said = [nic.frame(FRAME, ts).why for ts in (0, 0, 0, 5 * 10**8, 10**9)]
    assert said == [Why.NONE, Why.NONE, Why.POLICED, Why.POLICED, Why.NONE]
    assert nic.counters()[["packets", "drops", "overlimits"]].tolist() == [(5, 2, 2)]


def test_skbedit_marks_what_leaves():
    nic = ruled(one(Mark((5, 0xF), 9), Send(OUT)), of=load("perfect"))
    nic.frame(FRAME)
    (out,) = nic.outputs()[0]
    assert (out["mark"], out["priority"]) == (5, 9)


def test_padding_stays_unless_the_profile_trims():
    padded = FRAME + bytes(9)
    assert forwarding(A).frame(padded).left[0][0] == padded
    assert forwarding(NATED, of=load("perfect")).frame(padded).left[0][0] == LEFT


def test_tagged_frames_are_looked_up_by_what_the_tags_are_before():
    tagged = craft.eth(FRAME[14:], vlan=(5, 6))
    nic = ruled(NicRule(0, 0, 0, (Match("vlan_tci", 5, 0xFFF), Match("cvlan_tci", 6, 0xFFF)), (Ct(ZONE, True), Send(OUT))))
    installed(nic, [NATED])
    assert nic.frame(tagged).left == [(craft.eth(LEFT[14:], vlan=(5, 6)), OUT, False)]


def test_more_mirrors_than_the_nic_has_room_for_stay_in_software():
    assert ruled(one(*[Send(3, copy=True)] * 9)).kept() == {0: Kept.TOO_MUCH}
    circle = ruled(one(*[Send(3, copy=True)] * 7, Plain(Then("goto", 0))))
    got = circle.frame(FRAME)
    assert (got.why, len(got.left)) == (Why.COPIES, 14)


def test_every_reason_has_a_sentence():
    assert all(text and text == text.strip() for text in (*WHY.values(), *KEPT.values()))


def test_ifaces_are_numbers_of_sixteen_bits():
    with pytest.raises(ValueError, match="65534"):
        side.Tried(kind(), NicRules((), {65535: 0}))
