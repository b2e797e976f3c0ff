"""A ruleset, compiled: what rules match as one classifier, what they do as arrays of structs. Once made, it is only read, but for counters and policers.

Theory of operation: all chains of all hooks are numbered through. A hook is 2 * device + 1 for egress, and has the number of its chain 0; hooks that
are bound to a shared block have the block's. A goto holds the number of the chain it means, a mirred the hook it sends to. A chain's rules have
seats in the order in which they are tried (order); the classifier answers with a place, and the seat there tells the rule and its actions.
Invariants: every number in an Op is one of an array's own (devices, chains, munges, buckets) or says "none"; each seat's rule is one of the
ruleset. Two actions share nothing that is written to, though their values be equal.
Not here: which rules make sense (validate), walking through them (walk).
"""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

import numpy as np

from ctcore.act cimport CT_CLEAR, CT_COMMIT, CT_FORCE, CT_LABEL, CT_MARK, CT_NAT, CtRequest
from datapath.pipeline.classify cimport Classifier
from datapath.pipeline.draft cimport (
    BASE_FRAME, BASE_L3, BASE_L4, VLAN_MODIFY, VLAN_POP, VLAN_PUSH, Munge, TagChange,
)
from datapath.pipeline.police cimport FOREVER, SECOND, Bucket

from ctcore.config import Config
from ctcore.ct_action import CtAction, checked_action
from ctcore.helpers.registry import HELPER_IDS
from datapath.pipeline.ct_settings import range_of, ranges_of, settings_of
from datapath.pipeline.header_fields import HEADER_FIELDS
from datapath.pipeline.layout import laid
from datapath.pipeline.munge import TRANSPORTS
from datapath.pipeline.order import bindings, in_order
from datapath.pipeline.rules import ETH_VLAN, Csum, Ct, Gact, Hook, Mirred, Pedit, Police, Skbedit, Vlan
from datapath.pipeline.tc_actions import CSUM_ORDER

COUNT_DTYPE = np.dtype([("packets", "u8"), ("bytes", "u8"), ("last", "i8"), ("drops", "u8"), ("overlimits", "u8")])
RESUME_DTYPE = np.dtype([
    ("conn", "i8"), ("chain", "u4"), ("place", "u4"), ("action", "u4"), ("mark", "u4"), ("priority", "u4"), ("zone", "u2"), ("on", "u1"), ("turns", "u1"),
    ("state", "u1"), ("pad", "u1", 7),
])
assert COUNT_DTYPE.itemsize == sizeof(Count) and RESUME_DTYPE.itemsize == sizeof(Resume)

KINDS = {"pass": CONTROL_PASS, "pipe": CONTROL_PIPE, "drop": CONTROL_DROP, "continue": CONTROL_CONTINUE}
OPS = {Gact: OP_GACT, Ct: OP_CT, Mirred: OP_MIRRED, Pedit: OP_PEDIT, Csum: OP_CSUM, Skbedit: OP_SKBEDIT, Vlan: OP_VLAN, Police: OP_POLICE}
BASES = {"eth": BASE_FRAME, "ip": BASE_L3, "ip6": BASE_L3, "tcp": BASE_L4, "udp": BASE_L4}
VLANS = {"push": VLAN_PUSH, "pop": VLAN_POP, "modify": VLAN_MODIFY}
MOST_DEVICES = 0x8000         # two hooks each, whose numbers have 16 bits

cdef enum:
    LINE = 64                   # bytes of a cache line


cdef void *room_for(list arrays, size_t n, size_t size) except NULL:
    """Zeroed memory for n structs, at the beginning of a cache line. arrays: keeps it."""
    array = np.zeros(n * size + LINE, dtype=np.uint8)
    arrays.append(array)
    cdef size_t base = array.ctypes.data
    return <void *>((base + LINE - 1) & ~<size_t>(LINE - 1))


# --- actions ----------------------------------------------------------------------------------------------------------------------------


