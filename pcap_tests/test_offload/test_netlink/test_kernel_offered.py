"""Connections in the running kernel's conntrack: put there with all they have, listed as what they are, changed and removed; in a namespace of its
own.

Needs root and nf_conntrack_netlink; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1.
"""

from __future__ import annotations

import errno
import time

import numpy as np
import pytest

from ctcore.ctnetlink import Ask
from ctcore.types import CONN_DTYPE, Status
from datapath.oracle.namespace import Namespace
from offload.netlink.conntrack import KernelConntrack

LEAST_RATE = 50_000  # connections a second, put into the kernel
SEEN = int(Status.SEEN_REPLY | Status.ASSURED | Status.CONFIRMED)
ESTABLISHED = 3


@pytest.fixture
def kernel(running_kernel):
    namespace = Namespace()
    with namespace.entered(), KernelConntrack() as conntrack:
        yield conntrack
    namespace.close()


def conns(count: int, *, zone: int = 7, first: int = 1024) -> np.ndarray:
    """TCP connections to 10.0.0.2:80, established, with a mark, from as many ports and addresses as it takes.

    No label: the running kernel may keep none (offload.netlink.conntrack); pcap_tests/vm has those.
    """
    rows = np.zeros(count, dtype=CONN_DTYPE)
    for d in range(2):
        key = rows["flow"][:, d]["key"]
        key["family"], key["proto"], key["zone"] = 4, 6, zone
    number = np.arange(count)
    client = np.stack([np.full(count, 10), number // 50000 + 1, np.zeros(count, int), np.ones(count, int)], axis=1).astype(np.uint8)
    port = (first + number % 50000).astype(np.uint16)
    orig, reply = rows["flow"][:, 0]["key"], rows["flow"][:, 1]["key"]
    orig["src"][:, :4], orig["dst"][:, :4], orig["sport"], orig["dport"] = client, [10, 0, 0, 2], port, 80
    reply["src"][:, :4], reply["dst"][:, :4], reply["sport"], reply["dport"] = [10, 0, 0, 2], client, 80, port
    rows["status"], rows["timeout"], rows["mark"] = SEEN, 600 * 250, 0x42
    rows["tcp"]["state"] = ESTABLISHED
    rows["tcp"]["scale"] = 7
    return rows


def test_what_is_put_there_is_listed(kernel):
    rows = conns(3)
    assert [answer.error for answer in kernel.ask(rows, Ask.CREATE)] == [0, 0, 0]
    listed, status = kernel.all()
    listed = listed[np.argsort(listed["flow"][:, 0]["key"]["sport"])]
    assert [str(each) for each in listed["flow"]["key"]] == [str(each) for each in rows["flow"]["key"]]
    assert np.array_equal(listed["mark"], rows["mark"])
    assert (listed["tcp"]["state"] == ESTABLISHED).all() and (status & SEEN == SEEN).all()
    assert (listed["tcp"]["flags"] & 0x08).all()  # liberal
    assert (listed["timeout"] > 590 * 250).all()


def test_translation_is_the_kernels_own_record(kernel):
    """10.1.0.1 > 10.0.0.2 goes out as 192.0.2.9: answers come to that."""
    rows = conns(1)
    rows["status"] |= int(Status.SRC_NAT)
    reply = rows["flow"][:, 1]["key"]
    reply["dst"][:, :4], reply["dport"] = [192, 0, 2, 9], 5555
    assert [answer.error for answer in kernel.ask(rows, Ask.CREATE)] == [0]
    (listed,), (status,) = kernel.all()
    assert status & int(Status.SRC_NAT)
    assert bytes(listed["flow"][1]["key"]["dst"][:4]) == bytes([192, 0, 2, 9]) and listed["flow"][1]["key"]["dport"] == 5555


def test_an_entry_of_another_zone_is_another_one(kernel):
    rows = conns(3)
    rows["flow"]["key"]["zone"] = [[7, 7], [8, 8], [7, 7]]
    rows["flow"]["key"]["sport"], rows["flow"]["key"]["dport"] = [1024, 80], [80, 1024]
    assert [answer.error for answer in kernel.ask(rows, Ask.CREATE)] == [0, 0, errno.EEXIST]
    assert [answer.error for answer in kernel.ask(conns(1, zone=9), Ask.DELETE)] == [errno.ENOENT]
    assert [answer.error for answer in kernel.ask(rows[:1], Ask.DELETE)] == [0]
    listed, _ = kernel.all()
    assert listed["flow"][:, 0]["key"]["zone"].tolist() == [8]


def test_an_entry_is_changed_in_place(kernel):
    rows = conns(2)
    kernel.ask(rows[:1], Ask.CREATE)
    rows["mark"], rows["timeout"] = 0x99, 50 * 250
    assert [answer.error for answer in kernel.ask(rows, Ask.CHANGE)] == [0, errno.ENOENT]
    (listed,), _ = kernel.all()
    assert listed["mark"] == 0x99 and listed["timeout"] <= 50 * 250


def test_refusals_among_many_are_those_of_their_requests(kernel):
    rows = conns(1000)
    kernel.ask(rows[::3], Ask.CREATE)
    answers = kernel.ask(rows, Ask.CREATE)
    assert [answer.error for answer in answers] == [errno.EEXIST if number % 3 == 0 else 0 for number in range(1000)]


def test_a_refusal_says_why(kernel):
    (answer,) = kernel.ask(conns(1), Ask.DELETE)
    assert answer.error == errno.ENOENT and answer.told() == "No such file or directory"


def test_a_hundred_thousand_go_in_fast(kernel):
    """Written, sent, and acknowledged by the kernel. The best of three, for others use the machine, too."""
    rows = conns(100_000)
    rates = []
    for _ in range(3):
        begun = time.perf_counter()
        answers = kernel.ask(rows, Ask.CREATE)
        rates.append(len(rows) / (time.perf_counter() - begun))
        assert not any(answer.error for answer in answers)
        assert not any(answer.error for answer in kernel.ask(rows, Ask.DELETE))
    assert max(rates) > LEAST_RATE, rates
