"""The flow table: which connections it takes in, and which of their packets it serves."""

from __future__ import annotations

import pytest

from ctcore.filter import Filter
from ctcore.types import TcpFlag
from datapath import craft
from pcap_tests.test_datapath.tabled import ANY, COMMITS, DAY, FTP, IN, OUT, Net, Tcp, assured_udp, udp
from pcap_tests.test_datapath.test_pipeline.laboratory import CLIENT, CLIENT6, PUBLIC, SERVER, SERVER6, SNAT

# --- admission (A2) --------------------------------------------------------------------------------------------------------------------


def test_the_third_packet_of_a_handshake_is_admitted_and_the_fourth_is_served() -> None:
    """7, 8, 15: assured by the third, once."""
    net = Net()
    talk = Tcp(net)
    assert talk.say(IN, "S").offload == "not_tcp_state"
    assert talk.say(OUT, "SA").offload == "not_tcp_state"
    third = talk.say(IN)
    assert (third.offload, third.l4state) == ("software", "ESTABLISHED")
    assert {"assured", "offload"} <= third.status
    assert net.flows.counters()["served"] == 0
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert net.flows.counters() == {**net.flows.counters(), "flows": 1, "admitted": 1, "served": 1}


def test_mid_stream_pick_up_is_admitted_once_it_is_assured() -> None:
    """9: loose; the answer makes it assured at the latest with the next packet."""
    net = Net(COMMITS)
    talk = Tcp(net)
    assert talk.say(IN).offload == "not_tcp_state"
    assert talk.say(OUT).offload == "not_assured"
    assert talk.say(IN).offload == "software"


def test_udp_is_admitted_as_soon_as_it_is_confirmed_and_served_only_once_it_is_assured() -> None:
    """10, 11, 42: assured needs an answer more than two seconds after the first packet."""
    net = Net()
    assert udp(net).offload == "software"
    assert (net.flows.counters()["admitted"], net.flows.count) == (1, 1)
    assert udp(net).offload == "not_assured"
    assert udp(net, OUT).offload == "not_assured"
    net.wait(2.5)
    assert udp(net, OUT).offload == "not_assured"
    assert net.flows.counters()["served"] == 0
    assert "assured" in udp(net, IN).status
    assert udp(net, OUT).offload == "software"
    assert net.flows.counters()["served"] == 2


def test_what_is_not_committed_is_not_admitted() -> None:
    """10: a datagram that a rule only looks up."""
    net = Net("tc filter add dev in0 ingress protocol ip flower action ct pipe action pass\n")
    assert [udp(net).offload for _ in range(2)] == ["not_unconfirmed"] * 2
    assert net.flows.count == 0


@pytest.mark.parametrize("kind", ["icmp", "sctp", "udplite"])
def test_other_protocols_never_are(kind: str) -> None:
    """13."""
    net = Net(COMMITS)
    ends = (CLIENT, SERVER, 40000, 7)
    for side in (IN, OUT, IN, OUT):
        src, dst = (CLIENT, SERVER) if side == IN else (SERVER, CLIENT)
        frame = {
            "icmp": lambda: craft.icmp(src, dst, 8 if side == IN else 0, ident=7, sequence=1),  # noqa: B023
            "sctp": lambda: craft.sctp(src, dst, *(ends[2:] if side == IN else ends[:1:-1]), 0, craft.sctp_init(7)),  # noqa: B023
            "udplite": lambda: craft.udplite(src, dst, *(ends[2:] if side == IN else ends[:1:-1]), b"datagram"),  # noqa: B023
        }[kind]()
        said = net.send(frame, side)
        assert said.offload in ("not_proto", "none")
        net.wait(1)
    assert net.flows.counters()["admitted"] == 0


def test_gre_without_keys_is_admitted_and_with_keys_is_not() -> None:
    """12: version 0; version 1 has a call id for a key, and is never asked for in the table."""
    net = Net(COMMITS)
    said = [net.send(craft.gre(*ends, payload=b"12345678"), side) for side, ends in ((IN, (CLIENT, SERVER)), (OUT, (SERVER, CLIENT))) * 2]
    assert said[0].offload == "not_assured"
    assert said[-1].offload == "software"
    assert net.flows.counters()["served"] >= 1
    assert net.send(craft.gre(CLIENT, SERVER, version=1, proto=0x880B, call=3)).offload == "not_gre_key"
    assert net.flows.count == 1


