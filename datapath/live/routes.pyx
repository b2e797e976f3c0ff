"""Routes in arrays: where a packet goes, by the longest prefix that its destination lies in.

Theory of operation: routes are sorted by length of their prefix, the longest first, and by address within a length. A look-up searches length by
length, by halves; a node has few different lengths, so that is a handful of short searches, and nothing has to be balanced or kept in step.
One look-up: 10.1.2.3 among 10.1.0.0/16, 10.0.0.0/8 and 0.0.0.0/0: no /32, so the first search is among the /16.
Invariants: within a length no prefix is there twice; a table is replaced as a whole, between two rounds of the loop, or not at all.
Not here: what is done about a route (router), where routes come from (neighbours, config).
"""

from dataclasses import dataclass
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_ntop

from libc.string cimport memset


@dataclass(frozen=True)
class RouteRow:
    """See routes.pyi."""

    prefix: object
    kind: int
    iface: int = 0
    via: object = None


cdef Address number_of(object address) except *:
    cdef Address a
    number = int(address) << 96 if address.version == 4 else int(address)
    a.hi, a.lo = number >> 64, number & 0xFFFFFFFFFFFFFFFF
    return a


def text_of(uint64_t hi, uint64_t lo, bint six):
    """An address of two numbers."""
    packed = (<object>hi << 64 | lo).to_bytes(16, "big")
    return ip_address(inet_ntop(AF_INET6, packed) if six else inet_ntop(AF_INET, packed[:4]))


cdef class RouteTable:
    """See routes.pyi."""

    def __init__(self):
        memset(self.all, 0, sizeof(self.all))

    def put(self, rows):
        """See routes.pyi."""
        halves = [{}, {}]
        for row in rows:
            halves[row.prefix.version == 6].setdefault((-row.prefix.prefixlen, int(row.prefix.network_address)), row)
        for half in halves:
            if len(half) > MOST_ROUTES:
                raise ValueError(f"routes: {len(half)}: expected {MOST_ROUTES} of a family at most")
        for six, half in enumerate(halves):
            self._fill(six, [row for _, row in sorted(half.items())])
        self.n = len(halves[0]) + len(halves[1])

    def _fill(self, int six, list rows):
        cdef Routes *all = &self.all[six]
        cdef Length *length = NULL
        cdef uint32_t i
        cdef int before = -1
        all.n_lengths = 0
        for i in range(<uint32_t>len(rows)):
            row = rows[i]
            all.row[i].prefix = number_of(row.prefix.network_address)
            all.row[i].via = number_of(row.via if row.via is not None else row.prefix.network_address)
            all.row[i].iface, all.row[i].kind = row.iface, row.kind
            if row.prefix.prefixlen != before:
                before = row.prefix.prefixlen
                length = &all.length[all.n_lengths]
                length.mask, length.first = number_of(row.prefix.netmask), i
                all.n_lengths += 1
            length.end = i + 1

    def find(self, address):
        """See routes.pyi."""
        cdef Address a = number_of(address)
        cdef bint six = address.version == 6
        cdef const Route *found = route_find(&self.all[six], a)
        if found == NULL:
            return None
        return int(found.kind), found.iface, text_of(found.via.hi, found.via.lo, six)
