"""Builds the module that makes a veth look like a NIC (module/) against the headers of the guest's kernel.

Not here: fetching the headers (packages), loading it (the guest's tests).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pcap_tests.vm.packages import CannotBoot, Kernel

SOURCES = Path(__file__).parent / "module"
MAKEFILE = "obj-m := feigned_nic.o\nfeigned_nic-y := devices.o tables.o\n"
PATIENCE = 300  # seconds


def built(kernel: Kernel) -> Path:
    """The module; built anew when its source has changed. Raises CannotBoot with what the compiler says."""
    folder = kernel.folder / "module"
    found = folder / "feigned_nic.ko"
    sources = {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]"))}
    if found.exists() and all((folder / name).exists() and (folder / name).read_bytes() == data for name, data in sources.items()):
        return found
    if not kernel.headers.is_dir():
        raise CannotBoot(f"{kernel.headers}: no headers of the kernel there")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, data in sources.items():
        (folder / name).write_bytes(data)
    (folder / "Makefile").write_text(MAKEFILE)
    # No type information for BPF: it would need the whole kernel with its debug information.
    command = ["make", "-C", str(kernel.headers), f"M={folder.resolve()}", "CONFIG_DEBUG_INFO_BTF_MODULES=", "W=1", "modules"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode or not found.exists() or "warning:" in done.stderr:
        raise CannotBoot(f"the module is not built: {(done.stderr or done.stdout)[-2000:]}")
    subprocess.run(["strip", "--strip-debug", str(found)], check=True)
    return found
