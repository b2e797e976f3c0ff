"""The same records in every format, and conntrack(8)'s lines letter by letter."""

from __future__ import annotations

import builtins
import csv
import gzip
import json
import lzma
import re
from pathlib import Path

import pytest

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from datapath import app, export
from datapath.craft import tcp
from pcap_tests import stories
from pcap_tests.stories import CLIENT, SERVER

KINDS = ("packets", "conns", "events")


@pytest.fixture
def office(tmp_path):
    return stories.write(tmp_path / "office.pcap", stories.office())


def replayed(tmp_path, capture, ending, form=None):
    """The three files of a replay."""
    names = {kind: str(tmp_path / f"{kind}{ending}") for kind in KINDS if (kind, export.format_of("x" + ending, form)) != ("packets", "conntrack")}
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


def test_conntrack_lists_what_is_alive(tmp_path, office, as_json):
    """As conntrack -L does; the other formats have every connection."""
    names = {"conns": str(tmp_path / "c")}
    app.replay([office], app.Tracking(Config(timeouts={"icmp_timeout": 0, "udp_timeout": 0})), app.Outputs(**names, form="conntrack"))
    listed = Path(names["conns"]).read_text().splitlines()
    assert {line.split()[0] for line in listed} == {"tcp", "gre"}
    assert len(listed) < len(as_json["conns"])


def test_conntrack_lines_of_events(tmp_path):
    """What ctnetlink puts into events: counters and what is left of the timeout at the end, the state if the event is about it."""
    story = [*stories.question(), *stories.closed_by_client()[:4], (40 * 10**9, tcp(CLIENT, SERVER, 7, 7, "A", seq=1, ack=1))]
    story += [(41 * 10**9, tcp(SERVER, CLIENT, 7, 7, "A", seq=1, ack=1)), (42 * 10**9, tcp(CLIENT, SERVER, 9, 9, "S"))]
    story += [(43 * 10**9, tcp(SERVER, CLIENT, 9, 9, "RA", ack=1))]
    name = str(tmp_path / "e")
    app.replay([stories.write(tmp_path / "s.pcap", story)], app.Tracking(), app.Outputs(events=name, form="conntrack"))
    lines = Path(name).read_text().splitlines()
    assert not any("packets=" in line for line in lines if "[DESTROY]" not in line)
    udp = [line for line in lines if " udp " in line]
    assert udp[1].startswith(" [UPDATE] udp      17 30 src=10.0.0.1 ")
    assert udp[-1].startswith("[DESTROY] udp      17 src=10.0.0.1 dst=10.0.0.2 sport=5353 dport=53 packets=1 ")
    tcp_lines = [line for line in lines if " tcp " in line]
    assert tcp_lines[0] == (
        "    [NEW] tcp      6 120 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=40000 dport=80 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 sport=80 dport=40000"
    )
    assert tcp_lines[1].startswith(" [UPDATE] tcp      6 60 SYN_RECV src=10.0.0.1 ")
    picked_up = [line for line in lines if "sport=7 " in line]
    assert picked_up[0].startswith("    [NEW] tcp      6 300 ESTABLISHED src=")
    assert picked_up[1].startswith(" [UPDATE] tcp      6 300 src=")  # a reply was seen; the state has not changed
    refused = [line for line in lines if "sport=9 " in line]
    assert refused[-1].startswith("[DESTROY] tcp      6 119 CLOSE src=10.0.0.1 dst=10.0.0.2 sport=9 dport=9 packets=1 ")


@pytest.mark.parametrize("changes, ending", [((), "dport=0"), (("mark",), "mark=0")])
def test_a_mark_that_was_cleared_is_told(changes, ending):
    flow = {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": None, "dport": None, "packets": 1, "bytes": 20}
    record = {
        "event": "update", "changes": changes, "proto": "dccp", "original": flow, "reply": flow, "l4state": None, "status": ["confirmed"],
        "timeout": 599.5, "mark": 0, "zone": 0,
    }  # fmt: skip
    line = export.conntrack_line(record)
    assert line.startswith(" [UPDATE] dccp     33 599 src=10.0.0.1 dst=10.0.0.2 sport=0 dport=0 [UNREPLIED] ")
    assert line.endswith(ending)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".csv.xz", ".json.zst", ".conntrack.GZ"])
def test_records_are_compressed_where_the_name_says_so(tmp_path, office, ending):
    plain = Path(replayed(tmp_path, office, ending.rpartition(".")[0])["conns"]).read_bytes()
    packed = Path(replayed(tmp_path, office, ending)["conns"]).read_bytes()
    if ending.endswith(".zst"):
        import zstandard

        unpacked = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    else:
        unpacked = (lzma if ending.endswith(".xz") else gzip).decompress(packed)
    assert unpacked == plain != packed


@pytest.mark.parametrize("name, what", [
    ("x.ipc", "'.ipc' names no format: expected an ending of .jsonl, .json, "), ("x.csv.bz2", "'.bz2' names no format"),
    ("x.dat.gz", "'.dat' names no format"), ("x.parquet.gz", "parquet files are not compressed as a whole"),
])  # fmt: skip
def test_an_ending_that_is_not_known_is_refused(tmp_path, office, name, what):
    with pytest.raises(CtmirrorError, match=re.escape(what)):
        app.replay([office], app.Tracking(), app.Outputs(conns=str(tmp_path / name)))
    assert not (tmp_path / name).exists()
    if not name.endswith(".gz"):
        assert export.format_of(name, "csv") == "csv"


def test_an_unknown_protocol_and_a_zone_in_conntrack_s_words():
    flow = {"src": "10.0.0.1", "dst": "10.0.0.2", "sport": None, "dport": None, "packets": None, "bytes": None}
    record = {
        "proto": "esp", "original": flow, "reply": {**flow, "src": "10.0.0.2", "dst": "10.0.0.1"}, "l4state": None, "status": ["confirmed"],
        "timeout": 599.5, "mark": 7, "zone": 3,
    }  # fmt: skip
    assert export.conntrack_line(record) == "unknown  50 599 src=10.0.0.1 dst=10.0.0.2 [UNREPLIED] src=10.0.0.2 dst=10.0.0.1 mark=7 zone=3 use=1"
