"""Fragments and packets captured in part, on their way through whole pipelines with connection tracking.

Not here: which fragments make a datagram (test_defragment, pcap_tests/test_ctcore/test_fragments), cutting it up (test_refragment).
"""

from __future__ import annotations

from datapath import craft
from pcap_tests.test_datapath.test_pipeline.laboratory import CLIENT, CLIENT6, MILLISECOND, PUBLIC, SERVER, SERVER6, SNAT, left, udp


def fragments(src: str, dst: str, sport: int, dport: int, sizes: tuple[int, ...], *, ident: int = 1, link: tuple[bytes, ...] = ()) -> list[bytes]:
    """A UDP datagram in fragments with so many bytes of payload each."""
    data, frames, at = craft.udp_segment(src, dst, sport, dport, bytes(sum(sizes) - 8)), [], 0
    for size in sizes:
        more = at + size < len(data)
        fields = {"ext": ((craft.FRAGMENT, craft.fragment6(at, more, ident)),)} if ":" in src else {"ident": ident, "frag": at // 8 | more << 13}
        frames.append(craft.frame(src, dst, craft.UDP, data[at : at + size], **fields))
        at += size
    return [(head or frame[:12]) + frame[12:] for head, frame in zip(link or (b"",) * len(frames), frames, strict=True)]


def test_fragments_are_held_translated_and_leave_as_they_came(lab):
    net = lab(SNAT)
    first, second, third = fragments(CLIENT, SERVER, 40000, 53, (800, 400, 56))
    assert [net.verdict(frame) for frame in (third, first)] == ["held", "held"]
    walk = net.send(second)
    assert walk.verdict == "redirect" and walk.frame == craft.udp(PUBLIC, SERVER, 40000, 53, bytes(1248))
    assert [sent.frame for sent in walk.sent] == fragments(PUBLIC, SERVER, 40000, 53, (800, 400, 56))
    assert net.conns == 1 and net.tracker.conns()["flow"]["packets"].tolist() == [[1, 0]]


def test_fragments_of_ipv6(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ipv6 flower action ct commit")
    pieces = fragments(CLIENT6, SERVER6, 40000, 53, (1232, 200), ident=77)
    assert net.verdict(pieces[1]) == "held"
    walk = net.send(pieces[0])
    assert (walk.verdict, walk.frame, left(walk)) == ("pass", craft.udp(CLIENT6, SERVER6, 40000, 53, bytes(1424)), pieces)


def test_borders_within_a_header_that_was_written_to_are_gone(lab):
    """Translation has 20 bytes of TCP in one piece; left alone, they stay as they were cut."""
    segment = craft.tcp_segment(CLIENT, SERVER, 40000, 80, "S", seq=1, payload=bytes(24))
    one, two = (craft.frame(CLIENT, SERVER, craft.TCP, data, frag=frag) for data, frag in ((segment[:16], 0x2000), (segment[16:], 2)))
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct")
    net.send(one)
    assert left(net.send(two)) == [one, two]
    net = lab(SNAT)
    net.send(one)
    walk = net.send(two)
    assert walk.frame == craft.tcp(PUBLIC, SERVER, 40000, 80, "S", seq=1, payload=bytes(24))
    assert [len(sent.frame) - 34 for sent in walk.sent] == [24, 20]


def test_each_zone_puts_its_own_together(lab):
    rules = "".join(
        f"tc filter add dev {device} ingress prio 1 protocol ip flower action ct zone {zone}\n" for device, zone in (("in0", 1), ("out0", 2))
    )
    net = lab(rules)
    one, two = fragments(CLIENT, SERVER, 40000, 53, (800, 100))
    assert [net.verdict(frame, device) for frame, device in ((one, "in0"), (two, "out0"), (two, "in0"), (one, "out0"))] == [
        "held",
        "held",
        "pass",
        "pass",
    ]


def test_a_datagram_goes_through_several_zones_in_one_piece(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct zone 1 commit pipe action ct clear pipe action ct zone 2 commit")
    one, two = fragments(CLIENT, SERVER, 40000, 53, (800, 100))
    net.send(one)
    walk = net.send(two)
    assert left(walk) == [one, two] and net.tracker.zone_counts() == {1: 1, 2: 1}


def test_a_mirror_sends_what_there_is_by_then_in_pieces_too(lab):
    rules = SNAT.replace("-trk action ct nat pipe", "-trk action ct nat pipe action mirred egress mirror dev out0 pipe")
    net = lab(rules)
    one, two = fragments(CLIENT, SERVER, 40000, 53, (800, 100))
    net.send(one)
    assert [sent.frame for sent in net.send(two).sent] == [one, two, *fragments(PUBLIC, SERVER, 40000, 53, (800, 100))]


def test_a_tag_that_was_pushed_is_on_every_piece(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct pipe action vlan push id 5")
    one, two = fragments(CLIENT, SERVER, 40000, 53, (800, 100))
    net.send(one)
    tag = b"\x81\x00\x00\x05"
    assert left(net.send(two)) == [frame[:12] + tag + frame[12:] for frame in (one, two)]


def test_the_first_fragments_link_header_is_the_datagrams(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct")
    near, far = b"\x02near\0\x02mac1\0"[:12].ljust(12, b"\1"), b"\x02far\0\0\x02mac2\0"[:12].ljust(12, b"\2")
    one, two = fragments(CLIENT, SERVER, 40000, 53, (800, 100), link=(near, far))
    for order in ((one, two), (two, one)):
        assert net.verdict(order[0]) == "held"
        assert net.send(order[1]).frame[:12] == near


def test_fragments_that_contradict_each_other_are_dropped(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct")
    one, two = fragments(CLIENT, SERVER, 40000, 53, (800, 100))
    assert [net.verdict(frame) for frame in (one, one, two)] == ["held", "drop", "pass"]


def test_a_fragment_waits_half_a_minute(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct")
    one, two = fragments(CLIENT, SERVER, 40000, 53, (800, 100))
    assert net.verdict(one) == "held"
    net.now += 31_000 * MILLISECOND
    assert [net.verdict(frame) for frame in (two, one)] == ["held", "pass"]


def test_fragments_that_nobody_tracks_pass_as_they_are(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower ip_flags frag action pass\n")
    for frame in fragments(CLIENT, SERVER, 40000, 53, (800, 100)):
        assert left(net.send(frame)) == [frame]


def test_a_datagram_that_cannot_be_a_packet_goes_on(lab):
    """Its checksum is wrong: invalid, which goes on. Neither a length that is too long for the frame nor its header's checksum is looked at."""
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct")
    data = craft.udp_segment(CLIENT, SERVER, 40000, 53, bytes(92), l4_checksum=1)
    one, two = (craft.frame(CLIENT, SERVER, craft.UDP, data[at : at + 56], frag=at // 8 | (at == 0) << 13) for at in (0, 56))
    assert net.verdict(one) == "held" and net.send(two).tracked.state == 0x18
    assert net.verdict(craft.frame(CLIENT, SERVER, craft.UDP, bytes(64), frag=0x2000, length=65000)) == "held"
    assert net.verdict(craft.frame(CLIENT, SERVER, craft.UDP, bytes(64), frag=0x2000, ident=2, ip_checksum=1)) == "held"


# --- what was not captured -------------------------------------------------------------------------------------------------------------


def test_a_snapped_packet_is_translated_as_far_as_it_is_there(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct commit nat src addr 192.0.2.1")
    whole, after = udp(CLIENT, SERVER, 40000, 53, bytes(300)), udp(PUBLIC, SERVER, 40000, 53, bytes(300))
    walk = net.send(whole[:100], missing=len(whole) - 100)
    assert (left(walk), walk.pieces[0].missing, net.conns) == ([after[:100]], len(whole) - 100, 1)


def test_snapped_fragments_leave_as_long_as_they_were(lab):
    net = lab("tc filter add dev in0 ingress prio 1 protocol ip flower action ct")
    one, two = fragments(CLIENT, SERVER, 40000, 53, (800, 100))
    assert net.send(one[:200], missing=len(one) - 200).reason == "fragment"
    walk = net.send(two)
    assert [len(piece.frame) + piece.missing for piece in walk.pieces] == [len(one), len(two)] and left(walk)[0] == one[:200]
