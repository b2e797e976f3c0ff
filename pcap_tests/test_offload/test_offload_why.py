"""`ctmirror offload why` and `audit`: what is said of one connection, and of what hardware holds."""

from __future__ import annotations

import json
import re

import pytest

from datapath import craft
from offload.simnic.nic import Nic
from pcap_tests.test_datapath.command import records, run
from pcap_tests.test_offload.planned import CLIENT, MS, SECOND, SERVER, conn, written

ONE_COUNTER = "[counters]\naccounting = false\n"

pytestmark = pytest.mark.usefixtures("compiled_nic")


def why(capfd, capture: str, ordinal: int = 0, nic: object = "perfect", *more: object) -> dict[str, list[str]]:
    """The lines about a connection, by their labels; times are rounded to seconds."""
    code, out, err = run(capfd, "offload", "why", capture, "--conn", ordinal, "--nic", nic, *more)
    assert (code, err) == (0, "")
    found: dict[str, list[str]] = {}
    for line in out.splitlines():
        label, text = re.split(r"  +", line, maxsplit=1)
        found.setdefault(f"+{float(label):.0f}" if label.startswith("+") else label, []).append(text)
    return found


# --- one connection ---------------------------------------------------------------------------------------------------------------------


def test_a_connection_in_hardware(capfd, tmp_path):
    said = why(capfd, written(tmp_path / "one.pcap", conn(40000, 25)))
    assert said["connection"] == ["0  tcp 10.0.0.1:40000 > 192.0.2.1:80"]
    assert said["packets"] == ["25 packets forwarded in hardware, 3 in software"]
    assert said["at the end"] == ["in hardware"]
    assert said["+0"] == [
        "admitted to the flow table, and asked for in hardware: both directions (behind packet 2)", "in hardware (behind packet 2)",
    ]  # fmt: skip
    assert said["in software"] == [
        "2 packets: tcp_state: its TCP connection is not ESTABLISHED (A2.7)", "1 packet: pending: a job for it is on its way to hardware (A3.21)",
    ]  # fmt: skip
    assert "SYN" not in said


def test_what_hardware_has_counted_of_each_direction(capfd, tmp_path):
    requests = conn(40000, 25)
    answers = [(at + 50 * MS, craft.tcp(SERVER, CLIENT, 80, 40000, "A", seq=500, ack=200 + 100 * i)) for i, (at, _) in enumerate(requests[3:])]
    late = [(40 * SECOND, craft.icmp(CLIENT, SERVER, 8))]  # until then it was counted, and has left
    said = why(capfd, written(tmp_path / "both.pcap", requests, answers, late))
    size, answer = len(requests[3][1]), len(answers[0][1])
    assert said["counted"] == [f"original 25 packets of {25 * size:,} bytes, reply 25 packets of {25 * answer:,} bytes, as hardware told last"]
    assert said["at the end"] == ["not in hardware: teardown_idle: it was idle, and has left (A6.44)"]
    (left,) = (int(label[1:]) for label, texts in said.items() if any("left the flow table: teardown_idle" in text for text in texts))
    assert 32 <= left <= 36  # the last packet is of 2.57 s; T + 3 s (A6.51)


def test_a50_directions_that_one_counter_serves_are_unknown(capfd, tmp_path):
    (tmp_path / "one-counter.toml").write_text(ONE_COUNTER)
    capture = written(tmp_path / "one.pcap", conn(40000, 25), [(40 * SECOND, craft.icmp(CLIENT, SERVER, 8))])
    (text,) = why(capfd, capture, 0, tmp_path / "one-counter.toml")["counted"]
    assert text.startswith("25 packets of ") and text.endswith("in both directions; of each: unknown, since one counter serves both (A6.50)")


def test_what_hardware_has_not_told_is_unknown(capfd, tmp_path):
    (tmp_path / "stuck.toml").write_text("[[faults.script]]\nkind = 'stick'\n")
    capture = written(tmp_path / "one.pcap", conn(40000, 2))
    said = why(capfd, capture, 0, tmp_path / "stuck.toml")
    assert said["unknown"] == ["2 packets of 308 bytes: hardware has counted them, and told nobody"]
    said = why(capfd, capture)  # too young to have been asked about (A6.48), and read at the end
    assert said["counted"] == ["original 2 packets of 308 bytes, reply 0 packets of 0 bytes, as hardware told last"] and "unknown" not in said


