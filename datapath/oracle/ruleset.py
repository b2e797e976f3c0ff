"""The nftables ruleset of a namespace: what Linux is told to do with the connections there, by the same values that a tracker is told.

    priority -300   zone       the zone of packets, in one direction or in both, which their source's MAC address says; there once there are zones
             -150   helper     helpers of new connections, by the port they go to
             -100   dnat       dnat and redirect rules
                0   state      asks for a connection's state, so that conntrack is at work at all
              100   snat       snat and masquerade rules

Theory of operation: a rule (ctcore.nat_rules) becomes one nftables rule, or, if it asks for ports but for no protocol, one for each protocol that has
ports. Without NAT rules there are no NAT chains, and then Linux sets no NAT status bit.
A bridge device has one address of each family, so masquerade and redirect really are these statements where they are to this address (Interface),
and the snat or dnat to their address where they are not: the choice of port is the same.
Not here: what the bridge needs to send translated packets on (routes).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pyroute2.netlink import nla
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.nftables.expressions import genex
from pyroute2.nftables.main import NFTables

from ctcore.config import Config
from ctcore.nat_rules import Address, HelperRule, Match, NatRule, Network, Ports, Range
from ctcore.types import Dir, Proto
from datapath.errors import KernelError
from datapath.oracle.namespace import Namespace

Expression = dict[str, Any]
Interface = Mapping[int, Address]  # the bridge device's address, by family

TABLE = "ctm"
ACCEPT = 1
NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
NFPROTO = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}
REGISTERS = (1, 2, 3, 4)  # of 16 bytes
CT_STATE, CT_ZONE = 0, 17
META_NFPROTO, META_L4PROTO = 15, 16
LINK_HEADER, NETWORK_HEADER, TRANSPORT_HEADER = 0, 1, 2
ZONE_AT = 10  # in the link header: the end of the source's address (bridge)
EQUAL, AT_MOST, AT_LEAST = 0, 3, 5
SNAT, DNAT = 0, 1
NEWOBJ, CT_HELPER = 18, 3
WITH_PORTS = (Proto.PROTO_TCP, Proto.PROTO_UDP, Proto.PROTO_UDPLITE, Proto.PROTO_SCTP)
ADDRESS_AT = {4: (12, 16), 6: (8, 24)}  # source, destination
# name: (hook, priority, type)
CHAINS = {
    "zone": ("prerouting", -300, "filter"), "helper": ("prerouting", -150, "filter"), "dnat": ("prerouting", -100, "nat"),
    "state": ("prerouting", 0, "filter"), "snat": ("postrouting", 100, "nat"),
}  # fmt: skip


class HelperObject(nfgen_msg):
    """An nftables object of the kind "ct helper", which pyroute2 does not know."""

    prefix = "NFTA_OBJ_"
    nla_map = (
        ("NFTA_OBJ_UNSPEC", "none"), ("NFTA_OBJ_TABLE", "asciiz"), ("NFTA_OBJ_NAME", "asciiz"), ("NFTA_OBJ_TYPE", "be32"),
        ("NFTA_OBJ_DATA", "helper"),
    )  # fmt: skip

    class helper(nla):  # pyroute2 finds it by this name
        nla_map = (
            ("NFTA_CT_HELPER_UNSPEC", "none"), ("NFTA_CT_HELPER_NAME", "asciiz"),
            ("NFTA_CT_HELPER_L3PROTO", "be16"), ("NFTA_CT_HELPER_L4PROTO", "uint8"),
        )  # fmt: skip


def interface_of(rules: Sequence[NatRule]) -> Interface:
    """The addresses the bridge device is to have: those of the first rule of each family that means a device's."""
    found: dict[int, Address] = {}
    for rule in rules:
        if rule.kind in ("masquerade", "redirect") and rule.range.low is not None and not rule.range.keeps_address:
            found.setdefault(rule.range.low.version, rule.range.low)
    return found


def load(namespace: Namespace, config: Config) -> None:
    """Put the ruleset but for zones into a namespace. KernelError if this kernel cannot have it."""
    chains = ("state", *(["helper"] if config.helpers else []), *(("dnat", "snat") if config.nat else ()))
    with _nftables(namespace, _needed(config)) as nft:
        nft.table("add", name=TABLE)
        for name in chains:
            _add_chain(nft, name)
        for helper in config.helpers:
            _add_helper(nft, helper)
        for chain, rule in _all_rules(config):
            nft.rule("add", table=TABLE, chain=chain, expressions=(rule,))


