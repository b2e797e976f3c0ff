"""Every field of a record is explained, in the record's order, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcore.types import Offload
from datapath import fields
from datapath.export import COLUMNS
from datapath.record_words import BEHIND_NIC, ENDS, RECORDS, offload_rows, record_rows
from pcap_tests.test_datapath.command import records, run

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "vm-behind-vf"
OPTIONS = {"packets": "--packets", "conns": "--conns", "events": "--events", "rules": "--rule-counters"}


def listed(record):
    """Its fields in order, those of addresses and ports as one."""
    return list(dict.fromkeys("ends" if name in ENDS else name for name in record))


@pytest.mark.parametrize("kind", RECORDS)
def test_the_fields_of_records_are_those_that_are_explained(kind, capfd):
    capture = EXAMPLE / "traffic.pcapng"
    code, out, err = run(capfd, "replay", capture, "--rules", EXAMPLE / "rules.tc", OPTIONS[kind], "-", "-q")
    assert (code, err) == (0, "")
    found = records(out)
    assert found
    absent = {"file", "evicted_for"} | (BEHIND_NIC.keys() if kind != "packets" else set())
    known = [name for name in RECORDS[kind] if name not in absent]
    assert {tuple(listed(record)) for record in found} == {tuple(known)}


@pytest.mark.parametrize("kind", RECORDS)
def test_every_column_is_explained(kind):
    tops = {"ends" if name in ENDS and kind == "packets" else next((top for top in RECORDS[kind] if name == top), None) for name in COLUMNS[kind]}
    nested = [name for name in COLUMNS[kind] if name not in RECORDS[kind] and name not in ENDS]
    assert all(any(name.startswith(f"{top}_") for top in RECORDS[kind]) for name in nested)
    assert tops - {None} == {name for name in RECORDS[kind] if name in COLUMNS[kind] or name == "ends"}
    assert len(record_rows(kind)) == len(RECORDS[kind])


def test_every_offload_code_has_a_sentence(capfd):
    told = dict(offload_rows())
    assert set(told) == {name for name in fields.OFFLOAD_NAMES.values() if name}
    assert len(told) == Offload.N_OFFLOADS - 1
    assert len(set(told.values())) == len(told)
    code, out, err = run(capfd, "states", "--offload")
    assert (code, err) == (0, "")
    assert all(any(line.startswith(name) and said in line for line in out.splitlines()) for name, said in told.items())


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["--offload", "--format", "mermaid"], "--offload: a list has no diagram; expected --format text or markdown"),
        (["tcp", "--offload"], "--offload: the codes are those of all protocols; expected no protocol"),
        (["--reasons", "--offload"], "--reasons --offload: two lists; expected one of them"),
    ],
)
def test_what_states_does_not_take(capfd, argv, error):
    code, out, err = run(capfd, "states", *argv)
    assert (code, out) == (2, "") and err.startswith(f"ctmirror: {error}")


def test_columns_have_the_device_and_the_rule_of_a_packet(capfd, tmp_path):
    path = tmp_path / "packets.csv"
    assert run(capfd, "replay", EXAMPLE / "traffic.pcapng", "--rules", EXAMPLE / "rules.tc", "--packets", path, "-q")[0] == 0
    head, first, *_ = path.read_text().splitlines()
    row = dict(zip(head.split(","), first.split(","), strict=True))
    assert row["to"] == "eth0_0" and row["rule"].rpartition("/")[2].startswith("rules.tc:")
