"""Synthetic traffic: the kernels against NumPy twins, the distributions against the figures they claim, the whole before a strict tracker."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scapy.layers.l2 import Ether
from scapy.utils import rdpcap

from bench import profiles, traffic
from bench.profiles import PROFILES, TCP, UDP
from bench.traffic import ACK, FIN, PSH, RST, START, SYN
from ctcore.config import Config
from ctcore.types import Reason, State
from datapath.capture import PcapSource
from datapath.worker import Pipeline

U64 = np.uint64


def sizes_of(name: str) -> NDArray[np.uint16]:
    return np.stack([profiles.size_table(PROFILES[name].sizes[proto]) for proto in (TCP, UDP)])


# --- twins -----------------------------------------------------------------------------------------------------------------------------


def scramble_twin(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def counts_twin(conns: NDArray[Any], end: int) -> NDArray[np.int64]:
    """What count_before() sets."""
    left = end - conns["start"]
    head = np.clip(-(-left // traffic.STEP), 0, conns["head"])
    left = left - conns["head"].astype(np.int64) * traffic.STEP
    body = np.clip(-(-left // conns["gap"]), 0, conns["body"])
    tail = np.clip(-(-(left - body * conns["gap"]) // traffic.STEP), 0, conns["tail"])
    return head + body + np.where(body == conns["body"], tail, 0)


def expand_twin(conns: NDArray[Any], sizes: NDArray[np.uint16], seed: int) -> NDArray[Any]:
    """What expand() does, over whole columns: no loop, every running sum a cumsum."""
    count = conns["count"]
    of = np.repeat(np.arange(len(conns)), count)
    first = np.repeat(np.cumsum(count) - count, count)
    row = np.arange(count.sum())
    k, c = row - first, conns[of]
    head, body, tcp = c["head"].astype(np.int64), c["body"], c["proto"] == TCP
    own = scramble_twin(U64(seed) ^ (np.arange(len(conns), dtype=U64) << U64(24)))[of]
    random = scramble_twin(own + k.astype(U64))
    in_body, in_tail = (k >= head) & (k < head + body), k >= head + body

    rows = np.zeros(len(row), dtype=traffic.PACKET_DTYPE)
    rows["conn"] = of
    jitter = (random >> U64(32)).astype(np.int64) % c["gap"]
    body_time = head * traffic.STEP + (k - head) * c["gap"] + jitter
    tail_time = head * traffic.STEP + np.where(in_tail, body, 0) * c["gap"] + (k - head - body) * traffic.STEP
    rows["time"] = c["start"] + np.select([in_body, in_tail], [body_time, tail_time], k * traffic.STEP)

    frame = sizes[np.where(tcp, 0, 1), (random & U64(profiles.SIZE_ROWS - 1)).astype(np.int64)]
    bare = tcp & in_body & (frame == profiles.ACK_ONLY) & (k > head)
    data = tcp & in_body & ~bare
    in_head = tcp & ~in_body & ~in_tail
    refused, closing, closer = head == 2, k - head - body, c["start"] & 1
    flag_cases = {
        SYN: in_head & (k == 0),
        RST | ACK: in_head & ((refused & (k == 1)) | (k == 3)),
        SYN | ACK: in_head & ~refused & (k == 1),
        FIN | ACK: tcp & in_tail & (closing < 2),
        ACK | PSH: data,
        ACK: bare | (in_head & (k == 2)) | (tcp & in_tail & (closing == 2)),
    }
    rows["flags"] = np.select(list(flag_cases.values()), list(flag_cases), 0)
    rows["payload"] = np.select([data, ~tcp], [np.maximum(frame, 60) - 54, frame - 42], 0)

    phase, bits = (k - head) & 7, (random >> U64(16)).astype(np.int64)
    way = np.select(
        [in_head, data & (phase % 4 == 0), data, tcp & in_tail, ~tcp & (k < 2), ~tcp],
        [k == 1, phase // 4, bits % 5 != 0, closer ^ (closing == 1), k, bits % 2],
    )
    steady = np.maximum.accumulate(np.where(bare, 0, row))
    rows["dir"] = way[steady] ^ (row - steady & 1)

    used = np.where(tcp, rows["payload"] + (rows["flags"] & SYN != 0) + (rows["flags"] & FIN != 0), 0)
    sent = []
    for direction, isn in ((0, own), (1, own >> U64(32))):
        total = np.cumsum(np.where(rows["dir"] == direction, used, 0)) - np.where(rows["dir"] == direction, used, 0)
        sent.append((isn.astype(np.uint32).astype(np.int64) + total - total[first]).astype(np.uint32))
    rows["seq"] = np.where(tcp & ~(refused & (rows["dir"] == 1)), np.where(rows["dir"] == 0, *sent), 0)
    rows["ack"] = np.where(rows["flags"] & ACK != 0, np.where(rows["dir"] == 0, *sent[::-1]), 0)
    return rows


def endpoints_twin(c: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    client = c % traffic.CLIENTS
    port = 1024 + (c // traffic.CLIENTS + (scramble_twin(client.astype(U64)) >> U64(40)).astype(np.int64)) % 64512
    return 0x0A000000 + client, port, 0xC6120000 + scramble_twin(c.astype(U64)).astype(np.int64) % traffic.SERVERS, np.full(len(c), 443)


def sum_twin(*words: Any) -> NDArray[np.int64]:
    total = sum(np.asarray(word, dtype=np.int64) for word in words)
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def fill_twin(packets: NDArray[Any]) -> bytes:
    """What fill() writes: columns of 16-bit words, put where each record begins."""
    tcp, syn = packets["flags"] != 0, packets["flags"] & SYN != 0
    headers = 20 + np.where(syn, 32, np.where(tcp, 20, 8))
    length = headers + packets["payload"]
    frame = np.maximum(14 + length, 60)
    end = np.cumsum(16 + frame)
    at = end - frame
    out = np.zeros(end[-1], dtype=np.uint8)

    def put(offset: int, values: Any, mask: NDArray[np.bool_] | None = None, dtype: str = ">u2") -> None:
        column = np.broadcast_to(values, len(packets)).astype(dtype)
        octets = column.view(np.uint8).reshape(len(packets), -1)
        chosen = np.ones(len(packets), bool) if mask is None else mask
        for number in range(octets.shape[1]):
            out[at[chosen] + offset + number] = octets[chosen, number]

    stamp = START + packets["time"]
    for number, values in enumerate((stamp // 10**9, stamp % 10**9, frame, frame)):
        put(4 * number - 16, values, dtype="<u4")
    reply = packets["dir"] == 1
    client, client_port, server, server_port = endpoints_twin(packets["conn"].astype(np.int64))
    source, target = np.where(reply, server, client), np.where(reply, client, server)
    ports = np.where(reply, server_port, client_port), np.where(reply, client_port, server_port)
    addresses = (source >> 16, source & 0xFFFF, target >> 16, target & 0xFFFF)
    proto = np.where(tcp, 6, 17)
    macs = (0x0200, 0, np.where(reply, 1, 2), 0x0200, 0, np.where(reply, 2, 1), 0x0800)
    fixed = (0x4500, length, 0, 0x4000, 64 << 8 | proto)
    for number, values in enumerate((*macs, *fixed, sum_twin(*fixed, *addresses), *addresses, *ports)):
        put(2 * number, values)
    seq, ack = packets["seq"].astype(np.int64), packets["ack"].astype(np.int64)
    window = np.select([syn, packets["flags"] & RST != 0], [65535, 0], 512)
    options = [np.where(syn, word, 0) for word in (0x0204, 0x05B4, 0x0402, 0x0103, 0x0307, 0x0000)]
    segment = [seq >> 16, seq & 0xFFFF, ack >> 16, ack & 0xFFFF, np.where(syn, 0x8000, 0x5000) | packets["flags"], window]
    for number, values in enumerate((*segment, sum_twin(*addresses, proto, length - 20, *ports, *segment, *options))):
        put(38 + 2 * number, values, tcp)
    for number, values in enumerate(options):
        put(54 + 2 * number, values, syn)
    total = sum_twin(*addresses, proto, length - 20, *ports, length - 20)
    put(38, length - 20, ~tcp)
    put(40, np.where(total == 0, 0xFFFF, total), ~tcp)
    return out.tobytes()


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("seed", [1, 2**62])
def test_kernels_do_what_their_twins_do(name: str, seed: int) -> None:
    conns = traffic.plan(PROFILES[name], 20_000, 300, seed)
    packets, order = traffic.make(PROFILES[name], 20_000, 300, seed)
    twin = expand_twin(conns, sizes_of(name), seed)
    for field in traffic.PACKET_DTYPE.names:
        np.testing.assert_array_equal(packets[field], twin[field], err_msg=field)
    out = np.full(len(order) * 1700, 0xAA, dtype=np.uint8)
    assert out[: traffic.fill(packets, order, out)].tobytes() == fill_twin(twin[order])


@pytest.mark.parametrize("name", PROFILES)
def test_packets_before_a_time_are_counted_as_the_twin_counts_them(name: str) -> None:
    conns = traffic.plan(PROFILES[name], 20_000, 300, 4)
    last = int(conns["start"].max())
    for end in (0, 1, traffic.STEP, traffic.STEP + 1, last // 7, last // 2, last, 2 * last, 10**12):
        certain = traffic.count_before(conns, end)
        np.testing.assert_array_equal(conns["count"], counts_twin(conns, end))
        assert certain == np.maximum(conns["count"] - 1, 0).sum()


# --- what the plan promises ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "flows"), [("campus", 40), ("campus", 2000), ("trex-sfr", 700), ("established", 5000)])
def test_no_packet_is_missing_before_the_last(name: str, flows: int) -> None:
    """If every connection could go on for longer, the first packets in time would be the same."""
    conns = traffic.plan(PROFILES[name], 20_000, flows, 3)
    longer = conns.copy()
    longer["count"] = np.minimum(conns["head"] + conns["body"] + conns["tail"], conns["count"] + 40)
    times = []
    for plan in (conns, longer):
        rows = np.empty(plan["count"].sum(), dtype=traffic.PACKET_DTYPE)
        traffic.expand(plan, sizes_of(name), 3, rows)
        times.append(np.sort(rows["time"])[:20_000])
    assert len(times[0]) == 20_000
    np.testing.assert_array_equal(*times)


@pytest.mark.parametrize("name", PROFILES)
def test_connections_are_interleaved_and_in_order(name: str) -> None:
    packets, order = traffic.make(PROFILES[name], 40_000, 2000, 1)
    conn, time = packets["conn"][order], packets["time"][order]
    assert (np.diff(time) >= 0).all()
    assert (conn[1:] == conn[:-1]).mean() < 0.05
    assert len(np.unique(conn)) >= 2000
    within = np.diff(packets["time"])[packets["conn"][1:] == packets["conn"][:-1]]
    assert within.min() > 0 and within.max() < 2 * traffic.LONGEST_GAP


def test_no_client_address_and_port_is_used_twice() -> None:
    ordinals = np.concatenate([np.arange(3000) + block * traffic.CLIENTS for block in (0, 1, 2, 64511)])
    clients = {traffic.endpoints(c)[:2] for c in ordinals.tolist()}
    assert len(clients) == len(ordinals)
    assert all(1024 <= port < 65536 for _, port in clients)


# --- the figures (traffic statistics of the profiles' sources) -------------------------------------------------------------------------


def test_campus_lengths_are_those_measured() -> None:
    rng = np.random.default_rng(5)
    proto = np.where(rng.random(2_000_000) < PROFILES["campus"].tcp_share, TCP, UDP).astype(np.uint8)
    flow = profiles.campus_lengths(rng, proto) // 2
    shares = [float((flow <= limit).mean()) for limit in (1, 2, 8, 64, 1024)]
    assert shares == pytest.approx([0.478, 0.653, 0.841, 0.965, 0.9946], abs=0.002)
    assert flow.mean() == pytest.approx(78.6, rel=0.05)
    assert flow[flow <= 1024].sum() / flow.sum() == pytest.approx(0.144, abs=0.01)
    assert flow[proto == TCP].sum() / flow.sum() == pytest.approx(0.835 / (0.835 + 0.160), abs=0.02)


def test_sfr_lengths_are_those_documented() -> None:
    rng = np.random.default_rng(5)
    proto = np.where(rng.random(1_000_000) < PROFILES["trex-sfr"].tcp_share, TCP, UDP).astype(np.uint8)
    length = profiles.sfr_lengths(rng, proto)
    assert length.mean() == pytest.approx(52.7, rel=0.01)
    assert (length == 2).mean() == pytest.approx(0.48, abs=0.002)
    assert length[proto == TCP].min() >= 6


def test_sizes_have_the_means_and_shares_of_their_sources() -> None:
    campus, sfr, imix = (sizes_of(name).astype(float) for name in ("campus", "trex-sfr", "imix"))
    assert campus.mean(axis=1) - profiles.IP_ROW == pytest.approx([923, 613], rel=0.005)
    on_wire = np.maximum(sfr[0], 60) + profiles.FCS
    assert on_wire.mean() == pytest.approx(583, rel=0.01)
    assert [float((on_wire <= limit).mean()) for limit in (64, 128, 256, 512, 1024)] == pytest.approx([0.20, 0.48, 0.58, 0.64, 0.65], abs=0.01)
    lengths, counts = np.unique(imix[0], return_counts=True)
    assert lengths.tolist() == [54, 590, 1514] and counts / counts[-1] == pytest.approx([7, 4, 1], rel=0.01)


# --- the file --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "flows"), [("campus", 50), ("campus", 3000), ("trex-sfr", 500), ("imix", 1000), ("established", 10_000)])
def test_a_strict_tracker_finds_nothing_invalid(name: str, flows: int, tmp_path: Path) -> None:
    """No pick-up of unknown connections, checksums verified: all is new or established."""
    path = tmp_path / "traffic.pcap"
    assert traffic.main(["--profile", name, "--packets", "60000", "--flows", str(flows), "-o", str(path)]) == 0
    pipeline = Pipeline(Config(tcp_loose=False, checksum=True))
    with PcapSource(path) as source:
        while len((batch := source.read(4096))[1]):
            pipeline.process(*batch, decisions=False)
    summary = pipeline.summary()
    assert summary["packets"][State.NEW] + summary["packets"][State.ESTABLISHED] == summary["total_packets"] == 60_000
    said = {Reason(code) for code in np.flatnonzero(summary["reason_packets"])}
    assert said <= {Reason.R_OK, Reason.R_TCP_RST_KILLED}


def test_scapy_agrees_with_every_checksum(tmp_path: Path) -> None:
    path = tmp_path / "traffic.pcap"
    traffic.main(["--profile", "campus", "--packets", "400", "--flows", "100", "-o", str(path)])
    for packet in rdpcap(str(path)):
        copy = Ether(bytes(packet))
        for layer in ("IP", "TCP", "UDP"):
            if copy.haslayer(layer):
                del copy[layer].chksum
        assert bytes(copy) == bytes(packet)


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    digests = []
    for number, seed in enumerate((7, 7, 8)):
        path = tmp_path / f"{number}.pcap"
        traffic.main(["--profile", "trex-sfr", "--packets", "5000", "--flows", "200", "--seed", str(seed), "-o", str(path)])
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "campus", "--packets", "10", "--flows", "100"], "four packets for each"),
        (["--profile", "campus", "--flows", "0"], "at least one flow"),
        (["--profile", "nowhere"], "invalid choice"),
        (["--profile", "imix", "--seed", "-1"], "seed"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        traffic.main([*arguments, "-o", str(tmp_path / "no.pcap")])
    assert said in capsys.readouterr().err
    assert not (tmp_path / "no.pcap").exists()


def test_an_unwritable_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "missing" / "no.pcap"
    assert traffic.main(["--profile", "imix", "--packets", "400", "--flows", "100", "-o", str(path)]) == 2
    assert capsys.readouterr().err == f"traffic: {path}: No such file or directory\n"
