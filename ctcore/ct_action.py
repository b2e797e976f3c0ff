"""The `ct` action of a pipeline as a frozen value, and what a packet carries from one such action to the next.

A pipeline asks for tracking action by action: look the packet up in a zone, translate it, commit its connection. Between two of them the packet
has an association: the connection, which may still be unconfirmed, its direction, and what later rules match on. Tracker.act() does one action.
Source: tc-ct(8), net/sched/act_ct.c.
Not here: rules (datapath.pipeline), which packets come to an action, doing it (act, model.act).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from ctcore.config import Config, whole
from ctcore.errors import ConfigError
from ctcore.filter import ALL_LABELS, ALL_MARKS
from ctcore.nat_rules import HELPERS

BARE_NAT = -1  # apply the mapping that the connection has


@dataclass(frozen=True)
class CtAction:
    """mark, label: (value, mask), set on commit; nat: None: no translation; BARE_NAT; or the place in Config.nat of the rule whose range is to be
    used (its match is not looked at: the pipeline's rule has matched); helper: one of nat_rules.HELPERS, given to a connection that it commits.

    force: a packet of the reply direction begins a connection of its own; clear: the association goes, and all else is ignored.
    """

    zone: int = 0
    commit: bool = False
    force: bool = False
    clear: bool = False
    nat: int | None = None
    mark: tuple[int, int] | None = None
    label: tuple[int, int] | None = None
    helper: str | None = None


class Outcome(IntEnum):
    """What becomes of a packet: ON to what follows the action, or DROPPED."""

    ON = 0
    DROPPED = 1


class Association(NamedTuple):
    """What a packet carries. tracked: whether it has been through `ct` at all; zone: of the last one.

    token: the tracker's own: the connection, and whose it is; None: without a connection, which is invalid if tracked.
    state: a types.State: NEW, ESTABLISHED or RELATED with a connection; dir: 0 original, 1 reply; mark, label: the connection's, as they are now.
    """

    tracked: bool = False
    zone: int = 0
    token: Any = None
    state: int = 0
    dir: int = 0
    mark: int = 0
    label: int = 0


NO_ASSOCIATION = Association()


class Acted(NamedTuple):
    """What an action made of a packet. decision: DECISION_DTYPE[1]; rewrite: REWRITE_DTYPE[1], to be carried out before anything looks at the packet
    again; edits: EDIT_DTYPE[n], a helper's."""

    outcome: Outcome
    decision: np.ndarray
    rewrite: np.ndarray
    edits: np.ndarray
    association: Association


def checked_action(action: CtAction, config: Config) -> CtAction:
    """The action if a tracker with these settings can do it; ConfigError says what it cannot."""
    whole("ct: zone", action.zone, 0, 0xFFFF)
    for name, most in (("mark", ALL_MARKS), ("label", ALL_LABELS)):
        pair = getattr(action, name)
        if pair is not None:
            whole(f"ct: {name}", pair[0], 0, most)
            whole(f"ct: {name} mask", pair[1], 0, most)
    if action.nat is not None and not config.nat and not config.nat_actions:
        raise ConfigError("ct: nat: expected a tracker whose settings have nat_actions")
    if action.nat not in (None, BARE_NAT):
        whole("ct: nat", action.nat, 0, len(config.nat) - 1)
    if action.helper not in (None, *HELPERS):
        raise ConfigError(f"ct: helper {action.helper}: expected {', '.join(HELPERS)}")
    if action.helper is not None and not (config.helpers or config.helper_actions):
        raise ConfigError(f"ct: helper {action.helper}: expected a tracker whose settings have helper_actions")
    return action
