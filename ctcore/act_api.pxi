"""`ct` actions from Python: an action and an association as values, one packet at a time. Part of tracker.pyx, for class Tracker lives there.

An association's token holds no memory of the tracker: it says which slot it means in which of its lives, and is asked for whose it is and whether
it has been used before the engine gets to see it.
Not here: what an action does (act), what can be asked for (ct_action.py), the methods' interface (tracker.pyi).
"""

from ctcore.act cimport (
    CT_CLEAR, CT_COMMIT, CT_FORCE, CT_LABEL, CT_MARK, CT_NAT, MOST_CARRIED, Carried, CtRequest, carry_nothing, ct_act, ct_leave,
)
from ctcore.ct_action import NO_ASSOCIATION, Acted, Association, Outcome, checked_action
from ctcore.helpers.registry import HELPER_IDS


cdef class Token:
    """What one packet carries, until the next action or leave() takes it."""

    cdef Carried carried
    cdef object owner           # the tracker's identity
    cdef bint spent


cdef Token token_of(Tracker tracker, object association):
    """The token of an association that may be used now, or None. Raises ConfigError."""
    if not isinstance(association, Association):
        raise ConfigError(f"association = {association!r}: expected an Association")
    if association.token is None:
        return None
    if not isinstance(association.token, Token) or (<Token>association.token).owner is not tracker.identity:
        raise ConfigError("association: expected one of this tracker")
    if (<Token>association.token).spent:
        raise ConfigError("association: spent: expected what the packet's last action returned")
    return association.token


cdef int fill_request(CtRequest *r, object action) except -1:
    """action: a CtAction that the tracker can do."""
    memset(r, 0, sizeof(CtRequest))
    r.zone = action.zone
    r.flags = CT_COMMIT * bool(action.commit) | CT_FORCE * bool(action.force) | CT_CLEAR * bool(action.clear)
    if action.nat is not None:
        r.flags |= CT_NAT
        r.rule = action.nat + 1         # of BARE_NAT 0
    if action.mark is not None:
        r.flags |= CT_MARK
        r.mark, r.mark_mask = action.mark
    if action.label is not None:
        r.flags |= CT_LABEL
        split_label(r.label, action.label[0])
        split_label(r.label_mask, action.label[1])
    r.helper = HELPER_IDS[action.helper] if action.helper is not None else 0


cdef object association_of(Tracker tracker, const Carried *a):
    """What a packet carries, as a value."""
    cdef Token token
    cdef const Entry *entry
    if not a.tracked:
        return NO_ASSOCIATION
    if a.flow == NO_FLOW:
        return Association(True, a.zone)
    token = Token()
    token.carried = a[0]
    token.owner = tracker.identity
    entry = &tracker.ct.pool.entry[a.flow >> 1]
    return Association(True, a.zone, token, a.state, a.flow & 1, entry.mark, entry.label[0] | <object>entry.label[1] << 64)


cdef object act_one(Tracker tracker, Batch batch, object action, object before):
    """Tracker.act()."""
    cdef CtRequest request
    cdef Carried carried
    cdef Token held
    fill_request(&request, checked_action(action, tracker.config))
    tracker.idle()
    held = token_of(tracker, before)
    if batch.size != 1:
        raise ConfigError(f"act: a batch of {batch.size} packets: expected one")
    carry_nothing(&carried)
    if held is not None:
        carried = held.carried
    batch.consume()
    if held is not None:
        held.spent = True
    decision, rewrite = np.empty(1, dtype=DECISION_DTYPE), np.empty(1, dtype=REWRITE_DTYPE)
    edits_reset(&tracker.ct.edits)
    passed = ct_act(&tracker.ct, batch.row, &request, &carried, <Decision *><size_t>decision.ctypes.data, <Rewrite *><size_t>rewrite.ctypes.data)
    if not passed:
        edits_reset(&tracker.ct.edits)
    return Acted(Outcome.ON if passed else Outcome.DROPPED, decision, rewrite, tracker.edits(), association_of(tracker, &carried))


cdef int let_go(Tracker tracker, object association) except -1:
    """Tracker.leave()."""
    cdef Token held
    tracker.idle()
    held = token_of(tracker, association)
    if held is not None:
        held.spent = True
        ct_leave(&tracker.ct, &held.carried)
