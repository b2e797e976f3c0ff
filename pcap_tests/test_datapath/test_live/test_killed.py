"""kill -9 of a process that holds an interface: nothing of it stays, and the next one starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datapath import craft
from datapath.live.drivers import Wanted, open_interface
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING
from pcap_tests.test_datapath.test_live.test_xdp_filter import attached
from pcap_tests.test_datapath.test_live.wires import received, until

ROOT = Path(__file__).parents[3]
FRAME = craft.udp("10.0.0.1", "10.0.0.2", 1, 2, b"x" * 20)
# Forwards between the interface and a second one until it is killed. Its namespace is inherited.
HOLDER = """
import sys
from datapath.live.drivers import Wanted, open_interface
from datapath.live.forwarder import Forwarder
from datapath.live.umem import Umem
from datapath.live.xdp_filter import EVERYTHING
umem = Umem(8192)
opened = [open_interface(umem, name, Wanted(driver=sys.argv[1], filter=EVERYTHING)) for name in sys.argv[2:]]
print("ready", flush=True)
Forwarder(*(each.ifaces[0] for each in opened)).run()
"""
SOON = 2.0  # s; measured on an idle machine: 0.02. A busy one takes its time to end a process, and to look.


@pytest.mark.parametrize("driver", ["xdp-native", "xdp-generic"])
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "under load"])
def test_nothing_stays_and_the_next_one_starts(wires, driver, busy):
    left, right = wires("left"), wires("right")
    with left.here.entered():
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, driver, "left", "right"], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"ready\n"
        assert attached(left) and attached(right)
        with left.end() as far, right.end() as sink:
            for _ in range(2000 if busy else 1):
                far.send(FRAME)
            assert sink.recv(2048)
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            killed = time.monotonic()
            until(lambda: not attached(left) and not attached(right), "no program any more")
            assert time.monotonic() - killed < SOON
            with left.here.entered(), open_interface(Umem(4096), "left", Wanted(driver=driver, filter=EVERYTHING)) as opened:
                far.send(FRAME)
                assert received(opened.ifaces[0], 1) == [FRAME]
    finally:
        holder.kill()
        holder.wait()
        assert holder.stdout is not None
        holder.stdout.close()
