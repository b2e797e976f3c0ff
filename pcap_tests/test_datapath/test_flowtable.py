"""The flow table: which connections it takes in, which of their packets it serves, and how they come back to the tracker."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ctcore import spec
from ctcore.config import Config
from ctcore.filter import Filter
from ctcore.reasons import NAMES
from ctcore.types import Offload, State, Status, TcpFlag
from datapath import craft
from datapath.pipeline.rules import Hook
from datapath.ruled import RulePipeline
from pcap_tests.scene import START, status_names
from pcap_tests.test_datapath.flowing import Coming, seen_by
from pcap_tests.test_datapath.test_pipeline.laboratory import CLASSIC, CLIENT, CLIENT6, PUBLIC, SERVER, SERVER6, SNAT, ruleset_of

SECOND, DAY = 1_000_000_000, 86400
IN, OUT = 0, 1
FTP = CLASSIC.replace("ct commit pipe", "ct commit helper ipv4-tcp-ftp pipe")
ANY = CLASSIC.replace("protocol ip ", "protocol all ")
# Everything is tracked and committed at once, wherever it comes from.
COMMITS = "".join(f"tc filter add dev {dev} ingress protocol all flower action ct commit pipe action pass\n" for dev in ("in0", "out0"))


class Net:
    """A pipeline with a flow table, and a clock."""

    def __init__(self, text: str = CLASSIC, **settings: Any):
        self.pipeline = RulePipeline(ruleset_of(text), Config(**settings))
        self.pipeline.arrive([Hook("in0"), Hook("out0")])
        self.tracker, self.now = self.pipeline.tracker, START

    def wait(self, seconds: float) -> None:
        self.now += round(seconds * SECOND)

    def send(self, frame: bytes, side: int = IN, *, outputs: bool = False, missing: int = 0) -> SimpleNamespace:
        """One packet, and what is said of it: timeout in seconds, offload by its name."""
        seen = seen_by(self.pipeline, [Coming(frame, side, self.now, missing)], outputs)
        said = seen.decisions[0]
        self.flows.check()
        self.pipeline.cuts.check()
        self.tracker.check()
        states = spec.tcp().states
        return SimpleNamespace(
            offload=Offload(int(said["offload"])).name.removeprefix("OFFLOAD_").lower(),
            state=State(int(said["state"])).name.lower(),
            status=status_names(int(said["status"])),
            timeout=int(said["timeout"]) / 250,
            reason=NAMES[said["reason"]],
            l4state=states[said["l4state"]] if said["l4state"] < len(states) else None,
            conn=int(said["conn"]),
            left=seen.left[0],
        )

    @property
    def flows(self) -> Any:
        return self.pipeline.flows

    def conn(self, ordinal: int = 0) -> Any:
        return self.tracker.conn(ordinal)[0]

    def left(self, ordinal: int = 0) -> float:
        """Seconds that a connection has left, now."""
        self.tracker.expire(self.now)
        return int(self.conn(ordinal)["timeout"]) / 250

    def offloaded(self, ordinal: int = 0) -> bool:
        return bool(self.conn(ordinal)["status"] & Status.OFFLOAD)

    def tick(self) -> None:
        """Somebody else's packet, so that time is seen to pass."""
        self.send(craft.udp("10.0.0.99", SERVER, 9, 9))


class Tcp:
    """A conversation from CLIENT:40000 to SERVER:80, on its way."""

    def __init__(self, net: Net, *, port: int = 40000, server: int = 80):
        self.net, self.next = net, [100, 500]
        self.ends = ((CLIENT, SERVER, port, server), (SERVER, CLIENT, server, port))

    def say(self, side: int, flags: str = "A", payload: bytes = b"", **fields: Any) -> SimpleNamespace:
        seq, ack = fields.pop("seq", self.next[side]), fields.pop("ack", self.next[1 - side] if "A" in flags else 0)
        keep = {name: fields.pop(name) for name in ("outputs", "missing") if name in fields}
        self.next[side] += len(payload) + ("S" in flags) + ("F" in flags)
        if options := fields.pop("ip_options", b""):
            segment = craft.tcp_segment(*self.ends[side], flags, seq=seq, ack=ack, payload=payload)
            return self.net.send(craft.frame(*self.ends[side][:2], 6, segment, options=options), side)
        return self.net.send(craft.tcp(*self.ends[side], flags, seq=seq, ack=ack, payload=payload, **fields), side, **keep)

    def opened(self) -> Tcp:
        """After the handshake."""
        for side, flags in ((IN, "S"), (OUT, "SA"), (IN, "A")):
            self.say(side, flags)
        return self


