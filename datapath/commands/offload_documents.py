"""`offload why` and `offload audit` as JSON. Invariant: what nobody knows is null, and never 0 (contract A6.50). Not here: the same in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.types import Dir
from datapath import fields
from datapath.commands.offload_audit import DIRECTIONS, differences, figures
from datapath.commands.offload_said import ITEMS, says
from datapath.commands.offload_why import Followed
from datapath.commands.offloaded import Offloaded
from offload.contract.why import Why
from offload.mirror import Found

Document = dict[str, Any]


def reason(code: str) -> Document:
    """A code, its sentence, and the item of the contract; None where that has none."""
    return {"code": code, "says": says(code), "item": ITEMS[Why(code)] if code in set(Why) else None}


def why_document(it: Followed, captures: Sequence[str]) -> Document:
    """All that there is to say of a connection. Times are ns since 1970; `packet` of an event is the last that had come."""
    return {
        "captures": list(captures), "conn": it.conn, "tuple": it.tuple_, "nic": it.work.nic.profile.name, "in_hardware": it.in_hardware,
        "was_in_hardware": it.was_there, "why": reason(it.why) if it.why and not it.in_hardware else None,
        "packets": {"hardware": it.hardware, "software": it.software},
        "events": [{"ts": one.time, "packet": one.packet - 1, "event": one.what, "says": one.text} for one in it.events],
        "in_software": [{"packets": packets, **reason(code)} for code, packets in it.codes.most_common()],
        "counted": counted(it), "syns": it.syns,
    }  # fmt: skip


def counted(it: Followed) -> Document | None:
    """What hardware has counted; None: it never had the connection. original, reply, both: None where nobody knows; unheard: told to nobody."""
    if not it.was_there:
        return None
    told, split = it.told.sum(axis=1) + it.unsplit, not it.unsplit.any()
    sides = {name: amount(it.told[:, side]) if it.reports and split else None for name, side in (("original", Dir.ORIG), ("reply", Dir.REPLY))}
    return {**sides, "both": amount(told) if it.reports else None, "unheard": amount(it.unheard)}


def amount(each: NDArray[Any]) -> Document:
    packets, size = each.tolist()
    return {"packets": packets, "bytes": size}


def audit_document(work: Offloaded, found: NDArray[Any], captures: Sequence[str]) -> Document:
    """What hardware holds against what it should: figures, a line for each rule that differs, and the same as fields. conn: None of one that nobody
    knows; rule: None of one that hardware lacks."""
    held = work.nic.held()
    of_cookie = {int(rule["cookie"]): rule for rule in held[np.isin(held["cookie"], found["cookie"])]}
    rules = []
    for each in found:
        rule = of_cookie.get(int(each["cookie"]))
        known = work.mirror.why(int(each["row"])) if each["row"] < work.mirror.size else None
        ends = None
        if rule is not None:
            ends = {"proto": fields.proto_name(int(rule["match"]["proto"])), **fields.endpoints(rule["match"].tobytes())}
        rules.append({
            "conn": int(rule["conn"]) if rule is not None else known["conn"] if known else None, "direction": DIRECTIONS[each["dir"]],
            "found": Found(int(each["found"])).name.lower(), "rule": ends,
        })  # fmt: skip
    return {
        "captures": list(captures), "nic": work.nic.profile.name, "agree": not len(found), **figures(work.mirror, held, found),
        "differences": list(differences(work.mirror, held, found)), "rules": rules,
    }  # fmt: skip
