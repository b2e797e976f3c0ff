"""`ctmirror offload plan`: every figure against one that was counted by hand."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from ctcore.config import Config
from datapath import craft
from datapath.app import Outputs, Tracking, replay
from datapath.commands import nic_option, offload_plan
from datapath.commands.offload_plan import figures, scenarios, tried
from datapath.commands.offload_series import Series
from datapath.commands.offload_shown import show
from datapath.commands.offloaded_run import NicGiven, behind_nic
from offload.simnic import profile
from pcap_tests.conftest import examples
from pcap_tests.test_datapath.command import run
from pcap_tests.test_offload.planned import CLIENT, MS, SECOND, SERVER, START, conn, sizes, written

pytestmark = pytest.mark.usefixtures("compiled_nic")


def planned(capfd, *argv) -> list[dict]:
    """The scenarios of a plan."""
    code, out, err = run(capfd, "offload", "plan", *argv, "-q", "--json")
    assert (code, err) == (0, "")
    return json.loads(out)["scenarios"]


def packets_of(scenario: dict) -> dict[str, int]:
    return {reason["code"]: reason["packets"] for reason in scenario["reasons"]}


def consistent(scenario: dict) -> None:
    """What has to be so whatever the traffic."""
    for what in ("packets", "bytes"):
        assert scenario[what]["hardware"] + sum(reason[what] for reason in scenario["reasons"]) == scenario[what]["all"]
        assert sum(second[what] for second in scenario["seconds"]) == scenario[what]["all"]
        assert sum(second[f"hardware_{what}"] for second in scenario["seconds"]) == scenario[what]["hardware"]
    assert scenario["connections"]["hardware"] <= scenario["connections"]["all"]
    assert not scenario["table"] or scenario["entries_most"] <= scenario["table"]


# --- one connection ---------------------------------------------------------------------------------------------------------------------


def test_one_connection_behind_a_perfect_nic(capfd, tmp_path):
    traffic = conn(40000, 25, fin=True)  # requests from 120 ms to 2,520 ms
    (scenario,) = planned(capfd, written(tmp_path / "one.pcap", traffic), "--nic", "perfect")
    consistent(scenario)
    requests = sizes([*traffic[3:28], traffic[30]])
    assert scenario["packets"] == {"all": 31, "hardware": 26, "share": 26 / 31}
    assert scenario["bytes"] == {"all": sizes(traffic), "hardware": requests, "share": requests / sizes(traffic)}
    assert scenario["connections"] == {"all": 1, "hardware": 1, "share": 1.0}
    assert (scenario["entries_most"], scenario["inserted"], scenario["cpu_packets_saved"]) == (2, 2, 26)
    assert (scenario["refused"], scenario["evictions"]) == ({"full": 0, "unsupported": 0, "other": 0}, 0)
    assert scenario["waiting_most"] == 0  # nothing waits for hardware that does everything at once
    # SYN, SYN/ACK, and the other FIN; the ACK that leads to the offload; the FIN with which it leaves.
    assert packets_of(scenario) == {"tcp_state": 3, "pending": 1, "teardown_fin": 1}
    assert [(second["start"] - START, second["packets"], second["hardware_packets"]) for second in scenario["seconds"]] == [
        (0, 12, 9), (1, 10, 10), (2, 9, 7),
    ]  # fmt: skip
    assert [second["entries"] for second in scenario["seconds"]] == [2, 2, 2]
    assert scenario["busiest_second"] == {"packets": 12, "software": 3}


def test_a_nic_that_offloads_nothing_saves_nothing(capfd, tmp_path):
    traffic = conn(40000, 10)
    (scenario,) = planned(capfd, written(tmp_path / "one.pcap", traffic), "--nic", "none")
    consistent(scenario)
    assert scenario["packets"] == {"all": 13, "hardware": 0, "share": 0.0}
    assert (scenario["connections"]["hardware"], scenario["entries_most"], scenario["refused"]["unsupported"] > 0) == (0, 0, True)


def test_what_is_never_offloaded_has_its_code(capfd, tmp_path):
    pings = [(i * 10 * MS, craft.icmp(CLIENT, SERVER, 8, ident=7, sequence=i)) for i in range(4)]
    options = [(i * SECOND, craft.udp(CLIENT, SERVER, 5000, 53, b"?", options=b"\x01" * 4 * i)) for i in range(2)]
    (scenario,) = planned(capfd, written(tmp_path / "some.pcap", pings, options), "--nic", "perfect")
    consistent(scenario)
    assert packets_of(scenario) == {"proto": 4, "pending": 1, "ip_options": 1}
    assert scenario["connections"] == {"all": 2, "hardware": 1, "share": 0.5}


def test_what_conntrack_calls_invalid_is_of_no_connection(capfd, tmp_path):
    bad = [(0, craft.tcp(CLIENT, SERVER, 40000, 80, "S", l4_checksum=1))]
    (scenario,) = planned(capfd, written(tmp_path / "bad.pcap", bad), "--nic", "perfect")
    consistent(scenario)
    assert packets_of(scenario) == {"invalid": 1}
    (scenario,) = planned(capfd, written(tmp_path / "bad.pcap", bad), "--nic", "perfect", "--checksum", 0)
    assert packets_of(scenario) == {"tcp_state": 1}


def test_hardware_does_not_serve_what_was_idle_for_longer_than_its_timeout(capfd, tmp_path):
    early, late = conn(40000, 1), conn(40000, 3, at=100_000)[-1:]  # its third request comes 100 s later
    (scenario,) = planned(capfd, written(tmp_path / "idle.pcap", early, late), "--nic", "perfect")
    consistent(scenario)
    assert scenario["packets"]["hardware"] == 1
    assert packets_of(scenario) == {"tcp_state": 2, "pending": 2}  # the late request is the admission of the connection once more
    entries = {second["start"] - START: second["entries"] for second in scenario["seconds"]}
    assert 30 < min(second for second, held in entries.items() if not held) <= 33  # T + 3 s (A6.51)
    assert sorted(entries)[-2:] == [31, 100]  # and then time jumps


LOSES = "[[faults.script]]\nkind = 'lose-command'\nfrom = 0.1\n"


@pytest.mark.parametrize("years", [3, 200])
def test_a_capture_that_jumps_by_years_is_planned_though_hardware_never_answers(capfd, tmp_path, years):
    """The removal is asked for again and again, but not each second of two centuries."""
    (tmp_path / "mute.toml").write_text(LOSES)
    capture = written(tmp_path / "old.pcap", conn(40000, 2), conn(40001, 1, at=years * 365 * 86_400_000))
    (scenario,) = planned(capfd, capture, "--nic", str(tmp_path / "mute.toml"))
    consistent(scenario)
    assert scenario["packets"]["all"] == 9 and len(scenario["seconds"]) < 5000


# --- less than enough -------------------------------------------------------------------------------------------------------------------


def test_who_comes_first_stays_when_the_table_is_full(capfd, tmp_path):
    first, second = conn(40000, 20), conn(40001, 20, at=50)
    capture = written(tmp_path / "two.pcap", first, second)
    narrow, wide = planned(capfd, capture, "--nic", "perfect", "--table", "2,4")
    assert [(each["table"], each["packets"]["hardware"], each["connections"]["hardware"]) for each in (narrow, wide)] == [(2, 20, 1), (4, 40, 2)]
    assert (narrow["entries_most"], wide["entries_most"]) == (2, 4)
    assert (packets_of(narrow)["hw_full"], packets_of(wide).get("hw_full")) == (20, None)
    assert narrow["refused"]["full"] > 0 == wide["refused"]["full"]


def test_who_has_more_traffic_gets_the_place_by_rate_and_by_bytes(capfd, tmp_path):
    capture = written(tmp_path / "two.pcap", conn(40000, 20, every=1000), conn(40001, 200, at=500, size=1000))
    first, rate, size = planned(capfd, capture, "--nic", "perfect", "--table", "2", "--policy", "first-come,by-rate,by-bytes")
    assert [each["policy"] for each in (first, rate, size)] == ["first-come", "by-rate", "by-bytes"]
    assert (first["evictions"], first["packets"]["hardware"]) == (0, 20)
    for each in (rate, size):
        consistent(each)
        assert each["evictions"] >= 1 and each["connections"]["hardware"] == 2
        assert each["bytes"]["hardware"] > 5 * first["bytes"]["hardware"]


def test_a_larger_table_never_has_fewer_bytes_in_hardware(capfd, tmp_path):
    traffic = [conn(40000 + i, 10 + 3 * i, at=37 * i, size=50 + 10 * i) for i in range(12)]
    found = planned(capfd, written(tmp_path / "some.pcap", *traffic), "--nic", "perfect", "--table", "0,1,2,4,8,16,24")
    [unlimited, *limited] = [each["bytes"]["hardware"] for each in found]
    assert limited == sorted(limited) and limited[0] < limited[-1] == unlimited == sum(sizes(each[3:]) for each in traffic)


def test_a_slow_nic_has_a_queue_and_takes_less(capfd, tmp_path):
    traffic = [conn(40000 + i, 30, at=i) for i in range(20)]
    slow, fast, instant = planned(capfd, written(tmp_path / "burst.pcap", *traffic), "--nic", "perfect", "--inserts", "10,1000,0")
    shares = [each["packets"]["share"] for each in (slow, fast, instant)]
    assert shares == sorted(shares) and shares[0] < shares[2]
    # Twenty connections ask within 20 ms; of ten entries a second the first is there at once.
    assert (slow["waiting_most"], instant["waiting_most"], instant["packets"]["hardware"]) == (20, 0, 600)
    assert slow["entries_most"] < 40 == instant["entries_most"]


def test_a_sweep_is_every_combination_once(capfd, tmp_path):
    capture = written(tmp_path / "one.pcap", conn(40000, 2))
    argv = ("--nic", "tiny", "--nic", "perfect", "--nic", "tiny", "--policy", "first-come,by-rate", "--table", "1,2,2", "--inserts", "5,0")
    found = [(each["nic"], each["policy"], each["table"], each["inserts"]) for each in planned(capfd, capture, *argv)]
    assert found == [
        (nic, policy, table, rate) for nic in ("tiny", "perfect") for policy in ("first-come", "by-rate") for table in (1, 2) for rate in (5.0, 0.0)
    ]


talks = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3000), st.integers(1, 400), st.integers(0, 700), st.booleans()), min_size=1, max_size=8)
kinds = st.tuples(st.sampled_from(profile.names()), st.integers(0, 9), st.sampled_from([0, 3, 100]))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=examples(40))
@given(talks, kinds)
def test_whatever_comes_each_packet_is_counted_once(tmp_path, talks, kind):
    traffic = [conn(40000 + i, n, at=at, every=every, size=size, fin=fin) for i, (n, at, every, size, fin) in enumerate(talks)]
    name, table, inserts = kind
    (scenario,) = scenarios([profile.load(name)], ["by-bytes"], [table], [inserts])
    found = figures(tried([written(tmp_path / "some.pcap", *traffic)], Tracking(Config()), scenario))
    consistent(found)
    assert (found["packets"]["all"], found["bytes"]["all"]) == (sum(map(len, traffic)), sum(map(sizes, traffic)))
    assert found["connections"]["all"] == len(talks)


# --- what is shown ----------------------------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_scenario(capfd, tmp_path):
    capture = written(tmp_path / "two.pcap", conn(40000, 20), conn(40001, 20, at=50))
    code, out, err = run(capfd, "offload", "plan", capture, "--nic", "perfect", "--table", "2,0")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert ["NIC", "perfect,", "policy", "first-come,", "inserts/s", "any"] in lines
    assert ["table", "packets", "bytes", "conns", "entries", "refused", "queue", "saved"] in lines
    (row,) = (line for line in lines if line[:2] == ["2", "43.5%"])  # 20 of 46 packets
    assert row[3:5] == ["50.0%", "2"] and row[-1] == "20"
    (row,) = (line for line in lines if line[:2] == ["any", "87.0%"])
    assert row[3:] == ["100.0%", "4", "0", "0", "40"]
    assert ["0", "to", "20", "hw_full", "hardware", "has", "no", "room", "for", "its", "rule"] in lines
    code, out, _ = run(capfd, "offload", "plan", capture, "--nic", "perfect", "-v")
    assert "busiest second: 24 packets; the most that software had in one: 6" in out and "inserted 4 entries, evicted 0 connections" in out


def test_nothing_of_a_wide_table_is_cut_off(capfd, tmp_path):
    capture = written(tmp_path / "one.pcap", conn(40000, 2))
    argv = ("--nic", "tiny", "--nic", "perfect", "--policy", "first-come,by-rate", "--table", "1000000,2000000", "--inserts", "1000000,2000000")
    code, out, _ = run(capfd, "offload", "plan", capture, *argv)
    lines = [line.split() for line in out.splitlines()]
    columns = ["NIC", "policy", "table", "inserts/s", "packets", "bytes", "conns", "entries", "refused", "queue", "saved"]
    assert code == 0 and columns in lines and "…" not in out
    assert sum(line[:1] in (["tiny"], ["perfect"]) and len(line) == len(columns) for line in lines) == 16


def test_a_capture_without_packets_has_no_shares(capfd, tmp_path):
    (tmp_path / "empty.pcap").write_bytes(Path(written(tmp_path / "one.pcap", conn(40000, 1))).read_bytes()[:24])
    argv = (tmp_path / "empty.pcap", "--nic", "tiny", "--plot", tmp_path / "empty.png")
    code, out, err = run(capfd, "offload", "plan", *argv)
    assert (code, err) == (0, "") and out.startswith("0 packets, 0 B, 0 connections\n") and "  none\n" in out
    (scenario,) = planned(capfd, *argv)
    assert [scenario[name]["share"] for name in ("packets", "bytes", "connections")] == [None, None, None]
    assert (scenario["reasons"], scenario["seconds"]) == ([], [])


def test_json_goes_to_a_file_or_to_stdout_with_the_table_beside_it(capfd, tmp_path):
    capture = written(tmp_path / "one.pcap", conn(40000, 5))
    code, out, err = run(capfd, "offload", "plan", capture, "--nic", "perfect", "--json")
    assert code == 0 and "saved" in err
    code, table, err = run(capfd, "offload", "plan", capture, "--nic", "perfect", "--json", tmp_path / "plan.json")
    assert (code, err) == (0, "") and "saved" in table
    written_, printed = json.loads((tmp_path / "plan.json").read_text()), json.loads(out)
    assert written_ == printed and (printed["captures"], printed["rules"]) == ([capture], None)


def test_a_plot_is_written_as_its_name_says(capfd, tmp_path):
    capture = written(tmp_path / "one.pcap", conn(40000, 25, fin=True))
    for ending in ("png", "svg", "html"):
        for name in ("a", "b"):
            plot = tmp_path / f"{name}.{ending}"
            assert run(capfd, "offload", "plan", capture, "--nic", "perfect", "--nic", "tiny", "-q", "--plot", plot) == (0, "", "")
        assert (tmp_path / f"a.{ending}").read_bytes() == (tmp_path / f"b.{ending}").read_bytes()
    png, svg, page = ((tmp_path / f"a.{ending}").read_bytes() for ending in ("png", "svg", "html"))
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and png[12:16] == b"IHDR" and len(png) > 10_000
    assert b"<svg" in svg and b"tiny, first-come, 64 entries, 100 inserts/s" in svg
    assert page.startswith(b"<!doctype html>") and b"<svg" in page and b"<td>perfect</td>" in page


def test_replies_for_whose_rule_there_is_no_room_say_so(capfd, tmp_path):
    """Half of the connection is in hardware, with the only entry; the NIC itself knows no more than that the other half is not."""
    talk = [(at * SECOND, craft.udp(CLIENT, SERVER, 5000, 53, b"?")) for at in range(12)]
    talk += [(at * SECOND + 50 * MS, craft.udp(SERVER, CLIENT, 53, 5000, b"!")) for at in range(12)]
    (scenario,) = planned(capfd, written(tmp_path / "half.pcap", sorted(talk)), "--nic", "perfect", "--table", "1")
    reasons = packets_of(scenario)
    assert scenario["refused"]["full"] > 0 and scenario["packets"]["hardware"] == 11  # all that was asked but the first
    assert reasons["hw_full"] >= 8 and reasons.get("nic:ct_miss", 0) <= 1


@pytest.mark.parametrize(("conns", "said"), [((3, 3), ", 3 connections"), ((4, 1), ", 1 to 4 connections")])
def test_scenarios_with_other_numbers_of_connections_have_a_range(tmp_path, conns, said):
    """What hardware keeps in the flow table is one connection where it is two without."""
    capture = written(tmp_path / "one.pcap", conn(40000, 1))
    outcomes = [tried([capture], Tracking(Config()), each) for each in scenarios([profile.load("tiny")], ["first-come"], [16, 64])]
    console = Console(file=StringIO(), width=80)
    show([replace(outcome, connections=n) for outcome, n in zip(outcomes, conns, strict=True)], console, verbose=False)
    assert console.file.getvalue().splitlines()[0].endswith(said)


def test_the_curves_are_the_seconds(tmp_path):
    from datapath.commands.offload_plot import drawn

    (scenario,) = scenarios([profile.load("perfect")], ["first-come"])
    traffic = conn(40000, 25, fin=True)
    figure = drawn([tried([written(tmp_path / "one.pcap", traffic)], Tracking(Config()), scenario)])
    shares, entries = figure.axes
    (line,) = shares.get_lines()
    first = sizes(traffic[3:12]) / sizes(traffic[:12])
    assert line.get_xdata().tolist() == [0, 1, 2] and line.get_ydata().tolist()[:2] == [100 * first, 100]
    (line,) = entries.get_lines()
    assert line.get_ydata().tolist() == [2, 2, 2]


def test_rules_say_what_is_offloaded(capfd, tmp_path):
    (tmp_path / "half.tc").write_text(
        "tc qdisc add dev eth0 clsact\ntc filter add dev eth0 ingress protocol ip prio 1 flower ct_state -trk ip_proto tcp dst_port 80 action pass\n"
    )
    capture = written(tmp_path / "one.pcap", conn(40000, 5))
    (scenario,) = planned(capfd, capture, "--nic", "perfect", "--rules", tmp_path / "half.tc", "--device", "eth0")
    consistent(scenario)
    assert (scenario["packets"]["hardware"], scenario["connections"]["all"]) == (7, 0)  # all but the SYN/ACK, by the rule itself
    assert packets_of(scenario) == {"nic:no_rule": 1}


TRACKS = """
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress chain 0 prio 1 protocol ip flower ct_state -trk action ct {zone}pipe action goto chain 1
tc filter add dev eth0 ingress chain 1 prio 1 protocol ip flower ct_state +trk+new action ct commit {set}{zone}pipe action pass
tc filter add dev eth0 ingress chain 1 prio 2 protocol ip flower ct_state +trk+est {match}action pass
"""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({"match": "ct_label 02/ff ", "set": "label 02 "}, "masked_label"),
        ({"set": "nat dst addr 10.9.9.9 "}, "nat_table_mismatch"),  # the first `ct` asks for no translation: CT_NAT is not asked
    ],
)
def test_what_the_contract_has_a_code_for_is_told_by_it_and_not_by_the_nics(capfd, tmp_path, words, code):
    """A10: of what is in the flow table and in hardware, and is not hardware's all the same."""
    (tmp_path / "rules.tc").write_text(TRACKS.format(**{"match": "", "set": "", "zone": "", **words}))
    traffic = [(ms * MS, craft.udp(CLIENT, SERVER, 40000, 53, b"?")) for ms in (0, 100, 200)]
    answer = [(50 * MS, craft.udp(SERVER if "match" in words else "10.9.9.9", CLIENT, 53, 40000, b"!"))]
    capture = written(tmp_path / "one.pcap", traffic[:1], answer, [(ms + 3 * SECOND, each) for ms, each in traffic])
    (scenario,) = planned(capfd, capture, "--nic", "connectx-7-hw", "--rules", tmp_path / "rules.tc", "--device", "eth0")
    consistent(scenario)
    assert packets_of(scenario)[code] >= 2, packets_of(scenario)


