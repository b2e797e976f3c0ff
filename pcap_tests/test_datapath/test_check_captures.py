"""`ctmirror check CAPTURE --expect FILE`: packet records saved and compared, through rules, too.

Not here: scenarios, JUnit XML, and what is refused (test_check).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from datapath.cli import main
from pcap_tests.test_datapath.checking import GOOD, refused, run


def test_a_captures_records_are_saved_and_compared(capfd, office, tmp_path):
    saved = tmp_path / "office.jsonl"
    assert run(capfd, office, "--expect", saved, "--update")[0] == 0
    main(["replay", str(office), "--packets", str(tmp_path / "replayed.jsonl"), "--quiet"])
    assert saved.read_bytes() == (tmp_path / "replayed.jsonl").read_bytes()
    packets = len(saved.read_bytes().splitlines())
    assert run(capfd, office, "--expect", saved)[:2] == (0, f"engine: 1 file, {packets} packets, {packets} expectations; no difference\n")
    code, out, _ = run(capfd, office, "--expect", saved, "--zone", "4")
    assert code == 1
    assert f"{office} #0  10.0.0.1 port" in out
    assert f"ctmirror explain {office} --packet 0 --zone 4\n" in out
    assert f"ctmirror check {office} --expect {saved} --update --zone 4     # if this" in out


def test_only_fields_that_were_saved_are_compared(capfd, office, tmp_path):
    saved = tmp_path / "office.jsonl"
    run(capfd, office, "--expect", saved, "--update")
    records = [json.loads(line) for line in saved.read_text().splitlines()]
    kept = [{"i": one["i"], "state": one["state"], "reason": None} for one in records]
    saved.write_text("".join(json.dumps(one) + "\n" for one in kept))
    assert run(capfd, office, "--expect", saved, "--zone", "4")[0] == 0
    kept[3]["state"] = "untracked"
    saved.write_text("".join(json.dumps(one) + "\n" for one in kept))
    code, out, _ = run(capfd, office, "--expect", saved)
    assert code == 1
    assert " #3  " in out
    assert "  state  untracked" in " ".join(out.split("\n"))


def test_missing_and_superfluous_packets_differ(capfd, office, tmp_path):
    saved = tmp_path / "office.jsonl"
    run(capfd, office, "--expect", saved, "--update")
    lines = saved.read_text().splitlines(keepends=True)
    saved.write_text("".join(lines[:-1]))
    code, out, _ = run(capfd, office, "--expect", saved)
    assert code == 1
    assert "  packet  absent    present" in out
    saved.write_text("".join([*lines, lines[-1]]))
    assert "  packet  present   absent" in run(capfd, office, "--expect", saved)[1]


def test_a_damaged_capture_is_an_error_and_what_was_before_it_is_compared(capfd, office, tmp_path):
    saved, cut = tmp_path / "office.jsonl", tmp_path / "cut.pcap"
    run(capfd, office, "--expect", saved, "--update")
    cut.write_bytes(Path(office).read_bytes()[:-3])
    code, out, err = run(capfd, cut, "--expect", saved, "--junit", tmp_path / "out.xml", "--verbose")
    assert (code, err.count("\n")) == (2, 1)
    assert "truncated" in err
    assert "not judged to the end" in out
    assert ET.parse(tmp_path / "out.xml").find("testsuite/testcase/error") is not None


def test_several_captures_continue_one_another(capfd, office, tmp_path):
    saved = tmp_path / "both.jsonl"
    assert run(capfd, office, office, "--expect", saved, "--update")[0] == 0
    assert run(capfd, office, office, "--expect", saved)[0] == 0
    assert run(capfd, office, "--expect", saved)[0] == 1


def test_a_record_that_is_missing_is_one_difference(capfd, office, tmp_path):
    saved = tmp_path / "office.jsonl"
    run(capfd, office, "--expect", saved, "--update")
    lines = saved.read_text().splitlines(keepends=True)
    saved.write_text("".join([*lines[:5], *lines[6:]]))
    code, out, _ = run(capfd, office, "--expect", saved)
    assert code == 1 and f"{office}  engine: 1 of 19 packets differ" in out and f"{office} #5  " in out


@pytest.mark.parametrize("named", [True, False])
def test_of_several_captures_each_record_finds_its_own(capfd, office, tmp_path, named):
    """By the capture's name, wherever it lies, or since a number below the last one begins the next capture."""
    saved, other = tmp_path / "both.jsonl", tmp_path / "other.pcap"
    other.write_bytes(Path(office).read_bytes())
    run(capfd, office, other, "--expect", saved, "--update")
    kept = [record for record in map(json.loads, saved.read_text().splitlines()) if record["i"] % 2 or record["i"] > 4]
    for record in kept:
        record["file"] = "elsewhere/" + os.path.basename(record["file"])
        if not named:
            del record["file"]
    saved.write_text("".join(json.dumps(record) + "\n" for record in kept))
    code, out, _ = run(capfd, office, other, "--expect", saved)
    assert code == 1
    assert [f"{name} #{i}  " in out for name in (office, other) for i in (0, 1, 2, 4, 6)] == [True, False, True, True, False] * 2


