"""What the model's tracker does with helpers: who has one, what it may ask for, and what becomes of connections that were announced.

The part of ModelTracker that nobody needs who has no helpers. Not here: what helpers look for (helpers), expectations' own life (expectations).
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import Any

import numpy as np

from ctcore.config import Config
from ctcore.model import l4, nat
from ctcore.model.conn import MASK32, Conn, Key, Packet
from ctcore.model.expectations import LIMITS, SIGNALLING, Announced, Expectation, Expectations, Follow
from ctcore.model.helpers import HELPERS, UDP_HEADER, Aid, Edit, Extension, payload_of, pptp, sack_edits, sip, speaks
from ctcore.model.seqadj import SeqAdjust
from ctcore.model.table import Table
from ctcore.model.tcp_window import ACK
from ctcore.nat_rules import Ports
from ctcore.types import EDIT_DTYPE, Dir, End, Manip, Proto, Reason, RewriteFlag, State, Status

DOFF_AT, FLAGS_AT = 12, 13  # in a TCP header


class Assisted:
    """A tracker with helpers: what it has in common with the rest of ModelTracker."""

    config: Config
    _conns: dict[int, Conn]
    _table: Table
    _expectations: Expectations
    _counters: dict[str, int]
    _nat: nat.Translator | None
    _next_id: int
    _helped: int  # confirmed connections that have a helper
    _edits: list[Edit]  # of the last batch
    _asked: bool  # whether anybody wants them
    _moved: tuple[int, int]  # what is to be added to the sequence and acknowledgement number of the packet at hand
    _shifted: bool  # whether they are written again even if that is nothing
    _joined: int  # REWRITE_QUOTE, REWRITE_WHOLE: what of it Linux has in one piece

    @property
    def _tick(self) -> int:
        raise NotImplementedError

    def _destroy(self, conn: Conn, end: int) -> None:
        raise NotImplementedError

    def _expire(self, conn: Conn) -> None:
        raise NotImplementedError

    def _give_helper(self, conn: Conn, name: str) -> bool:
        """False if too many connections have one, or this is another tracker's business than the first one's: this one goes without."""
        if self._helped >= self.config.helper_max or self.config.share[0]:
            self._counters["helper_unassigned"] += 1
            return False
        conn.ext = Extension(name)
        return True

    def _help(self, packet: Packet, conn: Conn, d: int, state: int) -> int:
        """Let the helper look at an accepted packet; a reason if it is to be dropped. Its changes are then told of with the next one's.

        A `ct` action may give a connection a helper that does not speak its protocol, which is never asked.
        """
        ext, readable, reason = conn.ext, True, int(Reason.R_OK)
        if not speaks(ext.helper, packet.key):
            return reason
        if conn.has(Status.SEQ_ADJUST) and packet.key.proto == Proto.PROTO_TCP:  # by earlier packets
            readable = self._move(packet, ext, d)
        if ext.helper == "sip":
            self._keep_signalling(conn, packet, state)
        if self._wants_all(ext, packet, state):
            self._joined |= RewriteFlag.REWRITE_WHOLE
        payload = payload_of(packet)
        if payload is not None:
            reason = HELPERS[ext.helper](Aid(conn, ext, packet, payload, d, state, self))
        if ext.helper == "pptp" and ext.memory and ext.memory.hang_up:
            self._hang_up(conn)
        if reason or not readable:
            ext.changes, conn.changes = ext.changes | conn.changes, 0
            return reason or Reason.R_HELPER_REFUSED
        conn.changes, ext.changes = conn.changes | ext.changes, 0
        return Reason.R_OK

    @staticmethod
    def _wants_all(ext: Extension, packet: Packet, state: int) -> bool:
        """Whether Linux puts a packet into one piece for its helper to read: FTP's wants it before it knows of any payload."""
        tcp = packet.key.proto == Proto.PROTO_TCP
        established = not tcp or state == State.ESTABLISHED
        payload = packet.l4_len > (packet.doff if tcp else UDP_HEADER)
        return established and (ext.helper == "ftp" or (ext.helper == "sip" and payload))

    def _move(self, packet: Packet, ext: Extension, d: int) -> bool:
        """Sequence and acknowledgement numbers, selective ones too, by what was added so far. False if the options cannot be read."""
        acknowledges = bool(packet.tcp_flags & ACK)
        self._moved = ext.adjust[d].at(packet.seq), -ext.adjust[1 - d].of_ack(packet.ack) if acknowledges else 0
        return not acknowledges or self._move_options(packet.l4, packet.doff, ext.adjust[1 - d])

    def _move_options(self, header: bytes, end: int, adjust: SeqAdjust) -> bool:
        edits = sack_edits(header, end, adjust)
        if self._asked and edits:
            self._edits += edits
        return edits is not None

    def _help_error(self, packet: Packet, conn: Conn) -> int:
        """An ICMP error of the original direction is taken for a packet of its connection; a reason if it is dropped. Source: nf_confirm."""
        if conn.ext.helper == "sip" and conn.key[Dir.ORIG].proto == Proto.PROTO_UDP:
            self._keep(conn)
        return Reason.R_HELPER_REFUSED if conn.has(Status.SEQ_ADJUST) and not self._move_error(packet, conn) else Reason.R_OK

    def _move_error(self, packet: Packet, conn: Conn) -> bool:
        """An ICMP error of the original direction is taken for a TCP segment of its connection: what lies where the numbers would is moved.

        False if it is dropped, since where options would be there are none. Source: nf_confirm, nf_ct_seq_adjust.
        """
        adjust, end, acknowledges = conn.ext.adjust, (packet.l4[DOFF_AT] >> 4) * 4, packet.l4[FLAGS_AT] & ACK
        seq, ack = struct.unpack_from("!2I", packet.l4, 4)
        self._moved = adjust[Dir.ORIG].at(seq), -adjust[Dir.REPLY].of_ack(ack) if acknowledges else 0
        self._shifted = True
        if not acknowledges:
            return True
        return end <= packet.l4_len and self._move_options(l4.error_as_left(packet, conn.key[Dir.REPLY]).ljust(60, b"\0"), end, adjust[Dir.REPLY])

    def _store_moves(self, record: Any, first_edit: int) -> None:
        """The numbers and edits of the packet at hand, into its record of REWRITE_DTYPE."""
        if any(self._moved) or self._shifted:
            record["flags"] |= RewriteFlag.REWRITE_SEQ
            record["seq_delta"], record["ack_delta"] = self._moved
        if len(self._edits) > first_edit:
            record["flags"] |= RewriteFlag.REWRITE_EDIT
            record["first_edit"], record["n_edits"] = first_edit, len(self._edits) - first_edit

    # PPTP's tunnels: GRE that was announced by both ends' call ids.

    def _tunnels(self, key: Key) -> list[tuple[int, Conn, int]]:
        """The control connections that know this direction of a tunnel, as it arrives, oldest first; and which of theirs it is."""
        calls = [conn for conn in self._conns.values() if conn.ext and conn.ext.helper == "pptp" and conn.ext.memory]
        known = [(conn.ext.memory.order[d], conn, d) for conn in calls for d in Dir if conn.ext.memory.tunnels[d]]
        return sorted((t for t in known if pptp.same_tunnel(t[1].ext.memory.tunnels[t[2]], key)), key=lambda t: t[0])

    def _named(self, packet: Packet) -> Packet:
        """A GRE packet that carries a call id gets the other end's as its source key, if that is known."""
        if packet.key.family != 4 or len(packet.l4) < 8 or packet.l4[1] & 7 != 1:
            return packet
        for _, conn, d in self._tunnels(packet.key)[:1]:
            return replace(packet, key=packet.key._replace(sport=conn.ext.memory.tunnels[d].sport))
        return packet

    def _named_quote(self, key: Key) -> Key:
        """The same of the tuple that an ICMP error quotes. GRE without a call id has 0 for its key."""
        known = self._tunnels(key)[:1] if key.family == 4 and key.proto == Proto.PROTO_GRE and key.dport else []
        return key._replace(sport=known[0][1].ext.memory.tunnels[known[0][2]].sport) if known else key

    def _hang_up(self, conn: Conn) -> None:
        """A call ends, and its tunnel with it; if there was none yet, it is expected no more.

        Of a connection that nothing was said on both ids are 0, as are those of a tunnel that nobody announced: it goes, too (pptp_destroy_siblings).
        """
        m = conn.ext.memory = conn.ext.memory or pptp.Memory()
        m.hang_up, m.tunnels = False, [None, None]
        for d, keys in ((Dir.ORIG, (m.pns, m.pac)), (Dir.REPLY, (m.pac, m.pns))):
            key = conn.key[d]._replace(proto=Proto.PROTO_GRE, sport=keys[0], dport=keys[1])
            found = self._table.find(key)
            if found and found[0].deadline <= self._tick:  # it was over already, whoever of the two is noticed first
                self._expire(found[0])
            elif found:
                self._destroy(found[0], End.END_FLUSHED)
            else:
                self._expectations.forget(key)

    def _tunnel_ended(self, conn: Conn) -> None:
        """A GRE connection that was expected dies: its master's call has no tunnel any more."""
        for _, control, _ in self._tunnels(conn.key[Dir.ORIG])[:1]:
            if control.id == conn.master:
                control.ext.memory.tunnels = [None, None]

    # SIP.

    def _keep_signalling(self, conn: Conn, packet: Packet, state: int) -> None:
        """A packet with data keeps its connection for an hour."""
        tcp = packet.key.proto == Proto.PROTO_TCP
        said = packet.l4_len > (packet.doff if tcp else UDP_HEADER) and (not tcp or state == State.ESTABLISHED)
        if said:
            self._keep(conn)

    def _keep(self, conn: Conn) -> None:
        """For an hour."""
        if not conn.has(Status.FIXED_TIMEOUT):
            conn.deadline = self._tick + sip.LIFETIME * self.config.hz

    def _follow_sip(self, conn: Conn, expectation: Expectation, master: Conn) -> None:
        """The destination as it was named inside; the source as the other side knows it, if the call says, or as the master's."""
        assert self._nat
        key, (dst, dport), back = conn.key[Dir.ORIG], expectation.saved, master.key[1 - expectation.dir]
        self._nat.bind(conn, nat.Choice(dst, dst, (dport, dport)), Manip.MANIP_DST)
        siblings = [e for e in self._expectations if e.owned and e.master == expectation.master and e is not expectation]
        pair = next((e.key for e in siblings if e.saved == (key.src, key.sport) and e.key.proto == key.proto), None)
        if pair and expectation.kind != SIGNALLING:
            self._nat.bind(conn, nat.Choice(pair.dst, pair.dst, (pair.dport, pair.dport)), Manip.MANIP_SRC)
        elif key.src == master.key[expectation.dir].src:
            self._nat.bind(conn, nat.Choice(back.dst, back.dst, None), Manip.MANIP_SRC)

    # What a helper may ask of the tracker (aid.Office).

    def _ordinal(self, conn: Conn) -> int:
        """A connection that is not confirmed yet will have the next ordinal, or take its expectations along."""
        return conn.id if conn.confirmed else self._next_id

    def _helper_of(self, expectation: Expectation) -> str | None:
        """That has announced it. Only its own connection may be missing from the table, and that is not asked about."""
        master = self._conns.get(expectation.master)
        return master.ext.helper if master and master.ext else None

    def announce(self, conn: Conn, expectation: Expectation) -> Announced:
        master = self._ordinal(conn)
        deadline = self._tick + LIMITS[conn.ext.helper][1] * self.config.hz
        return self._expectations.announce(replace(expectation, master=master, deadline=deadline, owned=True), conn.ext.helper)

    def withdraw(self, conn: Conn, expectation: Expectation) -> None:
        announced = replace(expectation, master=self._ordinal(conn))
        self._expectations.drop(lambda e: e.same(announced))

    def expect_no_more(self, conn: Conn, *, media: bool) -> None:
        """What a connection expects of media, or of signalling, goes."""
        self._expectations.drop(lambda e: e.owned and e.master == self._ordinal(conn) and (e.kind != SIGNALLING) == media)

    def prolong(self, conn: Conn, dst: bytes, dport: int, proto: int, seconds: int) -> bool:
        """Signalling that was announced is expected from now on, and for so long. As in Linux, ticks are counted modulo 2^32."""
        for e in self._expectations:
            place = e.key.dst, e.key.dport, e.key.proto
            if e.owned and e.master == self._ordinal(conn) and e.kind == SIGNALLING and place == (dst, dport, proto):
                self._expectations.change(e, deadline=self._tick + (seconds * self.config.hz & MASK32), inactive=False)
                return True
        return False

    def expected_elsewhere(self, conn: Conn, draft: Expectation) -> Expectation | None:
        """What another connection with the same helper expects of the same kind at the same place, unless something else is expected there."""
        e = next((e for e in self._expectations if e.fits(draft.key)), None)
        own = e is None or e.master == self._ordinal(conn)
        return e if e and not own and e.owned and e.kind == draft.kind and self._helper_of(e) == conn.ext.helper else None

    def other_port(self, least: int, n: int) -> int:
        assert self._nat
        return self._nat.other_port(least, n)

    def edit(self, edit: Edit) -> None:
        self._joined |= RewriteFlag.REWRITE_WHOLE
        if self._asked:
            self._edits.append(edit)

    def edits(self) -> np.ndarray:
        taken = np.zeros(len(self._edits), dtype=EDIT_DTYPE)
        for record, edit in zip(taken, self._edits, strict=True):
            record["at"], record["old_len"], record["new_len"] = edit.at, edit.old_len, len(edit.text)
            record["text"][: len(edit.text)] = list(edit.text)
        return taken

    def _follow(self, conn: Conn, expectation: Expectation) -> None:
        """Translate an expected connection as its master is: to where that sends, at the place its packet named."""
        master = self._conns[expectation.master]
        back = master.key[1 - expectation.dir]
        if expectation.follow is Follow.SIP:
            if self._nat:
                self._follow_sip(conn, expectation, master)
            return
        ports: list[Ports | None] = [None, None]
        if expectation.follow is Follow.PPTP:
            ports[Manip.MANIP_SRC if expectation.dir == Dir.ORIG else Manip.MANIP_DST] = (expectation.saved[1],) * 2
        elif expectation.follow is Follow.MASTER:
            ports[Manip.MANIP_DST] = (expectation.saved[1],) * 2
        if self._nat and expectation.follow is not Follow.NONE and master.has(Status.SRC_NAT | Status.DST_NAT):
            self._nat.bind(conn, nat.Choice(back.dst, back.dst, ports[Manip.MANIP_SRC]), Manip.MANIP_SRC)
            self._nat.bind(conn, nat.Choice(back.src, back.src, ports[Manip.MANIP_DST]), Manip.MANIP_DST)


def redirected(conn: Conn, d: int, rewrite: nat.Rewrite | None) -> nat.Rewrite | None:
    """With what a packet leaves; a SIP answer to a phone that listens elsewhere goes there."""
    port = conn.ext.memory.redirect if conn.ext and conn.ext.helper == "sip" and conn.ext.memory and d == Dir.REPLY else 0
    if rewrite is None or port in (0, rewrite.to.dport):
        return rewrite
    conn.ext.memory.redirect = 0
    return nat.Rewrite(rewrite.to._replace(dport=port), rewrite.flags | RewriteFlag.REWRITE_DST)