def test_what_went_with_the_rules_is_unknown(capfd, tmp_path):
    said = why(capfd, written(tmp_path / "one.pcap", conn(40000, 10, fin=True), [(5 * SECOND, craft.icmp(CLIENT, SERVER, 8))]))
    assert said["counted"] == ["unknown: hardware has told of no packet"]
    assert said["unknown"] == ["11 packets of 1,594 bytes: hardware has counted them, and told nobody"]


def test_a_connection_that_ended(capfd, tmp_path):
    late = [(5 * SECOND, craft.icmp(CLIENT, SERVER, 8))]
    said = why(capfd, written(tmp_path / "one.pcap", conn(40000, 10, fin=True), late))
    assert said["at the end"] == ["not in hardware: teardown_fin: it has left with a FIN (A5.40)"]
    assert said["packets"] == ["11 packets forwarded in hardware, 5 in software"]  # the last ACK met a rule that still lived (A7.57)
    events = [text for label, texts in said.items() if label.startswith("+") for text in texts]
    assert events[2] == "left the flow table: teardown_fin: it has left with a FIN (behind packet 15)"  # at the next round
    assert events[3].startswith("its rules are gone from hardware") and len(events) == 4


def test_a_connection_without_a_place(capfd, tmp_path):
    (tmp_path / "small.toml").write_text("[table]\ncapacity = 2\n")
    capture = written(tmp_path / "two.pcap", conn(40000, 20), conn(40001, 20, at=50))
    said = why(capfd, capture, 1, tmp_path / "small.toml")
    assert said["at the end"] == ["not in hardware: hw_full: hardware has no room for its rule (A8.60)"]
    assert "20 packets: hw_full: hardware has no room for its rule (A8.60)" in said["in software"]
    assert said["packets"] == ["0 packets forwarded in hardware, 23 in software"] and "counted" not in said


def test_a_protocol_that_is_never_offloaded(capfd, tmp_path):
    said = why(capfd, written(tmp_path / "ping.pcap", [(0, craft.icmp(CLIENT, SERVER, 8, ident=7))]))
    assert said["at the end"] == ["not in hardware: proto: only TCP, UDP and plain GRE are offloaded (A2.13)"]
    assert "counted" not in said


def test_a27_a_syn_on_an_offloaded_connection_is_told(capfd, tmp_path):
    capture = written(tmp_path / "syn.pcap", conn(40000, 5), [(600 * MS, craft.tcp(CLIENT, SERVER, 40000, 80, "S", seq=1))])
    said = why(capfd, capture)
    assert said["SYN"] == ["packet 8: hardware forwarded a SYN as if of the established connection; software has not seen it (A4.27)"]
    assert said["packets"] == ["6 packets forwarded in hardware, 3 in software"]


def test_a27_a_syn_is_reproduced_counted_and_flagged(capfd, tmp_path):
    syn = craft.tcp(CLIENT, SERVER, 40000, 80, "S", seq=1)
    capture = written(tmp_path / "syn.pcap", conn(40000, 5), [(600 * MS, syn), (650 * MS, syn)], conn(40001, 2, at=700))
    packets = records(run(capfd, "replay", capture, "--nic", "perfect", "--packets", "-", "-q")[1])
    assert [(one["offload"], one["state"], one["verdict"]) for one in packets[8:10]] == [("hardware", "established", "accept")] * 2
    assert "2 SYNs forwarded in hardware as if of an established connection" in run(capfd, "replay", capture, "--nic", "perfect")[1]
    (scenario,) = json.loads(run(capfd, "offload", "plan", capture, "--nic", "perfect", "-q", "--json")[1])["scenarios"]
    assert scenario["syns_in_hardware"] == 2
    plan = run(capfd, "offload", "plan", capture, "--nic", "perfect", "-v")[1]
    assert "2 SYNs forwarded in hardware as if of an established connection (A4.27)" in plan
    assert why_document(capfd, capture)["syns"] == [8, 9]
    assert why_document(capfd, capture, 1)["syns"] == []