cdef int lower_munge(Munge *m, object munge) except -1:
    field = HEADER_FIELDS[munge.header, munge.field]
    if munge.op == "add" and field.size != 1:
        raise ValueError(f"pedit: {munge.header} {munge.field} add: expected a field of one byte")
    mask = munge.mask & (1 << field.bits) - 1
    value = munge.value & (0xFF if munge.op == "add" else mask)
    m.base, m.offset, m.size, m.add = BASES[munge.header], field.offset, field.size, munge.op == "add"
    m.proto = TRANSPORTS.get(munge.header, 0)
    put_bytes(m.value, (value << field.shift).to_bytes(field.size, "big"))
    put_bytes(m.mask, (mask << field.shift).to_bytes(field.size, "big"))
    return 0


cdef void put_bytes(uint8_t *where, bytes value):
    """Safe: no field has more than 16 bytes."""
    memcpy(where, <const char *>value, len(value))


cdef TagChange tag_change(object action) except *:
    cdef TagChange change
    change.kind = VLANS[action.kind]
    change.protocol = action.protocol or ETH_VLAN
    change.tag = (action.priority or 0) << 13 | (action.id or 0)
    change.kept = (0xFFFF if action.id is None else 0xF000) & (0xFFFF if action.priority is None else 0x1FFF)
    return change


cdef int lower_bucket(Bucket *b, object action) except -1:
    full_bytes = (action.burst or 0) * 8 * SECOND // action.rate if action.rate else 0
    full_packets = (action.packet_burst or 0) * SECOND // action.packet_rate if action.packet_rate else 0
    b.rate = action.rate or 0
    b.packet_cost = SECOND // action.packet_rate if action.packet_rate else 0
    b.bytes_full, b.packets_full = min(full_bytes, FOREVER), min(full_packets, FOREVER)
    b.mtu = (1 << 64) - 1 if action.longest is None else action.longest
    return 0


cdef int lower_ask(Ask *ask, object action, object ranges, object config) except -1:
    """ranges: the places of config.nat's rules."""
    cdef CtRequest *r = &ask.request
    name, ask.helper_family, ask.helper_proto = action.helper or (None, 0, 0)
    nat = range_of(action.nat, ranges)
    checked_action(CtAction(action.zone, action.commit, action.force, action.clear, nat, action.mark, action.label, name), config)
    r.zone = action.zone
    r.flags = CT_COMMIT * bool(action.commit) | CT_FORCE * bool(action.force) | CT_CLEAR * bool(action.clear)
    if nat is not None:
        r.flags |= CT_NAT
        r.rule = nat + 1                # of BARE_NAT 0
    if action.mark is not None:
        r.flags |= CT_MARK
        r.mark, r.mark_mask = action.mark
    if action.label is not None:
        r.flags |= CT_LABEL
        value, mask = action.label
        r.label[0], r.label[1] = value & (1 << 64) - 1, value >> 64
        r.label_mask[0], r.label_mask[1] = mask & (1 << 64) - 1, mask >> 64
    r.helper = HELPER_IDS[name] if name is not None else 0
    return 0


# --- the whole --------------------------------------------------------------------------------------------------------------------------


def devices_of(ruleset, more):
    """All names of devices, each once: those given, then those of qdiscs and rules as they come."""
    names = dict.fromkeys(more)
    names.update(dict.fromkeys([qdisc.device for qdisc in ruleset.qdiscs]))
    for rule in ruleset.rules:
        names[rule.hook.device] = None
        names.update(dict.fromkeys([match.device for match in rule.matches if match.name == "indev"]))
        names.update(dict.fromkeys([action.device for action in rule.actions if isinstance(action, Mirred)]))
    names.pop("", None)
    if len(names) > MOST_DEVICES:
        raise ValueError(f"rules: {len(names)} devices: expected at most {MOST_DEVICES}")
    return ("", *names)


