"""The log of a node: an event is a line, whatever is in it; as JSON its fields keep their types."""

from __future__ import annotations

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datapath.live.logs import FIRST, JsonLines, Lines, start_log
from datapath.live.node import LOG

USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", *FIRST}


def event(message: str, **about) -> logging.LogRecord:
    record = LOG.makeRecord("ctmirror", logging.INFO, "file.py", 1, message, (), None)
    vars(record).update(about)
    return record


def failed() -> logging.LogRecord:
    try:
        raise ZeroDivisionError("by\nnothing")
    except ZeroDivisionError as error:
        return LOG.makeRecord("ctmirror", logging.ERROR, "file.py", 1, "the datapath has failed", (), (type(error), error, error.__traceback__))


def test_an_event_as_json():
    record = event("connections saved", conns=5, seconds=0.25, peer=("a", 1), complete=True, path=None)
    record.created, record.msecs = 1795766400.0625, 62.5
    assert JsonLines().format(record) == (
        '{"time": "2026-11-27T08:00:00.062Z", "level": "info", "message": "connections saved", "conns": 5, "seconds": 0.25, "peer": ["a", 1], '
        '"complete": true, "path": null}'
    )


def test_an_event_as_text_is_its_sentence_and_the_numbers_that_it_has_not():
    said = Lines().format(event("saved connections taken up", conns=0, expired=0, age=1.5, path="/x", whole=True))
    assert said == "ctmirror: saved connections taken up (conns 0, age 1.5)"
    assert Lines().format(event("control: flush: connections 3, pid 7", connections=3, pid=7)) == "ctmirror: control: flush: connections 3, pid 7"
    assert Lines().format(event("eth0: XDP in the driver", iface="eth0", driver="xdp-native")) == "ctmirror: eth0: XDP in the driver"
    assert Lines().format(event("rules of evil\nctmirror: running\x1b[31m")) == "ctmirror: rules of evil\\x0actmirror: running\\x1b[31m"


def test_what_went_wrong_inside_is_not_lost():
    told = json.loads(JsonLines().format(failed()))
    assert (told["level"], told["message"], told["error"]) == ("error", "the datapath has failed", "ZeroDivisionError: by\nnothing")
    assert told["traceback"].startswith("Traceback (most recent call last):\n") and "in failed" in told["traceback"]
    first, *rest = Lines().format(failed()).splitlines()
    assert first == "ctmirror: the datapath has failed: ZeroDivisionError: by\\x0anothing" and rest[0].startswith("Traceback")


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False) | st.text()
names = st.text(min_size=1).filter(lambda name: name not in USUAL)


@given(st.text(), st.dictionaries(names, scalars | st.lists(scalars) | st.dictionaries(st.text(), scalars)))
def test_any_event_is_one_line_of_json_and_comes_back(message, about):
    line = JsonLines().format(event(message, **about))
    assert len(line.splitlines()) == 1
    told = json.loads(line)
    assert list(told)[:3] == list(FIRST) and told["message"] == message and {name: told[name] for name in about} == about


@given(st.text())
def test_any_event_is_one_line_of_text(message):
    assert len(Lines().format(event(message)).splitlines()) == 1


def test_no_field_takes_the_place_of_the_log_s_own():
    told = json.loads(JsonLines().format(event("hello", level="fatal", time="never")))
    assert told["level"] == "info" and told["time"].startswith("20") and len(told) == 3


@pytest.mark.parametrize(("level", "seen"), [("debug", 3), ("info", 2), ("error", 1)])
def test_levels(own_log, capsys, level, seen):
    start_log(level, "json")
    LOG.debug("a")
    LOG.info("b", extra={"n": 1})
    LOG.error("c")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["message"] for line in lines] == ["a", "b", "c"][-seen:]
