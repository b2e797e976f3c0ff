"""The contract's items on what is admitted, what is served, and what a rule says (A1, A2, A4, A5, A8, A10): in plain Python."""

from __future__ import annotations

import errno

import pytest

from ctcore.types import Offload, Proto, State, Status, TcpState
from offload.contract import admission, lookup, rule
from offload.contract.lookup import Packet
from offload.contract.objects import ORIG, REPLY, FlowFlag, Tuple
from offload.contract.why import OF_OFFLOAD, SENTENCES, Why, of_error
from offload.records import Ctinfo
from pcap_tests.test_offload.contracted import ASSURED, BOTH_WAYS, CLIENT, HZ, LINUX, ONE_WAY, PUBLIC, SERVER, T, behind_nat, conn, flow

TCP, UDP, GRE = Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_GRE


def admitted(of, state=State.ESTABLISHED, busy=()):
    return admission.admit(of, state, busy, 0, LINUX)


# --- objects ---------------------------------------------------------------------------------------------------------------------------


def test_a1_1_the_reply_tuple_is_the_inverse_of_what_leaves():
    assert behind_nat().conn.reply.inverse() == Tuple(PUBLIC, SERVER, 1024, 80, TCP)


def test_a1_4_a_flow_of_act_ct_is_never_closing():
    one = flow()
    lookup.look(one, Packet(TCP, lookup.FIN), ORIG, 0, LINUX)
    assert one.flags & FlowFlag.TEARDOWN and not one.flags & FlowFlag.CLOSING


def test_a1_5_gre_has_no_ports_in_its_key():
    assert (conn(GRE).orig.sport, conn(GRE).orig.dport) == (0, 0)
    assert admission.refusal(conn(GRE), State.ESTABLISHED) is None


@pytest.mark.parametrize("proto", [TCP, UDP, GRE])
def test_a1_6_idle_is_thirty_seconds(proto):
    assert LINUX.idle(proto) == 30 * HZ


# --- admission -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in TcpState if TcpState.SYN_SENT <= state <= TcpState.SYN_SENT2])
def test_a2_7_only_an_established_tcp_connection_is_admitted(state):
    why = admission.refusal(conn(tcp_state=state), State.ESTABLISHED)
    assert why == (None if state == TcpState.TCP_ESTABLISHED else Why.TCP_STATE)


def test_a2_7_a_packet_that_is_new_admits_nothing():
    assert admission.refusal(conn(), State.NEW) == Why.TCP_STATE


def test_a2_8_the_third_packet_admits():
    """SYN, SYN/ACK, ACK, as a connection is behind each of them."""
    steps = [(TcpState.SYN_SENT, ONE_WAY, State.NEW), (TcpState.SYN_RECV, BOTH_WAYS, State.ESTABLISHED)]
    assert [admission.refusal(conn(TCP, status, tcp_state=tcp), state) for tcp, status, state in steps] == [Why.TCP_STATE] * 2
    assert admitted(conn(TCP, ASSURED)).flags == FlowFlag.HW | FlowFlag.HW_BIDIRECTIONAL


def test_a2_9_what_is_picked_up_waits_until_it_is_assured():
    assert admission.refusal(conn(TCP, BOTH_WAYS), State.ESTABLISHED) == Why.NOT_ASSURED
    assert admission.refusal(conn(TCP, ASSURED), State.ESTABLISHED) is None


@pytest.mark.parametrize(("status", "both"), [(ONE_WAY, False), (BOTH_WAYS, False), (ASSURED, True)])
def test_a2_10_udp_needs_to_be_confirmed_and_goes_both_ways_once_assured(status, both):
    assert bool(admitted(conn(UDP, status), State.NEW).flags & FlowFlag.HW_BIDIRECTIONAL) is both
    assert admission.refusal(conn(UDP, status & ~Status.CONFIRMED), State.NEW) == Why.UNCONFIRMED


