"""A socket to the running kernel that asks many things at once: each has its answer, whatever becomes of the others; and lists are whole or an error.

Needs root; skipped elsewhere, saying why, or failing if CTMIRROR_REQUIRE_KERNEL=1.
"""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from datapath.oracle.namespace import Namespace
from offload.netlink.channel import Channel, NetlinkError, messages
from offload.netlink.extack import LOST, Answer, answer_of
from offload.netlink.filters import ACK, MESSAGE, TCMSG, Where, delete_qdisc, dump_filters, dump_qdiscs, message, new_qdisc
from offload.netlink.links import links
from offload.netlink.pack import attribute, text, u32
from offload.netlink.read import Malformed

DEVICES = 40


@pytest.fixture
def channel(running_kernel):
    namespace = Namespace()
    with namespace.netlink() as netlink:
        for number in range(DEVICES // 2):
            netlink.link("add", ifname=f"a{number}", kind="veth", peer={"ifname": f"b{number}"})
    with namespace.entered(), Channel() as opened:
        yield opened
    namespace.close()


# --- many requests ------------------------------------------------------------------------------------------------------------------------


def test_each_request_has_its_own_answer(channel):
    numbers = sorted(links(channel).values())[1:]
    requests = [new_qdisc(number) for number in numbers]
    assert [answer.error for answer in channel.ask(requests)] == [0] * DEVICES
    again = channel.ask([delete_qdisc(numbers[0]), *requests, new_qdisc(999)])
    assert [answer.error for answer in again] == [0, 0, *[errno.EEXIST] * (DEVICES - 1), errno.ENODEV]
    assert again[2].text == "Exclusivity flag on, cannot modify"


def test_sparing_answers_are_the_same(channel):
    numbers = sorted(links(channel).values())[1:]
    requests = [new_qdisc(number) for number in (numbers[0], numbers[1], numbers[0], 999, numbers[2])]
    assert [answer.error for answer in channel.ask(requests, sparing=True)] == [0, 0, errno.EEXIST, errno.ENODEV, 0]
    assert [answer.error for answer in channel.ask(requests[:1], sparing=True)] == [errno.EEXIST]


def test_many_groups_are_asked_one_after_the_other(channel):
    (number, *_) = sorted(links(channel).values())[1:]
    requests = [new_qdisc(number), delete_qdisc(number)] * 500
    assert {answer.error for answer in channel.ask(requests)} == {0}


@pytest.mark.parametrize("sparing", [False, True])
def test_what_does_not_fit_into_the_buffer_is_lost_and_known_to_be(channel, sparing):
    """The kernel has done what was asked, or has not: nobody knows; and what is asked next has its answers again."""
    channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least that there is
    answers = channel.ask([delete_qdisc(999)] * 100, sparing=sparing)
    assert LOST in answers and {answer.error for answer in answers} == {errno.ENODEV, errno.ENOBUFS}
    assert "not known" in LOST.told()
    channel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    assert [answer.error for answer in channel.ask([delete_qdisc(999)])] == [errno.ENODEV]


def test_no_request_is_no_answer(channel):
    assert channel.ask([]) == []


# --- lists --------------------------------------------------------------------------------------------------------------------------------


def test_links_are_those_of_the_channels_namespace(channel):
    assert len(links(channel)) == DEVICES + 1


def test_a_list_of_what_is_not_there_is_refused(channel):
    """Linux lists no filters of an interface that is not there: an empty list, or an error, but never another list."""
    assert list(channel.dump(dump_filters(Where(999)))) == []


def test_a_list_that_is_refused_says_why(channel):
    with pytest.raises(NetlinkError) as error:
        list(channel.dump(message(0x7F0, 0x300, bytes(20))))
    assert error.value.number == errno.EOPNOTSUPP


def test_a_list_is_of_one_request(channel):
    """Half of a list that nobody reads to its end does not get into the next one."""
    for number in sorted(links(channel).values())[1:]:
        channel.ask([new_qdisc(number)])
    for _ in range(3):
        next(channel.dump(dump_qdiscs()))
    assert len(links(channel)) == DEVICES + 1


def test_a_kernel_that_does_not_answer_is_an_error(channel):
    channel.patience = 0.05
    with pytest.raises(NetlinkError, match="no answer within"):
        list(channel.dump(message(1, 0, b"")))  # NLMSG_NOOP, which has no answer


# --- bytes --------------------------------------------------------------------------------------------------------------------------------


def test_messages_back_to_back():
    one, two = message(44, ACK, b"abc"), message(45, 0, b"")
    assert [(kind, data) for kind, _, _, data in messages(one + b"\0" + two)] == [(44, b"abc"), (45, b"")]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"abc", "message at byte 0: 3 bytes: expected a header of 16"),
        (MESSAGE.pack(8, 0, 0, 0, 0), "message at byte 0: says 8 bytes: expected 16 to 16"),
        (message(44, 0, b"") + MESSAGE.pack(99, 0, 0, 0, 0), "message at byte 16: says 99 bytes: expected 16 to 16"),
    ],
)
def test_messages_that_do_not_fit(data, said):
    with pytest.raises(Malformed) as error:
        list(messages(data))
    assert str(error.value) == said


def refusal(error: int, *parts: bytes, capped: bool = True, request: bytes = b"") -> tuple[bytes, int]:
    """What the kernel sends: behind the header, and the header's flags."""
    head = MESSAGE.pack(len(request) or 16, 44, 0, 0, 0)
    return struct.pack("=i", -error) + (head if capped else request) + b"".join(parts), 0x200 | 0x100 * capped


@pytest.mark.parametrize("capped", [True, False])
def test_a_sentence_and_the_attribute_it_is_about(capped):
    options = u32(22, 0) + attribute(92, b"\2\0")
    request = message(44, ACK, TCMSG.pack(0, 1, 0, 0, 0) + text(1, "flower") + attribute(2, options))
    offset = len(request) - 8
    data, flags = refusal(errno.EINVAL, text(1, "no trk"), u32(2, offset), capped=capped, request=request)
    answer = answer_of(data, flags, request)
    assert answer == Answer(errno.EINVAL, "no trk", "TCA_FLOWER_KEY_CT_STATE_MASK")
    assert answer.told() == "Invalid argument: no trk (TCA_FLOWER_KEY_CT_STATE_MASK)"


def test_what_is_missing_is_named():
    data, flags = refusal(errno.EINVAL, u32(5, 11))
    assert answer_of(data, flags, b"").told() == "Invalid argument: an attribute is missing (TCA_CHAIN)"


def test_a_warning_of_what_was_done():
    data, flags = refusal(0, text(1, "this will go"))
    assert answer_of(data, flags, b"").told() == "done, with a warning: this will go"


@pytest.mark.parametrize("length", [0, 3, 19])
def test_an_answer_that_is_too_short(length):
    with pytest.raises(Malformed):
        answer_of(bytes(length), 0x200, b"")
