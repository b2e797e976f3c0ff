"""Settings of ifaces: what can be chosen, its defaults and bounds.

Defaults are those that were fastest between veth devices (docs/decisions.md). Not here: which driver is chosen (drivers).
"""

from __future__ import annotations

from dataclasses import dataclass

from ctcore.errors import ConfigError

# linux/if_xdp.h and net/xdp/xsk.h
LEAST_BUDGET = 32


@dataclass(frozen=True)
class XskSettings:
    """Of an AF_XDP iface.

    ring: slots of each of the four rings, a power of two; headroom: bytes that stay free in front of a received frame, besides the kernel's own 256;
    zero_copy: have the device write into our memory (drivers that can; veth cannot); busy_poll: µs that a system call polls the device for, 0: not;
    busy_budget: packets of one such poll; tx_budget: most frames sent by one system call (Linux 6.17 and later; others send 32); send_buffer: bytes
    of frames on their way; patience: seconds to wait for a queue that another socket has just left.
    """

    ring: int = 2048
    headroom: int = 0
    zero_copy: bool = False
    busy_poll: int = 0
    busy_budget: int = 64
    tx_budget: int = 256
    send_buffer: int = 1 << 23
    patience: float = 0.5

    def __post_init__(self) -> None:
        power_of_two("ring", self.ring, 64, 1 << 16)
        within("headroom", self.headroom, 0, 1024)
        within("busy_poll", self.busy_poll, 0, 1_000_000)
        within("busy_budget", self.busy_budget, 1, 0xFFFF)
        within("tx_budget", self.tx_budget, LEAST_BUDGET, self.ring)
        within("send_buffer", self.send_buffer, 1 << 12, 1 << 30)
        within("patience", self.patience, 0, 60)


@dataclass(frozen=True)
class PacketSettings:
    """Of an AF_PACKET iface.

    blocks, block_size: of the ring of received frames, bytes, whole pages; wait: ms after which a block that is not full is handed over; bypass: send
    past the queueing discipline, which is faster, and drops where it would have waited.
    """

    blocks: int = 16
    block_size: int = 1 << 18
    wait: int = 1
    bypass: bool = True

    def __post_init__(self) -> None:
        within("blocks", self.blocks, 2, 4096)
        power_of_two("block_size", self.block_size, 1 << 14, 1 << 24)
        within("wait", self.wait, 1, 1000)


def within(name: str, value: float, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{name} = {value}: expected {least} to {most}")


def power_of_two(name: str, value: int, least: int, most: int) -> None:
    within(name, value, least, most)
    if value & (value - 1):
        raise ConfigError(f"{name} = {value}: expected a power of two")
