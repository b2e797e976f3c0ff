"""SCTP: every cell of the state table, the order of chunks, verification tags, heartbeats, timeouts."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ctcore import spec
from ctcore.types import Dir
from datapath import craft
from datapath.craft import sctp_chunk, sctp_init
from pcap_tests.scene import Exchange, Scene, events
from pcap_tests.test_ctcore import expected_tables

TABLE = spec.sctp()
SECONDS = {state: None if name == "-" else spec.timeouts()["sctp_timeout_" + name] for state, name in zip(TABLE.states, TABLE.timeouts, strict=True)}
KINDS = {
    "data": 0, "init": 1, "init_ack": 2, "sack": 3, "heartbeat": 4, "heartbeat_ack": 5, "abort": 6, "shutdown": 7, "shutdown_ack": 8, "error": 9,
    "cookie_echo": 10, "cookie_ack": 11, "shutdown_complete": 14, "other": 192,
}  # fmt: skip
CLIENT_TAG, SERVER_TAG = 7, 8  # what packets to the client, to the server have to carry
NEVER_OPENS = {"abort", "shutdown_complete", "cookie_ack"}


def chunk(kind: str, *, initiate: int = 0, **fields) -> bytes:
    if kind in ("init", "init_ack"):
        return sctp_init(initiate, ack=kind == "init_ack")
    return sctp_chunk(KINDS[kind], **fields)


class Association(Exchange):
    """Chunks by name; the tag and the initiate tag are the right ones unless they are given."""

    def say(self, d: int, *kinds: str, tag: int | None = None, initiate: int | None = None, chunks: bytes = b"", **fields):
        if tag is None:
            tag = 0 if kinds[:1] == ("init",) else (SERVER_TAG, CLIENT_TAG)[d]
        if initiate is None:
            initiate = (CLIENT_TAG, SERVER_TAG)[d]
        return self.send(d, tag, b"".join(chunk(kind, initiate=initiate, **fields) for kind in kinds) + chunks)

    @property
    def sctp(self):
        return self.entry["sctp"]

    @property
    def state(self) -> str:
        return TABLE.states[self.sctp["state"]]


def association(tracker, **where) -> Association:
    where.setdefault("port", (1000, 2000))
    return Association(Scene(tracker), craft.sctp, **where)


def saying(*steps: tuple[int, str]) -> Callable[..., Association]:
    def bring(tracker) -> Association:
        conn = association(tracker)
        for d, kind in steps:
            assert conn.say(d, kind).reason == "ok"
        return conn

    return bring


HANDSHAKE = ((0, "init"), (1, "init_ack"), (0, "cookie_echo"), (1, "cookie_ack"))
STATES = {
    "NONE": association,
    "CLOSED": saying(*HANDSHAKE[:1]),
    "COOKIE_WAIT": saying(*HANDSHAKE[:2]),
    "COOKIE_ECHOED": saying(*HANDSHAKE[:3]),
    "ESTABLISHED": saying(*HANDSHAKE),
    "SHUTDOWN_SENT": saying(*HANDSHAKE, (0, "shutdown")),
    "SHUTDOWN_RECD": saying(*HANDSHAKE, (1, "shutdown")),
    "SHUTDOWN_ACK_SENT": saying(*HANDSHAKE, (0, "shutdown"), (1, "shutdown_ack")),
    "HEARTBEAT_SENT": saying((0, "heartbeat")),
}
ESTABLISHED_ONCE = {"ESTABLISHED", "SHUTDOWN_SENT", "SHUTDOWN_RECD", "SHUTDOWN_ACK_SENT"}
established = STATES["ESTABLISHED"]


# Without a connection there is no reply direction; and only some chunks open one.
@pytest.mark.parametrize("state", TABLE.states)
@pytest.mark.parametrize("event", TABLE.events)
@pytest.mark.parametrize("d", Dir, ids=spec.DIRS)
def test_cell(tracker, d, event, state):
    conn = STATES[state](tracker)
    if state == "NONE":
        seen = conn.say(d, event, tag=0)
        cell = expected_tables.SCTP[Dir.ORIG, event, state]
        if event in NEVER_OPENS or cell == "NONE":
            seen.is_("invalid", reason="sctp_not_opening", l4state=None)
        else:
            seen.is_("new", reason="ok", l4state=cell, timeout=SECONDS[cell], dir="original")
        return
    before = conn.left
    tag = 0 if event == "init" else int(conn.sctp["vtag"][d])
    seen = conn.say(d, event, tag=tag)
    cell = expected_tables.SCTP[d, event, state]
    if cell == "invalid":
        seen.is_("invalid", reason="sctp_state", l4state=state)
    elif (event, state) == ("init", "CLOSED"):
        seen.is_(seen.state, reason="sctp_ignored", l4state="CLOSED", timeout=before)
    else:
        seen.is_(seen.state, reason="ok", l4state=cell, timeout=SECONDS[cell])
        assert ("assured" in conn.status) == (cell == "ESTABLISHED" or state in ESTABLISHED_ONCE)


def test_handshake(tracker):
    conn = association(tracker)
    conn.say(0, "init").is_("new", l4state="CLOSED", timeout=10, status={"confirmed"})
    conn.say(1, "init_ack").is_("established", l4state="COOKIE_WAIT", timeout=3)
    conn.say(0, "cookie_echo").is_("established", l4state="COOKIE_ECHOED", timeout=3)
    conn.say(1, "cookie_ack").is_("established", l4state="ESTABLISHED", timeout=210, status={"confirmed", "seen-reply", "assured"})
    conn.say(0, "data").is_("established", reason="ok", timeout=210)
    assert conn.sctp["vtag"].tolist() == [SERVER_TAG, CLIENT_TAG]
    assert conn.packets == [3, 2]


def test_timeouts_are_settings(make_tracker):
    conn = established(make_tracker(timeouts={"sctp_timeout_established": 5}))
    conn.wait(5).say(0, "data").is_("invalid", reason="sctp_not_opening")


# --- the order of chunks ---------------------------------------------------------------------------------------------------------------


MISPLACED = [("data", late) for late in ("cookie_ack", "cookie_echo", "init", "init_ack")] + [("init", "data"), ("shutdown_complete", "data"), ()]


@pytest.mark.parametrize("kinds", MISPLACED)
def test_chunks_where_they_must_not_be(tracker, kinds):
    established(tracker).say(0, *kinds).is_("invalid", reason="sctp_chunks", l4state="ESTABLISHED")


@pytest.mark.parametrize("kinds", [("cookie_echo", "data"), ("data", "sack"), ("sack", "heartbeat", "data")])
def test_chunks_where_they_may_be(tracker, kinds):
    established(tracker).say(0, *kinds).is_("established", reason="ok")


@pytest.mark.parametrize("before", [(), ("data",)])
def test_a_chunk_of_length_0(tracker, before):
    conn = established(tracker)
    conn.say(0, *before, chunks=sctp_chunk(3, length=0)).is_("invalid", reason="sctp_chunks")


def test_chunks_begin_at_multiples_of_four(tracker):
    conn = established(tracker)
    conn.say(0, chunks=sctp_chunk(0, 0, b"12345") + sctp_chunk(7)).is_("established", l4state="SHUTDOWN_SENT")


def test_a_length_beyond_the_packet_ends_the_chunks(tracker):
    conn = established(tracker)
    conn.say(0, chunks=sctp_chunk(0, length=60000) + sctp_chunk(7)).is_("established", reason="ok", l4state="ESTABLISHED")


def test_less_than_a_chunk_header_at_the_end_is_nothing(tracker):
    established(tracker).say(0, "data", chunks=b"\7\0\0").is_("established", l4state="ESTABLISHED")


# --- the first packet ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "sack", "other", *NEVER_OPENS])
def test_what_opens_nothing(tracker, kind):
    association(tracker).say(0, kind, tag=0).is_("invalid", reason="sctp_not_opening", conn=None)
    assert tracker.count == 0


def test_every_chunk_must_lead_somewhere(tracker):
    association(tracker).say(0, "heartbeat", "data", tag=9).is_("invalid", reason="sctp_not_opening")


def test_init_carries_no_tag(tracker):
    association(tracker).say(0, "init", tag=1).is_("invalid", reason="sctp_not_opening")


def test_init_that_is_cut_off(tracker):
    association(tracker).say(0, chunks=sctp_init(7)[:19], tag=0).is_("invalid", reason="sctp_not_opening")
    established(tracker).say(0, chunks=sctp_init(7)[:19], tag=0).is_("invalid", reason="sctp_chunks", l4state="ESTABLISHED")


def test_heartbeat_tells_its_own_tag(tracker):
    conn = association(tracker)
    conn.say(0, "heartbeat", tag=99).is_("new", l4state="HEARTBEAT_SENT", timeout=30)
    assert conn.sctp["vtag"].tolist() == [99, 0]


def test_shutdown_ack_out_of_the_blue_tells_the_tag_of_its_answer(tracker):
    """RFC 9260 8.4: the answer is a SHUTDOWN COMPLETE with the same tag."""
    conn = association(tracker)
    conn.say(0, "shutdown_ack", tag=99).is_("new", l4state="SHUTDOWN_ACK_SENT")
    assert conn.sctp["vtag"].tolist() == [0, 99]
    conn.say(1, "shutdown_complete", tag=99).is_("established", l4state="CLOSED")


def test_heartbeat_ack_first_tells_only_its_own(tracker):
    conn = association(tracker)
    conn.say(0, "heartbeat_ack", tag=99).is_("new", l4state="CLOSED")
    assert conn.sctp["vtag"].tolist() == [99, 0]


# --- verification tags -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "sack", "shutdown", "error", "cookie_ack", "other", "init_ack"])
@pytest.mark.parametrize("d", Dir, ids=spec.DIRS)
def test_a_wrong_tag(tracker, d, kind):
    established(tracker).say(d, kind, tag=12345).is_("invalid", reason="sctp_tag", l4state="ESTABLISHED")


def test_init_with_a_tag(tracker):
    established(tracker).say(0, "init", tag=SERVER_TAG).is_("invalid", reason="sctp_tag")


@pytest.mark.parametrize("kind", ["abort", "shutdown_complete"])
@pytest.mark.parametrize(("flags", "tag", "fits"), [(0, SERVER_TAG, True), (0, CLIENT_TAG, False), (1, CLIENT_TAG, True), (1, SERVER_TAG, False)])
def test_the_reflected_tag(tracker, kind, flags, tag, fits):
    """RFC 9260 8.5.1: with the T flag the tag is the receiver's of the other direction."""
    conn = established(tracker)
    seen = conn.say(0, kind, tag=tag, flags=flags)
    seen.is_("established", reason="ok") if fits else seen.is_("invalid", reason="sctp_tag")