def test_a2_12_gre_is_admitted_without_keys_and_translation():
    keyed = Tuple(CLIENT, SERVER, 7, 7, GRE)
    assert admission.refusal(conn(GRE), State.ESTABLISHED) is None
    assert admission.refusal(conn(GRE, ASSURED | Status.DST_NAT), State.ESTABLISHED) == Why.GRE_NAT
    assert admission.refusal(conn(GRE, orig=keyed), State.ESTABLISHED) == Why.GRE_KEY
    assert admission.refusal(conn(GRE, BOTH_WAYS), State.ESTABLISHED) == Why.NOT_ASSURED


@pytest.mark.parametrize("proto", [Proto.PROTO_ICMP, Proto.PROTO_SCTP, Proto.PROTO_UDPLITE, 99])
def test_a2_13_other_protocols_never_are(proto):
    assert admission.refusal(conn(proto), State.ESTABLISHED) == Why.PROTO


def test_a2_14_a_helper_and_moved_sequence_numbers_keep_it_out():
    assert admission.refusal(conn(helper=True), State.ESTABLISHED) == Why.HELPER
    assert admission.refusal(conn(status=ASSURED | Status.SEQ_ADJUST), State.ESTABLISHED) == Why.SEQADJ


def test_a2_15_who_is_in_is_not_admitted_again():
    assert admitted(conn(status=ASSURED | Status.OFFLOAD)) is None


def test_a2_16_a_dying_connection_is_not_admitted():
    assert admission.refusal(conn(status=ASSURED | Status.DYING), State.ESTABLISHED) == Why.DYING


def test_a2_17_tcp_is_liberal_from_its_admission_on():
    of = conn()
    admitted(of)
    assert of.liberal == [True, True]
    udp = conn(UDP)
    admitted(udp)
    assert udp.liberal == [False, False]


def test_a2_18_a_tuple_that_drains_is_busy_and_offload_is_clear_again():
    of = conn()
    assert admitted(of, busy={(0, of.reply)}) == Why.TUPLE_BUSY
    assert not of.status & Status.OFFLOAD
    assert admitted(of, busy={(1, of.reply)}).conn is of


def test_a2_19_thirty_seconds_in_the_table_and_a_day_for_the_connection():
    one = admission.admit(conn(), State.ESTABLISHED, (), 1000, LINUX)
    assert (one.timeout, one.conn.timeout, one.flags & FlowFlag.HW) == (1000 + T, 1000 + 86_400 * HZ, FlowFlag.HW)
    assert one.conn.status & Status.OFFLOAD


# --- rules -----------------------------------------------------------------------------------------------------------------------------


def test_a4_26_the_match_is_the_tuple():
    made = rule.rule_of(flow(), ORIG)
    assert made.hits(Tuple(CLIENT, SERVER, 40000, 80, TCP))
    for other in (Tuple(CLIENT, SERVER, 40001, 80, TCP), Tuple(CLIENT, PUBLIC, 40000, 80, TCP), Tuple(CLIENT, SERVER, 40000, 80, UDP)):
        assert not made.hits(other)


@pytest.mark.parametrize(("flags", "hits"), [(0x10, True), (0x02, True), (0x11, False), (0x04, False), (0x12, True)])
def test_a4_27_fin_and_rst_miss_and_a_syn_hits(flags, hits):
    assert rule.rule_of(flow(), ORIG).hits(Tuple(CLIENT, SERVER, 40000, 80, TCP), flags) is hits


def test_a4_28_the_zone_is_that_of_its_table():
    assert rule.rule_of(flow(zone=7), REPLY).zone == 7


def test_a4_29_each_direction_matches_what_arrives():
    one = behind_nat()
    assert rule.rule_of(one, ORIG).match == Tuple(CLIENT, SERVER, 40000, 80, TCP)
    assert rule.rule_of(one, REPLY).match == Tuple(SERVER, PUBLIC, 80, 1024, TCP)


def test_a4_30_addresses_are_written_before_ports():
    reply = Tuple(PUBLIC, bytes([192, 0, 2, 2]), 8080, 1024, TCP)
    made = rule.rule_of(flow(status=ASSURED | Status.SRC_NAT | Status.DST_NAT, reply=reply), ORIG)
    assert [write.field for write in made.writes] == ["src", "dst", "sport", "dport"]


