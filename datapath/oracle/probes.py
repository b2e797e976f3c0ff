"""What is observed in the kernel: moments of a packet's way through conntrack, each with the clock and a copy of the connection as it was then.

    ARRIVED     right before conntrack in PRE_ROUTING: there is no connection yet
    JUDGED      right behind conntrack in PRE_ROUTING: the packet has its state, and a connection or none
    REDIRECTED  where addresses are translated, right behind the translation of the destination in PRE_ROUTING
    TRANSLATED  and right behind that of the source in POST_ROUTING: helper and confirmation, which may drop the packet, come later
    LEAVING     handed to the next device: the connection is confirmed, the protocol tracker has said all it has to say
    ASKED       not a packet's: a connection that this process asks for by its address

Each probe is a few BPF instructions: copy struct nf_conn, its counters, and the clock. The first four are netfilter programs, which by their nature
see one network namespace only; the fifth is at a tracepoint and compares the device's namespace; the last is run from here.
Theory of operation, layout of a record: HEADER, the bytes of struct nf_conn, its counters. Members are found by the kernel's own BTF (btf.Types),
so a probe knows no offset by heart. Lockdown "integrity" allows all of this; it forbids programs at arbitrary functions, which are not needed.
Not here: what a record means for a packet (witness).
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from dataclasses import dataclass
from enum import IntEnum

from datapath import bpf
from datapath.bpf import FP, R0, R1, R2, R3, R6, R7, R8, R9, Instruction
from datapath.oracle.btf import Types, kernel_types

RING_SIZE = 1 << 20
HEADER = struct.Struct("<QQQ")  # moment, jiffies, skb->_nfct
CONN_AT = HEADER.size
COUNTERS = struct.Struct("<4Q")  # packets and bytes of the original direction, then of the reply direction
CTINFO_MASK = 7
UNTRACKED = 7  # skb->_nfct without a connection: IP_CT_UNTRACKED
ACCEPT = 1
FAMILIES = (2, 10)  # NFPROTO_IPV4, NFPROTO_IPV6
PRE_ROUTING, POST_ROUTING = 0, 4
BEFORE_CONNTRACK, BEHIND_CONNTRACK, BEHIND_DNAT, BEHIND_SNAT = -201, -199, -99, 101  # priorities


class Moment(IntEnum):
    ARRIVED = 1
    JUDGED = 2
    LEAVING = 3
    ASKED = 4
    REDIRECTED = 5
    TRANSLATED = 6


AT_CONNTRACK = ((Moment.ARRIVED, PRE_ROUTING, BEFORE_CONNTRACK), (Moment.JUDGED, PRE_ROUTING, BEHIND_CONNTRACK))
AT_NAT = ((Moment.REDIRECTED, PRE_ROUTING, BEHIND_DNAT), (Moment.TRANSLATED, POST_ROUTING, BEHIND_SNAT))


@dataclass(frozen=True)
class Record:
    """One observation. conn: the bytes of struct nf_conn, or nothing; counters: packets and bytes, original and reply."""

    moment: Moment
    jiffies: int
    nfct: int
    conn: bytes
    counters: tuple[int, ...]

    @property
    def address(self) -> int:
        """Where the connection lies, which names it while it lives; 0: none."""
        return self.nfct & ~CTINFO_MASK

    @property
    def ctinfo(self) -> int:
        return self.nfct & CTINFO_MASK


def _copy(types: Types, moment: Moment, ring: int) -> list[Instruction]:
    """Submit a record of the connection that R8 (skb->_nfct) names. Falls through to whatever follows, also if the ring is full."""
    conn_size = types.size("nf_conn")
    ext, acct = types.offset("nf_conn", "ext"), types.offset("nf_ct_ext", "offset") + types.enum_value("NF_CT_EXT_ACCT")
    return [
        *bpf.map_address(R1, ring),
        bpf.move_value(R2, CONN_AT + conn_size + COUNTERS.size),
        bpf.move_value(R3, 0),
        bpf.call(bpf.RINGBUF_RESERVE),
        bpf.jump_equal(R0, 0, "done"),
        bpf.move(R9, R0),
        bpf.store_value(R9, 0, moment),
        bpf.call(bpf.JIFFIES64),
        bpf.store(R9, 8, R0),
        bpf.store(R9, 16, R8),
        *(bpf.store_value(R9, CONN_AT + conn_size + 8 * i, 0) for i in range(4)),
        # The connection; the three lowest bits say what it is to the packet.
        bpf.and_value(R8, ~CTINFO_MASK),
        bpf.move(R1, R9),
        bpf.add_value(R1, CONN_AT),
        bpf.move_value(R2, conn_size),
        bpf.move(R3, R8),
        bpf.call(bpf.PROBE_READ_KERNEL),
        bpf.jump_unequal(R0, 0, "submit"),
        # Its counters: ext + ext->offset[NF_CT_EXT_ACCT], if it has any.
        bpf.load(R8, R9, CONN_AT + ext),
        bpf.jump_equal(R8, 0, "submit"),
        bpf.move(R1, FP),
        bpf.add_value(R1, -8),
        bpf.move_value(R2, 1),
        bpf.move(R3, R8),
        bpf.add_value(R3, acct),
        bpf.call(bpf.PROBE_READ_KERNEL),
        bpf.jump_unequal(R0, 0, "submit"),
        bpf.load(R1, FP, -8, 1),
        bpf.jump_equal(R1, 0, "submit"),
        bpf.add(R8, R1),
        bpf.move(R1, R9),
        bpf.add_value(R1, CONN_AT + conn_size),
        bpf.move_value(R2, COUNTERS.size),
        bpf.move(R3, R8),
        bpf.call(bpf.PROBE_READ_KERNEL),
        bpf.label("submit", bpf.move(R1, R9)),
        bpf.move_value(R2, bpf.NO_WAKEUP),
        bpf.call(bpf.RINGBUF_SUBMIT),
        bpf.label("done", bpf.move_value(R0, 0)),
    ]


def at_hook(types: Types, ring: int, moment: Moment) -> list[Instruction]:
    """A netfilter program: struct bpf_nf_ctx is (hook state, skb)."""
    return [
        bpf.load(R7, R1, 8),
        bpf.load(R8, R7, types.offset("sk_buff", "_nfct")),
        *_copy(types, moment, ring),
        bpf.move_value(R0, ACCEPT),
        bpf.leave(),
    ]


def leaving(types: Types, ring: int, namespace: int) -> list[Instruction]:
    """At the tracepoint net_dev_queue(skb): only of the namespace with this inode number, and only with a connection.

    What the bridge device itself says is there as well, but untracked.
    """
    return [
        bpf.load(R7, R1, 0),
        bpf.load(R2, R7, types.offset("sk_buff", "dev")),
        bpf.load(R2, R2, types.offset("net_device", "nd_net.net")),
        bpf.load(R2, R2, types.offset("net", "ns.inum"), 4),
        bpf.jump_unequal32(R2, namespace, "done"),
        bpf.load(R8, R7, types.offset("sk_buff", "_nfct")),
        bpf.jump_equal(R8, 0, "done"),
        bpf.jump_equal(R8, UNTRACKED, "done"),
        *_copy(types, Moment.LEAVING, ring),
        bpf.leave(),
    ]


def asked(types: Types, ring: int) -> list[Instruction]:
    """Run from here with an address as its argument."""
    return [bpf.move(R6, R1), bpf.load(R8, R6, 0), *_copy(types, Moment.ASKED, ring), bpf.leave()]


CLOCK = [bpf.call(bpf.JIFFIES64), bpf.leave()]


class Probes:
    """All probes, at work in the network namespace this thread is in when it makes them, until close()."""

    def __init__(self, namespace: int, *, nat: bool = False) -> None:
        """namespace: the inode number of that namespace; nat: also behind address translation. KernelError if the kernel lacks what is needed."""
        types = kernel_types()
        self.conn_size = types.size("nf_conn")
        with ExitStack() as stack:
            self.ring = bpf.Ring(RING_SIZE)
            stack.callback(self.ring.close)
            for moment, hook, priority in (*AT_CONNTRACK, *(AT_NAT if nat else ())):
                program = at_hook(types, self.ring.fd, moment)
                for family in FAMILIES:
                    link = bpf.attach_netfilter(program, moment.name.lower(), bpf.Hook(family, hook, priority))
                    stack.callback(bpf.close, link)
            tracepoint = types.typedef("btf_trace_net_dev_queue")
            stack.callback(bpf.close, bpf.attach_tracepoint(leaving(types, self.ring.fd, namespace), "leaving", tracepoint))
            self._asked = bpf.Runnable(asked(types, self.ring.fd), "asked")
            stack.callback(self._asked.close)
            self.open = stack.pop_all()

    def records(self) -> list[Record]:
        """What was observed since the last call, in order."""
        return [self._record(data) for data in self.ring.records()]

    def conn(self, address: int) -> Record:
        """What lies now where a connection was; nobody but the bytes can tell whether it is still that one."""
        self._asked(address)
        # The bridge device may have said something of its own right behind it.
        return next(record for record in reversed(self.records()) if record.moment == Moment.ASKED)

    def now(self) -> int:
        """The kernel's clock."""
        return self.conn(0).jiffies

    def _record(self, data: bytes) -> Record:
        moment, jiffies, nfct = HEADER.unpack_from(data)
        end = CONN_AT + self.conn_size
        conn = data[CONN_AT:end] if nfct & ~CTINFO_MASK else b""
        return Record(Moment(moment), jiffies, nfct, conn, COUNTERS.unpack_from(data, end))

    def close(self) -> None:
        self.open.close()
