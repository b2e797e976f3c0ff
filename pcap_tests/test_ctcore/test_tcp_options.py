"""TCP's options: window scale and SACK-permitted of a SYN, SACK blocks, and areas that are broken."""

from __future__ import annotations

import pytest

from ctcore.types import TcpFlag
from pcap_tests.scene import established, options, sack, syn_sent

SCALE, SACK_PERM = TcpFlag.TF_WINDOW_SCALE, TcpFlag.TF_SACK_PERM

# --- of a SYN --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("area", "scale", "flags"),
    [
        (b"", 0, 0),
        (bytes([3, 3, 7, 0]), 7, SCALE),
        (bytes([3, 3, 15, 0]), 14, SCALE),  # RFC 7323 2.3
        (bytes([3, 3, 7, 3, 3, 5, 1, 1]), 5, SCALE),  # the last one counts
        (bytes([1, 1, 4, 2]), 0, SACK_PERM),
        (bytes([4, 2, 3, 3, 7, 0, 0, 0]), 7, SCALE | SACK_PERM),
        (bytes([0, 3, 3, 7]), 0, 0),  # behind the end
        (bytes([3, 4, 7, 1]), 0, 0),  # not a scale of that length
        (bytes([4, 3, 0, 1]), 0, 0),
        (bytes([99, 0, 4, 2]), 0, 0),  # a length that cannot be ends all
        (bytes([99, 1, 4, 2]), 0, 0),
        (bytes([99, 2, 4, 2]), 0, SACK_PERM),
        (bytes([4, 2, 99, 3]), 0, SACK_PERM),  # beyond the end
        (bytes([1, 1, 1, 3]), 0, 0),
        (bytes([1, 1, 3, 3]), 0, 0),
    ],
)
def test_options_of_a_syn(tracker, area, scale, flags):
    side = syn_sent(tracker, syn={"options": area}).side(0)
    assert (side["scale"], side["flags"]) == (scale, flags)


def test_syn_without_any_options_leaves_what_was_known(tracker):
    conn = syn_sent(tracker, syn={"options": options(wscale=7, sack_perm=True)})
    conn.orig("S", seq=200)
    assert (conn.side(0)["scale"], conn.side(0)["flags"]) == (7, SCALE | SACK_PERM)
    conn.orig("S", seq=300, options=bytes(4))
    assert (conn.side(0)["scale"], conn.side(0)["flags"]) == (0, 0)


# --- SACK ------------------------------------------------------------------------------------------------------------------------------


def with_sack(tracker, *, server: bool = True):
    """An open connection whose client, and server, will have SACK."""
    return established(tracker, syn={"options": options(sack_perm=True)}, synack={"options": options(sack_perm=server)})


# The server has sent up to 501. Whether an edge is read shows by its being too far.
@pytest.mark.parametrize(
    ("area", "reason"),
    [
        (sack((400, 501)), "ok"),
        (sack((400, 502)), "tcp_ack_over"),
        (sack((400, 501), (510, 520)), "tcp_ack_over"),
        (sack((510, 520), (400, 501)), "tcp_ack_over"),
        (sack((400, 0x90000000)), "ok"),  # before the ack
        (sack((400, 501)) + sack((510, 520)), "ok"),  # only the first option
        (bytes([5, 9]) + bytes(7) + b"\1" * 3 + sack((510, 520)), "tcp_ack_over"),  # one of an impossible length is none
        (bytes([5, 2, 1, 1]) + sack((510, 520)), "tcp_ack_over"),
        (b"\0\0\0\0" + sack((510, 520)), "ok"),  # behind the end
        (bytes([1, 1, 8, 10]) + b"\5\12\xff\xff\xff\xff\0\0", "ok"),  # a timestamp
        (bytes([5, 34, 0, 0]), "ok"),  # beyond the end
    ],
)
def test_sack(tracker, area, reason):
    conn = with_sack(tracker)
    conn.orig("A", ack=501, options=area)
    assert conn.orig("A", seq=101, ack=501, options=area).reason == reason


def test_sack_counts_only_if_the_receiver_offered_it(tracker):
    conn = with_sack(tracker, server=False)
    conn.orig("A", ack=501, options=sack((510, 520))).is_("established", reason="ok")
