"""The file in which connections are kept over a restart: whole or refused, its owner's alone, and taken up once."""

from __future__ import annotations

import logging
import os
import struct
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import OutputError, StateError
from ctcore.tracker import Tracker
from datapath import craft
from datapath.frame import frames_of
from datapath.live import state_file, succession
from datapath.live.state_file import HEAD, Saved, read_state, restore_node, write_state
from datapath.live.succession import Taking
from datapath.wire import parse_batch

SECOND = 10**9


def tracked(now: int | None = None, n: int = 3) -> Tracker:
    tracker = Tracker(Config(max=100))
    times = np.full(n, time.time_ns() if now is None else now, dtype=np.int64)
    tracker.advance(parse_batch(*frames_of([craft.udp("10.0.0.1", "10.0.0.2", 1000 + i, 53) for i in range(n)], ts=times)))
    return tracker


def node_of(tracker: Tracker, path: Path | None = None, max_age: int = 300) -> SimpleNamespace:
    """As much of a node as is asked for a state."""
    state = SimpleNamespace(file=None if path is None else str(path), max_age=max_age)
    worker = SimpleNamespace(pipeline=SimpleNamespace(tracker=tracker, flows=None))
    config = SimpleNamespace(state=state)
    return SimpleNamespace(workers=[worker], trackers=[tracker], pipeline=worker.pipeline, count=tracker.count, config=config, take_out=lambda: True)


def empty() -> Tracker:
    return Tracker(Config(max=100))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "node.state"


def test_what_is_written_is_read(path):
    saved = Saved(17, [memoryview(b"x" * 16), memoryview(b""), memoryview(b"y" * 8)])
    assert write_state(str(path), saved) == path.stat().st_size
    back = read_state(str(path))
    assert (back.when, [bytes(part) for part in back.parts]) == (17, [b"x" * 16, b"", b"y" * 8])
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(path.parent) == [path.name], "nothing is left beside it"


def test_an_older_file_is_replaced_whatever_its_mode(path):
    path.write_bytes(b"old")
    path.chmod(0o666)
    write_state(str(path), Saved(1, []))
    assert path.stat().st_mode & 0o777 == 0o600 and read_state(str(path)) == Saved(1, [])


def test_a_file_that_cannot_be_written_leaves_the_old_one(path, monkeypatch):
    write_state(str(path), Saved(1, []))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError) as error:
        write_state(str(path), Saved(2, [memoryview(b"x" * 100)]))
    assert str(error.value) == f"{path}: cannot be written: No space left on device"
    assert read_state(str(path)).when == 1 and os.listdir(path.parent) == [path.name]


def test_no_such_folder(tmp_path):
    with pytest.raises(OutputError, match="No such file or directory"):
        write_state(str(tmp_path / "none" / "state"), Saved(1, []))


def sealed(path: Path) -> bytes:
    write_state(str(path), Saved(5, [tracked().save()]))
    return path.read_bytes()


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda data: b"", "0 bytes that do not begin as a saved state does"),
        (lambda data: b"something else" * 10, "do not begin"),
        (lambda data: data[:16] + struct.pack("<I", 9) + data[20:], "version 9: expected 1"),
        (lambda data: data[:-1], "expected"),
        (lambda data: data + b"x", "expected"),
        (lambda data: data[:30] + bytes([data[30] ^ 1]) + data[31:], "damaged"),
        (lambda data: data[:40] + b"\xff" * 8 + data[48:], "damaged"),
        (lambda data: data[:20] + b"\xff\xff\xff\xff" + data[24:], "parts at most"),
    ],
)
def test_what_is_refused(path, change, said):
    path.write_bytes(change(sealed(path)))
    with pytest.raises(StateError) as error:
        read_state(str(path))
    assert str(error.value).startswith(f"{path}: ") and said in str(error.value) and "\n" not in str(error.value)


def test_files_that_others_can_write_to_links_and_devices(path, tmp_path):
    sealed(path)
    path.chmod(0o622)
    with pytest.raises(StateError, match="others can write to it"):
        read_state(str(path))
    path.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(StateError, match="symbolic links"):
        read_state(str(link))
    os.mkfifo(tmp_path / "fifo")
    for other in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(StateError, match="regular file"):
            read_state(str(other))
    assert read_state(str(tmp_path / "none")) is None


@given(st.binary(max_size=200), st.integers(0, 3), st.integers(0, 1 << 64))
def test_whatever_stands_behind_a_sound_header(tail, parts, size):
    """The header is sealed; sizes of parts are anything."""
    text = HEAD.pack(state_file.MAGIC, 1, parts, 0, 0) + tail[: parts * 8].ljust(parts * 8, b"\1")
    text = text[:32] + struct.pack("<Q", min(size, len(text) + 16 + len(tail))) + text[40:]
    data = text + struct.pack("<IxxxxQ", zlib.crc32(text), 0) + tail
    try:
        saved = state_file._parsed(memoryview(data))
    except StateError as error:
        assert "\n" not in str(error)
    else:
        assert sum(len(part) for part in saved.parts) == len(tail)


