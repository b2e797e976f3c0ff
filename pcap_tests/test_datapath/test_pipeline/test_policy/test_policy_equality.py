"""Property: whatever the cluster and its policies, compiled rules and the evaluator say the same of every connection between all who are there."""

from __future__ import annotations

from itertools import product
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datapath.pipeline.policy.cluster import NODE_TRAFFIC
from datapath.pipeline.policy.compiler import Options
from datapath.pipeline.policy.evaluate import Packet, judge
from pcap_tests.conftest import examples
from pcap_tests.test_datapath.test_pipeline.test_policy.compared import Lab
from pcap_tests.test_datapath.test_pipeline.test_policy.machine import Frame
from pcap_tests.test_datapath.test_pipeline.test_policy.made_clusters import OUTSIDE, PORTS, clusters, policies
from pcap_tests.test_datapath.test_pipeline.test_policy.recipes import made

options = st.builds(
    Options,
    established=st.sampled_from(["packet", "connection"]),
    invalid=st.sampled_from(["drop", "policy"]),
    anti_spoof=st.booleans(),
    node_traffic=st.sampled_from(NODE_TRAFFIC),
    forward=st.sampled_from(["pass", "redirect"]),
)
services = [*product((6, 17, 132), PORTS), (1, None)]


def frames(cluster, seed, number):
    """Some first packets between all who are there, of every service."""
    addresses = [address for pod in cluster.pods for address in pod.addresses] + [each for node in cluster.nodes for each in node.addresses]
    ours = set(cluster.pod_by_address)
    pairs = [
        (src, dst, *service)
        for src, dst in product(dict.fromkeys([*addresses, *OUTSIDE]), repeat=2)
        if src.version == dst.version and src != dst and {src, dst} & ours
        for service in services
    ]
    for sport, (src, dst, proto, port) in enumerate(Random(seed).sample(pairs, min(number, len(pairs))), 40000):
        icmp = port is None
        yield Frame(src, dst, proto if not icmp or src.version == 4 else 58, None if icmp else sport, port, kind=8 if icmp else None)


@settings(max_examples=examples(100), suppress_health_check=list(HealthCheck))
@given(made_cluster=clusters(), chosen=options, seed=st.integers(0, 1 << 32))
def test_compiled_rules_and_evaluator_agree_on_every_connection(made_cluster, chosen, seed):
    lab = Lab(made_cluster.cluster(), chosen)
    for frame in frames(lab.cluster, seed, 100):
        lab.machine.conns.clear()
        lab.compare(frame)


@settings(max_examples=examples(50), suppress_health_check=list(HealthCheck))
@given(made_cluster=clusters(), later=policies(), established=st.sampled_from(["packet", "connection"]), seed=st.integers(0, 1 << 32))
def test_established_connections_when_policies_change(made_cluster, later, established, seed):
    """ "packet": what the new policies forbid is stopped in both directions, and goes on when they allow it again. "connection": nothing changes.

    An end that no policy concerned is not tracked; once one does, its connections are new to it.
    """
    before, after = (Lab(cluster, Options(established=established)) for cluster in (made_cluster.cluster(), made([*made_cluster.objects, *later])))
    for frame in frames(before.cluster, seed, 50):
        before.machine.conns.clear()
        if not before.compare(frame):
            continue
        after.machine.conns = before.machine.conns
        ends = {before.attachments[pod.title].zone for pod in map(before.cluster.pod_by_address.get, (frame.src, frame.dst)) if pod}
        known = ends == {zone for zone, *_ in before.machine.conns}
        allowed = judge(after.cluster, Packet(frame.src, frame.dst, frame.proto, frame.dport)).allowed
        if established == "packet":
            assert after.arrives(frame) == allowed
            assert not known or after.arrives(frame.reply()) == allowed
        elif known:
            assert after.arrives(frame) and after.arrives(frame.reply())
        assert before.arrives(frame) and before.arrives(frame.reply())