def load_zones(namespace: Namespace, direction: Dir | None = None) -> None:
    """Let packets be of the zones that their frames say, in a namespace with the ruleset. direction: the only one in which a zone counts, or None.

    KernelError if this kernel cannot have it.
    """
    only = {} if direction is None else {"direction": int(direction)}
    read = genex("payload", {"dreg": REGISTERS[0], "base": LINK_HEADER, "offset": ZONE_AT, "len": 2})
    with _nftables(namespace, " and CONFIG_NF_CONNTRACK_ZONES") as nft:
        _add_chain(nft, "zone")
        nft.rule("add", table=TABLE, chain="zone", expressions=([read, genex("ct", {"key": CT_ZONE, **only, "sreg": REGISTERS[0]})],))


@contextmanager
def _nftables(namespace: Namespace, needed: str) -> Iterator[NFTables]:
    """needed: beside what everything needs, for the error if the kernel refuses something."""
    with namespace.entered(), NFTables(nfgen_family=NFPROTO_INET) as nft:
        try:
            yield nft
        except NetlinkError as error:
            raise KernelError(f"nftables: {os.strerror(error.code)}: expected CONFIG_NF_TABLES_INET, CONFIG_NFT_CT{needed}") from None


def _add_chain(nft: NFTables, name: str) -> None:
    hook, priority, kind = CHAINS[name]
    nft.chain("add", table=TABLE, name=name, hook=hook, priority=priority, type=kind, policy=ACCEPT)


def _needed(config: Config) -> str:
    nat = ", CONFIG_NFT_NAT, CONFIG_NFT_MASQ and CONFIG_NFT_REDIR" if config.nat else ""
    return nat + "".join(f" and CONFIG_NF_CONNTRACK_{name.upper()}" for name in sorted({helper.name for helper in config.helpers}))


def _add_helper(nft: NFTables, helper: HelperRule) -> None:
    data = {"attrs": [("NFTA_CT_HELPER_NAME", helper.name), ("NFTA_CT_HELPER_L3PROTO", NFPROTO_INET), ("NFTA_CT_HELPER_L4PROTO", helper.proto)]}
    nft._command(HelperObject, {"add": NEWOBJ}, "add", {"table": TABLE, "name": _name(helper), "type": CT_HELPER, "data": data})


def _name(helper: HelperRule) -> str:
    return f"{helper.name}-{helper.proto}-{helper.port}"


def _all_rules(config: Config) -> Iterator[tuple[str, list[Expression]]]:
    """Chain and expressions of each rule."""
    yield "state", [genex("ct", {"key": CT_STATE, "dreg": REGISTERS[0]})]
    for helper in config.helpers:
        for matched in matches(Match(proto=helper.proto, dport=(helper.port, helper.port)), None):
            yield "helper", [*matched, genex("objref", {"imm_type": CT_HELPER, "imm_name": _name(helper)})]
    interface = interface_of(config.nat)
    for rule in config.nat:
        for matched in matches(rule.match, rule.family):
            yield "snat" if rule.source else "dnat", [*matched, *_statement(rule, interface)]


# --- what a rule is for ----------------------------------------------------------------------------------------------------------------


def matches(match: Match, family: int | None) -> Iterator[list[Expression]]:
    """Expressions that let pass what `match` is for: one list, or one for each protocol with ports, or none if nothing has what is asked for."""
    ports = match.sport is not None or match.dport is not None
    if not ports:
        protocols: tuple[int | None, ...] = (match.proto,)
    else:
        protocols = tuple(proto for proto in WITH_PORTS if match.proto in (None, proto))
    for proto in protocols:
        yield [*_family(family), *_proto(proto), *_networks(match), *_ports(match)]


def _family(family: int | None) -> Iterator[Expression]:
    if family is not None:
        yield genex("meta", {"key": META_NFPROTO, "dreg": REGISTERS[0]})
        yield _compare(EQUAL, bytes([NFPROTO[family]]))


