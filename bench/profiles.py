"""Traffic profiles: how long connections are, how large packets are, and how fast they come.

A figure is either somebody's measurement, and its comment says whose, or a choice that reaches a measured mean, and its comment says which.
Frame lengths are without the FCS. Not here: how packets are made of it (traffic.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TCP, UDP = 6, 17
ACK_ONLY = 54  # frame of a TCP segment without data; on the wire it is padded to 60
IP_ROW = 14  # Ethernet header: what a frame has more than NetFlow's bytes, which count from the IP header on
FCS = 4

# Share of packets by frame length: (least, greatest, weight), uniform in between.
Sizes = tuple[tuple[int, int, float], ...]
# Lengths of connections in packets, both directions together, for an array of protocols.
Lengths = Callable[[np.random.Generator, NDArray[np.uint8]], NDArray[np.int64]]


@dataclass(frozen=True)
class Profile:
    """sizes: by protocol; lengths: None where connections stay open to the end."""

    about: str
    packets_per_second: int
    tcp_share: float
    sizes: dict[int, Sizes]
    lengths: Lengths | None


def power_law(rng: np.random.Generator, low: int, high: int, exponent: float, n: int) -> NDArray[np.int64]:
    """n whole numbers from low to high, with a density falling as x ** -exponent (exponent != 1: by inversion; 1: log-uniform)."""
    a, b, u = low - 0.5, high + 0.5, rng.random(n)
    if exponent == 1:
        x = a * (b / a) ** u
    else:
        p = 1 - exponent
        x = (a**p + u * (b**p - a**p)) ** (1 / p)
    return np.clip(np.rint(x), low, high).astype(np.int64)


# AGH university (arXiv 1809.03486): share of flows with at most 1, 2, 8, 64, 1,024 packets. Within a class the density falls as x ** -1.66, a choice:
# so flows of at most 1,024 packets carry the measured 14.4 % of packets. Beyond, log-uniform up to 49,300: so the mean is the measured 78.6.
CAMPUS_CLASSES = ((1, 1, 0.478), (2, 2, 0.175), (3, 8, 0.188), (9, 64, 0.124), (65, 1024, 0.0296))
CAMPUS_EXPONENT = 1.66
CAMPUS_LONGEST = 49_300
# Share of long flows by protocol, a choice: so TCP, 53.9 % of flows, has 83.5 % of packets and UDP, 43.1 % of flows, 16.0 % (the same source).
CAMPUS_LONG = {TCP: 0.00887, UDP: 0.00143}


def campus_lengths(rng: np.random.Generator, proto: NDArray[np.uint8]) -> NDArray[np.int64]:
    """NetFlow counts one direction; a connection pairs two of them."""
    n = len(proto)
    flow = np.empty(n, dtype=np.int64)
    weights = np.array([weight for _, _, weight in CAMPUS_CLASSES])
    chosen = rng.choice(len(CAMPUS_CLASSES), size=n, p=weights / weights.sum())
    for number, (low, high, _) in enumerate(CAMPUS_CLASSES):
        rows = chosen == number
        flow[rows] = power_law(rng, low, high, CAMPUS_EXPONENT, int(rows.sum()))
    long = rng.random(n) < np.where(proto == TCP, CAMPUS_LONG[TCP], CAMPUS_LONG[UDP])
    flow[long] = power_law(rng, CAMPUS_CLASSES[-1][1] + 1, CAMPUS_LONGEST, 1, int(long.sum()))
    return 2 * flow


def sfr_lengths(rng: np.random.Generator, proto: NDArray[np.uint8]) -> NDArray[np.int64]:
    """TRex sfr_delay_10_1g: 48 % of new flows are DNS of two packets, 52.7 packets is the mean of all; so 99.5 that of the others.
    Their spread is not documented: geometric above the six packets of an empty TCP connection."""
    others = 6 + rng.geometric(1 / (99.5 - 5), len(proto)) - 1
    return np.where(proto == UDP, 2, others)


# TRex's histogram of sizes with FCS: <= 64 B 20 %, <= 128 28 %, <= 256 10 %, <= 512 6 %, <= 1024 1 %, <= 1518 35 %. The largest class begins at
# 1,300, a choice: so the mean is the documented 583 B.
SFR_SIZES: Sizes = (
    (ACK_ONLY, ACK_ONLY, 0.20),
    (65 - FCS, 128 - FCS, 0.28),
    (129 - FCS, 256 - FCS, 0.10),
    (257 - FCS, 512 - FCS, 0.06),
    (513 - FCS, 1024 - FCS, 0.01),
    (1300 - FCS, 1518 - FCS, 0.35),
)
# The classic 7:4:1 of 64, 594 and 1,518 B.
IMIX_SIZES: Sizes = ((ACK_ONLY, ACK_ONLY, 7), (594 - FCS, 594 - FCS, 4), (1518 - FCS, 1518 - FCS, 1))
# Choices: full segments, ACKs and some between so that the mean is the 923 B measured for TCP; QUIC-like and small datagrams: 613 B for UDP.
CAMPUS_TCP_SIZES: Sizes = ((ACK_ONLY, ACK_ONLY, 0.345), (41 + IP_ROW, 1499 + IP_ROW, 0.10), (1500 + IP_ROW, 1500 + IP_ROW, 0.555))
CAMPUS_UDP_SIZES: Sizes = ((48 + IP_ROW, 250 + IP_ROW, 0.622), (1378 + IP_ROW, 1378 + IP_ROW, 0.378))

PROFILES = {
    # 122,000 packets/s measured; 53.9 % of flows TCP and 43.1 % UDP, the rest left out.
    "campus": Profile("a university's uplink", 122_000, 0.539 / 0.970, {TCP: CAMPUS_TCP_SIZES, UDP: CAMPUS_UDP_SIZES}, campus_lengths),
    # 4,084 connections/s of 52.7 packets.
    "trex-sfr": Profile("a service provider's mix", 215_000, 0.52, {TCP: SFR_SIZES, UDP: SFR_SIZES}, sfr_lengths),
    # The rates of the last two are a choice: they are loads, not places.
    "imix": Profile("open TCP connections, sizes 7:4:1", 1_000_000, 1.0, {TCP: IMIX_SIZES, UDP: IMIX_SIZES}, None),
    "established": Profile("open TCP connections, 60-byte frames", 1_000_000, 1.0, {TCP: ((60, 60, 1),), UDP: ((60, 60, 1),)}, None),
}

SIZE_ROWS = 4096


def size_table(sizes: Sizes) -> NDArray[np.uint16]:
    """SIZE_ROWS frame lengths, as many of each as its weight says: a random row is a random length."""
    weights = np.array([weight for _, _, weight in sizes], dtype=np.float64)
    ends = np.rint(np.cumsum(weights) / weights.sum() * SIZE_ROWS).astype(np.int64)
    parts = [np.rint(np.linspace(low, high, end - begin)) for (low, high, _), begin, end in zip(sizes, [0, *ends[:-1]], ends, strict=True)]
    return np.concatenate(parts).astype(np.uint16)
