"""`explain --conn` with rules: a connection's packets, each with where it went, by which rule, and what the flow table had of it.

Not here: one packet's way (test_explain_rules), lives without rules (test_explain_life).
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctcore.config import Config
from ctcore.errors import CtmirrorError
from datapath import app, craft, narrate, ruled_life
from datapath.hooks import read_hook
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules_file import read
from pcap_tests import stories
from pcap_tests.conftest import examples
from pcap_tests.stories import CLIENT, MS, SERVER
from pcap_tests.test_datapath.command import records, run

EXAMPLE = Path(__file__).parents[2] / "examples" / "vm-behind-vf"
RULES, TRAFFIC = EXAMPLE / "rules.tc", EXAMPLE / "traffic.pcapng"

IN = "tc filter add dev eth0 ingress protocol ip "
# From pod to pod: tracked in a zone for each of them, one after the other.
TWO_ZONES = (
    IN + "prio 1 chain 0 flower action ct commit zone 1 pipe action goto chain 1\n"
    + IN + "prio 1 chain 1 flower action ct commit zone 2 pipe action mirred egress redirect dev eth1\n"
)  # fmt: skip
NO_NEW = (
    IN + "prio 1 chain 0 flower ct_state -trk action ct zone 4 pipe action goto chain 1\n"
    + IN + "prio 1 chain 1 flower ct_state +trk+new dst_ip 10.0.0.2 action ct commit zone 4 pipe action mirred egress redirect dev eth1\n"
    + IN + "prio 2 chain 1 flower ct_state +trk+est action mirred egress redirect dev eth1\n"
    + IN + "prio 3 chain 1 flower action drop\n"
)  # fmt: skip


def tracking(tmp_path: Path, rules: str, flowtable: bool = True, **config: int) -> app.Tracking:
    path, found = tmp_path / "made.tc", Findings()
    path.write_text(rules)
    ruleset = read(str(path), found)
    found.check()
    return app.Tracking(Config(**config), rules=app.RulesGiven(ruleset, str(path), read_hook("eth0"), flowtable))


def life(tmp_path: Path, rules: str, story: stories.Story, conn: int, **how: bool) -> list[tuple[str, str]]:
    capture = stories.write(tmp_path / "story.pcap", story)
    return list(narrate.life_lines(ruled_life.explain_conn([capture], conn, tracking(tmp_path, rules, **how)), 250))


def numbered(lines: list[tuple[str, str]]) -> dict[int, str]:
    return {int(label[1:].replace(",", "")): text for label, text in lines if label.startswith("#")}


def test_each_packet_has_its_rule_its_device_and_its_flow_table_state(tmp_path: Path) -> None:
    steps = numbered(life(tmp_path, NO_NEW, stories.closed_by_client(), 0))
    assert list(steps) == list(range(8))
    assert all(text.rstrip().split()[-3:-1] == ["eth1", "made.tc:2"] for text in [steps[0]])
    assert [steps[i].split()[-1] for i in (0, 2, 4)] == ["not:tcp_state", "software", "software"]
    assert "made.tc:3" in steps[4] and "->" in steps[0] and "<-" in steps[1]


def test_without_the_flow_table_there_is_no_word_of_it(tmp_path: Path) -> None:
    lines = life(tmp_path, NO_NEW, stories.closed_by_client(), 0, flowtable=False)
    assert dict(lines)["zone"] == "4"
    assert all(text.rstrip().endswith(("made.tc:2", "made.tc:3")) for text in numbered(lines).values())


def test_a_packet_is_of_all_connections_that_it_was_tracked_as(tmp_path: Path) -> None:
    story = [*stories.closed_by_client(), *stories.question(start=20 * MS)]
    for conn, zone in ((0, "1"), (1, "2")):
        lines = life(tmp_path, TWO_ZONES, story, conn)
        assert dict(lines)["zone"] == zone
        steps = numbered(lines)
        assert list(steps) == list(range(8))
        assert ["new" in steps[0], "SYN_SENT" in steps[0], "established" in steps[1], "TIME_WAIT" in steps[7]] == [True] * 4
    assert list(numbered(life(tmp_path, TWO_ZONES, story, 2))) == [8, 9]


def test_an_invalid_packet_with_its_tuple_is_shown_as_what_it_is(tmp_path: Path) -> None:
    story = [*stories.closed_by_client()[:4], (9 * MS, craft.tcp(CLIENT, SERVER, 40000, 80, "A", seq=104, ack=501, l4_checksum=1))]
    steps = numbered(life(tmp_path, NO_NEW, story, 0, flowtable=False))
    assert list(steps) == [0, 1, 2, 3, 4]
    assert "invalid" in steps[4] and "dropped" in steps[4] and "made.tc:4" in steps[4]


def test_before_it_is_committed_there_is_no_connection(tmp_path: Path) -> None:
    """The first SYN goes elsewhere and is dropped; a later one with the same ports does not."""
    other = craft.tcp(CLIENT, "10.0.0.9", 40000, 80, "S")
    story = [(0, other), *stories.closed_by_client(start=MS)]
    assert list(numbered(life(tmp_path, NO_NEW, story, 0))) == list(range(1, 9))
    with pytest.raises(CtmirrorError, match="no connection 1 in it: expected 0 to 0"):
        life(tmp_path, NO_NEW, story, 1)


def test_fragments_are_told_by_the_last_of_them(tmp_path: Path) -> None:
    whole = craft.udp_segment(CLIENT, SERVER, 5000, 53, bytes(2000))
    parts = [craft.frame(CLIENT, SERVER, craft.UDP, part, ident=7, frag=frag) for part, frag in ((whole[:1480], 0x2000), (whole[1480:], 185))]
    steps = numbered(life(tmp_path, NO_NEW, [(i * MS, part) for i, part in enumerate(parts)], 0))
    assert list(steps) == [1] and "the last to come of its datagram's fragments" in steps[1]


def test_earlier_captures_count_and_their_packets_are_not_shown(tmp_path: Path) -> None:
    story = stories.closed_by_client()
    captures = [stories.write(tmp_path / f"{i}.pcap", part) for i, part in enumerate((story[:3], story[3:]))]
    it = ruled_life.explain_conn(captures, 0, tracking(tmp_path, NO_NEW))
    assert [step.number for step in it.steps] == [0, 1, 2, 3, 4]
    assert int(it.conn["start"]) == stories.T


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(range(3)), st.booleans(), st.booleans())
def test_lives_and_records_tell_the_same(tmp_path: Path, order: list[int], flowtable: bool, acct: bool) -> None:
    """Every packet whose record names a connection is in its life, with the record's device and rule; whatever else goes on."""
    starts = {which: place * 2 * MS for place, which in enumerate(order)}
    story = sorted(
        [*stories.closed_by_client(start=starts[0]), *stories.question(start=starts[1]), *stories.office(start=starts[2])], key=lambda step: step[0]
    )
    capture = stories.write(tmp_path / "story.pcap", story)
    given_rules = tracking(tmp_path, NO_NEW, flowtable, acct=acct)
    from datapath.saved import records_of

    told = [one.record for one in records_of([capture], given_rules)]
    for conn in {record["conn"] for record in told} - {None}:
        steps = {step.number: step for step in ruled_life.explain_conn([capture], conn, given_rules).steps}
        mine = {record["i"]: record for record in told if record["conn"] == conn}
        assert set(mine) <= set(steps)
        assert {number for number, step in steps.items() if step.decision["conn"] == conn} == set(mine)
        for number, record in mine.items():
            assert steps[number].way[:2] == (f"to {record['to']}" if record["to"] else "dropped", Path(record["rule"]).name)
            assert not flowtable or steps[number].way[2] == (record["offload"] or "-")


# --- the command -----------------------------------------------------------------------------------------------------------------------


def test_the_command(capfd) -> None:
    code, out, err = run(capfd, "explain", TRAFFIC, "--conn", 0, "--rules", RULES, "--quiet")
    assert (code, err) == (0, "")
    told = records(run(capfd, "replay", TRAFFIC, "--rules", RULES, "--packets", "-", "--quiet")[1])
    shown = [int(line.split()[0][1:]) for line in out.splitlines() if line.startswith("#")]
    assert shown == [record["i"] for record in told if record["conn"] == 0]


@pytest.mark.parametrize(("names", "text"), [(["-"], "has to be read twice"), ([TRAFFIC], "no connection 99 in it")])
def test_errors_are_one_line(capfd, names, text) -> None:
    code, out, err = run(capfd, "explain", *names, "--conn", 99, "--rules", RULES, "--quiet")
    assert code in (1, 2) and out == "" and err.count("\n") == 1 and text in err