# --- what is refused --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], "Missing option '--nic'"),
        (["--nic", "nope"], "nope: no such NIC: expected one of connectx-6dx-sw, connectx-7-hw, none, perfect, tiny, or a file that ends in .toml"),
        (["--nic", "nope.toml"], "nope.toml: cannot be read: No such file or directory"),
        (["--nic", "tiny", "--table", "16,x"], "Invalid value for '--table': '16,x': expected numbers from 0 (no limit) to 268,435,456"),
        (["--nic", "tiny", "--inserts", "-1"], "Invalid value for '--inserts': '-1': expected numbers from 0 (at once) to 1,000,000,000"),
        (["--nic", "tiny", "--policy", "best"], "Invalid value for '--policy': 'best': expected first-come, by-rate, by-bytes"),
        (["--nic", "tiny", "--plot", "plan.pdf"], "plan.pdf: expected a plot's name to end in .png, .svg or .html"),
        (["--nic", "tiny", "--snat", "192.0.2.1"], "--snat: not with --nic, where actions say it"),
        (["--nic", "tiny", "--clock", "wall"], "--clock wall: expected it without --nic: rules go by the packets' own time"),
        (["--nic", "tiny", "--device", "eth0"], "--device: expected --rules with it"),
        (["--nic", "tiny", "--json", "p.svg", "--plot", "p.svg"], "p.svg: expected a file of its own for each output"),
        (["nowhere.pcap", "--nic", "tiny"], "nowhere.pcap: No such file or directory"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(capfd, tmp_path, monkeypatch, argv, error):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, "offload", "plan", written(tmp_path / "one.pcap", conn(40000, 1)), *argv)
    assert (code, out) == (2, "")
    assert err.startswith(f"ctmirror: {error}") and err.count("\n") == 1


