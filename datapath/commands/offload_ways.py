"""Which way of offloading to the kernel's TC a node takes: what was told, what its rules and interfaces allow, and what is found out by trials.

    pipeline in a NIC, exact in a NIC, pipeline in the kernel, exact in the kernel: the first that nothing is in the way of

Theory of operation: each way that the section [offload] allows is tried in this order; what is in its way is a line for each reason. Whether the
kernel takes the rules themselves is found out by installing them (tc.following), which is the last thing that can be in the way.
Invariants: a way that was told and cannot be is an error with all that is in its way; nothing is left of what was tried.
Not here: trials (offload.trials), rules installed (tc.following), who does what of it (offload_tc).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from ctcore.errors import ConfigError, CtmirrorError
from datapath.commands.offload_devices import eswitch_of
from datapath.doctor import tc_offload
from datapath.live.config_offload import XDP
from offload.devlink.attributes import LEGACY, SWITCHDEV
from offload.netlink.channel import Channel
from offload.netlink.extack import once
from offload.netlink.filters import Where
from offload.netlink.links import links
from offload.trials import EXACT, NEEDED, PIPELINE, Tried, trials, what

if TYPE_CHECKING:
    from datapath.live.config import NodeConfig

NIC, KERNEL = "a NIC", "the kernel"
ORDER = ((PIPELINE, NIC), (EXACT, NIC), (PIPELINE, KERNEL), (EXACT, KERNEL))
ALLOWED = {"auto": (NIC, KERNEL), "only": (NIC,), "no": (KERNEL,)}


class Way(NamedTuple):
    """way: PIPELINE or EXACT; where: NIC, or KERNEL: in software; devices: by which packets come in."""

    way: str
    where: str
    devices: tuple[str, ...]

    def told(self) -> str:
        return f"{self.way} in {self.where} ({', '.join(self.devices)})"


class Probe(NamedTuple):
    """A device: hw-tc-offload, what the kernel takes, and what the NIC, if it was tried; legacy: the NIC, if its eswitch is in this mode."""

    feature: str
    software: tuple[Tried, ...]
    hardware: tuple[Tried, ...]
    legacy: str = ""


Prober = Callable[[str], Probe]


def probe(device: str) -> Probe:
    """By trials in this network namespace. Raises CtmirrorError."""
    with Channel() as channel:
        numbers = links(channel)
        if device not in numbers:
            raise ConfigError(f"offload: no interface {device}")
        where, feature = Where(numbers[device]), tc_offload(device)
        software = trials(channel, where)
        hardware = trials(channel, where, hardware=True) if feature == "on" else ()
    if all(each.answer.error == 1 for each in software):  # EPERM
        raise CtmirrorError("offload: TC cannot be tried: not permitted: expected root, or cap_net_admin")
    nic, mode = eswitch_of(device) if feature == "on" else (None, None)
    return Probe(feature, software, hardware, nic or "" if mode == LEGACY else "")


def candidates(config: NodeConfig) -> list[Way]:
    """Those that the section allows, the best first."""
    section = config.offload
    devices = {EXACT: tuple(dict.fromkeys(side.device for side in section.side)), PIPELINE: tuple(iface.name for iface in config.iface)}
    return [Way(way, where, devices[way]) for way, where in ORDER if section.way in ("auto", way) and where in ALLOWED[section.hardware]]


def chosen(config: NodeConfig, begin: Callable[[Way], Sequence[str]], prober: Prober = probe) -> tuple[Way | None, list[str]]:
    """The first way that nothing is in the way of, and why not those before, a line each. begin: does what it takes, or says why it cannot be.

    Raises ConfigError if a way was told, and cannot be.
    """
    why: list[str] = []
    whole: list[str] = []
    prober = cache(prober)
    for way in candidates(config):
        obstacles = list(in_the_way(config, way, prober)) or list(begin(way))
        if not obstacles:
            return way, why
        more = f" (and {len(obstacles) - 1} more)" if len(obstacles) > 1 else ""
        why.append(f"not {way.way} in {way.where}: {obstacles[0]}{more}")
        whole.append(f"not {way.way} in {way.where}: {'; '.join(obstacles)}")
    if config.offload.way != "auto":
        raise ConfigError(f"offload: {'; '.join(whole)}")
    return None, why


def in_the_way(config: NodeConfig, way: Way, prober: Prober) -> Iterator[str]:
    """A line for each reason."""
    yield from _of_config(config, way)
    refused: list[tuple[str, str]] = []
    for device in way.devices:
        if way.where == NIC:
            found = prober(device)
            if found.feature != "on":
                off = f"hw-tc-offload is off: ethtool -K {device} hw-tc-offload on"
                yield f"{device}: {off if found.feature == 'off' else 'the interface has no hw-tc-offload'}"
                continue
            tried, legacy = found.hardware, found.legacy
        else:
            tried, legacy = prober(device).software, ""
        hint = f": its eswitch is in mode {LEGACY}: ctmirror offload eswitch {legacy} --mode {SWITCHDEV}" if legacy else ""
        needed = (each for each in tried if not each.ok and each.trial in NEEDED[way.way])
        refused += ((f"{device}: {what(each)}", each.answer.advised() + hint) for each in needed)
    yield from once(refused)


def _of_config(config: NodeConfig, way: Way) -> Iterator[str]:
    """In TC what passes is the host's: there is neither a wire nor a router of ours behind it."""
    if way.way == EXACT:
        if not way.devices:
            yield "no [[offload.side]] says which addresses are behind which device"
        return
    for iface in config.iface:
        if iface.inward is not None or iface.routed:
            how = "by `inward`" if iface.inward is not None else "by a route"
            yield f"{iface.name}: what passes leaves {how} here, and would be the host's in TC: expected rules that redirect"
        elif iface.driver not in XDP:
            yield f"{iface.name}: driver {iface.driver}: TC would forward the same frames again: expected XDP"
