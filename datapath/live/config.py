"""The configuration of a node: a TOML file, its sections and their defaults, and what is wrong with it by line.

    rules = "node.tc"
    [[iface]]
    name = "eth0"
    [conntrack]
    max = 1000000

Invariant: a Config that exists can be tried: every value is of its kind and within its bounds; whether the machine has such interfaces, opening them
tells. Imported only by `run`: needs the extra `live`. Not here: opening anything (node).
"""

from __future__ import annotations

import re
import secrets
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError

from ctcore.config import EVENT_BITS, SHARES_LIMIT
from ctcore.config import Config as Tracking
from ctcore.errors import ConfigError, CtmirrorError
from datapath.live.config_offload import OffloadSection, wrong
from datapath.live.config_places import lines_of, place, toml_error
from datapath.live.config_section import Name, Prefix, Section
from datapath.live.drivers import DRIVERS, Wanted
from datapath.live.message import SOCKET
from datapath.live.settings import LEAST_BUDGET, PacketSettings, XskSettings
from datapath.live.xdp_filter import EVERYTHING, Filter, Network

_PORT = re.compile(r"(tcp|udp|sctp) ([0-9]{1,5})")
LEVELS = ("debug", "info", "warning", "error")
_SAID = {  # of what pydantic would say in words of its own
    "model_type": "expected a section with keys of its own, as [log] or [[iface]]",
    "string_pattern_mismatch": "expected the name of an interface, of 1 to 15 characters, none of them a blank or /, or a function of a NIC, as "
    "pf0vf3@0000:08:00.0",
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    "string_type": 'expected a text, in " "',
}
# Sections of settings that another module checks: what each of its keys may be is said there.
_TRACKING = {field.name for field in dataclass_fields(Tracking)} - {"nat", "helpers", "nat_actions", "helper_actions", "events", "hz", "share"}
_PREFIXES = ("networks", "prefixes", "local")  # lists of them
_BY_ZONE = ("zone_limits", "zone_reserves")


def _port(text: str) -> str:
    if not _PORT.fullmatch(text):
        raise ValueError("expected a protocol and a port, as 'tcp 22'")
    return text


class FilterSection(Section):
    """Which frames are taken from the host: see xdp_filter.Filter. all: every frame, as a wire does."""

    all: bool = False
    passed_types: list[Annotated[int, Field(ge=0x600, le=0xFFFF)]] = []
    other_types: bool = False
    vlans: bool = False
    neighbours: bool = True
    local: list[str] = []
    ports: list[Annotated[str, AfterValidator(_port)]] = []
    prefixes: list[str] = []
    syn_rate: int = 200_000

    def filter(self) -> Filter:
        """Raises ConfigError."""
        if self.all:
            return replace(EVERYTHING, syn_rate=self.syn_rate)
        ports = tuple((protocol, int(port)) for protocol, port in (text.split(" ") for text in self.ports))
        return Filter(
            frozenset(self.passed_types),
            self.other_types,
            self.vlans,
            self.neighbours,
            tuple(self.local),  # type: ignore[arg-type]
            ports,
            tuple(self.prefixes),  # type: ignore[arg-type]
            self.syn_rate,
        )


class IfaceSection(Section):
    """One interface. inward: the name of the interface that takes what passes here, as a bridge does; routed: what passes here is routed. Without
    either only rules send."""

    name: Name
    driver: Literal[DRIVERS] = "auto"  # type: ignore[valid-type]
    inward: Name | None = None
    routed: bool = False
    filter: FilterSection = FilterSection()
    ring: int = XskSettings.ring
    zero_copy: bool = XskSettings.zero_copy
    busy_poll: int = XskSettings.busy_poll

    def wanted(self, ordinal: int, local: Sequence[Network] = ()) -> Wanted:
        """local: networks of the host beside those of the filter. Raises ConfigError."""
        budget = min(XskSettings.tx_budget, max(self.ring, LEAST_BUDGET))
        xsk = XskSettings(ring=self.ring, zero_copy=self.zero_copy, busy_poll=self.busy_poll, tx_budget=budget)
        wanted = self.filter.filter()
        if local:
            wanted = replace(wanted, local=(*wanted.local, *local))
        return Wanted(self.driver, ordinal, wanted, xsk, PacketSettings())


class RouterSection(Section):
    """Of interfaces that are `routed`. kernel_routes: take the routes of the kernel's main table, besides those of [[route]]; icmp_rate, icmp_burst:
    ICMP errors a second, and at once; icmp_peer_rate, icmp_peer_burst: to one destination, 0: no limit; neighbours: most that are known."""

    kernel_routes: bool = False
    icmp_rate: Annotated[float, Field(ge=0, le=1e6)] = 1000.0
    icmp_burst: Annotated[float, Field(ge=1, le=1e6)] = 50.0
    icmp_peer_rate: Annotated[float, Field(ge=0, le=1e6)] = 1.0
    icmp_peer_burst: Annotated[float, Field(ge=1, le=1e6)] = 6.0
    neighbours: Annotated[int, Field(ge=16, le=1 << 20)] = 16384


