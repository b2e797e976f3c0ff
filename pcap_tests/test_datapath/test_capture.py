"""Captures of every make are read alike; damaged ones give what lies before the damage, then one line, always the same."""

from __future__ import annotations

import csv
import struct
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore.errors import CaptureError
from datapath.capture import PcapSource
from pcap_tests.capture_files import SECOND, T, block, enhanced, interface, obsolete, opened, option, packets_of, pcap, read, section, simple
from pcap_tests.conftest import examples

HOSTILE = settings(max_examples=examples(200), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WINDOWS = pytest.mark.parametrize("window", [None, 1, 100], ids=["mapped", "window1", "window100"])


# --- pcap ------------------------------------------------------------------------------------------------------------------------------


@WINDOWS
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("magic", "unit"), [(0xA1B2C3D4, 1000), (0xA1B23C4D, 1)])
def test_pcap_in_both_orders_and_resolutions(tmp_path, window, order, magic, unit):
    data = pcap((T, 5, b"first"), (T + 1, 999_999, b""), (2**32 - 1, 7, b"third" * 30), order=order, magic=magic)
    with opened(tmp_path, data, window) as source:
        assert (source.format, source.link, source.snaplen, source.links) == ("pcap", 1, 65535, frozenset())
        rows, damage = packets_of(source)
        assert damage is None and source.links == {"Ethernet"} and source.position == source.size == len(data)
    times = [T * SECOND + 5 * unit, (T + 1) * SECOND + 999_999 * unit, (2**32 - 1) * SECOND + 7 * unit]
    assert rows == [(b"first", 5, times[0]), (b"", 0, times[1]), (b"third" * 30, 150, times[2])]


def test_a_snapped_packet_keeps_its_length_and_one_on_the_wire_is_never_shorter_than_what_was_captured(tmp_path):
    data = pcap((T, 0, b"snapped", 7, 1500), (T, 0, b"len is nothing", 14, 0), (T, 0, b"len is less", 11, 3))
    assert [row[:2] for row in read(tmp_path, data)[0]] == [(b"snapped", 1500), (b"len is nothing", 14), (b"len is less", 11)]


def test_old_versions_have_the_lengths_in_either_order(tmp_path):
    data = pcap((T, 0, b"swapped", 1500, 7), (T, 0, b"straight", 8, 1500), version=(2, 3))
    assert [row[:2] for row in read(tmp_path, data)[0]] == [(b"swapped", 1500), (b"straight", 1500)]


def test_a_frame_check_sequence_is_cut_off_where_it_was_captured(tmp_path):
    data = pcap((T, 0, b"wholeFCS!"), (T, 0, b"snapp", 5, 100), (T, 0, b"wh", 2, 5), (T, 0, b"abc"), link=1 | 1 << 26 | 2 << 28)
    assert [row[:2] for row in read(tmp_path, data)[0]] == [(b"whole", 5), (b"snapp", 96), (b"w", 1), (b"", 0)]
    assert read(tmp_path, pcap((T, 0, b"no flag, no FCS"), link=1 | 2 << 28))[0][0][:2] == (b"no flag, no FCS", 15)
    ng = section() + interface(fcs=4) + enhanced(b"bytesFCS!") + interface(fcs=32) + enhanced(b"bitsFCS!", iface=1)
    ng += interface(fcs=4, link=101) + enhanced(b"no Ethernet", iface=2)
    assert [row[:2] for row in read(tmp_path, ng)[0]] == [(b"bytes", 5), (b"bits", 4), (b"no Ethernet", 11)]