def udp(net: Net, side: int = IN, **fields: Any) -> SimpleNamespace:
    ends = (CLIENT, SERVER, 40000, 53) if side == IN else (SERVER, CLIENT, 53, 40000)
    return net.send(craft.udp(*ends, b"datagram", **fields), side)


def assured_udp(net: Net) -> None:
    """A stream of both directions, more than two seconds old."""
    udp(net)
    udp(net, OUT)
    net.wait(2.5)
    udp(net, OUT)


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
    """17, 19: a day at least, or more if it had more; liberal after the teardown as well."""
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


# --- aging (A6) ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [31, 3600])
def test_an_idle_tcp_connection_comes_back_with_the_rest_of_its_day(jump: int) -> None:
    """44, 56: a day is less than the 432,000 s of its state, so that nothing is to be shortened."""
    net = Net()
    Tcp(net).opened()
    net.wait(jump)
    net.tick()
    assert net.flows.counters()["teardown_idle"] == 1
    assert not net.offloaded()
    assert net.left() == DAY - jump


@pytest.mark.parametrize("jump", [31, 3600])
def test_an_idle_tcp_connection_comes_back_as_of_the_second_it_expired(jump: int) -> None:
    """44, 56: with its state's timeout less 30 s, however much later the capture goes on."""
    net = Net(timeouts={"tcp_timeout_established": 7440})
    Tcp(net).opened()
    net.wait(jump)
    net.tick()
    assert not net.offloaded()
    assert net.left() == 7440 - 30 - (jump - 30)


def test_an_idle_connection_dies_with_its_day() -> None:
    """56: nobody comes for two days."""
    net = Net(events=frozenset({"destroy"}))
    Tcp(net).opened()
    net.wait(2 * DAY)
    net.tick()
    assert [int(row["flow"][0]["key"]["proto"]) for row in net.tracker.conns()] == [17]
    assert net.tracker.events()["time"].tolist() == [START + DAY * SECOND]
    assert net.flows.counters() == {**net.flows.counters(), "teardown_idle": 1, "teardown_dying": 0}


def test_an_idle_stream_comes_back_with_90_s() -> None:
    """55, 56: 120 - 30."""
    net = Net()
    assured_udp(net)
    udp(net)
    net.wait(31)
    net.tick()
    assert net.flows.counters()["teardown_idle"] == 1
    assert 88 <= net.left() <= 90


def test_an_idle_datagram_without_an_answer_comes_back_with_nothing() -> None:
    """55, 56: 30 - 30."""
    net = Net()
    udp(net)
    net.wait(32)
    net.tick()
    assert [int(row["flow"][0]["key"]["dport"]) for row in net.tracker.conns()] == [9]


def test_traffic_keeps_a_connection_in_the_table() -> None:
    """41: each packet gives it 30 s."""
    net = Net()
    talk = Tcp(net).opened()
    for _ in range(20):
        net.wait(29)
        assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert net.flows.counters()["served"] == 20
    assert (net.flows.counters()["teardown_idle"], net.flows.counters()["admitted"]) == (0, 1)


def test_one_that_aged_out_is_admitted_again_by_its_next_packet() -> None:
    """58."""
    net = Net()
    talk = Tcp(net).opened()
    net.wait(40)
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert (net.flows.counters()["admitted"], net.flows.counters()["served"]) == (2, 0)
    assert talk.say(OUT, "PA", b"hello").offload == "software"
    assert net.flows.counters()["served"] == 1


def test_its_own_timeout_is_a_setting() -> None:
    """6."""
    net = Net(flowtable_tcp_timeout=5, timeouts={"tcp_timeout_established": 7440})
    Tcp(net).opened()
    net.wait(4)
    net.tick()
    assert net.offloaded()
    net.wait(2)
    net.tick()
    assert not net.offloaded()
    assert net.left() == 7440 - 5 - 1


