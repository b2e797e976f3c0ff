"""Random rules and packets in the kernel's TC and in our pipeline: the same comes out at the same devices, to the byte, and rules count the same.

Invariant: whatever rules of our language are installed by our own installer, and whatever packets come, what leaves at each device and what passes to
the host is what our pipeline says; and so is how many packets each rule has matched. A difference is a bug in one of the two.

    python -m pcap_tests.vm.suite build/vm -k conform       with CTMIRROR_SEED=, CTMIRROR_FILES=, CTMIRROR_EACH= (of each file) for other cases

Not drawn, each for its reason:

| what | why |
|---|---|
| skip_sw | rules for hardware: test_vm_nic |
| templates, other qdiscs | they change no packet: test_vm_rules, test_vm_install |
| what follows a RST that 6.1 refuses, and 6.18 takes: below what was acknowledged before the flow table | it ends its case, and is counted |
| helpers | act_ct has them from Linux 6.2 on |
| ranges of several addresses or ports | Linux draws at random: fuzz_kernel watches that. A draw after a clash ends its case, and is counted |
| police by packets | in Linux such a bucket is empty when it is made; here it is full when the first packet comes |
| police between a byte a second and 100 Gbit | time would decide |
| addresses of one family for packets of the other, ip and ip6 of pedit for other packets | documented differences: Linux makes nonsense |
| mirred to an ingress hook, but of the last device from another's ingress | Linux 6.1 sends in circles for ever, by its queue |
| rules that look at a type that pedit wrote | a documented difference: Linux goes on with the type that came |
| two tags on arrival where rules track or pedit | Linux takes the second tag for the network header: documented |
| IPv4 headers longer than their packet where rules sum, and pedit of ihl | Linux sums what happens to lie behind: documented |
| csum in a file that pushes tags | of two tags, one of them pushed, Linux takes the IP header for the second: documented |
| tags on what the host itself sends | a packet socket moves the header that flower looks at |
| frames that are shorter than an Ethernet header, or than a tag and a type | they come to no hook |
| hop-by-hop options where rules track | Linux 6.1 does not look at them; 6.18 does, as our pipeline |
| IP versions and header lengths that are none, where rules track | Linux tracks what it reads there: documented |
| fragments where an egress hook tracks | Linux 6.1 crashes: what mirred cuts up has no device when it is put together again (netif_skb_features) |
| fragments that a rule mirrors before it tracks | Linux writes new headers over those of copies that still wait (ip_fraglist_prepare) |
| captures in part, frames without Ethernet | there are none on a wire |
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from datapath import craft
from datapath.pipeline.rules import DROP, Gact, Hook, Ruleset
from pcap_tests.vm.conform_rules import Case, some_case
from pcap_tests.vm.conforming import Sent, compared, in_kernel, in_ours, shrunk

SEED = os.environ.get("CTMIRROR_SEED", "conform")
FILES = int(os.environ.get("CTMIRROR_FILES", "40"))
PACKETS = int(os.environ.get("CTMIRROR_EACH", "75"))
MODULES = ("tun", "veth", "cls_flower", "act_ct", "nf_tables", "nft_log", "nfnetlink_log")
SETTINGS = {"nf_conntrack_tcp_loose": 1, "nf_conntrack_tcp_be_liberal": 0, "nf_conntrack_checksum": 1}


@pytest.fixture(scope="module", autouse=True)
def modules() -> None:
    subprocess.run(["modprobe", "-a", *MODULES], check=True)


@pytest.mark.timeout(120 + 6 * FILES)
def test_random_rules_do_what_the_kernel_does(capsys):
    rules = packets = hits = 0
    ended = Counter[str]()
    for number in range(FILES):
        case = some_case(f"{SEED}/{number}")
        kernel = in_kernel(case, PACKETS)
        said = compared(case, kernel)
        if said.difference is not None:
            pytest.fail(f"{said.difference.what}\n\nshrunk:\n{shrunk(case, kernel, said.difference)}", pytrace=False)
        rules, packets, hits = rules + len(case.ruleset.rules), packets + said.packets, hits + said.hits
        ended.update([said.ended] if said.ended else [])
    with capsys.disabled():
        told = f"{rules:,} rules, {packets:,} packets, {hits:,} matches; {ended['drawn']} files end where a port was drawn, {ended['reset']} at a RST"
        print(f"\nvm: seed {SEED}: {FILES} files, {told}")
    assert ended["reset"] <= max(FILES // 10, 1)
    assert rules > 7 * FILES and packets > FILES * PACKETS // 2 and hits > packets // 2


# --- the comparison itself --------------------------------------------------------------------------------------------------------------------

HEAD = "tc filter add dev eth0 ingress protocol ip"
WRITTEN = f"""
tc qdisc add dev eth0 clsact
tc qdisc add dev eth1 clsact
{HEAD} prio 1 chain 0 handle 0x1 flower ip_proto tcp action ct zone 5 pipe action goto chain 1
{HEAD} prio 2 chain 0 handle 0x1 flower ip_proto udp action pedit ex munge ip ttl set 9 pipe action csum ip4h pipe \
action mirred egress redirect dev eth1
{HEAD} prio 1 chain 1 handle 0x1 flower ct_state +trk+new action ct commit zone 5 pipe action mirred egress redirect dev eth1
{HEAD} prio 2 chain 1 handle 0x1 flower action drop
tc filter add dev eth1 egress protocol ip prio 1 chain 0 handle 0x1 flower dst_port 53 ip_proto udp action pass
"""
CASE = Case("written", WRITTEN, SETTINGS)
FRAMES = [craft.tcp("10.0.0.1", "10.0.0.2", 40000, 80, "S", seq=1), craft.udp("10.0.0.1", "10.0.0.2", 40000, 53, b"query")]


def sent(*frames: bytes) -> list[Sent]:
    return [Sent(frame, Hook("eth0"), 0) for frame in frames]


def altered(number: int, **changes: Any) -> Ruleset:
    """The same rules, but for one."""
    rules = list(CASE.ruleset.rules)
    rules[number] = replace(rules[number], **changes)
    return replace(CASE.ruleset, rules=tuple(rules))


def test_what_differs_is_noticed():
    """Of two packets, under rules of which our pipeline has one otherwise: other bytes, another verdict, another number of matches."""
    kernel = in_kernel(CASE, sent=sent(*FRAMES))
    assert [len(out) for out in kernel.out] == [1, 1] and kernel.packets == [1, 1, 1, 0, 1]
    assert compared(CASE, kernel).difference is None
    pedit, *others = CASE.ruleset.rules[1].actions
    other_ttl = replace(pedit, munges=(replace(pedit.munges[0], value=8),))
    difference = compared(CASE, kernel, altered(1, actions=(other_ttl, *others))).difference
    assert difference is not None and difference.number == 1 and "pipeline: eth1 egress" in difference.what
    verdict = compared(CASE, kernel, altered(2, actions=(Gact(DROP),))).difference
    assert verdict is not None and verdict.number == 0 and "pipeline: nothing more" in verdict.what
    count = compared(CASE, kernel, altered(4, matches=())).difference
    assert count is not None and count.number is None and "matched 2 packets here and 1 in the kernel" in count.what


def test_a_case_is_shrunk_to_what_differs():
    """Linux begins with an empty bucket where packets are policed, and we with a full one: that is documented, and not drawn."""
    policed = f"{HEAD} prio 3 chain 0 handle 0x1 flower ip_proto icmp action police pkts_rate 1 pkts_burst 5 conform-exceed drop/pass\n"
    case = replace(CASE, rules=WRITTEN + policed)
    frames = [*FRAMES, craft.icmp("10.0.0.1", "10.0.0.2", 8, ident=1, sequence=1), *FRAMES]
    kernel = in_kernel(case, sent=sent(*frames))
    difference = compared(case, kernel).difference
    assert difference is not None and difference.number == 2
    story = shrunk(case, kernel, difference)
    assert story.count("tc filter add") == 2 and story.count("\n  eth0 ingress ") == 1  # the rule, and once more as the one that matched


TRACKED = """
tc qdisc add dev eth0 clsact
tc qdisc add dev eth1 clsact
"""
for ours, other in (("eth0", "eth1"), ("eth1", "eth0")):
    chain = f"tc filter add dev {ours} ingress protocol ip prio {{}} chain {{}} handle 0x1 flower"
    TRACKED += f"""{chain.format(1, 0)} ip_proto tcp action ct zone 5 pipe action goto chain 1
{chain.format(1, 1)} ct_state +trk+inv action drop
{chain.format(2, 1)} ct_state +trk+est action mirred egress redirect dev {other}
{chain.format(3, 1)} ct_state +trk+new action ct commit zone 5 pipe action mirred egress redirect dev {other}
"""


@pytest.mark.parametrize(
    "seq, ended",
    [(1001, ""), (501, ""), (500, "reset"), (401, "reset")],
    ids=["at the last acknowledgement", "at the last one before the flow table", "one below it", "far below it"],
)
def test_a_rst_below_what_was_acknowledged_before_the_flow_table_is_refused_by_6_1(seq, ended):
    """It holds it against the highest acknowledgement that conntrack has seen (RFC 5961 3.2), not against those that the flow table carried."""
    case = Case("reset", TRACKED, SETTINGS)
    there = ("10.0.0.1", "10.0.0.2", 40000, 80)
    back = ("10.0.0.2", "10.0.0.1", 80, 40000)
    talk = [
        ("eth0", craft.tcp(*there, "S", seq=100)),
        ("eth1", craft.tcp(*back, "SA", seq=500, ack=101)),
        ("eth0", craft.tcp(*there, "A", seq=101, ack=501)),
        ("eth1", craft.tcp(*back, "PA", seq=501, ack=101, payload=bytes(500))),
        ("eth0", craft.tcp(*there, "A", seq=101, ack=1001)),
        ("eth1", craft.tcp(*back, "R", seq=seq)),
    ]
    kernel = in_kernel(case, sent=[Sent(frame, Hook(device), 0) for device, frame in talk])
    said = compared(case, kernel)
    assert (said.difference, said.ended) == (None, ended)
    assert [len(out) for out in kernel.out] == [1] * 5 + [0 if ended else 1]
    assert [len(out) for out in in_ours(case, kernel.sent).out] == [1] * 6