def test_cookie_echo_with_a_wrong_tag(tracker):
    STATES["COOKIE_WAIT"](tracker).say(0, "cookie_echo", tag=1).is_("invalid", reason="sctp_tag", l4state="COOKIE_WAIT")


def test_shutdown_ack_with_any_tag(tracker):
    STATES["SHUTDOWN_SENT"](tracker).say(1, "shutdown_ack", tag=1).is_("established", l4state="SHUTDOWN_ACK_SENT")


def test_changes_before_the_failing_chunk_stay(make_tracker):
    """An ABORT is right, the COOKIE ECHO of the same packet has its tag, but the INIT ACK before it ..."""
    tracker = make_tracker(events=frozenset({"update"}))
    conn = established(tracker)
    tracker.events()
    reflected = sctp_chunk(KINDS["abort"], 1)  # its tag would have to be the other one
    conn.say(0, "shutdown", chunks=reflected).is_("invalid", reason="sctp_tag", l4state="SHUTDOWN_SENT", conn=None)
    assert conn.left == 210
    assert [event.kind for event in events(tracker)] == ["update"]


# --- INIT and INIT ACK -----------------------------------------------------------------------------------------------------------------


def test_init_again_is_not_renewed(tracker):
    conn = STATES["CLOSED"](tracker)
    conn.wait(4).say(0, "init").is_("new", reason="sctp_ignored", timeout=6)
    assert conn.packets == [1, 0]


