"""The section [offload] of a configuration as what workers have in hardware. Not here: the section (live.config_offload), backends
(offload_live, offload_tc)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ctcore.errors import CtmirrorError
from datapath.commands.nic_option import nic_profile

if TYPE_CHECKING:
    from datapath.live.config import NodeConfig
    from datapath.live.config_offload import OffloadSection
    from datapath.live.offloading import Factory


def checked(section: OffloadSection) -> None:
    """Raises CtmirrorError if its backend cannot be."""
    if section.backend == "sim":
        nic_profile(section.profile)
    elif section.backend == "tc" and section.side:
        from datapath.commands.offload_tc import sides_of

        sides_of(section)


def doubts(section: OffloadSection) -> Iterator[str]:
    """What a node would find out at its start, as far as it can be seen of this kernel without asking it."""
    if section.backend != "tc":
        return
    from datapath.doctor import tc_ct, tc_flower
    from offload.netlink.extack import LACKS_CT, LACKS_FLOWER

    flower, ct = tc_flower(), tc_ct()
    nothing = "nothing would be offloaded here" if section.way == "auto" else "the node would not start here"
    if not flower.ok:
        yield f"offload: {nothing}: {flower.found}: {LACKS_FLOWER}"
    elif not ct.ok and section.way != "exact":
        exact = section.way == "auto" and section.side
        yield f"offload: {'only exact filters are possible here' if exact else nothing}: {ct.found}: {LACKS_CT}"


def factory(config: NodeConfig) -> Factory | None:
    """What makes a worker's part of it; None: nothing is offloaded. Raises CtmirrorError."""
    section = config.offload
    if section.backend is None:
        return None
    if section.backend == "tc":
        from datapath.commands.offload_tc import TcFactory

        return TcFactory(config)
    profile = nic_profile(section.profile)
    from datapath.commands.offload_live import simulated

    try:
        import offload.simnic.nic  # noqa: F401  with LLVM, which tries at once whether it may compile
    except OSError as error:
        wanted = "expected a process that may have code made at run time: a unit without MemoryDenyWriteExecute="
        raise CtmirrorError(f"offload: a NIC cannot be simulated here: {(error.strerror or str(error)).partition('.')[0]}: {wanted}") from None
    return simulated(profile, section.policy)
