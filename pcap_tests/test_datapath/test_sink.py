"""Captures written are captures read: the same bytes, lengths, times and interfaces, whatever the format, compression and batch size."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore.errors import OutputError
from datapath.capture import PcapSource
from datapath.frame import FRAME_DTYPE, frames_of
from datapath.sink import PcapSink
from pcap_tests.conftest import examples

ENDINGS = [f".{kind}{packed}" for kind in ("pcap", "pcapng") for packed in ("", ".gz", ".xz", ".zst")]
FOLDER = settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def packets_of(path, n=1000):
    """(bytes, len, ts, link, iface) of each packet."""
    rows = []
    with PcapSource(path) as source:
        while True:
            memory, frames = source.read(n)
            if not len(frames):
                return rows
            rows += [row_of(memory, f) for f in frames]


def row_of(memory, f):
    return (memory[int(f["offset"]) : int(f["offset"]) + int(f["caplen"])].tobytes(), int(f["len"]), int(f["ts"]), int(f["link"]), int(f["iface"]))


def comments_of(path):
    """The comment of each enhanced packet block, read independently of the code under test."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        kind, length = struct.unpack_from("=2I", data, at)
        if kind == 6:
            options = at + 28 + (struct.unpack_from("=I", data, at + 20)[0] + 3) // 4 * 4
            code, size = struct.unpack_from("=2H", data, options) if options < at + length - 4 else (0, 0)
            found.append(data[options + 4 : options + 4 + size].decode() if code == 1 else None)
        assert struct.unpack_from("=I", data, at + length - 4)[0] == length
        at += length
    return found


PACKETS = st.lists(
    st.tuples(st.binary(max_size=100), st.integers(0, 2000), st.integers(0, 2**32 * 10**9 - 1)),
    max_size=30,
)


@FOLDER
@given(packets=PACKETS, ending=st.sampled_from(ENDINGS), cuts=st.integers(1, 7), n=st.integers(1, 40))
def test_what_is_written_is_read(tmp_path, packets, ending, cuts, n):
    path = tmp_path / f"trip{ending}"
    memory, frames = frames_of([data for data, _, _ in packets], ts=[ts for _, _, ts in packets])
    frames["len"] += np.array([more for _, more, _ in packets], dtype=np.uint32)
    with PcapSink(path) as sink:
        for part in np.array_split(frames, cuts):
            sink.write(memory, part)
        assert sink.packets == len(packets) and sink.clamped == 0
    assert packets_of(path, n) == [(data, len(data) + more, ts, 1, 0) for data, more, ts in packets]


@FOLDER
@given(rows=st.lists(st.tuples(st.sampled_from([1, 113, 276]), st.integers(0, 3)), min_size=1, max_size=30))
def test_each_link_and_iface_becomes_an_interface(tmp_path, rows):
    path = tmp_path / "several.pcapng"
    memory, frames = frames_of([bytes([i]) * 20 for i in range(len(rows))])
    frames["link"], frames["iface"] = [link for link, _ in rows], [iface for _, iface in rows]
    with PcapSink(path) as sink:
        for i in range(len(rows)):
            sink.write(memory, frames[i : i + 1])
    order = list(dict.fromkeys(rows))
    assert [(data[0], link, iface) for data, _, _, link, iface in packets_of(path)] == [(i, row[0], order.index(row)) for i, row in enumerate(rows)]


def test_interfaces_keep_their_names(tmp_path):
    memory, frames = frames_of([b"a" * 60, b"b" * 60, b"c" * 60])
    frames["iface"] = [4, 2, 4]
    with PcapSink(tmp_path / "two.pcapng", ifaces={2: "eth0", 4: "eth0_0"}) as sink:
        sink.write(memory, frames)
    with PcapSource(tmp_path / "two.pcapng") as source:
        _, read = source.read(10)
        assert [source.ifaces[i] for i in read["iface"]] == ["eth0_0", "eth0", "eth0_0"]


def test_an_interface_without_a_name_has_none(tmp_path):
    for ending in ("pcap", "pcapng"):
        with PcapSink(tmp_path / f"one.{ending}") as sink:
            sink.write(*frames_of([b"a" * 60]))
        with PcapSource(tmp_path / f"one.{ending}") as source:
            source.read(10)
            assert source.ifaces == [""]


