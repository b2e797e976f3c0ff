"""ICMP errors about packets that were sent before: true ones, cut ones, such as go to the wrong host, such as quote errors.

Not here: questions and answers of ICMP (datagrams).
"""

from __future__ import annotations

from datapath.scenario.steps import Checksum, Icmp, Ip, Packet
from pcap_tests.fuzz_kernel.draft import Draft

KINDS = {False: (3, 3, 3, 11, 11, 4, 5, 12), True: (1, 1, 1, 2, 2, 3, 4, 0, 5, 100, 127)}
QUOTES = (None, None, None, None, 8, 19, 20, 23, 24, 27, 28, 36, 39, 40, 43, 44, 47, 48, 60, 80)
REDIRECT6 = 137


CUTS = (8, 16, 24, 32, 40, 48, 56, 64)  # of an error in fragments, only where addresses are translated: there it matters


class ErrorTalk:
    """A router, or somebody who plays one. names: the hosts of the trace."""

    def __init__(self, draft: Draft, names: tuple[str, ...]) -> None:
        self.draft, self.names = draft, names

    def step(self) -> None:
        draft = self.draft
        if not draft.steps:
            return
        first = 0 if draft.chance(0.3) else max(0, len(draft.steps) - 6)
        about = first + int(draft.dice.random() * (len(draft.steps) - first))
        quoted = draft.steps[about].packet
        assert isinstance(quoted, Packet)
        # To its sender, as it should be, or to somebody else.
        dst = quoted.src if draft.chance(0.85) else draft.pick((quoted.dst, *self.names))
        v6 = draft.six if draft.chance(0.97) else not draft.six
        kind, code, ip, src = draft.pick(KINDS[v6]), draft.pick((0, 0, 1, 3, 4, 13)), Ip(), draft.pick((*self.names, quoted.dst))
        if v6 and draft.chance(0.1):
            kind, code, src, ip = (
                REDIRECT6,
                draft.pick((0, 0, 0, 0, 1)),
                draft.pick(("fe80::1", "fe80::1", "fe80::1", src)),
                Ip(ttl=draft.pick((255, 255, 255, 64))),
            )
            src = src if draft.six else self.names[0]
        checksum: Checksum = "bad" if draft.chance(0.04) else "good"
        padding = draft.pick((0, 0, 0, 1, 100))
        packet = Packet(src, dst, Icmp(kind, code, v6, about=about, quote=draft.pick(QUOTES), data=padding, checksum=checksum), ip=ip)
        if draft.far and draft.chance(0.2):
            draft.send_in_two(packet, draft.pick(CUTS))
        else:
            draft.send(packet)
