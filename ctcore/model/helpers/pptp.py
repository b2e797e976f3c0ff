"""PPTP in the model (RFC 2637): a call that is set up over TCP, and the GRE tunnel that it announces.

Each end of a call has an id, and GRE packets carry the id of the end they go to. Once the set-up has named both, the tracker gives GRE packets of
either direction the other id as their source key (tunnels), and both directions are one connection. The opener of the control connection is taken
for the client (PNS). Under translation the client's id becomes its port as seen from outside, since several clients may have chosen the same one.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from enum import IntEnum, auto
from itertools import count

from ctcore.model.conn import Conn, Key
from ctcore.model.expectations import Announced, Expectation, Follow
from ctcore.model.helpers.aid import Aid
from ctcore.types import Dir, Proto, Reason, State, Status

HEADER = struct.Struct("!HHIHH")  # length, packet type, magic cookie, message type, reserved
ORDER = count(1)
CONTROL, MAGIC, GOOD = 1, 0x1A2B3C4D, 1


class Message(IntEnum):
    START_REQUEST = 1
    START_REPLY = 2
    STOP_REQUEST = 3
    STOP_REPLY = 4
    ECHO_REQUEST = 5
    ECHO_REPLY = 6
    OUT_REQUEST = 7
    OUT_REPLY = 8
    IN_REQUEST = 9
    IN_REPLY = 10
    IN_CONNECTED = 11
    CLEAR_REQUEST = 12
    DISCONNECT = 13
    WAN_ERROR = 14
    SET_LINK = 15


# Bytes of each message behind the header, by type; shorter ones are not looked at.
SIZES = (0, 144, 144, 4, 4, 0, 0, 156, 20, 208, 12, 16, 4, 136, 28, 12)


class Session(IntEnum):
    NONE = auto()
    ERROR = auto()
    STOPPING = auto()
    REQUESTED = auto()
    CONFIRMED = auto()


class Call(IntEnum):
    NONE = auto()
    OUT_ASKED = auto()
    OUT = auto()
    IN_ASKED = auto()
    IN_ANSWERED = auto()
    IN = auto()
    CLEARING = auto()


@dataclass
class Memory:
    """Call ids as the other side sees them, and as their own side has chosen them; what is known of the tunnel, by direction."""

    session: Session = Session.NONE
    call: Call = Call.NONE
    pns: int = 0
    pac: int = 0
    own_pns: int = 0
    own_pac: int = 0
    tunnels: list[Key | None] = field(default_factory=lambda: [None, None])
    order: list[int] = field(default_factory=lambda: [0, 0])  # in which they became known
    hang_up: bool = False


class Senseless(Exception):
    """A message that is impossible here: it passes, and changes nothing."""


def help(aid: Aid) -> int:
    """One packet."""
    if aid.state != State.ESTABLISHED or len(aid.payload) < HEADER.size:
        return Reason.R_OK
    _, kind, magic, number, _ = HEADER.unpack_from(aid.payload)
    body = aid.payload[HEADER.size :]
    if (kind, magic) != (CONTROL, MAGIC) or not 0 < number < len(SIZES) or len(body) < SIZES[number]:
        return Reason.R_OK
    memory = aid.ext.memory = aid.ext.memory or Memory()
    message = Message(number)
    try:
        (from_client if aid.dir == Dir.ORIG else from_server)(aid, memory, message, body)
    except Senseless:
        return Reason.R_OK
    return translate_ids(aid, memory, message) if aid.translated else Reason.R_OK


def word(body: bytes, at: int) -> int:
    return int.from_bytes(body[at : at + 2], "big")


def require(condition: bool) -> None:
    if not condition:
        raise Senseless


def from_client(aid: Aid, m: Memory, message: Message, body: bytes) -> None:
    match message:
        case Message.START_REQUEST:
            require(m.session == Session.NONE)
            m.session = Session.REQUESTED
        case Message.STOP_REQUEST:
            m.session = Session.STOPPING
        case Message.OUT_REQUEST:
            require(m.session == Session.CONFIRMED)
            m.call, m.pns = Call.OUT_ASKED, word(body, 0)
        case Message.IN_REPLY:
            require(m.call in (Call.IN_ASKED, Call.IN_ANSWERED) and m.pac == word(body, 2))
            m.call = Call.IN_ANSWERED if body[4] == GOOD else Call.NONE
            m.pns = word(body, 0) if m.call == Call.IN_ANSWERED else m.pns
        case Message.CLEAR_REQUEST:
            require(m.session == Session.CONFIRMED)
            m.call = Call.CLEARING
        case _:
            require(message in (Message.SET_LINK, Message.ECHO_REQUEST, Message.ECHO_REPLY))


def from_server(aid: Aid, m: Memory, message: Message, body: bytes) -> None:
    match message:
        case Message.START_REPLY:
            require(m.session >= Session.REQUESTED)
            m.session = Session.CONFIRMED if body[2] == GOOD else Session.ERROR
        case Message.STOP_REPLY:
            require(m.session <= Session.STOPPING)
            m.session = Session.NONE if body[0] == GOOD else Session.ERROR
        case Message.OUT_REPLY:
            require(m.session == Session.CONFIRMED and m.call in (Call.OUT_ASKED, Call.OUT) and m.pns == word(body, 2))
            m.call = Call.OUT if body[4] == GOOD else Call.NONE
            if m.call == Call.OUT:
                m.pac = word(body, 0)
                expect_tunnel(aid, m)
        case Message.IN_REQUEST:
            require(m.session == Session.CONFIRMED)
            m.call, m.pac = Call.IN_ASKED, word(body, 0)
        case Message.IN_CONNECTED:
            require(m.session == Session.CONFIRMED and m.call in (Call.IN_ANSWERED, Call.IN) and m.pns == word(body, 0))
            m.call = Call.IN
            expect_tunnel(aid, m)
        case Message.DISCONNECT:
            m.call, m.hang_up = Call.NONE, True
        case _:
            require(message in (Message.WAN_ERROR, Message.ECHO_REQUEST, Message.ECHO_REPLY))


# --- the tunnel ------------------------------------------------------------------------------------------------------------------------


def expect_tunnel(aid: Aid, m: Memory) -> None:
    """A call stands: GRE is expected from either end. All of it or nothing."""
    keys, saved = ((m.pns, m.pac), (m.pac, m.pns)), (0, 0)
    if aid.translated:
        m.own_pac = m.pac
        keys, saved = ((m.own_pns, m.pac), (m.own_pac, m.pns)), (m.pns, m.own_pns)
    both = []
    for d in Dir:
        own, (sport, dport) = aid.conn.key[d], keys[d]
        draft = aid.draft(own.src, own.dst, Proto.PROTO_GRE, dport, sport=sport)
        both.append(replace(draft, dir=d, follow=Follow.PPTP, saved=(bytes(16), saved[d])))
    announced: list[Expectation] = []
    for expectation in both:
        if aid.announce(expectation) is not Announced.YES:
            break
        announced.append(expectation)
    else:
        if know_tunnel(m, both):
            return
    for expectation in announced:
        aid.office.withdraw(aid.conn, expectation)


def know_tunnel(m: Memory, both: list[Expectation]) -> bool:
    """Remember its directions. False if the call has had another one: until it is over there is one only."""
    for d in Dir:
        known = m.tunnels[d]
        if known and not same_tunnel(known, both[d].key):
            if d == Dir.REPLY:
                m.tunnels = [None, None]
            return False
        if not known:
            m.tunnels[d], m.order[d] = both[d].key, next(ORDER)
    return True


def same_tunnel(a: Key, b: Key) -> bool:
    """As it arrives: the source key is what is not known yet. Zones are not looked at, as in Linux."""
    return (a.src, a.dst, a.dport, a.family) == (b.src, b.dst, b.dport, b.family)


def other_end(expectation: Expectation, master: Conn) -> Key:
    """The first packet of the tunnel's other direction, which is expected no more once one has begun."""
    if not master.has(Status.SRC_NAT | Status.DST_NAT):
        return expectation.key._replace(src=expectation.key.dst, dst=expectation.key.src, sport=expectation.key.dport, dport=expectation.key.sport)
    m, back = master.ext.memory, master.key[1 - expectation.dir]
    sport, dport = (m.pac, m.pns) if expectation.dir == Dir.ORIG else (m.own_pns, m.own_pac)
    return back._replace(proto=Proto.PROTO_GRE, sport=sport, dport=dport)


# --- translation -----------------------------------------------------------------------------------------------------------------------


def translate_ids(aid: Aid, m: Memory, message: Message) -> int:
    """The client's id is another one outside: what names it is changed."""
    if aid.dir == Dir.ORIG:
        if message == Message.OUT_REQUEST:
            m.own_pns, m.pns = m.pns, aid.conn.key[Dir.REPLY].dport
        if message in (Message.OUT_REQUEST, Message.IN_REPLY, Message.CLEAR_REQUEST):
            return rewrite_id(aid, 0, m.pns)
    elif message in (Message.OUT_REPLY, Message.IN_CONNECTED, Message.WAN_ERROR, Message.DISCONNECT):
        return rewrite_id(aid, 2 if message == Message.OUT_REPLY else 0, m.own_pns)
    return Reason.R_OK


def rewrite_id(aid: Aid, at: int, value: int) -> int:
    return Reason.R_OK if aid.edit(HEADER.size + at, 2, value.to_bytes(2, "big")) else Reason.R_HELPER_REFUSED
