"""Large synthetic captures: many interleaved connections after a traffic profile, the same file for the same seed.

    python -m bench.traffic --profile campus --packets 10000000 --flows 100000 --seed 1 -o campus.pcap

Theory of operation, three steps from arrays to arrays:
1. plan() draws the connections: --flows of them are open at a time, each slot begins a new one where the lifetime of the last is over.
2. expand() writes each connection's packets one after the other, so that sequence numbers are a running sum; then all are sorted by time.
3. fill() turns packets, in order of time, into the bytes of pcap records.

A connection is head, body and tail. TCP: handshake, data and acknowledgements, closing by FIN; with two packets it is refused by RST, with four
it is opened and reset. UDP: a question and its answer, and a body.
Invariants: no packet is invalid to a strict conntrack (every acknowledgement is of data already seen, what is under way stays far below the
window, no gap is longer than a timeout); checksums are right; payload is zeros; no tuple is used twice.
Needs about 50 bytes of memory a packet. Not here: the figures (profiles.py); traffic of real stacks (pcap_tests/record.py).
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from bench.profiles import ACK_ONLY, PROFILES, SIZE_ROWS, TCP, UDP, Profile, size_table

START = 1_700_000_000 * 10**9  # ns since the epoch: where every capture begins
STEP = 10_000_000  # ns between the packets of a handshake, of a close, and of a question and its answer
# Two packets of a connection are less than two gaps apart. The shortest timeout that matters is that of UDP, 30 s.
LONGEST_GAP = 10 * 10**9
SHORTEST_GAP = 10_000
RAMP = 1 << 30
OPEN_END = 1 << 40  # packets of a connection that stays open
CHUNK = 1 << 14  # packets written at a time
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
WINDOW_SCALE = 7
WINDOW = 512  # << WINDOW_SCALE: 65,536 bytes
SYN_WINDOW = 65535
# RFC 9293, 7323, 2018: MSS 1460, SACK permitted, no-operation, window scale 7, padding
SYN_OPTIONS = np.frombuffer(bytes((2, 4, 5, 180, 4, 2, 1, 3, 3, WINDOW_SCALE, 0, 0)), dtype=np.uint8)
CLIENTS = 1 << 18  # addresses 10.0.0.0 and up, each with 64,512 ports
SERVERS = 1 << 12  # addresses 198.18.0.0 and up (RFC 2544)
LEAST_FRAME = 60
RECORD_HEADER = 16

CONN_DTYPE = np.dtype([("start", "i8"), ("gap", "i8"), ("body", "i8"), ("count", "i8"), ("head", "u1"), ("tail", "u1"), ("proto", "u1")], align=True)
PACKET_DTYPE = np.dtype([("time", "i8"), ("seq", "u4"), ("ack", "u4"), ("conn", "u4"), ("payload", "u2"), ("dir", "u1"), ("flags", "u1")], align=True)


# --- 1. the connections ----------------------------------------------------------------------------------------------------------------


def plan(profile: Profile, packets: int, flows: int, seed: int) -> NDArray[Any]:
    """The connections of a capture: CONN_DTYPE[n]. count: how many of its packets each may contribute to the first `packets` of all."""
    mean = np.inf if profile.lengths is None else mean_length(profile)
    duration = packets / profile.packets_per_second * 1e9
    lifetime = flows * mean / profile.packets_per_second * 1e9  # Little's law
    generations = 1 if profile.lengths is None else 2 + int(duration / lifetime)
    # Lengths are heavy-tailed: a sample may hold far fewer packets than its mean says, and then a larger one is taken.
    while True:
        conns = draw(profile, flows, generations, np.random.default_rng(seed))
        length = conns["head"] + conns["body"] + conns["tail"]
        if (length - 1).sum() >= packets:
            break
        generations *= 2
    pace = flows / profile.packets_per_second * 1e9 if profile.lengths is None else lifetime / length
    conns["gap"] = np.clip(pace, SHORTEST_GAP, LONGEST_GAP)
    # All slots are open after a quarter of the capture at the latest; a slot's next connection begins where the lifetime of the last is over.
    conns["start"] = conns["start"] * (min(lifetime, duration / 4) / RAMP)
    if generations > 1:
        conns["start"] += (np.repeat(np.arange(generations), flows) * lifetime).astype(np.int64)
    cut(conns, packets)
    return conns[conns["count"] > 0]


def draw(profile: Profile, flows: int, generations: int, rng: np.random.Generator) -> NDArray[Any]:
    """Connections by protocol and length, generation after generation. start: when its slot opens, in 1 / RAMP."""
    conns = np.zeros(flows * generations, dtype=CONN_DTYPE)
    conns["start"] = np.tile(rng.integers(RAMP, size=flows), generations)
    conns["proto"] = np.where(rng.random(len(conns)) < profile.tcp_share, TCP, UDP)
    length = np.full(len(conns), OPEN_END) if profile.lengths is None else profile.lengths(rng, conns["proto"])
    tcp, whole = conns["proto"] == TCP, length >= 6
    conns["head"] = np.where(tcp, np.where(whole, 3, length), 2)
    conns["tail"] = np.where(tcp & whole, 3, 0)
    conns["body"] = length - conns["head"] - conns["tail"]
    return conns


def mean_length(profile: Profile) -> float:
    """Packets a connection; from a sample of its own, so that it does not depend on the seed."""
    rng = np.random.default_rng(0)
    proto = np.where(rng.random(1 << 20) < profile.tcp_share, TCP, UDP).astype(np.uint8)
    return float(profile.lengths(rng, proto).mean())


@njit(cache=True)
def steps(left, size):
    """How many steps of that size begin before left."""
    return max((left + size - 1) // size, 0)


@njit(cache=True)
def count_before(conns, end):
    """Sets count: how many packets of each connection may lie before end, by their earliest possible time; returns how many lie there for
    certain, which is all but the last of each."""
    certain = 0
    for c in range(len(conns)):
        conn = conns[c]
        left = end - conn.start
        count = min(steps(left, STEP), conn.head)
        left -= conn.head * STEP
        body = min(steps(left, conn.gap), conn.body)
        if body == conn.body:
            count += min(steps(left - body * conn.gap, STEP), conn.tail)
        conn.count = count + body
        certain += max(conn.count - 1, 0)
    return certain


def cut(conns: NDArray[Any], packets: int) -> None:
    """Sets count for the least time, give or take a step, before which there are that many packets for certain."""
    high = STEP
    while count_before(conns, high) < packets:
        high *= 2
    low = high // 2
    while high - low > STEP:
        middle = (low + high) // 2
        low, high = (low, middle) if count_before(conns, middle) >= packets else (middle, high)
    count_before(conns, high)


# --- 2. their packets ------------------------------------------------------------------------------------------------------------------


@njit(cache=True)
def scramble(x):
    """A 64-bit mix (the finaliser of splitmix64): the random number that belongs to x."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True)
