"""A small router: a frame that has passed its rules, and where it goes: next hop, MAC addresses, one hop less; or nowhere, and its sender is told.

    check -> route -> hop limit -> size -> neighbour -> on          in the order in which Linux does it (ip_forward, ip6_forward)

Theory of operation: look() reads a frame and changes nothing: its way, and the bytes that it will begin with. router_move() changes it, when it lies
where it leaves from. tell() makes the ICMP error about one that goes nowhere, and finds that one's way by the same tables.
One frame: to 10.2.0.5, TTL 9, to our MAC address on eth0. Routes have 10.2.0.0/16 via 10.1.0.2 on eth1, and neighbours a MAC address for that:
WAY_ON, out eth1, TTL 8.
Invariants: nothing is read behind `have`. Each frame is counted by its way, once, and once more if it has waited for its neighbour. Tables change between two rounds of the loop only.
Not here: tables themselves (routes, neighbour_table), frames that wait (unresolved), who keeps them up to date (neighbours), errors' bytes and limits (icmp_errors), chunks and
sending (loop), translation: an error quotes what its sender has sent, since the loop hands over the frame as it came.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ctcore.lowlevel cimport be16, be32, likely, unlikely
from ctcore.tuples cimport IP6_FRAGMENT
from datapath.checksum cimport fold, load64, sum_bytes
from datapath.link cimport ETHER_IPV4, ETHER_IPV6
from datapath.live.cut_ipv4 cimport Slices, slices_begin, slices_next
from datapath.live.icmp_errors cimport ERROR_ROOM, Said, limits_all, limits_peer, limits_set, may_be_answered, write_error
from datapath.live.neighbour_table cimport (
    NEIGHBOUR_ASKED, NEIGHBOUR_FAILED, NEIGHBOUR_STALE, Neighbour, NeighbourTable, neighbour_find, neighbour_want,
)
from datapath.live.routes cimport (
    ROUTE_GROUP, ROUTE_OWN, ROUTE_PROHIBIT, ROUTE_UNREACHABLE, ROUTE_VIA, Address, Route, RouteTable, address4, address6, route_find,
)
from datapath.live.unresolved cimport Unresolved

cdef enum:
    DONT_CUT = 0x4000
    LOOSE_SOURCE = 131          # options of IPv4 (RFC 791 3.1)
    STRICT_SOURCE = 137
    OPTION_END = 0
    OPTION_NOP = 1
    LEAST_MTU6 = 1280           # RFC 8200 5
    LEAST_MTU4 = 68             # RFC 791 3.2

assert ANSWER_ROOM == ETH + ERROR_ROOM

# What a sender is told, by way and family: type and code (RFC 792, RFC 1812 5.2.7; RFC 4443 3). Of ways that are not here, nothing.
ERRORS = {
    WAY_NO_ROUTE: ((3, 0), (1, 0)),             # network unreachable; no route to destination
    WAY_PROHIBITED: ((3, 13), (1, 1)),          # administratively prohibited
    WAY_TTL: ((11, 0), (3, 0)),                 # time exceeded in transit; hop limit exceeded in transit
    WAY_TOO_BIG: ((3, 4), (2, 0)),              # fragmentation needed; packet too big
    WAY_UNREACHABLE: ((3, 1), (1, 3)),          # host unreachable; address unreachable
    WAY_DOWN: ((3, 1), (1, 3)),
}
cdef uint8_t[N_WAYS][2][2] error_of
cdef uint8_t[N_WAYS] is_told
memset(is_told, 0, sizeof(is_told))
for _way, _pairs in ERRORS.items():
    is_told[<int>_way] = True
    for _six in range(2):
        error_of[<int>_way][<int>_six][0], error_of[<int>_way][<int>_six][1] = _pairs[_six]

# What is counted, in the order of RouterCounts.
COUNTERS = (
    "forwarded", "cut", "malformed", "not_ip", "other_mac", "group", "martian", "source_routed", "own", "no_route", "prohibited", "blackhole",
    "ttl", "too_big", "no_neighbour", "unreachable", "down", "errors", "errors_not_allowed", "errors_peer_limited", "errors_limited", "errors_no_way",
)
assert sizeof(RouterCounts) == 8 * len(COUNTERS)


# --- headers ----------------------------------------------------------------------------------------------------------------------------


cdef bint source_routed(const uint8_t *ip, uint32_t head) noexcept nogil:
    """Whether options say which way it shall go. Linux forwards no such packets either (accept_source_route)."""
    cdef uint32_t at = 20
    while at < head and ip[at] != OPTION_END:
        if ip[at] == LOOSE_SOURCE or ip[at] == STRICT_SOURCE:
            return True
        if ip[at] == OPTION_NOP:
            at += 1
        elif at + 1 < head and ip[at + 1] >= 2:
            at += ip[at + 1]
        else:
            break
    return False


cdef inline uint8_t check4(const uint8_t *ip, uint32_t have, Step *step) noexcept nogil:
    """RFC 1812 5.2.2, 5.3.7. Class E and link-local addresses are forwarded, as Linux does."""
    cdef uint32_t head
    if unlikely(have < 20 or ip[0] >> 4 != 4):
        return WAY_MALFORMED
    head, step.length = (ip[0] & 15) << 2, be16(ip + 2)
    if unlikely(head < 20 or step.length < head or step.length > have or fold(sum_bytes(ip, head, 0)) != 0xFFFF):
        return WAY_MALFORMED
    if unlikely(ip[12] == 0 or ip[12] == 127 or ip[12] >> 4 == 14 or be32(ip + 12) == ~<uint32_t>0 or ip[16] == 0 or ip[16] == 127):
        return WAY_MARTIAN
    if unlikely(ip[16] >> 4 == 14 or be32(ip + 16) == ~<uint32_t>0):
        return WAY_GROUP
    if unlikely(head > 20) and source_routed(ip, head):
        return WAY_SOURCE_ROUTED
    return WAY_ON


cdef inline bint local6(const uint8_t *address) noexcept nogil:
    """Unspecified, loopback, IPv4-mapped, or of a link only (RFC 4291 2.5)."""
    if address[0] == 0xFE:
        return address[1] >> 6 == 2
    if likely(load64(address) != 0):
        return False
    return (be32(address + 8) == 0 and be32(address + 12) <= 1) or be32(address + 8) == 0xFFFF


cdef inline uint8_t check6(const uint8_t *ip, uint32_t have, Step *step) noexcept nogil:
    if unlikely(have < 40 or ip[0] >> 4 != 6):
        return WAY_MALFORMED
    step.length = 40 + be16(ip + 4)
    if unlikely(step.length > have):
        return WAY_MALFORMED
    if unlikely(ip[8] == 0xFF or local6(ip + 8) or local6(ip + 24)):
        return WAY_MARTIAN
    return WAY_GROUP if unlikely(ip[24] == 0xFF) else WAY_ON


cdef bint later_fragment(const uint8_t *frame, uint32_t have) noexcept nogil:
    """IPv4, or IPv6 with nothing before its fragment header."""
    if have < ETH + 20:
        return False
    if be16(frame + 12) == ETHER_IPV4:
        return be16(frame + ETH + 6) & 0x1FFF
    return be16(frame + 12) == ETHER_IPV6 and have >= ETH + 48 and frame[ETH + 6] == IP6_FRAGMENT and be16(frame + ETH + 42) & 0xFFF8


cdef bint same_ends(const uint8_t *frame, const uint8_t *other, uint32_t have) noexcept nogil:
    """Whether another packet, which the router has looked at, goes between the same addresses as a fragment."""
    cdef uint32_t at = ETH + (12 if be16(frame + 12) == ETHER_IPV4 else 8), size = 8 if be16(frame + 12) == ETHER_IPV4 else 32
    return have >= at + size and memcmp(frame + 12, other + 12, 2) == 0 and memcmp(frame + at, other + at, size) == 0


cdef class Router:
    """See router.pyi."""

    def __init__(self, names, *, NeighbourTable neighbours=None, double icmp_rate=1000, double icmp_burst=50, double icmp_peer_rate=1,
                 double icmp_peer_burst=6):
        self.names = tuple(names)
        if not 0 < len(self.names) <= MOST_STATIONS or len(set(self.names)) != len(self.names):
            raise ValueError(f"names: expected 1 to {MOST_STATIONS} different ones")
        self.routes, self.neighbours = RouteTable(), NeighbourTable() if neighbours is None else neighbours
        self.unresolved = Unresolved()
        self.route, self.near = self.routes.all, &self.neighbours.all
        memset(self.station, 0, sizeof(self.station))
        memset(&self.counts, 0, sizeof(self.counts))
        limits_set(&self.limits, icmp_rate, icmp_burst, icmp_peer_rate, icmp_peer_burst)

    def put_station(self, name, mac, *, int mtu=1500, bint up=True, bint routed=True, addresses=()):
        """See router.pyi."""
        cdef Station one
        cdef const uint8_t[::1] data = mac
        cdef bint six
        if len(mac) != 6 or not LEAST_MTU4 <= mtu <= 0x10000:
            raise ValueError(f"{name}: expected a MAC address of 6 bytes and an MTU of {LEAST_MTU4} to 65536")
        memset(&one, 0, sizeof(one))
        memcpy(one.mac, &data[0], 6)
        one.mtu, one.up, one.routed = mtu, up, routed
        for address in addresses:
            six = address.version == 6
            if not one.has[six]:
                data = address.packed
                memcpy(one.address[six], &data[0], data.shape[0])
                one.has[six] = True
        self.station[<int>self.names.index(name)] = one

    def routed(self):
        """See router.pyi."""
        return [name for i, name in enumerate(self.names) if self.station[<int>i].routed]

    def counters(self):
        """See router.pyi."""
        cdef const uint64_t *count = <const uint64_t *>&self.counts
        return {**{name: count[i] for i, name in enumerate(COUNTERS)}, **self.unresolved.counters()}

    # --- the way --------------------------------------------------------------------------------------------------------------------------

    cdef void look(self, const uint8_t *frame, uint32_t have, uint32_t at, Step *step) noexcept nogil:
        """Which way a frame of `have` bytes goes that has come to station `at`.   Writes: step, counters, who is wanted."""
        cdef uint32_t kind
        step.out = at
        if unlikely(have < ETH):
            step.way = WAY_MALFORMED
        elif unlikely(frame[0] & 1):
            step.way = WAY_GROUP
        else:
            kind = be16(frame + 12)
            step.six = kind == ETHER_IPV6
            if unlikely(memcmp(frame, self.station[at].mac, 6) != 0) and not self.ours(frame):
                step.way = WAY_OTHER_MAC
            elif likely(kind == ETHER_IPV4):
                step.way = check4(frame + ETH, have - ETH, step)
            else:
                step.way = check6(frame + ETH, have - ETH, step) if step.six else <uint8_t>WAY_NOT_IP
            if likely(step.way == WAY_ON):
                step.way = self.towards(frame + ETH, step)
        self.counts.way[step.way] += 1

    cdef bint ours(self, const uint8_t *mac) noexcept nogil:
        """Rules may have sent a frame from one device's ingress to another's: it goes to any of our stations."""
        cdef int i
        for i in range(MOST_STATIONS):
            if self.station[i].routed and memcmp(mac, self.station[i].mac, 6) == 0:
                return True
        return False

    cdef uint8_t towards(self, const uint8_t *packet, Step *step) noexcept nogil:
        """A packet that may be forwarded: route, hop limit, size, neighbour."""
        cdef Address a = address6(packet + 24) if step.six else address4(packet + 16)
        cdef const Route *route = route_find(&self.route[step.six], a)
        cdef bint cut = False
        if unlikely(route == NULL or route.kind == ROUTE_UNREACHABLE):
            return WAY_NO_ROUTE
        if unlikely(route.kind >= ROUTE_OWN):
            if route.kind == ROUTE_OWN:
                return WAY_OWN
            return WAY_GROUP if route.kind == ROUTE_GROUP else WAY_PROHIBITED if route.kind == ROUTE_PROHIBIT else WAY_BLACKHOLE
        if unlikely(packet[7 if step.six else 8] <= 1):
            return WAY_TTL
        step.out, step.mtu = route.iface, self.station[route.iface].mtu
        if unlikely(step.length > step.mtu):
            if step.six or be16(packet + 6) & DONT_CUT:
                return WAY_TOO_BIG
            cut = True
        return self.reach(route, a, step) or <uint8_t>(WAY_CUT if cut else WAY_ON)

    cdef uint8_t reach(self, const Route *route, Address a, Step *step) noexcept nogil:
        """The neighbour that is next, and with that the first bytes of the frame. WAY_ON, or why not."""
        cdef const Station *out = &self.station[route.iface]
        cdef uint32_t link = route.iface << 1 | step.six
        cdef Neighbour *next
        if unlikely(not out.up):
            return WAY_DOWN
        if route.kind == ROUTE_VIA:
            a = route.via
        next = neighbour_find(self.near, a, link)
        if unlikely(next == NULL or next.state == NEIGHBOUR_FAILED):
            neighbour_want(self.near, a, link)
            return WAY_NO_NEIGHBOUR if next == NULL else WAY_UNREACHABLE
        if unlikely(next.state == NEIGHBOUR_STALE):
            next.state = NEIGHBOUR_ASKED
            neighbour_want(self.near, a, link)
        memcpy(step.macs, next.mac, 6)
        memcpy(&step.macs[6], out.mac, 6)
        return WAY_ON

    cdef bint next_hop(self, const uint8_t *packet, bint six, Address *a, uint32_t *link) noexcept nogil:
        """Whom a packet waits for that look() has found without a neighbour."""
        cdef const Route *route
        a[0] = address6(packet + 24) if six else address4(packet + 16)
        route = route_find(&self.route[six], a[0])
        if route == NULL:
            return False
        if route.kind == ROUTE_VIA:
            a[0] = route.via
        link[0] = route.iface << 1 | six
        return True

    cdef void give_up(self, Step *step) noexcept nogil:
        """A frame that has waited, and still has no neighbour: nobody has answered."""
        self.counts.way[<int>WAY_NO_NEIGHBOUR] -= 1
        self.counts.way[<int>WAY_UNREACHABLE] += 1
        step.way = WAY_UNREACHABLE

    # --- errors ---------------------------------------------------------------------------------------------------------------------------

    cdef uint32_t tell(
        self, const Step *step, const uint8_t *frame, uint32_t have, uint32_t at, int64_t now, uint8_t *room, Step *back
    ) noexcept nogil:
        """The error about a frame that came to station `at` and goes nowhere: its bytes in room (ANSWER_ROOM), its way in back. 0: there is none."""
        cdef const uint8_t *packet = frame + ETH
        cdef const uint8_t *source
        cdef Said said
        cdef bint six = step.six
        cdef uint32_t size
        if not is_told[step.way]:
            return 0
        if have < ETH or frame[0] & 1 or be16(frame + 12) != (ETHER_IPV6 if six else ETHER_IPV4) or not may_be_answered(packet, have - ETH):
            self.counts.untold += 1
            return 0
        said.type, said.code, said.word = error_of[step.way][six][0], error_of[step.way][six][1], 0
        if step.way == WAY_TOO_BIG:
            said.word = max(step.mtu, <uint32_t>LEAST_MTU6) if six else step.mtu
        elif not limits_peer(&self.limits, packet + (8 if six else 12), six, now):      # path MTU discovery waits for nobody, as in Linux
            self.counts.peer_limited += 1
            return 0
        if not limits_all(&self.limits, now):
            self.counts.limited += 1
            return 0
        source = self.source_of(at, six)
        if source == NULL:
            self.counts.no_way_back += 1
            return 0
        self.ident += 1
        size = write_error(room + ETH, packet, source, &said, self.ident)
        back.six, back.length, back.way = six, size, WAY_ON
        if self.towards(room + ETH, back) != WAY_ON:
            self.counts.no_way_back += 1
            return 0
        memcpy(room, back.macs, 12)
        memcpy(room + 12, frame + 12, 2)
        self.counts.told += 1
        return ETH + size

    cdef const uint8_t *source_of(self, uint32_t at, bint six) noexcept nogil:
        """The address of the station the packet came to (RFC 1812 4.3.2.4); without one there, of any."""
        cdef int i
        if self.station[at].has[six]:
            return self.station[at].address[six]
        for i in range(MOST_STATIONS):
            if self.station[i].has[six]:
                return self.station[i].address[six]
        return NULL

    # --- from Python ----------------------------------------------------------------------------------------------------------------------

    def route_frame(self, frame, name, *, int64_t now=0, came=None):
        """See router.pyi."""
        cdef uint8_t[::1] data = bytearray(frame) + bytes(1)
        cdef uint8_t[::1] before = data if came is None else bytearray(came) + bytes(1)
        cdef uint8_t[::1] room = bytearray(ANSWER_ROOM)
        cdef uint32_t at = self.names.index(name), size
        cdef Step step, back
        memset(&step, 0, sizeof(step))
        self.look(&data[0], <uint32_t>(data.shape[0] - 1), at, &step)
        if step.way == WAY_ON or step.way == WAY_CUT:
            router_move(&data[0], &step)
            whole = bytes(data[:ETH + step.length])
            return Way(step.way), self.names[step.out], [whole] if step.way == WAY_ON else pieces_of(whole, step.mtu)
        size = self.tell(&step, &before[0], <uint32_t>(before.shape[0] - 1), at, now, &room[0], &back)
        return Way(step.way), self.names[back.out] if size else None, [bytes(room[:size])] if size else []


def pieces_of(bytes frame not None, uint32_t mtu):
    """See router.pyi."""
    cdef Slices slices
    cdef const uint8_t *data = frame
    cdef uint8_t[::1] room = bytearray(mtu)
    cdef uint32_t size
    pieces = []
    if slices_begin(&slices, data + ETH, mtu):
        size = slices_next(&slices, &room[0])
        while size:
            pieces.append(frame[:ETH] + bytes(room[:size]))
            size = slices_next(&slices, &room[0])
    return pieces
