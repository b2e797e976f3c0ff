"""`ctmirror rules`: check, show, tc, yaml, schema."""

from __future__ import annotations

import io
import json
import os
import re

import pytest

from pcap_tests.test_datapath.command import in_process, run

GOOD = """\
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress protocol ip prio 2 flower ct_state -trk ip_proto tcp action ct zone 5 pipe action goto chain 1
tc filter add dev eth0 ingress protocol ip prio 1 chain 1 flower ct_state +trk+est action pass
tc filter add dev eth0 ingress protocol ip prio 2 chain 1 flower action drop
"""
BAD = "tc filter add dev eth0 ingress protocol ip flower ct_state +trk+new+est\ntc filter add dev eth0 ingress flower bogus 5\n"


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.tc"
    path.write_text(GOOD)
    return path


@pytest.fixture
def bad(tmp_path):
    path = tmp_path / "bad.tc"
    path.write_text(BAD)
    return path


def test_check_says_how_much_there_is(capfd, good):
    assert run(capfd, "rules", "check", good) == (0, f"{good}: 3 rules in 2 chains, ok\n", "")
    assert run(capfd, "rules", "check", "--quiet", good) == (0, "", "")


def test_check_says_all_that_is_wrong_and_goes_on_with_the_next_file(capfd, good, bad):
    code, out, err = run(capfd, "rules", "check", bad, good)
    assert (code, out) == (2, f"{good}: 3 rules in 2 chains, ok\n")
    assert err.splitlines() == [
        f"ctmirror: {bad}:1:51: 'ct_state +trk+new+est': new and est exclude each other",
        f"ctmirror: {bad}:2:39: 'bogus': expected a key of flower, skip_sw, skip_hw or action",
    ]


def test_warnings_go_to_stderr_and_harm_nobody(capfd, tmp_path):
    path = tmp_path / "rules"
    path.write_text("tc filter add dev eth0 ingress flower action goto chain 9\n")
    code, out, err = run(capfd, "rules", "check", path)
    assert (code, out) == (0, f"{path}: 1 rule in 1 chain, ok\n")
    assert err == f"ctmirror: warning: {path}:1:46: 'goto chain 9': dev eth0 ingress has no rule there: packets pass\n"
    assert run(capfd, "rules", "check", "--quiet", path) == (0, "", "")


def test_show_is_by_hook_chain_and_priority(capfd, good):
    code, out, err = run(capfd, "rules", "show", good)
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if not line.startswith(" ")] == [
        "dev eth0: clsact",
        "",
        "dev eth0 ingress, chain 0",
        "prio  handle  protocol  matches                      does",
        "",
        "dev eth0 ingress, chain 1",
        "prio  handle  protocol  matches            does",
    ]
    assert [line.split() for line in out.splitlines()[-2:]] == [
        ["1", "0x1", "ip", "ct_state", "+trk+est", "pass"],
        ["2", "0x1", "ip", "everything", "drop"],
    ]


def test_tc_and_yaml_make_each_other(capfd, good, tmp_path):
    _, yaml, _ = run(capfd, "rules", "yaml", good)
    (tmp_path / "good.yaml").write_text(yaml)
    _, script, _ = run(capfd, "rules", "tc", tmp_path / "good.yaml")
    assert run(capfd, "rules", "tc", good) == (0, script, "")
    assert script.splitlines()[1] == (
        "tc filter add dev eth0 ingress protocol ip prio 2 chain 0 handle 0x1 flower ip_proto tcp ct_state -trk "
        "action ct zone 5 pipe action goto chain 1"
    )


def test_stdin_is_a_file_and_output_may_be_one(capfd, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    assert run(capfd, "rules", "tc", "-", "-o", tmp_path / "out.tc") == (0, "", "")
    assert (tmp_path / "out.tc").read_text().count("\n") == 4
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(BAD.encode())))
    code, out, err = run(capfd, "rules", "show", "-")
    assert (code, out) == (2, "")
    assert err.startswith("ctmirror: stdin:1:51: ")


def test_the_schema_is_json(capfd):
    code, out, _ = run(capfd, "rules", "schema")
    assert code == 0
    assert json.loads(out)["title"] == "Rules of ctmirror"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rules"], "Missing argument"),
        (["rules", "bogus", "x"], "is not one of 'check', 'show', 'tc', 'yaml', 'schema'"),
        (["rules", "show"], "rules show: expected a file, or - for stdin"),
        (["rules", "tc", "a", "b"], "rules tc: expected one file"),
        (["rules", "schema", "a"], "expected no file"),
        (["rules", "check", "-o", "x", "a"], "check prints to stdout"),
        (["rules", "check", "/nonexistent"], "/nonexistent: cannot be read: No such file or directory"),
        (["rules", "check", "/"], "/: cannot be read: Is a directory"),
    ],
)
def test_usage_errors_are_one_line_and_exit_2(capfd, words, said):
    code, out, err = run(capfd, *words)
    assert (code, out) == (2, "")
    assert said in err and err.count("\n") == 1


def test_lines_break_in_terminals_only(tmp_path):
    """So that nobody looks for an address in vain, and no line ends in blanks."""
    path = tmp_path / "rules.tc"
    keys = "src_ip 2001:db8:1111:2222:3333:4444:5555:6666 dst_ip 2001:db8:1111:2222:3333:4444:5555:7777"
    path.write_text(f"tc filter add dev eth0 ingress protocol ipv6 prio 1 flower {keys} action pass\n")
    for columns in ("40", "400"):
        out = in_process("rules", "show", path, env=os.environ | {"COLUMNS": columns}).stdout
        assert "dst_ip 2001:db8:1111:2222:3333:4444:5555:7777  src_ip 2001:db8:1111:2222:3333:4444:5555:6666  pass\n" in out
        assert not re.search(r" $", out, re.MULTILINE)


def test_flags_are_shown_where_rules_differ(capfd, tmp_path):
    path = tmp_path / "rules.tc"
    line = "tc filter add dev eth0 ingress protocol ip prio 1 flower ip_proto {} {} action pass\n"
    path.write_text(line.format("tcp", "") + line.format("udp", "skip_hw"))
    _, out, _ = run(capfd, "rules", "show", path)
    assert [line.split()[-2:] for line in out.splitlines()[-3:]] == [["does", "flags"], ["pass", "not_in_hw"], ["skip_hw", "not_in_hw"]]
