"""Fuzzer of what the kernel sends: lists of TC's rules, connections of ctnetlink, NICs of devlink, answers with their sentences.

Invariant: whatever bytes a message holds, it is a value, or one line of error, and nothing else; a rule that is read can be told again; a connection
is read alike by both readers, and leaves a tracker sound; what stands for a function has one name, which is printable.

    python pcap_tests/fuzz/fuzz_netlink.py [CORPUS] [-max_total_time=60]

Takes libFuzzer's arguments. Needs atheris. Without a corpus it starts from the seeds below. The first byte of an input says what it is.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import atheris

with atheris.instrument_imports(include=["offload.netlink", "offload.devlink", "datapath.commands.tc", "ctcore.ctnetlink"]):
    from ctcore.ctnetlink import Odd, row_of
    from offload.devlink.representors import Link, link_in, representors
    from offload.netlink.channel import messages
    from offload.netlink.extack import answer_of
    from offload.netlink.read import Malformed
    from pcap_tests.test_datapath.test_tc.test_decode import SEEDS, sound
    from pcap_tests.test_offload.test_devlink.test_devlink_model import RECORDED, read_any

from ctcore.config import Config
from ctcore.tracker import Tracker
from pcap_tests.test_ctcore.test_ctnetlink_read import WHOLE, same


def connection(data: bytes) -> None:
    same([data])
    try:
        row = row_of(data, 250)
    except Odd:
        return
    tracker = Tracker(Config(max=10, nat_actions=True))
    tracker.adopt(row)
    tracker.check()


def stream(data: bytes) -> None:
    try:
        for _, flags, _, behind in messages(data):
            answer = answer_of(behind, flags, data)
            assert "\n" not in answer.attribute
    except Malformed as error:
        assert "\n" not in str(error)


def devlink(data: bytes) -> None:
    """A devlink port, and an interface beside it that says the same of itself."""
    port = read_any(data)
    links = []
    try:
        links.append(link_in(data))
    except Malformed as error:
        assert "\n" not in str(error)
    if port is not None:
        links.append(Link(1, port.iface or "x", "00", "p0", port.nic))
    for each in representors([] if port is None else [port], links):
        assert each.iface.isprintable() and str(each).isprintable()


WAYS = (sound, connection, stream, devlink)


def one_input(data: bytes) -> None:
    if data:
        WAYS[data[0] % len(WAYS)](data[1:])


def main() -> None:
    """Run libFuzzer over one_input, with seeds in a folder of their own behind the one given."""
    with tempfile.TemporaryDirectory() as folder:
        seeds = Path(folder, "seeds")
        seeds.mkdir()
        for i, seed in enumerate(
            [*(b"\0" + each for each in SEEDS), *(b"\1" + each for each in WHOLE), *(b"\3" + each[20:] for _, each in RECORDED)]
        ):
            (seeds / f"seed{i}").write_bytes(seed)
        for argument in sys.argv[1:]:
            if not argument.startswith("-"):
                Path(argument).mkdir(parents=True, exist_ok=True)
        atheris.Setup([*sys.argv, "-max_len=2000", str(seeds)], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
