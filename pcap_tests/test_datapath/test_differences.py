"""Differences of records: all of them, none that is none, and both opinions shown."""

from __future__ import annotations

import io

import orjson
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from datapath.differences import JUDGED, Difference, differences, disagreement, lines_of, print_disagreements, value_text

LEFT = {
    "state": "established", "dir": "reply", "status": ("seen-reply", "confirmed"), "conn": 3, "l4state": "CLOSE", "timeout": 10.0, "reason": "ok",
    "tcp": {"original": {"end": 5, "flags": ("maxack-set",)}}, "out": None,
}  # fmt: skip
NAMES = ("ctmirror", "kernel")
VALUES = st.recursive(
    st.none() | st.integers(-5, 5) | st.sampled_from(("a", "b")) | st.lists(st.sampled_from("ab"), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.dictionaries(st.sampled_from(("state", "conn", "tcp", "out")), VALUES)


def test_what_is_there_on_one_side_only_is_shown_in_words_and_not_as_python():
    found = differences({"out": {"src": "192.0.2.1", "sport": 5, "of": {"x": [1, 2]}}}, {"out": None}, ("out",))
    assert value_text(found[0].field, found[0].left) == "src=192.0.2.1 sport=5 of=x=1 2"
    assert value_text("out", {}) == "(empty)"


def printed(item) -> list[str]:
    file = io.StringIO()
    print_disagreements([item], NAMES, Console(file=file, width=20))
    return file.getvalue().splitlines()


def test_a_record_agrees_with_itself_read_back_from_json():
    assert not differences(LEFT, orjson.loads(orjson.dumps(LEFT)), LEFT)


@given(RECORDS, RECORDS)
def test_differences_are_symmetric_and_empty_only_for_equal_records(left, right):
    found, back = differences(left, right, ("state", "conn", "tcp", "out")), differences(right, left, ("state", "conn", "tcp", "out"))
    assert sorted((a.field, repr(a.left), repr(a.right)) for a in found) == sorted((b.field, repr(b.right), repr(b.left)) for b in back)
    assert not differences(left, left, left)
    if not found:
        assert plain(left) == plain(right)


def plain(value):
    """Lists in order, and what is None left out, as is an object that holds nothing else."""
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items() if one is not None}
    return sorted(value) if isinstance(value, list) else value


def test_fields_within_objects_have_paths():
    right = {**LEFT, "tcp": {"original": {"end": 6, "flags": ["maxack-set"]}, "reply": {"end": 1}}}
    assert differences(LEFT, right, ("tcp",)) == [Difference("tcp.original.end", 5, 6), Difference("tcp.reply", None, {"end": 1})]


def test_lists_are_sets():
    assert not differences(LEFT, {**LEFT, "status": ["confirmed", "seen-reply"]})


def test_timeouts_have_a_tolerance():
    assert differences(LEFT, {**LEFT, "timeout": 9.996})
    assert not differences(LEFT, {**LEFT, "timeout": 9.996}, tolerance=0.004)
    assert differences(LEFT, {**LEFT, "timeout": 9.992}, tolerance=0.004)
    assert differences(LEFT, {**LEFT, "timeout": None}, tolerance=0.004)


def test_a_reason_that_one_side_does_not_know_is_no_difference():
    assert not differences(LEFT, {**LEFT, "reason": None}, ("reason",))
    assert differences(LEFT, {**LEFT, "reason": "tcp_state"}, ("reason",))
    assert "reason" not in JUDGED


def test_both_opinions_and_both_reasons_are_shown():
    item = disagreement("office.pcap", 12, "A > B tcp", LEFT, {**LEFT, "state": "invalid", "dir": None, "reason": "tcp_rst_below_maxack"})
    assert printed(item) == [
        "office.pcap #12  A > B tcp",
        "          ctmirror     kernel",
        "  state   established  invalid",
        "  dir     reply        -",
        "  reason  ok           tcp_rst_below_maxack",
        "  tcp_rst_below_maxack: RST below what the receiver has already acknowledged (RFC 5961 3.2, tcp_ignore_invalid_rst)",
    ]


def test_reasons_stay_away_where_there_is_nothing_to_be_said():
    item = disagreement("x", 0, "p", LEFT, {**LEFT, "timeout": 9.5, "status": []})
    assert [line for line, _ in lines_of([item], NAMES)][2:] == ["  status   seen-reply confirmed  (empty)", "  timeout  10                    9.5"]


def test_equal_records_do_not_disagree():
    assert disagreement("x", 0, "p", LEFT, dict(LEFT)) is None