def _address(text: str) -> str:
    try:
        ip_address(text)
    except ValueError:
        raise ValueError(f"expected an address, not {text!r}") from None
    return text


class RouteSection(Section):
    """A route. via: the gateway, without it the destination itself is a neighbour; iface: where that is, by default in whose network `via` is."""

    prefix: Prefix
    via: Annotated[str, AfterValidator(_address)] | None = None
    iface: Name | None = None


class ControlSection(Section):
    """Where commands come in. socket: a path, "": nowhere; group: whose members may command, beside the owner; events: whether events of connections
    are made for those who listen."""

    socket: Annotated[str, Field(max_length=107)] = SOCKET
    group: str | None = None
    events: bool = True


def listen_address(text: str) -> tuple[str, int]:
    """127.0.0.1:9464 or [::1]:9464 as address and port. Raises ValueError."""
    host, _, port = text.rpartition(":")
    inner = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        address = ip_address(inner)
    except ValueError:
        address = None
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= 5 else 0
    if address is None or (address.version == 6) != (inner != host) or not 1 <= number <= 65535:
        raise ValueError(f"expected an address and a port, as '127.0.0.1:9464' or '[::1]:9464', not {text!r}")
    return str(address), number


def _listen(text: str) -> str:
    listen_address(text)
    return text


class MetricsSection(Section):
    """Prometheus metrics; off without `listen`. zones: most zones that have a label of their own."""

    listen: Annotated[str, AfterValidator(_listen)] | None = None
    zones: Annotated[int, Field(ge=0, le=1024)] = 32


class PrivilegesSection(Section):
    """What is given up once everything is open. user: whom to become, which needs root at the start; drop: capabilities go, as with `user`."""

    user: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    drop: bool = False


class StateSection(Section):
    """Where connections are kept over a restart; off without `file`. max_age: seconds after which what was saved is worth nothing."""

    file: str | None = None
    max_age: Annotated[int, Field(ge=1, le=86400)] = 300


class LogSection(Section):
    level: Literal[LEVELS] = "info"  # type: ignore[valid-type]
    format: Literal["text", "json"] = "text"


class MemorySection(Section):
    """chunks: frames that can be under way at a time; 0: as many as the rings of all interfaces hold, twice. chunk: bytes of each."""

    chunks: Annotated[int, Field(ge=0, le=1 << 22)] = 0
    chunk: Literal[2048, 4096] = 2048


def _zones(values: dict[str, Any]) -> dict[str, Any]:
    """Zones are numbers, while keys of TOML are text. What is none is left to ctcore, which says so."""
    by_zone = {key: values[key] for key in _BY_ZONE if isinstance(values.get(key), dict)}
    return values | {key: {int(zone) if zone.isdecimal() else zone: n for zone, n in value.items()} for key, value in by_zone.items()}


class NodeConfig(Section):
    """A node. workers: threads that share the work; cpus: where each runs, empty: wherever the system has them; cpu: the same for a single one."""

    rules: str
    flowtable: bool = True
    workers: Annotated[int, Field(ge=1, le=SHARES_LIMIT)] = 1
    cpu: Annotated[int, Field(ge=0)] | None = None
    cpus: list[Annotated[int, Field(ge=0)]] = []
    iface: Annotated[list[IfaceSection], Field(min_length=1, max_length=64)]
    conntrack: Annotated[dict[str, Any], AfterValidator(_zones)] = {}
    router: RouterSection = RouterSection()
    route: Annotated[list[RouteSection], Field(max_length=4096)] = []
    memory: MemorySection = MemorySection()
    control: ControlSection = ControlSection()
    metrics: MetricsSection = MetricsSection()
    state: StateSection = StateSection()
    privileges: PrivilegesSection = PrivilegesSection()
    offload: OffloadSection = OffloadSection()
    log: LogSection = LogSection()
    _functions: dict[str, str] = PrivateAttr(default_factory=dict)

    def called(self, device: str) -> str:
        """The interface of a device of rules: of a function that the file names, the one that stands for it; any other is one already."""
        return self._functions.get(device, device)

    def function_of(self, iface: str) -> str | None:
        """What the file calls an interface, if that is a function's name."""
        return next((name for name, called in self._functions.items() if called == iface != name), None)

    @property
    def places(self) -> list[int]:
        """The CPU of each worker; empty: anywhere."""
        return self.cpus or ([] if self.cpu is None else [self.cpu])

    def tracking(self) -> Tracking:
        """Raises ConfigError. Without a seed in the file it is drawn: who knows it could make tuples collide."""
        events = frozenset(EVENT_BITS) if self.control.events and self.control.socket else frozenset()
        return Tracking(**{"seed": secrets.randbits(64), **self.conntrack}, events=events)


