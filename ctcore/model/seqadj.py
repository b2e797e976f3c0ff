"""Sequence numbers behind a payload that was made longer or shorter, in the model.

Each direction has two offsets: before and after the segment that last changed its length. Not here: what changes payload (helpers).
"""

from __future__ import annotations

from dataclasses import dataclass

from ctcore.model.conn import MASK32


def later(a: int, b: int) -> bool:
    """Is a behind b on the circle of sequence numbers (RFC 9293 3.4)?"""
    return (a - b) & MASK32 > 0 and (b - a) & MASK32 >= 1 << 31


@dataclass
class SeqAdjust:
    """One direction's; positions and offsets count in its sender's own numbers."""

    position: int = 0
    before: int = 0
    after: int = 0

    def at(self, seq: int) -> int:
        """What is added to a sequence number."""
        return self.after if later(seq, self.position) else self.before

    def of_ack(self, ack: int) -> int:
        """What has been added to the number that an acknowledgement names, which its sender has seen with the offset in it."""
        return self.at((ack - self.before) & MASK32)

    def more(self, seq: int, by: int) -> None:
        """The segment at seq becomes longer by so much; a retransmission of the last one that did, or an earlier one, adds nothing."""
        if self.before == self.after or later(seq, self.position):
            self.position, self.before, self.after = seq, self.after, self.after + by
