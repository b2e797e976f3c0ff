"""The section [offload] of a node's configuration: connections in hardware, by which backend, and what of it cannot be.

    [offload]
    backend = "tc"
    [[offload.side]]
    device = "eth0"
    networks = ["10.1.0.0/16"]

Backends are known to who puts a node together (datapath.commands); here is what can be said of their settings without asking anybody.
Invariant: of a section that passes, every key means something: each belongs to the backend, and to the way, that it is for.
Not here: opening anything, what interfaces and the kernel take (commands.offload_ways).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from datapath.live.config_section import Name, Prefix, Section

if TYPE_CHECKING:
    from datapath.live.config import NodeConfig

BACKENDS, POLICIES = ("sim", "tc"), ("first-come", "by-rate", "by-bytes")
WAYS, HARDWARE, AT_END = ("auto", "pipeline", "exact"), ("auto", "only", "no"), ("remove", "keep")
OF_SIM, OF_TC = ("profile",), ("way", "hardware", "rules", "prio", "side")
XDP = ("auto", "xdp-native", "xdp-generic")  # drivers behind which TC has what they leave, and nothing else
Wrong = tuple[tuple[Any, ...], str]  # a path, and what is wrong there


class SideSection(Section):
    """A device, and the addresses behind it: see offload.sides. networks: none: all addresses."""

    device: Name
    networks: list[Prefix] = []
    zone: Annotated[int, Field(ge=0, le=0xFFFF)] = 0
    chain: Annotated[int, Field(ge=1, lt=1 << 28)] | None = None


class OffloadSection(Section):
    """Connections in hardware. backend: which, None: none; policy: which connection makes room when it is full.

    Of `sim`: profile: what kind of NIC is simulated, a name or a file. Of `tc`: way: how, "auto": the best that interfaces and rules allow;
    hardware: whether it has to be a NIC's, or shall not; rules: what becomes of those in TC at the end; prio: the first of two
    priorities for each worker; side: where connections go, for exact filters.
    """

    backend: Literal[BACKENDS] | None = None  # type: ignore[valid-type]
    profile: Annotated[str, Field(min_length=1, max_length=4096)] = "connectx-7-hw"
    policy: Literal[POLICIES] = "first-come"  # type: ignore[valid-type]
    way: Literal[WAYS] = "auto"  # type: ignore[valid-type]
    hardware: Literal[HARDWARE] = "auto"  # type: ignore[valid-type]
    rules: Literal[AT_END] = "remove"  # type: ignore[valid-type]
    prio: Annotated[int, Field(ge=1, le=0xFF00)] = 1
    side: Annotated[list[SideSection], Field(max_length=256)] = []

    def told(self) -> str:
        """In the log, before anything is known of it."""
        profile = f", profile {self.profile}" if self.backend == "sim" else ""
        return f"{self.backend}{profile}, policy {self.policy}"


def wrong(config: NodeConfig) -> Iterator[Wrong]:
    """What of the section cannot be, beside the rest of the file."""
    section = config.offload
    if section.backend is not None and not config.flowtable:
        yield ("offload", "backend"), "expected `flowtable = true`: connections are offloaded from the flow table"
    for key in sorted(section.model_fields_set - {"backend"}):
        path = ("offload", key, 0) if key == "side" and section.side else ("offload", key)
        if section.backend is None:
            yield path, f"expected `backend` with it: {' or '.join(BACKENDS)}"
        for other, keys in (("sim", OF_SIM), ("tc", OF_TC)):
            if section.backend not in (None, other) and key in keys:
                yield path, f'expected `backend = "{other}"` with it'
    if section.backend == "tc":
        yield from _of_sides(config)
        yield from _of_drivers(config)
        if section.way == "pipeline":
            yield from _of_ways_on(config)


def _of_ways_on(config: NodeConfig) -> Iterator[Wrong]:
    """In TC only rules send: there is neither a wire nor a router of ours behind them."""
    said = 'expected none with `way = "pipeline"`: what passes would be the host\'s in TC: expected rules that redirect'
    for i, iface in enumerate(config.iface):
        if iface.inward is not None or iface.routed:
            yield ("iface", i, "inward" if iface.inward is not None else "routed"), said


def _of_sides(config: NodeConfig) -> Iterator[Wrong]:
    """Exact filters have to be told where packets go, and rules say it themselves."""
    section, ifaces = config.offload, {iface.name: iface for iface in config.iface}
    if section.way == "exact" and not section.side:
        yield ("offload", "way"), "expected [[offload.side]] sections with it: which addresses are behind which device"
    if section.way == "pipeline" and section.side:
        yield ("offload", "side", 0), 'expected none with `way = "pipeline"`: there the rules say where packets go'
    if section.way == "pipeline" and "prio" in section.model_fields_set:
        yield ("offload", "prio"), 'expected none with `way = "pipeline"`: there the rules have priorities of their own'
    if section.way == "exact" and "rules" in section.model_fields_set:
        yield ("offload", "rules"), 'expected none with `way = "exact"`: no rules are installed there'
    for i, side in enumerate(section.side):
        iface = ifaces.get(side.device)
        if iface is None:
            yield ("offload", "side", i, "device"), f"{side.device}: expected an interface of this file"
        elif iface.routed and side.chain is None:
            said = "expected one where packets are routed: an exact filter changes neither MAC addresses nor the hop limit, rules of a chain can"
            yield ("offload", "side", i, "chain"), said


def _of_drivers(config: NodeConfig) -> Iterator[Wrong]:
    """What AF_PACKET has, TC has as well, and would forward it a second time; a tap gives to this node what TC sends there."""
    section, devices = config.offload, {side.device for side in config.offload.side}
    for i, iface in enumerate(config.iface):
        alone = iface.driver == "packet" and section.hardware == "only" and section.way == "exact"  # then TC does nothing in software
        if iface.driver not in XDP and not alone and (section.way == "pipeline" or iface.name in devices):
            yield ("iface", i, "driver"), f'{iface.driver}: expected XDP with `[offload] backend = "tc"`: TC would forward the same frames again'