def load(name: str, backend: Callable[[OffloadSection], object] | None = None, iface_of: Callable[[str], str] | None = None) -> NodeConfig:
    """Read a file. Raises ConfigError: file, line, key, what was expected. Names of files in it are relative to it.

    backend: is asked whether a section [offload] can be, as far as its profile or its sides go, and raises CtmirrorError if not. iface_of: gives the
    interface that stands for a NIC's function, of names that are none themselves, and raises CtmirrorError; without, such names stay.
    """
    path = Path(name)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: byte {error.start} is no UTF-8: expected TOML") from None
    config = _resolved(parse(text, name), name, dict(lines_of(text)), iface_of or str)
    state = config.state.model_copy(update={"file": str(path.parent / config.state.file)}) if config.state.file else config.state
    offload = config.offload
    if offload.profile.endswith(".toml"):
        offload = offload.model_copy(update={"profile": str(path.parent / offload.profile)})
    if offload.backend is not None and backend is not None:
        try:
            backend(offload)
        except CtmirrorError as error:
            at = ("offload", "profile" if offload.backend == "sim" else "side")
            raise ConfigError(place(name, dict(lines_of(text)), at) + str(error)) from None
    return config.model_copy(update={"rules": str(path.parent / config.rules), "state": state, "offload": offload})


def _resolved(config: NodeConfig, name: str, lines: dict[tuple[Any, ...], int], iface_of: Callable[[str], str]) -> NodeConfig:
    """With interfaces in place of functions. Raises ConfigError, also for two names of one interface."""
    called: dict[str, str] = {}
    for i, iface in enumerate(config.iface):
        at = place(name, lines, ("iface", i, "name"))
        try:
            found = iface_of(iface.name)
        except CtmirrorError as error:
            raise ConfigError(at + str(error)) from None
        if found in called.values():
            raise ConfigError(f"{at}{iface.name}: this is {found}: expected each interface once")
        called[iface.name] = found
    if all(device == found for device, found in called.items()):
        return config
    ifaces = [
        iface.model_copy(update={"name": called[iface.name], "inward": iface.inward if iface.inward is None else called[iface.inward]})
        for iface in config.iface
    ]
    routes = [route.model_copy(update={"iface": called.get(route.iface or "", route.iface)}) for route in config.route]
    sides = [side.model_copy(update={"device": called.get(side.device, side.device)}) for side in config.offload.side]
    offload = config.offload.model_copy(update={"side": sides})
    changed = config.model_copy(update={"iface": ifaces, "route": routes, "offload": offload})
    changed._functions.update(called)
    return changed