def packet_time(conn, k, random):
    """When packet k of a connection comes: a head and a tail at even steps, a body with one packet somewhere in each gap."""
    body = k - conn.head
    if body < 0:
        return conn.start + k * STEP
    after_head = conn.start + conn.head * STEP
    if body < conn.body:
        return after_head + body * conn.gap + np.int64(random >> np.uint64(32)) % conn.gap
    return after_head + conn.body * conn.gap + (body - conn.body) * STEP


@njit(cache=True)
def tcp_step(conn, k, random, before, frame):
    """What packet k of a TCP connection is: (flags, direction, payload). before: the direction of the packet before."""
    if k == 0:
        return SYN, 0, 0
    if k == 1:
        return (RST | ACK, 1, 0) if conn.head == 2 else (SYN | ACK, 1, 0)
    if k < conn.head:
        return (ACK, 0, 0) if k == 2 else (RST | ACK, 0, 0)
    body = k - conn.head
    if body >= conn.body:
        closer = conn.start & 1
        step = body - conn.body
        return (ACK if step == 2 else FIN | ACK), (closer ^ 1 if step == 1 else closer), 0
    if frame == ACK_ONLY and body > 0:
        # The other way than the packet before: an acknowledgement, and never the same one twice, which would count as a retransmission.
        return ACK, before ^ 1, 0
    # Four packets in five come from the server; one in eight goes each way for certain, so that what is under way stays small.
    phase = body & 7
    way = np.int64(np.int64(random >> np.uint64(16)) % 5 != 0)
    if phase & 3 == 0:
        way = phase >> 2
    return ACK | PSH, way, max(np.int64(frame), LEAST_FRAME) - ACK_ONLY


