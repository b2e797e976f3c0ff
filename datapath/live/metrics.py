"""What a node measures, as Prometheus names it: one table of metrics, each with how its samples come from what a node counts.

Theory of operation: a reading is a list of looks, one for each worker (figures.look(), and a census of connections). A metric's samples are
worked out of each look; those with the same labels are added up, so that it does not matter how many workers a node has.
Invariants: the number of series is bounded by the configuration, never by traffic: zones beyond a limit and protocols without a name are `other`. A
series that was there stays, so that rates are right.
Not here: when it is read (exposition), how it is asked for (metrics_server), Prometheus's own formats (its library).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import add
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ctcore.types import Proto, Reason
from datapath import fields
from datapath.live.figures import STATES, verdicts
from datapath.live.rows import RING_DROPS

Look = dict[str, Any]
Labels = tuple[str, ...]
Sample = tuple[Labels, float]
OTHER = "other"
MOST_POOLS = 256  # with labels of their own
STATES_OF_OTHERS = ("unreplied", "replied", "assured")
PROTOCOLS = {
    int(number): fields.proto_name(number)
    for number in (Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_UDPLITE, Proto.PROTO_SCTP, Proto.PROTO_ICMP, Proto.PROTO_ICMPV6, Proto.PROTO_GRE)
}
MENDED = ("rx_completed", "rx_cut")
SYSCALLS = ("kicks", "kick_again", "kick_down", "kick_gone", "wakes")
LOST = ("nobody", "no_chunk", "too_long", "too_many", "not_sent")
GAUGES_OF_ROUTER = {"neighbours"}
FIRST_BUCKET, LAST_BUCKET = 10, 27  # of the loop's powers of two: 1 us to 0.13 s have buckets of their own


@dataclass
class ZoneNames:
    """Labels of zones: the first `most` that are seen have their number, all later ones are `other`."""

    most: int = 32
    known: dict[int, str] = field(default_factory=dict)

    def name(self, zone: int) -> str:
        if zone not in self.known and len(self.known) < self.most:
            self.known[zone] = str(zone)
        return self.known.get(zone, OTHER)


@dataclass(frozen=True)
class Metric:
    """name: without the prefix and without _total; kind: gauge, counter or histogram; samples: of one look; together: what the looks of several
    workers are together; lasting: a series that once was there is 0 afterwards, not gone."""

    name: str
    kind: str
    help: str
    labels: Labels
    samples: Callable[[Look, ZoneNames], Iterable[Sample]]
    together: Callable[[float, float], float] = add
    lasting: bool = False

    @property
    def full_name(self) -> str:
        """As queries have it."""
        return f"ctmirror_{self.name}" + ("_total" if self.kind == "counter" else "")


# --- samples ----------------------------------------------------------------------------------------------------------------------------


def counted(codes: Sequence[NDArray[np.uint32]]) -> Counter[int]:
    """Parts of Tracker.census() as numbers of connections by code."""
    found: Counter[int] = Counter()
    for part in codes:
        kinds, numbers = np.unique(part, return_counts=True)
        found.update(dict(zip(kinds.tolist(), numbers.tolist(), strict=True)))
    return found


def _state(proto: int, state: int) -> str:
    return fields.l4state_name(proto, state) or STATES_OF_OTHERS[min(state, 2)]


def _connections(look: Look, zones: ZoneNames) -> Iterator[Sample]:
    for code, number in sorted(look["census"].items()):
        zone, proto, state = code >> 16, code >> 8 & 0xFF, code & 0xFF
        yield (zones.name(zone), PROTOCOLS.get(proto, OTHER), _state(proto, state)), number


def _states(what: str) -> Callable[[Look, ZoneNames], Iterator[Sample]]:
    def samples(look: Look, zones: ZoneNames) -> Iterator[Sample]:
        for state in STATES:
            yield (fields.STATE_NAMES[state],), int(look["summary"][what][state])

    return samples


def _reasons(look: Look, zones: ZoneNames) -> Iterator[Sample]:
    for number, packets in enumerate(look["summary"]["reason_packets"].tolist()):
        yield (fields.REASON_NAMES[Reason(number)],), packets


def _pools(what: str) -> Callable[[Look, ZoneNames], Iterator[Sample]]:
    def samples(look: Look, zones: ZoneNames) -> Iterator[Sample]:
        for i, pool in enumerate(look["pools"]):
            labels = (str(pool.rule), pool.kind, pool.text) if i < MOST_POOLS else (OTHER,) * 3
            yield labels, getattr(pool, what)

    return samples


def _flows(prefix: str, **first: str) -> Callable[[Look, ZoneNames], Iterator[Sample]]:
    """Counters of the flow table that begin so, by what follows. first: others, by their label."""

    def samples(look: Look, zones: ZoneNames) -> Iterator[Sample]:
        for name, number in (look["flowtable"] or {}).items():
            if name in first:
                yield (first[name],), number
            elif name.startswith(prefix):
                yield (name.removeprefix(prefix),), number

    return samples


def _ifaces(*rows: tuple[str, Labels]) -> Callable[[Look, ZoneNames], Iterator[Sample]]:
    """Counters of interfaces: each with the labels behind the interface's name. Queues together."""

    def samples(look: Look, zones: ZoneNames) -> Iterator[Sample]:
        for name, _, _, counts in look["ifaces"]:
            for counter, labels in rows:
                yield (name, *labels), counts[counter]

    return samples