def test_init_again_with_another_tag(tracker):
    conn = STATES["CLOSED"](tracker)
    conn.say(0, "init", initiate=77).is_("new", reason="sctp_ignored")
    assert conn.sctp["vtag"].tolist() == [0, 77]


def test_crossing_inits(tracker):
    conn = STATES["CLOSED"](tracker)
    conn.say(1, "init", initiate=SERVER_TAG).is_("established", reason="sctp_ignored")
    assert conn.sctp["init"].tolist() == [1, 1]
    conn.say(1, "init_ack", initiate=99).is_("invalid", reason="sctp_tag")
    conn.say(1, "init_ack", initiate=SERVER_TAG).is_("established", reason="ok", l4state="COOKIE_WAIT")


def test_a_third_init_takes_back_the_other_sides(tracker):
    conn = STATES["CLOSED"](tracker)
    conn.say(1, "init")
    conn.say(0, "init", initiate=55)
    assert conn.sctp["init"].tolist() == [1, 0]


def test_the_known_init_again_counts_no_more(tracker):
    conn = established(tracker)
    assert conn.sctp["init"].tolist() == [0, 0]
    conn.say(0, "init").is_("established", reason="ok", l4state="ESTABLISHED")
    assert conn.sctp["init"].tolist() == [0, 0]
    conn.say(0, "init", initiate=55)
    assert (conn.sctp["init"].tolist(), conn.sctp["vtag"].tolist()) == ([1, 0], [SERVER_TAG, 55])


