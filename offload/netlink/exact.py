"""The exact filter of one direction of a flow (contract A4.25-33), as messages: one is made for each shape of filter, and filled in for each flow.

    TCP without FIN and RST, whole packets of one tuple  ->  addresses and ports written, checksums made anew, to a device or into a chain

Theory of operation: filters of a shape differ in handle, cookie, addresses and ports only. A message is made once with all of these 0 and once for
each of them with all its bits set: where the two differ is where the value goes. So a filled-in message is what the functions of flower and actions
make, at a twentieth of the time.
Invariants: a fragment matches none (it has no ports, and GRE asks for whole packets), nor does a FIN or RST. What is written comes in the order of
A4.30, where it differs from what came.
Not here: which devices and chains (offload.sides), sockets, what is made of answers (offload.exact_rules).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import Struct
from sys import byteorder
from typing import Any, NamedTuple

from ctcore.errors import CtmirrorError
from offload.netlink import actions, flower
from offload.netlink.actions import Packed, Word
from offload.netlink.attributes import FLOWER, TC
from offload.netlink.filters import TCMSG, Name, Where, filter_options, new_filter
from offload.netlink.pack import attribute
from offload.netlink.read import Values, read

MARK = b"ctm/flow"  # the first half of a cookie of ours; the other half is the command's
COOKIE = Struct("=8sQ")
FIN_OR_RST = 0x05
FRAGMENT = 0x1  # TCA_FLOWER_KEY_FLAGS_IS_FRAGMENT
ETHERTYPES = {4: flower.ETH_IP, 6: flower.ETH_IPV6}
GRE = 47
SUMS = {flower.TCP: "tcp", flower.UDP: "udp"}
SIZES = {4: 4, 6: 16}
SRC, DST, SPORT, DPORT = 1, 2, 4, 8  # what is written


class Course(NamedTuple):
    """Where a direction's packets come in, and what becomes of them: out of a device, or into a chain of the same hook."""

    where: Where
    out: int = 0
    chain: int | None = None
    skip_sw: bool = False


class Prios(NamedTuple):
    """A chain and a priority of it, which are ours: IPv6 has the next priority, for filters of one have one protocol."""

    chain: int = 0
    prio: int = 1

    def name(self, family: int, handle: int = 0) -> Name:
        return Name(self.chain, self.prio + (family == 6), ETHERTYPES[family], handle)


class Shape(NamedTuple):
    """What filters have in common. written: SRC, ... of what is translated."""

    course: Course
    prios: Prios
    family: int
    proto: int
    written: int


class Filling(NamedTuple):
    """What they differ in, as bytes of the packet's order; handle and cookie of the machine's."""

    handle: bytes
    cookie: bytes
    src: bytes
    dst: bytes
    sport: bytes
    dport: bytes
    to_src: bytes
    to_dst: bytes
    to_sport: bytes
    to_dport: bytes


class Key(NamedTuple):
    """As flower.keys wants it."""

    name: str
    value: int
    mask: int
    high: int | None = None
    device: str = ""


# --- one message, made part by part -----------------------------------------------------------------------------------------------------------


def whole(shape: Shape, filling: Filling) -> bytes:
    """The request that makes a filter of this shape. Raises ValueError for a translation that no rule can do (A4.32)."""
    family, proto, course = shape.family, shape.proto, shape.course
    full = (1 << SIZES[family] * 8) - 1
    keys = [Key("ip_proto", proto, 0xFF), Key("ip_flags", 0, FRAGMENT)]
    keys += [Key("src_ip", _number(filling.src), full), Key("dst_ip", _number(filling.dst), full)]
    if proto == flower.TCP:
        keys.append(Key("tcp_flags", 0, FIN_OR_RST))
    packed = flower.keys(ETHERTYPES[family], keys) + _ports(proto, filling)
    does = actions.listed([*_rewrite(shape, filling), _forward(course)], MARK + filling.cookie)
    flags = flower.SKIP_SW if course.skip_sw else 0
    return new_filter(course.where, shape.prios.name(family, int.from_bytes(filling.handle, byteorder)), filter_options(packed, does, flags))


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _ports(proto: int, filling: Filling) -> bytes:
    """Both with their masks, which flower.keys leaves out: port 0 means nothing to the kernel without."""
    pairs = [(flower.OF_PROTO.get((name, proto)), value) for name, value in (("src_port", filling.sport), ("dst_port", filling.dport))]
    return b"".join(attribute(pair.value, value) + attribute(pair.mask, b"\xff\xff") for pair, value in pairs if pair is not None)


def _rewrite(shape: Shape, filling: Filling) -> Iterator[Packed]:
    if not shape.written:
        return
    if shape.proto not in SUMS:
        raise ValueError("only TCP and UDP are translated in hardware (A4.32)")
    yield actions.pedit(actions.PIPE, list(_words(shape, filling)))
    yield actions.csum(actions.PIPE, [*(["ip4h"] if shape.family == 4 else []), SUMS[shape.proto]])


