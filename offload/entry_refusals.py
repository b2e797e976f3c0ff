"""Why a connection is no entry of the kernel's conntrack, as an errno of the contract (A8) and a sentence.

Theory of operation: the kernel's own sentence is the best one; where it has none, its errno is explained by what it means of an entry. What a mirror
should not try again soon is EOPNOTSUPP; that there is no room ENOSPC or ENOMEM.
Not here: who is refused (conntrack_entries).
"""

from __future__ import annotations

import errno

from ctcore.ctnetlink import Ask
from ctcore.types import Proto
from offload.entry import LABEL_NONE, PROTO_AT, PROTOS, Command, Entry
from offload.netlink.conntrack import Counting
from offload.netlink.extack import Answer

NO_LABELS = Answer(errno.EOPNOTSUPP, "the kernel keeps no labels: expected a rule in its TC that sets one (`ct commit ... label`)")
ENDED = Answer(errno.ENOENT, "somebody has ended its entry meanwhile")
TAKEN = Answer(errno.EBUSY, "another connection of the kernel's has these addresses and ports")
OTHERS_PLACE = Answer(errno.EBUSY, "its place is another flow's")
SAME_PACKETS = Answer(errno.EBUSY, "another flow has the same packets")
OF_ERRNO = {
    errno.ENOMEM: "the kernel's conntrack takes no more (nf_conntrack_max)",
    errno.EPERM: "expected CAP_NET_ADMIN in this network namespace",
}


def impossible(command: Command) -> Answer | None:
    """What no entry can do for act_ct (A2.12, A2.13)."""
    proto = command.match[PROTO_AT]
    if proto not in PROTOS:
        return Answer(errno.EOPNOTSUPP, f"protocol {proto}: expected TCP, UDP or GRE")
    if proto == Proto.PROTO_GRE and command.match != command.to:
        return Answer(errno.EOPNOTSUPP, "only TCP and UDP are translated in hardware (A4.32)")
    return None


def explained(entry: Entry, ask: Ask, answer: Answer) -> Answer:
    """What the kernel has answered, with a sentence."""
    if ask is Ask.CHANGE and answer.error == errno.ENOSPC and entry.label != LABEL_NONE:
        return NO_LABELS
    return answer if answer.text else answer._replace(text=OF_ERRNO.get(answer.error, ""))


def lacking(hears: bool, counting: Counting) -> list[str]:
    """What a kernel that takes entries does not do for them."""
    silent = [] if hears else ["the kernel tells nothing of entries that others end, which is found later: expected nf_conntrack_events 1 or 2"]
    return silent if counting.on else [*silent, f"entries have no counters: {counting.why}"]
