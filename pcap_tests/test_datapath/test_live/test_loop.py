"""The loop: what leaves is what the pipeline says, in chunks of which none is lost, whatever goes wrong on the way."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from random import Random

import pytest

from ctcore.config import Config
from datapath import craft
from datapath.capture import PcapSource
from datapath.frame import frames_of
from datapath.live.capture_iface import CaptureIface
from datapath.live.iface import Iface
from datapath.live.loop import Loop
from datapath.live.null import Null
from datapath.live.umem import Umem
from datapath.pipeline.findings import Findings
from datapath.pipeline.rules import Hook
from datapath.pipeline.rules_file import parse
from datapath.ruled import RulePipeline
from datapath.sink import PcapSink

A, B = "10.0.0.1", "10.0.0.2"
REDIRECT = "tc filter add dev in ingress protocol all prio 9 chain 0 flower action mirred egress redirect dev out\n"
TRACKED = """
tc filter add dev in ingress protocol ip prio 1 chain 0 flower ct_state -trk action ct nat pipe action goto chain 1
tc filter add dev in ingress protocol ip prio 1 chain 1 flower ct_state +trk+new ip_proto tcp action ct commit nat src addr 192.0.2.1 pipe action mirred egress redirect dev out
tc filter add dev in ingress protocol ip prio 2 chain 1 flower ct_state +trk+new action ct commit pipe action mirred egress redirect dev out
tc filter add dev in ingress protocol ip prio 3 chain 1 flower ct_state +trk+est action mirred egress redirect dev out
"""  # noqa: E501


def ruled(text: str) -> RulePipeline:
    found = Findings()
    rules = parse(text, "rules", found)
    assert not found.errors, found.errors
    return RulePipeline(rules, Config(seed=7), devices=("in", "out"))


def capture(path: Path, frames: list[bytes]) -> str:
    memory, rows = frames_of(frames)
    with PcapSink(str(path)) as sink:
        sink.write(memory, rows)
    return str(path)


def bytes_in(path: str) -> list[bytes]:
    with PcapSource(path) as source:
        memory, frames = source.read(1 << 16)
        return [memory[int(row["offset"]) :][: int(row["caplen"])].tobytes() for row in frames]


def through(text: str, frames: list[bytes], tmp_path: Path, *, chunks: int = 4096, out: type[Iface] | None = None) -> tuple[list[bytes], Loop]:
    """What leaves because of some frames, and the loop, whose ifaces are closed and whose chunks are accounted for."""
    umem = Umem(chunks)
    source = CaptureIface(umem, "in", source=capture(tmp_path / "in.pcap", frames))
    sink = out(umem, "out", ordinal=1) if out else CaptureIface(umem, "out", sink=tmp_path / "out.pcap", ordinal=1)
    loop = Loop(ruled(text), [source, sink])
    while not source.ended:
        loop.run(0.01)
    umem.check()
    assert umem.places() == {"free": chunks}
    source.close()
    sink.close()
    return ([] if out else bytes_in(str(tmp_path / "out.pcap"))), loop


def expected(text: str, frames: list[bytes]) -> list[bytes]:
    """What the pipeline says of the same frames by itself."""
    pipeline = ruled(text)
    pipeline.arrive([Hook("in")])
    memory, rows = frames_of(frames)
    pipeline.process(memory, rows, outputs=True)
    outputs, changed = pipeline.outputs()
    whole = [(changed if row["flags"] & 1 else memory)[int(row["offset"]) :][: int(row["caplen"])].tobytes() for row in outputs]
    return [data for data, row in zip(whole, outputs, strict=True) if row["egress"]]


def talk(random: Random, n: int) -> list[bytes]:
    """Openings, answers, data, of few hosts; some fragments, some that are no IP."""
    frames = []
    for _ in range(n):
        port = random.randrange(1000, 1008)
        there, back = (A, B, port, 80), (B, A, 80, port)
        kind = random.randrange(6)
        if kind == 0:
            frames.append(bytes.fromhex("ffffffffffff0200000000010806") + bytes(46))
        elif kind == 1:
            frames.append(craft.udp(*random.choice((there, back)), bytes(random.randrange(1000))))
        else:
            flags, seq = random.choice((("S", 100), ("SA", 500), ("A", 101), ("PA", 101), ("FA", 101), ("R", 101)))
            frames.append(craft.tcp(*random.choice((there, back)), flags, seq=seq, ack=101).ljust(60, b"\0"))
    return frames


@pytest.mark.parametrize("text", [REDIRECT, TRACKED + REDIRECT], ids=["plain", "tracked"])
def test_what_leaves_is_what_the_pipeline_says(text, tmp_path):
    frames = talk(Random(3), 3000)
    left, loop = through(text, frames, tmp_path)
    assert left == expected(text, frames)
    assert loop.counters()["frames"] == 3000
    assert loop.counters()["sent"] == len(left) > 1000
    assert int(loop.histogram().sum()) == 3000


def test_a_mirrored_frame_leaves_twice_from_two_chunks(tmp_path):
    text = "tc filter add dev in ingress protocol all prio 1 flower action mirred egress mirror dev out pipe action mirred egress redirect dev out\n"
    frames = talk(Random(4), 100)
    left, loop = through(text, frames, tmp_path)
    assert left == [frame for frame in frames for _ in range(2)]
    assert loop.counters()["sent"] == 200


def test_a_frame_is_changed_behind_its_mirror(tmp_path):
    """The mirror takes the frame's own chunk, so that the changed one gets a new one: neither sees the other's bytes."""
    text = (
        "tc filter add dev in ingress protocol ip prio 1 flower ip_proto udp action mirred egress mirror dev out pipe "
        "action pedit ex munge eth dst set 02:00:00:00:00:99 pipe action mirred egress redirect dev out\n"
    )
    frame = craft.udp(A, B, 1000, 53, b"question")
    left, _ = through(text, [frame], tmp_path)
    assert left == [frame, bytes.fromhex("020000000099") + frame[6:]]


def test_without_a_free_chunk_a_copy_is_lost_and_counted(tmp_path):
    """64 chunks, all of them received frames': there is none for any mirror until a frame has left."""
    text = "tc filter add dev in ingress protocol all prio 1 flower action mirred egress mirror dev out pipe action mirred egress redirect dev out\n"
    frames = [craft.udp(A, B, i, 53) for i in range(1, 65)]
    left, loop = through(text, frames, tmp_path, chunks=64)
    assert loop.counters()["no_chunk"] == 64
    assert left == frames


