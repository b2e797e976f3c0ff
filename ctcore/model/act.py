"""The `ct` action of a pipeline in the model: one packet, looked up in a zone, translated and committed as far as the action says.

Theory of operation: act() goes through the steps of tcf_ct_act(). Either the packet keeps the connection it came with, or it goes through the first
half of a packet's straight line (tracker), in the action's zone. What advance() then settles by rules, an action has to ask for: translation,
a helper, and confirming at all. Until it is confirmed, a connection lives in the packet's association and nowhere else.
One packet, worked: `ct zone 5 nat` finds nothing and makes a connection, which is not confirmed; bare `nat` applies a mapping, and there is none yet.
A rule for +trk+new says `ct commit zone 5 nat src addr 192.0.2.1`: what is not confirmed is dropped and the packet tracked anew, now for good; its
source is bound, the packet translated, the connection confirmed. As it is tracked anew, only a commit ever takes what was expected.
Invariants: a connection that is never committed leaves nothing behind, be it in table, counts or pools; an association is good for one step.
Source: net/sched/act_ct.c, nf_nat_ovs.c, nf_conntrack_ovs.c. Not here: what an action is (ctcore.ct_action), rules (datapath.pipeline).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ctcore.batch import Batch
from ctcore.ct_action import BARE_NAT, NO_ASSOCIATION, Acted, Association, CtAction, Outcome, checked_action
from ctcore.errors import ConfigError
from ctcore.model import l4, nat
from ctcore.model.assisted import redirected
from ctcore.model.conn import Conn, Packet
from ctcore.model.decision import Decision, Met, untranslated
from ctcore.model.lifetime import Lifetime
from ctcore.types import DECISION_DTYPE, REWRITE_DTYPE, Dir, End, Reason, RewriteFlag, State, Status, Verdict

NAT = Status.SRC_NAT | Status.DST_NAT


@dataclass(eq=False)
class Token:
    """A connection in a packet's hands. spent: the packet has let go of it; ended: it has ended by this very packet, which keeps it all the same."""

    owner: object
    conn: Conn
    spent: bool = False
    ended: bool = False


