"""What a NIC in front of the rules had of a replay's packets, for people: its share, and why the others stayed in software.

Not here: the rest of the summary (datapath.report).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import wrap

from rich.text import Text

from datapath.commands.offload_counts import Counted, counted_of
from datapath.commands.offloaded import Offloaded
from datapath.hints import counted
from datapath.report import count, size_text
from datapath.ruled_run import place_of
from offload.simnic.kept import KEPT
from offload.simnic.results import WHY, Why

MOST_REASONS, MOST_RULES = 6, 6
DEEPER = " " * 4


def nic_lines(work: Offloaded) -> Iterator[Text]:
    """A few lines for the summary, and what has to be said of rules that are not in hardware."""
    shares, nic = work.shares, work.nic
    yield Text(f"\nNIC {nic.profile.name}: {_share(shares.hardware, shares.frames, count, ' packets')}", "bold")
    yield Text(f"  {_share(shares.hardware_bytes, shares.bytes, size_text)}")
    counts = counted_of(work)
    if shares.hardware > counts.all:
        yield Text(f"  of these {counted(shares.hardware - counts.all, 'packet')} without a connection, as ARP: rules alone sent them on")
    for why, frames in shares.why.most_common(MOST_REASONS):
        yield Text(f"  to software: {counted(frames, 'packet')}: {WHY[Why(why)]}")
        if why == Why.LINK:
            yield Text("    ctmirror offload plan takes them as if they had come in Ethernet frames")
    if shares.syns:
        yield Text(f"  {counted(shares.syns, 'SYN')} forwarded in hardware as if of an established connection: software has not seen them")
    yield from counters_lines(counts)
    kept = nic.kept()
    places = [place_of(rule) for rule in work.program.ruleset.rules]
    whys = {KEPT[why] for why in kept.values()}
    if len(kept) == len(places) > 1 and len(whys) == 1:
        yield Text(f"  all {len(places):,} rules in software only: {whys.pop()}")
        return
    for number in sorted(kept)[:MOST_RULES]:
        yield Text(f"  rule {places[number]} in software only: {KEPT[kept[number]]}")
    if len(kept) > MOST_RULES:
        yield Text(f"  and {counted(len(kept) - MOST_RULES, 'rule')} more")


def indented(line: Text, width: int) -> Text:
    """A line for a console of this width: where it has to be wrapped, what follows stands further in than its beginning."""
    text = line.plain.lstrip("\n")
    above, blanks = line.plain[: len(line.plain) - len(text)], " " * (len(text) - len(text.lstrip()))
    return Text(above + "\n".join(wrap(text, width, subsequent_indent=blanks + DEEPER, break_long_words=False, break_on_hyphens=False)), line.style)


def counters_lines(counts: Counted) -> Iterator[Text]:
    """How much of what hardware has counted is in the records of connections; what is not, is unknown there."""
    if not counts.all:
        return
    yield Text(f"  counters of hardware: {counted(counts.split + counts.unsplit, 'packet')} told to their connections")
    if counts.unsplit:
        yield Text(f"    of {count(counts.unsplit)} the direction is unknown: one counter serves both")
    for packets, what in (
        (counts.unheard, "more unknown: rules went, or answers got lost, before they were told"),
        (counts.untold, "more unknown: counters are stuck"),
        (counts.late, "more were told when their connection had ended"),
    ):
        if packets:
            yield Text(f"    {count(packets)} {what}")


def _share(part: int, whole: int, text: Callable[[int], str], unit: str = "") -> str:
    percent = f" ({100 * part / whole:.1f}%)" if whole else ""
    return f"{text(part)} of {text(whole)}{unit}{percent} in hardware"
