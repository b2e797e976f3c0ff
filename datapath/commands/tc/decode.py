"""What the kernel lists of TC, as rules, with what is known of each there.

Invariants: a rule that comes back does what the filter does; what we have no words for is Foreign, with what it is, and never a rule that says less.
An action whose device has gone is listed with number 0: it goes nowhere, and comes back so (rules.GONE).
The kernel forgets some of what was said, since it makes no difference: keys whose mask is empty, bits behind a mask, by which name a field was
changed, and of a burst the bytes within one tick. `kept` says how a rule comes back.
Not here: bytes (offload.netlink.read), requests (encode).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any, NamedTuple

from ctcore.errors import CtmirrorError
from datapath.commands.tc.encode import CONTROLS, MIRRED, PARENTS, PTYPE_NUMBERS, VLAN, Encoder
from datapath.commands.tc.munges import munges_of
from datapath.pipeline import rules as tc
from datapath.pipeline.quantities import MAX_RATE, is_prefix
from datapath.pipeline.tc_actions import CSUM_ORDER, PTYPES
from offload.netlink import actions, flower
from offload.netlink.attributes import MOST_ACTIONS, PEDIT_KEY, TC
from offload.netlink.filters import BLOCK_IFINDEX, MESSAGE, TCMSG
from offload.netlink.read import Malformed, Values, read

CONTROL_NAMES = {number: tc.Control(kind) for kind, number in CONTROLS.items()}
PARENT_NAMES = {number: name for name, number in PARENTS.items()}
MIRRED_NAMES = {number: names for names, number in MIRRED.items()}
VLAN_NAMES = {number: name for name, number in VLAN.items()}
U32 = 0xFFFFFFFF
USUAL_CELLS = 3  # bits of a cell of tc's table where no mtu was said


class Foreign(CtmirrorError):
    """A filter that a rules file has no words for: what it has."""


class Counted(NamedTuple):
    """Of one action: what it counted, in all and in hardware; its cookie; how many devices have it."""

    packets: int
    octets: int
    hw_packets: int
    hw_octets: int
    cookie: bytes
    in_hw_count: int


class Installed(NamedTuple):
    """A rule as the kernel has it. in_hw_count: how many devices have it in hardware; counted: by action."""

    rule: tc.Rule
    in_hw: bool
    in_hw_count: int
    counted: tuple[Counted, ...]


class Tallied(NamedTuple):
    """What a rule has counted, by its name."""

    hook: tc.Hook
    chain: int
    prio: int
    handle: int
    in_hw: bool
    counted: tuple[Counted, ...]


class Head(NamedTuple):
    """Of a message: where it is, and which; ethertype 0: none was told."""

    hook: tc.Hook
    handle: int
    prio: int
    protocol: int


class Decoder:
    """Messages of one network namespace. name: of a device by its number, raising KeyError or OSError if there is none."""

    def __init__(self, name: Callable[[int], str]) -> None:
        self.name = name

    def rule(self, data: bytes) -> Installed | None:
        """A filter from what follows its header; None: what the kernel says of a priority as a whole. Raises Foreign, Malformed."""
        head, values = self._message(data)
        options = values.get("OPTIONS")
        if options is None:
            return None
        if not isinstance(options, dict):
            raise Foreign(f"a filter of {values.get('KIND', 'no kind')}: expected flower")
        if "FLAGS" not in options and head.handle == 0:
            return None
        flags, told = options.get("FLAGS", 0), options.get("ACT", [])
        if "CLASSID" in options:
            raise Foreign("a class")
        if len(told) > MOST_ACTIONS:
            raise Foreign(f"{len(told)} actions")
        matches = tuple(_matches(options, head.protocol or tc.ETH_ALL))
        rule = tc.Rule(
            head.hook, head.protocol or tc.ETH_ALL, matches, tuple(self.action(each) for each in told), head.prio, values.get("CHAIN", 0),
            head.handle, bool(flags & flower.SKIP_SW), bool(flags & flower.SKIP_HW),
        )  # fmt: skip
        return Installed(rule, bool(flags & flower.IN_HW), options.get("IN_HW_COUNT", 0), tuple(map(_counted, told)))

    def tallied(self, data: bytes) -> Tallied | None:
        """A filter's counters alone, also of a terse list, which leaves out keys and actions. Raises Foreign, Malformed."""
        head, values = self._message(data)
        options = values.get("OPTIONS")
        if not isinstance(options, dict) or head.handle == 0:
            return None
        flags = options.get("FLAGS", 0)
        counted = tuple(map(_counted, options.get("ACT", [])))
        return Tallied(head.hook, values.get("CHAIN", 0), head.prio, head.handle, bool(flags & flower.IN_HW), counted)

    def template(self, data: bytes) -> tc.Template | None:
        """A chain's template; None if it has none. Raises Foreign, Malformed."""
        head, values = self._message(data)
        options = values.get("OPTIONS")
        if options is None:
            return None
        if not isinstance(options, dict):
            raise Foreign(f"a template of {values.get('KIND', 'no kind')}: expected flower")
        # The protocol of a chain is not told, but the ethertype that its keys begin with is.
        protocol = options.get("KEY_ETH_TYPE", tc.ETH_ALL)
        return tc.Template(head.hook, protocol, values.get("CHAIN", 0), tuple(_matches(options, protocol)))

    def qdisc(self, data: bytes) -> tc.Qdisc | None:
        """A qdisc of kind clsact or ingress; None: another one, or that of an interface which is not among those known. Raises Malformed."""
        _, ifindex = _tcmsg(data)[:2]
        values = read(TC, data[TCMSG.size :])
        if values.get("KIND") not in ("clsact", "ingress"):
            return None
        device = self._known(ifindex)
        return None if device is None else tc.Qdisc(device, values["KIND"], values.get("INGRESS_BLOCK"), values.get("EGRESS_BLOCK"))

    def _message(self, data: bytes) -> tuple[Head, Values]:
        _, ifindex, handle, parent, info = _tcmsg(data)
        if ifindex == BLOCK_IFINDEX:
            hook = tc.Hook("", "", parent)
        elif parent in PARENT_NAMES:
            hook = tc.Hook(self._name(ifindex), PARENT_NAMES[parent])
        elif parent == 0xFFFF0000:  # `parent ffff:`, of an ingress qdisc
            hook = tc.Hook(self._name(ifindex), "ingress")
        else:
            raise Foreign(f"parent {parent >> 16:x}:{parent & 0xFFFF:x}: expected ingress or egress")
        return Head(hook, handle, info >> 16, socket.ntohs(info & 0xFFFF)), read(TC, data[TCMSG.size :])

    def _known(self, ifindex: int) -> str | None:
        try:
            return self.name(ifindex)
        except (KeyError, OSError):
            return None

    def _name(self, ifindex: int) -> str:
        found = self._known(ifindex)
        if found is None:
            raise Foreign(f"interface {ifindex}, which is not there")
        return found

    # --- actions ----------------------------------------------------------------------------------------------------------------------

    def action(self, told: Values) -> tc.Action:
        kind, options = told.get("KIND", ""), told.get("OPTIONS")
        if kind not in _ACTIONS or not isinstance(options, dict):
            raise Foreign(f"action {kind or 'of no kind'}")
        unknown = next((name for name in options if name.startswith("#")), None)
        if unknown is not None:
            raise Foreign(f"action {kind} with attribute {unknown[1:]}")
        return _ACTIONS[kind](self, options)

    def mirred(self, told: Values) -> tc.Mirred:
        parms = _parms(told, "PARMS", "mirred")
        if told.get("BLOCKID"):
            raise Foreign("mirred to a block")
        names = MIRRED_NAMES.get(parms["eaction"])
        if names is None:
            raise Foreign(f"mirred of kind {parms['eaction']}")
        kind, direction = names
        device = self._name(parms["ifindex"]) if parms["ifindex"] else tc.GONE
        return tc.Mirred(kind, device, direction, tc.PIPE if kind == "redirect" else control_of(parms["action"]))


