"""Why a rule is in software only: codes and sentences. Not here: which rule has which (capability)."""

from __future__ import annotations

from enum import IntEnum


class Kept(IntEnum):
    """Why a rule is in software only. The sentences are in KEPT."""

    NO = 0
    NO_OFFLOAD = 1
    SKIP_HW = 2
    REL_INV = 3
    MASKED_LABEL = 4
    NEW = 5
    MASK = 6
    FIELD = 7
    CT_SETS = 8
    CT_FORCE = 9
    CT_HELPER = 10
    CT_LATE = 11
    CONTROL = 12
    RULES_BEHIND = 13
    PEDIT = 14
    CSUM = 15
    SKBEDIT = 16
    POLICE = 17
    TOO_MUCH = 18


KEPT: dict[Kept, str] = {
    Kept.NO: "it is in hardware",
    Kept.NO_OFFLOAD: "this NIC has no rules",
    Kept.SKIP_HW: "it says skip_hw",
    Kept.REL_INV: "+rel and +inv cannot be matched: software decides what is related or invalid",
    Kept.MASKED_LABEL: "labels are known by a number, so that only all of them can be matched, not some bits",
    Kept.NEW: "+new cannot be matched by this NIC",
    Kept.MASK: "this field is matched as a whole only",
    Kept.FIELD: "it matches a field that the NIC does not read",
    Kept.CT_SETS: "`ct` with a mark or labels changes the connection, which only software can",
    Kept.CT_FORCE: "`ct force` may end a connection and begin another one, which only software can",
    Kept.CT_HELPER: "`ct` with a helper reads payload",
    Kept.CT_LATE: "an action before `ct` would be done again, since software goes on at the beginning of the chain",
    Kept.CONTROL: "an action is followed by something else than pipe, pass, drop or goto",
    Kept.RULES_BEHIND: "it sends to where there are rules, or to the ingress of an iface",
    Kept.PEDIT: "it changes a field that the NIC cannot change, or of a protocol that it does not match",
    Kept.CSUM: "it makes checksums that the NIC does not make",
    Kept.SKBEDIT: "skbedit sets what the NIC does not have",
    Kept.POLICE: "this NIC does not police, or not with these settings",
    Kept.TOO_MUCH: "it has more mirrors or VLAN tags than the NIC has room for",
}
assert set(KEPT) == set(Kept)
