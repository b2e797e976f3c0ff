"""Address translation in the model: which tuple a new connection gets, and how its packets leave.

Theory of operation: a connection's reply key is the tuple its answers will have, so its inverse is the tuple its packets leave with. For a new
connection decide() moves that tuple twice, first the destination, then the source (DNAT comes before SNAT in a packet's path), and looks for one
that nobody else's answers have. A packet of direction d leaves with the inverse of key[1 - d]; which half of it changes, the status bits say.
The order of choice is that of unique(): the tuple as it is; the source another connection of the same source has got; an address by hash; the
port as it is; a search for another port.
Invariants (check()): a pool counts exactly the live connections its rule decided on; random numbers are drawn where Linux draws them, and only
there, so that the engine, which draws the same ones, chooses the same ports.
Not here: what a rule leaves to choose from, hash and random numbers (nat_choice), rules as values (ctcore.nat_rules), entering the tuples into the
table and what happens if one is taken (tracker), bytes (datapath).
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import numpy as np

from ctcore.config import Config
from ctcore.model import l4
from ctcore.model.conn import MASK32, Conn, Key, Packet
from ctcore.model.nat_choice import (
    DST,
    MASK16,
    SRC,
    Choice,
    Draws,
    choice_of,
    choose_address,
    port_within,
    ports_to_search,
    with_port,
)
from ctcore.model.steering import owner
from ctcore.model.table import Table
from ctcore.model.zones import zone_of
from ctcore.nat_rules import Match, NatPool, NatRule
from ctcore.types import Dir, Proto, Reason, RewriteFlag, Status
from ctcore.types import TcpState as S

CHANGED = (Status.SRC_NAT, Status.DST_NAT)  # by Manip, as all pairs here
DONE = (Status.SRC_NAT_DONE, Status.DST_NAT_DONE)
OUTER = (RewriteFlag.REWRITE_SRC, RewriteFlag.REWRITE_DST)
INNER = (RewriteFlag.REWRITE_INNER_SRC, RewriteFlag.REWRITE_INNER_DST)
BOTH = frozenset((SRC, DST))

ATTEMPTS = 128  # ports a search tries at once
LEAST_ATTEMPTS = 16  # with fewer than that tried, it ends
LAST_ATTEMPTS = 32  # with no more than that left, a closed connection's tuple may be taken over
KEPT = Status.FIXED_TIMEOUT | Status.DYING  # such a connection is not taken over
OFFLOADED = Status.OFFLOAD | Status.HW_OFFLOAD

# --- rules -----------------------------------------------------------------------------------------------------------------------------


def matches(rule: NatRule, leaving: Key) -> bool:
    """Whether a rule is for packets of this tuple. A rule with ports is for protocols that have some."""
    if rule.family not in (None, leaving.family):
        return False
    match = rule.match
    if match.proto not in (None, leaving.proto):
        return False
    return within_networks(match, leaving) and within_ports(match, leaving)


UNKNOWN = bytes(16)  # the source of who has no address yet, as of DHCP: it is not masqueraded
LOOPBACK, NODE, LINK, SITE, GLOBAL = (1).to_bytes(16, "big"), 1, 2, 5, 0


def same_scope(rule: NatRule, leaving: Key) -> bool:
    """Of an interface's addresses Linux redirects to one of the destination's scope (nf_nat_redirect_ipv6); IPv4 has none."""
    return leaving.family == 4 or rule.range.low is None or scope_of(rule.range.low.packed) == scope_of(leaving.dst)


def scope_of(address: bytes) -> int:
    """RFC 4291 2.4 and 2.7; of a multicast address all that is wider than a site is global."""
    if address[0] == 0xFF:
        return address[1] & 15 if address[1] & 15 in (NODE, LINK, SITE) else GLOBAL
    if address[0] == 0xFE and address[1] & 0x80:
        return SITE if address[1] & 0x40 else LINK
    return NODE if address == LOOPBACK else GLOBAL


def within_networks(match: Match, leaving: Key) -> bool:
    kind, length = (IPv4Address, 4) if leaving.family == 4 else (IPv6Address, 16)
    pairs = ((match.src, leaving.src), (match.dst, leaving.dst))
    return all(network is None or kind(address[:length]) in network for network, address in pairs)


def within_ports(match: Match, leaving: Key) -> bool:
    if match.sport is None and match.dport is None:
        return True
    pairs = ((match.sport, leaving.sport), (match.dport, leaving.dport))
    return leaving.proto in l4.PORTS and all(ports is None or ports[0] <= port <= ports[1] for ports, port in pairs)


@dataclass
class Pool:
    """How much one rule is in use."""

    in_use: int = 0
    high_water: int = 0
    exhausted: int = 0


# --- the translator --------------------------------------------------------------------------------------------------------------------


class Translator:
    """What a tracker with NAT rules does for new connections. kill: how to take one out of the table whose tuple is taken over."""

    def __init__(self, config: Config, table: Table, kill: Callable[[Conn, Conn], None]):
        self.rules = config.nat
        self.pools = [Pool() for _ in self.rules]
        self._table = table
        self._kill = kill
        self._draws = Draws(config.seed)
        self._share, self._shares = config.share
        self._preferred: dict[int, int] = {}  # by manip
        self._announced: int | None = None
        self._by_source: dict[tuple[bytes, int, int, int, int], list[Conn]] = {}  # live connections, oldest first

    def decide(self, conn: Conn) -> int:
        """Both halves of a new connection's tuple, but for what is decided already. R_OK, or why it cannot be translated."""
        for manip in (DST, SRC):
            if not conn.has(DONE[manip]):
                leaving = leaves_with(conn, Dir.ORIG)
                rule = next((i for i, rule in enumerate(self.rules) if rule.source == (manip == SRC) and matches(rule, leaving)), -1)
                if rule >= 0 and self.rules[rule].kind == "redirect" and not same_scope(self.rules[rule], leaving):
                    return Reason.R_NAT_SCOPE
                if rule >= 0 and self.rules[rule].kind == "masquerade" and (leaving.family, leaving.src) == (4, UNKNOWN):
                    rule = -1
                conn.rules[manip] = rule
                self.bind(conn, choice_of(self.rules[rule] if rule >= 0 else None, leaving, manip), manip)
        return Reason.R_OK

    def bind_by(self, conn: Conn, rule: int | None, manip: int) -> None:
        """One half by a rule whose match is not looked at, or by a null binding; so also where the rule has no addresses for such packets.

        Unlike rules of the trackers' own, one with ports alone then gives nothing. Source: nf_ct_nat_execute.
        """
        leaving = leaves_with(conn, Dir.ORIG)
        if rule is not None and (self.rules[rule].range.keeps_address or self.rules[rule].range.family != leaving.family):
            rule = None
        conn.rules[manip] = -1 if rule is None else rule
        self.bind(conn, choice_of(None if rule is None else self.rules[rule], leaving, manip), manip)

    def bind(self, conn: Conn, choice: Choice, manip: int) -> None:
        """Choose one half of the tuple that a new connection's packets leave with."""
        leaving = leaves_with(conn, Dir.ORIG)
        chosen = self.unique(conn, leaving, choice, manip)
        if chosen != leaving:
            conn.key = conn.key[Dir.ORIG], answer_to(chosen)
            conn.status |= CHANGED[manip]
        conn.status |= DONE[manip]

    def prefer(self, ports: dict[int, int], announced: int | None) -> None:
        """The next search that would begin at a random port begins at these, by manip, unless it is below all that may be tried."""
        self._preferred, self._announced = ports, announced

    def other_port(self, least: int, n: int) -> int:
        """For helpers: what to add to a port that is taken, below n. The preferred port's distance, once, if it is one of them."""
        preferred, self._announced = self._announced, None
        if preferred is not None and 0 <= preferred - least < n:
            return preferred - least
        return self._draws.port() * n >> 16 if n else 0

    def unique(self, conn: Conn, leaving: Key, choice: Choice, manip: int) -> Key:
        """A tuple within the choice that is nobody else's, or, if none is found, one that is: confirm will notice."""
        if manip == SRC and not choice.random:
            if choice.holds(leaving):
                if self.is_free(conn, leaving):
                    return leaving
            else:
                known = self.known_source(conn, leaving, choice)
                if known and self.is_free(conn, known):
                    return known
        # The hash goes by the connection's zone, even where that is of the other direction.
        tried = choose_address(leaving._replace(zone=zone_of(conn)), choice, manip)._replace(zone=leaving.zone)
        if not choice.random and self.keeps_port(conn, tried, choice, manip):
            return tried
        return self.search(conn, tried, choice, manip)

    def known_source(self, conn: Conn, leaving: Key, choice: Choice) -> Key | None:
        """The source that another connection of the same source has got, the latest one within the choice: whoever is outside then sees one host.

        Zones of one direction are those of the original one here.
        """
        for other in reversed(self._by_source.get(source_of(leaving._replace(zone=conn.key[Dir.ORIG].zone)), [])):
            theirs = leaves_with(other, Dir.ORIG)
            same = leaving._replace(src=theirs.src, sport=theirs.sport)
            if choice.holds(same):
                return same
        return None

    def keeps_port(self, conn: Conn, tried: Key, choice: Choice, manip: int) -> bool:
        """Whether the port can stay as it is. A single port is taken without looking."""
        if choice.ports is None:
            return self.is_free(conn, tried)
        low, high = choice.ports
        return port_within(tried, choice.ports, manip) and (low == high or self.is_free(conn, tried))

    def search(self, conn: Conn, tried: Key, choice: Choice, manip: int) -> Key:
        """Another port: 128 of them, the next to the last, from a random one on; if there are more, then from other random ones 64, 32, 16 and 8.

        A search for a destination begins with the lowest port, unless the choice is random.
        """
        ports = ports_to_search(tried, choice, manip, announced=conn.master >= 0)
        if ports is None:
            return tried
        low, size = ports[0], ports[1] - ports[0] + 1
        drawn = manip == SRC or choice.random
        told = drawn and self._preferred.get(manip, -1) >= low  # a search that finds nothing ends there, as the one did that is followed
        offset = first = self._first_offset(low, manip) if drawn else 0
        attempts = min(ATTEMPTS * self._shares, size)
        while True:
            for i in range(attempts):
                tried = with_port(tried, manip, low + (offset + i & MASK16) % size)
                # How many attempts the search had left that is followed is not known: few enough.
                left = LAST_ATTEMPTS * self._shares if told and offset == first and i == 0 else attempts - i
                if self.is_free(conn, tried) or self.take_over(conn, tried, left):
                    return tried
            if attempts >= size or attempts < LEAST_ATTEMPTS * self._shares:
                return with_port(tried, manip, low + first % size) if told else tried
            attempts //= 2
            offset = self._draws.port()

    def _first_offset(self, low: int, manip: int) -> int:
        preferred = self._preferred.pop(manip, None)
        return self._draws.port() if preferred is None or preferred < low else preferred - low

    def is_free(self, conn: Conn, leaving: Key) -> bool:
        """Nobody's tuple is the one that the answers would have, and these would come to this tracker, if several share the work."""
        return self.is_own(conn, leaving) and self._table.find(answer_to(leaving)) is None

    def is_own(self, conn: Conn, leaving: Key) -> bool:
        """Whose a connection is that was expected, all trackers know."""
        return self._shares == 1 or conn.has(Status.EXPECTED) or owner(leaving, self._shares) == self._share

    def take_over(self, conn: Conn, leaving: Key, left: int) -> bool:
        """Whether a closed TCP connection made room for a SYN, which needs a number above that connection's: what is still on its way must not fit.

        left: attempts, this one included. Source: nf_nat_used_tuple_harder.
        """
        if left > LAST_ATTEMPTS * self._shares or not self.is_own(conn, leaving) or leaving.proto != Proto.PROTO_TCP or conn.l4.state != S.SYN_SENT:
            return False
        found = self._table.find(answer_to(leaving))
        if found is None or found[1] != Dir.REPLY:
            return False
        other = found[0]
        if other.l4.state < S.TIME_WAIT or other.has(KEPT) or not other.has(Status.SRC_NAT):
            return False
        ahead = conn.l4.side[Dir.ORIG].end - other.l4.side[Dir.ORIG].end & MASK32
        if not 0 < ahead < 1 << 31:
            return False
        self._kill(other, conn)
        return not other.has(OFFLOADED)

    # --- who has what ------------------------------------------------------------------------------------------------------------------

    def enter(self, conn: Conn) -> None:
        """It is confirmed: from now on it counts, and its source is known."""
        self._by_source.setdefault(source_of(conn.key[Dir.ORIG]), []).append(conn)
        for pool in self._pools_of(conn):
            pool.in_use += 1
            pool.high_water = max(pool.high_water, pool.in_use)

    def leave(self, conn: Conn) -> None:
        source = source_of(conn.key[Dir.ORIG])
        self._by_source[source].remove(conn)
        if not self._by_source[source]:
            del self._by_source[source]
        for pool in self._pools_of(conn):
            pool.in_use -= 1

    def exhausted(self, conn: Conn) -> None:
        """No tuple was free. It is held against the rule that decided last, if any."""
        for pool in self._pools_of(conn)[:1]:
            pool.exhausted += 1

    def _pools_of(self, conn: Conn) -> list[Pool]:
        """Of the rules that decided on it, the source's first."""
        return [self.pools[rule] for rule in conn.rules if rule >= 0]

    def rows(self) -> list[NatPool]:
        pairs = enumerate(zip(self.rules, self.pools, strict=True))
        return [NatPool(i, rule.kind, rule.text, rule.size, pool.in_use, pool.high_water, pool.exhausted) for i, (rule, pool) in pairs]

    def check(self, conns: list[Conn]) -> None:
        for i, pool in enumerate(self.pools):
            users = sum(i in conn.rules for conn in conns)
            assert pool.in_use == users <= pool.high_water, f"rule {i}: {pool} while {users} connections are its own"
        sources = [id(conn) for known in self._by_source.values() for conn in known]
        assert sorted(sources) == sorted(map(id, conns)), "the sources known are not those of the connections"
        translated = [(conn, manip) for conn in conns for manip in BOTH if conn.has(CHANGED[manip])]
        assert all(conn.has(DONE[manip]) for conn, manip in translated), "a connection is translated by nobody's decision"


