"""Records of connections and events behind a NIC: nothing that hardware has counted is lost without being called unknown, and none of it is 0."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.parquet import read_table

from ctcore.config import Config
from datapath import craft
from datapath.app import Outputs, Tracking, replay
from datapath.commands.offload_counts import counted_of
from datapath.commands.offloaded_run import NicGiven, behind_nic
from datapath.record_words import RECORDS
from offload.simnic import profile
from pcap_tests.conftest import examples
from pcap_tests.test_datapath.command import records, run
from pcap_tests.test_offload.planned import CLIENT, MS, SECOND, SERVER, START, Traffic, conn, sizes, written

OWN = Path(__file__).parents[1] / "captures"
ONE_COUNTER = "[counters]\naccounting = false\n"
ETHERNET = 14  # bytes that hardware counts with each packet, and software does not

pytestmark = pytest.mark.usefixtures("compiled_nic")


def told(capfd, capture: object, kind: str = "--conns", nic: object = "perfect", *more: object) -> list[dict]:
    code, out, err = run(capfd, "replay", capture, "--nic", nic, kind, "-", "-q", *more)
    assert (code, err) == (0, "")
    return records(out)


def one_counter(tmp_path: Path) -> Path:
    path = tmp_path / "one-counter.toml"
    path.write_text(ONE_COUNTER)
    return path


def ip_sizes(traffic: Traffic) -> int:
    return sizes(traffic) - ETHERNET * len(traffic)


def datagrams(port: int, at: list[int], *, back: bool = False) -> Traffic:
    """Datagrams of 100 bytes at these times (s), and with each an answer 10 ms later."""
    asked = [(s * SECOND, craft.udp(CLIENT, SERVER, port, 53, bytes(100))) for s in at]
    answers = [(s * SECOND + 10 * MS, craft.udp(SERVER, CLIENT, 53, port, bytes(100))) for s in at] if back else []
    return sorted(asked + answers)


LATE = [(300 * SECOND, craft.icmp(CLIENT, SERVER, 8))]  # whoever is idle has left by then


@pytest.mark.parametrize("kind", ["conns", "events"])
def test_records_have_the_fields_that_are_explained(capfd, kind):
    found = told(capfd, OWN / "udp.pcap", f"--{kind}")
    assert {tuple(record) for record in found} == {tuple(name for name in RECORDS[kind] if name != "evicted_for")}


# --- counters ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nic", ["perfect", "connectx-7-hw"])
def test_what_hardware_has_at_the_end_is_in_the_record(capfd, tmp_path, nic):
    traffic = conn(40000, 25)  # over after 2.5 s, before anybody asks for counters (A6.48)
    (record,) = told(capfd, written(tmp_path / "one.pcap", traffic), nic=nic)
    soft, hard = traffic[:3], traffic[3:]
    assert (record["offload"], record["total"]) == ("hardware", {"packets": 28, "bytes": ip_sizes(soft) + sizes(hard)})
    assert record["hardware"] == {"packets": 25, "bytes": sizes(hard), "split": True, "unheard_packets": 0, "unheard_bytes": 0}
    assert (record["original"]["packets"], record["reply"]["packets"]) == (27, 1)


def test_a_connection_that_hardware_never_had(capfd, tmp_path):
    ping, talk = sorted(told(capfd, written(tmp_path / "two.pcap", [(0, craft.icmp(CLIENT, SERVER, 8))], conn(40000, 2, at=5)), nic="none"),
                        key=lambda one: one["conn"])  # fmt: skip
    assert (ping["offload"], ping["hardware"], ping["total"]["packets"]) == (None, None, 1)
    assert (talk["offload"], talk["hardware"], talk["total"]["packets"]) == ("not:drv_unsupported", None, 5)


def test_what_went_with_the_rules_is_unknown(capfd, tmp_path):
    traffic = conn(40000, 10, fin=True)
    (record,) = told(capfd, written(tmp_path / "one.pcap", traffic, [(5 * SECOND, craft.icmp(CLIENT, SERVER, 8))]), nic="perfect")[:1]
    hard = [*traffic[3:13], traffic[15]]  # requests, and the last ACK, whose rule still lived
    assert record["offload"] == "not:teardown_fin"
    assert record["hardware"] == {"packets": None, "bytes": None, "split": None, "unheard_packets": 11, "unheard_bytes": sizes(hard)}
    assert record["total"]["packets"] == len(traffic) - 11
    code, out, _ = run(capfd, "replay", tmp_path / "one.pcap", "--nic", "perfect")
    assert code == 0 and "counters of hardware: 0 packets told to their connections\n    11 more unknown: rules went" in out


def test_a6_50_directions_that_nobody_can_tell_apart_are_null_and_not_0(capfd, tmp_path):
    nic, capture = one_counter(tmp_path), written(tmp_path / "one.pcap", datagrams(5000, [0, 1, 3, 4], back=True))
    (record,) = told(capfd, capture, nic=nic)
    assert [record[side][name] for side in ("original", "reply") for name in ("packets", "bytes")] == [None] * 4
    assert (record["total"]["packets"], record["hardware"]["split"]) == (8, False)
    assert 0 < record["hardware"]["packets"] < 8
    code, out, _ = run(capfd, "replay", capture, "--nic", nic)
    assert code == 0 and f"of {record['hardware']['packets']} the direction is unknown: one counter serves both" in out
    (line,) = (line for line in out.splitlines() if "10.0.0.1:5000 > 192.0.2.1:53" in line)
    assert line.split()[-3:-1] == ["1.07", "KB"] and line.split()[-4] == "8"  # packets of both directions together are known


def test_a6_50_in_columns_and_in_conntracks_lines(capfd, tmp_path):
    nic, capture = one_counter(tmp_path), written(tmp_path / "one.pcap", datagrams(5000, [0, 1, 3, 4], back=True))
    for name in ("conns.csv", "conns.parquet"):
        assert run(capfd, "replay", capture, "--nic", nic, "-q", "--conns", tmp_path / name)[0] == 0
    (row,) = csv.DictReader((tmp_path / "conns.csv").open())
    assert (row["original_packets"], row["reply_bytes"], row["total_packets"], row["hardware_split"]) == ("", "", "8", "false")
    (row,) = read_table(tmp_path / "conns.parquet").to_pylist()
    assert (row["original_packets"], row["reply_bytes"], row["total_packets"], row["hardware_split"]) == (None, None, 8, False)
    code, out, _ = run(capfd, "replay", capture, "--nic", nic, "-q", "--conns", "-", "--format", "conntrack")
    assert code == 0 and "packets=" not in out and "[HW_OFFLOAD]" in out


def test_counters_that_are_stuck_tell_nothing(capfd, tmp_path):
    (tmp_path / "stuck.toml").write_text("[[faults.script]]\nkind = 'stick'\n")
    (record,) = told(capfd, written(tmp_path / "one.pcap", conn(40000, 25)), nic=tmp_path / "stuck.toml")
    assert record["hardware"]["unheard_packets"] == 25 and record["total"]["packets"] == 3


def lost(tmp_path: Path) -> Path:
    path = tmp_path / "lost.toml"
    path.write_text("[[faults.script]]\nkind = 'lose-reply'\n")
    return path


def test_one_whose_answer_was_lost_was_in_hardware_all_the_same(capfd, tmp_path):
    traffic = conn(40000, 25)
    (record,) = told(capfd, written(tmp_path / "one.pcap", traffic), nic=lost(tmp_path))
    assert record["hardware"] is not None and record["total"]["packets"] == 28 - record["hardware"]["unheard_packets"]
    assert (record["hardware"]["packets"] or 0) + record["hardware"]["unheard_packets"] == 25
    (ended,) = told(capfd, written(tmp_path / "two.pcap", traffic, LATE), nic=lost(tmp_path))[:1]
    assert (ended["hardware"]["packets"] or 0) + ended["hardware"]["unheard_packets"] == 25


def test_without_accounting_there_is_nothing_to_add_up(capfd, tmp_path):
    (record,) = told(capfd, written(tmp_path / "one.pcap", conn(40000, 5)), "--conns", "perfect", "--acct", "0")
    assert record["total"] == {"packets": None, "bytes": None} and record["hardware"]["packets"] == 5


@pytest.mark.parametrize("capture", ["udp", "loss", "zero-window", "short-connections", "port-reuse", "fragments", "idle"])
@pytest.mark.parametrize("nic", ["perfect", "tiny", "{one_counter}"])
def test_known_and_unknown_are_together_what_software_alone_counts(capfd, tmp_path, capture, nic):
    nic = nic.format(one_counter=one_counter(tmp_path))
    behind = told(capfd, OWN / f"{capture}.pcap", nic=nic)
    code, out, _ = run(capfd, "replay", OWN / f"{capture}.pcap", "--conns", "-", "-q")
    assert code == 0
    alone = {one["conn"]: one["original"]["packets"] + one["reply"]["packets"] for one in records(out)}
    assert {one["conn"]: one["total"]["packets"] + (one["hardware"] or {"unheard_packets": 0})["unheard_packets"] for one in behind} == alone


talks = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000), st.integers(1, 2000), st.booleans()), min_size=1, max_size=8)
kinds = st.sampled_from(["refuse", "delay", "lose-command", "lose-reply", "reset", "stick"])
faults = st.lists(st.tuples(kinds, st.integers(0, 30), st.sampled_from([0.2, 1.0])), max_size=3)


def script(faults: list[tuple[str, int, float]], accounting: bool) -> str:
    """A profile that is too small, slow, and has these faults of 5 s each."""
    text = f"[table]\ncapacity = 8\n[rates]\ninserts = 50\nlatency = 30\n[counters]\naccounting = {str(accounting).lower()}\n"
    for what, at, share in faults:
        text += f"[[faults.script]]\nkind = '{what}'\nfrom = {at}\n" + ("delay = 700\n" if what == "delay" else "")
        text += f"to = {at + 5}\n" if what != "reset" else ""
        text += f"share = {share}\n" if what not in ("reset", "stick") else ""
    return text


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(30))
@given(talks, faults, st.booleans())
def test_whatever_goes_wrong_what_hardware_has_counted_is_known_or_called_unknown(tmp_path, talks, faults, accounting):
    traffic = [conn(40000 + i, n, at=at, every=every, fin=fin) for i, (n, at, every, fin) in enumerate(talks)]
    of = profile.parse(script(faults, accounting), "faulty.toml")
    tracking, kind = behind_nic(Tracking(Config()), NicGiven(of))
    result = replay([written(tmp_path / "some.pcap", *traffic, LATE)], tracking, Outputs(conns=str(tmp_path / "conns.jsonl")), kind=kind)
    work, found = result.nic, counted_of(result.nic)
    assert found.all == work.shares.hardware
    made = [json.loads(line) for line in (tmp_path / "conns.jsonl").read_text().splitlines()]
    known = sum(one["total"]["packets"] for one in made)
    unknown = sum(one["hardware"]["unheard_packets"] for one in made if one["hardware"])
    assert known == sum(map(len, traffic)) + len(LATE) - found.late - found.unheard - found.untold
    assert unknown <= found.unheard + found.untold
    assert all(isinstance(one["original"]["packets"], int) for one in made if not one["hardware"] or one["hardware"]["split"])


# --- events -----------------------------------------------------------------------------------------------------------------------------


def story(found: list[dict], number: int = 0) -> list[tuple]:
    """What a connection's events say of it: what happened, about what, where its packets go."""
    return [(one["event"], *one["changes"], one["offload"]) for one in found if one["conn"] == number]