def _words(shape: Shape, filling: Filling) -> Iterator[Word]:
    network, first = (actions.IP4, {SRC: 12, DST: 16}) if shape.family == 4 else (actions.IP6, {SRC: 8, DST: 24})
    for bit, address in ((SRC, filling.to_src), (DST, filling.to_dst)):
        for at in range(0, SIZES[shape.family] if shape.written & bit else 0, 4):
            yield Word(network, first[bit] + at, _number(address[at : at + 4]), 0xFFFFFFFF)
    transport = actions.TCP if shape.proto == flower.TCP else actions.UDP
    for bit, port, up in ((SPORT, filling.to_sport, 16), (DPORT, filling.to_dport, 0)):
        if shape.written & bit:
            yield Word(transport, 0, _number(port) << up, 0xFFFF << up)


def _forward(course: Course) -> Packed:
    if course.chain is not None:
        return actions.gact(actions.goto(course.chain))
    return actions.mirred(actions.STOLEN, actions.EGRESS_REDIRECT, course.out)


# --- the same, filled in ------------------------------------------------------------------------------------------------------------------------

_HANDLE, _COOKIE, _PORT = Struct("=I"), Struct("=Q"), Struct(">H")


class Form(NamedTuple):
    """A message with holes: from, to, which value, from where of it, to where."""

    message: bytes
    holes: tuple[tuple[int, int, int, int, int], ...]

    def filled(self, filling: Sequence[bytes]) -> bytearray:
        made = bytearray(self.message)
        for start, end, which, first, last in self.holes:
            made[start:end] = filling[which][first:last]
        return made


@lru_cache(4096)
def form_of(shape: Shape) -> Form:
    """Raises ValueError, as whole() does."""
    address, port = bytes(SIZES[shape.family]), bytes(2)
    empty = Filling(bytes(4), bytes(8), address, address, port, port, address, address, port, port)
    message = whole(shape, empty)
    holes: list[tuple[int, int, int, int, int]] = []
    for which, name in enumerate(Filling._fields):
        full = b"\xff" * len(empty[which])
        holes += _holes(message, whole(shape, empty._replace(**{name: full})), which, len(full))
    return Form(message, tuple(holes))


