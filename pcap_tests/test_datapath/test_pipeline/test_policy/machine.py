"""Rules, carried out as slowly and plainly as can be: all filters of a chain in order of priority, first match wins, and conntrack as a dictionary.

Only for what policies compile to: flower matches on addresses, ports, protocols and ct_state; ct, goto, pass, drop. All else is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from datapath.pipeline.rules import CT_STATES, ETH_ALL, ETH_ARP, ETH_IP, ETH_IPV6, Ct, Gact, Hook, Match, Mirred, Rule, Ruleset


@dataclass(frozen=True)
class Frame:
    """src, dst: addresses, of ARP the sender's and the target's; claimed: a state that conntrack is to report whatever it knows: inv or rel."""

    src: object
    dst: object
    proto: int = 6
    sport: int | None = 40000
    dport: int | None = 80
    kind: int | None = None  # ICMP type
    ethertype: int | None = None
    claimed: str = ""

    @property
    def protocol(self) -> int:
        return self.ethertype or (ETH_IP if self.src.version == 4 else ETH_IPV6)

    def reply(self) -> Frame:
        return replace(self, src=self.dst, dst=self.src, sport=self.dport, dport=self.sport)

    def fields(self) -> dict[str, int]:
        if self.protocol == ETH_ARP:
            return {"arp_sip": int(self.src), "arp_tip": int(self.dst)}
        values = {
            "src_ip": int(self.src),
            "dst_ip": int(self.dst),
            "ip_proto": self.proto,
            "src_port": self.sport,
            "dst_port": self.dport,
            "type": self.kind,
        }
        return {name: value for name, value in values.items() if value is not None}


@dataclass
class Conn:
    mark: int = 0
    replied: bool = False


@dataclass
class Tracked:
    """What a ct action has left on a packet."""

    state: int
    zone: int
    conn: Conn | None


@dataclass
class Machine:
    """Carries out the rules of some devices. conns: by zone and original tuple; they outlive a change of rules."""

    ruleset: Ruleset
    conns: dict[tuple, Conn] = field(default_factory=dict)
    redirected: list[str] = field(default_factory=list)  # devices that packets were sent to, in order

    def __post_init__(self) -> None:
        self.chains: dict[tuple[Hook, int], list[Rule]] = {}
        for rule in self.ruleset.rules:
            self.chains.setdefault((rule.hook, rule.chain), []).append(rule)
        for rules in self.chains.values():
            rules.sort(key=lambda rule: rule.prio)  # stable: within a priority as they were written

    def passes(self, device: str, direction: str, frame: Frame) -> bool:
        """Whether a packet leaves a hook. A hook without rules lets everything pass; a chain that is gone to must have one that matches."""
        hook = Hook(device, direction)
        if (hook, 0) not in self.chains:
            return True
        chain, tracked = 0, None
        for _ in range(100):
            rule = next((rule for rule in self.chains[hook, chain] if self._matches(rule, frame, tracked)), None)
            assert rule is not None, f"nothing matches in chain {chain} of {hook}: {frame}"
            for action in rule.actions:
                if isinstance(action, Ct):
                    tracked = self._track(action, frame, tracked)
                    continue
                if isinstance(action, Mirred):
                    assert (action.kind, action.direction, tracked) == ("redirect", "egress", None), action
                    self.redirected.append(action.device)
                    return True
                assert isinstance(action, Gact), action
                if action.control.kind in ("pass", "drop"):
                    # What is left on a packet would keep the host from tracking it in its own zone.
                    assert action.control.kind == "drop" or tracked is None, "a packet leaves with its conntrack entry"
                    return action.control.kind == "pass"
                assert action.control.kind == "goto", action
                chain = action.control.chain
        raise AssertionError(f"chains of {hook} go round")

    def _matches(self, rule: Rule, frame: Frame, tracked: Tracked | None) -> bool:
        if rule.protocol not in (ETH_ALL, frame.protocol):
            return False
        values = frame.fields() | {"ct_state": tracked.state if tracked else 0, "ct_mark": tracked.conn.mark if tracked and tracked.conn else 0}
        return all(self._holds(match, values.get(match.name)) for match in rule.matches)

    def _holds(self, match: Match, value: int | None) -> bool:
        if value is None:
            return False
        return match.value <= value <= match.high if match.high is not None else value & match.mask == match.value

    def _track(self, action: Ct, frame: Frame, tracked: Tracked | None) -> Tracked | None:
        if action.clear:
            return None
        assert frame.protocol in (ETH_IP, ETH_IPV6), "ct drops what is not IP"
        if tracked is None or tracked.zone != action.zone:
            tracked = self._look_up(action.zone, frame)
        if action.commit and tracked.conn is not None:
            if action.mark is not None:
                value, mask = action.mark
                tracked.conn.mark = value | (tracked.conn.mark & ~mask)
            if not any(conn is tracked.conn for conn in self.conns.values()):
                self.conns[self._key(action.zone, frame)] = tracked.conn
        return tracked

    def _key(self, zone: int, frame: Frame) -> tuple:
        return (zone, frame.src, frame.dst, frame.proto, frame.sport, frame.dport)

    def _look_up(self, zone: int, frame: Frame) -> Tracked:
        def state(*names: str) -> int:
            return sum(CT_STATES[name] for name in ("trk", *names))

        if frame.claimed == "inv":
            return Tracked(state("inv"), zone, None)
        original, reply = self.conns.get(self._key(zone, frame)), self.conns.get(self._key(zone, frame.reply()))
        if frame.claimed == "rel":  # an ICMP error: it has the connection that it is about
            return Tracked(state("rel"), zone, original or reply or Conn())
        if original is not None:
            return Tracked(state("est") if original.replied else state("new"), zone, original)
        if reply is not None:
            reply.replied = True
            return Tracked(state("est", "rpl"), zone, reply)
        return Tracked(state("new"), zone, Conn())