def _up(look: Look, zones: ZoneNames) -> Iterator[Sample]:
    """Each interface once, however many queues it has."""
    ups: dict[str, bool] = {}
    for name, _, condition, _ in look["ifaces"]:
        ups[name] = ups.get(name, True) and condition == "up"
    yield from (((name,), float(up)) for name, up in ups.items())


def _each(part: str, leave_out: Iterable[str] = ()) -> Callable[[Look, ZoneNames], Iterator[Sample]]:
    def samples(look: Look, zones: ZoneNames) -> Iterator[Sample]:
        yield from (((name,), number) for name, number in (look[part] or {}).items() if name not in leave_out)

    return samples


def _one(*path: str) -> Callable[[Look, ZoneNames], Iterator[Sample]]:
    """One number, or nothing if this node has no such part."""

    def samples(look: Look, zones: ZoneNames) -> Iterator[Sample]:
        found: Any = look
        for step in path:
            found = None if found is None else found[step]
        if found is not None:
            yield (), found

    return samples


def _offload(*path: str) -> Callable[[Look, ZoneNames], Iterator[Sample]]:
    """Of offloading: the numbers in an object by their names, those of objects in it by both names, or one number; nothing without offloading, or
    where nobody knows."""

    def samples(look: Look, zones: ZoneNames) -> Iterator[Sample]:
        found: Any = look["offload"]
        for step in path:
            found = None if found is None else found[step]
        for name, value in found.items() if isinstance(found, dict) else ():
            yield from (((name, inner), number) for inner, number in value.items()) if isinstance(value, dict) else (((name,), value),)
        if isinstance(found, int):
            yield (), found

    return samples


def _idle(look: Look, zones: ZoneNames) -> Iterator[Sample]:
    if look["offload"] is not None and (tc := look["offload"]["tc"]) is not None:
        yield (), len(tc["idle"])


def _fragments(look: Look, zones: ZoneNames) -> Iterator[Sample]:
    yield from (((name,), number) for name, number in look["summary"]["fragments"].items() if name != "waiting")


def buckets(histogram: NDArray[np.uint64]) -> list[tuple[str, float]]:
    """uint64[32] of Loop.histogram() as Prometheus has it: upper bounds in seconds, and how many lie below; the last one is +Inf."""
    total = np.cumsum(histogram).tolist()
    found = [(repr((2 << i) / 1e9), float(total[i])) for i in range(FIRST_BUCKET - 1, LAST_BUCKET)]
    return [*found, ("+Inf", float(total[-1]))]


def _latency(look: Look, zones: ZoneNames) -> Iterator[Sample]:
    """Of a histogram: the labels are the buckets' bounds, and `sum`."""
    yield from (((bound,), number) for bound, number in buckets(look["histogram"]))
    yield ("sum",), look["loop"]["frame_ns"] / 1e9


# --- the table --------------------------------------------------------------------------------------------------------------------------