def test_init_ack_that_nobody_asked_for(tracker):
    conn = established(tracker)
    conn.say(0, "init_ack", initiate=55).is_("invalid", reason="sctp_tag")
    conn.say(0, "init_ack", initiate=CLIENT_TAG).is_("established", reason="ok")


def test_init_ack_after_a_restart_tells_a_new_tag(tracker):
    """The server asks anew on a live association: the client's answer may tell another tag."""
    conn = established(tracker)
    conn.say(1, "init", initiate=66)
    conn.say(0, "init_ack", initiate=77, tag=66).is_("established", reason="ok")
    assert conn.sctp["vtag"].tolist() == [66, 77]


# --- heartbeats ------------------------------------------------------------------------------------------------------------------------


def test_heartbeat_with_a_strange_tag_passes_without_effect(tracker):
    conn = established(tracker)
    conn.wait(10).say(0, "heartbeat", tag=99).is_("established", reason="sctp_ignored", timeout=200)
    assert (conn.sctp["flags"], conn.sctp["last_dir"]) == (1, 0)
    conn.say(0, "heartbeat").is_("established", reason="ok", timeout=210)
    assert conn.sctp["flags"] == 0


@pytest.mark.parametrize("kinds", [("heartbeat", "data"), ("heartbeat", "heartbeat")])
def test_strange_heartbeat_in_bad_company(tracker, kinds):
    established(tracker).say(0, *kinds, tag=99).is_("invalid", reason="sctp_tag")


def test_the_ack_of_a_strange_heartbeat_proves_new_tags(tracker):
    conn = established(tracker)
    conn.say(0, "heartbeat", tag=99)
    conn.say(1, "heartbeat_ack", tag=88).is_("established", reason="ok")
    assert (conn.sctp["vtag"].tolist(), conn.sctp["flags"]) == ([0, 88], 0)
    conn.say(0, "heartbeat", tag=99).is_("established", reason="ok")
    assert conn.sctp["vtag"].tolist() == [99, 88]


@pytest.mark.parametrize(("asked", "answered"), [((), 1), ((0,), 0)], ids=["nobody asked", "by the one who asked"])
def test_a_strange_heartbeat_ack(tracker, asked, answered):
    conn = established(tracker)
    for d in asked:
        conn.say(d, "heartbeat", tag=99)
    conn.say(answered, "heartbeat_ack", tag=88).is_("invalid", reason="sctp_tag")


def test_a_path_opened_by_heartbeat(tracker):
    conn = STATES["HEARTBEAT_SENT"](tracker)
    conn.say(1, "heartbeat_ack", tag=42).is_("established", l4state="ESTABLISHED", has={"assured"}, timeout=210)
    conn.say(0, "data").is_("established", reason="ok")
    assert conn.sctp["vtag"].tolist() == [SERVER_TAG, 42]


# --- headers ---------------------------------------------------------------------------------------------------------------------------


def test_a_bad_checksum_keeps_its_connection_in_the_record(tracker):
    conn = established(tracker)
    conn.send(0, SERVER_TAG, chunk("data"), l4_checksum=1).is_("invalid", reason="sctp_checksum", l4state="ESTABLISHED")


def test_a_short_header(tracker):
    conn = association(tracker)
    conn.scene.send(craft.frame("10.0.0.1", "10.0.0.2", craft.SCTP, bytes(11))).is_("invalid", reason="sctp_short")
    conn.scene.send(craft.frame("10.0.0.1", "10.0.0.2", craft.SCTP, bytes(3))).is_("invalid", reason="tuple_short")
