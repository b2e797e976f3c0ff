"""Which names of ours are ours still though others have made something under them, from what the kernel tells, change by change."""

from __future__ import annotations

import pytest

from datapath.commands.tc.overwritten import Overwritten
from datapath.pipeline.rules import ETH_IP, Hook
from offload.netlink.filters import DELETE_CHAIN, DELETE_FILTER, DELETE_QDISC, EGRESS_PARENT, INGRESS_PARENT, NEW_FILTER, NEW_QDISC, Where
from offload.netlink.links import NEW_LINK
from offload.netlink.monitor import DELETE_LINK, Change

OURS = [(Hook("eth0"), chain, prio, ETH_IP, handle) for chain, prio, handle in ((0, 1, 1), (0, 1, 2), (0, 2, 1), (3, 1, 1))]
MADE = [Change(NEW_FILTER, 7, INGRESS_PARENT, chain, prio, handle) for _, chain, prio, _, handle in OURS]


@pytest.fixture
def rules() -> Overwritten:
    rules = Overwritten()
    rules.whole(OURS, lambda name: Where(7, INGRESS_PARENT))
    return rules


def test_what_is_made_under_names_of_ours_is_ours(rules):
    for made in (*MADE[:2], MADE[0]._replace(ifindex=8), MADE[0]._replace(parent=EGRESS_PARENT), MADE[0]._replace(handle=9)):
        rules.heard(made)
    assert rules.names == set(OURS[:2])
    rules.whole(OURS, lambda name: Where(7, INGRESS_PARENT))
    assert rules.names == set()


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        (Change(DELETE_FILTER, 7, INGRESS_PARENT, 0, 1, 1), [1, 2, 3]),
        (Change(DELETE_FILTER, 7, INGRESS_PARENT, 0, 1), [2, 3]),
        (Change(DELETE_FILTER, 7, INGRESS_PARENT), [3]),
        (Change(DELETE_CHAIN, 7, INGRESS_PARENT, 3), [0, 1, 2]),
        (Change(DELETE_FILTER, 7, EGRESS_PARENT), [0, 1, 2, 3]),
        (Change(DELETE_FILTER, 7, INGRESS_PARENT, 0, 1, 77), [0, 1, 2, 3]),
        (Change(DELETE_QDISC, 7), []),
        (Change(DELETE_QDISC, 8), [0, 1, 2, 3]),
        (Change(DELETE_LINK, 7), []),
        (Change(NEW_LINK, 7), [0, 1, 2, 3]),
        (Change(NEW_QDISC, 7), [0, 1, 2, 3]),
        (None, []),
    ],
)
@pytest.mark.parametrize("before", [True, False], ids=["after", "instead"])
def test_what_was_deleted_is_ours_no_more_whatever_is_made_there(rules, gone, left, before):
    """Replaced and then deleted, or deleted and then made by somebody."""
    for made in MADE if before else ():
        rules.heard(made)
    if gone is None:
        rules.unheard()
    else:
        rules.heard(gone)
    for made in MADE:
        rules.heard(made)
    assert rules.names == {OURS[at] for at in left}