def kept(rule: tc.Rule) -> tc.Rule:
    """The rule as the kernel will list it: what it forgets is gone, all else is the same. Place and parts stay."""
    numbers: dict[str, int] = {}
    for device in (rule.hook.device, *(action.device for action in rule.actions if isinstance(action, tc.Mirred))):
        numbers.setdefault(device, len(numbers) + 1)
    names = {number: name for name, number in numbers.items()}
    request = Encoder(numbers.__getitem__).rule(rule)
    back = Decoder(names.__getitem__).rule(request[MESSAGE.size :])
    assert back is not None
    forgotten = _forgotten(back.rule)
    return tc.Rule(
        back.rule.hook, rule.protocol, tuple(match for match in back.rule.matches if match.name not in forgotten), back.rule.actions, rule.prio,
        rule.chain, rule.handle, rule.skip_sw, rule.skip_hw, rule.place, rule.parts,
    )  # fmt: skip


def _forgotten(rule: tc.Rule) -> set[str]:
    """Keys of which the kernel says nothing, for any value has them."""
    return {match.name for match in rule.matches if not match.mask and match.name != "indev"}


# --- of messages --------------------------------------------------------------------------------------------------------------------------


def _tcmsg(data: bytes) -> tuple[int, ...]:
    if len(data) < TCMSG.size:
        raise Malformed(f"tcmsg: {len(data)} bytes: expected {TCMSG.size} or more")
    return TCMSG.unpack_from(data)


