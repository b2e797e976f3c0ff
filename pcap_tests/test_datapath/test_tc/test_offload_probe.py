"""`ctmirror offload probe` of a kernel that is none: what it says, and the exit code. In a real kernel: pcap_tests/vm/test_vm_trials."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from datapath.commands import offload_probe
from offload.netlink.extack import Answer
from offload.trials import TRIALS, Tried
from pcap_tests.test_datapath.command import run


@contextmanager
def no_channel() -> Iterator[None]:
    yield None


def test_a_kernel_without_flower_is_one_cause_with_what_it_takes(monkeypatch, capfd):
    monkeypatch.setattr(offload_probe, "Channel", no_channel)
    monkeypatch.setattr(offload_probe, "links", lambda channel: {"eth0": 7})
    monkeypatch.setattr(offload_probe, "tc_offload", lambda device: "")
    monkeypatch.setattr(offload_probe, "eswitch_of", lambda device: (None, None))
    lacking = tuple(Tried(trial, Answer(errno.ENOENT, "TC classifier not found")) for trial in TRIALS)
    monkeypatch.setattr(offload_probe, "trials", lambda *_, **__: lacking)
    code, out, err = run(capfd, "offload", "probe", "eth0")
    lines = out.splitlines()
    assert (code, err) == (1, "") and lines[2].startswith("kernel  flower     No such file")
    assert lines[2 + len(TRIALS) :] == [
        "software: nothing of it can be in hardware",
        "  the kernel: flower (a filter): No such file or directory: TC classifier not found: expected a kernel with CONFIG_NET_CLS_FLOWER "
        "(ctmirror doctor) (and 8 more for the same reason)",
        "  the interface has no hw-tc-offload",
    ]
