"""What several workers share: limits divided among them, and rules that several workers can do.

Theory of operation: each worker has a table of its own, so what bounds a table is divided by the number of workers, rounded up: ctcore.steering
spreads connections evenly. Tokens of policers are not divided but spent by all (pipeline.program), since one connection is one worker's.
Not here: whose connection is whose (ctcore.steering), handing frames over (handoff).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from ctcore.config import UNLIMITED_CAPACITY, Config
from ctcore.errors import ConfigError
from ctcore.nat_rules import PROTO_WORDS
from datapath.pipeline.rules import Ct, Pedit, Rule, RuleError, Ruleset

K = TypeVar("K")

# What a pedit must not change before or behind a `ct`, by header and field: the tuple.
_TUPLE = {
    *((header, end) for header in ("ip", "ip6") for end in ("src", "dst")),
    *((header, end) for header in ("tcp", "udp") for end in ("sport", "dport")),
}
# By helper, protocols and ports that ctcore.steering knows.
_USUAL = {"ftp": ((6, 21),), "tftp": ((17, 69),), "sip": ((6, 5060), (17, 5060)), "irc": ((6, 6667),), "pptp": ((6, 1723),)}
# Of one table; 0 means no limit, or nothing at all, and stays.
_DIVIDED = ("buckets", "zone_limit", "ipfrag_high_thresh", "frag6_high_thresh", "event_buffer", "eviction_buffer")
_LEAST = {"event_buffer": 16}


def shares_of(config: Config, workers: int) -> list[Config]:
    """The settings of each of several trackers that together do as one with these settings. With one worker they are these."""
    if workers == 1:
        return [config]
    parts: dict[str, object] = {name: max(divided(getattr(config, name), workers), _LEAST.get(name, 0)) for name in _DIVIDED}
    parts["max"] = divided(config.max or UNLIMITED_CAPACITY, workers)
    for name in ("zone_limits", "zone_reserves"):
        parts[name] = {zone: divided(number, workers) for zone, number in getattr(config, name).items()}
    if sum(config.zone_reserves.values()) > config.capacity - workers * len(config.zone_reserves):
        raise ConfigError(f"zone_reserves: expected room for one more connection of each zone and worker in max, {config.capacity}")
    return [replace(config, share=(worker, workers), **parts) for worker in range(workers)]  # type: ignore[arg-type]


def divided(number: int, workers: int) -> int:
    """A part of it, rounded up."""
    return -(-number // workers)


def check_shared(ruleset: Ruleset, workers: int) -> None:
    """Whether several workers can do these rules. Raises RuleError for the first one that they cannot.

    A tuple that a pedit changes has answers that come to another worker, which knows nothing of the connection. Helpers are the first worker's, and
    so are connections of their usual ports, as ctcore.steering says.
    """
    if workers == 1:
        return
    tracked = any(isinstance(action, Ct) for rule in ruleset.rules for action in rule.actions)
    for rule in ruleset.rules if tracked else ():
        _check_rule(rule, workers)


def _check_rule(rule: Rule, workers: int) -> None:
    for action in rule.actions:
        if isinstance(action, Pedit):
            for munge in action.munges:
                if (munge.header, munge.field) in _TUPLE:
                    wanted = f"expected `ct nat` instead, or workers = 1: answers would come to another one of {workers} workers"
                    raise RuleError(f"{rule.place}: pedit {munge.header} {munge.field} among rules with `ct`: {wanted}", rule.place, wanted)
        if isinstance(action, Ct) and action.helper is not None and _asked_for(rule) not in _USUAL[action.helper[0]]:
            usual = " or ".join(f"ip_proto {PROTO_WORDS[proto]} dst_port {port}" for proto, port in _USUAL[action.helper[0]])
            wanted = f"expected a rule for {usual}, whose connections are one worker's, or workers = 1, not {workers}"
            raise RuleError(f"{rule.place}: helper {action.helper[0]}: {wanted}", rule.place, wanted)


def _asked_for(rule: Rule) -> tuple[int, int] | None:
    """Protocol and port, if the rule is for connections to a single port."""
    found = {match.name: match for match in rule.matches}
    proto, port = found.get("ip_proto"), found.get("dst_port")
    if proto is None or port is None or port.high is not None or port.mask != 0xFFFF:
        return None
    return proto.value, port.value


def summed(counters: Iterable[Mapping[K, int]]) -> dict[K, int]:
    """Counters of several, by name; names are in the order of the first one that has them."""
    found: dict[K, int] = {}
    for one in counters:
        for name, number in one.items():
            found[name] = found.get(name, 0) + number
    return found
