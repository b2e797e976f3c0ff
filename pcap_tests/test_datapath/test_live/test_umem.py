"""Memory that ifaces share: chunks are at one place, whatever is done with them."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import datapath.live.umem
from ctcore.errors import ConfigError
from datapath.live.null import Null
from datapath.live.umem import Umem


def test_the_compiled_module_is_loaded():
    assert datapath.live.umem.__file__.endswith(".so")


def test_frames_lie_where_their_rows_say():
    umem = Umem(4)
    rows = umem.put([b"first", b"second"], headroom=100)
    assert [umem.memory[row["offset"] :][: row["len"]].tobytes() for row in rows] == [b"first", b"second"]
    assert (rows["offset"] % 2048).tolist() == [100, 100]
    assert umem.places() == {"free": 2, "held": 2}
    umem.give(rows["offset"])
    assert umem.places() == {"free": 4}
    umem.check()


def test_what_is_too_much_takes_nothing():
    umem = Umem(4)
    with pytest.raises(MemoryError, match="5 frames: 4 free chunks are left"):
        umem.put([b""] * 5)
    with pytest.raises(ValueError, match=r"frames\[1\]: 2049 bytes: expected at most 2048"):
        umem.put([b"", bytes(2049)])
    assert umem.free() == 4


def test_a_chunk_that_is_not_held_cannot_be_given():
    umem = Umem(4)
    offset = umem.put([b"x"])["offset"][0]
    umem.give([offset + 7])
    for wrong in (offset, umem.size, 1 << 63):
        with pytest.raises(ValueError, match="expected a chunk that is held"):
            umem.give([wrong])
    umem.check()


def test_workers_take_from_their_own():
    umem = Umem(2, workers=3)
    offsets = [umem.put([b"a", b"b"], worker=worker)["offset"].tolist() for worker in range(3)]
    assert sorted(offset for own in offsets for offset in own) == [2048 * i for i in range(6)]
    umem.give(offsets[0], worker=2)  # as after sending by another worker's iface
    assert [umem.free(worker) for worker in range(3)] == [0, 0, 2]
    umem.check()


def test_memory_outlives_its_umem():
    memory = Umem(16, chunk_size=4096).memory
    gc.collect()
    memory[:] = 7
    assert memory.sum(dtype=np.int64) == 7 * 16 * 4096


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"chunk_size": 1500}, "chunk_size = 1500: expected 2048 or 4096"),
        ({"workers": 0}, "workers = 0: expected 1 to 1024"),
        ({"chunks": 0}, "chunks = 0: expected 1 to"),
        ({"chunks": 1 << 25}, "expected 1 to 16777216"),
    ],
)
def test_settings_that_cannot_be(settings, text):
    with pytest.raises(ConfigError, match=text):
        Umem(**{"chunks": 4, **settings})


class Chunks(RuleBasedStateMachine):
    """Whatever is put, sent and given, by whichever worker: every chunk is at one place, and the counts are those of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.umem = Umem(5, workers=2)
        self.nulls = [Null(self.umem, worker=worker) for worker in range(2)]
        self.held: list[int] = []

    @rule(worker=st.integers(0, 1), n=st.integers(0, 7))
    def put(self, worker: int, n: int) -> None:
        if n > self.umem.free(worker):
            with pytest.raises(MemoryError):
                self.umem.put([b"x"] * n, worker=worker)
        else:
            self.held += self.umem.put([b"x"] * n, worker=worker)["offset"].tolist()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), worker=st.integers(0, 1), within=st.integers(0, 2047))
    def give(self, data, worker: int, within: int) -> None:
        self.umem.give([self.held.pop(data.draw(st.integers(0, len(self.held) - 1))) + within], worker=worker)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), worker=st.integers(0, 1))
    def send(self, data, worker: int) -> None:
        rows = np.zeros(1, dtype=datapath.live.umem.SEND_DTYPE)
        rows["offset"], rows["len"] = self.held.pop(data.draw(st.integers(0, len(self.held) - 1))), 1
        assert self.nulls[worker].send_batch(rows) == 1
        with pytest.raises(ValueError, match="expected a frame in a chunk that is held"):
            self.nulls[worker].send_batch(rows)

    @invariant()
    def one_place_each(self) -> None:
        self.umem.check()
        assert self.umem.places().get("held", 0) == len(self.held)


TestChunks = Chunks.TestCase