@FOLDER
@given(comments=st.lists(st.none() | st.text(max_size=50), max_size=12))
def test_comments_stand_at_their_packets(tmp_path, comments):
    path = tmp_path / "comments.pcapng"
    memory, frames = frames_of([bytes(i) for i in range(len(comments))])
    with PcapSink(path) as sink:
        sink.write(memory, frames, comments)
    assert comments_of(path) == [c.encode("utf-8", "replace").decode() if c else None for c in comments]
    assert [len(data) for data, *_ in packets_of(path)] == list(range(len(comments)))


def test_a_comment_is_cut_between_characters(tmp_path):
    path = tmp_path / "long.pcapng"
    with PcapSink(path) as sink:
        sink.write(*frames_of([b"x"]), ["€" * 30000])
    assert comments_of(path) == ["€" * 21845]


def test_more_than_a_buffer_and_a_frame_larger_than_one(tmp_path):
    path = tmp_path / "large.pcap"
    data = [os.urandom(700) for _ in range(3000)] + [os.urandom(3 << 20)] + [b"after"]
    with PcapSink(path, snaplen=1 << 24) as sink:
        sink.write(*frames_of(data))
    assert [row[0] for row in packets_of(path)] == data


def test_snaplen_cuts_the_bytes_and_keeps_the_length(tmp_path):
    for ending in (".pcap", ".pcapng"):
        with PcapSink(tmp_path / f"cut{ending}", snaplen=64) as sink:
            sink.write(*frames_of([bytes(range(100)), b"short"]))
        assert [(len(data), length) for data, length, *_ in packets_of(tmp_path / f"cut{ending}")] == [(64, 100), (5, 5)]


@pytest.mark.parametrize(("ending", "last"), [(".pcap", 2**32 * 10**9 - 1), (".pcapng", 2**63 - 1)])
def test_times_a_format_cannot_hold_are_clamped_and_counted(tmp_path, ending, last):
    path = tmp_path / f"times{ending}"
    with PcapSink(path) as sink:
        sink.write(*frames_of([b"a", b"b", b"c", b"d"], ts=[-1, -(2**63), 7, 2**63 - 1]))
        assert sink.clamped == (3 if ending == ".pcap" else 2)
    assert [ts for _, _, ts, *_ in packets_of(path)] == [0, 0, 7, last]


def test_the_same_frames_give_the_same_bytes(tmp_path):
    for ending in ENDINGS:
        for name in "ab":
            with PcapSink(tmp_path / f"{name}{ending}") as sink:
                sink.write(*frames_of([b"packet"] * 9, ts=range(9)))
        assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_capture_without_packets_is_one(tmp_path, ending):
    with PcapSink(tmp_path / f"none{ending}", link=113):
        pass
    with PcapSource(tmp_path / f"none{ending}") as source:
        assert len(source.read(5)[1]) == 0 and source.link == 113


def test_a_pcap_has_one_link_type(tmp_path):
    path = tmp_path / "one.pcap"
    memory, frames = frames_of([b"first", b"second"])
    frames["link"][1] = 113
    with PcapSink(path) as sink:
        with pytest.raises(OutputError, match=r"packet 2 has link type 113 \(Linux cooked\), the file link type 1 \(Ethernet\)"):
            sink.write(memory, frames)
        sink.write(memory, frames[:1])
    assert [data for data, *_ in packets_of(path)] == [b"first"]


def test_frames_outside_their_memory_are_refused_before_anything_is_written(tmp_path):
    memory, frames = frames_of([b"abcd", b"efgh"])
    for offset, caplen in ((5, 4), (8, 1), (2**64 - 1, 4), (0, 9)):
        frames["offset"][1], frames["caplen"][1] = offset, caplen
        with PcapSink(tmp_path / "out.pcap") as sink, pytest.raises(ValueError, match="frame 1"):
            sink.write(memory, frames)
        assert packets_of(tmp_path / "out.pcap") == []