def _holes(empty: bytes, full: bytes, which: int, size: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Where two messages differ: once or several times the whole value, or, of an address of IPv6 that is written, its words one after the other."""
    assert len(empty) == len(full)
    differ = [at for at in range(len(empty)) if empty[at] != full[at]]
    done = 0
    while differ:
        count = next((n for n in range(1, len(differ)) if differ[n] != differ[0] + n or done + n == size), len(differ))
        yield differ[0], differ[0] + count, which, done, done + count
        done = (done + count) % size
        differ = differ[count:]
    assert done == 0


def filling_of(handle: int, cookie: int, match: tuple[Any, ...], to: tuple[Any, ...], size: int) -> Filling:
    """match, to: src, dst (16 bytes each), sport, dport; size: bytes of an address."""
    return Filling(
        _HANDLE.pack(handle), _COOKIE.pack(cookie), match[0][:size], match[1][:size], _PORT.pack(match[2]), _PORT.pack(match[3]),
        to[0][:size], to[1][:size], _PORT.pack(to[2]), _PORT.pack(to[3]),
    )  # fmt: skip


# --- and back -----------------------------------------------------------------------------------------------------------------------------------


class Strange(CtmirrorError):
    """A filter with a cookie of ours that is none that we make."""


class Tuple(NamedTuple):
    src: bytes  # 16 bytes, an IPv4 address in the first four
    dst: bytes
    sport: int
    dport: int


class Exact(NamedTuple):
    """A filter that the kernel lists. out: interface, 0: none; chain: None unless it goes on there."""

    cookie: int
    family: int
    proto: int
    match: Tuple
    to: Tuple
    out: int
    chain: int | None


def cookie_of(told: bytes) -> int | None:
    """The command's cookie of an action's; None: not ours."""
    if len(told) != COOKIE.size or not told.startswith(MARK):
        return None
    return int(COOKIE.unpack(told)[1])


def cookie_in(data: bytes) -> int | None:
    """Of a filter as it is told, terse or not, from what follows the message's header. Raises Malformed."""
    options = read(TC, data[TCMSG.size :]).get("OPTIONS")
    told = options.get("ACT") if isinstance(options, dict) else None
    return cookie_of(told[0].get("COOKIE", b"")) if told else None


def exact_of(data: bytes) -> Exact | None:
    """A filter as it is listed, from what follows the message's header; None: not ours. Raises Strange, Malformed."""
    values = read(TC, data[TCMSG.size :])
    options = values.get("OPTIONS")
    told = options.get("ACT") if isinstance(options, dict) else None
    cookie = cookie_of(told[0].get("COOKIE", b"")) if told else None
    if cookie is None or not isinstance(options, dict) or not told:
        return None
    family = {number: family for family, number in ETHERTYPES.items()}.get(options.get("KEY_ETH_TYPE", 0))
    proto = options.get("KEY_IP_PROTO", 0)
    if family is None:
        raise Strange(f"flow {cookie:#x}: a filter without addresses")
    match = _matched(options, family, proto, cookie)
    to, out, chain = match, 0, None
    for action in told:
        of = action.get("OPTIONS")
        if action.get("KIND") == "pedit" and isinstance(of, dict):
            to = _rewritten(of, family, match, cookie)
        elif action.get("KIND") == "mirred" and isinstance(of, dict):
            out = of.get("PARMS", {}).get("ifindex", 0)
        elif action.get("KIND") == "gact" and isinstance(of, dict):
            chain = of.get("PARMS", {}).get("action", 0) & actions.MOST_CHAIN
    return Exact(cookie, family, proto, match, to, out, chain)


def _matched(options: Values, family: int, proto: int, cookie: int) -> Tuple:
    """The tuple that a filter wants, all of it; anything less matches other connections, too."""
    known = {"ACT", "FLAGS", "IN_HW_COUNT", "KEY_ETH_TYPE", "KEY_IP_PROTO", "KEY_FLAGS", "KEY_FLAGS_MASK"}
    if proto == flower.TCP:
        known |= {"KEY_TCP_FLAGS", "KEY_TCP_FLAGS_MASK"}
    found: list[int] = []
    wanted = [(name, flower.OF_FAMILY[name, ETHERTYPES[family]]) for name in ("src_ip", "dst_ip")]
    wanted += [(name, pair) for name in ("src_port", "dst_port") if (pair := flower.OF_PROTO.get((name, proto))) is not None]
    for name, pair in wanted:
        value, mask = (FLOWER.attributes[number][0] for number in (pair.value, pair.mask))
        full = (1 << pair.bits) - 1
        if value not in options or options.get(mask, full) != full:
            raise Strange(f"flow {cookie:#x}: a filter without the whole {name}")
        found.append(options[value])
        known |= {value, mask}
    fragments = (options.get("KEY_FLAGS", 0), options.get("KEY_FLAGS_MASK", 0))
    flags = (options.get("KEY_TCP_FLAGS", 0), options.get("KEY_TCP_FLAGS_MASK", 0))
    if set(options) - known or fragments != (0, FRAGMENT) or flags != (0, FIN_OR_RST if proto == flower.TCP else 0):
        raise Strange(f"flow {cookie:#x}: a filter that matches other packets than a flow's")
    src, dst, *ports = found
    size = SIZES[family]
    return Tuple(src.to_bytes(size, "big").ljust(16, b"\0"), dst.to_bytes(size, "big").ljust(16, b"\0"), *(ports or (0, 0)))


def _rewritten(options: Values, family: int, match: Tuple, cookie: int) -> Tuple:
    """What leaves: each word of pedit in its place."""
    network, start = (actions.IP4, 12) if family == 4 else (actions.IP6, 8)
    addresses = bytearray(match.src[: SIZES[family]] + match.dst[: SIZES[family]])
    ports = match.sport << 16 | match.dport
    for word in words_of(options, cookie):
        at = word.offset - start
        if word.header == network and word.mask == 0xFFFFFFFF and 0 <= at <= len(addresses) - 4:
            addresses[at : at + 4] = word.value.to_bytes(4, "big")
        elif word.header in (actions.TCP, actions.UDP) and word.offset == 0:
            ports = ports & ~word.mask | word.value
        else:
            raise Strange(f"flow {cookie:#x}: byte {word.offset} of header {word.header} is written, which is no address and no port")
    half = SIZES[family]
    return Tuple(bytes(addresses[:half]).ljust(16, b"\0"), bytes(addresses[half:]).ljust(16, b"\0"), ports >> 16, ports & 0xFFFF)


def words_of(options: Values, cookie: int) -> Iterator[Word]:
    data, places = options.get("PARMS_EX", b""), options.get("KEYS_EX", [])
    size, step = actions.PEDIT_SELECTOR.size, actions.PEDIT_WORD.size + actions.PEDIT_PLACE.size
    count = actions.PEDIT_SELECTOR.unpack_from(data)[5] if len(data) >= size else 0
    if not count or len(data) < size + count * step or len(places) < count:
        raise Strange(f"flow {cookie:#x}: {len(data)} bytes of pedit with {len(places)} places")
    for i in range(count):
        stays, value = actions.PEDIT_WORD.unpack_from(data, size + i * step)
        offset = actions.PEDIT_PLACE.unpack_from(data, size + i * step + actions.PEDIT_WORD.size)[0]
        yield Word(places[i].get("HTYPE", 0), offset, value, stays ^ 0xFFFFFFFF, places[i].get("CMD", 0))
