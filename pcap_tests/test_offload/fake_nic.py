"""A NIC of a few lines for tests of the mirror: it does at once what it is told, unless a script says otherwise. Not here: packets (simnic)."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.records import COMMAND_DTYPE, REPLY_DTYPE, Op

SECOND = 1_000_000_000
# What may become of a command.
ACCEPT, LOSE, LOSE_ANSWER = "accept", "lose", "lose the answer"


class FakeNic:
    """Implements offload.backend.Backend. fate(command): ACCEPT, LOSE, LOSE_ANSWER, or an errno; latency: ns; intake: commands a call; tells_last:
    with its end, what a rule has counted."""

    def __init__(self, capacity: int = 1 << 30, latency: int = 0):
        self.capacity, self.latency, self.intake, self.shared, self.tells_last = capacity, latency, 1 << 30, False, False
        self.news: list[Any] = []
        self.fate: Callable[[Any], Any] = lambda command: ACCEPT
        self.rules: dict[int, Any] = {}
        self.seen: dict[int, list[int]] = {}  # by cookie: packets, bytes, used, and packets and bytes that were told
        self.pending: deque[tuple[int, Any, Any]] = deque()
        self.log: list[tuple[str, int, int]] = []  # op, row, direction, as they are carried out
        self.accepted = self.destroyed = self.resets = 0

    def submit(self, commands: NDArray[Any], now: int) -> int:
        taken = commands[: self.intake]
        self.pending.extend((now + self.latency, command.copy(), self.fate(command)) for command in taken)
        return len(taken)

    def replies(self, now: int) -> NDArray[Any]:
        told, self.news = self.news, []
        while self.pending and self.pending[0][0] <= now:
            _, command, fate = self.pending.popleft()
            if fate == LOSE:
                continue
            reply = self.carry_out(command) if fate in (ACCEPT, LOSE_ANSWER) else self.reply(command, fate)
            if fate != LOSE_ANSWER:
                told.append(reply)
        return np.concatenate(told) if told else np.empty(0, dtype=REPLY_DTYPE)

    def take_away(self, cookie: int) -> None:
        """Somebody else does it, and hardware says so, with what it had counted."""
        news = self.counted(self.rules.pop(cookie), cookie)
        news["op"] = Op.GONE
        self.news.append(news)
        self.destroyed += 1

    def held(self) -> NDArray[Any]:
        rules = np.zeros(len(self.rules), dtype=COMMAND_DTYPE)
        for i, rule in enumerate(self.rules.values()):
            rules[i] = rule
        return rules

    def reply(self, command: Any, error: int = 0) -> NDArray[Any]:
        row = np.zeros(1, dtype=REPLY_DTYPE)
        row["cookie"], row["op"], row["error"] = command["cookie"], command["op"], error
        return row

    def carry_out(self, command: Any) -> NDArray[Any]:
        cookie, op = int(command["cookie"]), int(command["op"])
        self.log.append((Op(op).name, cookie >> 1 & 0xFFFFFFFF, cookie & 1))
        if op == Op.REPLACE:
            return self.replace(command, cookie)
        if cookie not in self.rules:
            return self.reply(command, errno.ENOENT)
        if op == Op.DESTROY:
            del self.rules[cookie]
            self.destroyed += 1
            return self.counted(command, cookie) if self.tells_last else self.reply(command)
        return self.counted(command, cookie)

    def counted(self, command: Any, cookie: int) -> NDArray[Any]:
        """What has come since it was told last."""
        row = self.reply(command)
        counted = self.seen.setdefault(cookie if not self.shared else cookie & ~1, [0, 0, 0, 0, 0])
        row["packets"], row["bytes"], row["used"], row["shared"] = counted[0] - counted[3], counted[1] - counted[4], counted[2], self.shared
        counted[3:] = counted[:2]
        return row

    def replace(self, command: Any, cookie: int) -> NDArray[Any]:
        """A4.36."""
        if cookie in self.rules:
            if self.rules[cookie]["ctinfo"] == command["ctinfo"]:
                return self.reply(command, errno.EEXIST)
            self.rules[cookie] = command
        elif len(self.rules) >= self.capacity:
            return self.reply(command, errno.ENOSPC)
        else:
            self.rules[cookie] = command
            self.seen.pop(cookie, None)
            self.accepted += 1
        return self.reply(command)

    def reset(self) -> None:
        self.rules.clear()
        self.seen.clear()
        self.pending.clear()
        self.news.clear()
        self.accepted = self.destroyed = 0
        self.resets += 1

    def hit(self, row: int, direction: int, packets: int, size: int, now: int) -> bool:
        """Packets of a flow come by. False: there is no rule for them."""
        cookie = next((each for each in self.rules if each >> 1 & 0xFFFFFFFF == row and each & 1 == direction), None)
        if cookie is None:
            return False
        counted = self.seen.setdefault(cookie if not self.shared else cookie & ~1, [0, 0, 0, 0, 0])
        counted[0] += packets
        counted[1] += packets * size
        counted[2] = max(counted[2], now)
        return True