@pytest.mark.parametrize("link", [0, 1, 12, 14, 101, 108, 113, 228, 229, 276])
def test_supported_link_types(tmp_path, link):
    with opened(tmp_path, pcap((T, 0, b"frame"), link=link)) as source:
        assert source.read(1)[1]["link"].tolist() == [link] == [source.link] and len(source.links) == 1


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "test.pcap: empty: expected a pcap or pcapng header"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "test.pcap: not a capture: starts with 89 50 4e 47, expected a pcap or pcapng header"),
        (b"\xd4", "test.pcap: not a capture: starts with d4, expected a pcap or pcapng header"),
        (pcap()[:9], "test.pcap: truncated: a pcap file has a header of 24 bytes, 9 are there"),
        (pcap(magic=0xA1B2CD34), "test.pcap: is of the modified pcap format of 1990s Linux kernels, which is not supported"),
        (pcap(version=(1, 2)), "test.pcap: is of pcap version 1.2: expected 2.4"),
        (pcap(link=127), r"test.pcap: link type 127 \(802.11 \+ radiotap\) is not supported: expected Ethernet, Linux cooked"),
        (pcap(link=9), r"test.pcap: link type 9 \(PPP\) is not supported"),
        (pcap(link=60000), "test.pcap: link type 60000 is not supported: expected Ethernet"),
    ],
)
@WINDOWS
def test_what_is_no_capture_to_read_is_refused_at_opening(tmp_path, window, data, line):
    with pytest.raises(CaptureError, match=line):
        opened(tmp_path, data, window)


@WINDOWS
def test_damage_comes_after_the_packets_before_it(tmp_path, window):
    good = [(T, 0, b"x" * 100)] * 4
    for data, line in (
        (
            pcap(*good, (T, 0, b"y" * 212, 1514, 1514)),
            "truncated: record 5 at byte 488 says 1,514 bytes, 212 are left; the first 4 packets were read",
        ),
        (pcap(*good) + b"1234567", "truncated: record 5 at byte 488 has a header of 16 bytes, 7 are left; the first 4 packets were read"),
        (
            pcap(*good, (T, 0, b"", 3_000_000_000, 60), *good),
            "implausible: record 5 at byte 488 says 3,000,000,000 bytes, expected at most 262,144; the first 4 packets were read",
        ),
    ):
        assert read(tmp_path, data, window) == ([(b"x" * 100, 100, T * SECOND)] * 4, f"test.pcap: {line}")


def test_the_limit_of_a_record_is_the_snaplen_where_that_is_believable(tmp_path):
    large = (T, 0, bytes(300_000))
    assert read(tmp_path, pcap(large, snaplen=400_000))[1] is None
    assert "expected at most 262,144" in read(tmp_path, pcap(large, snaplen=100))[1]
    assert "expected at most 16,777,216" in read(tmp_path, pcap((T, 0, b"", 2**31, 2**31), snaplen=2**32 - 1), window=100)[1]


# --- pcapng ----------------------------------------------------------------------------------------------------------------------------


@WINDOWS
def test_sections_of_both_orders_with_interfaces_of_their_own(tmp_path, window):
    data = b""
    for order in "<>":
        data += section(order) + block(order, 0xBAD, b"unknown!" * 3) + interface(order) + interface(order, link=113)
        data += enhanced(b"cooked", 7, order, 1) + obsolete(b"old one", 8, order, 0, drops=3) + simple(b"simple", order=order)
        data += block(order, 5, bytes(12)) + enhanced(b"last", 9, order, 0, length=90, options=option(order, 1, b"comment") + bytes(4))
    with opened(tmp_path, data, window) as source:
        assert (source.format, source.link, source.links) == ("pcapng", 1, frozenset())
        rows, frames = [], []
        while len((got := source.read(100))[1]):
            memory, part = got
            rows += [memory[int(f["offset"]) :][: int(f["caplen"])].tobytes() for f in part]
            frames += part.tolist()
        assert source.links == {"Ethernet", "Linux cooked"} and source.position == len(data)
    assert rows == [b"cooked", b"old one", b"simple", b"last"] * 2
    assert [(f[2], f[3], f[4], f[5]) for f in frames[4:]] == [(6, 7000, 113, 3), (7, 8000, 1, 2), (6, 8000, 1, 2), (90, 9000, 1, 2)]
    assert [f[5] for f in frames[:4]] == [1, 0, 0, 0]


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    resolution=st.integers(0, 255), offset=st.integers(-(2**63), 2**63 - 1) | st.integers(-(2**33), 2**33), stamp=st.integers(0, 2**64 - 1),
    order=st.sampled_from("<>"),
)  # fmt: skip
def test_every_resolution_and_offset_gives_ns_or_the_nearest_there_is(tmp_path, resolution, offset, stamp, order):
    exponent = resolution & 127
    exact = (stamp * SECOND >> exponent) if resolution & 128 else stamp * SECOND // 10**exponent
    expected = min(max(exact + offset * SECOND, -(2**63)), 2**63 - 1)
    data = section(order) + interface(order, resolution=resolution, offset=offset) + enhanced(b"p", stamp, order)
    assert read(tmp_path, data) == ([(b"p", 1, expected)], None)


