"""Plans without rules: what the built-in ones look behind, and what is told of headers that no rule looks at, or behind."""

from __future__ import annotations

import json

import pytest

from datapath import craft
from pcap_tests.test_datapath.command import run
from pcap_tests.test_offload.planned import conn, written
from pcap_tests.test_offload.test_plan import consistent, packets_of, planned

pytestmark = pytest.mark.usefixtures("compiled_nic")


def wrapped(traffic, kind: int = 0x0800, vlan: tuple[int, ...] = (), tag: int = 0x8100, inner=bytes):
    """Traffic behind tags, or in something else."""
    return [(at, craft.eth(inner(data[14:]), kind, vlan=vlan, tag=tag)) for at, data in traffic]


@pytest.mark.parametrize(("vlan", "tag"), [((5,), 0x8100), ((5,), 0x88A8), ((5, 6), 0x8100), ((5, 6), 0x88A8)])
def test_the_built_in_rules_look_behind_tags(capfd, tmp_path, vlan, tag):
    traffic = wrapped(conn(40000, 25, fin=True), vlan=vlan, tag=tag)
    (scenario,) = planned(capfd, written(tmp_path / "tagged.pcap", traffic), "--nic", "perfect")
    consistent(scenario)
    assert (scenario["packets"]["hardware"], scenario["connections"]["hardware"], scenario["loose"]) == (26, 1, 0)


@pytest.mark.parametrize(("kind", "inner", "said"), [
    (0x8864, craft.pppoe, "of 14 packets, 1 in PPPoE: rules do not look behind these"),
    (0x8847, lambda data: craft.mpls(data, 16), "of 14 packets, 1 with MPLS labels: rules do not look behind these"),
])  # fmt: skip
def test_what_built_in_rules_do_not_look_behind_is_told_be_it_one_packet(capfd, tmp_path, kind, inner, said):
    traffic = conn(40000, 10)
    name = written(tmp_path / "some.pcap", traffic, wrapped(conn(40001, 1)[:1], kind, inner=inner))
    for argv in (("offload", "plan", name), ("replay", name)):
        code, out, err = run(capfd, *argv, "--nic", "perfect")
        assert (code, err) == (0, "") and f"hint  {said}" in " ".join(out.split()).replace("hint ", "hint  ")
    code, out, _ = run(capfd, "offload", "plan", name, "--nic", "perfect", "--json", "-q")
    plan = json.loads(out)
    assert plan["hints"][0].startswith(said) and (plan["scenarios"][0]["loose"], plan["scenarios"][0]["connections"]["all"]) == (1, 1)
    assert "of the packets in hardware 1 is of no connection" in run(capfd, "offload", "plan", name, "--nic", "perfect")[1]


@pytest.mark.parametrize(("options", "packets"), [((), {"invalid": 13}), (("--checksum", 0), {"tcp_state": 2, "pending": 1})])
def test_bad_header_checksums_are_seen_by_ct_with_the_transport_s_and_told(capfd, tmp_path, options, packets):
    """Where there are no rules they are dropped, whatever --checksum says: ip_rcv() does that, which tc comes before."""
    bad = [(at, data[:24] + b"\x12\x34" + data[26:]) for at, data in conn(40000, 10)]
    name = written(tmp_path / "bad.pcap", bad)
    (scenario,) = planned(capfd, name, "--nic", "perfect", *options)
    assert packets_of(scenario) == packets
    _, out, _ = run(capfd, "offload", "plan", name, "--nic", "perfect", *options)
    assert "hint  13 of 13 packets have bad IPv4 header checksums, which rules do not look at" in out
    assert "bad IPv4 header checksum" in run(capfd, "replay", name, *options)[1]