def parse(text: str, name: str) -> NodeConfig:
    """The same of a text. name: for places."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(toml_error(str(error), name)) from None
    lines = dict(lines_of(text))
    try:
        config = NodeConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(place(name, lines, tuple(first["loc"])) + _said(first)) from None
    _check(config, name, lines)
    return config


def _check(config: NodeConfig, name: str, lines: dict[tuple[Any, ...], int]) -> None:
    """What other modules say of their own settings, and what sections mean together."""
    names = [iface.name for iface in config.iface]
    for i, iface in enumerate(config.iface):
        if names.index(iface.name) != i:
            raise ConfigError(place(name, lines, ("iface", i, "name")) + f"{iface.name}: expected each interface once")
        if iface.inward is not None and (iface.inward not in names or iface.inward == iface.name):
            raise ConfigError(place(name, lines, ("iface", i, "inward")) + f"{iface.inward}: expected another interface of this file")
        try:
            iface.wanted(i)
        except ConfigError as error:
            key = str(error).split(" ")[0].rstrip(":")
            path = ("filter", key) if key in FilterSection.model_fields else (key,)
            raise ConfigError(place(name, lines, ("iface", i, *path)) + str(error)) from None
    _check_workers(config, name, lines)
    _check_router(config, name, lines)
    _check_offload(config, name, lines)
    for key in config.conntrack:
        if key not in _TRACKING:
            raise ConfigError(place(name, lines, ("conntrack", key)) + _unknown(key, sorted(_TRACKING)))
    for key, value in config.conntrack.items():
        try:
            Tracking(**{key: value})
        except (CtmirrorError, TypeError, ValueError) as error:
            raise ConfigError(place(name, lines, ("conntrack", key)) + str(error)) from None
    try:
        config.tracking()
    except ConfigError as error:  # what several settings mean together
        raise ConfigError(place(name, lines, ("conntrack",)) + str(error)) from None


def _check_workers(config: NodeConfig, name: str, lines: dict[tuple[Any, ...], int]) -> None:
    """A CPU for each worker, or none."""
    if config.cpu is not None and config.cpus:
        raise ConfigError(place(name, lines, ("cpu",)) + "expected `cpu` or `cpus`, not both")
    if config.cpu is not None and config.workers > 1:
        raise ConfigError(place(name, lines, ("cpu",)) + f"expected `cpus`, one for each of {config.workers} workers")
    if config.cpus and len(config.cpus) != config.workers:
        raise ConfigError(place(name, lines, ("cpus",)) + f"{len(config.cpus)} of them: expected one for each of {config.workers} workers")
    if len(set(config.cpus)) != len(config.cpus):
        raise ConfigError(place(name, lines, ("cpus",)) + "expected each CPU once")


def _check_router(config: NodeConfig, name: str, lines: dict[tuple[Any, ...], int]) -> None:
    """What interfaces in router mode and routes mean together."""
    routed = [iface.name for iface in config.iface if iface.routed]
    for i, iface in enumerate(config.iface):
        if iface.routed and iface.inward is not None:
            raise ConfigError(place(name, lines, ("iface", i, "inward")) + "expected none for an interface that is routed")
        if iface.routed and iface.filter.all:
            raise ConfigError(place(name, lines, ("iface", i, "filter", "all")) + "expected false where packets are routed: ARP is the host's")
    for section in ("router", "route"):
        if section in config.model_fields_set and not routed:
            raise ConfigError(place(name, lines, (section, 0) if section == "route" else (section,)) + "expected an interface with `routed = true`")
    before: dict[Network, int] = {}
    for i, route in enumerate(config.route):
        prefix = ip_network(route.prefix)
        if prefix in before:
            raise ConfigError(place(name, lines, ("route", i, "prefix")) + f"{prefix}: expected each prefix once: see route[{before[prefix]}]")
        before[prefix] = i
        if route.via is not None and ip_address(route.via).version != prefix.version:
            raise ConfigError(place(name, lines, ("route", i, "via")) + f"{route.via}: expected an address of the prefix's family")
        if route.iface is not None and route.iface not in routed:
            raise ConfigError(place(name, lines, ("route", i, "iface")) + f"{route.iface}: expected an interface that is routed")
        if route.iface is None and route.via is None:
            raise ConfigError(place(name, lines, ("route", i)) + "expected `via` or `iface`, or both")


def _check_offload(config: NodeConfig, name: str, lines: dict[tuple[Any, ...], int]) -> None:
    """The first thing that cannot be."""
    for path, said in wrong(config):
        raise ConfigError(place(name, lines, path) + said)


def _said(error: Any) -> str:
    """What pydantic says of a value, as a sentence of ours."""
    if error["type"] == "extra_forbidden":
        return _unknown(str(error["loc"][-1]), _settings_beside(error["loc"]))
    if error["type"] == "missing":
        return "missing"
    if error["type"] == "list_type":
        return _no_list(tuple(error["loc"]), error["input"])
    if error["type"] in _SAID:
        return f"{error['input']!r}: {_SAID[error['type']]}"
    text = str(error["msg"]).removeprefix("Value error, ")
    if text.startswith("expected"):
        return text
    return f"{error['input']!r}: " + re.sub(r"^(Input|String|List) should (be|have) ", "expected ", text)


def _no_list(path: tuple[Any, ...], found: Any) -> str:
    """Of a value in place of a list, or a section of which there may be several."""
    if isinstance(found, dict):
        return f"expected [[{'.'.join(part for part in path if isinstance(part, str))}]], two brackets"
    return f"{found!r}: expected a list, " + ('as ["10.0.0.0/8"]' if path[-1] in _PREFIXES else "in [ ]")


def _unknown(key: str, known: Sequence[str]) -> str:
    """A key that is none, and those that are."""
    near = get_close_matches(key, known, 1)
    return f"no such setting{f' (is {near[0]} meant?)' if near else ''}: expected one of {', '.join(known)}"


def _settings_beside(path: tuple[Any, ...]) -> list[str]:
    """The keys of the section that a key was written in."""
    section: type[Section] = NodeConfig
    for part in (part for part in path[:-1] if isinstance(part, str)):
        section = _section_in(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[Section]:
    """IfaceSection of list[IfaceSection]."""
    inside = get_args(annotation)
    return _section_in(inside[0]) if inside else annotation