def test_times_are_microseconds_where_nothing_is_said_and_a_simple_block_has_that_of_the_packet_before(tmp_path):
    data = section() + interface() + simple(b"no time yet") + enhanced(b"t", T * 10**6 + 5) + simple(b"same")
    assert [row[2] for row in read(tmp_path, data)[0]] == [0, T * SECOND + 5000, T * SECOND + 5000]


def test_a_simple_block_is_cut_at_the_snaplen(tmp_path):
    data = section() + interface(snaplen=10) + simple(b"0123456789", length=1500) + interface(snaplen=0)
    assert [row[:2] for row in read(tmp_path, data)[0]] == [(b"0123456789", 1500)]


def test_an_unsupported_interface_matters_with_its_first_packet_only(tmp_path):
    data = section() + interface(link=127) + interface() + enhanced(b"fine", iface=1)
    assert read(tmp_path, data) == ([(b"fine", 4, 0)], None)
    rows, damage = read(tmp_path, data + enhanced(b"radio", iface=0))
    assert rows == [(b"fine", 4, 0)]
    assert damage.startswith("test.pcap: link type 127 (802.11 + radiotap) is not supported: expected Ethernet")
    assert damage.endswith("; the first packet was read")


START = section() + interface() + enhanced(b"good")
AT = len(START)


@pytest.mark.parametrize(
    ("bad", "line"),
    [
        (block("<", 6, bytes(24), length=38), f"damaged: block at byte {AT} says 38 bytes, expected a multiple of 4"),
        (block("<", 0xBAD, b"", length=8), f"damaged: block at byte {AT} says 8 bytes, expected at least 12"),
        (block("<", 6, bytes(8)), f"damaged: block at byte {AT} says 20 bytes, expected at least 32"),
        (block("<", 1, bytes(4)), f"damaged: block at byte {AT} says 16 bytes, expected at least 20"),
        (block("<", 0xBAD, bytes(8), trailer=24), f"damaged: block at byte {AT} says 20 bytes at its start and 24 at its end"),
        (block("<", 0xBAD, bytes(8), length=400), f"truncated: block at byte {AT} says 400 bytes, 20 are left"),
        (block("<", 0xBAD, b"", length=1 << 30), f"implausible: block at byte {AT} says 1,073,741,824 bytes, expected at most 16,777,216"),
        (b"12345", f"truncated: block at byte {AT} has a header of 12 bytes, 5 are left"),
        (enhanced(b"four", iface=1), f"damaged: packet block at byte {AT} is of interface 1, expected one below 1"),
        (enhanced(b"four", caplen=5), f"damaged: packet block at byte {AT} says 5 captured bytes, it has room for 4"),
        (enhanced(b"four", caplen=2**32 - 1), f"damaged: packet block at byte {AT} says 4,294,967,295 captured bytes, it has room for 4"),
        (simple(b"four", length=9), f"damaged: packet block at byte {AT} says 9 captured bytes, it has room for 4"),
        (section() + enhanced(b"four"), f"damaged: packet block at byte {AT + 28} comes before any interface"),
        (section(magic=0x11111111), f"damaged: section header at byte {AT} has byte order 0x11111111, expected 0x1a2b3c4d in either order"),
        (section(version=(2, 0)), f"section at byte {AT} is of pcapng version 2: expected 1"),
        (interface(extra=option("<", 9, b"12")), f"damaged: interface block at byte {AT}: option if_tsresol says 2 bytes, expected 1"),
        (
            block("<", 1, struct.pack("<2HI", 1, 0, 0) + struct.pack("<2H", 9, 40) + bytes(4)),
            f"damaged: interface block at byte {AT}: option 9 says 40 bytes, 4 are left",
        ),
    ],
)
@WINDOWS
def test_a_damaged_block_ends_the_capture_after_the_packets_before_it(tmp_path, window, bad, line):
    assert read(tmp_path, START + bad + enhanced(b"behind"), window if "truncated" not in line else None)[0] == [(b"good", 4, 0)]
    rows, damage = read(tmp_path, START + bad, window)
    assert rows == [(b"good", 4, 0)]
    assert damage == f"test.pcap: {line}; the first packet was read"