# --- as JSON ----------------------------------------------------------------------------------------------------------------------------


def why_document(capfd, capture: str, ordinal: int = 0, nic: object = "perfect") -> dict:
    code, out, err = run(capfd, "offload", "why", capture, "--conn", ordinal, "--nic", nic, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_json_of_a_connection_that_ended(capfd, tmp_path):
    traffic = conn(40000, 10, fin=True)
    capture = written(tmp_path / "one.pcap", traffic, [(5 * SECOND, craft.icmp(CLIENT, SERVER, 8))])
    said = why_document(capfd, capture)
    assert (said["captures"], said["conn"], said["nic"], said["tuple"]) == ([capture], 0, "perfect", "tcp 10.0.0.1:40000 > 192.0.2.1:80")
    assert (said["in_hardware"], said["was_in_hardware"]) == (False, True)
    assert said["why"] == {"code": "teardown_fin", "says": "it has left with a FIN", "item": "A5.40"}
    assert said["packets"] == {"hardware": 11, "software": 5}
    assert [one["event"] for one in said["events"]] == ["admitted", "installed", "left", "removed"]
    assert {one["code"]: one["packets"] for one in said["in_software"]} == {"tcp_state": 3, "pending": 1, "teardown_fin": 1}
    assert said["counted"] == {"original": None, "reply": None, "both": None, "unheard": {"packets": 11, "bytes": 1594}}


def test_a50_json_of_directions_that_one_counter_serves(capfd, tmp_path):
    (tmp_path / "one-counter.toml").write_text(ONE_COUNTER)
    capture = written(tmp_path / "one.pcap", conn(40000, 25))
    said = why_document(capfd, capture, 0, tmp_path / "one-counter.toml")
    assert (said["in_hardware"], said["why"]) == (True, None)
    assert said["counted"]["original"] is said["counted"]["reply"] is None and said["counted"]["both"]["packets"] == 25
    split = why_document(capfd, capture)["counted"]
    assert (split["original"]["packets"], split["reply"]["packets"], split["both"]["packets"]) == (25, 0, 25)


def test_json_of_what_was_never_in_hardware(capfd, tmp_path):
    said = why_document(capfd, written(tmp_path / "ping.pcap", [(0, craft.icmp(CLIENT, SERVER, 8, ident=7))]))
    assert (said["was_in_hardware"], said["why"]["code"], said["why"]["item"], said["counted"], said["events"]) == (False, "proto", "A2.13", None, [])


def test_json_of_an_audit(capfd, tmp_path, monkeypatch):
    capture = written(tmp_path / "two.pcap", conn(40000, 5), conn(40001, 5, at=50))
    code, out, err = run(capfd, "offload", "audit", capture, "--nic", "perfect", "--json")
    assert (code, err) == (0, "")
    figures = {"held": 4, "wanted": 4, "differ": 0, "pending": 0}
    agreed = {"captures": [capture], "nic": "perfect", "agree": True, **figures, "differences": [], "rules": []}
    assert json.loads(out) == agreed
    changed(monkeypatch, lambda rules: rules[(rules["conn"] != 1) | (rules["dir"] != 1)])
    code, out, _ = run(capfd, "offload", "audit", capture, "--nic", "perfect", "--json", "-o", tmp_path / "audit.json")
    assert (code, out) == (1, "")
    lines = ["connection 1, reply direction: hardware lacks a rule that it should have"]
    rules = [{"conn": 1, "direction": "reply", "found": "missing", "rule": None}]
    told = {**agreed, "agree": False, "held": 3, "differ": 1, "differences": lines, "rules": rules}
    assert json.loads((tmp_path / "audit.json").read_text()) == told


def test_the_answer_may_go_to_a_file(capfd, tmp_path):
    capture = written(tmp_path / "one.pcap", conn(40000, 2))
    assert run(capfd, "offload", "why", capture, "--conn", 0, "-o", tmp_path / "why.txt") == (0, "", "")
    assert (tmp_path / "why.txt").read_text().startswith("connection   0  tcp 10.0.0.1:40000 > 192.0.2.1:80\nNIC          connectx-7-hw\n")


def test_a_connection_that_is_none(capfd, tmp_path):
    capture = written(tmp_path / "one.pcap", conn(40000, 2))
    code, out, err = run(capfd, "offload", "why", capture, "--conn", 7)
    assert (code, out, err) == (2, "", f"ctmirror: {capture}: connection 7: there is none: expected number 0\n")
    (tmp_path / "empty.pcap").touch()
    code, out, err = run(capfd, "offload", "why", tmp_path / "empty.pcap", "--conn", 0)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "empty.pcap: empty: expected a pcap or pcapng header\n" in err
    code, _, err = run(capfd, "offload", "why", capture)
    assert code == 2 and err.startswith("ctmirror: --conn: expected it with a CAPTURE")


# --- an audit ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def capture(tmp_path):
    return written(tmp_path / "two.pcap", conn(40000, 5), conn(40001, 5, at=50))


def test_hardware_holds_what_it_should(capfd, capture):
    code, out, err = run(capfd, "offload", "audit", capture, "--nic", "perfect")
    assert (code, out, err) == (0, "4 rules in hardware, 4 that should be: they agree\n", "")


def changed(monkeypatch, change) -> None:
    """Hardware that holds something else than it was told."""
    held = Nic.held
    monkeypatch.setattr(Nic, "held", lambda nic: change(held(nic)))


def test_a_rule_that_lacks(capfd, capture, monkeypatch):
    changed(monkeypatch, lambda rules: rules[(rules["conn"] != 1) | (rules["dir"] != 1)])
    code, out, _ = run(capfd, "offload", "audit", capture, "--nic", "perfect")
    assert (code, out.splitlines()) == (
        1,
        ["connection 1, reply direction: hardware lacks a rule that it should have", "3 rules in hardware, 4 that should be: 1 differ"],
    )


def other_cookie(rules):
    rules["cookie"][(rules["conn"] == 1) & (rules["dir"] == 0)] ^= 1 << 40  # of another life of its row
    return rules


def other_target(rules):
    rules["to"]["dport"][(rules["conn"] == 0) & (rules["dir"] == 0)] = 8080
    return rules


def test_a_rule_that_nobody_knows(capfd, capture, monkeypatch):
    changed(monkeypatch, other_cookie)
    code, out, _ = run(capfd, "offload", "audit", capture, "--nic", "perfect")
    assert code == 1
    assert "original direction: hardware has a rule that it should not have: tcp 10.0.0.1:40001 > 192.0.2.1:80" in out
    assert "connection 1, original direction: hardware lacks a rule that it should have" in out


def test_a_rule_that_says_something_else(capfd, capture, monkeypatch):
    changed(monkeypatch, other_target)
    code, out, _ = run(capfd, "offload", "audit", capture, "--nic", "perfect")
    line = "connection 0, original direction: hardware has another rule than it should: tcp 10.0.0.1:40000 > 192.0.2.1:80"
    assert code == 1 and out.splitlines()[0] == line
    assert run(capfd, "offload", "audit", capture, "--nic", "perfect", "-q") == (1, "", "")


def test_what_is_on_its_way_is_left_out(capfd, tmp_path):
    (tmp_path / "slow.toml").write_text("[rates]\nlatency = 5000\n")
    capture = written(tmp_path / "one.pcap", conn(40000, 2))
    code, out, _ = run(capfd, "offload", "audit", capture, "--nic", tmp_path / "slow.toml")
    assert (code, out) == (0, "0 rules in hardware, 0 that should be; 1 connection with a job on its way left out: the others agree\n")


def test_captures_of_others_agree(capfd, captures_of_others):
    for each in sorted(captures_of_others.glob("*.pcap*"))[::6]:
        code, out, err = run(capfd, "offload", "audit", each, "--nic", "tiny")
        assert "differ" not in out and code == (2 if err else 0), each.name