class Acting(Lifetime):
    """The part of ModelTracker that does what pipelines ask for."""

    if TYPE_CHECKING:  # what the other part has

        def _meet(self, packet: Packet, *, use_up: bool) -> Met | Decision: ...
        def _accept(self, met: Met, rewrite: nat.Rewrite | None) -> Decision: ...
        def _put_mark(self, conn: Conn, mark: int, mask: int) -> None: ...
        def _put_label(self, conn: Conn, label: int, mask: int) -> None: ...

    def act(self, batch: Batch, action: CtAction, before: Association = NO_ASSOCIATION) -> Acted:
        checked_action(action, self.config)
        token = self._token(before)
        if len(batch) != 1:
            raise ConfigError(f"act: a batch of {len(batch)} packets: expected one")
        batch.consume()
        row = batch.array[0]
        self.expire(int(row["now"]))
        packet = Packet.of(row, batch.l4_bytes(0))
        packet = replace(packet, key=packet.key._replace(zone=action.zone))
        self._edits, self._asked, self._moved, self._shifted, self._joined = [], True, (0, 0), False, 0
        if action.clear:
            self._let_go(token)
            return self._acted(packet, Decision(State.NOT_SEEN), NO_ASSOCIATION)
        if row["verdict"] != Verdict.PENDING:  # parse() was sure; what never reaches conntrack is nothing for `ct`
            self._let_go(token)
            verdict = Verdict.DROP if row["state"] == State.NOT_SEEN else Verdict.ACCEPT
            return self._ended(packet, action, Decision(int(row["state"]), int(row["reason"]), verdict))
        met = self._kept(action, before, token)
        if met is not None:
            return self._carry_out(packet, action, met, token)
        self._let_go(token)
        found = self._meet(packet, use_up=action.commit)
        return self._ended(packet, action, found) if isinstance(found, Decision) else self._carry_out(packet, action, found, None)

    def leave(self, association: Association) -> None:
        self._let_go(self._token(association))

    # --- what a packet brings along ---------------------------------------------------------------------------------------------------

    def _token(self, association: Association) -> Token | None:
        token = association.token
        if token is None:
            return None
        if not isinstance(token, Token) or token.owner is not self:
            raise ConfigError("association: expected one of this tracker")
        if token.spent:
            raise ConfigError("association: spent: expected what the packet's last action returned")
        return token

    def _let_go(self, token: Token | None) -> None:
        """The packet's connection is its own no more. One that is not confirmed is nowhere else, and so comes to nothing."""
        if token is not None:
            token.spent = True

    def _kept(self, action: CtAction, before: Association, token: Token | None) -> Met | None:
        """What the packet was to its connection, if it keeps that. Source: tcf_ct_skb_nfct_cached.

        A connection that somebody else has ended meanwhile is none any more. Linux keeps that, too, but then has one packet in hand at a time.
        """
        if token is None or before.zone != action.zone:
            return None
        conn = token.conn
        if self._is_over(conn) and not token.ended:
            return None
        if action.helper is not None and conn.ext and conn.ext.helper != action.helper:
            return None
        if action.force and before.dir == Dir.REPLY:
            if not self._is_over(conn):  # whoever forces it begins a connection of its own
                self._destroy(conn, End.END_REPLACED)
            return None
        if not conn.confirmed and (action.commit or action.nat is not None):
            return None
        return Met(conn, before.dir, before.state)

    def _is_over(self, conn: Conn) -> bool:
        return conn.confirmed and conn.id not in self._conns

    # --- what is done -----------------------------------------------------------------------------------------------------------------

    def _carry_out(self, packet: Packet, action: CtAction, met: Met, token: Token | None) -> Acted:
        """Translation, helper, commit. token: of a connection that the packet has kept; None: it has been tracked for this action."""
        conn = met.conn
        met = met._replace(error=met.error or (l4.is_icmp_of_family(packet.key) and l4.is_icmp_error(packet)))
        refusal, halves = (int(Reason.R_OK), frozenset[int]()) if action.nat is None else self._translate(packet, action, met)
        rewrite = nat.rewrite_of(conn, met.dir, quoting=met.error, only=halves) or nat.Rewrite(nat.leaves_with(conn, met.dir), 0)
        if not refusal and action.commit and action.helper is not None:
            self._assign(conn, action.helper)
        # Once for each time that the packet is tracked, and only where something may come of it.
        if not refusal and conn.ext and not met.error and (token is None if conn.confirmed else action.commit):
            refusal = self._help(packet, conn, met.dir, met.state)
            rewrite = self._redirected(packet, met, rewrite)
        if not refusal and action.commit:
            refusal = self._commit(conn, action)
        if refusal and not conn.confirmed:
            self._discard(conn)
            return self._ended(packet, action, Decision(State.NOT_SEEN, refusal, Verdict.DROP))
        self._report(conn)
        accepted = self._accept(met, rewrite)
        if refusal:
            self._let_go(token)
            return self._ended(packet, action, untranslated(accepted, refusal))
        token = token or Token(self, conn, ended=self._is_over(conn))
        return self._acted(packet, accepted, Association(True, action.zone, token, met.state, met.dir, conn.mark, conn.label))

    def _assign(self, conn: Conn, helper: str) -> None:
        """A connection that is about to be confirmed gets a helper, if it has none from what announced it."""
        if not conn.confirmed and not conn.ext and self._give_helper(conn, helper):
            conn.status |= Status.HELPER

    def _redirected(self, packet: Packet, met: Met, rewrite: nat.Rewrite) -> nat.Rewrite:
        """SIP's answers to a phone that listens elsewhere: that is the helper's doing, so it is done whether the action translates or not."""
        moved = redirected(met.conn, met.dir, rewrite if rewrite.flags else nat.Rewrite(packet.key, 0))
        return moved if moved and moved.flags else rewrite

    def _commit(self, conn: Conn, action: CtAction) -> int:
        """Mark and label, of a connection that is confirmed already, too; then it counts. A reason if it cannot be."""
        if action.mark is not None:
            self._put_mark(conn, *action.mark)
        if action.label is not None:
            self._put_label(conn, *action.label)
        return Reason.R_OK if conn.confirmed else self._confirm(conn)

    # --- translation ------------------------------------------------------------------------------------------------------------------

    def _translate(self, packet: Packet, action: CtAction, met: Met) -> tuple[int, frozenset[int]]:
        """Which halves of the packet are translated where its connection is; or a reason why it cannot be. Source: nf_ct_nat."""
        assert self._nat and action.nat is not None
        conn, rule = met.conn, None if action.nat == BARE_NAT else action.nat
        first = self._first_half(action, met)
        if first is None:
            return Reason.R_OK, frozenset()
        halves = {first}
        self._bind(met, first, rule)
        if conn.has(Status.DST_NAT):
            if conn.has(Status.SRC_NAT):
                halves = {nat.SRC, nat.DST}
                self._bind(met, 1 - first, rule)
            elif met.dir == Dir.ORIG:  # so that the source's port may change if its tuple is taken
                halves.add(nat.SRC)
                self._bind(met, nat.SRC, None)
        if met.error:
            self._joined |= RewriteFlag.REWRITE_QUOTE
            return nat.error_refusal(packet, conn, met.dir, halves), frozenset(halves)
        refusal = nat.refusal(packet, conn, met.dir, halves)
        if not refusal and not conn.confirmed and self._table.find(conn.key[Dir.REPLY]):
            refusal = self._clash(conn)
        return refusal, frozenset(halves)

    def _first_half(self, action: CtAction, met: Met) -> int | None:
        """Which half the action is about: that of the mapping there is, or else the one its rule names; None: neither.

        As in Linux, what is related in the original direction is translated like others of its connection only when it is committed.
        """
        conn = met.conn
        announced = (met.state, met.dir) == (State.RELATED, Dir.ORIG)
        if met.state != State.NEW and conn.has(NAT) and (not announced or action.commit):
            return nat.SRC if conn.has(Status.SRC_NAT) == (met.dir == Dir.ORIG) else nat.DST
        if action.nat == BARE_NAT:
            return None
        assert action.nat is not None
        return nat.SRC if self.config.nat[action.nat].source else nat.DST

    def _bind(self, met: Met, half: int, rule: int | None) -> None:
        """A mapping is made once, while nobody has seen any packet of the connection leave: later rules come too late."""
        conn = met.conn
        if not conn.confirmed and not conn.has(nat.DONE[half]):
            assert self._nat
            self._nat.bind_by(conn, rule, half)

    # --- what is told -----------------------------------------------------------------------------------------------------------------

    def _ended(self, packet: Packet, action: CtAction, decision: Decision) -> Acted:
        """A packet that is dropped, or goes on without a connection."""
        dropped = decision.verdict == Verdict.DROP
        return self._acted(packet, decision, NO_ASSOCIATION if dropped else Association(True, action.zone))

    def _acted(self, packet: Packet, decision: Decision, association: Association) -> Acted:
        decisions, rewrites = np.zeros(1, dtype=DECISION_DTYPE), np.zeros(1, dtype=REWRITE_DTYPE)
        self._counters["invalid"] += decision.state == State.INVALID
        decision.store(decisions[0], packet.key)
        if decision.rewrite:
            decision.rewrite.store(rewrites[0])
        dropped = decision.verdict == Verdict.DROP
        if not dropped:
            self._store_moves(rewrites[0], 0)
            rewrites[0]["flags"] |= self._joined
        edits = self.edits()[: 0 if dropped else None]
        return Acted(Outcome.DROPPED if dropped else Outcome.ON, decisions, rewrites, edits, association)