@njit(cache=True)
def expand(conns, sizes, seed, packets):
    """conns: CONN_DTYPE[n]; sizes: uint16[2, SIZE_ROWS], TCP and UDP; fills packets: PACKET_DTYPE[conns.count.sum()], connection after connection."""
    row = 0
    sent = np.zeros(2, dtype=np.uint32)
    for c in range(len(conns)):
        conn = conns[c]
        own = scramble(np.uint64(seed) ^ (np.uint64(c) << np.uint64(24)))
        sent[0], sent[1] = np.uint32(own), np.uint32(own >> np.uint64(32))
        before = 0
        for k in range(conn.count):
            random = scramble(own + np.uint64(k))
            packet = packets[row]
            packet.time, packet.conn = packet_time(conn, k, random), c
            if conn.proto == TCP:
                frame = sizes[0, random & np.uint64(SIZE_ROWS - 1)]
                flags, way, payload = tcp_step(conn, k, random, before, frame)
                answered = flags & ACK
                packet.seq = 0 if conn.head == 2 and way == 1 else sent[way]
                packet.ack = sent[1 - way] if answered else 0
                sent[way] += np.uint32(payload + (flags & SYN != 0) + (flags & FIN != 0))
            else:
                frame = sizes[1, random & np.uint64(SIZE_ROWS - 1)]
                flags, payload = 0, np.int64(frame) - 42
                way = k if k < 2 else np.int64(random >> np.uint64(16)) % 2
                packet.seq = packet.ack = 0
            packet.flags, packet.dir, packet.payload = flags, way, payload
            before = way
            row += 1


# --- 3. their bytes --------------------------------------------------------------------------------------------------------------------


