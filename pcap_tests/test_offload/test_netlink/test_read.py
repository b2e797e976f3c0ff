"""Attributes read strictly: what fits is a value, what does not is an error with the path to it."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload.netlink.attributes import ACTION, FLOWER, TC, Choice, Form, Level, Many, Record
from offload.netlink.pack import NESTED, attribute, nested, text, u8, u16, u32, u64
from offload.netlink.read import Malformed, attributes, name_at, read


def test_values_by_name():
    data = u16(91, 9) + u16(92, 9) + attribute(97, bytes([1]) + bytes(15)) + attribute(10, bytes([10, 0, 0, 1])) + text(2, "eth0")
    assert read(FLOWER, data) == {"KEY_CT_STATE": 9, "KEY_CT_STATE_MASK": 9, "KEY_CT_LABELS": 1, "KEY_IPV4_SRC": 0x0A000001, "INDEV": "eth0"}


def test_options_hang_on_the_kind_wherever_it_stands():
    parms = nested(2, attribute(2, struct.pack("=IIiii", 0, 0, 3, 0, 0)))
    before, behind = read(ACTION, text(1, "gact") + parms), read(ACTION, parms + text(1, "gact"))
    assert before == behind
    assert before["OPTIONS"]["PARMS"]["action"] == 3


def test_options_of_another_kind_stay_bytes():
    assert read(TC, text(1, "u32") + attribute(2, b"abcd")) == {"KIND": "u32", "OPTIONS": b"abcd"}


def test_actions_come_in_the_order_of_their_numbers():
    listed = attribute(2, text(1, "ct")) + attribute(1, text(1, "csum"))
    assert [each["KIND"] for each in read(FLOWER, attribute(3, listed))["ACT"]] == ["csum", "ct"]


@pytest.mark.parametrize(
    ("data", "said"), [(b"eth0\0more", "eth0"), (b"a\nb\0", "a\\nb"), (b"\xff\xfe", "\\xff\\xfe"), ("ö".encode(), "ö"), (b"", "")]
)
def test_text_is_one_line(data, said):
    assert read(FLOWER, attribute(2, data)) == {"INDEV": said}


def test_unknown_attributes_are_kept_by_number():
    assert read(FLOWER, u8(999, 5)) == {"#999": b"\5"}


def test_the_last_of_a_kind_counts():
    assert read(FLOWER, u8(9, 6) + u8(9, 17)) == {"KEY_IP_PROTO": 17}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\1", "flower: 1 bytes at the end: expected an attribute of 4 or more"),
        (struct.pack("=HH", 3, 9), "flower: attribute 9 says 3 bytes: expected 4 to 4"),
        (struct.pack("=HH", 9, 9) + b"\0", "flower: attribute 9 says 9 bytes: expected 4 to 5"),
        (u8(91, 1), "flower.KEY_CT_STATE: 1 bytes: expected 2"),
        (u64(93, 1), "flower.KEY_CT_ZONE: 8 bytes: expected 2"),
        (attribute(3, attribute(1, u8(3, 1))), "flower.ACT.1.INDEX: 1 bytes: expected 4"),
        (attribute(3, attribute(1, text(1, "ct") + nested(2, u8(1, 1)))), "flower.ACT.1.OPTIONS.PARMS: 1 bytes: expected 20 or more"),
        (attribute(2, b"a" * 5000), "flower.INDEV: 5000 bytes of text: expected at most 4096"),
    ],
)
def test_what_does_not_fit_is_said_with_its_path(data, said):
    with pytest.raises(Malformed) as error:
        read(FLOWER, data)
    assert str(error.value) == said


@given(st.binary(max_size=400))
def test_any_bytes_are_values_or_malformed(data):
    for level in (TC, FLOWER, ACTION):
        try:
            read(level, data)
        except Malformed as error:
            assert "\n" not in str(error)


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=50))))
def test_what_is_packed_is_read(pairs):
    data = b"".join(attribute(number, payload) for number, payload in pairs)
    assert list(attributes(data, "")) == pairs
    assert len(data) % 4 == 0


def test_the_attribute_that_an_answer_points_to_has_a_name():
    key, options = u16(91, 9), u32(22, 0)
    request = u32(11, 0) + text(1, "flower") + attribute(2, options + key)
    inside = len(u32(11, 0)) + len(text(1, "flower"))
    assert name_at(TC, request, 0) == "TCA_CHAIN"
    assert name_at(TC, request, inside) == "TCA_OPTIONS"
    assert name_at(TC, request, inside + 4 + len(options)) == "TCA_FLOWER_KEY_CT_STATE"
    assert name_at(TC, request, len(request)) == ""


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_place_in_any_bytes_has_a_name_or_none(data, offset):
    assert isinstance(name_at(TC, data, offset), str)


# --- the tables themselves ----------------------------------------------------------------------------------------------------------------


def levels(level: Level, found: dict[int, Level]) -> dict[int, Level]:
    found[id(level)] = level
    for _, kind in level.attributes.values():
        under = {Level: lambda kind: [kind], Many: lambda kind: [kind.level], Choice: lambda kind: kind.levels.values()}.get(type(kind))
        for each in under(kind) if under else ():
            levels(each, found)
    return found


@pytest.mark.parametrize("level", levels(TC, {}).values(), ids=lambda level: level.name)
def test_tables_are_sound(level):
    names = [name for name, _ in level.attributes.values()]
    assert len(set(names)) == len(names)
    assert all(0 < number < NESTED >> 1 for number in level.attributes)
    for name, kind in level.attributes.values():
        if name.endswith("_MASK") and name.removesuffix("_MASK") in names and isinstance(kind, Form):
            assert kind == dict(level.attributes.values())[name.removesuffix("_MASK")]
        if isinstance(kind, Record):
            assert len(kind.fields) == len(kind.layout.unpack(bytes(kind.layout.size)))