def _proto(proto: int | None) -> Iterator[Expression]:
    if proto is not None:
        yield genex("meta", {"key": META_L4PROTO, "dreg": REGISTERS[0]})
        yield _compare(EQUAL, bytes([proto]))


def _networks(match: Match) -> Iterator[Expression]:
    for side, network in enumerate((match.src, match.dst)):
        if network is not None:
            yield from _network(network, ADDRESS_AT[network.version][side])


def _network(network: Network, at: int) -> Iterator[Expression]:
    size = len(network.network_address.packed)
    yield genex("payload", {"dreg": REGISTERS[0], "base": NETWORK_HEADER, "offset": at, "len": size})
    mask = {"mask": _value(network.netmask.packed), "xor": _value(bytes(size))}
    yield genex("bitwise", {"sreg": REGISTERS[0], "dreg": REGISTERS[0], "len": size, **mask})
    yield _compare(EQUAL, network.network_address.packed)


def _ports(match: Match) -> Iterator[Expression]:
    for side, ports in enumerate((match.sport, match.dport)):
        if ports is not None:
            yield genex("payload", {"dreg": REGISTERS[0], "base": TRANSPORT_HEADER, "offset": 2 * side, "len": 2})
            yield _compare(AT_LEAST, ports[0].to_bytes(2, "big"))
            yield _compare(AT_MOST, ports[1].to_bytes(2, "big"))


# --- what a rule does ------------------------------------------------------------------------------------------------------------------


def _statement(rule: NatRule, interface: Interface) -> list[Expression]:
    allowed = rule.range
    own = rule.kind in ("masquerade", "redirect") and rule.family is not None and interface.get(rule.family) == allowed.low
    ports, from_ports = _port_registers(allowed.ports)
    flags = _flags(allowed)
    if allowed.keeps_address and not ports:
        return [_decided(rule)]
    if own:
        return [*ports, genex("masq" if rule.source else "redir", {**from_ports, **flags})]
    kind, family = SNAT if rule.source else DNAT, NFPROTO_INET if allowed.low is None else NFPROTO[allowed.low.version]
    addresses, from_addresses = _address_registers(allowed)
    return [*addresses, *ports, genex("nat", {"type": kind, "family": family, **from_addresses, **from_ports, **flags})]


def _decided(rule: NatRule) -> Expression:
    """A rule that keeps address and ports is one that nftables has no statement for: without any, Linux avoids clashes as well."""
    if rule.range.random or rule.range.fully_random:
        raise KernelError(f"nftables: {rule.kind} {rule.text or rule.range}: expected an address or ports, or no random port")
    return genex("immediate", {"dreg": 0, "data": {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", ACCEPT)]})]}})


def _address_registers(allowed: Range) -> tuple[list[Expression], dict[str, int]]:
    if allowed.low is None or allowed.high is None or allowed.keeps_address:
        return [], {}  # all zeros would be an address to nftables
    low, high = REGISTERS[:2]
    return [_put(low, allowed.low.packed), _put(high, allowed.high.packed)], {"reg_addr_min": low, "reg_addr_max": high}


def _port_registers(ports: Ports | None) -> tuple[list[Expression], dict[str, int]]:
    if ports is None:
        return [], {}
    low, high = REGISTERS[2:]
    return [_put(low, ports[0].to_bytes(2, "big")), _put(high, ports[1].to_bytes(2, "big"))], {"reg_proto_min": low, "reg_proto_max": high}


def _flags(allowed: Range) -> dict[str, frozenset[str]]:
    chosen = {
        # Only nat says so by itself; masq never, and redir no more once it is given other flags.
        "NF_NAT_RANGE_PROTO_SPECIFIED": allowed.ports is not None,
        "NF_NAT_RANGE_PROTO_RANDOM": allowed.random,
        "NF_NAT_RANGE_PROTO_RANDOM_FULLY": allowed.fully_random,
        "NF_NAT_RANGE_PERSISTENT": allowed.persistent,
    }
    names = frozenset(name for name, wanted in chosen.items() if wanted)
    return {"flags": names} if names else {}


def _value(data: bytes) -> Expression:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}


def _put(register: int, data: bytes) -> Expression:
    return genex("immediate", {"dreg": register, "data": _value(data)})


def _compare(how: int, data: bytes) -> Expression:
    return genex("cmp", {"sreg": REGISTERS[0], "op": how, "data": _value(data)})
