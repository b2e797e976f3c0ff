"""Compiled rules beside the evaluator: the same connection tried in both ways, and its replies."""

from __future__ import annotations

from datapath.pipeline.policy.cluster import Cluster
from datapath.pipeline.policy.compiler import Options, compile_policies
from datapath.pipeline.policy.devices import attach
from datapath.pipeline.policy.evaluate import Packet, judge
from pcap_tests.test_datapath.test_pipeline.test_policy.machine import Frame, Machine


class Lab:
    """A cluster with its rules in force."""

    def __init__(self, cluster: Cluster, options: Options | None = None) -> None:
        self.options = options or Options()
        self.cluster = cluster
        self.attachments = attach(pod for pod in cluster.pods if not pod.host_network)
        self.machine = Machine(compile_policies(cluster, self.attachments, self.options))

    def device(self, address) -> str | None:
        pod = self.cluster.pod_by_address.get(address)
        return self.attachments[pod.title].device if pod else None

    def path(self, frame: Frame) -> tuple[bool, bool]:
        """What becomes of a packet at the device it comes out of, and, if it passes there, at the one it goes into."""
        source, target = self.device(frame.src), self.device(frame.dst)
        self.machine.redirected.clear()
        left = source is None or self.machine.passes(source, "ingress", frame)
        # Only what is for another pod of ours can be sent to its device, and then is.
        direct = self.options.forward == "redirect" and left and source and target and source != target
        assert self.machine.redirected == ([target] if direct else []), frame
        return left, left and (target is None or self.machine.passes(target, "egress", frame))

    def arrives(self, frame: Frame) -> bool:
        return all(self.path(frame))

    def compare(self, frame: Frame) -> bool:
        """One connection, which is in no table yet; whether it is allowed. Both ways have to say the same, at both ends, and replies get through."""
        said = judge(self.cluster, Packet(frame.src, frame.dst, frame.proto, frame.dport), self.options.node_traffic)
        left, entered = self.path(frame)
        assert left == said.egress.allowed, (frame, said)
        assert entered == said.allowed, (frame, said)
        if entered:
            self.answered(frame)
        return said.allowed

    def answered(self, frame: Frame) -> None:
        """The reply, the next request, and an ICMP error about the connection get through, too."""
        assert self.arrives(frame.reply()), frame
        assert self.arrives(frame), frame
        assert self.arrives(frame.reply()), frame
        related = Frame(frame.dst, frame.src, 1 if frame.src.version == 4 else 58, sport=None, dport=None, kind=3, claimed="rel")
        assert self.arrives(related), frame
