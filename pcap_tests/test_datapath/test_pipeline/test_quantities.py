"""Numbers, addresses, rates and sizes as tc writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.pipeline import quantities
from datapath.pipeline.findings import Expected


@pytest.mark.parametrize(
    ("text", "base", "value"),
    [("10", 10, 10), ("10", 16, 16), ("0x10", 16, 16), ("10", 0, 10), ("0x10", 0, 16), ("010", 0, 8), ("010", 10, 10), ("0", 0, 0)],
)
def test_numbers_in_their_base(text, base, value):
    assert quantities.number(text, base, 255, "a number") == value


@pytest.mark.parametrize(
    ("text", "base"), [("", 0), ("256", 0), ("-1", 0), ("+1", 0), ("1 ", 0), ("08", 0), ("0x", 0), ("0x10", 10), ("g", 16), ("١", 10), ("1_0", 0)]
)
def test_what_is_no_number(text, base):
    with pytest.raises(Expected, match="expected a number from"):
        quantities.number(text, base, 255, "a number")


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("8", 8), ("1bit", 0), ("9bit", 8), ("1kbit", 1000), ("1Kibit", 1024), ("1mbit", 10**6), ("1MiBit", 1 << 20), ("1gbit", 10**9),
        ("1tbit", 10**12), ("1bps", 8), ("1kbps", 8000), ("1kibps", 8192), ("2.5gbit", 2_500_000_000), ("0.001mbit", 1000),
    ],
)  # fmt: skip
def test_rates_are_bits_of_whole_bytes(text, bits):
    assert quantities.rate(text) == bits


@pytest.mark.parametrize(
    ("text", "value"),
    [("1500", 1500), ("1b", 1), ("1k", 1024), ("1KB", 1024), ("1m", 1 << 20), ("1gb", 1 << 30), ("8kbit", 1024), ("1.5k", 1536)],
)
def test_sizes_are_bytes(text, value):
    assert quantities.size(text) == value


@pytest.mark.parametrize("text", ["", "k", "1x", "-1k", "1e3", "1..2", "nan", "5g"])
def test_what_is_no_size(text):
    with pytest.raises(Expected, match="expected a size"):
        quantities.size(text)


@pytest.mark.parametrize(("text", "value"), [("1:a", 0x1000A), ("10", 16), (":5", 5), ("1:", 0x10000), ("root", 0xFFFFFFFF), ("none", 0)])
def test_classes(text, value):
    assert quantities.class_id(text) == value


def test_a_label_has_its_lowest_byte_first():
    assert quantities.label("0102/ff") == (0x01, 0xFF)
    assert quantities.label("0080")[0] == 0x8000


@given(st.integers(0, (1 << 128) - 1))
def test_labels_come_back(value):
    assert quantities.label_bytes(quantities.label_text(value)) == value


@given(st.integers(0, (1 << 48) - 1))
def test_macs_come_back(value):
    assert quantities.mac(quantities.mac_text(value)) == value


@given(st.integers(0, 32))
def test_prefixes_and_netmasks_are_the_same(length):
    value, mask = quantities.prefix(f"255.255.255.255/{length}", 4)
    netmask = quantities.IPv4Address(mask)
    assert value == mask and quantities.is_prefix(mask, 32)
    assert quantities.prefix(f"255.255.255.255/{netmask}", 4) == (value, mask)


@pytest.mark.parametrize(
    "text", ["::1", "10.", "10..0", "256", "any/8", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/255.0.255.0", "fe80::1%eth0", "any", "a"]
)
def test_what_is_no_prefix(text):
    with pytest.raises(Expected):
        quantities.prefix(text, 4)


def test_words_may_be_cut_short_if_only_one_begins_so():
    words = ["protocol", "preference", "priority"]
    assert [quantities.keyword(word, words) for word in ("proto", "pref", "prio", "pr", "", "protocols")] == [
        "protocol", "preference", "priority", None, None, None,
    ]  # fmt: skip