def test_what_passes_where_nobody_takes_it_is_counted(tmp_path):
    left, loop = through("tc filter add dev in ingress protocol arp prio 1 flower action pass\n", talk(Random(5), 200), tmp_path)
    assert left == []
    assert loop.counters()["nobody"] == 200


def test_inward_takes_what_passes(tmp_path):
    umem = Umem(256)
    frames = [craft.udp(A, B, i, 53) for i in range(1, 65)]
    source = CaptureIface(umem, "in", source=capture(tmp_path / "in.pcap", frames))
    sink = CaptureIface(umem, "out", sink=tmp_path / "out.pcap", ordinal=1)
    loop = Loop(ruled("tc filter add dev in ingress protocol arp prio 1 flower action pass\n"), [source, sink], inward={"in": "out"})
    assert loop.run(0.05) == 64
    sink.close()
    assert bytes_in(str(tmp_path / "out.pcap")) == frames


def test_null_takes_everything_and_gives_its_chunks_back(tmp_path):
    _, loop = through(REDIRECT, talk(Random(6), 1000), tmp_path, out=Null)
    assert loop.counters()["sent"] == loop.ifaces[1].statistics()["tx"] == 1000


def test_a_bell_ends_a_turn_from_another_thread():
    umem = Umem(16)
    loop = Loop(ruled(REDIRECT), [Null(umem, "in"), Null(umem, "out", ordinal=1)])
    worker = threading.Thread(target=loop.run, args=(60.0,))
    start = time.monotonic()
    worker.start()
    loop.ring()
    worker.join(10)
    assert not worker.is_alive() and time.monotonic() - start < 10
    loop.ring()
    assert loop.run(60.0) == 0, "a bell that rang before is heard"


def test_other_rules_between_two_turns(tmp_path):
    umem = Umem(256)
    frames = [craft.udp(A, B, i, 53) for i in range(1, 11)]
    source = CaptureIface(umem, "in", source=capture(tmp_path / "in.pcap", frames))
    sink = CaptureIface(umem, "out", sink=tmp_path / "out.pcap", ordinal=1)
    loop = Loop(ruled("tc filter add dev in ingress protocol arp prio 1 flower action pass\n"), [source, sink])
    loop.pipeline.load(parse(REDIRECT, "rules", Findings()), devices=("in", "out"))
    loop.aim({})
    assert loop.run(0.05) == 10
    assert loop.counters()["sent"] == 10


def test_ifaces_that_do_not_go_together():
    umem = Umem(16)
    with pytest.raises(ValueError, match="one memory"):
        Loop(ruled(REDIRECT), [Null(umem, "in"), Null(Umem(16), "out", ordinal=1)])
    with pytest.raises(ValueError, match=r"ordinals \[0, 2\]"):
        Loop(ruled(REDIRECT), [Null(umem, "in"), Null(umem, "out", ordinal=2)])
    with pytest.raises(ValueError, match="other is none of the pipeline's"):
        Loop(ruled(REDIRECT), [Null(umem, "other")])
    with pytest.raises(ValueError, match="1 to 64"):
        Loop(ruled(REDIRECT), [])
