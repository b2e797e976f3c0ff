"""Hints: the likely cause of what a replay found, and what to try.

Not here: numbers and tables (report). Each hint is a function of the result that returns a line or None; a new one is written and listed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from ctcore.config import CAPACITY_LIMIT
from ctcore.types import Proto, Reason
from datapath.app import Replayed
from datapath.evidence import BAD
from datapath.names import printable
from datapath.pipeline.rules import ETH_ALL, ETH_QINQ, ETH_VLAN

MANY = 0.05  # share of packets from which something is no accident
MOST = 0.8
MORE_TAGS = "with more than two VLAN tags"
TAG_NAMES = {
    0x8100: "with an 802.1Q tag",
    0x88A8: "with an 802.1ad tag",
    0x8847: "with MPLS labels",
    0x8848: "with MPLS labels of multicast",
    0x8864: "in PPPoE",
}
HIDDEN_NAMES = {**TAG_NAMES, 0x8100: MORE_TAGS, 0x88A8: MORE_TAGS}
ENOUGH = 10  # connections from which "most" means something


def counted(number: int, noun: str) -> str:
    """A number of things: 1 packet, 2 packets."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _packets(result: Replayed, *reasons: Reason) -> int:
    return sum(int(result.stats["reason_packets"][reason]) for reason in reasons)


def offloaded_checksums(result: Replayed) -> str | None:
    """Bad checksums: the capturing host left them to its NIC, or they are bad."""
    bad, (looked, left) = _packets(result, *BAD), (result.checksums.looked, result.checksums.left)
    if not looked:
        return None
    some = f"{looked:,}" if looked >= bad else f"the first {looked:,}"  # more than were judged: the flow table looks at none
    unjudged = ""
    if looked > bad:
        unjudged = f"; conntrack has looked at {bad:,} of them: the others' connections are in the flow table, or no rule sent them there"
    if not left:
        return f"none of {some} bad TCP and UDP checksums is what an offloading NIC leaves: they are really bad{unjudged}"
    others = "" if left == looked else "; the others are really bad"
    are = "is" if left == 1 else "are"
    return f"{left:,} of {some} bad TCP and UDP checksums {are} what an offloading NIC leaves: try --checksum 0{others}{unjudged}"


def rewritten(result: Replayed) -> str | None:
    """Bad IPv4 header checksums in numbers: no router would have passed these packets on."""
    bad = _packets(result, Reason.R_IP_CHECKSUM)
    if bad < max(3, MANY * result.stats["total_packets"]):
        return None
    return (
        f"{bad:,} bad IPv4 header checksums: were addresses rewritten, or headers left to the NIC? "
        "Linux drops such packets, whatever --checksum says; repair them first (tcprewrite --fixcsum)"
    )


def unseen_sums(result: Replayed) -> str | None:
    """The same behind rules, which do not look at them, and pass such packets on: tc comes before ip_rcv(), which is where Linux does."""
    bad, looked = result.headers.bad_sums, result.headers.looked
    if bad < max(3, MANY * looked):
        return None
    return (
        f"{bad:,} of {_sample(result)} have bad IPv4 header checksums, which rules do not look at: were addresses rewritten, or headers left to the "
        "NIC? tc and its ct come before the part of Linux that drops such packets (as a replay without rules does): ct calls them invalid, or tracks "
        "them with --checksum 0; repair them first (tcprewrite --fixcsum)"
    )


def unseen_behind_tags(result: Replayed) -> str | None:
    """Packets with a tag, and rules that are all for packets without."""
    if result.rules is None:
        return None
    protocols = {rule.protocol for rule in result.rules.ruleset.rules}
    missed = {kind: n for kind, n in result.headers.tagged.items() if kind not in protocols}
    if ETH_ALL in protocols or not protocols or sum(missed.values()) < max(3, MANY * result.headers.looked):
        return None
    kinds = ", ".join(f"{n:,} {TAG_NAMES[kind]}" for kind, n in sorted(missed.items(), key=lambda one: -one[1]))
    vlan = any(kind in (ETH_VLAN, ETH_QINQ) for kind in missed)
    wanted = "want `protocol 802.1Q` (or 802.1ad) and `vlan_ethtype ip`" if vlan else "want `protocol all`"
    return f"of {_sample(result)}, {kinds}: rules with `protocol ip` or `ipv6` do not see these, as in tc; rules for them {wanted}"


def unseen_in_tunnels(result: Replayed) -> str | None:
    """Packets that no rule can have tracked, and rules that let them by. Of rules that nobody has written, any is worth a word."""
    if result.rules is None or result.tracking.rules is None or not result.headers.hidden:
        return None
    written = not result.tracking.rules.fixed
    unseen = ETH_ALL not in {rule.protocol for rule in result.rules.ruleset.rules}  # then unseen_behind_tags() tells of them
    if written and (unseen or result.headers.hidden.total() < max(3, MANY * result.headers.looked)):
        return None
    numbers: Counter[str] = Counter()
    for kind, n in result.headers.hidden.items():
        numbers[HIDDEN_NAMES[kind]] += n
    kinds = ", ".join(f"{n:,} {name}" for name, n in numbers.most_common())
    return f"of {_sample(result)}, {kinds}: rules do not look behind these, and let what is in there by untracked; a replay without rules tracks it"