def _counted(told: Values) -> Counted:
    stats = told.get("STATS", {})
    basic, hardware = stats.get("BASIC", {}), stats.get("BASIC_HW", {})
    packets = stats.get("PKT64", basic.get("packets", 0))
    return Counted(
        packets, basic.get("bytes", 0), hardware.get("packets", 0), hardware.get("bytes", 0), told.get("COOKIE", b""), told.get("IN_HW_COUNT", 0)
    )


def control_of(number: int) -> tc.Control:
    if number > 0 and number & 0xF0000000 == actions.GOTO:
        return tc.goto(number & actions.MOST_CHAIN)
    found = CONTROL_NAMES.get(number)
    if found is None:
        raise Foreign(f"an action that is followed by {number:#x}")
    return found


def _parms(told: Values, name: str, kind: str) -> Values:
    found = told.get(name)
    if not isinstance(found, dict):
        raise Malformed(f"action {kind}: no {name}")
    return found


# --- keys ---------------------------------------------------------------------------------------------------------------------------------

# By the name of a value's attribute: the key, its pair of attributes.
_KEYS: dict[str, tuple[str, flower.Pair]] = {
    flower.FLOWER.attributes[pair.value][0]: (name, pair)
    for name, pair in (
        *flower.PLAIN.items(), *((name, pair) for (name, _), pair in (*flower.OF_FAMILY.items(), *flower.OF_PROTO.items()))
    )
}  # fmt: skip
_MASKS = {flower.FLOWER.attributes[pair.mask][0] for _, pair in _KEYS.values() if pair.mask}
_RANGES = {name: tuple(flower.FLOWER.attributes[pair.value][0] for pair in pairs) for name, pairs in flower.RANGES.items()}
_ENDS = {attribute for pair in _RANGES.values() for attribute in pair}
_KNOWN = {"ACT", "FLAGS", "IN_HW_COUNT", "KEY_ETH_TYPE", "INDEV"} | _MASKS | _ENDS | _KEYS.keys()
_PREFIXES = ("src_ip", "dst_ip", "arp_sip", "arp_tip")


def _matches(options: Values, protocol: int) -> list[tc.Match]:
    """The keys, in the order of FIELDS. Raises Foreign."""
    unknown = next((name for name in options if name not in _KNOWN), None)
    if unknown is not None:
        raise Foreign(f"key {flower.FLOWER.prefix}{unknown}")
    found: list[tuple[tc.Match, flower.Pair | None]] = []
    if "INDEV" in options:
        found.append((tc.Match("indev", 0, 0, None, options["INDEV"]), None))
    found += [(_match(name, pair, attribute, options), pair) for attribute, (name, pair) in _KEYS.items() if attribute in options]
    for name, (low, high) in _RANGES.items():
        if low in options or high in options:
            found.append((tc.Match(name, options.get(low, 0), 0xFFFF, options.get(high, 0)), None))
    names = [match.name for match, _ in found]
    if len(set(names)) < len(names):
        raise Foreign(f"two keys of one name: {', '.join(sorted(name for name in set(names) if names.count(name) > 1))}")
    found.sort(key=lambda each: tc.FIELD_ORDER[each[0].name])
    _belong(found, protocol)
    return [match for match, _ in found]


def _match(name: str, pair: flower.Pair, attribute: str, options: Values) -> tc.Match:
    """A key with its mask; where none is told, all of it counts."""
    full = (1 << pair.bits) - 1
    value, mask = options[attribute], options.get(f"{attribute}_MASK", full) if pair.mask else full
    if mask & ~full or value & ~full:
        raise Foreign(f"{name} {value:#x}/{mask:#x}, of which {full:#x} can be matched")
    if name in _PREFIXES and not is_prefix(mask, pair.bits):
        raise Foreign(f"{name} with mask {mask:#x}, which is no prefix")
    return tc.Match(name, value & mask, mask)


