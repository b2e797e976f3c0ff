"""A backend whose packets have to be let by to it, with the bypass that lets them: a direction is in the one as long as it is in the other.

Theory of operation: a key is put in when the backend has answered that it has the direction, and is taken out before the backend removes it, be it
that it was asked to, that all begins anew, or at the end: so no packet is let by to where nobody forwards it, but comes to the host's own stack,
which may answer it with a reset. A direction that does not get into the bypass is taken out of the backend again, and refused. What others remove is
taken out as soon as it is heard of. The backend carries out at once what it is asked, so a key belongs to what was asked last.
Invariant (order): every key that is ours is one of a direction that the backend has answered to have, and has not removed since.
Not here: backends (exact_rules), what reads the bypass (datapath.live.xdp_bypass).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offload.backend import BYPASS_KEY, Bypass
from offload.exact_rules import COMMAND, ExactRules
from offload.records import COMMAND_DTYPE, Op
from offload.replying import Refusals, not_let_by

THERE = (0, errno.EEXIST)


class Bypassed:
    """See offload.backend, and ExactRules; of which this closes the one it was given."""

    def __init__(self, backend: ExactRules, bypass: Bypass) -> None:
        self.backend, self.bypass = backend, bypass
        self._keys: dict[int, bytes] = {}  # of what is let by, by cookie
        self._asked: dict[int, tuple[bytes, int]] = {}  # key and connection, by cookie
        self._undone: set[int] = set()  # cookies whose removal is our own affair
        self._refusals = Refusals()
        self._resets = backend.resets
        backend.emptying = self._take_out_all

    @property
    def resets(self) -> int:
        return self.backend.resets

    def submit(self, commands: NDArray[Any], now: int) -> int:
        rows = list(COMMAND.iter_unpack(commands.tobytes()))
        self._take_out([row[14] for row in rows if row[18] == Op.DESTROY])
        for row in rows:
            if row[18] == Op.REPLACE:
                self._asked[row[14]] = BYPASS_KEY.pack(row[0], row[1], row[2], row[3], row[5], row[6]), row[15]
            elif row[18] == Op.DESTROY:
                self._asked.pop(row[14], None)  # its answer may be on its way, but the direction will be gone
        taken = self.backend.submit(commands, now)
        for row in rows[taken:]:
            self._asked.pop(row[14], None)
        return taken

    def replies(self, now: int) -> NDArray[Any]:
        rows = self.backend.replies(now)
        if self.backend.resets != self._resets:
            self._resets = self.backend.resets
            self._undone.clear()
        if self._undone:
            ours = np.isin(rows["cookie"], list(self._undone)) & (rows["op"] == Op.DESTROY)
            self._undone -= set(rows["cookie"][ours].tolist())
            rows = rows[~ours]
        made = rows["op"] == Op.REPLACE
        if made.any():
            self._let_by(rows, np.flatnonzero(made), now)
        self._take_out(rows["cookie"][(rows["error"] == errno.ENOENT) | (rows["op"] == Op.GONE)].tolist())
        return rows

    def held(self) -> NDArray[Any]:
        return self.backend.held()

    def refusal(self, conn: int) -> str:
        return self._refusals.refusal(conn) or self.backend.refusal(conn)

    @property
    def left(self) -> int:
        return self.backend.left

    def empty(self, now: int) -> Iterator[None]:
        self._take_out_all()
        yield from self.backend.empty(now)

    def close(self) -> None:
        try:
            self._take_out_all()
        finally:
            self.backend.close()

    # ------------------------------------------------------------------------------------------------------------------------------------

    def _let_by(self, rows: NDArray[Any], made: NDArray[Any], now: int) -> None:
        """Answers that say that a direction is there, or why it is not; refused where it does not get into the bypass."""
        new: list[tuple[int, int, bytes, int]] = []  # place in rows, cookie, key, connection
        for at in made.tolist():
            cookie = int(rows["cookie"][at])
            asked = self._asked.pop(cookie, None)
            if asked is None:
                continue
            if rows["error"][at] not in THERE:
                self._refusals.accept(asked[1])  # what is in its way is the backend's to tell
            elif cookie not in self._keys:
                new.append((at, cookie, *asked))
        if not new:
            return
        undo = []
        for (at, cookie, key, conn), error in zip(new, self.bypass.put([each[2] for each in new]), strict=True):
            if not error:
                self._keys[cookie] = key
                self._refusals.accept(conn)
                continue
            answer = not_let_by(error)
            rows["error"][at] = answer.error
            self._refusals.remember(conn, answer)
            undo.append(cookie)
        self._undo(undo, now)

    def _take_out(self, cookies: list[int]) -> None:
        keys = [key for cookie in cookies if (key := self._keys.pop(cookie, None)) is not None]
        if keys:
            self.bypass.remove(keys)

    def _take_out_all(self) -> None:
        self._take_out(list(self._keys))
        self._asked.clear()

    def _undo(self, cookies: list[int], now: int) -> None:
        """Have the backend remove directions, whose answers are nobody else's."""
        if cookies:
            commands = np.zeros(len(cookies), dtype=COMMAND_DTYPE)
            commands["cookie"], commands["op"] = cookies, Op.DESTROY
            self._undone |= set(cookies)
            self.backend.submit(commands, now)
