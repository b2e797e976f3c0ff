"""The same records in every format, and conntrack(8)'s lines letter by letter."""

from __future__ import annotations

import builtins
import csv
import json
from pathlib import Path

import pytest

from ctcore.errors import CtmirrorError
from datapath import app, export
from pcap_tests import stories

KINDS = ("packets", "conns", "events")


@pytest.fixture
def office(tmp_path):
    return stories.write(tmp_path / "office.pcap", stories.office())


def replayed(tmp_path, capture, ending, form=None):
    """The three files of a replay."""
    names = {kind: str(tmp_path / f"{kind}{ending}") for kind in KINDS}
    app.replay([capture], app.Tracking(), app.Outputs(**names, form=form))
    return names


@pytest.fixture
def as_json(tmp_path, office):
    files = replayed(tmp_path, office, ".jsonl")
    return {kind: [json.loads(line) for line in Path(files[kind]).read_text().splitlines()] for kind in KINDS}


@pytest.mark.parametrize(
    ("name", "chosen", "form"),
    [
        ("a.jsonl", None, "jsonl"), ("a.ndjson", None, "jsonl"), ("a.parquet", None, "parquet"), ("a.ARROW", None, "arrow"), ("a.csv", None, "csv"),
        ("a.conntrack", None, "conntrack"), ("a", None, "jsonl"), ("-", None, "jsonl"), ("a.csv", "jsonl", "jsonl"),
    ],
)  # fmt: skip
def test_the_ending_tells_the_format_unless_one_is_chosen(name, chosen, form):
    assert export.format_of(name, chosen) == form


@pytest.mark.parametrize("kind", KINDS)
def test_csv_holds_what_json_holds(tmp_path, office, as_json, kind):
    with open(replayed(tmp_path, office, ".csv")[kind], newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(as_json[kind]) > 0
    for row, record in zip(rows, as_json[kind], strict=True):
        flat = export.flatten(record)
        assert set(flat) - set(row) <= {"out", "tcp"}  # objects that are null have no column of their own
        for name, text in row.items():
            value = flat.get(name)
            assert text == ("" if value is None else " ".join(value) if isinstance(value, list) else str(value))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ending", [".arrow", ".parquet"])
def test_arrow_and_parquet_hold_what_json_holds(tmp_path, office, as_json, kind, ending):
    pytest.importorskip("pyarrow")
    import pyarrow.ipc
    import pyarrow.parquet

    name = replayed(tmp_path, office, ending)[kind]
    table = pyarrow.parquet.read_table(name) if ending == ".parquet" else pyarrow.ipc.open_file(name).read_all()
    assert table.schema.names == list(export.COLUMNS[kind])
    for row, record in zip(table.to_pylist(), as_json[kind], strict=True):
        flat = export.flatten(record)
        assert row == {column: flat.get(column) for column in export.COLUMNS[kind]}


def test_every_field_has_a_column(as_json):
    for kind in KINDS:
        names = {name for record in as_json[kind] for name in export.flatten(record)}
        assert names - {"out", "tcp"} <= set(export.COLUMNS[kind])


def test_pyarrow_is_named_where_it_is_missing(tmp_path, office, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CtmirrorError, match=r"pip install 'ctmirror\[arrow\]'"):
        replayed(tmp_path, office, ".parquet")


def test_conntrack_lines_of_connections(as_json):
    lines = [export.conntrack_line(record) for record in as_json["conns"]]
    assert lines[0] == (
        "tcp      6 119 TIME_WAIT src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=80 packets=5 bytes=203 "
        "src=10.0.0.2 dst=10.0.0.1 sport=80 dport=40000 packets=3 bytes=220 [ASSURED] mark=0 use=1"
    )
    assert lines[2] == (
        "icmp     1 29 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=77 packets=1 bytes=28 "
        "src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=77 packets=1 bytes=28 mark=0 use=1"
    )
    assert lines[3] == (
        "udp      17 29 src=10.0.0.1 dst=10.0.9.9 sport=6000 dport=7000 packets=1 bytes=35 [UNREPLIED] "
        "src=10.0.9.9 dst=10.0.0.1 sport=7000 dport=6000 packets=0 bytes=0 mark=0 use=1"
    )
    assert lines[4].startswith("gre      47 30 src=2001:db8::1 dst=2001:db8::2 srckey=0x0 dstkey=0x9 ")


def test_conntrack_lines_of_events(tmp_path, office):
    names = {"conns": str(tmp_path / "c"), "events": str(tmp_path / "e")}
    app.replay([office], app.Tracking(), app.Outputs(**names, form="conntrack"))
    lines = Path(names["events"]).read_text().splitlines()
    assert lines[0] == (
        "    [NEW] tcp      6 120 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=80 packets=1 bytes=40 [UNREPLIED] "
        "src=10.0.0.2 dst=10.0.0.1 sport=80 dport=40000 packets=0 bytes=0"
    )
    assert lines[1].startswith(" [UPDATE] tcp      6 60 SYN_RECV src=10.0.0.1 ")
    assert "[UNREPLIED]" not in lines[1]


def test_an_unknown_protocol_and_a_zone_in_conntrack_s_words():
    flow = {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": None, "dport": None, "packets": None, "bytes": None}
    record = {
        "proto": "esp", "original": flow, "reply": {**flow, "src": "10.0.0.2", "dst": "10.0.0.1"}, "l4state": None, "status": ["confirmed"],
        "timeout": 599.5, "mark": 7, "zone": 3,
    }  # fmt: skip
    assert export.conntrack_line(record) == "unknown  50 599 src=10.0.0.1 dst=10.0.0.2 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 mark=7 zone=3 use=1"