def _belong(found: Sequence[tuple[tc.Match, flower.Pair | None]], protocol: int) -> None:
    """Addresses, ports and ICMP types are those of the ethertype and the protocol beside them, or the kernel would not look at them. Raises
    Foreign."""
    family, proto = protocol, 0
    for match, pair in found:
        if match.name in ("vlan_ethtype", "cvlan_ethtype"):
            family = match.value
        elif match.name == "ip_proto":
            proto = match.value
        if pair is None or match.name in flower.PLAIN:
            continue
        if pair != (flower.OF_FAMILY.get((match.name, family)) or flower.OF_PROTO.get((match.name, proto))):
            raise Foreign(f"{match.name} of another protocol than its rule")


# --- one for each kind of action ----------------------------------------------------------------------------------------------------------


def _gact(decoder: Decoder, told: Values) -> tc.Gact:
    if "PROB" in told:
        raise Foreign("an action by chance")
    return tc.Gact(control_of(_parms(told, "PARMS", "gact")["action"]))


def _pair(told: Values, name: str, full: int) -> tuple[int, int] | None:
    """Value and mask; None if there is no value, or nothing of it counts."""
    mask = told.get(f"{name}_MASK", full)
    return (told[name] & mask, mask) if name in told and mask else None


def _ct(decoder: Decoder, told: Values) -> tc.Ct:
    control = control_of(_parms(told, "PARMS", "ct")["action"])
    flags = told.get("ACTION", 0)
    if flags >= 1 << 6:
        raise Foreign(f"ct with flags {flags:#x}")
    helper = None
    if told.get("HELPER_NAME"):
        family = {2: 4, 10: 6}.get(told.get("HELPER_FAMILY", 0))
        if family is None:
            raise Foreign(f"ct helper of family {told.get('HELPER_FAMILY', 0)}")
        helper = (told["HELPER_NAME"], family, told.get("HELPER_PROTO", 0))
    return tc.Ct(
        told.get("ZONE", 0), _pair(told, "MARK", U32), _pair(told, "LABELS", (1 << 128) - 1), bool(flags & actions.COMMIT),
        bool(flags & actions.FORCE), bool(flags & actions.CLEAR), _nat(told, flags), helper, control,
    )  # fmt: skip


def _nat(told: Values, flags: int) -> tc.CtNat | None:
    if not flags & actions.NAT:
        return None
    kind = {0: "", actions.NAT_SRC: "src", actions.NAT_DST: "dst"}.get(flags & (actions.NAT_SRC | actions.NAT_DST))
    if kind is None:
        raise Foreign("ct nat of source and destination at once")
    if not kind:
        return tc.CtNat()
    name, make = ("NAT_IPV4", IPv4Address) if "NAT_IPV4_MIN" in told else ("NAT_IPV6", IPv6Address)
    if f"{name}_MIN" not in told:
        raise Foreign(f"ct nat {kind} without addresses")
    low = told[f"{name}_MIN"]
    first: int | None = told.get("NAT_PORT_MIN")
    ports = None if first is None else (first, told.get("NAT_PORT_MAX", first))
    return tc.CtNat(kind, make(low), make(told.get(f"{name}_MAX", low)), ports)


def _csum(decoder: Decoder, told: Values) -> tc.Csum:
    parms = _parms(told, "PARMS", "csum")
    flags = parms["update_flags"]
    of = tuple(name for name in CSUM_ORDER if flags & actions.SUMS[name])
    if flags & ~sum(actions.SUMS.values()):
        raise Foreign(f"csum of {flags:#x}")
    return tc.Csum(of, control_of(parms["action"]))


def _skbedit(decoder: Decoder, told: Values) -> tc.Skbedit:
    control = control_of(_parms(told, "PARMS", "skbedit")["action"])
    if told.get("FLAGS") or "QUEUE_MAPPING_MAX" in told:
        raise Foreign("skbedit with flags")
    ptype = told.get("PTYPE")
    if ptype is not None and ptype not in PTYPE_NUMBERS:
        raise Foreign(f"skbedit ptype {ptype}")
    mask = told.get("MASK", U32)
    mark = (told["MARK"] & mask, mask) if "MARK" in told else None
    name = PTYPES[PTYPE_NUMBERS.index(ptype)] if ptype is not None else ""
    return tc.Skbedit(mark, told.get("PRIORITY"), told.get("QUEUE_MAPPING"), name, control)


