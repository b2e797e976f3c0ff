"""Records out of the ring: whose they are."""

from __future__ import annotations

from datapath.oracle.probes import CONN_AT, COUNTERS, HEADER, Moment, Probes


class Ring:
    def __init__(self, *moments: Moment) -> None:
        self.waiting = [HEADER.pack(moment, 7 + i, 0).ljust(CONN_AT, b"\0") + COUNTERS.pack(*[0] * 4) for i, moment in enumerate(moments)]

    def records(self) -> list[bytes]:
        return self.waiting


def test_what_the_bridge_says_of_its_own_is_not_what_was_asked_for() -> None:
    """It speaks whenever it likes, also right behind the answer."""
    probes = Probes.__new__(Probes)
    probes.conn_size, probes._asked = 0, lambda address: None
    probes.ring = Ring(Moment.ARRIVED, Moment.ASKED, Moment.LEAVING)
    assert probes.conn(1).moment == Moment.ASKED
    assert probes.now() == 8
