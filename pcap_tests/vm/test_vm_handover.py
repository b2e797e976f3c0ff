"""A download goes over from the node to the kernel in the middle, and back again: every byte arrives, in order, by the same connection.

Its end is a regular one: both sides' FINs are acknowledged, so that it comes to TIME_WAIT. A RST may follow: if the machine stands still for longer
than TCP waits (200 ms), the server repeats its FIN; the client acknowledges each copy; the first acknowledgment closes the server's socket, and to
the next one the server's stack answers with a RST, which makes the connection CLOSE. That is the ends' own affair. A RST that comes any sooner would
be one of a download that was cut off.
"""

from __future__ import annotations

import hashlib
import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import dropwhile
from pathlib import Path

import pytest

from datapath.live.client import Client, NoNode
from datapath.oracle.namespace import Namespace
from pcap_tests.test_datapath.test_live.services import attended
from pcap_tests.test_datapath.test_live.test_node import CLIENT, IPV4, PUBLIC, SERVER, TRANSLATING
from pcap_tests.vm.offloaded_node import EXACT, PATIENCE, PIPELINE, InKernel, kernel_conns, offloaded, until
from pcap_tests.vm.pages import Server, Steady

BYTES = Steady.PIECES * Steady.SIZE
LEAST = 100  # packets of a third of the download; some 800 are
SETTLED = BYTES // 30


class Download(threading.Thread):
    """What has arrived: how much, from whom the server says it was asked, and what it is as a whole."""

    def __init__(self, net: InKernel) -> None:
        super().__init__(name="download")
        self.asking = http.client.HTTPConnection(SERVER, 8000, timeout=20)
        with net.left.there.entered():
            self.asking.connect()
        self.size, self.seen, self.digest = 0, "", ""
        self.error: Exception | None = None

    def run(self) -> None:
        whole = hashlib.sha256()
        try:
            self.asking.request("GET", "/")
            answer = self.asking.getresponse()
            self.seen = answer.getheader("X-From") or ""
            while part := answer.read(4096):
                whole.update(part)
                self.size += len(part)
            self.digest = whole.hexdigest()
        except OSError as error:
            self.error = error
        finally:
            self.asking.close()

    def reached(self, third: int) -> bool:
        assert self.error is None, self.error
        return self.size >= BYTES * third // 3


class Course(threading.Thread):
    """The l4states of the connection in their order, as the node's events tell them."""

    def __init__(self, net: InKernel) -> None:
        super().__init__(name="course", daemon=True)
        self.client = Client(net.socket)
        self.states: list[str] = []
        self.lost = 0
        self.listening = threading.Event()

    def run(self) -> None:
        try:
            for part in self.client.events(which={"dport": 8000}):
                self.listening.set()
                self.lost += part.get("lost", 0)
                self.states += [event["l4state"] for event in part.get("events", ())]
        except NoNode:
            self.client.close()

    @property
    def ended(self) -> list[str]:
        """From the first FIN or RST on."""
        return list(dropwhile(lambda state: state in ("SYN_SENT", "SYN_RECV", "ESTABLISHED"), self.states))


def resets(namespace: Namespace) -> int:
    """Connections of a stack that were open, and were reset."""
    with namespace.entered():
        names, values = (line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Tcp:"))
    return int(values[names.index("EstabResets")])


@contextmanager
def downloading(net: InKernel) -> Iterator[Download]:
    with attended(net.right.there, lambda: Server((SERVER, 8000), Steady)):
        download = Download(net)
        download.start()
        try:
            yield download
        finally:
            download.join(20)
            assert not download.is_alive()


def software(net: InKernel) -> int:
    return net.status()["packets"]["software"]


@pytest.mark.parametrize("rules", [IPV4, TRANSLATING], ids=["plain", "snat"])
@pytest.mark.parametrize("section", [EXACT, PIPELINE], ids=["exact", "pipeline"])
def test_a_download_goes_over_and_comes_back(tmp_path, section, rules):
    with offloaded(tmp_path, section, rules) as net:
        (thread,) = [worker.offload.threaded for worker in net.node.workers]
        thread.suspend("the first third is the node's")
        course = Course(net)
        course.start()
        assert course.listening.wait(PATIENCE)
        with downloading(net) as download:
            until(lambda: download.reached(1), "a third by AF_XDP")
            first = software(net)
            assert first >= LEAST and kernel_conns(net) == []

            thread.resume()
            until(lambda: net.status()["flows"]["installed"] == 1, "it is the kernel's")
            size = download.size
            until(lambda: download.size >= size + SETTLED, "what waited in the node's rings is through")
            handed = software(net)
            until(lambda: download.reached(2), "two thirds, by TC")
            assert download.size - size > BYTES // 10 and software(net) - handed <= 5, "nothing of it came to the node"
            if section is PIPELINE:
                assert "[OFFLOAD]" in kernel_conns(net)[0]

            thread.suspend("the last third is the node's")
            until(lambda: net.status()["entries"] == 0, "it is the node's again")
            back = software(net)
            until(lambda: download.reached(3), "all of it")
            assert software(net) - back >= LEAST and kernel_conns(net) == []
        assert (download.error, download.size, download.digest) == (None, BYTES, Steady.digest())
        assert download.seen == (PUBLIC if rules is TRANSLATING else CLIENT)
        until(lambda: "TIME_WAIT" in course.states, "both FINs are acknowledged")
        assert course.ended[0] in ("FIN_WAIT", "CLOSE_WAIT") and "CLOSE" not in course.ended[: course.ended.index("TIME_WAIT")] and course.lost == 0
        assert [resets(wire.there) for wire in (net.left, net.right)] == [0, 0]
        assert net.client.ask("count")["count"] == 1 and net.status()["tc"]["failures"] == 0
