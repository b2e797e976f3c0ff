"""Many conversations at once, as arrays: bursts of frames of TCP, UDP, GRE and ICMP from either end, and among them what no table serves.

Theory of operation: a talk is a row of arrays. A burst draws which talks say something, a step for each (a handshake, data, an end), spreads what
they send over its time, each talk's packets in their order, and writes all headers at once. What is rare (options, fragments, quotes, rubbish) is
made one by one. The far end answers what left: far() tells what an opening packet has become.
Each frame lies in a row of WIDTH bytes. Not here: what becomes of the frames (watching), rules (test_offload_invariants).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datapath import craft
from datapath.frame import FRAME_DTYPE, LINK_ETHERNET

WIDTH, PAYLOAD, ETHERNET = 96, 20, 14
ICMP, TCP, UDP, GRE, ICMP6 = 1, 6, 17, 47, 58
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
NEAR, FAR = 0, 1
CLOSED, OPENING, OPEN = range(3)
# A talk's next packets: side and flags of each. DATA: any number, from any side.
DATA, HANDSHAKE, ONLY_SYN, ANSWER, ENDS, ENDS_BACK, HALF, RESET, RESET_BACK, SYN_AGAIN = range(10)
STEPS: dict[int, list[tuple[int, int]]] = {
    DATA: [],
    HANDSHAKE: [(NEAR, SYN), (FAR, SYN | ACK), (NEAR, ACK)],
    ONLY_SYN: [(NEAR, SYN)],
    ANSWER: [(FAR, SYN | ACK), (NEAR, ACK)],
    ENDS: [(NEAR, FIN | ACK), (FAR, FIN | ACK), (NEAR, ACK)],
    ENDS_BACK: [(FAR, FIN | ACK), (NEAR, FIN | ACK), (FAR, ACK)],
    HALF: [(FAR, FIN | ACK)],
    RESET: [(NEAR, RST | ACK)],
    RESET_BACK: [(FAR, RST | ACK)],
    SYN_AGAIN: [(NEAR, SYN)],
}
LENGTH = np.array([len(steps) for steps in STEPS.values()])
SIDE = np.array([[side for side, _ in steps] + [0] * (3 - len(steps)) for steps in STEPS.values()])
FLAGS = np.array([[flags for _, flags in steps] + [0] * (3 - len(steps)) for steps in STEPS.values()])
# What an open TCP talk does next, how often; an end closes it.
ONWARD = np.array([DATA, ENDS, ENDS_BACK, HALF, RESET, RESET_BACK, SYN_AGAIN])
SHARES = np.array([0.9, 0.03, 0.02, 0.01, 0.01, 0.01, 0.02])
CLOSING = np.array([ENDS, ENDS_BACK, RESET, RESET_BACK])
WORD = np.array([256, 1])


@dataclass
class Burst:
    """frames: FRAME_DTYPE[n], frame i in row i of `rows`; talk, side, flags: of each (flags 0: no TCP); sound: as a stack sends it, plain and with
    right checksums; opener: the first packet of a talk that has not been answered."""

    rows: NDArray[np.uint8]
    frames: NDArray[Any]
    talk: NDArray[np.int64]
    side: NDArray[np.int64]
    flags: NDArray[np.int64]
    sound: NDArray[np.bool_]
    opener: NDArray[np.bool_]

    @property
    def memory(self) -> NDArray[np.uint8]:
        return self.rows.reshape(-1)


@dataclass
class Crowd:
    """n talks between two pairs of interfaces, which have the same addresses in zones of their own. near, far: source and destination address and
    ports as each end sends. odd: share of frames that are none that a table serves; busy: talks that say something in each burst."""

    rng: np.random.Generator
    n: int
    public: str = ""  # what their sources become
    inside: str = ""  # what their destinations become
    odd: float = 0.01
    busy: int = 2
    proto: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        rng, n = self.rng, self.n
        self.proto = rng.choice([TCP, UDP, GRE, ICMP], n, p=[0.6, 0.32, 0.04, 0.04])
        self.proto[: self.busy] = rng.choice([TCP, UDP], min(self.busy, n))
        self.six = (rng.random(n) < 0.2) & (self.proto != GRE)
        self.pair = rng.integers(0, 2, n)
        self.address = np.zeros((n, 2, 2, 16), dtype=np.uint8)  # by side that sends: source and destination
        self.port = np.zeros((n, 2, 2), dtype=np.int64)
        self.seq = rng.integers(0, 1 << 32, (n, 2))
        self.stage = np.full(n, CLOSED)
        self.answers = rng.random(n) < 0.8  # UDP of which the others are one-way
        self.number = 0
        self.begin(np.arange(n))

    def begin(self, talks: NDArray[np.int64]) -> None:
        """New tuples: some have the same source port as another client's, to the same server, so that translation has to choose."""
        rng, n = self.rng, len(talks)
        number = self.number + np.arange(n)
        self.number += n
        client, server = np.zeros((n, 16), dtype=np.uint8), np.zeros((n, 16), dtype=np.uint8)
        six = self.six[talks]
        server[:] = np.frombuffer(craft.address("198.51.100.7").ljust(16, b"\0"), dtype=np.uint8)
        client[:, 0], client[:, 1], client[:, 2], client[:, 3] = 10, rng.integers(0, 3, n), number >> 8 & 255, number & 255
        server[six] = np.frombuffer(craft.address("2001:db8:1::7"), dtype=np.uint8)
        client[six] = np.frombuffer(craft.address("2001:db8::"), dtype=np.uint8)
        client[six, 14], client[six, 15] = number[six] >> 8 & 255, number[six] & 255
        ports = np.stack([1024 + number % np.where(rng.random(n) < 0.1, 100, 60_000), rng.choice([80, 443, 53], n)], axis=1)
        ports[self.proto[talks] == GRE] = 0
        self.address[talks, NEAR, 0], self.address[talks, NEAR, 1], self.port[talks, NEAR] = client, server, ports
        self.address[talks, FAR, 0], self.address[talks, FAR, 1], self.port[talks, FAR] = server, client, ports[:, ::-1]
        translated = talks[~six]
        for end, text in ((1, self.public), (0, self.inside)):
            if text:
                self.address[translated, FAR, end] = np.frombuffer(craft.address(text).ljust(16, b"\0"), dtype=np.uint8)
        self.stage[talks] = CLOSED

    # --- a burst -------------------------------------------------------------------------------------------------------------------------

    def burst(self, packets: int, start: int, span: int) -> Burst:
        """About so many packets within `span` ns from `start` on."""
        rng = self.rng
        most = max(1, min(self.n, packets // 4))
        talks = np.unique(np.concatenate([rng.integers(0, self.n, most), np.arange(min(self.busy, self.n))]))
        step = self.steps(talks)
        length = np.where(step == DATA, np.minimum(rng.geometric(1 / max(1, packets / len(talks)), len(talks)), packets), LENGTH[step])
        talk, of = np.repeat(talks, length), np.repeat(step, length)
        nth = np.arange(len(talk)) - np.repeat(np.cumsum(length) - length, length)
        at = np.minimum(nth, 2)
        side, flags = SIDE[of, at], FLAGS[of, at]
        data = of == DATA
        side[data] = (rng.random(data.sum()) < 0.5) & (self.answers | (self.proto == TCP))[talk[data]]
        flags[data] = np.where(rng.random(data.sum()) < 0.6, PSH | ACK, ACK)
        tcp = self.proto[talk] == TCP
        flags[~tcp] = 0
        opener = (of == ONLY_SYN) | ((of == HANDSHAKE) & (nth == 0)) | ((of == DATA) & (nth == 0) & ~tcp & (side == NEAR))
        self.renew(talks[np.isin(step, (HANDSHAKE, ONLY_SYN))])
        payload = np.where(tcp, np.where(flags & PSH, PAYLOAD, 0), PAYLOAD)
        seq, ack = self.numbers(talk, side, flags, payload)
        times = start + (rng.random(len(talk)) * span).astype(np.int64)
        times = times[np.lexsort((times, talk))]  # each talk's in their order
        order = np.argsort(times, kind="stable")
        rows, caplen = written(self, talk, side, flags, seq, ack, payload)
        made = Burst(rows[order], np.zeros(len(talk), dtype=FRAME_DTYPE), talk[order], side[order], flags[order],
                     np.ones(len(talk), dtype=bool), opener[order])  # fmt: skip
        f = made.frames
        f["offset"], f["caplen"], f["len"], f["ts"], f["link"] = np.arange(len(f)) * WIDTH, caplen[order], caplen[order], times[order], LINK_ETHERNET
        f["iface"] = 2 * self.pair[made.talk] + made.side
        self.onward(talks, step)
        self.disturb(made)
        return made

    def steps(self, talks: NDArray[np.int64]) -> NDArray[np.int64]:
        rng, stage = self.rng, self.stage[talks]
        step = np.where(stage == OPENING, ANSWER, rng.choice(ONWARD, len(talks), p=SHARES))
        step = np.where(stage == CLOSED, np.where(rng.random(len(talks)) < 0.6, HANDSHAKE, ONLY_SYN), step)
        step[(talks < self.busy) & (stage == OPEN)] = DATA
        return np.where(self.proto[talks] == TCP, step, DATA)

    def renew(self, talks: NDArray[np.int64]) -> None:
        self.seq[talks] = self.rng.integers(0, 1 << 32, (len(talks), 2))

    def onward(self, talks: NDArray[np.int64], step: NDArray[np.int64]) -> None:
        """Stages behind the steps. Who has ended comes again as somebody else, or with the same tuple."""
        self.stage[talks[step == ONLY_SYN]] = OPENING
        self.stage[talks[np.isin(step, (HANDSHAKE, ANSWER))]] = OPEN
        over = talks[np.isin(step, CLOSING)]
        self.stage[over] = CLOSED
        others = talks[(self.proto[talks] != TCP) & (talks >= self.busy)]
        self.begin(np.concatenate([over[self.rng.random(len(over)) < 0.5], others[self.rng.random(len(others)) < 0.05]]))

    def numbers(self, talk: Any, side: Any, flags: Any, payload: Any) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sequence numbers and acknowledgements: running sums of each talk's two sides, which go on with the next burst."""
        said = payload * (self.proto[talk] == TCP) + (flags & (SYN | FIN) != 0)
        first = np.flatnonzero(np.diff(talk, prepend=-1))
        group = np.cumsum(np.diff(talk, prepend=-1) != 0) - 1
        before = np.empty((len(talk), 2), dtype=np.int64)
        for each in (NEAR, FAR):
            own = said * (side == each)
            total = np.cumsum(own) - own
            before[:, each] = total - total[first][group] + self.seq[talk, each]
            np.add.at(self.seq[:, each], talk, own)
        self.seq &= 0xFFFFFFFF
        i = np.arange(len(talk))
        return before[i, side] & 0xFFFFFFFF, np.where(flags & ACK, before[i, 1 - side] & 0xFFFFFFFF, 0)

    # --- what no table serves ------------------------------------------------------------------------------------------------------------

    def disturb(self, made: Burst) -> None:
        """Some frames become others: TTL 1, wrong checksums, options, fragments, errors that quote a packet, rubbish, and what was cut short."""
        rng = self.rng
        at = np.flatnonzero((rng.random(len(made.frames)) < self.odd) & (made.flags & SYN == 0))
        made.sound[at] = False
        made.opener[at] = False
        for i, kind in zip(at.tolist(), rng.integers(0, 7, len(at)).tolist(), strict=True):
            talk, side = int(made.talk[i]), int(made.side[i])
            row, four = made.rows[i], not self.six[talk]
            ends = [craft_text(self.address[talk, side, end], four) for end in (0, 1)]
            if kind == 0:
                row[22 if four else 21] = 1
                row[:WIDTH] = summed(row[None].copy(), np.array([four]))[0]
            elif kind == 1:
                row[50 if four else 70] ^= 0x55
            elif kind == 2 and four:
                frame = craft.frame(*ends, int(row[23]), bytes(row[34 : int(made.frames["caplen"][i])]), options=b"\1\1\1\0")
                self.put(made, i, frame)
            elif kind == 3 and four:
                part = int(rng.integers(0, 2))
                body = bytes(row[34 : 34 + 24])
                self.put(made, i, craft.frame(*ends, int(row[23]), body, frag=(0x2000, 3)[part], ident=talk & 0xFFFF))
            elif kind == 4 and four:
                quoted = craft.frame(*ends, int(row[23]), bytes(row[34:42]))[ETHERNET:]
                self.put(made, i, craft.frame(ends[1], ends[0], ICMP, error(quoted)))
                made.frames["iface"][i] ^= 1
            elif kind == 5:
                self.put(made, i, rng.bytes(int(rng.integers(1, WIDTH))))
            else:
                made.frames["caplen"][i] = min(int(made.frames["caplen"][i]), int(rng.integers(10, 60)))
            made.flags[i] = flags_in(made, i)

    @staticmethod
    def put(made: Burst, i: int, frame: bytes) -> None:
        made.rows[i] = 0
        made.rows[i, : len(frame)] = list(frame)
        made.frames["caplen"][i] = made.frames["len"][i] = len(frame)

    # --- translation ---------------------------------------------------------------------------------------------------------------------

    def far(self, talks: NDArray[np.int64], left: NDArray[np.uint8]) -> None:
        """What opening packets have left as, in rows of WIDTH bytes: the far end answers to that."""
        for six in (False, True):
            of = self.six[talks] == six
            at, size = (22, 16) if six else (26, 4)
            l4, who = at + 2 * size, talks[of]
            self.address[who, FAR, 1, :size], self.address[who, FAR, 0, :size] = left[of, at : at + size], left[of, at + size : l4]
            ports = np.isin(self.proto[who], (TCP, UDP))
            self.port[who[ports], FAR, 1] = left[of][ports, l4 : l4 + 2] @ WORD
            self.port[who[ports], FAR, 0] = left[of][ports, l4 + 2 : l4 + 4] @ WORD


def craft_text(address: NDArray[np.uint8], four: bool) -> str:
    from ipaddress import ip_address

    return str(ip_address(bytes(address[: 4 if four else 16])))


def error(quoted: bytes) -> bytes:
    """ICMP: port unreachable."""
    body = b"\3\3\0\0" + bytes(4) + quoted
    return body[:2] + craft.checksum(body).to_bytes(2, "big") + body[4:]


def flags_in(made: Burst, i: int) -> int:
    """FIN and the like, as whoever reads the frame plainly sees them."""
    row, n = made.rows[i], int(made.frames["caplen"][i])
    if bytes(row[12:14]) == b"\x08\x00" and row[14] == 0x45 and row[23] == TCP and n >= 48:
        return int(row[47])
    return int(row[67]) if bytes(row[12:14]) == b"\x86\xdd" and row[20] == TCP and n >= 68 else 0


# --- bytes ------------------------------------------------------------------------------------------------------------------------------


def put16(rows: NDArray[np.uint8], at: int, values: Any) -> None:
    rows[:, at], rows[:, at + 1] = np.asarray(values) >> 8 & 255, np.asarray(values) & 255


def put32(rows: NDArray[np.uint8], at: int, values: Any) -> None:
    put16(rows, at, np.asarray(values) >> 16)
    put16(rows, at + 2, values)


def written(crowd: Crowd, talk: Any, side: Any, flags: Any, seq: Any, ack: Any, payload: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Frames, a row each, and how long they are."""
    rows = np.zeros((len(talk), WIDTH), dtype=np.uint8)
    rows[:, 0:12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]
    caplen = np.empty(len(talk), dtype=np.int64)
    proto = crowd.proto[talk]
    header = np.select([proto == TCP, proto == GRE], [20, 4], 8)
    for six in (False, True):
        i = np.flatnonzero(crowd.six[talk] == six)
        part, l4 = rows[i], ETHERNET + (40 if six else 20)
        of, size = proto[i], header[i] + payload[i]
        if six:
            part[:, 12:15], part[:, 21] = [0x86, 0xDD, 0x60], 64
            part[:, 20] = np.where(of == ICMP, ICMP6, of)
            put16(part, 18, size)
            part[:, 22:38], part[:, 38:54] = crowd.address[talk[i], side[i], 0], crowd.address[talk[i], side[i], 1]
        else:
            part[:, 12:15], part[:, 22], part[:, 23] = [8, 0, 0x45], 64, of
            put16(part, 16, 20 + size)
            part[:, 26:30], part[:, 30:34] = crowd.address[talk[i], side[i], 0, :4], crowd.address[talk[i], side[i], 1, :4]
        caplen[i] = l4 + size
        transport(part, l4, of, crowd.port[talk[i], side[i]], flags[i], size)
        tcp = of == TCP
        numbers = part[tcp]
        put32(numbers, l4 + 4, seq[i][tcp])
        put32(numbers, l4 + 8, ack[i][tcp])
        part[tcp] = numbers
        echo = of == ICMP
        part[echo, l4] = np.where(six, 128 + side[i][echo], 8 * (1 - side[i][echo]))
        rows[i] = summed(part, np.full(len(i), not six))
    return rows, caplen


def transport(part: NDArray[np.uint8], l4: int, of: Any, ports: Any, flags: Any, size: Any) -> None:
    tcp, udp = of == TCP, of == UDP
    with_ports = tcp | udp
    some = part[with_ports]
    put16(some, l4, ports[with_ports, 0])
    put16(some, l4 + 2, ports[with_ports, 1])
    part[with_ports] = some
    part[tcp, l4 + 12], part[tcp, l4 + 13], part[tcp, l4 + 14], part[tcp, l4 + 15] = 0x50, flags[tcp], 0xFF, 0xFF
    some = part[udp]
    put16(some, l4 + 4, size[udp])
    part[udp] = some
    part[of == GRE, l4 + 2] = 8
    some = part[of == ICMP]
    put16(some, l4 + 4, np.minimum(ports[of == ICMP].max(axis=1), 0xFFFF))
    part[of == ICMP] = some


CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}


def summed(rows: NDArray[np.uint8], four: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """With all checksums made anew (RFC 1071); what is behind the packet is 0."""
    for version in (True, False):
        i = np.flatnonzero(four == version)
        if not len(i):
            continue
        part, l4, addresses = rows[i], ETHERNET + (20 if version else 40), (26, 34) if version else (22, 54)
        if version:
            part[:, 24:26] = 0
            put16(part, 24, folded(words(part[:, 14:34])))
        proto = part[:, 23 if version else 20].astype(np.int64)
        size = part[:, 16:18] @ WORD - 20 if version else part[:, 18:20] @ WORD
        for which, at in CHECKSUM_AT.items():
            of = np.flatnonzero(proto == which)
            some = part[of]
            some[:, l4 + at : l4 + at + 2] = 0
            pseudo = which + size[of] + words(some[:, addresses[0] : addresses[1]]) if which != ICMP else 0
            total = folded(words(some[:, l4:]) + pseudo)
            put16(some, l4 + at, np.where((total == 0) & (which == UDP), 0xFFFF, total))
            part[of] = some
        rows[i] = part
    return rows


def words(part: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The sum of the words of 16 bits of each row."""
    return (part[:, 0::2].astype(np.int64).sum(axis=1) << 8) + part[:, 1::2].astype(np.int64).sum(axis=1)


def folded(total: NDArray[np.int64]) -> NDArray[np.int64]:
    for _ in range(3):
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total