def source_of(key: Key) -> tuple[bytes, int, int, int, int]:
    return key.src, key.sport, key.zone, key.proto, key.family


def answer_to(leaving: Key) -> Key:
    """What a connection's packets leave with has an answer, since its first packet had one."""
    answer = leaving.inverted()
    assert answer is not None, leaving
    return answer


# --- packets that leave ----------------------------------------------------------------------------------------------------------------


def leaves_with(conn: Conn, d: int) -> Key:
    """The tuple with which packets of a direction leave: the inverse of what comes back."""
    return answer_to(conn.key[1 - d])


class Rewrite(NamedTuple):
    """What is to be changed in a packet: flags of RewriteFlag, and the tuple that the changed parts come from."""

    to: Key
    flags: int

    def store(self, record: np.void) -> None:
        """Into a record of REWRITE_DTYPE."""
        record["to"] = np.frombuffer(self.to.raw(), dtype=record.dtype["to"])[0]
        record["flags"] = self.flags


def rewrite_of(conn: Conn, d: int, *, quoting: bool = False, only: Set[int] = BOTH) -> Rewrite | None:
    """For a packet of direction d, or for an ICMP error that is about the other direction and looks like one of d; None: it leaves as it came.

    What an error quotes went the other way, so where the error's source changes, the destination changes in the quoted packet.
    only: the halves that may change.
    """
    changes = changes_of(conn, d) & only
    flags = sum(OUTER[manip] | (INNER[1 - manip] if quoting else 0) for manip in changes)
    return Rewrite(leaves_with(conn, d), flags) if flags else None


