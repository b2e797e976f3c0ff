"""The engine from outside: class Tracker, one connection table with its settings and its memory.

Invariants (check): the table holds exactly the flows that `live` of their entries names; each live entry is in one slot of the wheel, and counted.
Not here: what becomes of a packet (track, act: no Python there), what is asked of many connections (admin_api.pxi), `ct` actions (act_api.pxi).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

import ipaddress
from collections import namedtuple
from dataclasses import replace

import numpy as np

from ctcore.act cimport MOST_CARRIED
from ctcore.batch cimport Batch
from ctcore.changes cimport put_label, put_mark, say_changes
from ctcore.config import TICKS_LIMIT, Config, whole
from ctcore.edits cimport edits_free, edits_reset
from ctcore.engine cimport Counters, Engine, set_deadline, ticks_left
from ctcore.errors import ConfigError
from ctcore.events cimport buffer_take, copy_out
from ctcore.evictions cimport evictions_take
from ctcore.expectations cimport (
    FOLLOW_MASTER, FOLLOW_NONE, FOLLOW_PPTP, FOLLOW_SIP, Expectation, expect_add, expect_fault, expect_init,
)
from ctcore.extensions cimport Extension, extensions_fault
from ctcore.filter import ALL_LABELS, ALL_MARKS
from ctcore.hashing cimport hash_of, hash_seed
from ctcore.helpers.registry cimport fill_helpers
from ctcore.lifetime cimport advance_clock, deadline_time, kill
from ctcore.nat_chain cimport nat_fault, nat_link
from ctcore.nat_rules import NatPool
from ctcore.nat_table cimport Nat, NatLink, NatRule
from ctcore.pool cimport map_memory, pool_fault, unmap_memory
from ctcore.settings cimport fill_nat_rule, fill_settings
from ctcore.state_values import aligned, rule_names
from ctcore.state_adopt cimport state_adopt
from ctcore.state_restore cimport state_restore, state_take_share
from ctcore.state_save cimport state_save
from ctcore.strays cimport StrayTable
from ctcore.table cimport Bucket, key_of, table_fault, table_find
from ctcore.timers cimport wheel_fault, wheel_init
from ctcore.track cimport find_rows, hash_rows, track_rows
from ctcore.types cimport *
from ctcore.types import CONN_DTYPE, DECISION_DTYPE, EDIT_DTYPE, REWRITE_DTYPE
from ctcore.zones cimport ZoneRow, zone_id, zone_try, zones_fault, zones_fill

include "act_api.pxi"
include "admin_api.pxi"
include "expect_api.pxi"

cdef size_t whole_pages(size_t size):
    return (size + 4095) & ~<size_t>4095


def whole_rewrites(rewrites, int n):
    """The array a caller gives for a batch of n. Raises ValueError if it is not one that can be written to."""
    if rewrites.dtype != REWRITE_DTYPE or rewrites.shape != (n,) or not rewrites.flags.carray:
        raise ValueError(f"rewrites: expected a writable REWRITE_DTYPE[{n}], found {rewrites.dtype.name}{list(rewrites.shape)}")
    return rewrites


cdef class Tracker:
    """One connection table with its settings. See tracker.pyi for what each method takes and gives."""

    def __cinit__(self, config=None):
        config = Config() if config is None else config
        if not isinstance(config, Config):
            raise ConfigError(f"config = {config!r}: expected a Config")
        self.config = config
        self.identity = object()
        cdef Engine *ct = &self.ct
        memset(ct, 0, sizeof(Engine))
        fill_settings(&ct.set, config)
        hash_seed(&ct.hash_key, config.seed)
        ct.pool.capacity = config.capacity + MOST_CARRIED + 1       # and the one of the packet at hand
        ct.pool.free = NO_CONN
        ct.next_id = ct.set.share_index
        ct.table.n_buckets = max(8, -(-2 * config.capacity // 7))
        ct.buffer.size = config.event_buffer if config.events else 0
        ct.expect.size = config.expect_max
        ct.evictions.size = config.eviction_buffer
        ct.expect.n_heads = 1 << max(4, (config.expect_max // 4).bit_length())
        cdef size_t table_size = (ct.table.n_buckets * sizeof(Bucket) + sizeof(Entry) - 1) // sizeof(Entry) * sizeof(Entry)
        self.conns_size = whole_pages(table_size + ct.pool.capacity * sizeof(Entry))
        self.buffer_size = whole_pages(max(1, ct.buffer.size) * sizeof(ct.buffer.event[0]))
        self.zones_size = whole_pages(N_ZONES * sizeof(ZoneRow))
        self.evictions_size = whole_pages(ct.evictions.size * sizeof(Eviction))
        self.expect_size = whole_pages(ct.expect.size * sizeof(Expectation) + ct.expect.n_heads * sizeof(uint32_t))
        if config.nat or config.nat_actions:
            self.start_nat(config.nat)
        ct.table.bucket = <Bucket *>map_memory(self.conns_size)
        ct.buffer.event = <Event *>map_memory(self.buffer_size)
        ct.expect.row = <Expectation *>map_memory(self.expect_size)
        ct.zones.row = <ZoneRow *>map_memory(self.zones_size)
        ct.evictions.row = <Eviction *>map_memory(self.evictions_size)
        if not (ct.table.bucket and ct.buffer.event and ct.expect.row and ct.zones.row and ct.evictions.row):
            raise MemoryError(f"no memory for {config.capacity} connections")
        # One behind the other: small tables pay for no page twice. The slab comes last, since the end of it is touched by those only who carry much;
        # it begins at a multiple of an entry's size, so that none lies on two pages.
        ct.pool.entry = <Entry *>(<char *>ct.table.bucket + table_size)
        ct.expect.head = <uint32_t *>(ct.expect.row + ct.expect.size)
        expect_init(&ct.expect)
        ct.expect.secret = ct.ext.secret = ct.hash_key.word[1] ^ ct.hash_key.word[4]
        self.prepare_helpers(config)
        zones_fill(&ct.zones, config)
        wheel_init(&ct.wheel, ct.pool.entry, config.hz)

    cdef int start_nat(self, object rules) except -1:
        """Links and chains in one mapping, rules in another one."""
        cdef Nat *nat = &self.ct.nat
        nat.n_heads = 4 << (self.config.capacity - 1).bit_length()      # few strangers in a chain
        self.nat_size = whole_pages(nat.n_heads * sizeof(uint32_t) + self.ct.pool.capacity * sizeof(NatLink))
        if nat.link == NULL:                                            # or else there was no memory for rules, the last time
            nat.link = <NatLink *>map_memory(self.nat_size)
        if nat.link == NULL:
            raise MemoryError(f"no memory to translate {self.config.capacity} connections")
        nat.head = <uint32_t *>(nat.link + self.ct.pool.capacity)
        memset(nat.head, 0xFF, nat.n_heads * sizeof(uint32_t))
        nat.secret = [self.ct.hash_key.word[0], self.ct.hash_key.word[1], self.ct.hash_key.word[2] | 1]
        nat.random = self.config.seed ^ <uint64_t>0x4E41542D73656564
        nat.prefer = [-1, -1]
        nat.prefer_announced = -1
        self.put_rules(rules)

    cdef int put_rules(self, object rules) except -1:
        """Those that are there first, with what their pools count, and more behind them. From then on the tracker translates."""
        cdef Nat *nat = &self.ct.nat
        cdef uint32_t i, n = len(rules)
        cdef size_t size = whole_pages(max(n, <uint32_t>1) * sizeof(NatRule))
        cdef NatRule *room = <NatRule *>map_memory(size)
        if room == NULL:
            raise MemoryError(f"no memory for {n} rules that translate")
        if nat.n_rules:
            memcpy(room, nat.rule, nat.n_rules * sizeof(NatRule))
        for i in range(nat.n_rules, n):
            fill_nat_rule(&room[i], rules[i])
        unmap_memory(nat.rule, self.rules_size)
        nat.rule, nat.n_rules, self.rules_size = room, n, size

    def widen(self, config):
        """See tracker.pyi."""
        cdef uint32_t conn
        self.idle()
        had = self.config
        if config.nat[:len(had.nat)] != had.nat:
            raise ConfigError("nat: expected the rules that the tracker has, and more behind them: others have been added meanwhile")
        wanted = replace(
            had, nat=config.nat, nat_actions=had.nat_actions or config.nat_actions, helper_actions=had.helper_actions or config.helper_actions,
        )
        if self.ct.ext.row == NULL:
            self.prepare_helpers(wanted)
        if self.ct.nat.rule != NULL:
            if len(wanted.nat) > len(had.nat):
                self.put_rules(wanted.nat)
        elif wanted.nat or wanted.nat_actions:
            self.start_nat(wanted.nat)
            for conn in range(self.ct.pool.used):
                if self.ct.pool.entry[conn].live:
                    nat_link(&self.ct, conn)
        self.config = wanted

    def __dealloc__(self):
        unmap_memory(self.ct.nat.rule, self.rules_size)
        unmap_memory(self.ct.nat.link, self.nat_size)
        unmap_memory(self.ct.table.bucket, self.conns_size)
        unmap_memory(self.ct.buffer.event, self.buffer_size)
        unmap_memory(self.ct.expect.row, self.expect_size)
        unmap_memory(self.ct.ext.row, self.help_size)
        edits_free(&self.ct.edits)
        unmap_memory(self.ct.zones.row, self.zones_size)
        unmap_memory(self.ct.evictions.row, self.evictions_size)

    cdef int prepare_helpers(self, object config) except -1:
        """Map the extensions and, behind them, who is helped by port, and room for a payload; without helpers there is nothing."""
        cdef Engine *ct = &self.ct
        cdef size_t rows
        if not config.helpers and not config.helper_actions:
            return 0
        ct.ext.most = config.helper_max
        ct.ext.size = config.helper_max + MOST_CARRIED + 1
        ct.ext.n_tunnels = 1 << (config.helper_max - 1).bit_length()
        rows = whole_pages((<size_t>ct.ext.size + 1) * sizeof(Extension) + ct.ext.n_tunnels * sizeof(uint32_t))
        self.help_size = rows + 3 * 65536
        ct.ext.row = <Extension *>map_memory(self.help_size)
        if ct.ext.row == NULL:
            raise MemoryError(f"no memory for {config.helper_max} connections with helpers")
        ct.ext.tunnel = <uint32_t *>(ct.ext.row + ct.ext.size + 1)
        ct.expect.extension = ct.ext.row
        ct.helper_of[0] = <uint8_t *>ct.ext.row + rows
        ct.helper_of[1] = ct.helper_of[0] + 65536
        ct.scratch = ct.helper_of[1] + 65536
        fill_helpers(ct, config.helpers)

    cdef int enter(self) except -1:
        """Take the tracker for work without the GIL, or RuntimeError: packets of one table come one after the other."""
        if self.busy:
            raise RuntimeError("tracker: another thread is at work with it: expected one at a time")
        self.busy = True

    cdef int idle(self) except -1:
        """What looks at or changes the table holds the GIL all the while; nobody without it may be at work then."""
        if self.busy:
            raise RuntimeError("tracker: another thread is at work with it: expected one at a time")

    def advance(self, Batch batch not None, rewrites=None):
        cdef Rewrite *changed = NULL
        if rewrites is not None:
            changed = <Rewrite *><size_t>whole_rewrites(rewrites, batch.size).ctypes.data
        cdef object decisions = np.empty(batch.size, dtype=DECISION_DTYPE)
        cdef Decision *out = <Decision *><size_t>decisions.ctypes.data
        cdef int start = 0, n
        batch.consume()
        self.enter()
        edits_reset(&self.ct.edits)
        with nogil:
            while start < batch.size:
                n = min(batch.size - start, <int>BATCH)
                hash_rows(&self.ct, batch.row + start, n)
                find_rows(&self.ct, batch.row + start, n)
                track_rows(&self.ct, batch.row + start, n, out + start, NULL if changed == NULL else changed + start)
                start += n
        self.busy = False
        return decisions

    def act(self, Batch batch not None, action, before=NO_ASSOCIATION):
        return act_one(self, batch, action, before)

    def leave(self, association):
        let_go(self, association)

    def edits(self):
        self.idle()
        cdef object taken = np.empty(self.ct.edits.used, dtype=EDIT_DTYPE)
        if self.ct.edits.used:
            memcpy(<void *><size_t>taken.ctypes.data, self.ct.edits.row, self.ct.edits.used * sizeof(Edit))
        return taken

    @property
    def now(self):
        return self.ct.now

    @property
    def count(self):
        return self.ct.live

    @property
    def slots(self):
        return self.ct.pool.used

    @property
    def events_waiting(self):
        return self.ct.buffer.length

    @property
    def events_lost(self):
        return self.ct.buffer.lost

    def expire(self, now):
        cdef int64_t time = whole("now:", now, -(1 << 63), (1 << 63) - 1, " ns")
        self.idle()
        advance_clock(&self.ct, time)

    def conns(self):
        return self.select(Filter())

    def select(self, filter, *, slots=None):
        cdef Sieve sieve
        cdef uint32_t first, past
        self.idle()
        fill_sieve(&self.ct, &sieve, filter)
        bounds_of(slots, &first, &past)
        cdef object rows = np.empty(for_each(&self.ct, &sieve, first, past, count_it, NULL), dtype=CONN_DTYPE)
        cdef Entry *out = <Entry *><size_t>rows.ctypes.data
        for_each(&self.ct, &sieve, first, past, copy_it, &out)
        # As opaque rows: NumPy would leave the gaps between fields to chance.
        return rows.view(f"V{sizeof(Entry)}")[np.argsort(rows["flow"]["id"][:, 0], kind="stable")].view(CONN_DTYPE)

    def census(self, *, slots=None):
        cdef uint32_t first, past
        self.idle()
        bounds_of(slots, &first, &past)
        past = min(past, self.ct.pool.used)
        rows = np.empty(max(<int64_t>past - first, 0), dtype=np.uint32)
        return rows[: census_of(&self.ct, first, past, <uint32_t *><size_t>rows.ctypes.data)]

    def events(self):
        self.idle()
        return buffer_take(&self.ct.buffer)

    def forget_events(self):
        cdef uint32_t waiting = self.ct.buffer.length
        self.idle()
        self.ct.buffer.length = 0
        return waiting

    def evictions(self):
        self.idle()
        return evictions_take(&self.ct.evictions)

    @property
    def evictions_lost(self):
        return self.ct.evictions.lost

    def zone_counts(self):
        self.idle()
        return counts_of(&self.ct.zones)

    def flush(self, filter=None):
        return self.delete(Filter() if filter is None else filter)

    def delete(self, filter, *, slots=None):
        cdef Sieve sieve
        cdef uint32_t first, past
        self.idle()
        fill_sieve(&self.ct, &sieve, filter)
        bounds_of(slots, &first, &past)
        return for_each(&self.ct, &sieve, first, past, kill_it, NULL)

    def update(self, filter, *, slots=None, mark=None, mark_mask=ALL_MARKS, label=None, label_mask=ALL_LABELS, timeout=None, status=0):
        cdef Sieve sieve
        cdef Amendment change
        cdef uint32_t first, past
        self.idle()
        fill_sieve(&self.ct, &sieve, filter)
        bounds_of(slots, &first, &past)
        fill_change(&self.ct, &change, self.config, {
            "mark": mark, "mark_mask": mark_mask, "label": label, "label_mask": label_mask, "timeout": timeout, "status": status,
        })
        return for_each(&self.ct, &sieve, first, past, change_it, &change)

    cdef uint32_t slot_of(self, object ordinal) except? 0xFFFFFFFF:
        """The slot of a live connection, or ConfigError."""
        cdef uint32_t conn
        cdef int64_t wanted = whole("connection", ordinal, 0, (1 << 63) - 1)
        self.idle()
        for conn in range(self.ct.pool.used):
            if self.ct.pool.entry[conn].live and self.ct.pool.entry[conn].flow[0].id == wanted:
                return conn
        raise ConfigError(f"connection {ordinal}: expected the ordinal of a live connection")

    cdef object snapshot(self, uint32_t conn):
        cdef object rows = np.empty(1, dtype=CONN_DTYPE)
        copy_out(<Entry *><size_t>rows.ctypes.data, &self.ct.pool.entry[conn], ticks_left(&self.ct, &self.ct.pool.entry[conn]))
        return rows

    def conn(self, ordinal):
        return self.snapshot(self.slot_of(ordinal))

    def offsets(self, ordinal):
        cdef const Entry *entry = &self.ct.pool.entry[self.slot_of(ordinal)]
        cdef const Extension *ext
        if not entry.cold & COLD_EXTENSION:
            return (0, 0, 0), (0, 0, 0)
        ext = &self.ct.ext.row[entry.extension & EXTENSION_ROW]
        return tuple([(ext.adjust[d].position, ext.adjust[d].before, ext.adjust[d].after) for d in range(2)])

    def find(self, const uint8_t[::1] key not None):
        cdef Key wanted
        cdef uint32_t flow
        self.idle()
        if key.shape[0] != sizeof(Key):
            raise ConfigError(f"key: expected {sizeof(Key)} bytes of a KEY_DTYPE, found {key.shape[0]}")
        memcpy(&wanted, &key[0], sizeof(Key))
        flow = table_find(&self.ct.table, self.ct.pool.entry, hash_of(&self.ct.hash_key, &wanted), &wanted)
        if self.ct.zones.split:
            flow = zone_try(&self.ct.zones, &self.ct.table, self.ct.pool.entry, &self.ct.hash_key, &wanted, ORIG)
            if flow == NO_FLOW:
                flow = zone_try(&self.ct.zones, &self.ct.table, self.ct.pool.entry, &self.ct.hash_key, &wanted, REPLY)
        return None if flow == NO_FLOW else self.snapshot(flow >> 1)

    def set_mark(self, ordinal, mark, mask=ALL_MARKS):
        cdef Entry *entry = &self.ct.pool.entry[self.slot_of(ordinal)]
        cdef uint32_t value = whole("mark", mark, 0, ALL_MARKS), bits = whole("mask", mask, 0, ALL_MARKS)
        self.ct.changes = 0
        put_mark(&self.ct, entry, value, bits)
        say_changes(&self.ct, entry)

    def set_label(self, ordinal, label, mask=ALL_LABELS):
        cdef Entry *entry = &self.ct.pool.entry[self.slot_of(ordinal)]
        cdef uint64_t value[2]
        cdef uint64_t bits[2]
        split_label(value, whole("label", label, 0, ALL_LABELS))
        split_label(bits, whole("mask", mask, 0, ALL_LABELS))
        self.ct.changes = 0
        put_label(&self.ct, entry, value, bits)
        say_changes(&self.ct, entry)

    def expect(self, master, str src, str dst, proto, dport, *, sport=0, zone=0, double timeout=300.0, bint permanent=False):
        cdef uint32_t conn = self.slot_of(master)
        cdef Expectation draft
        fill_expectation(&draft, src, dst, proto, dport, sport, zone)
        if not 0 <= timeout * self.config.hz <= LONGEST_EXPECTATION:
            raise ConfigError(f"expectation: timeout = {timeout}: expected 0 to {LONGEST_EXPECTATION // self.config.hz} seconds")
        draft.master = master
        draft.master_conn = conn
        draft.permanent = permanent
        draft.deadline = self.ct.tick + <uint64_t>(timeout * self.config.hz)
        if expect_add(&self.ct.expect, &draft, self.ct.tick) == NO_CONN:
            raise ConfigError(f"expectation: expected at most {self.ct.expect.size} (expect_max)")
        self.ct.pool.entry[conn].cold |= COLD_MASTER

    def expectations(self):
        cdef uint32_t row
        self.idle()
        return sorted([expectation_row(&self.ct, &self.ct.expect.row[row], self.config.hz) for row in range(self.ct.expect.used) if self.ct.expect.row[row].live])

    @property
    def expectation_slots(self):
        return self.ct.expect.used

    def expected(self, *, slots):
        cdef uint32_t first, past, row
        self.idle()
        bounds_of(slots, &first, &past)
        live = [row for row in range(first, min(past, self.ct.expect.used)) if self.ct.expect.row[row].live]
        masters = np.empty(len(live), dtype=CONN_DTYPE)
        cdef Entry *out = <Entry *><size_t>masters.ctypes.data
        for row in live:
            copy_it(&self.ct, self.ct.expect.row[row].master_conn, &out)
        return [expectation_row(&self.ct, &self.ct.expect.row[row], self.config.hz) for row in live], masters

    def prefer(self, port=None, destination=None, announced=None):
        self.idle()
        told = {"port": port, "destination": destination, "announced": announced}
        ports = [-1 if value is None else whole(name, value, 0, 65535) for name, value in told.items()]
        self.ct.nat.prefer[MANIP_SRC], self.ct.nat.prefer[MANIP_DST], self.ct.nat.prefer_announced = ports

    def nat_pools(self):
        self.idle()
        pools = []
        for i, rule in enumerate(self.config.nat):
            pools.append(NatPool(i, rule.kind, rule.text, rule.size, self.ct.nat.rule[i].in_use, self.ct.nat.rule[i].high_water,
                                 self.ct.nat.rule[i].exhausted))
        return pools

    def save(self):
        self.idle()
        return state_save(&self.ct, rule_names(self.config))

    def restore(self, state, now=None):
        self.idle()
        time = None if now is None else whole("now:", now, 0, (1 << 63) - 1, " ns")
        state_restore(&self.ct, aligned(state), rule_names(self.config), time)

    def tell_strays(self, StrayTable strays not None):
        self.idle()
        if self.ct.live or self.ct.expect.count or self.ct.set.share_index:
            raise ConfigError("strays: expected an empty tracker, the first one of those that share the work")
        self.strays = strays
        self.ct.strays = self.ct.expect.strays = strays.all

    def take_share(self, state, now=None):
        self.idle()
        time = None if now is None else whole("now:", now, 0, (1 << 63) - 1, " ns")
        return state_take_share(&self.ct, aligned(state), rule_names(self.config), time)

    def adopt(self, conns):
        self.idle()
        if conns.dtype != CONN_DTYPE or conns.ndim != 1 or not conns.flags.c_contiguous:
            raise ValueError(f"conns: expected a CONN_DTYPE[n] in one piece, found {conns.dtype.name}{list(conns.shape)}")
        return state_adopt(&self.ct, conns)

    def counters(self):
        cdef Counters *c = &self.ct.count
        return {
            "found": c.found, "new": c.new, "invalid": c.invalid, "early_drop": c.early_drop, "drop": c.drop,
            "insert_failed": c.insert_failed, "expired": c.expired, "events_lost": self.ct.buffer.lost,
            "zone_limit": self.ct.zones.refused, "evictions_lost": self.ct.evictions.lost,
            "expect_new": self.ct.expect.matched, "expect_create": self.ct.expect.created, "expect_delete": self.ct.expect.deleted,
            "helper_unassigned": self.ct.ext.refused,
            "nat_exhausted": self.ct.nat.exhausted,
        }

    def check(self):
        cdef uint32_t conn, flow, live = 0
        cdef Entry *entry
        self.idle()
        fault = (table_fault(&self.ct.table, self.ct.pool.entry) or wheel_fault(&self.ct.wheel, self.ct.pool.used)
                 or pool_fault(&self.ct.pool) or expect_fault(&self.ct.expect) or extensions_fault(&self.ct.ext)
                 or nat_fault(&self.ct)
                 or zones_fault(&self.ct.zones, self.ct.pool.entry, self.ct.pool.used))
        for conn in range(self.ct.pool.used):
            entry = &self.ct.pool.entry[conn]
            live += entry.live != 0
            for flow in range(2 * conn, 2 * conn + 2):
                if not entry.live >> (flow & 1) & 1:
                    continue
                if table_find(&self.ct.table, self.ct.pool.entry, entry.hash[flow & 1], key_of(self.ct.pool.entry, flow)) != flow:
                    fault = fault or f"flow {flow} is not found under its own key"
        if live != self.ct.live:
            fault = fault or f"{live} connections live, {self.ct.live} are counted"
        if fault:
            raise AssertionError(fault)
