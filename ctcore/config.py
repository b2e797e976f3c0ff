"""Settings of one tracker: the kernel's sysctls by their names, as a frozen value.

Not here: ticks and C structs; settings.fill_settings() turns a Config into what the engine reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import SupportsIndex

from ctcore import spec
from ctcore.errors import ConfigError
from ctcore.nat_rules import HelperRule, NatRule

ZONE_DIRS = ("both", "original", "reply")
EVENT_BITS = {"new": 1, "update": 2, "destroy": 4}
# With max=0 the kernel has no limit but memory; here the slab and the table are sized once, at this many connections (1.1 GB when full).
UNLIMITED_CAPACITY = 1 << 22
CAPACITY_LIMIT = (1 << 26) - 1024  # 26 bits name a slot (nat_chain), and connections that only packets carry (act) have some of their own
BUCKETS_LIMIT = 1 << 26
FRAGMENTS_LIMIT = 1 << 30
SHARES_LIMIT = 64  # trackers that share the work
RULES_LIMIT = 0xFFFF  # of address translation: a connection remembers its own in 16 bits, counted from 1
# A deadline is compared as the kernel does it, by the sign of a 32-bit difference of ticks.
TICKS_LIMIT = (1 << 31) - 1


@dataclass(frozen=True)
class Config:
    """What a tracker is told at its start. Defaults are Linux's, but acct, which is on since users want counters.

    Raises ConfigError naming the field, the value and what was expected. Source: Documentation/networking/nf_conntrack-sysctl.rst.
    """

    tcp_liberal: bool = False
    tcp_loose: bool = True
    tcp_max_retrans: int = 3
    tcp_ignore_invalid_rst: bool = False
    checksum: bool = True
    acct: bool = True
    max: int = 262144  # connections; 0: no limit but capacity
    buckets: int = 262144  # of the kernel's hash table (nf_conntrack_buckets): early drop looks at eight of them
    expect_max: int = 4096
    zone_dir: str = "both"  # which direction's tuples a packet's zone keeps apart: both, original, reply; the others lie in zone 0
    zone_limit: int = 0  # most connections of any zone; 0: no limit
    zone_limits: Mapping[int, int] = field(default_factory=dict)  # of single zones, in place of zone_limit
    zone_reserves: Mapping[int, int] = field(default_factory=dict)  # places of max that belong to a zone, whatever the others do
    hz: int = 250  # ticks a second; deadlines are whole ticks, as in a kernel with CONFIG_HZ of this value
    seed: int = 0  # of the keyed hashes, and of the ports that NAT draws; draw it at random where packets come from strangers and nobody replays
    events: frozenset[str] = frozenset()  # which of new, update, destroy to record
    event_buffer: int = 65536  # events kept until they are taken
    ipfrag_high_thresh: int = 4 << 20  # bytes of IPv4 fragments beyond which further ones are refused; 0: all are
    frag6_high_thresh: int = 4 << 20  # the same of IPv6 (nf_conntrack_frag6_high_thresh)
    ipfrag_max_dist: int = 64  # fragments of a source that may come between two of a datagram (IPv4); 0: any number
    eviction_buffer: int = 1024  # records of evictions kept until they are taken
    nat: tuple[NatRule, ...] = ()  # in their order; with any at all, connections that none matches get null bindings
    nat_actions: bool = False  # room for translation although no rule says so: `ct` actions may ask for it
    helpers: tuple[HelperRule, ...] = ()
    helper_actions: bool = False  # the same for helpers
    helper_max: int = 65536  # connections with a helper at a time; later ones go without
    flowtable_tcp_timeout: int = 30  # seconds an idle connection stays in the flow table (nf_flowtable_tcp_timeout)
    flowtable_udp_timeout: int = 30  # the same of UDP and all others
    flowtable_extends: bool = True  # connections in the flow table are kept from expiring, as Linux does since 6.14; before, a day was all they had
    share: tuple[int, int] = (0, 1)  # of several trackers that share the work by ctcore.steering: which one, counted from 0, of how many
    timeouts: Mapping[str, int] = field(default_factory=dict)  # seconds, by sysctl name without nf_conntrack_; the rest as in spec/timeouts.txt

    def __post_init__(self) -> None:
        for name in ("tcp_liberal", "tcp_loose", "tcp_ignore_invalid_rst", "checksum", "acct", "nat_actions", "helper_actions", "flowtable_extends"):
            _check_range(self, name, 0, 1)
        _check_range(self, "hz", 1, 1000)
        _check_range(self, "tcp_max_retrans", 0, 255)
        _check_range(self, "max", 0, CAPACITY_LIMIT)
        _check_range(self, "buckets", 1, BUCKETS_LIMIT)
        _check_range(self, "expect_max", 1, 1 << 20)
        _check_range(self, "helper_max", 1, 1 << 20)
        _check_range(self, "flowtable_tcp_timeout", 1, TICKS_LIMIT // self.hz)
        _check_range(self, "flowtable_udp_timeout", 1, TICKS_LIMIT // self.hz)
        _check_range(self, "event_buffer", 16, 1 << 27)
        _check_range(self, "ipfrag_high_thresh", 0, FRAGMENTS_LIMIT)
        _check_range(self, "frag6_high_thresh", 0, FRAGMENTS_LIMIT)
        _check_range(self, "ipfrag_max_dist", 0, (1 << 31) - 1)
        _check_range(self, "eviction_buffer", 1, 1 << 27)
        _check_zones(self)
        whole("share: count", self.share[1], 1, SHARES_LIMIT)
        whole("share: index", self.share[0], 0, self.share[1] - 1)
        whole("nat: rules:", len(self.nat), 0, RULES_LIMIT)
        _check_range(self, "seed", 0, (1 << 64) - 1)
        if 1_000_000_000 % self.hz:
            raise ConfigError(f"hz = {self.hz}: expected a divisor of 1,000,000,000")
        for name in self.events:
            if name not in EVENT_BITS:
                raise ConfigError(f"events: '{name}': expected {', '.join(EVENT_BITS)}")
        for name, seconds in self.timeouts.items():
            if name not in spec.timeouts():
                raise ConfigError(f"timeouts: '{name}': expected one of {', '.join(spec.timeouts())}")
            whole(f"timeouts: {name} =", seconds, 0, TICKS_LIMIT // self.hz, " whole seconds")

    @property
    def capacity(self) -> int:
        """How many connections the tables are made for."""
        return self.max or UNLIMITED_CAPACITY

    @property
    def event_mask(self) -> int:
        return sum(EVENT_BITS[name] for name in self.events)

    def ticks(self, name: str) -> int:
        """The timeout of a sysctl in ticks."""
        return self.timeouts.get(name, spec.timeouts()[name]) * self.hz


def whole(what: str, value: object, low: int, high: int, unit: str = "") -> int:
    """A whole number from a caller, of Python or NumPy. Raises ConfigError if it is none, or not from low to high."""
    number = value.__index__() if isinstance(value, SupportsIndex) else None
    if number is None or not low <= number <= high:
        raise ConfigError(f"{what} {value!r}: expected {low} to {high}{unit}")
    return number


def _check_range(config: Config, name: str, low: int, high: int) -> None:
    value = getattr(config, name)
    if not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} = {value}: expected {low} to {high}")


def _check_zones(config: Config) -> None:
    """Which direction, limits, and reserves, which must find room."""
    if config.zone_dir not in ZONE_DIRS:
        raise ConfigError(f"zone_dir = {config.zone_dir!r}: expected {', '.join(ZONE_DIRS)}")
    _check_range(config, "zone_limit", 0, CAPACITY_LIMIT)
    for name in ("zone_limits", "zone_reserves"):
        if not isinstance(getattr(config, name), Mapping):
            raise ConfigError(f"{name} = {getattr(config, name)!r}: expected a number for each zone, as in {{1: 1000}}")
        for zone, number in getattr(config, name).items():
            whole(f"{name}: zone", zone, 0, 0xFFFF)
            whole(f"{name}: zone {zone}:", number, 0, CAPACITY_LIMIT, " connections")
    for zone, reserve in config.zone_reserves.items():
        limit = config.zone_limits.get(zone, config.zone_limit)
        if limit and reserve > limit:
            raise ConfigError(f"zone_reserves: zone {zone}: {reserve}: expected at most its limit, {limit}")
    if sum(config.zone_reserves.values()) > config.capacity:
        raise ConfigError(f"zone_reserves: {sum(config.zone_reserves.values())} in all: expected at most max, {config.capacity}")