def test_interfaces_are_limited(tmp_path):
    rows, damage = read(tmp_path, START + interface() * 65535 + enhanced(b"last", iface=65535))
    assert len(rows) == 2 and damage is None
    assert "is one of more than 65,536" in read(tmp_path, START + interface() * 65536)[1]


# --- whatever happens to the bytes -----------------------------------------------------------------------------------------------------


@HOSTILE
@given(head=st.sampled_from([b"", pcap(), START, section()]), tail=st.binary(max_size=200))
def test_random_bytes_are_packets_or_one_line(tmp_path, head, tail):
    assert read(tmp_path, head + tail) == read(tmp_path, head + tail, window=7)


# --- captures of other projects ----------------------------------------------------------------------------------------------------------

# Read by hand: the packets column does not hold or is empty, or the link type is not supported.
EXCEPTIONS = {
    "brimcap__extra.pcapng": (27, "truncated: block at byte 12,400 has a header of 12 bytes, 1 are left"),
    "nDPI__fuzz-2021-10-13.pcap": (1, "truncated: record 2 at byte 237 has a header of 16 bytes, 2 are left"),
    "tcpdump__mpls-traceroute.pcap": (0, "link type 9 (PPP) is not supported"),
    "wireshark__owe.pcapng.gz": (0, "link type 127 (802.11 + radiotap) is not supported"),
}


def test_captures_of_other_projects_have_the_packets_others_count(captures_of_others):
    with open(captures_of_others / "PROVENANCE.tsv") as table:
        rows = list(csv.DictReader(table, delimiter="\t"))
    assert len(rows) > 50
    for row in rows:
        expected = EXCEPTIONS.get(row["file"]) or (int(row["packets"]), "")
        for window in (None, 1000):
            count, damage = counted(captures_of_others / row["file"], window)
            assert count == expected[0] and expected[1] in (damage or ""), row["file"]
            assert (damage is None) == (not expected[1]), row["file"]


def counted(path, window):
    """Packets and damage."""
    try:
        with PcapSource(path, window=window) as source:
            rows, damage = packets_of(source, 1000)
            return len(rows), damage
    except CaptureError as refusal:
        return 0, str(refusal)


# --- one thread at a time --------------------------------------------------------------------------------------------------------------


def test_a_source_that_was_never_opened():
    source = PcapSource.__new__(PcapSource)
    for call in (lambda: source.read(1), source.close):
        with pytest.raises(ValueError, match="source: was never opened: a subclass has to call"):
            call()


def test_a_source_is_opened_once(tmp_path):
    with opened(tmp_path, pcap((T, 0, b"abc"))) as source:
        with pytest.raises(RuntimeError, match="was opened already"):
            source.__init__(tmp_path / "file")
        assert len(source.read(10)[1]) == 1


def test_threads_that_read_are_kept_apart_and_lose_nothing(tmp_path):
    """Each packet goes to one of them; who comes while the other one scans is refused. The scan of a million records is longer than a look."""
    total, refused = 1_000_000, []
    for _ in range(20):
        with opened(tmp_path, pcap() + bytes(16 * total)) as source:
            counts = [0, 0]

            def drain(i, n, source=source, counts=counts):
                while True:
                    try:
                        got = len(source.read(n)[1])
                    except RuntimeError as error:
                        refused.append(str(error))
                        continue
                    counts[i] += got
                    if not got:
                        return

            threads = [threading.Thread(target=drain, args=job) for job in ((0, total), (1, 1))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(counts) == source.packets == total
        if refused:
            break
    assert set(refused) == {"test.pcap: another thread is reading: expected one at a time"}