def changes_of(conn: Conn, d: int) -> set[int]:
    """Which halves (Manip) change in packets of a direction: the answers' destination is what was the questions' source."""
    return {manip for manip in (SRC, DST) if conn.has(CHANGED[manip if d == Dir.ORIG else 1 - manip])}


# --- packets that cannot be translated -------------------------------------------------------------------------------------------------

GRE_HEADER = 8  # bytes Linux wants to have, be it version 0
GRE_VERSION, PPTP_VERSION = 7, 1  # a mask; what knows call ids
REDIRECTS = {4: 5, 6: l4.REDIRECT}  # ICMP types by family
L4_HEADER: dict[int, int] = dict.fromkeys(l4.PORTS, 8)  # bytes of a quoted header, though four tell whose it is


def refusal(packet: Packet, conn: Conn, d: int, only: Set[int] = BOTH) -> int:
    """Why a packet of a connection cannot be translated, or R_OK: GRE that is shorter than a call id, or of a version that has none."""
    if packet.key.proto == Proto.PROTO_GRE and not fits_gre(packet.l4, packet.l4_len, changes_of(conn, d) & only):
        return Reason.R_NAT_GRE
    return Reason.R_OK


def fits_gre(header: bytes, length: int, changes: Set[int]) -> bool:
    """Linux gives up on GRE of a version it does not know only where the destination changes, for there the call id would be."""
    if not changes:
        return True
    return length >= GRE_HEADER and not (DST in changes and header[1] & GRE_VERSION > PPTP_VERSION)


def error_refusal(packet: Packet, conn: Conn, d: int, only: Set[int] = BOTH) -> int:
    """Why an ICMP error about a connection cannot be translated, or R_OK. Every error's checksum is looked at, translated or not."""
    changes = changes_of(conn, d)
    if packet.flaw & l4.FLAW_SUM:
        return Reason.R_NAT_ICMP
    if packet.key.dport >> 8 == REDIRECTS[packet.key.family] and (changes or not all(conn.has(done) for done in DONE)):
        return Reason.R_NAT_ICMP
    changes &= only
    if not changes:
        return Reason.R_OK
    header, length = l4.quoted_header(packet)
    proto = conn.key[d].proto
    fits = length >= L4_HEADER.get(proto, 0)
    if proto == Proto.PROTO_GRE:
        fits = fits_gre(header, length, {1 - manip for manip in changes})  # what is quoted went the other way
    return Reason.R_OK if fits else Reason.R_NAT_ICMP