def test_gre_that_is_translated_is_not() -> None:
    """12."""
    net = Net(SNAT)
    net.send(craft.gre(CLIENT, SERVER, payload=b"12345678"))
    for _ in range(2):
        assert net.send(craft.gre(SERVER, PUBLIC, payload=b"12345678"), OUT).offload == "not_gre_nat"
    assert net.flows.count == 0


def test_a_helper_keeps_a_connection_out() -> None:
    """14."""
    net = Net(FTP)
    talk = Tcp(net, server=21).opened()
    assert talk.say(OUT, "PA", b"220 hello\r\n").offload == "not_helper"
    assert (net.flows.count, net.offloaded()) == (0, False)


def test_moved_sequence_numbers_keep_it_out_too() -> None:
    """14: a command whose address is translated has another length."""
    net = Net(SNAT.replace("nat src addr 192.0.2.1 pipe", "nat src addr 192.0.2.1 helper ipv4-tcp-ftp pipe"))
    near, far = (CLIENT, SERVER, 40000, 21), (SERVER, PUBLIC, 21, 40000)
    net.send(craft.tcp(*near, "S", seq=99))
    net.send(craft.tcp(*far, "SA", seq=499, ack=100), OUT)
    assert net.send(craft.tcp(*near, "A", seq=100, ack=500)).offload == "not_helper"
    net.send(craft.tcp(*near, "PA", seq=100, ack=500, payload=b"NOOP\r\n"))
    assert net.send(craft.tcp(*near, "PA", seq=106, ack=500, payload=b"PORT 10,0,0,1,7,208\r\n")).offload == "not_seqadj"
    assert net.flows.count == 0


def test_an_admitted_tcp_connection_is_tracked_liberally_for_good() -> None:
    """17, 19: a day, whatever it had before; liberal after the teardown as well."""
    net = Net()
    talk = Tcp(net).opened()
    assert net.conn()["tcp"]["flags"].tolist() == [f | TcpFlag.TF_BE_LIBERAL for f in net.conn()["tcp"]["flags"].tolist()]
    assert net.left() == DAY
    net.flows.flush()
    talk.say(IN, "PA", b"x" * 10, seq=50_000_000)
    assert talk.say(IN, "PA", b"x" * 10, seq=90_000_000).state == "established"
    assert net.conn()["tcp"]["flags"][IN] & TcpFlag.TF_BE_LIBERAL


def test_an_admitted_datagram_connection_has_a_day_too() -> None:
    """19."""
    net = Net()
    udp(net)
    assert net.left() == DAY


def test_a_tuple_that_waits_for_its_round_is_busy() -> None:
    """18: deleted, and back before the next second."""
    net = Net()
    udp(net)
    net.tracker.delete(Filter(proto=17))
    net.wait(0.2)
    assert udp(net).offload == "not_tuple_busy"
    assert (net.flows.count, net.offloaded(1)) == (1, False)
    net.wait(1)
    assert udp(net).offload == "software"
    assert net.flows.counters()["teardown_dying"] == 1


# --- packets (A5) ----------------------------------------------------------------------------------------------------------------------

SLOW = {
    "ttl": {"ttl": 1},
    "ip_options": {"ip_options": b"\1\1\1\0"},
}


@pytest.mark.parametrize("why", SLOW)
def test_what_the_table_may_not_serve_goes_the_slow_way_and_refreshes_nothing(why: str) -> None:
    """37: it is still there for the others, and 30 s after the last that it served it ends."""
    net = Net()
    talk = Tcp(net).opened()
    for _ in range(6):
        net.wait(5.9)
        said = talk.say(OUT, "A", **SLOW[why])
        if net.offloaded():
            assert said.offload == f"not_{why}"
            assert said.state == "established"
    assert net.flows.counters()["served"] == 0
    assert net.flows.counters()["teardown_idle"] == 1