def test_update_writes_over_saved_records_only(capfd, office, tmp_path):
    """Whoever names the rules where the records are meant does not lose them."""
    rules, saved = tmp_path / "rules.tc", tmp_path / "office.jsonl"
    rules.write_text("tc filter add dev eth0 ingress protocol ip flower action drop\n")
    assert "something else than packet records" in refused(capfd, office, "--expect", rules, "--update")
    assert rules.read_text().startswith("tc filter")
    saved.touch()
    assert run(capfd, office, "--expect", saved, "--update")[0] == 0
    assert run(capfd, office, "--expect", saved, "--update")[0] == 0
    assert saved.stat().st_size


# --- through rules ---------------------------------------------------------------------------------------------------------------------

WEB = """\
tc filter add dev eth0 ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct zone 3 pipe action goto chain 1
tc filter add dev eth0 ingress protocol ip prio 1 chain 1 flower ct_state +trk+new ip_proto tcp dst_port 80 \
    action ct zone 3 commit pipe action mirred egress redirect dev eth1
tc filter add dev eth0 ingress protocol ip prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev eth1
tc filter add dev eth0 ingress protocol ip prio 3 chain 1 flower action drop
"""


@pytest.fixture
def web(tmp_path):
    (tmp_path / "web.tc").write_text(WEB)
    return tmp_path / "web.tc"


def test_records_of_packets_that_went_through_rules(capfd, office, web, tmp_path):
    saved, rules = tmp_path / "office.jsonl", ["--rules", web, "--device", "eth0"]
    assert run(capfd, office, "--expect", saved, "--update", *rules)[0] == 0
    main(["replay", str(office), "--packets", str(tmp_path / "replayed.jsonl"), "--quiet", *map(str, rules)])
    assert saved.read_bytes() == (tmp_path / "replayed.jsonl").read_bytes()
    records = [json.loads(line) for line in saved.read_text().splitlines()]
    assert (records[0]["to"], records[0]["rule"], records[0]["offload"]) == ("eth1", f"{web}:2", "not:tcp_state")
    assert {record["offload"] for record in records} >= {"software", None} and {record["to"] for record in records} == {"eth0", "eth1", None}
    assert run(capfd, office, "--expect", saved, *rules)[:2] == (0, "engine: 1 file, 19 packets, 19 expectations; no difference\n")


def test_rules_that_say_something_else_differ_and_those_that_lie_elsewhere_do_not(capfd, office, web, tmp_path):
    saved = tmp_path / "office.jsonl"
    run(capfd, office, "--expect", saved, "--update", "--rules", web, "--device", "eth0")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "web.tc").write_text(WEB)
    assert run(capfd, office, "--expect", saved, "--rules", tmp_path / "new" / "web.tc", "--device", "eth0")[0] == 0
    web.write_text(WEB.replace("dst_port 80", "dst_port 81"))
    code, out, _ = run(capfd, office, "--expect", saved, "--rules", web, "--device", "eth0")
    assert code == 1
    words = [line.split() for line in out.splitlines()]
    assert ["to", "eth1", "-"] in words and ["rule", "web.tc:2", "web.tc:4"] in words
    command = next(line for line in out.splitlines() if "ctmirror explain" in line)
    assert main([*command.split()[1:], "--quiet"]) == 0
    assert "does not: dst_port 81; the packet has 80" in capfd.readouterr().out


def test_rules_are_for_captures(capfd, office, web, tmp_path):
    (tmp_path / "open.ct").write_text(GOOD)
    assert "expected no scenario with it" in refused(capfd, tmp_path / "open.ct", "--rules", web)
    assert "expected --rules with it" in refused(capfd, office, "--expect", tmp_path / "x", "--device", "eth0")
    web.write_text(WEB.replace("dev eth0", "dev eth9", 1))
    assert "expected --device" in refused(capfd, office, "--expect", tmp_path / "x.jsonl", "--update", "--rules", web)