def test_a4_31_only_what_differs_is_written():
    orig, reply = (rule.rule_of(behind_nat(), direction).writes for direction in (ORIG, REPLY))
    assert [(w.field, w.value) for w in orig] == [("src", int.from_bytes(PUBLIC)), ("sport", 1024)]
    assert [(w.field, w.value) for w in reply] == [("dst", int.from_bytes(CLIENT)), ("dport", 40000)]
    assert rule.rule_of(flow(), ORIG).writes == ()


def test_a4_32_an_ipv6_address_is_four_words_and_a_port_sixteen_bits():
    orig, public = Tuple(bytes(15) + b"\1", bytes(15) + b"\2", 1, 2, UDP), bytes(range(16))
    made = rule.rule_of(flow(UDP, ASSURED | Status.SRC_NAT, orig=orig, reply=Tuple(orig.dst, public, 2, 9, UDP)), ORIG)
    assert [(w.field, w.word, w.value, w.bits) for w in made.writes] == [
        ("src", 0, 0x00010203, 32), ("src", 1, 0x04050607, 32), ("src", 2, 0x08090A0B, 32), ("src", 3, 0x0C0D0E0F, 32), ("sport", 0, 9, 16),
    ]  # fmt: skip


def test_a4_32_translation_of_other_protocols_is_not_supported():
    translated = flow(GRE, ASSURED | Status.SRC_NAT, reply=Tuple(SERVER, PUBLIC, 0, 0, GRE))
    assert rule.rule_of(translated, ORIG) == errno.EOPNOTSUPP


def test_a4_33_nothing_but_addresses_and_ports_is_written():
    assert {write.field for direction in (ORIG, REPLY) for write in rule.rule_of(behind_nat(), direction).writes} <= {"src", "dst", "sport", "dport"}


def test_a4_34_the_metadata_is_connection_ctinfo_mark_labels_and_direction():
    one = flow(mark=7, labels=0x4_00000003_00000002_00000001, number=9)
    meta = rule.rule_of(one, REPLY).metadata
    assert (meta.cookie, meta.mark, meta.labels, meta.orig_dir) == ((9, Ctinfo.ESTABLISHED_REPLY), 7, (1, 2, 3, 4), False)


def test_a4_35_a_connection_without_a_reply_is_new_to_hardware():
    one = flow(UDP, ONE_WAY)
    assert rule.rule_of(one, ORIG).metadata.ctinfo == Ctinfo.NEW
    assert not one.flags & FlowFlag.HW_ESTABLISHED
    one.conn.status |= Status.SEEN_REPLY
    assert rule.rule_of(one, ORIG).metadata.ctinfo == Ctinfo.ESTABLISHED
    assert one.flags & FlowFlag.HW_ESTABLISHED


def test_a4_36_a_mark_alone_is_not_told_and_another_ctinfo_is():
    one = flow(UDP, ONE_WAY)
    held = rule.rule_of(one, ORIG)
    one.conn.mark = 5
    assert rule.replaced(held, rule.rule_of(one, ORIG)) == (held, errno.EEXIST)
    one.conn.status |= Status.SEEN_REPLY
    new, error = rule.replaced(held, rule.rule_of(one, ORIG))
    assert (new.metadata.mark, new.metadata.ctinfo, error) == (5, Ctinfo.ESTABLISHED, 0)


# --- packets ---------------------------------------------------------------------------------------------------------------------------

SKIPPED = [
    (Packet(TCP, fragment=True), Why.FRAGMENT), (Packet(Proto.PROTO_SCTP), Why.PROTO), (Packet(TCP, plain=False), Why.IP_OPTIONS),
    (Packet(TCP, hop_limit=1), Why.TTL), (Packet(TCP, truncated=True), Why.TRUNCATED), (Packet(GRE, gre_version=1), Why.PROTO),
]  # fmt: skip


@pytest.mark.parametrize(("packet", "why"), SKIPPED, ids=[str(why) for _, why in SKIPPED])
def test_a5_37_what_the_table_is_not_asked_for(packet, why):
    one = flow()
    before = one.timeout
    assert lookup.look(one, packet, ORIG, 10 * HZ, LINUX) == lookup.Looked(False, why)
    assert one.timeout == before


