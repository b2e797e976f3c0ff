"""`ctmirror stats`, `top` and `control` before a running node."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from datapath import craft
from datapath.commands import top as top_command
from datapath.live.drivers import Opened
from datapath.live.figures import condition_of
from datapath.live.lost import LOOP, ROUTER, losses
from datapath.live.shown import _latency, stats_parts, top_parts
from pcap_tests.test_datapath.command import records, run
from pcap_tests.test_datapath.test_live.noded import COMMIT, running

A, B = "10.0.0.1", "10.0.0.2"


@pytest.fixture
def rig(tmp_path):
    with running(tmp_path) as rig:
        rig.send(craft.tcp(A, B, 40000, 80, "S", seq=1), craft.tcp(A, B, 40001, 80, "S", l4_checksum=1), craft.udp(A, B, 4000, 53, b"?"))
        rig.send(craft.udp("2001:db8::1", "2001:db8::2", 4000, 53, b"?"), iface=1)
        yield rig


@pytest.fixture
def ctmirror(rig, capfd):
    return lambda *argv: run(capfd, *argv, "--socket", rig.path)


def test_stats_as_json_have_everything(ctmirror):
    code, out, err = ctmirror("stats", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert (told["packets"], told["verdicts"]) == (4, {"accept": 4, "drop": 0, "held": 0})
    assert told["states"]["new"] == {"packets": 3, "bytes": 54 + 43 + 63}
    assert told["reasons"] == {"ok": 3, "tcp_checksum": 1}
    assert told["table"] == {"connections": 3, "max": 262144, "zones": {"0": 2, "5": 1}}
    assert [(iface["name"], iface["driver"], iface["condition"]) for iface in told["ifaces"]] == [("eth0", "null", "up"), ("eth1", "null", "up")]
    assert (told["flowtable"]["admitted"], told["tracker"]["new"], told["events"]["events"]) == (2, 3, 3)
    assert [(rule["packets"], rule["place"].rpartition("/")[2]) for rule in told["rules"]["top"]] == [(3, "rules.tc:2:1"), (1, "rules.tc:4:1")]
    assert told["rules"]["top"][0]["rule"].startswith("tc filter add dev eth0 ingress ")
    assert (told["control"]["clients"], told["control"]["requests"]) == (1, 1)


def test_stats_for_people_fit_a_pipe(ctmirror):
    code, out, err = ctmirror("stats")
    assert (code, err) == (0, "")
    assert out.startswith("up ") and "4 packets, 214 B;" in out
    assert "3 of 262,144 connections; zones: 0 has 2, 5 has 1\n" in out
    for line in ("new            3  75.0%       160 B", "invalid        1  25.0%        54 B", "tcp_checksum  1", "  2 of 2 rules have matched"):
        assert line in out.splitlines(), out
    assert "held" not in out  # what is 0
    assert max(map(len, out.splitlines())) <= 80


def told(ctmirror):
    return json.loads(ctmirror("stats", "--json")[1])


def shown(parts):
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        for part in parts:
            console.print(part, highlight=False)
    return captured.get()


def test_what_a_quiet_node_has_not_is_shown_when_it_is_there(ctmirror):
    """Queues, pools, and interfaces with losses."""
    stats = told(ctmirror)
    stats["pools"] = [{"rule": 2, "kind": "snat", "text": "192.0.2.1", "size": 64512, "in_use": 3, "high_water": 4, "exhausted": 1}]
    stats["ifaces"][1] |= {"name": "eth0", "queue": 1, "rx_ring_full": 1234}
    text = shown(stats_parts(stats))
    assert "192.0.2.1    snat  64,512       3     4          1" in text
    assert re.search(r"^eth0 queue 1 +rx_ring_full +1,234 +frames the kernel dropped since we did not take them fast enough *$", text, re.M)


def test_an_interface_has_gone_with_all_its_queues():
    """Only one that sends or receives notices."""
    queues = [SimpleNamespace(condition=condition) for condition in ("up", "gone", "up")]
    assert [condition_of(Opened("eth0", "xdp-native", queues), queue) for queue in queues] == ["gone"] * 3
    assert condition_of(Opened("eth0", "xdp-native", queues[:1]), queues[0]) == "up"


def test_a_router_s_frames_are_told_beside_its_packets(ctmirror):
    stats = told(ctmirror)
    assert "frames received" not in shown(stats_parts(stats))
    stats["router"], stats["loop"]["frames"] = {"forwarded": 2}, 3
    assert "\n3 frames received; a routed one counts as two packets, in and out\n" in shown(stats_parts(stats))


def test_where_packets_were_lost_is_told_in_the_order_of_their_way(ctmirror):
    """At an interface, between workers, by a decision, by the router, on the way out; what does not stand for a loss is not among them."""
    stats = told(ctmirror)
    assert list(losses(stats)) == []
    stats["ifaces"][0] |= {"rx_shed": 5, "rx_completed": 6, "tx_refused": 7, "kicks": 8}
    stats["loop"] |= {"lane_full": 9, "handed": 10, "not_sent": 7, "nobody": 11}
    stats["reasons"] |= {"rule_drop": 12, "tcp_ignored": 13, "overload": 14}
    stats["router"] = {"forwarded": 15, "held_dropped": 16, "no_neighbour": 18, "held": 18, "errors": 17}
    assert [(loss.where, loss.counter, loss.packets) for loss in losses(stats)] == [
        ("eth0", "rx_shed", 5), ("loop", "lane_full", 9), ("loop", "nobody", 11), ("decision", "rule_drop", 12), ("decision", "overload", 14),
        ("router", "held_dropped", 16), ("eth0", "tx_refused", 7),
    ]  # fmt: skip
    text = shown(stats_parts(stats))
    assert re.search(r"^lost at +counter +packets *$", text, re.M)
    assert re.search(r"^decision +rule_drop +12 +a rule says so", text, re.M)
    assert "eth0: rx_completed 6, kicks 8\n" in text and re.search(r"^forwarded +15$", text, re.M) and "handed" in text


def test_every_counter_of_a_loss_is_known_by_its_name():
    """A counter that is added to loop, lanes or router has to be said to be a loss, or not."""
    from datapath.live import gather, handoff, loop, router

    kept = {"rounds", "frames", "waits", "sent", "not_sent", "frame_ns", "handed", "taken", "fragments_waited"}
    assert set(LOOP) | kept == {*loop.COUNTERS, *handoff.COUNTERS, *gather.COUNTERS}
    kept = {"forwarded", "cut", "no_neighbour", "errors", "errors_not_allowed", "errors_peer_limited", "errors_limited", "errors_no_way"}
    assert set(ROUTER) | kept == {*router.COUNTERS, "held_dropped"}


def test_what_rules_drop_has_a_column_where_there_is_something(ctmirror):
    stats = told(ctmirror)
    assert not re.search(r"^rule .* drops$", shown(stats_parts(stats)), re.M)
    stats["rules"]["top"][0]["drops"] = 3
    text = shown(stats_parts(stats))
    assert re.search(r"^rule +packets +wire bytes +drops", text, re.M) and re.search(r"^rules.tc:2:1 +3 +\d+ B +3 +dev eth0 ingress all ", text, re.M)


def test_top_once(rig, ctmirror):
    ctmirror("top", "--once", "--json", "-i", "0.1")
    rig.until(lambda: rig.control.desk.rates.age() > 0.1)
    rig.send(*(craft.udp(A, B, 4000, 53, b"x" * 972) for _ in range(100)))
    code, out, err = ctmirror("top", "--once", "-i", "0.1", "-n", "1")
    assert (code, err) == (0, "")
    head, columns, busiest = out.splitlines()
    assert head.startswith("3 connections, ")
    assert columns.split() == ["proto", "from", "to", "state", "flow", "pps", "per", "second"]
    assert busiest.split()[:5] == ["udp", "10.0.0.1:4000", "10.0.0.2:53", "unreplied", "software"]


def test_top_in_a_pipe_leaves_addresses_whole(rig, ctmirror):
    long = ("2001:db8:1111:2222:3333:4444:5555:6666", "2001:db8:7777:8888:9999:aaaa:bbbb:cccc")
    rig.send(craft.udp(*long, 40000, 50000))
    (line,) = (line for line in ctmirror("top", "--once", "-i", "0.1")[1].splitlines() if "2001:db8:1111" in line)
    assert f" [{long[0]}]:40000  [{long[1]}]:50000  " in line


def test_top_as_json_is_sorted(rig, ctmirror):
    ctmirror("top", "--once", "--json", "-i", "0.1")
    rig.send(*(craft.udp(A, B, 4000, 53) for _ in range(100)), *(craft.udp(A, B, 4001, 53, b"x" * 1400) for _ in range(5)))

    def first(by):
        rig.until(lambda: rig.control.desk.rates.age() > 0.2)
        rig.send(*(craft.udp(A, B, 4000, 53) for _ in range(100)), *(craft.udp(A, B, 4001, 53, b"x" * 1400) for _ in range(5)))
        found = records(ctmirror("top", "--once", "--json", "-i", "0.2", "--by", by)[1])
        assert [record["byte_rate" if by == "bytes" else "packet_rate"] for record in found] == sorted(
            (record["byte_rate" if by == "bytes" else "packet_rate"] for record in found), reverse=True
        )
        return found[0]["original"]["sport"]

    assert (first("packets"), first("bytes")) == (4000, 4001)


def test_top_goes_on_until_ctrl_c(ctmirror, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(top_command, "_sleep", sleep)
    code, out, _ = ctmirror("top", "-i", "0.1")
    assert (code, looks, out.count("3 connections, ")) == (0, [0.1] * 3, 3)


def test_top_on_a_terminal_fills_it(rig, monkeypatch):
    from io import StringIO

    from rich.console import Console

    def sleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(top_command, "_sleep", sleep)
    screen = Console(file=StringIO(), force_terminal=True, width=100, height=6, _environ={})
    with rig.client() as client, pytest.raises(KeyboardInterrupt):
        top_command._on_screen(client, {"most": None, "seconds": 0.1, "by": "bytes"}, screen)
    text = screen.file.getvalue()
    assert "3 connections, " in text and text.count("unreplied") + text.count("SYN_SENT") == 2  # six lines: two connections
    assert "\x1b[?1049h" in text and "\x1b[?1049l" in text  # the screen is given back


def test_names_of_ends():
    record = {
        "proto": "icmp", "zone": 3, "l4state": None, "status": ("seen-reply", "hw-offload"), "packet_rate": 1234.5, "byte_rate": 2e6,
        "original": {"src": "10.0.0.1", "dst": "10.0.0.2", "type": 8},
    }  # fmt: skip
    text = shown(top_parts({"top": [record], "connections": 1, "packet_rate": 1.0, "byte_rate": 2.0, "seconds": 1.0}))
    assert text.splitlines()[0].startswith("1 connection, ")
    assert text.splitlines()[-1].split() == ["icmp", "3", "10.0.0.1", "10.0.0.2", "replied", "hardware", "1,234", "2.00", "MB"]


# --- control ----------------------------------------------------------------------------------------------------------------------------------


def test_rules_are_replaced_by_those_of_a_file(rig, ctmirror, tmp_path):
    one = "tc qdisc add dev eth0 clsact\ntc filter add dev eth0 ingress prio 1 protocol ip flower ip_proto udp action ct commit pipe action pass\n"
    (tmp_path / "one.tc").write_text(one)
    assert ctmirror("control", "rules", str(tmp_path / "one.tc")) == (0, "1 rule\n", "")
    assert told(ctmirror)["rules"]["rules"] == 1
    code, out, _ = ctmirror("control", "rules", str(tmp_path / "one.tc"), "--established", "reevaluate")
    assert (code, out) == (0, "1 rule; 2 connections deleted that they would not let begin\n")
    (tmp_path / "none.tc").write_text("# nothing\n")
    code, out, err = ctmirror("control", "rules", str(tmp_path / "none.tc"))
    assert (code, out, err) == (0, "0 rules\n", f"ctmirror: warning: {tmp_path}/none.tc: no rules: everything passes untracked\n")
    assert ctmirror("control", "rules", str(tmp_path / "none.tc"), "-q") == (0, "", "")


def test_rules_may_come_by_stdin(rig):
    command = [sys.executable, "-m", "datapath", "control", "rules", "-", "--socket", rig.path]
    done = subprocess.run(command, input=COMMIT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 rules\n", "")


def test_rules_that_are_wrong_are_named_by_file_and_line(ctmirror, tmp_path):
    (tmp_path / "bad.tc").write_text("# a comment\ntc filter add dev eth0 dance\n")
    code, out, err = ctmirror("control", "rules", str(tmp_path / "bad.tc"))
    assert (code, out) == (2, "") and err.startswith(f"ctmirror: {tmp_path}/bad.tc:2:") and err.count("\n") == 1
    assert ctmirror("control", "rules", str(tmp_path / "none")) == (2, "", f"ctmirror: {tmp_path}/none: cannot be read: No such file or directory\n")
    (tmp_path / "latin.tc").write_bytes(b"caf\xe9")
    assert "byte 3 is no UTF-8" in ctmirror("control", "rules", str(tmp_path / "latin.tc"))[2]


def test_the_log_level_changes(ctmirror):
    log, before = logging.getLogger("ctmirror"), logging.getLogger("ctmirror").level
    try:
        log.setLevel("INFO")
        assert ctmirror("control", "log-level", "debug") == (0, "debug, was info\n", "")
        assert log.level == logging.DEBUG
        assert ctmirror("control", "log-level", "error", "--quiet") == (0, "", "")
    finally:
        log.setLevel(before)
    assert ctmirror("control", "log-level", "loud")[0] == 2


@pytest.mark.parametrize("argv", [["stats"], ["top", "--once"], ["control", "log-level", "info"]])
def test_without_a_node_there_is_one_line(capfd, tmp_path, argv):
    code, out, err = run(capfd, *argv, "--socket", str(tmp_path / "none"))
    assert (code, out) == (2, "") and "no node is running there" in err and err.count("\n") == 1


def test_latency_is_told_by_the_share_of_frames_that_were_as_fast():
    """Bounds are powers of two: 4 us hold what took 2,048 to 4,095 ns."""
    latency = {"1024": 500, "2048": 490, "65536": 9, "1048576": 1}
    assert list(_latency({})) == []
    _, said = _latency(latency)
    assert str(said) == "  half of all frames within 2 us, 99 in 100 within 4 us, 9,999 in 10,000 within 2.1 ms, all within 2.1 ms"