def when(found: list[dict], event: str, change: str | None = None) -> list[float]:
    """s since the capture's beginning."""
    return [one["ts"] / SECOND - START for one in found if one["event"] == event and (change is None or change in one["changes"])]


def test_events_tell_of_a_connections_way_into_hardware_and_out_of_it(capfd, tmp_path):
    found = told(capfd, written(tmp_path / "one.pcap", conn(40000, 10, fin=True), LATE), "--events")
    assert story(found) == [
        ("new", None),
        ("update", "reply", "l4state", None),
        ("update", "assured", "l4state", None),
        ("update", "offload", "not:pending"),
        ("update", "hw-offload", "hardware"),
        ("update", "l4state", "hardware"),
        ("update", "l4state", "hardware"),
        ("update", "offload", "not:teardown_fin"),
        ("update", "hw-offload", "not:teardown_fin"),
        ("destroy", "not:teardown_fin"),
    ]
    marks = [{"offload", "hw-offload"} & set(one["status"]) for one in found if {"offload", "hw-offload"} & set(one["changes"])]
    assert marks == [{"offload"}, {"offload", "hw-offload"}, {"hw-offload"}, set()]
    times = [one["ts"] for one in found]
    assert times == sorted(times)


@pytest.mark.parametrize("nic", ["perfect", "connectx-7-hw", "tiny"])
def test_one_that_ages_in_hardware_ends_when_it_should_with_all_that_was_counted(capfd, tmp_path, nic):
    traffic = datagrams(5000, list(range(10)))  # nobody answers: 30 s after the last one it is gone (A7.56)
    capture = written(tmp_path / "one.pcap", traffic, LATE)
    found = told(capfd, capture, "--events", nic)
    (end,) = (one for one in found if one["event"] == "destroy" and one["proto"] == "udp")
    alone = records(run(capfd, "replay", capture, "--events", "-", "-q")[1])
    (end_alone,) = (one for one in alone if one["event"] == "destroy" and one["proto"] == "udp")
    assert end["total"]["packets"] == end["original"]["packets"] == end_alone["original"]["packets"] == 10
    assert (end["end"], end["offload"], end["hardware"]["unheard_packets"]) == ("timeout", "not:teardown_idle", 0)
    (stop,) = when([end], "destroy")
    assert 39 <= stop <= 42  # T + 3 s (A6.51)


