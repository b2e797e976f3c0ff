"""The log of a node: each event one line on stderr, as text for people or as a JSON object.

    ctmirror: connections saved (conns 5, bytes 4242, seconds 0.002)
    {"time": "2026-11-27T08:00:00.123Z", "level": "info", "message": "connections saved", "conns": 5, "bytes": 4242, "seconds": 0.002}

Invariants: as JSON, an event is one line whatever is in it; `time`, `level` and `message` come first and are the log's own, further fields keep
their types. As text, control characters of names are shown, so that nobody writes lines of the log who only chooses names. What went wrong inside
is a line, too; as text its traceback follows, as JSON it is a field.
Not here: what is logged (each module says what it does), answers of commands (commands).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from datapath.live.node import LOG
from datapath.names import printable

FIRST = ("time", "level", "message")
_ORDINARY = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", *FIRST}


class JsonLines(logging.Formatter):
    """One object a line."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        event: dict[str, Any] = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        event |= {key: value for key, value in vars(record).items() if key not in _ORDINARY}
        if record.exc_info and record.exc_info[0] is not None:
            event |= {"error": _error(record), "traceback": self.formatException(record.exc_info)}
        return json.dumps(event, default=str)


class Lines(logging.Formatter):
    """Text: the sentence, which names what it is about, and the numbers that are not in it."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"ctmirror: {printable(record.getMessage() + _numbers(record))}"
        if record.exc_info and record.exc_info[0] is not None:
            return f"{line}: {printable(_error(record))}\n{self.formatException(record.exc_info)}"
        return line


def _numbers(record: logging.LogRecord) -> str:
    """Those of an event that its sentence does not have already, as that of a command has; 0 says nothing but of connections."""
    about = {key: value for key, value in vars(record).items() if key not in _ORDINARY and type(value) in (int, float)}
    facts = [f"{key} {value}" for key, value in about.items() if (value or key == "conns") and key != "frame_ns"]
    facts = [fact for fact in facts if fact not in record.getMessage()]
    return f" ({', '.join(facts)})" if facts else ""


def _error(record: logging.LogRecord) -> str:
    assert record.exc_info is not None
    kind, error, _ = record.exc_info
    return f"{kind.__name__ if kind else ''}: {error}"


def start_log(level: str, form: str) -> None:
    """Lines to stderr, whence systemd and containers take them. level: debug, info, warning or error; form: text or json."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else Lines())
    LOG.handlers = [handler]
    LOG.propagate = False
    LOG.setLevel(level.upper())