def grouped(rules):
    """By hook and chain: the numbers of its rules and these in the order in which they are tried (order.Placed)."""
    found = {}
    for number, rule in enumerate(rules):
        found.setdefault((rule.hook, rule.chain), []).append(number)
    return {where: (numbers, in_order([rules[i] for i in numbers])) for where, numbers in found.items()}


cdef class Program:
    """See program.pyi."""

    def __init__(self, ruleset, devices=(), config=None, *, seed=0, Program beside=None):
        self.ruleset = ruleset
        self.config = settings_of(ruleset, Config() if config is None else config)
        self.ranges = ranges_of(self.config)
        self.arrays, self.named = [], {}
        self.devices = devices_of(ruleset, devices)
        self.numbers = {name: i for i, name in enumerate(self.devices)}
        groups = grouped(ruleset.rules)
        self.chains = {where: i for i, where in enumerate(groups)}
        self.tracks = any([isinstance(action, Ct) for rule in ruleset.rules for action in rule.actions])
        self._seat(groups)
        if beside is not None:
            self._share_policers(beside)
        self._hang()
        self.counts = np.zeros(len(ruleset.rules), dtype=COUNT_DTYPE)
        self.counts["last"] = -1
        self.code.count = <Count *><size_t>self.counts.ctypes.data
        entries = [[
            (place, *pair) for place, placed in enumerate(order) if not placed.rule.skip_sw for pair in laid(placed.rule, self.numbers.__getitem__)
        ] for _, order in groups.values()]
        self.classifier = Classifier(entries, seed)
        self.code.table = (<Classifier>self.classifier).table

    def _seat(self, groups):
        """Chains, their seats, and the actions of the rules in them."""
        cdef uint32_t seats = 0, ops = 0
        cdef Seat *seat
        rules = self.ruleset.rules
        actions = [action for rule in rules for action in rule.actions]
        self.code.start = <uint32_t *>room_for(self.arrays, len(groups) + 1, sizeof(uint32_t))
        self.code.seat = <Seat *>room_for(self.arrays, len(rules), sizeof(Seat))
        self.code.op = <Op *>room_for(self.arrays, len(actions), sizeof(Op))
        self.code.munge = <Munge *>room_for(self.arrays, sum([len(action.munges) for action in actions if isinstance(action, Pedit)]), sizeof(Munge))
        self.code.bucket = <Bucket *>room_for(self.arrays, sum([isinstance(action, Police) for action in actions]), sizeof(Bucket))
        self.code.ask = <Ask *>room_for(self.arrays, len({action for action in actions if isinstance(action, Ct)}), sizeof(Ask))
        self.n_munges = self.n_buckets = 0
        self.asks = {}
        for chain, ((hook, _), (numbers, order)) in enumerate(groups.items()):
            self.code.start[chain] = seats
            for placed in order:
                seat = &self.code.seat[seats]
                seat.rule, seat.behind, seat.first, seat.n = numbers[placed.at], placed.behind, ops, len(placed.rule.actions)
                seats += 1
                for action in placed.rule.actions:
                    self.lower(&self.code.op[ops], action, hook)
                    ops += 1
        self.code.start[len(groups)] = seats

    def _share_policers(self, Program beside):
        """Of workers with the same rules one has the tokens that all of them spend: a limit is one, however connections are spread."""
        cdef uint32_t i
        if beside.ruleset != self.ruleset:
            raise ValueError("beside: expected a program of the same rules")
        self.beside, self.code.bucket = beside, beside.code.bucket
        for i in range(self.n_buckets):
            self.code.bucket[i].shared = True

    def _hang(self):
        """Each hook's chain 0."""
        cdef uint32_t i
        bound = bindings(self.ruleset.qdiscs)
        self.code.n_hooks = 2 * len(self.devices)
        self.code.first = <uint32_t *>room_for(self.arrays, self.code.n_hooks, sizeof(uint32_t))
        for i in range(self.code.n_hooks):
            hook = Hook(self.devices[i >> 1], "egress" if i & 1 else "ingress")
            self.code.first[i] = self.chains.get((bound.get(hook, hook), 0), <uint32_t>NO_CHAIN)

    cdef int lower(self, Op *op, object action, object hook) except -1:
        """An action of a rule at a hook."""
        cdef Told *told = &op.told
        op.kind = OPS[type(action)]
        op.then = self.control(action.control, hook)
        if op.kind == OP_MIRRED:
            told.send.hook = self.hook(Hook(action.device, action.direction))
            told.send.redirect = action.kind == "redirect"
        elif op.kind == OP_PEDIT:
            told.munges.first, told.munges.n = self.n_munges, len(action.munges)
            for munge in action.munges:
                lower_munge(&self.code.munge[self.n_munges], munge)
                self.n_munges += 1
        elif op.kind == OP_CSUM:
            told.sums = sum([1 << CSUM_ORDER.index(name) for name in action.of])
        elif op.kind == OP_SKBEDIT:
            value, mask = action.mark or (0, 0)
            told.marks.mark, told.marks.kept = value & mask, ~mask & 0xFFFFFFFF
            told.marks.sets_priority, told.marks.priority = action.priority is not None, action.priority or 0
        elif op.kind == OP_VLAN:
            told.tag = tag_change(action)
        elif op.kind == OP_POLICE:
            told.policed.bucket, told.policed.exceed = self.n_buckets, self.control(action.exceed, hook)
            lower_bucket(&self.code.bucket[self.n_buckets], action)
            self.n_buckets += 1
        elif op.kind == OP_CT:
            if action not in self.asks:
                lower_ask(&self.code.ask[len(self.asks)], action, self.ranges, self.config)
                self.asks[action] = len(self.asks)
            told.ask = self.asks[action]
        return 0

    cdef Control control(self, object control, object hook) except *:
        """What follows an action of a rule at a hook."""
        cdef Control found
        found.chain = NO_CHAIN
        if control.kind in ("goto", "reclassify"):
            found.kind = CONTROL_GOTO
            found.chain = self.chains.get((hook, control.chain or 0), <uint32_t>NO_CHAIN)
        else:
            found.kind = KINDS[control.kind]
        return found

    def device(self, name):
        return self.numbers[name]

    def hook(self, hook):
        if hook.block is not None or hook.direction not in ("ingress", "egress"):
            raise ValueError(f"hook {hook}: expected ingress or egress of a device")
        if hook.device not in self.numbers:
            raise ValueError(f"device {hook.device}: expected one of {', '.join(self.devices[1:])}")
        return 2 * self.numbers[hook.device] + (hook.direction == "egress")

    def resumes(self, hooks, chains, rules, actions):
        """See program.pyi."""
        found = np.zeros(len(rules), dtype=RESUME_DTYPE)
        found["chain"] = [self._chain(hook, chain) for hook, chain in zip(hooks.tolist(), chains.tolist(), strict=True)]
        named = rules != <uint32_t>NO_RULE
        found["place"][named], found["action"][named] = self._places()[rules[named]], actions[named]
        found["conn"], found["on"] = -1, 1
        return found

    def _chain(self, number, chain):
        """A hook's chain by tc's number, as Rules.start has it."""
        if (number, chain) not in self.named:
            hook = Hook(self.devices[number >> 1], "egress" if number & 1 else "ingress")
            self.named[number, chain] = self.chains.get((bindings(self.ruleset.qdiscs).get(hook, hook), chain), <uint32_t>NO_CHAIN)
        return self.named[number, chain]

    def _places(self):
        """By rule: its place in its chain."""
        cdef uint32_t chain, seat
        if self.places is None:
            self.places = np.zeros(len(self.ruleset.rules), dtype=np.uint32)
            for chain in range(len(self.chains)):
                for seat in range(self.code.start[chain], self.code.start[chain + 1]):
                    self.places[self.code.seat[seat].rule] = seat - self.code.start[chain]
        return self.places

    @property
    def zones(self):
        """See program.pyi."""
        return frozenset(action.zone for action in self.asks if not action.clear)

    def counters(self):
        return self.counts.copy()