def test_a_tcp_connection_that_ages_in_hardware_has_what_is_left_of_its_timeout(capfd, tmp_path):
    capture = written(tmp_path / "one.pcap", conn(40000, 50), LATE)  # the last request is of 5.02 s
    found = told(capfd, capture, "--events", "connectx-7-hw", "--timeouts", "tcp_timeout_established=60")
    (end,) = (one for one in found if one["event"] == "destroy" and one["proto"] == "tcp")
    assert (end["end"], end["offload"], end["total"]["packets"], end["hardware"]["packets"]) == ("timeout", "not:teardown_idle", 53, 50)
    left = when(found, "update", "hw-offload")[-1]
    assert 35 <= left <= 39.1  # T + 3 s (A6.51); software hears of it within a second
    (stop,) = when([end], "destroy")
    assert 65 <= stop <= 68.1  # 60 s less the 30 that it was idle, from there on (A7.56)


def test_one_that_comes_back_into_hardware_says_so(capfd, tmp_path):
    capture = written(tmp_path / "one.pcap", datagrams(5000, [0, 1, 3, 4, 60, 61], back=True), LATE)
    found = told(capfd, capture, "--events")
    changes = [one for one in found if "hw-offload" in one["changes"]]
    assert [one["offload"] for one in changes] == ["hardware", "not:teardown_idle", "hardware", "not:teardown_idle"]
    (gone, again) = (one["ts"] / SECOND - START for one in changes[1:3])
    assert 34 <= gone <= 38.1 and 60 <= again < 60.1
    (end,) = (one for one in found if one["event"] == "destroy" and one["proto"] == "udp")
    assert end["total"]["packets"] == 12


