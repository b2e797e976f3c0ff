"""The mirror and its twin on asks and replies that nobody would send: contradictory, late, of rows that are others by now, of nothing at all.

Invariant: whatever comes in, in whatever order, both give the same commands and answers, and count the same; and the mirror's own invariants hold.
Not here: what is sensible (test_mirror_machine).
"""

from __future__ import annotations

import errno
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcore.flow_changes import ASK_DTYPE, Asked, FlowFlag
from offload.mirror_settings import MirrorSettings
from offload.records import COMMAND_DTYPE, REPLY_DTYPE, Op
from pcap_tests.conftest import examples
from pcap_tests.test_offload.mirror_both import Both

ROWS, MS = 130, 1_000_000  # more than two words of 64 rows, which is how the mirror looks for who has to go
NUMBERS = [0, 1, 2, 3, 63, 64, 65, 127, 128, 129]
ERRORS = [0] * 12 + [errno.ENOSPC, errno.ENOMEM, errno.EEXIST, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL, 40_000]
STEPS = 400
SETTINGS = st.builds(
    MirrorSettings,
    policy=st.sampled_from(["first-come", "by-rate", "by-bytes"]),
    look=st.sampled_from([1, 64]),
    reply_limit=st.just(2.0),
    tries=st.sampled_from([1, 3]),
    backoff=st.just(0.5),
    backoff_most=st.just(4.0),
    probe=st.sampled_from([0, 0.1]),
    window=st.sampled_from([2, 65_536]),
)


class Table:
    """Both, and what was asked of hardware."""

    def __init__(self, given: MirrorSettings) -> None:
        self.both, self.now = Both(ROWS, given), 5 * MS
        self.asked = np.zeros(0, dtype=COMMAND_DTYPE)

    def ask(self, row: int, serial: int, what: int, flags: int, size: int, proto: int, translated: bool) -> None:
        ask = np.zeros(1, dtype=ASK_DTYPE)
        ask["row"], ask["serial"], ask["ask"], ask["conn"], ask["bytes"], ask["mark"] = row, serial << 30, what, 7 * row + serial, size, size & 0xFF
        ask["flags"] = flags & (FlowFlag.FLOW_BIDIRECTIONAL | FlowFlag.FLOW_ASSURED | FlowFlag.FLOW_SEEN_REPLY)
        key = ask["key"][0]
        key["proto"], key["family"], key["sport"], key["dport"] = proto, 4, [1000 + row, 80], [80, 1000 + row]
        key["src"][:, 0], key["dst"][:, 0] = [10, 20], [20, 30 if translated else 10]
        self.both.feed(ask, self.now)

    def take(self, n: int) -> None:
        taken = self.both.commands(64)[:n]
        self.asked = np.concatenate([self.asked, taken])
        self.both.sent(len(taken), self.now)

    def reply(self, place: int, error: int, how: str, shared: bool) -> None:
        reply = np.zeros(1, dtype=REPLY_DTYPE)
        if len(self.asked):
            place %= len(self.asked)
            reply["cookie"], reply["op"] = self.asked["cookie"][place], self.asked["op"][place]
            if how == "as it is":
                self.asked = np.delete(self.asked, place)
        reply["error"], reply["shared"], reply["used"] = error, shared, self.now
        reply["packets"], reply["bytes"] = (3, 4500) if int(reply["op"][0]) == Op.STATS else (0, 0)
        if how == "other row":
            reply["cookie"] ^= 2
        elif how == "other op":
            reply["op"] = reply["op"] % 3 + 1
        self.both.replies(reply, self.now)

    def wait(self, ms: int) -> None:
        self.now += ms * MS
        self.both.advance(self.now)

    def reset(self) -> None:
        """Hardware may answer what was asked before all the same: that is no reply to anything."""
        self.both.reset(self.now)


def step(table: Table, random: Random) -> None:
    """The next one: mostly of the row's own life, and what was asked last; now and then of another one, of a row that is none, for nothing."""
    kind = random.random()
    if kind < 0.45:
        what = random.choice([Asked.INSTALL] * 5 + [Asked.COUNTERS] * 3 + [Asked.REMOVE]) if random.random() < 0.98 else random.choice([0, 9])
        row = random.choice(NUMBERS) if random.random() < 0.99 else ROWS
        serial, size = int(random.random() < 0.03), random.choice([0, 100, 5000, 10**6, 10**9])
        table.ask(row, serial, what, random.randrange(8), size, random.choice([6, 6, 6, 17, 47]), random.random() < 0.3)
    elif kind < 0.68:
        table.take(random.randrange(7))
    elif kind < 0.93:
        how = random.choice(["as it is"] * 20 + ["again", "other row", "other op"])
        table.reply(random.randrange(6), random.choice(ERRORS), how, random.random() < 0.2)
    elif kind < 0.996:
        table.wait(random.choice([0, 1, 99, 500, 1000, 1000, 3000]))
    else:
        table.reset()


@settings(max_examples=examples(50))
@given(given_settings=SETTINGS, seed=st.integers(0, 2**64 - 1))
def test_mirror_and_twin_say_the_same_whatever_comes(given_settings: MirrorSettings, seed: int) -> None:
    table, random = Table(given_settings), Random(seed)
    for _ in range(STEPS):
        step(table, random)
        table.both.commands()
        table.both.answers()
        table.both.check()


@pytest.mark.parametrize("policy", ["by-rate", "by-bytes"])
def test_who_has_to_go_is_the_same_one_for_both(policy: str) -> None:
    """A hundred flows are in hardware; a large one finds it full, again and again."""
    table = Table(MirrorSettings(policy=policy, look=8, backoff=0.001, backoff_most=0.001, probe=0))
    for row in range(100):
        table.ask(row, 0, Asked.INSTALL, 0, 100 * (row * 37 % 100 + 1), 6, False)
        table.take(1)
        table.reply(0, 0, "as it is", False)
        table.ask(row, 0, Asked.COUNTERS, 0, 0, 6, False)
        table.take(1)
        table.reply(0, 0, "as it is", False)
    for newcomer in range(100, ROWS):
        for size in (100, 10**8):
            table.wait(10)
            table.ask(newcomer, 0, Asked.INSTALL, 0, size, 6, False)
            table.take(1)
            table.reply(0, errno.ENOSPC, "as it is", False)
            for _ in range(4):
                table.take(4)
                table.reply(0, 0, "as it is", False)
            table.both.answers()
            table.both.check()
    assert table.both.counters()["evictions"] == 30