def test_a_packet_that_was_cut_before_its_transport_header_ends_goes_the_slow_way() -> None:
    """37."""
    net = Net()
    talk = Tcp(net).opened()
    frame = craft.tcp(*talk.ends[OUT], "A", seq=talk.next[OUT], ack=talk.next[IN])
    said = net.send(frame[:44], OUT, missing=len(frame) - 44)
    assert (said.offload, said.reason) == ("none", "snapped")
    assert (net.flows.counters()["served"], net.offloaded()) == (0, True)


def test_fragments_and_what_they_become_go_the_slow_way() -> None:
    """37."""
    net = Net(COMMITS)
    assured_udp(net)
    assert udp(net).offload == "software"
    served = net.flows.counters()["served"]
    datagram = craft.udp_segment(CLIENT, SERVER, 40000, 53, bytes(40))
    net.send(craft.frame(CLIENT, SERVER, 17, datagram[:24], frag=0x2000, ident=7))
    whole = net.send(craft.frame(CLIENT, SERVER, 17, datagram[24:], frag=3, ident=7))
    assert (whole.offload, whole.state) == ("not_fragment", "established")
    assert net.flows.counters()["served"] == served


def test_ipv6_is_served_but_not_behind_an_extension_header() -> None:
    """37: the first next header has to be the transport's."""
    net = Net(ANY)
    ends = ((CLIENT6, SERVER6, 40000, 53), (SERVER6, CLIENT6, 53, 40000))
    for side, seconds in ((IN, 0), (OUT, 2.5), (OUT, 0)):
        net.send(craft.udp(*ends[side], b"datagram"), side)
        net.wait(seconds)
    assert net.send(craft.udp(*ends[IN], b"datagram")).offload == "software"
    behind = craft.udp(*ends[IN], b"datagram", ext=((craft.DESTINATION, craft.options6()),))
    assert net.send(behind).offload == "not_ip_options"
    assert net.send(craft.udp(*ends[IN], b"datagram", ttl=1)).offload == "not_ttl"


def test_served_packets_are_accounted_and_no_window_is_looked_at() -> None:
    """43: per direction; sequence numbers may be anything."""
    net = Net()
    talk = Tcp(net).opened()
    before = net.conn()["flow"]["packets"].tolist()
    end = net.conn()["tcp"]["side"].tolist()
    for number in (1, 77_777_777, 4_000_000_000):
        assert talk.say(OUT, "PA", b"12345", seq=number).offload == "software"
    assert net.conn()["flow"]["packets"].tolist() == [before[0], before[1] + 3]
    assert int(net.conn()["flow"]["bytes"][OUT]) == 40 * before[1] + 3 * 45
    assert net.conn()["tcp"]["side"].tolist() == end


@pytest.mark.parametrize(("flags", "cause", "state", "seconds"), [("FA", "teardown_fin", "FIN_WAIT", 120), ("RA", "teardown_rst", "CLOSE", 10)])
def test_fin_and_rst_tear_down_and_are_tracked_themselves(flags: str, cause: str, state: str, seconds: int) -> None:
    """40, 52, 58: no admission any more; the row goes with the next round."""
    net = Net()
    talk = Tcp(net).opened()
    talk.say(OUT, "PA", b"hello")
    said = talk.say(OUT, flags)
    assert (said.offload, said.l4state, said.timeout) == (f"not_{cause}", state, seconds)
    assert "offload" not in said.status
    assert net.flows.counters()[cause] == 1
    assert net.flows.count == 1
    net.wait(1)
    assert talk.say(IN).offload == "not_tcp_state"
    assert (net.flows.count, net.flows.counters()["admitted"]) == (0, 1)


def test_a_closed_connection_that_opens_again_is_admitted_again() -> None:
    """58: the SYN begins a new connection of the same tuple."""
    net = Net()
    talk = Tcp(net).opened()
    for side, flags in ((IN, "FA"), (OUT, "FA"), (IN, "A")):
        talk.say(side, flags)
    net.wait(3)
    talk.next = [900_000, 800_000]
    talk.opened()
    assert net.flows.counters()["admitted"] == 2
    assert talk.say(OUT, "PA", b"again").offload == "software"