def test_whether_files_can_be_written_is_known_before_anything_is_replayed(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(offload_plan, "tried", lambda *_: pytest.fail("nothing is to be replayed"))
    capture = written(tmp_path / "one.pcap", conn(40000, 1))
    for option, name in (("--json", "none/plan.json"), ("--plot", "none/plan.svg")):
        code, out, err = run(capfd, "offload", "plan", capture, "--nic", "tiny", option, tmp_path / name)
        assert (code, out, err) == (2, "", f"ctmirror: {tmp_path / name}: cannot be written: No such file or directory\n")


def test_what_is_done_when_it_is_interrupted_is_told(capfd, tmp_path, monkeypatch):
    found = []

    def once(*given):
        if found:
            raise KeyboardInterrupt
        found.append(tried(*given))
        return found[0]

    monkeypatch.setattr(offload_plan, "tried", once)
    capture = written(tmp_path / "one.pcap", conn(40000, 1))
    code, out, _ = run(capfd, "offload", "plan", capture, "--nic", "tiny", "--table", "1,2", "-q", "--json")
    assert (code, [each["table"] for each in json.loads(out)["scenarios"]]) == (130, [1])


def test_who_looks_on_changes_nothing(tmp_path):
    traffic = [conn(40000 + i, 10 + i, at=7 * i, fin=bool(i % 2)) for i in range(30)]
    capture, shares = written(tmp_path / "some.pcap", *traffic), []
    for watch in (None, Series):
        tracking, kind = behind_nic(Tracking(Config()), NicGiven(profile.load("tiny"), "by-rate", watch))
        work = replay([capture], tracking, Outputs(), summary=False, kind=kind).nic
        shares.append(
            (work.shares.hardware, work.shares.hardware_bytes, work.shares.why, work.mirror.counters(), work.pipeline.summary()["total_packets"])
        )
    assert shares[0] == shares[1]


def test_stdin_is_for_one_scenario_only(capfd):
    code, _, err = run(capfd, "offload", "plan", "-", "--nic", "tiny", "--table", "1,2")
    assert (code, err) == (2, "ctmirror: -: stdin can be read once, and there are 2 scenarios: expected a file\n")


def test_libraries_that_are_missing_are_told_before_anything_is_replayed(capfd, tmp_path, monkeypatch):
    from datapath.commands import offload_plot

    capture = written(tmp_path / "one.pcap", conn(40000, 1))
    monkeypatch.setattr(offload_plot, "find_spec", lambda name: None)
    code, out, err = run(capfd, "offload", "plan", capture, "--nic", "tiny", "--plot", "plan.png")
    assert (code, out) == (2, "") and err.startswith("ctmirror: plan.png: plots need matplotlib: ") and "'ctmirror[plot]'" in err
    monkeypatch.setattr(nic_option, "find_spec", lambda name: None)
    code, out, err = run(capfd, "offload", "plan", capture, "--nic", "tiny")
    assert (code, out) == (2, "") and err.startswith("ctmirror: NICs are simulated by numba and pydantic: ") and "'ctmirror[nic]'" in err


def test_a_damaged_capture_is_planned_as_far_as_it_goes(capfd, tmp_path):
    whole = written(tmp_path / "whole.pcap", conn(40000, 5))
    data = Path(whole).read_bytes()
    (tmp_path / "cut.pcap").write_bytes(data[:-20])
    code, out, err = run(capfd, "offload", "plan", tmp_path / "cut.pcap", "--nic", "perfect", "-q", "--json")
    assert code == 2 and "truncated" in err and err.count("\n") == 1
    assert json.loads(out)["scenarios"][0]["packets"]["hardware"] == 4


def test_what_is_no_capture_has_no_plan(capfd, tmp_path):
    (tmp_path / "noise").write_bytes(b"noise" * 100)
    for more in ((), ("--json",)):
        code, out, err = run(capfd, "offload", "plan", tmp_path / "noise", "--nic", "perfect", *more)
        assert (code, out) == (2, "") and "not a capture" in err and err.count("\n") == 1


# --- docs/offload.md --------------------------------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
SHOWN = re.findall(r"^```\n\$ ctmirror (offload .*)\n((?:.*\n)*?)```$", (ROOT / "docs/offload.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("number", range(len(SHOWN)))
def test_the_outputs_of_the_page_are_those_of_today(capfd, monkeypatch, number):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "80")
    command, text = SHOWN[number]
    code, out, err = run(capfd, *command.split())
    assert (code, err) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == text.splitlines(), "docs/offload.md is old"


def test_the_page_shows_each_command():
    assert [command.split()[1] for command, _ in SHOWN] == ["plan", "why", "audit"]
