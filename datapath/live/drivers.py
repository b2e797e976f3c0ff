"""How an interface is opened: which driver, tried in which order, and why the one that was taken was taken.

    auto    native XDP, then generic XDP, then AF_PACKET: the first that works
    xdp-native, xdp-generic, packet, tap     that one, or an error
    null    none: nothing comes, and what leaves there is counted and gone

Whatever is tried leaves a sentence for the log: what it was, what the kernel said, what that means. Invariants: what failed is closed before the next
thing is tried. Another XDP program on an interface is an error in any case: whoever attached it decides what happens to these frames, and taking
them by another way would handle them twice.
Not here: the filter (xdp_filter), the ifaces themselves.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from ctcore.errors import ConfigError
from datapath.errors import KernelError
from datapath.live.iface import Iface
from datapath.live.interfaces import Unmerged, queues_of
from datapath.live.null import Null
from datapath.live.packet_socket import PacketSocket
from datapath.live.settings import PacketSettings, XskSettings
from datapath.live.tap import Tap
from datapath.live.umem import Umem
from datapath.live.xdp_bypass import XdpBypass
from datapath.live.xdp_filter import Filter, Steering
from datapath.live.xsk import Xsk

AUTO = ("xdp-native", "xdp-generic", "packet")
DRIVERS = ("auto", *AUTO, "tap", "null")
# What errno means where XDP was tried; without an entry, strerror has to do.
MEANINGS = {
    errno.EOPNOTSUPP: "the interface's driver has no XDP",
    errno.EINVAL: "the driver refuses this program as the interface is set up now (MTU, queues, offloads such as LRO)",
    errno.ERANGE: "the MTU is larger than the driver can do with XDP",
    errno.EPERM: "this process may not: expected root, or cap_bpf and cap_net_admin",
    errno.EAFNOSUPPORT: "the kernel has no AF_XDP (CONFIG_XDP_SOCKETS)",
    errno.ENOBUFS: "too little memory may be locked: ulimit -l, or cap_ipc_lock",
    errno.ENOSYS: "the kernel has no BPF",
}
CODES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}  # ENOTSUP has the same number, and nobody calls it so
GROUP = "senders on this machine have to make packets of the MTU's size (ethtool -K NAME tso off gso off): larger ones are dropped and counted"
TAKEN = {
    "xdp-native": "XDP in the driver",
    "xdp-generic": f"XDP in the stack, on copies: slower than in the driver; {GROUP}",
    "packet": "AF_PACKET: slowest, and the host sees every frame as well, so it must have no addresses here and forward nothing",
    "tap": "a tap device",
    "null": "no device: what leaves here is counted and gone",
}


@dataclass(frozen=True)
class Wanted:
    """How an interface is to be opened. driver: one of DRIVERS; ordinal: `iface` of its frames; filter: which frames are ours, and bypass: which of
    these are not, since they belong to a connection that somebody else forwards (XDP only)."""

    driver: str = "auto"
    ordinal: int = 0
    filter: Filter = field(default_factory=Filter)
    xsk: XskSettings = field(default_factory=XskSettings)
    packet: PacketSettings = field(default_factory=PacketSettings)
    bypass: XdpBypass | None = None

    def __post_init__(self) -> None:
        if self.driver not in DRIVERS:
            raise ConfigError(f"driver = {self.driver}: expected one of {', '.join(DRIVERS)}")


@dataclass
class Opened:
    """An interface that is open. ifaces: by receive queue, queue q belongs to worker q modulo the memory's workers, each of which has one; driver:
    what was taken; said: how it came to that, sentences for the log."""

    name: str
    driver: str
    ifaces: Sequence[Iface]
    steering: Steering | None = None
    unmerged: Unmerged | None = None
    said: list[str] = field(default_factory=list)

    def close(self) -> None:
        """First nothing comes in any more, then the sockets go."""
        if self.steering is not None:
            self.steering.detach()
        for iface in self.ifaces:
            iface.close()
        if self.steering is not None:
            self.steering.close()
            self.steering = None
        if self.unmerged is not None:
            self.unmerged.restore()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_interface(umem: Umem, name: str, wanted: Wanted | None = None) -> Opened:
    """Open interface `name` of this thread's network namespace, with chunks of `umem`, for all its workers.

    Raises KernelError if it cannot be, with all that was tried in its text, ConfigError for settings that cannot be, and fewer queues than workers.
    """
    wanted = Wanted() if wanted is None else wanted
    said: list[str] = []
    for driver in AUTO if wanted.driver == "auto" else (wanted.driver,):
        try:
            opened = _open(umem, name, driver, wanted, said)
        except KernelError as error:
            said.append(_refusal(name, driver, error))
            if error.number in (0, errno.EBUSY, errno.ENODEV) or wanted.driver != "auto":
                raise KernelError("; ".join(said), error.number) from None
            continue
        said.append(f"{name}: {TAKEN[driver]}" + (f", {len(opened.ifaces)} queues" if len(opened.ifaces) > 1 else ""))
        opened.said = said
        return opened
    raise KernelError("; ".join(said))


def _refusal(name: str, driver: str, error: KernelError) -> str:
    code = f" ({CODES[error.number]})" if error.number in CODES else ""
    guess = error.number in MEANINGS and driver.startswith("xdp") and "expected" not in str(error)  # or else it says itself what is the matter
    meaning = f": {MEANINGS[error.number]}" if guess else ""
    return f"{name}: {driver}: {str(error).removeprefix(f'{name}: ')}{code}{meaning}"


def _open(umem: Umem, name: str, driver: str, wanted: Wanted, said: list[str]) -> Opened:
    if driver == "packet":
        return Opened(name, driver, _packet(umem, name, wanted))
    if driver == "tap":
        return Opened(name, driver, _tap(umem, name, wanted))
    if driver == "null":
        return Opened(name, driver, [Null(umem, name, worker=worker, ordinal=wanted.ordinal) for worker in range(umem.workers)])
    try:
        return _xdp(umem, name, driver, wanted)
    except KernelError as error:
        if not wanted.xsk.zero_copy or error.number != errno.EOPNOTSUPP or wanted.driver != "auto":
            raise
        said.append(f"{name}: zero-copy: {error} (EOPNOTSUPP): frames are copied between the kernel's memory and ours")
    return _xdp(umem, name, driver, replace(wanted, xsk=replace(wanted.xsk, zero_copy=False)))


def _packet(umem: Umem, name: str, wanted: Wanted) -> list[Iface]:
    """A socket for each worker; of several the kernel gives each frame to one."""
    with ExitStack() as stack:
        sockets: list[PacketSocket] = []
        for worker in range(umem.workers):
            group = None if umem.workers == 1 else sockets[0].group if sockets else 0
            sockets.append(PacketSocket(umem, name, worker=worker, ordinal=wanted.ordinal, settings=wanted.packet, group=group))
            stack.callback(sockets[-1].close)
        for one in sockets:
            one.listen()
        stack.pop_all()
    return list(sockets)


def _tap(umem: Umem, name: str, wanted: Wanted) -> list[Iface]:
    """A queue for each worker."""
    with ExitStack() as stack:
        taps: list[Iface] = []
        for worker in range(umem.workers):
            real = taps[0].name if taps else name
            taps.append(Tap(umem, real, worker=worker, ordinal=wanted.ordinal, several=umem.workers > 1))
            stack.callback(taps[-1].close)
        stack.pop_all()
    return taps


def check_queues(name: str, workers: int) -> None:
    """Whether each worker can have a queue of an interface for itself, as XDP wants it. Raises ConfigError."""
    queues = queues_of(name)
    if queues < workers:
        more = f'ethtool -L {name} combined {workers}, or driver = "packet"'
        raise ConfigError(f"{name}: {queues} queue{'s' if queues > 1 else ''}: expected {workers} at least, one for each worker ({more})")


def _xdp(umem: Umem, name: str, driver: str, wanted: Wanted) -> Opened:
    """The sockets of all queues, then the program: so the first frame that it takes has somewhere to go."""
    check_queues(name, umem.workers)
    with ExitStack() as stack:
        ifaces: list[Xsk] = []
        for queue in range(queues_of(name)):
            worker = queue % umem.workers
            ifaces.append(Xsk(umem, name, queue=queue, worker=worker, ordinal=wanted.ordinal, settings=wanted.xsk))
            stack.callback(ifaces[-1].close)
        steering = Steering(wanted.filter, wanted.bypass)
        stack.callback(steering.close)  # before the sockets: the last one in is the first one out
        for queue, iface in enumerate(ifaces):
            steering.put(queue, iface.fd)
            iface.guard = steering.guard
        unmerged = None
        if driver == "xdp-generic":  # it runs behind GRO
            unmerged = Unmerged(name)
            stack.callback(unmerged.restore)
        steering.attach(name, driver.removeprefix("xdp-"))
        stack.pop_all()
    return Opened(name, driver, ifaces, steering, unmerged)