def test_one_that_made_room_for_another_says_so(capfd, tmp_path):
    (tmp_path / "small.toml").write_text("[table]\ncapacity = 2\n")
    capture = written(tmp_path / "two.pcap", conn(40000, 20, every=1000), conn(40001, 200, at=500, size=1000))
    found = told(capfd, capture, "--events", tmp_path / "small.toml", "--nic-policy", "by-rate")
    left = [one for one in found if one["conn"] == 0 and "hw-offload" in one["changes"] and "hw-offload" not in one["status"]]
    assert [one["offload"] for one in left][:1] == ["not:hw_evicted"]


def test_a_reset_takes_everything_out_of_hardware_and_back(capfd, tmp_path):
    (tmp_path / "reset.toml").write_text("[[faults.script]]\nkind = 'reset'\nfrom = 1\n")
    found = told(capfd, written(tmp_path / "one.pcap", conn(40000, 25)), "--events", tmp_path / "reset.toml")
    assert next(one["offload"] for one in found if "hw-offload" in one["changes"]) == "hardware"
    (record,) = told(capfd, tmp_path / "one.pcap", nic=tmp_path / "reset.toml")
    assert record["total"]["packets"] + record["hardware"]["unheard_packets"] == 28
    assert record["hardware"]["unheard_packets"] > 0


def test_a_fault_from_a_file_is_at_work(capfd, tmp_path):
    (tmp_path / "refusing.toml").write_text("[[faults.script]]\nkind = 'refuse'\nerror = 'EOPNOTSUPP'\nto = 1\n")
    (record,) = told(capfd, written(tmp_path / "one.pcap", conn(40000, 5)), nic=tmp_path / "refusing.toml")
    assert (record["offload"], record["hardware"], record["total"]["packets"]) == ("not:drv_unsupported", None, 8)
    code, out, _ = run(capfd, "offload", "plan", tmp_path / "one.pcap", "--nic", tmp_path / "refusing.toml", "-q", "--json")
    (scenario,) = json.loads(out)["scenarios"]
    assert code == 0 and scenario["refused"]["unsupported"] > 0 and scenario["packets"]["hardware"] == 0