@pytest.mark.parametrize(("extends", "left"), [(True, DAY), (False, 200)])
def test_less_than_five_minutes_are_made_a_day_if_that_is_wanted(extends: bool, left: int) -> None:
    """45: an administrator's timeout, say."""
    net = Net(flowtable_extends=extends)
    Tcp(net).opened()
    net.tracker.update(Filter(proto=6), timeout=201)
    net.wait(1)
    net.tick()
    assert abs(net.left() - left) <= 1


def test_more_than_five_minutes_stay_what_they_are() -> None:
    """45."""
    net = Net()
    Tcp(net).opened()
    net.tracker.update(Filter(proto=6), timeout=400)
    net.wait(1)
    net.tick()
    assert net.left() == 399


def test_a_fin_that_the_table_does_not_see_leaves_five_minutes() -> None:
    """37, 45: with a TTL of 1 it goes the slow way, and the connection is still in the table while it closes."""
    net = Net()
    talk = Tcp(net).opened()
    said = talk.say(OUT, "FA", ttl=1)
    assert (said.offload, said.l4state) == ("not_ttl", "FIN_WAIT")
    net.wait(1)
    net.tick()
    assert net.left() == 300
    assert talk.say(IN).offload == "software"


# --- teardown (A7) ---------------------------------------------------------------------------------------------------------------------


def test_windows_are_learnt_anew_after_a_teardown() -> None:
    """53, 54: what was not followed is not believed: the next packet passes, wherever its window is."""
    net = Net()
    talk = Tcp(net).opened()
    talk.say(OUT, "PA", b"hello")
    net.flows.flush()
    assert net.conn()["tcp"]["side"]["maxwin"].tolist() == [0, 0]
    assert not any(flags & TcpFlag.TF_MAXACK_SET for flags in net.conn()["tcp"]["flags"].tolist())
    assert net.left() == DAY
    assert net.flows.counters()["teardown_flush"] == 1
    said = talk.say(OUT, "PA", b"far on", seq=2_000_000_000, ack=talk.next[IN])
    assert (said.state, said.reason) == ("established", "ok")


def test_a_rst_far_on_closes_what_was_served() -> None:
    """54: the tracker's last acknowledgement is old, and would make it a challenge, or invalid."""
    net = Net()
    talk = Tcp(net).opened()
    talk.next[OUT] += 1_000_000
    talk.say(OUT, "PA", b"hello")
    said = talk.say(OUT, "R")
    assert (said.offload, said.l4state, said.state) == ("not_teardown_rst", "CLOSE", "established")


@pytest.mark.parametrize("how", ["delete", "flush"])
def test_a_connection_that_is_deleted_takes_its_row_with_it(how: str) -> None:
    """59: its packets are tracked, and nothing remembers the way they took."""
    net = Net()
    talk = Tcp(net).opened()
    talk.say(OUT, "PA", b"hello")
    net.tracker.delete(Filter(proto=6)) if how == "delete" else net.tracker.flush()
    net.flows.check()
    assert net.flows.counters()["teardown_dying"] == 1
    said = talk.say(OUT, "PA", b"hello")
    assert (said.state, said.conn, said.offload) == ("new", -1, "not_tcp_state")
    net.wait(1)
    net.tick()
    assert [int(row["status"]) & Status.OFFLOAD for row in net.tracker.conns()] == [Status.OFFLOAD]


def test_an_administrator_may_end_one_by_its_timeout() -> None:
    """59."""
    net = Net()
    Tcp(net).opened()
    net.tracker.update(Filter(proto=6), timeout=0)
    assert (net.tracker.count, net.flows.counters()["teardown_dying"]) == (0, 1)
    net.flows.check()


def test_early_drop_of_an_admitted_connection() -> None:
    """59: what is in the table and not assured may go when the tracker is full."""
    net = Net(COMMITS, max=2, buckets=1)
    for port in range(1, 6):
        net.send(craft.udp(CLIENT, SERVER, port, 53))
    assert 1 <= net.tracker.count <= 2
    assert net.flows.counters()["teardown_dying"] == 5 - net.tracker.count
    assert net.flows.count == 5
    net.wait(1)
    net.send(craft.icmp(CLIENT, SERVER, 8, ident=1, sequence=1))
    assert net.flows.count <= 2


def test_a_tracker_has_one_flow_table() -> None:
    from datapath.flowtable import Flows

    net = Net()
    with pytest.raises(ValueError, match="none yet"):
        Flows(net.tracker)
