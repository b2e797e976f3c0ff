"""Builds modules against the headers of the guest's kernel: those of module/, which feign a NIC and an eswitch, and netdevsim out of Linux's sources.

netdevsim is Linux's own NIC for tests, with VFs and representors; Debian's kernel leaves it out, its source package has it. Of that only what is
built is kept, below build/vm: nothing of it gets into this project.
Not here: fetching headers and sources (packages), loading what is built (the guest's tests).
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pcap_tests.vm.packages import CannotBoot, Kernel, kernel_source

SOURCES = Path(__file__).parent / "module"
MAKEFILE = "obj-m := feigned_nic.o feigned_functions.o\nfeigned_nic-y := devices.o tables.o\n"
NETDEVSIM = "drivers/net/netdevsim"
PATIENCE = 300  # seconds
# No type information for BPF: it would need the whole kernel with its debug information.
NO_BTF = "CONFIG_DEBUG_INFO_BTF_MODULES="


def built(kernel: Kernel) -> dict[str, Path]:
    """The modules of module/ by name; built anew when their sources have changed. Raises CannotBoot with what the compiler says."""
    folder = kernel.folder / "module"
    found = {name: folder / f"{name}.ko" for name in ("feigned_nic", "feigned_functions")}
    sources = {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]"))}
    whole = all(path.exists() for path in found.values())
    if whole and all((folder / name).exists() and (folder / name).read_bytes() == data for name, data in sources.items()):
        return found
    _build(kernel, folder, {**sources, "Makefile": MAKEFILE.encode()}, ["W=1"], list(found.values()))
    return found


def netdevsim(kernel: Kernel) -> Path:
    """Linux's netdevsim. Raises CannotBoot."""
    folder = kernel.folder / "netdevsim"
    found = folder / "netdevsim.ko"
    if found.exists():
        return found
    _build(kernel, folder, kernel_source(kernel, NETDEVSIM), ["CONFIG_NETDEVSIM=m"], [found])
    return found


def _build(kernel: Kernel, folder: Path, sources: Mapping[str, bytes], options: Sequence[str], wanted: Collection[Path]) -> None:
    """Raises CannotBoot where the compiler has anything to say."""
    if not kernel.headers.is_dir():
        raise CannotBoot(f"{kernel.headers}: no headers of the kernel there")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in sources.items():
        (folder / name).write_bytes(data)
    command = ["make", "-C", str(kernel.headers), f"M={folder.resolve()}", NO_BTF, *options, "modules"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode or "warning:" in done.stderr or not all(path.exists() for path in wanted):
        raise CannotBoot(f"{folder.name} is not built: {(done.stderr or done.stdout)[-2000:]}")
    for path in wanted:
        subprocess.run(["strip", "--strip-debug", str(path)], check=True)
