"""The running kernel as judge: IP packets in, one at a time, what its conntrack made of each out.

    with Oracle(config, zone=0) as kernel:
        sighting = kernel.show(family=4, packet=ip_bytes)

Theory of operation: a bridge in a fresh network namespace (bridge) sends every packet through nf_conntrack; probes copy the connection out of the
kernel's memory as the packet passes; a fence proves that the packet has passed. Everything lasts as long as the `with` block: namespaces without
names, programs without files.
The clock is the kernel's: each sighting says at which tick the packet was judged, and whoever compares lets the engine live by the same ticks.
Invariants: nothing outside the namespaces made here is changed; a setting the kernel cannot have in a namespace is refused, not ignored.
Not here: which packets of a capture can be shown (show), what differs (compare).
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from pyroute2.netlink.exceptions import NetlinkError

from ctcore import spec
from ctcore.config import Config
from ctcore.types import KEY_DTYPE, Dir
from datapath.bpf import Runnable
from datapath.errors import KernelError
from datapath.oracle import ruleset
from datapath.oracle.bridge import BRIDGE, NOBODY, Bridge
from datapath.oracle.btf import kernel_types
from datapath.oracle.listen import Listener
from datapath.oracle.probes import CLOCK, Moment, Probes, Record
from datapath.oracle.routes import lead_back
from datapath.oracle.witness import Layout, Sighting

SYSCTL = Path("/proc/sys/net/netfilter")
ETHERTYPES = {4: 0x0800, 6: 0x86DD}
# Fields of Config and the sysctls they are.
SYSCTLS = {
    "tcp_liberal": "tcp_be_liberal", "tcp_loose": "tcp_loose", "tcp_max_retrans": "tcp_max_retrans",
    "tcp_ignore_invalid_rst": "tcp_ignore_invalid_rst", "checksum": "checksum", "acct": "acct",
}  # fmt: skip
USUAL_HZ = (100, 250, 1000)
ROOT = "root, or CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_PERFMON"
REMEMBERED = 1 << 20  # tuples whose connections can be looked at
MEASURE = 0.06  # seconds: enough to tell the usual ones apart by a tick more or less


@lru_cache(1)
def kernel_hz() -> int:
    """Ticks a second of the running kernel, measured."""
    clock = Runnable(CLOCK, "clock")
    try:
        for span in (MEASURE, 4 * MEASURE, 16 * MEASURE):  # longer where the machine has no time for us
            start, ticks = time.monotonic(), clock()
            time.sleep(span)
            rate = (clock() - ticks) % (1 << 32) / (time.monotonic() - start)
            hz = min(USUAL_HZ, key=lambda usual: abs(usual - rate))
            if abs(hz - rate) <= 2 / span:
                break
    finally:
        clock.close()
    if abs(hz - rate) > 2 / MEASURE:
        raise KernelError(f"this kernel has about {rate:.0f} ticks a second: expected CONFIG_HZ of {', '.join(map(str, USUAL_HZ))}")
    return hz


def kernel_config(config: Config) -> Config:
    """The settings with what only the kernel can say: its ticks, and the size of its table, which is one for all namespaces.

    KernelError if config asks for another size than it has.
    """
    return replace(config, max=_of_all_namespaces(config, "max"), buckets=_of_all_namespaces(config, "buckets"), hz=kernel_hz())


def _of_all_namespaces(config: Config, name: str) -> int:
    path = SYSCTL / f"nf_conntrack_{name}"
    try:
        value = int(path.read_text())
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}: expected a kernel with nf_conntrack (modprobe nf_conntrack)") from None
    if getattr(config, name) not in (value, getattr(Config, name)):
        raise KernelError(
            f"--{name} {getattr(config, name)}: the kernel has one nf_conntrack_{name} for all namespaces, {value}, which is not changed: "
            f"expected that, or no --{name}; replay takes any"
        )
    return value


def _refused(what: str, number: int, expected: str) -> KernelError:
    """What the kernel refused, by errno, and what would have been needed: privileges, or something else."""
    return KernelError(f"{what}: {os.strerror(number)}: expected {ROOT if number in (errno.EPERM, errno.EACCES) else expected}", number)


def obstacle() -> str | None:
    """Why the running kernel cannot be asked, in a line, or None."""
    try:
        with Oracle(Config()):
            return None
    except KernelError as error:
        return str(error)


DIRECTIONS = {"both": None, "original": Dir.ORIG, "reply": Dir.REPLY}


class Oracle:
    """Conntrack of the running kernel in a network namespace of its own, with the settings of `config`."""

    def __init__(self, config: Config, *, zone: int = 0) -> None:
        """KernelError if the kernel or the privileges do not suffice, naming what is missing."""
        if config.zone_limit or config.zone_limits or config.zone_reserves:
            raise KernelError("limits and reserves of zones: expected none, for the kernel has none")
        self.config, self.zone = kernel_config(config), zone
        self.layout = Layout(kernel_types())
        self.tick = 0
        self._open()

    def _open(self) -> None:
        """A namespace with nothing in it."""
        try:
            with ExitStack() as stack:
                self.bridge = Bridge(stack)
                self._settings()
                self.listener = Listener(self.bridge.box, stack)
                if self.config.nat:  # a helper alone never changes an address
                    lead_back(self.bridge.box, BRIDGE, NOBODY, ruleset.interface_of(self.config.nat))
                ruleset.load(self.bridge.box, self.config)
                with self.bridge.box.entered():
                    self.probes = Probes(self.bridge.box.inode, nat=bool(self.config.nat))
                stack.callback(self.probes.close)
                self.open = stack.pop_all()
        except OSError as error:
            raise _refused(error.filename or "network namespaces, veth or netlink", error.errno or 0, "to be able to use it") from None
        except NetlinkError as error:
            raise _refused("rtnetlink", error.code, "CONFIG_VETH and CONFIG_BRIDGE") from None
        self._addresses: dict[bytes, int] = {}  # key -> where its connection lies, the oldest first
        self._namespace = 0  # where ours lies in the kernel's memory
        self._zones = False  # whether packets may have other zones than 0
        self._waiting = False  # whether fragments may wait there for others

    @property
    def translates(self) -> bool:
        """Whether packets may leave otherwise than they came."""
        return bool(self.config.nat or self.config.helpers)

    def _settings(self) -> None:
        values = {sysctl: int(getattr(self.config, field)) for field, sysctl in SYSCTLS.items()}
        values |= {name: self.config.timeouts.get(name, usual) for name, usual in spec.timeouts().items()}
        values |= {"frag6_low_thresh": 0, "ipfrag_low_thresh": 0}  # no limit may be below it; nothing else is made of it
        values |= {"frag6_high_thresh": self.config.frag6_high_thresh, "ipfrag_high_thresh": self.config.ipfrag_high_thresh}
        values["ipfrag_max_dist"] = self.config.ipfrag_max_dist
        for name, value in values.items():
            folder, path = ("ipv4", name) if name.startswith("ipfrag_") else ("netfilter", f"nf_conntrack_{name}")
            try:
                self.bridge.box.sysctl(f"{folder}/{path}", value)
            except FileNotFoundError:
                raise KernelError(f"this kernel has no {path}: expected Linux 6.18's settings") from None
            except OSError as error:
                raise KernelError(f"{path} = {value}: {os.strerror(error.errno or 0)}") from None

    def show(self, family: int, packet: bytes, key: Callable[[], bytes] = bytes, zone: int | None = None) -> Sighting:
        """Let the kernel judge an IP packet.

        family: 4 or 6; key: the packet's tuple (the bytes of a KEY_DTYPE), by which its connection is found where the packet is invalid; nothing if
        it has none. It is asked for when the packet has been judged: that of fragments depends on the tick. zone: in place of the oracle's.
        """
        zone = self.zone if zone is None else zone
        if zone and not self._zones:
            ruleset.load_zones(self.bridge.box, DIRECTIONS[self.config.zone_dir])
            self._zones = True
        came = self.bridge.pass_(ETHERTYPES[family], packet, zone)
        observed = self.probes.records()
        records = {record.moment: record for record in observed}
        judged, leaving = records.get(Moment.JUDGED), records.get(Moment.LEAVING)
        if Moment.ARRIVED in records:
            self.tick = records[Moment.ARRIVED].jiffies
        else:
            self.tick = self.probes.now()
            self._waiting |= not came
        slack = max((record.jiffies for record in records.values()), default=self.tick) - self.tick
        said, events = self.listener.sentences(), self.listener.events()
        asked = self._ask(key()) if judged and not judged.nfct else None
        # What the bridge device says of its own accord is translated, too.
        own = {record.moment: record for record in observed if judged and record.address == judged.address != 0}
        translated = own.get(Moment.REDIRECTED), own.get(Moment.TRANSLATED)
        sighting = Sighting(judged, leaving, asked, came, self.tick, slack, said, events, *translated)
        if leaving and leaving.address:
            self._remember(leaving)
        return sighting

    def _remember(self, leaving: Record) -> None:
        """Where a connection lies, by both of its tuples."""
        self._namespace = self.layout.namespace(leaving)
        for key in self.layout.keys(leaving.conn):
            self._addresses[key] = leaving.address
        while len(self._addresses) > REMEMBERED:
            del self._addresses[next(iter(self._addresses))]

    def _ask(self, key: bytes) -> Record | None:
        """The live connection that the packet's tuple belongs to.

        Memory may have been used anew since, by other namespaces as well: the bytes have to say themselves whose they are.
        One that is overdue lies there until a lookup or the collector comes by, but no packet belongs to it any more.
        """
        for d, own in self._keys(key):
            if own not in self._addresses:
                continue
            record = self.probes.conn(self._addresses[own])
            lives = self.layout.is_live(record) and self.layout.left(record, self.tick) > 0
            ours = self.layout.namespace(record) == self._namespace
            if lives and ours and own in (self.layout.keys(record.conn) if d is None else (self.layout.keys(record.conn)[d],)):
                return record
        return None

    def _keys(self, key: bytes) -> Iterator[tuple[Dir | None, bytes]]:
        """As what a connection would have a packet's tuple, and in which direction, in the order in which Linux looks; None: in either."""
        only = DIRECTIONS[self.config.zone_dir]
        if only is None or not key:
            yield None, key
            return
        row = np.frombuffer(key, KEY_DTYPE).copy()
        for d in Dir:
            own = row.copy()
            if d != only:
                own["zone"] = 0
            yield d, own.tobytes()

    def flush(self) -> None:
        """Delete all connections of the namespace. Fragments that wait cannot be deleted: then it takes a new one."""
        if self._waiting:
            self.open.close()
            self._open()
        else:
            self.listener.flush()
            self._addresses.clear()

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.open.close()