# --- a node -----------------------------------------------------------------------------------------------------------------------------


def test_the_time_in_between_counts(path):
    before = time.time_ns() - 20 * SECOND
    write_state(str(path), Saved(before, [tracked(before).save()]))
    node = node_of(empty())
    found = restore_node(node, str(path), 300)
    assert (found.conns, found.expired) == (3, 0) and 20 <= found.age < 30
    assert (node.pipeline.tracker.conns()["timeout"] <= 10 * 250).all(), "30 s, less 20"
    assert not path.exists(), "taken up once"


def test_what_expired_meanwhile_is_gone(path):
    before = time.time_ns() - 40 * SECOND
    write_state(str(path), Saved(before, [tracked(before).save()]))
    assert restore_node(node_of(empty()), str(path), 300)[:2] == (0, 3)


def test_a_clock_that_was_set_back_has_not_gone_on(path):
    later = time.time_ns() + 3600 * SECOND
    write_state(str(path), Saved(later, [tracked(later).save()]))
    node = node_of(empty())
    assert restore_node(node, str(path), 300) == (3, 0, 0, 0)
    left = node.pipeline.tracker.conns()["timeout"]
    assert (left > 29 * 250).all() and node.pipeline.tracker.now < later


def test_a_state_that_is_too_old_stays_where_it_is(path):
    write_state(str(path), Saved(time.time_ns() - 301 * SECOND, [tracked().save()]))
    with pytest.raises(StateError, match=r"301 s old: expected 300 s at most \(max_age\)"):
        restore_node(node_of(empty()), str(path), 300)
    assert path.exists()


def test_a_state_of_several_workers(path):
    """Others may be as many or not: each connection comes to who owns it."""
    whole = tracked(n=40)
    for count in (1, 2, 3):
        parts = [Tracker(Config(max=100, share=(i, count))) for i in range(count)]
        write_state(str(path), Saved(time.time_ns(), [whole.save()]))
        node = SimpleNamespace(trackers=parts)
        assert restore_node(node, str(path), 300)[:2] == (40, 0)
        assert [part.count for part in parts] == [len(part.conns()) for part in parts] and (count == 1 or min(part.count for part in parts) > 5)
        write_state(str(path), Saved(time.time_ns(), [part.save() for part in parts]))
        back = empty()
        assert restore_node(node_of(back), str(path), 300)[:2] == (40, 0)
        assert sorted(back.conns()["flow"]["id"][:, 0]) == list(range(40))


def test_what_is_wrong_with_one_part_leaves_nothing_of_the_others(path):
    parts = [Tracker(Config(max=100, share=(i, 2))) for i in range(2)]
    write_state(str(path), Saved(time.time_ns(), [tracked().save(), memoryview(b"x" * 8)]))
    with pytest.raises(StateError, match="8 bytes"):
        restore_node(SimpleNamespace(trackers=parts), str(path), 300)
    assert [part.count for part in parts] == [0, 0] and path.exists()


# --- succession -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def said(caplog, monkeypatch):
    monkeypatch.setattr(succession.LOG, "propagate", True)
    caplog.set_level(logging.INFO, logger="ctmirror")
    return lambda: [record.getMessage() for record in caplog.records]


def test_one_node_follows_another(path, said):
    first = node_of(tracked(), path)
    succession.end(first, Taking())
    second = node_of(empty(), path)
    succession.begin(second, Taking(restore=True))
    assert second.pipeline.tracker.count == 3
    assert said() == ["connections saved", "saved connections taken up"]


def test_only_who_asks_for_it_takes_it_up(path, said):
    succession.end(node_of(tracked(), path), Taking())
    second = node_of(empty(), path)
    succession.begin(second, Taking())
    assert second.pipeline.tracker.count == 0 and path.exists()
    succession.end(node_of(tracked()), Taking())
    assert said() == ["connections saved"], "a node without a file saves nothing"


def test_a_damaged_file_is_no_reason_not_to_start(path, said):
    succession.end(node_of(tracked(), path), Taking())
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    node = node_of(empty(), path)
    succession.begin(node, Taking(restore=True))
    assert node.pipeline.tracker.count == 0
    assert said()[-1].startswith(f"starting without the saved connections: {path}: state: damaged: checksum")


def test_a_missing_file_neither(path, said):
    succession.begin(node_of(empty(), path), Taking(restore=True))
    assert said() == [f"starting without connections: {path}: no such file"]


def test_a_full_disk_is_said(tmp_path, said):
    succession.end(node_of(tracked(), tmp_path / "none" / "state"), Taking())
    assert said()[0].startswith("connections are not saved: ")


def test_saving_while_a_node_works(path):
    """From another thread; the job is the snapshot alone."""
    from concurrent.futures import Future

    node = node_of(tracked())
    jobs = []

    def ask(job):
        jobs.append(job)
        future: Future = Future()
        future.set_result(job(node))
        return future

    node.ask = ask
    assert state_file.save_node(node, str(path)) == path.stat().st_size
    assert jobs == [state_file.snapshot] and len(read_state(str(path)).parts) == 1