def _vlan(decoder: Decoder, told: Values) -> tc.Vlan:
    parms = _parms(told, "PARMS", "vlan")
    kind = VLAN_NAMES.get(parms["v_action"])
    if kind is None:
        raise Foreign(f"vlan of kind {parms['v_action']}")
    control = control_of(parms["action"])
    if kind == "pop":
        return tc.Vlan(kind, control=control)
    # What was not said is listed as what it came to: 802.1Q, and priority 0 of a tag that is new.
    protocol, priority = told.get("PUSH_VLAN_PROTOCOL", tc.ETH_VLAN), told.get("PUSH_VLAN_PRIORITY", 0 if kind == "push" else None)
    return tc.Vlan(kind, told.get("PUSH_VLAN_ID"), protocol, priority, control)


def _pedit(decoder: Decoder, told: Values) -> tc.Pedit:
    data, places = told.get("PARMS_EX"), told.get("KEYS_EX")
    if data is None or places is None:
        raise Foreign("pedit of raw offsets")
    size = actions.PEDIT_SELECTOR.size
    if len(data) < size:
        raise Malformed(f"action pedit: {len(data)} bytes: expected {size} or more")
    _, _, control, _, _, count, _ = actions.PEDIT_SELECTOR.unpack_from(data)
    step = actions.PEDIT_WORD.size + actions.PEDIT_PLACE.size
    if not 0 < count <= actions.MOST_WORDS:
        raise Foreign(f"pedit of {count} words")
    if len(data) < size + count * step or len(places) < count:
        raise Malformed(f"action pedit: {len(data)} bytes and {len(places)} places: expected those of {count} words")
    words = []
    for i in range(count):
        stays, value = actions.PEDIT_WORD.unpack_from(data, size + i * step)
        offset, _, offmask, _ = actions.PEDIT_PLACE.unpack_from(data, size + i * step + actions.PEDIT_WORD.size)
        if offmask or not set(places[i]) <= set(PEDIT_KEY.numbers):
            raise Foreign("pedit at an offset that hangs on the packet")
        words.append(actions.Word(places[i].get("HTYPE", 0), offset, value, stays ^ U32, places[i].get("CMD", 0)))
    try:
        return tc.Pedit(tuple(munges_of(words)), control_of(control))
    except KeyError as error:
        raise Foreign(f"pedit of {error.args[0]}") from None


def _police(decoder: Decoder, told: Values) -> tc.Police:
    parms = _parms(told, "TBF", "police")
    if parms["peak_rate"] or "AVRATE" in told or "PEAKRATE64" in told:
        raise Foreign("police with a peak rate or an estimator")
    rate: int = told["RATE64"] if "RATE64" in told else parms["rate"]
    packet_rate: int = told.get("PKTRATE64", 0)
    burst = amount(parms["burst"], rate) if rate else None
    packet_burst = amount(told.get("PKTBURST64", 0), packet_rate) if packet_rate else None
    if rate * 8 > MAX_RATE or packet_rate > U32 or max(burst or 0, packet_burst or 0) > U32:
        raise Foreign(f"police of {rate} bytes or {packet_rate} packets a second, with a burst of {burst or packet_burst}")
    mtu = parms["mtu"]
    # Without an mtu the kernel lists the longest packet that there is, or of a rate the one that tc's table of times ends with.
    unsaid = mtu in ((0, tc.POLICED) if rate else (0, U32)) and parms["cell_log"] in (0, USUAL_CELLS)
    result = told.get("RESULT", actions.PASS)
    return tc.Police(
        rate * 8 if rate else None, burst, packet_rate or None, packet_burst, None if unsaid else mtu, control_of(parms["action"]), control_of(result)
    )


def amount(ticks: int, rate: int) -> int:
    """A burst of which tc says so many ticks at a rate: the fewest bytes or packets, at least 1. Of ticks that tc would not say, those just above."""
    low, high = 1, int((ticks + 32) / actions.TICKS * rate / 1_000_000 * 1.000001) + 3
    while low < high:
        middle = (low + high) // 2
        if actions.ticks(middle, rate) >= ticks:
            high = middle
        else:
            low = middle + 1
    return low if low == 1 or actions.ticks(low, rate) <= max(ticks, U32) else low - 1


_ACTIONS: dict[str, Callable[[Decoder, Any], tc.Action]] = {
    "gact": _gact, "ct": _ct, "mirred": Decoder.mirred, "pedit": _pedit, "csum": _csum, "skbedit": _skbedit, "vlan": _vlan, "police": _police,
}  # fmt: skip
