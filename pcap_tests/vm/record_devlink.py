"""Records what a real kernel's devlink sends, of netdevsim and of the feigned eswitch, for tests that have neither.

    python -m pcap_tests.vm.run --kernel build/vm -- python -m pcap_tests.vm.record_devlink NETDEVSIM.ko FEIGNED_FUNCTIONS.ko > FILE

Runs in the guest. A line for each datagram: what had been asked, and its bytes in hex; sequence numbers and port as they came. Not here: reading them
(test_offload/test_devlink).
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from offload.devlink import family
from offload.devlink.changes import EswitchSet, FunctionAdd, FunctionSet
from offload.devlink.functions import Function, nic_of

MAC = "02:00:00:00:00:58"


def main(netdevsim: str, functions: str) -> None:
    for command in (["modprobe", "psample"], ["insmod", netdevsim], ["insmod", functions]):
        subprocess.run(command, check=True)
    Path("/sys/bus/netdevsim/new_device").write_text("10 1")
    Path("/sys/bus/netdevsim/devices/netdevsim10/sriov_numvfs").write_text("2")
    asked = ["family"]
    parse = family._Marshal.parse

    def recorded(self: Any, data: bytes, *arguments: Any, **options: Any) -> Iterator[Any]:
        print(asked[-1], bytes(data).hex())
        return parse(self, data, *arguments, **options)

    family._Marshal.parse = recorded  # type: ignore[method-assign]
    simulated, feigned = nic_of("netdevsim/netdevsim10"), nic_of("platform/feigned_functions")
    with family.Devlink() as devlink:
        for name, ask in (
            ("set", lambda: devlink.change(EswitchSet(simulated, "switchdev"))), ("set", lambda: devlink.change(EswitchSet(feigned, "switchdev"))),
            ("new", lambda: devlink.change(FunctionAdd(feigned, Function(0, sf=8)))),
            ("set", lambda: devlink.change(FunctionSet(feigned, 32776, MAC, "active"))),
            ("refused", lambda: devlink.change(FunctionAdd(feigned, Function(0, sf=8)))), ("nics", devlink.nics), ("ports", devlink.ports),
            ("eswitch", lambda: devlink.eswitch(simulated)),
        ):  # fmt: skip
            asked.append(name)
            with suppress(family.DevlinkError):
                ask()


if __name__ == "__main__":
    main(*sys.argv[1:])