def _sample(result: Replayed) -> str:
    looked = result.headers.looked
    return f"{looked:,} packets" if looked == result.stats["total_packets"] else f"{looked:,} packets that were looked at"


def snapped(result: Replayed) -> str | None:
    short = _packets(result, Reason.R_SNAPPED)
    if not short:
        return None
    return f"{counted(short, 'packet')} captured without headers: the snap length was too small; capture with at least 128 bytes (tcpdump -s 128)"


def time_went_back(result: Replayed) -> str | None:
    times = int(result.stats["backwards"])
    if not times:
        return None
    often = "once" if times == 1 else f"{times:,} times"
    if len(result.captures) > 1:
        return f"timestamps went back {often}; the clock was held still meanwhile: merge captures of the same time with mergecap first"
    return f"timestamps went back {often}; the clock was held still meanwhile: sort the capture (reordercap), and merge several with mergecap first"


def before_1970(result: Replayed) -> str | None:
    if result.tracking.clock == "wall" or int(result.stats["first_ts"]) >= 0:
        return None
    return "timestamps before 1970: these packets are tracked as if all had come at its first moment, so that no timeout passes between them"


def clamped(result: Replayed) -> str | None:
    """Timestamps that the file of -w cannot hold."""
    if not (changed := result.clamped):
        return None
    return f"{counted(changed, 'packet')} written by -w with another timestamp: captures hold none before 1970, and .pcap none after 2106"


def one_sided(result: Replayed) -> str | None:
    """A capture that holds one direction only: nothing is ever answered."""
    tally = result.tally
    if _packets(result, *BAD) >= MANY * result.stats["total_packets"]:
        return None  # then one direction is there, but invalid
    if tally is None or (tcp := int(tally.counts[Proto.PROTO_TCP].sum())) < ENOUGH or tally.tcp_unreplied < MOST * tcp:
        return None
    # A scan is not answered either, but does not go on: these packets come from sides that were.
    went_on = _packets(result, Reason.R_TCP_STATE, Reason.R_TCP_PICKED_UP, Reason.R_TCP_NOT_OPENING)
    if went_on < tally.tcp_unreplied / 2:
        return None
    seen = f"{tally.tcp_unreplied:,} of {tcp:,} TCP connections were seen in one direction only"
    return f"{seen}: {_dropped_answers(result) or 'was it captured where both directions pass?'}"


def _dropped_answers(result: Replayed) -> str:
    """Where rules have dropped at least as many packets as there are connections without an answer: these may be the answers."""
    rules, tally = result.rules, result.tally
    if rules is None or tally is None or int(rules.counters["drops"].sum()) < tally.tcp_unreplied:
        return ""
    worst = int(rules.counters["drops"].argmax())
    place, dropped = rules.ruleset.rules[worst].place, int(rules.counters["drops"][worst])
    by = f"{printable(place.file.rpartition('/')[2])}:{place.line} dropped {counted(dropped, 'packet')}"
    hooks = [f"{printable(hook.device)} {hook.direction}" for hook, packets in rules.came.items() if packets]
    if len(hooks) > 1:
        return f"were their answers among those that rules dropped ({by})?"
    return (
        f"their answers came to {hooks[0]} too, it seems, where {by}: a capture of one interface that does not say directions brings "
        "all packets to one hook (tcpdump -i any says them)"
    )


def mid_stream(result: Replayed) -> str | None:
    if not (refused := _packets(result, Reason.R_TCP_NOT_LOOSE)):
        return None
    return f"{counted(refused, 'packet')} of connections that began before the capture; --tcp-loose 1 picks them up"


def table_full(result: Replayed) -> str | None:
    if not (lost := _packets(result, Reason.R_TABLE_FULL)):
        return None
    limit = result.tracking.config.capacity
    if result.counters["new"] < limit:  # then it never was full, but for the place where these belong
        if result.tracking.config.zone_reserves:
            return f"{counted(lost, 'packet')} dropped because the places left are reserved for other zones (--zone-reserve); try a higher --max"
        return f"{counted(lost, 'packet')} dropped because the hashes of their tuples collide; another --seed tells if that is chance or intent"
    more = f"; try --max {min(2 * limit, CAPACITY_LIMIT)}" if limit < CAPACITY_LIMIT else ""
    return f"{counted(lost, 'packet')} dropped because {limit:,} connections are the limit{more}"


def tunnels(result: Replayed) -> str | None:
    """Most of the capture is nothing conntrack looks at."""
    unseen = _packets(result, Reason.R_NOT_IP)
    if unseen < MOST * result.stats["total_packets"]:
        return None
    return f"{unseen:,} of {result.stats['total_packets']:,} packets are not IP, which is all that conntrack sees"


def lost_events(result: Replayed) -> str | None:
    if not result.events_lost:
        return None
    return f"{counted(result.events_lost, 'event')} lost, so connections are missing from the counts above and from --conns and --events"


OF_RULES = (unseen_sums, unseen_behind_tags, unseen_in_tunnels)  # what rules do not look at
HINTS = (
    offloaded_checksums, rewritten, *OF_RULES, snapped, time_went_back, before_1970, clamped, one_sided, mid_stream, table_full,
    tunnels, lost_events,
)  # fmt: skip


def hints_of(result: Replayed, hints: Iterable[Callable[[Replayed], str | None]] = HINTS) -> list[str]:
    """What the result suggests, in the order of the hints."""
    return [line for hint in hints if (line := hint(result))]
