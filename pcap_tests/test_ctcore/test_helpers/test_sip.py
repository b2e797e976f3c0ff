"""SIP: what is announced, for how long, and what a message says once it leaves under translation. Engine and model run all of them."""

from __future__ import annotations

import pytest

from ctcore.nat_rules import HelperRule
from datapath import craft
from pcap_tests.test_ctcore.test_helpers.sip_messages import call, session
from pcap_tests.test_ctcore.test_helpers.test_helpers_nat import CLIENT, OUTSIDE, SERVER, Wire, snat

SIP = (HelperRule("sip", 17, 5060), HelperRule("sip", 6, 5060))
ME, YOU = CLIENT[4], SERVER[4]
AUDIO = session(ME, "m=audio 4001 RTP/AVP 0")


def invite(body: bytes = AUDIO, via: str = "UDP") -> bytes:
    headers = (f"Via: SIP/2.0/{via} {ME}:5060;branch=z", f"From: <sip:a@{ME}>", f"Contact: <sip:a@{ME}:5060>", "CSeq: 1 INVITE")
    return call(f"INVITE sip:b@{YOU} SIP/2.0", *headers, body=body)


def ask(wire: Wire, payload: bytes) -> bytes:
    """From client to server over UDP; the payload as it leaves."""
    wire.frame(craft.udp(ME, YOU, 5060, 5060, payload=payload))
    return wire.leaving(payload, 8)


def expected(tracker):
    return sorted((row.src, row.dst, row.sport, row.dport) for row in tracker.expectations())


def test_media_is_rtp_at_an_even_port_and_rtcp(make_tracker):
    tracker = make_tracker(helpers=SIP)
    wire = Wire(tracker)
    ask(wire, invite())
    wire.seen.is_("new", has={"helper"}, timeout=3600)
    assert expected(tracker) == [(YOU, ME, 0, 4000), (YOU, ME, 0, 4001)]
    ask(wire, call(f"BYE sip:b@{YOU} SIP/2.0", "CSeq: 2 BYE"))
    assert expected(tracker) == []


@pytest.mark.parametrize("media, ports", [
    (("m=audio 0 RTP/AVP 0", "m=video 4002 RTP/AVP 31"), [4002, 4003]),
    (("m=text 4004 x", "m=image 4006 udptl t38"), [4006, 4007]),
    (("m=audio 4000 RTP/AVP 0", "c=IN IP4 10.9.9.9"), []),  # somebody else's
    (("m=audio 65535 RTP/AVP 0",), [65534, 65535]),
])  # fmt: skip
def test_streams(make_tracker, media, ports):
    tracker = make_tracker(helpers=SIP)
    ask(Wire(tracker), invite(session(ME, *media)))
    assert [row[3] for row in expected(tracker)] == ports


@pytest.mark.parametrize("message", [
    invite(session(ME, "m=audio 99 RTP/AVP 0")), invite().replace(b"CSeq: 1", b"CSeq: x"), invite().replace(b"c=IN IP4", b"c=IN IPX"),
    call("REGISTER sip:x SIP/2.0", f"Contact: <sip:a@{ME}:5060>;expires=x", "CSeq: 1 REGISTER"),
])  # fmt: skip
def test_nonsense_is_dropped(make_tracker, message):
    wire = Wire(make_tracker(helpers=SIP))
    ask(wire, message)
    assert (wire.seen.verdict, wire.seen.reason) == ("drop", "helper_partial")


@pytest.mark.parametrize("message", [b"a" * 91, b"\xe2" * 91, b"INVITE sip:" + b"z" * 90, invite().removesuffix(b" RTP/AVP 0\r\n"), b"\xff" * 30])
def test_a_message_may_end_in_the_middle_of_a_word(make_tracker, message):
    wire = Wire(make_tracker(helpers=SIP, nat=(snat(4),)))
    ask(wire, message)
    assert wire.seen.state in ("new", "not-seen")


def test_a_registration_lives_as_long_as_the_registrar_says(make_tracker):
    tracker = make_tracker(helpers=SIP)
    wire = Wire(tracker)
    contact = f"Contact: <sip:a@{ME}:5062>;expires=9"
    ask(wire, call(f"REGISTER sip:{YOU} SIP/2.0", contact, "CSeq: 5 REGISTER"))
    wire.frame(craft.udp(YOU, ME, 777, 5062, payload=b"x")).is_("new")
    wire.frame(craft.udp(YOU, ME, 5060, 5060, payload=call("SIP/2.0 200 OK", contact, "CSeq: 5 REGISTER")))
    (row,) = tracker.expectations()
    assert row.permanent and row.timeout == 9
    wire.frame(craft.udp(YOU, ME, 778, 5062, payload=invite())).is_("related", has={"expected"}, timeout=3600)
    wire.frame(craft.udp(YOU, ME, 5060, 5060, payload=call("SIP/2.0 403 No", "CSeq: 5 REGISTER")))
    assert not [row for row in tracker.expectations() if row.permanent]


def test_translated_messages_name_the_outside(make_tracker):
    tracker = make_tracker(helpers=SIP, nat=(snat(4),))
    wire, out = Wire(tracker), OUTSIDE[4].encode()
    left = ask(wire, invite())
    body = AUDIO.replace(ME.encode(), out)
    assert left == call(
        f"INVITE sip:b@{YOU} SIP/2.0", f"Via: SIP/2.0/UDP {OUTSIDE[4]}:5060;branch=z", f"From: <sip:a@{OUTSIDE[4]}:5060>",
        f"Contact: <sip:a@{OUTSIDE[4]}:5060>", "CSeq: 1 INVITE", body=body,
    )  # fmt: skip
    wire.frame(craft.udp(YOU, OUTSIDE[4], 7000, 4000, payload=b"rtp")).is_("related", has={"dst-nat"})
    assert wire.rewrite["to"]["dst"][:4].tolist() == [10, 0, 0, 1]


def test_a_port_that_another_call_has_outside_drops_the_message(make_tracker):
    """As in Linux: what is expected there already is the very same thing, and of another connection."""
    tracker = make_tracker(helpers=SIP, nat=(snat(4),))
    wire = Wire(tracker)
    ask(wire, invite())
    wire.frame(craft.udp("10.0.0.3", YOU, 5060, 5060, payload=invite().replace(ME.encode(), b"10.0.0.3")))
    assert (wire.seen.verdict, wire.seen.reason) == ("drop", "helper_refused")
    assert [row[3] for row in expected(tracker)] == [4000, 4001]


def test_over_tcp_both_messages_of_a_segment_are_changed_and_numbers_follow(make_tracker):
    wire = Wire(make_tracker(helpers=SIP, nat=(snat(4),)), port=(40000, 5060)).open()
    two = invite(via="TCP") * 2
    left = wire.tcp(0, "PA", two)
    assert "seq-adjust" in wire.seen.status and left.count(OUTSIDE[4].encode()) == 4
    wire.tcp(0, "A")
    assert int(wire.rewrite["seq_delta"]) == len(left) - len(two)