def test_a5_38_torn_down_and_dying_flows_are_missed():
    assert lookup.look(None, Packet(TCP), ORIG, 0, LINUX) == lookup.Looked(False)
    assert lookup.look(flow(flags=FlowFlag.TEARDOWN), Packet(TCP), ORIG, 0, LINUX) == lookup.Looked(False)
    assert lookup.look(flow(status=ASSURED | Status.DYING), Packet(TCP), ORIG, 0, LINUX) == lookup.Looked(False)


def test_a5_39_a_reply_makes_an_assured_flow_bidirectional_at_once():
    one = flow(UDP, BOTH_WAYS)
    one.conn.status |= Status.ASSURED
    assert lookup.look(one, Packet(UDP), REPLY, 0, LINUX) == lookup.Looked(True, None, installs=True)
    assert one.flags & FlowFlag.HW_BIDIRECTIONAL
    assert not lookup.look(one, Packet(UDP), REPLY, 0, LINUX).installs


def test_a5_39_a_reply_that_hardware_knows_of_refreshes_nothing():
    one = flow(UDP, BOTH_WAYS, flags=FlowFlag.HW | FlowFlag.HW_ESTABLISHED)
    assert lookup.look(one, Packet(UDP), REPLY, 20 * HZ, LINUX) == lookup.Looked(False, Why.NOT_ASSURED)
    assert one.timeout == T


@pytest.mark.parametrize(("flags", "why"), [(lookup.FIN, Why.TEARDOWN_FIN), (lookup.RST, Why.TEARDOWN_RST)])
def test_a5_40_fin_and_rst_tear_down_and_go_the_slow_way(flags, why):
    one = flow()
    assert lookup.look(one, Packet(TCP, flags), ORIG, 0, LINUX) == lookup.Looked(False, why)
    assert one.flags & FlowFlag.TEARDOWN


@pytest.mark.parametrize(("after", "installs"), [(HZ, False), (HZ + 1, True)])
def test_a5_41_a_refresh_has_to_be_worth_a_second(after, installs):
    assert lookup.look(flow(), Packet(TCP), ORIG, after, LINUX).installs is installs


def test_a5_42_not_assured_goes_the_slow_way_but_refreshes():
    one = flow(UDP, ONE_WAY)
    assert lookup.look(one, Packet(UDP), ORIG, 5 * HZ, LINUX) == lookup.Looked(False, Why.NOT_ASSURED, installs=True)
    assert one.timeout == 5 * HZ + T


def test_a5_43_what_is_served_is_established():
    one = flow()
    assert lookup.look(one, Packet(TCP), REPLY, 0, LINUX).served
    assert [lookup.ctinfo_seen(one, direction) for direction in (ORIG, REPLY)] == ["established", "established_reply"]


# --- errors and reasons ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "why"),
    [(0, None), (errno.EEXIST, None), (errno.EOPNOTSUPP, Why.DRV_UNSUPPORTED), (errno.ENOMEM, Why.HW_FULL), (errno.ENOSPC, Why.HW_FULL)],
)
def test_a8_60_what_an_errno_says(error, why):
    assert of_error(error) is why


def test_a10_every_reason_has_one_sentence_of_its_own():
    assert set(SENTENCES) == set(Why)
    assert len(set(SENTENCES.values())) == len(Why)
    listed = """proto tcp_state not_assured unconfirmed helper seqadj gre_nat gre_key dying tuple_busy pending fragment ip_options ttl drv_unsupported
        hw_full nat_table_mismatch match_rel_inv masked_label orig_tuple_match teardown_fin teardown_rst teardown_idle teardown_dying
        teardown_outdated teardown_flush"""
    assert set(listed.split()) <= {str(why) for why in Why}


def test_a10_the_flow_tables_codes_are_among_them():
    nots = {int(code) for code in Offload if code.name.startswith("NOT_")}
    assert {code for code, why in OF_OFFLOAD.items() if why is not None} == nots
    assert OF_OFFLOAD[Offload.NOT_TEARDOWN_OUTDATED] == Why.TEARDOWN_OUTDATED and OF_OFFLOAD[Offload.NOT_ASSURED] == Why.NOT_ASSURED
