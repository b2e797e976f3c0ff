"""Builds the module that makes a veth look like a NIC (module/feigned_nic.c) against the headers of the guest's kernel.

Not here: fetching the headers (packages), loading it (the guest's tests).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pcap_tests.vm.packages import CannotBoot, Kernel

SOURCE = Path(__file__).parent / "module" / "feigned_nic.c"
PATIENCE = 300  # seconds


def built(kernel: Kernel) -> Path:
    """The module; built anew when its source has changed. Raises CannotBoot with what the compiler says."""
    folder = kernel.folder / "module"
    found, source = folder / "feigned_nic.ko", folder / SOURCE.name
    if found.exists() and source.exists() and source.read_bytes() == SOURCE.read_bytes():
        return found
    if not kernel.headers.is_dir():
        raise CannotBoot(f"{kernel.headers}: no headers of the kernel there")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    shutil.copy(SOURCE, source)
    (folder / "Makefile").write_text("obj-m := feigned_nic.o\n")
    # No type information for BPF: it would need the whole kernel with its debug information.
    command = ["make", "-C", str(kernel.headers), f"M={folder.resolve()}", "CONFIG_DEBUG_INFO_BTF_MODULES=", "W=1", "modules"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if done.returncode or not found.exists() or "warning:" in done.stderr:
        raise CannotBoot(f"the module is not built: {(done.stderr or done.stdout)[-2000:]}")
    subprocess.run(["strip", "--strip-debug", str(found)], check=True)
    return found