def test_mistakes_of_the_caller(tmp_path):
    memory, frames = frames_of([b"abcd"])
    with PcapSink(tmp_path / "a.pcap") as sink:
        with pytest.raises(ValueError, match="2 comments for 1 frames"):
            sink.write(memory, frames, [None, None])
        with pytest.raises(ValueError, match="no place for comments"):
            sink.write(memory, frames, ["why"])
        sink.write(memory, frames, [None])
    with pytest.raises(ValueError, match="closed"):
        sink.write(memory, frames)
    sink.close()
    with pytest.raises(ValueError, match="snaplen = 0"):
        PcapSink(tmp_path / "a.pcap", snaplen=0)
    with pytest.raises(ValueError, match="expected pcap or pcapng"):
        PcapSink(tmp_path / "a.pcap", format="erf")


def test_the_ending_names_the_format(tmp_path):
    with pytest.raises(OutputError, match=r"out\.txt: expected a name ending in \.pcap or \.pcapng"):
        PcapSink(tmp_path / "out.txt")
    with PcapSink(tmp_path / "out.txt", format="pcapng") as sink:
        assert sink.format == "pcapng"
    with PcapSource(tmp_path / "out.txt") as source:
        assert source.format == "pcapng"


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(OutputError, match="cannot be written: No such file or directory"):
        PcapSink(tmp_path / "no" / "such.pcap")
    with pytest.raises(OutputError, match="cannot be written"):
        PcapSink("nul\0.pcap")
    if os.path.exists("/dev/full"):
        sink = PcapSink("/dev/full", format="pcap")
        sink.write(*frames_of([b"x"]))
        with pytest.raises(OutputError, match="/dev/full: cannot be written: No space left on device"):
            sink.close()


def test_standard_output_gets_pcapng(capfdbinary, tmp_path):
    with PcapSink("-") as sink:
        sink.write(*frames_of([b"to the pipe"]))
    (tmp_path / "out").write_bytes(capfdbinary.readouterr().out)
    assert [data for data, *_ in packets_of(tmp_path / "out")] == [b"to the pipe"]


def test_empty_writes_change_nothing(tmp_path):
    with PcapSink(tmp_path / "e.pcapng") as sink:
        sink.write(np.empty(0, np.uint8), np.empty(0, FRAME_DTYPE))
        assert sink.packets == 0
    assert packets_of(tmp_path / "e.pcapng") == []


# --- one thread at a time --------------------------------------------------------------------------------------------------------------


class Meddler(str):
    """A comment that calls something while it is being written, as another thread would."""

    meddle = staticmethod(lambda: None)

    def encode(self, *_):
        self.meddle()
        return b"comment"


def test_who_writes_is_left_alone(tmp_path):
    memory, frames = frames_of([b"abcd"])
    refused = []
    with PcapSink(tmp_path / "out.pcapng") as sink:

        def meddle():
            for call in (lambda: sink.write(memory, frames), sink.close):
                with pytest.raises(RuntimeError, match="another thread is writing: expected one at a time") as error:
                    call()
                refused.append(error)

        comment = Meddler("x")
        comment.meddle = meddle
        sink.write(memory, frames, comments=[comment])
        sink.write(memory, frames)
        with pytest.raises(RuntimeError, match="was opened already"):
            sink.__init__(tmp_path / "other.pcapng")
    assert len(refused) == 2
    assert [data for data, *_ in packets_of(tmp_path / "out.pcapng")] == [b"abcd"] * 2
    assert comments_of(tmp_path / "out.pcapng") == ["comment", None]


def test_a_write_that_was_refused_leaves_the_sink_free(tmp_path):
    memory, frames = frames_of([b"abcd"])
    with PcapSink(tmp_path / "out.pcap") as sink:
        with pytest.raises(ValueError, match="1 comments for 2 frames"):
            sink.write(memory, np.tile(frames, 2), comments=["x"])
        sink.write(memory, frames)


def test_a_sink_that_was_never_opened():
    sink = PcapSink.__new__(PcapSink)
    with pytest.raises(ValueError, match="never was opened"):
        sink.write(*frames_of([b"abcd"]))
    sink.close()
