"""Rules as arrays that numba reads: chains, the masks in each, the rules under each mask, their actions.

Theory of operation: chains are numbered through. Of a chain, rules with the same mask are one hash table (tuple space search); a look-up goes through
the masks by the first rule that each holds, and is over when no later mask can hold an earlier rule. A rule's seat is its number in the order in
which all rules are tried. One rule may be several entries: a range of ports is the prefixes that cover it.
Invariants: every number in an op is one of an array's own; a table is at most half full; seats of a chain rise as its rules come.
Not here: who goes through it (walk).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from offload.simnic.capability import NEVER, kept, unmatched
from offload.simnic.kept import Kept
from offload.simnic.kernel import inlined
from offload.simnic.layout import WORDS, prefixes, put, words_of
from offload.simnic.profile import Profile
from offload.simnic.results import COUNT_DTYPE
from offload.simnic.rules import Ct, Edit, Mark, Match, Munge, NicRule, NicRules, Plain, Police, Send, Sum, Tag, Then

SECOND = 1_000_000_000
FOREVER = 1 << 62  # ns, beyond which all times are the same
ANY_LENGTH = 1 << 32
NO_CHAIN = -1
NO_SEAT = 1 << 30

OP_PLAIN, OP_CT, OP_CLEAR, OP_SEND, OP_COPY, OP_EDIT, OP_SUM, OP_PUSH, OP_POP, OP_MODIFY, OP_MARK, OP_POLICE = range(12)
THEN = {"pipe": 0, "pass": 1, "drop": 2, "goto": 3}
THEN_PIPE, THEN_PASS, THEN_DROP, THEN_GOTO = range(4)
BASES = {"eth": 0, "ip": 1, "ip6": 1, "tcp": 2, "udp": 2}
SUM_BITS = {"ip4h": 1, "tcp": 2, "udp": 4}

# a, b, c: what the kind of action has of its own (_lowered).
OP_DTYPE = np.dtype([("kind", "i8"), ("then", "i8"), ("chain", "i8"), ("a", "i8"), ("b", "i8"), ("c", "i8")])
# soft: in software only; sums: it makes checksums.
SEAT_DTYPE = np.dtype(
    [("rule", "i8"), ("first", "i8"), ("n", "i8"), ("soft", "i8"), ("sums", "i8"), ("sends", "i8"), ("pushes", "i8"), ("edits", "i8")]
)
GROUP_DTYPE = np.dtype([("best", "i8"), ("word", "i8"), ("n_words", "i8"), ("slot", "i8"), ("slot_mask", "i8")])
MUNGE_DTYPE = np.dtype([("base", "i8"), ("offset", "i8"), ("size", "i8"), ("add", "i8"), ("value", "u1", 16), ("mask", "u1", 16)])
BUCKET_DTYPE = np.dtype(
    [("begun", "i8"), ("last", "i8"), ("bytes", "i8"), ("packets", "i8"), ("bytes_full", "i8"), ("packets_full", "i8"), ("rate", "i8"),
     ("packet_cost", "i8"), ("mtu", "i8")]
)  # fmt: skip


class Arrays(NamedTuple):
    """first: by iface, its chain 0; zone: by iface, that of its first `ct`, a guess for fetching ahead; chain_name, chain_group: by chain;
    masks: by chain, its first mask, and one more; counted: by number of a rule."""

    first: NDArray[Any]
    zone: NDArray[Any]
    chain_name: NDArray[Any]
    chain_group: NDArray[Any]
    masks: NDArray[Any]
    group: NDArray[Any]
    word: NDArray[Any]
    word_mask: NDArray[Any]
    slot: NDArray[Any]
    value: NDArray[Any]
    entry_seat: NDArray[Any]
    seat: NDArray[Any]
    op: NDArray[Any]
    munge: NDArray[Any]
    bucket: NDArray[Any]
    counted: NDArray[Any]


@inlined
def mix(h):
    """Safe: overflow of signed words wraps around."""
    h = (h ^ (h >> 32 & 0xFFFFFFFF)) * 0x9E3779B97F4A7C1
    return h ^ (h >> 29 & 0x7FFFFFFFF)


@inlined
def masked_hash(key, word, word_mask, first, n):
    h = np.int64(0)
    for i in range(first, first + n):
        h = mix(h + (key[word[i]] & word_mask[i]))
    return h


@inlined
def classify(p, chain, key):
    """The seat of the first rule of a chain that matches a key, NO_SEAT: none."""
    best = NO_SEAT
    for g in range(p.masks[chain], p.masks[chain + 1]):
        group = p.group[g]
        if group.best >= best:
            break
        slot = masked_hash(key, p.word, p.word_mask, group.word, group.n_words) & group.slot_mask
        while True:
            entry = p.slot[group.slot + slot]
            if entry < 0:
                break
            same = True
            for i in range(group.word, group.word + group.n_words):
                same &= p.value[entry, p.word[i]] == key[p.word[i]] & p.word_mask[i]
            if same:
                best = min(best, p.entry_seat[entry])
                break
            slot = (slot + 1) & group.slot_mask
    return best


# --- what a rule matches ----------------------------------------------------------------------------------------------------------------


def _pairs(rule: NicRule, profile: Profile, label_id: Any) -> Iterator[tuple[int, int]]:
    """Value and mask over a whole key. What the NIC cannot match is taken to match."""
    value = mask = 0
    ranges = []
    for match in rule.matches:
        if unmatched(match, profile):
            continue
        if match.high is not None:
            ranges.append(match)
            continue
        name, number, bits = match.name, match.value & match.mask, match.mask
        if name == "ct_label":
            name, number, bits = "labels_id", label_id(number), 0xFFFFFFFF
        value |= put(name, number)
        mask |= put(name, bits)
    for choice in product(*(list(prefixes(match.value, match.high or 0)) for match in ranges)):
        one, under = value, mask
        for match, (low, bits) in zip(ranges, choice, strict=True):
            one |= put(match.name, low)
            under |= put(match.name, bits)
        yield one, under


class Masks:
    """The rules of a chain by their masks, as they become arrays."""

    def __init__(self) -> None:
        self.chains = [0]
        self.groups: list[tuple[int, ...]] = []
        self.words: list[tuple[int, int]] = []
        self.slots: list[int] = []
        self.values: list[list[int]] = []
        self.seats: list[int] = []

    def add(self, entries: Iterable[tuple[int, int, int]]) -> None:
        """A chain. entries: seat, value and mask; of two with the same value and mask the first one counts."""
        by_mask: dict[int, dict[int, int]] = {}
        for seat, value, mask in entries:
            by_mask.setdefault(mask, {}).setdefault(value, seat)
        for mask, found in sorted(by_mask.items(), key=lambda each: min(each[1].values())):
            self._group(mask, found)
        self.chains.append(len(self.groups))

    def _group(self, mask: int, found: dict[int, int]) -> None:
        words = [(i, word) for i, word in enumerate(words_of(mask)) if word]
        first, size = len(self.words), 1 << (2 * len(found)).bit_length()
        self.words += words
        self.groups.append((min(found.values()), first, len(words), len(self.slots), size - 1))
        slots = [-1] * size
        names, masks = np.array([i for i, _ in words], dtype=np.int64), np.array([word for _, word in words], dtype=np.int64)
        for value, seat in found.items():
            key = words_of(value)
            slot = int(masked_hash(np.array(key, dtype=np.int64), names, masks, 0, len(words))) & size - 1
            while slots[slot] >= 0:
                slot = slot + 1 & size - 1
            slots[slot] = len(self.values)
            self.values.append(key)
            self.seats.append(seat)
        self.slots += slots


# --- what it does -----------------------------------------------------------------------------------------------------------------------


class Program:
    """Rules, compiled for a NIC. kept: by rule, in the order of rules.rules, why it is not in hardware.

    Raises ValueError for ifaces that are not from 0 to 65534.
    """

    def __init__(self, rules: NicRules, profile: Profile, label_id: Any) -> None:
        """label_id: a label's number, which it makes if there is none."""
        if any(not 0 <= iface < 0xFFFF for iface in rules.groups):
            raise ValueError("ifaces: expected numbers from 0 to 65534")
        self.rules = rules
        self.kept = [kept(rule, profile) for rule in rules.rules]
        self.copies = any(isinstance(action, Send) and action.copy for rule in rules.rules for action in rule.actions)
        self._ops: list[tuple[int, ...]] = []
        self._munges: list[Any] = []
        self._buckets: list[tuple[int, ...]] = []
        by_chain: dict[tuple[int, int], list[int]] = {}
        for i, rule in enumerate(rules.rules):
            by_chain.setdefault((rule.group, rule.chain), []).append(i)
        self._chains = {where: i for i, where in enumerate(by_chain)}
        masks = Masks()
        seats: list[tuple[int, ...]] = []
        for members in by_chain.values():
            entries = []
            for i in members:
                rule, why = rules.rules[i], self.kept[i]
                if not (why in NEVER or (why and rule.skip_sw)):
                    entries += [(len(seats), *pair) for pair in _pairs(rule, profile, label_id)]
                seats.append(self._seated(rule, why))
            masks.add(entries)
        self.arrays = self._arrays(masks, seats)

    def _arrays(self, masks: Masks, seats: list[tuple[int, ...]]) -> Arrays:
        rules = self.rules
        first = np.full(max(rules.groups, default=0) + 1, NO_CHAIN, dtype=np.int64)
        for iface, group in rules.groups.items():
            first[iface] = self._chains.get((group, 0), NO_CHAIN)
        zone = np.zeros_like(first)
        for iface, group in rules.groups.items():
            tracks = (action.zone for rule in rules.rules if rule.group == group for action in rule.actions if isinstance(action, Ct))
            zone[iface] = next(tracks, 0)
        count = np.zeros(max([rule.number for rule in rules.rules], default=-1) + 1, dtype=COUNT_DTYPE)
        count["last"] = -1
        number = np.int64
        return Arrays(
            first, zone, np.array([chain for _, chain in self._chains], dtype=number), np.array([group for group, _ in self._chains], dtype=number),
            np.array(masks.chains, dtype=number), np.array(masks.groups, dtype=GROUP_DTYPE),
            np.array([word for word, _ in masks.words], dtype=number), np.array([mask for _, mask in masks.words], dtype=number),
            np.array(masks.slots, dtype=number), np.array(masks.values, dtype=number).reshape(-1, WORDS), np.array(masks.seats, dtype=number),
            np.array(seats, dtype=SEAT_DTYPE), np.array(self._ops, dtype=OP_DTYPE), np.array(self._munges, dtype=MUNGE_DTYPE),
            np.array(self._buckets, dtype=BUCKET_DTYPE), count,
        )  # fmt: skip

    def _seated(self, rule: NicRule, why: Kept) -> tuple[int, ...]:
        first, actions = len(self._ops), rule.actions
        if not why:
            self._ops += [self._lowered(action, rule) for action in actions]
        sends = sum(isinstance(action, Send) for action in actions)
        pushes = sum(isinstance(action, Tag) and action.kind == "push" for action in actions)
        edits = sum(isinstance(action, Edit) and any(munge.header == "eth" for munge in action.munges) for action in actions)
        return rule.number, first, len(self._ops) - first, bool(why), any(isinstance(action, Sum) for action in actions), sends, pushes, edits

    def _lowered(self, action: Any, rule: NicRule) -> tuple[int, ...]:
        """kind, then, chain, a, b, c."""
        then = action.then
        after = THEN[then.kind], self._goto(rule, then)
        if isinstance(action, Ct):
            return (OP_CLEAR if action.clear else OP_CT, *after, action.zone, action.nat, 0)
        if isinstance(action, Send):
            return (OP_COPY if action.copy else OP_SEND, *after, action.iface, 0, 0)
        if isinstance(action, Edit):
            self._munges += [_munge(munge) for munge in action.munges]
            return (OP_EDIT, *after, len(self._munges) - len(action.munges), len(action.munges), 0)
        if isinstance(action, Sum):
            return (OP_SUM, *after, sum(SUM_BITS[name] for name in action.of), 0, 0)
        if isinstance(action, Tag):
            return ({"push": OP_PUSH, "pop": OP_POP, "modify": OP_MODIFY}[action.kind], *after, action.tci, action.keeps, action.protocol)
        if isinstance(action, Mark):
            value, mask = action.mark
            return (OP_MARK, *after, value & mask, ~mask & 0xFFFFFFFF, -1 if action.priority is None else action.priority)
        if isinstance(action, Police):
            self._buckets.append(_bucket(action))
            return (OP_POLICE, *after, len(self._buckets) - 1, 0, 0)
        assert isinstance(action, Plain)
        return (OP_PLAIN, *after, 0, 0, 0)

    def _goto(self, rule: NicRule, then: Then) -> int:
        """A chain of the rule's group; one without rules is as good as one where none matches, and keeps its name."""
        if then.kind != "goto":
            return NO_CHAIN
        return self._chains.get((rule.group, then.chain), -2 - then.chain)

    def kept_of(self) -> dict[int, Kept]:
        """Why rules are not in hardware, by their numbers; those that are there are not in it."""
        return {rule.number: why for rule, why in zip(self.rules.rules, self.kept, strict=True) if why}


def _munge(munge: Munge) -> tuple[Any, ...]:
    pad = bytes(16 - len(munge.value))
    value, mask = (list(each + pad) for each in (munge.value, munge.mask))
    return BASES[munge.header], munge.offset, len(munge.value), munge.add, value, mask


def _bucket(action: Police) -> tuple[int, ...]:
    """As ns that may be spent, as act_police counts."""
    full_bytes = action.burst * 8 * SECOND // action.rate if action.rate else 0
    full_packets = action.packet_burst * SECOND // action.packet_rate if action.packet_rate else 0
    cost = SECOND // action.packet_rate if action.packet_rate else 0
    mtu = ANY_LENGTH if action.mtu is None else action.mtu
    return 0, 0, 0, 0, min(full_bytes, FOREVER), min(full_packets, FOREVER), action.rate, cost, mtu


__all__ = ["Arrays", "Match", "Program", "classify"]