METRICS = (
    Metric("connections", "gauge", "Connections in the table; state is the protocol's own, or unreplied, replied, assured.",
           ("zone", "protocol", "state"), _connections, lasting=True),
    Metric("table_connections", "gauge", "Connections in the table, all together.", (), _one("count")),
    Metric("table_capacity", "gauge", "Most connections that the table holds (conntrack.max).", (), _one("capacity")),
    Metric("packets", "counter", "Packets by what became of them; held: fragments that wait for their datagram.", ("verdict",),
           lambda look, zones: (((name,), number) for name, number in verdicts(look["summary"]).items())),
    Metric("state_packets", "counter", "Packets by what connection tracking said of them.", ("state",), _states("packets")),
    Metric("state_bytes", "counter", "Bytes on the wire of these.", ("state",), _states("bytes")),
    Metric("reason_packets", "counter", "Packets by reason code (docs/reasons.md).", ("reason",), _reasons),
    Metric("tracker_events", "counter", "What the tracker did, by the names of conntrack -S.", ("event",), _each("tracker")),
    Metric("evictions", "counter", "Connections that had to make room for others in a full table.", (), _one("tracker", "early_drop")),
    Metric("zone_limit_refusals", "counter", "Connections that a zone's limit kept out.", (), _one("tracker", "zone_limit")),
    Metric("nat_pool_size", "gauge", "Tuples of a translation rule's range, for one destination.", ("rule", "kind", "range"), _pools("size"), max),
    Metric("nat_pool_in_use", "gauge", "Connections that the rule has translated and that live.", ("rule", "kind", "range"), _pools("in_use")),
    Metric("nat_pool_exhausted", "counter", "Connections dropped because nothing in the range was free.", ("rule", "kind", "range"),
           _pools("exhausted")),
    Metric("flowtable_flows", "gauge", "Connections that the flow table serves.", (), _one("flowtable", "flows")),
    Metric("flowtable_admissions", "counter", "Packets whose connection was admitted to the flow table, or why not.", ("result",),
           _flows("refused_", admitted="admitted")),
    Metric("flowtable_teardowns", "counter", "Connections given back by the flow table.", ("reason",), _flows("teardown_")),
    Metric("flowtable_packets", "counter", "Packets that the flow table has served.", (), _one("flowtable", "served")),
    Metric("shortcut_flows", "gauge", "Flows whose way through the rules is remembered.", (), _one("shortcuts", "flows")),
    Metric("shortcut_packets", "counter", "Packets that went such a way.", (), _one("shortcuts", "hits")),
    Metric("offload_entries", "gauge", "Entries of hardware's tables of connections.", (), _offload("entries")),
    Metric("offload_capacity", "gauge", "Most entries that there can be; absent where there is no limit, or nobody knows.", (), _offload("capacity")),
    Metric("offload_flows", "gauge", "Connections that should be in hardware (wanted), and that are (installed).", ("state",), _offload("flows")),
    Metric("offload_software_flows", "gauge", "Connections that should be in hardware and are not, and why (docs/offload-reasons.md).", ("reason",),
           lambda look, zones: (((code,), flows) for code, flows in (look.get("software_flows") or {}).items()), lasting=True),
    Metric("offload_jobs", "gauge", "Connections with a job on its way to hardware: add, del, stats.", ("job",), _offload("jobs")),
    Metric("offload_queue", "gauge", "Commands that hardware has not taken (mirror), or not answered (hardware).", ("where",), _offload("queue")),
    Metric("offload_commands", "counter", "Commands to hardware, and what came of them.", ("op", "outcome"), _offload("commands")),
    Metric("offload_jobs_dropped", "counter", "Jobs asked for while one was on its way.", ("job",), _offload("dropped")),
    Metric("offload_refusals", "counter", "Rules that hardware has refused, and why.", ("reason",), _offload("refused")),
    Metric("offload_packets", "counter", "Packets by who forwarded or dropped them: hardware, software.", ("where",), _offload("packets")),
    Metric("offload_bytes", "counter", "Bytes on the wire of these.", ("where",), _offload("bytes")),
    Metric("offload_software_packets", "counter", "Packets that software had, and why (docs/offload.md).", ("reason",), _offload("software_packets")),
    Metric("offload_syns", "counter", "SYNs that hardware forwarded as if of an established connection.", (), _offload("syns")),
    Metric("offload_evictions", "counter", "Connections that had to make room in hardware for others.", (), _offload("evictions")),
    Metric("offload_resets", "counter", "Times that hardware began anew, with nothing in its tables.", (), _offload("resets")),
    Metric("offload_threads", "gauge", "Threads that give connections to the kernel's TC: working, suspended, failed, ended.", ("state",),
           _offload("tc", "threads")),
    Metric("offload_failures", "counter", "Times that such a thread's backend failed.", (), _offload("tc", "failures")),
    Metric("offload_tc_rules", "gauge", "Rules of the node in the kernel's TC.", (), _offload("tc", "rules", "rules")),
    Metric("offload_tc_rules_refused", "gauge", "Of these, refused by the kernel or by hardware.", (), _offload("tc", "rules", "refused")),
    Metric("offload_tc_rules_whole", "gauge", "1 if they are as they should be; else connections are software's.", (),
           _offload("tc", "rules", "whole")),
    Metric("offload_tc_changes", "counter", "Changes of TC and of interfaces by others.", (), _offload("tc", "rules", "heard")),
    Metric("offload_tc_repairs", "counter", "Times that rules in TC were put back.", (), _offload("tc", "rules", "repairs")),
    Metric("offload_tc_ahead", "gauge", "Filters of others that packets meet before rules of the node.", (), _offload("tc", "rules", "ahead")),
    Metric("offload_tc_idle", "gauge", "Devices of the way to TC that no packet comes through: down, without a carrier, or gone.", (), _idle),
    Metric("iface_up", "gauge", "1 if the interface is there and up.", ("iface",), _up, min),
    Metric("iface_frames", "counter", "Frames received, and handed to the kernel.", ("iface", "direction"),
           _ifaces(("rx", ("rx",)), ("tx", ("tx",)))),
    Metric("iface_bytes", "counter", "Bytes of these.", ("iface", "direction"), _ifaces(("rx_bytes", ("rx",)), ("tx_bytes", ("tx",)))),
    Metric("ring_drops", "counter", "Frames lost between the device and us, and where (docs/metrics.md).",
           ("iface", "direction", "reason"), _ifaces(*((name, (name[:2], reason)) for name, reason in RING_DROPS.items()))),
    Metric("iface_syscalls", "counter", "System calls: kicks send, wakes receive; kick_... are kicks by what they found.", ("iface", "call"),
           _ifaces(*((name, (name,)) for name in SYSCALLS))),
    Metric("iface_mended", "counter", "Checksums completed, and frames cut up, that a local stack had left to its NIC.", ("iface", "what"),
           _ifaces(*((name, (name.removeprefix("rx_"),)) for name in MENDED))),
    Metric("frames_sent", "counter", "Frames that interfaces took from us.", (), _one("loop", "sent")),
    Metric("frames_lost", "counter", "Frames that passed and could not be sent: no interface, no chunk, too long, too many, refused.", ("reason",),
           lambda look, zones: (((name,), look["loop"][name]) for name in LOST)),
    Metric("loop_rounds", "counter", "Rounds of the loop over all interfaces.", (), _one("loop", "rounds")),
    Metric("loop_waits", "counter", "Rounds after which it slept.", (), _one("loop", "waits")),
    Metric("frame_latency_seconds", "histogram", "Frames by how long their batch took from receiving to handing over.", (), _latency),
    Metric("fragments", "counter", "Fragments and datagrams, by what became of them.", ("event",), _fragments),
    Metric("router_events", "counter", "Routed packets by their way, ICMP errors and questions for neighbours (docs/router.md).", ("event",),
           _each("router", GAUGES_OF_ROUTER)),
    Metric("router_neighbours", "gauge", "Neighbours that the router knows.", (), _one("router", "neighbours")),
    Metric("rules", "gauge", "Rules that are loaded.", (), lambda look, zones: [((), len(look["rules"][0].rules))], max),
)  # fmt: skip
OWN = (  # of the exposition itself
    ("ctmirror_build_info", "gauge", "1; the version is a label.", ("version",)),
    ("ctmirror_uptime_seconds", "gauge", "Since the node began to work.", ()),
    ("ctmirror_reading_seconds", "gauge", "How long it took to read these figures.", ()),
)


def gathered(metric: Metric, looks: Iterable[Look], zones: ZoneNames) -> dict[Labels, float]:
    """A metric's samples over all workers."""
    whole: dict[Labels, float] = {}
    for look in looks:
        mine: dict[Labels, float] = {}
        for labels, number in metric.samples(look, zones):
            mine[labels] = mine.get(labels, 0) + number
        for labels, number in mine.items():
            whole[labels] = metric.together(whole[labels], number) if labels in whole else number
    return whole


def table_rows() -> list[tuple[str, str, str, str]]:
    """For docs/metrics.md: name, kind, labels, help."""
    rows = [(f"`{each.full_name}`", each.kind, ", ".join(f"`{label}`" for label in each.labels), each.help) for each in METRICS]
    return rows + [(f"`{name}`", kind, ", ".join(f"`{label}`" for label in labels), said) for name, kind, said, labels in OWN]