@njit(cache=True)
def endpoints(c):
    """Client address and port, server address and port of connection c; no two connections have the same client's."""
    client = c % CLIENTS
    mixed = scramble(np.uint64(client))
    port = 1024 + (c // CLIENTS + np.int64(mixed >> np.uint64(40))) % 64512
    return 0x0A000000 + client, port, 0xC6120000 + np.int64(scramble(np.uint64(c))) % SERVERS, 443


@njit(cache=True)
def put16(out, at, value):
    out[at], out[at + 1] = value >> 8 & 0xFF, value & 0xFF


@njit(cache=True)
def put32(out, at, value):
    put16(out, at, value >> 16 & 0xFFFF)
    put16(out, at + 2, value & 0xFFFF)


@njit(cache=True)
def put32_little(out, at, value):
    for byte in range(4):
        out[at + byte] = value >> (8 * byte) & 0xFF


@njit(cache=True)
def checksum(out, start, end, total):
    """RFC 1071, over an even number of bytes and what total already holds."""
    for at in range(start, end, 2):
        total += np.int64(out[at]) << 8 | np.int64(out[at + 1])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@njit(cache=True)
def put_ip(out, at, packet, length):
    """Ethernet and IPv4 header of a packet, and both ports behind them; returns what its pseudo-header adds to the checksum."""
    client, client_port, server, server_port = endpoints(packet.conn)
    proto = TCP if packet.flags else UDP
    source, target = (server, client) if packet.dir else (client, server)
    out[at : at + 34] = 0
    out[at] = out[at + 6] = 2
    out[at + 5], out[at + 11] = 2 - packet.dir, 1 + packet.dir
    put16(out, at + 12, 0x0800)
    ip = at + 14
    put16(out, ip, 0x4500)
    put16(out, ip + 2, length)
    put16(out, ip + 6, 0x4000)
    put16(out, ip + 8, 64 << 8 | proto)
    put32(out, ip + 12, source)
    put32(out, ip + 16, target)
    put16(out, ip + 10, checksum(out, ip, ip + 20, 0))
    put16(out, ip + 20, server_port if packet.dir else client_port)
    put16(out, ip + 22, client_port if packet.dir else server_port)
    return (source >> 16) + (source & 0xFFFF) + (target >> 16) + (target & 0xFFFF) + proto + length - 20


@njit(cache=True)
def put_tcp(out, at, packet, pseudo):
    """The rest of the TCP header, the ports being there; the payload is zeros and adds nothing to the checksum."""
    syn = packet.flags & SYN
    size = 32 if syn else 20
    put32(out, at + 4, np.int64(packet.seq))
    put32(out, at + 8, np.int64(packet.ack))
    put16(out, at + 12, size // 4 << 12 | packet.flags)
    put16(out, at + 14, SYN_WINDOW if syn else 0 if packet.flags & RST else WINDOW)
    put32(out, at + 16, 0)
    if syn:
        out[at + 20 : at + 32] = SYN_OPTIONS
    put16(out, at + 16, checksum(out, at, at + size, pseudo))
    return size


@njit(cache=True)
def put_udp(out, at, packet, pseudo):
    put16(out, at + 4, 8 + packet.payload)
    put16(out, at + 6, 0)
    # RFC 768: a sum of zero is sent as all ones.
    total = checksum(out, at, at + 8, pseudo)
    put16(out, at + 6, total if total else 0xFFFF)
    return 8


@njit(cache=True)
def fill(packets, order, out):
    """Packets in that order as pcap records into out: uint8[m], large enough; returns the bytes used."""
    at = 0
    for row in order:
        packet = packets[row]
        tcp = packet.flags != 0
        headers = 20 + (32 if packet.flags & SYN else 20 if tcp else 8)
        frame = max(14 + headers + packet.payload, LEAST_FRAME)
        stamp = START + packet.time
        for number, value in enumerate((stamp // 1_000_000_000, stamp % 1_000_000_000, frame, frame)):
            put32_little(out, at + 4 * number, value)
        start = at + RECORD_HEADER
        pseudo = put_ip(out, start, packet, headers + packet.payload)
        l4 = start + 34
        used = put_tcp(out, l4, packet, pseudo) if tcp else put_udp(out, l4, packet, pseudo)
        out[l4 + used : start + frame] = 0
        at = start + frame
    return at


# --- all of it -------------------------------------------------------------------------------------------------------------------------


def make(profile: Profile, packets: int, flows: int, seed: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The packets of a capture, connection after connection, and the order of their times: PACKET_DTYPE[m], int64[packets]."""
    conns = plan(profile, packets, flows, seed)
    rows = np.empty(conns["count"].sum(), dtype=PACKET_DTYPE)
    expand(conns, np.stack([size_table(profile.sizes[proto]) for proto in (TCP, UDP)]), seed, rows)
    # Stable: packets of the same time stay in the order of their connections on every machine.
    return rows, np.argsort(rows["time"], kind="stable")[:packets]


def write(path: Path, packets: NDArray[Any], order: NDArray[np.int64]) -> int:
    """A pcap file with nanoseconds, Ethernet, whole frames; returns its size."""
    out = np.empty(CHUNK * (RECORD_HEADER + 1600), dtype=np.uint8)
    size = 24
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, 1))
        for start in range(0, len(order), CHUNK):
            used = fill(packets, order[start : start + CHUNK], out)
            file.write(out[:used].data)
            size += used
    return size


def options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.traffic", description="Write a large synthetic capture.")
    parser.add_argument(
        "--profile", required=True, choices=PROFILES, help="; ".join(f"{name}: {profile.about}" for name, profile in PROFILES.items())
    )
    parser.add_argument("--packets", type=int, default=1_000_000)
    parser.add_argument("--flows", type=int, default=10_000, help="connections open at the same time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    if chosen.flows < 1 or chosen.packets < 4 * chosen.flows:
        parser.error(f"--packets {chosen.packets} --flows {chosen.flows}: expected at least one flow, and four packets for each")
    if chosen.flows > 1 << 30 or not 0 <= chosen.seed < 1 << 63:
        parser.error("expected at most 2**30 flows, and a seed from 0 to 2**63 - 1")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    chosen = options(arguments)
    began = time.perf_counter()
    packets, order = make(PROFILES[chosen.profile], chosen.packets, chosen.flows, chosen.seed)
    try:
        size = write(chosen.output, packets, order)
    except OSError as error:
        print(f"traffic: {chosen.output}: {error.strerror}", file=sys.stderr)
        return 2
    seconds = time.perf_counter() - began
    connections = len(np.unique(packets["conn"][order]))
    figures = f"{len(order):,} packets, {connections:,} connections, {size:,} bytes in {seconds:.1f} s ({len(order) / seconds / 1e6:.2f} Mpps)"
    print(f"{chosen.output}: {figures}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
