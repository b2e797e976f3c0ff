"""A guest that runs one command: QEMU started, its output passed on, its end waited for, and never for longer than said.

Theory of operation: the guest sees this machine's files through 9p, read-only with a layer of its own over them, so that whatever is installed here
is there too. Its command's output and errors come through virtio ports into pipes that are read here; a third port says when it began and how it
ended. It is emulated (TCG): nested machines often have a KVM that hangs, and four seconds are no matter. QEMU 7.2 emulates cmpxchg16b wrongly, and
the kernel's memory allocator uses it; so the kernel is told that there is none (clearcpuid), and not the processor, for NumPy does not start without.
The emulated kernel is told to leave mitigations out, which cost half. It is not told to trust the TSC, whose frequency it measures when it starts: on
a busy machine that went wrong by a factor of four, and timeouts, TCP's as well, came in a quarter of their time. So its clock is the HPET.
Invariants: QEMU never outlives run(); its files are gone afterwards. A kernel that complains (an Oops, a warning) is a failure, even where the
command did well. Not here: which kernel (packages), what is in the archive (image).
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pcap_tests.vm import image
from pcap_tests.vm.image import Entry
from pcap_tests.vm.packages import CannotBoot, Kernel

HERE = Path(__file__).parent
BOOT_MODULES = ("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay")
# Exit statuses of our own, beside the command's: as timeout(1) and env(1) have them.
COMPLAINED, TIME_IS_UP, NOT_STARTED, DIED = 123, 124, 125, 126
COMPLAINT = re.compile(r"BUG: |WARNING: |Oops|general protection|list_(add|del) corruption|INFO: (task|rcu)|refcount_t: ")
ARGUMENTS = (
    "console=ttyS0 loglevel=5 panic=-1 oops=panic mitigations=off nokaslr random.trust_cpu=on audit=0 apparmor=0 no_timer_check"
    " rcupdate.rcu_expedited=1 clearcpuid=141"  # X86_FEATURE_CX16
)
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "CI", "VIRTUAL_ENV")
PASSED_ON_PREFIXES = ("PYTHON", "PYTEST", "CTMIRROR_")
PORTS = ("out", "err", "status")
TAIL = 4000  # characters of a log that are shown


@dataclass(frozen=True)
class Guest:
    """What is run. modules: loaded before the command; writable: folders that are shared to be written; environment: beside what is passed on."""

    kernel: Kernel
    command: Sequence[str]
    limit: float
    modules: Sequence[str] = ()
    writable: Sequence[Path] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    memory: int = 2048  # MiB
    cpus: int = 2


def run(guest: Guest) -> int:
    """The command's exit status, or one of ours. Raises CannotBoot if QEMU is not there."""
    with tempfile.TemporaryDirectory(prefix="ctmirror-vm-") as name:
        folder = Path(name)
        archive = folder / "initrd"
        archive.write_bytes(image.archive(_files(guest)))
        status = _Run(guest, folder, archive).status()
        return status


# --- what the guest begins with -----------------------------------------------------------------------------------------------------------


def unpacked_image(kernel: Kernel) -> Path:
    """The kernel as QEMU starts it at once; made when it is first asked for."""
    found = kernel.folder / f"vmlinux-{kernel.release}"
    if not found.exists():
        partial = found.with_suffix(f".{os.getpid()}")
        partial.write_bytes(image.vmlinux(kernel.image.read_bytes()))
        partial.rename(found)
    return found


def _files(guest: Guest) -> list[Entry]:
    busybox = Path("/bin/busybox")
    if not busybox.exists():
        raise CannotBoot("there is no /bin/busybox: expected Debian's busybox-static")
    modules = image.needed((guest.kernel.modules / "modules.dep").read_text(), BOOT_MODULES)
    names = [f"{image.module_name(path)}.ko" for path in modules]
    settings = {
        "RELEASE": guest.kernel.release, "MODULES": str(guest.kernel.modules.resolve()),
        "WRITABLE": " ".join(str(each.resolve()) for each in guest.writable),
    }  # fmt: skip
    return [
        *(Entry(name, image.FOLDER) for name in ("dev", "proc", "sys")),
        Entry("dev/console", image.DEVICE, b"", (5, 1)),
        Entry("bin/busybox", image.EXECUTABLE, busybox.read_bytes()),
        *(Entry(f"bin/{name}", image.LINK, b"busybox") for name in ("sh", "cat")),
        Entry("init", image.EXECUTABLE, (HERE / "init.sh").read_bytes()),
        Entry("guest.sh", image.FILE, _script(guest).encode()),
        Entry("boot.env", image.FILE, "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()).encode()),
        *(Entry(f"modules/{name}", image.FILE, image.module_bytes(guest.kernel.modules / path)) for name, path in zip(names, modules, strict=True)),
        Entry("modules/order", image.FILE, " ".join(names).encode()),
    ]


def _script(guest: Guest) -> str:
    passed = {name: value for name, value in os.environ.items() if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)}
    environment = {"HOME": "/root", "TERM": "dumb"} | passed | dict(guest.environment) | {"CTMIRROR_GUEST": guest.kernel.release}
    places = {
        "@ENVIRONMENT@": "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(environment.items())),
        "@MODULES@": " ".join(map(shlex.quote, guest.modules)),
        "@FOLDER@": shlex.quote(os.getcwd()),
        "@COMMAND@": shlex.join(guest.command),
    }
    text = (HERE / "guest.sh").read_text()
    return re.sub("|".join(places), lambda found: places[found[0]], text)


# --- QEMU -------------------------------------------------------------------------------------------------------------------------------


class _Run:
    """One QEMU, from its start to its end."""

    def __init__(self, guest: Guest, folder: Path, archive: Path) -> None:
        self.guest, self.folder = guest, folder
        self.console, self.log = folder / "console", folder / "qemu"
        self.said = b""  # by the port of statuses
        self.pipes = {name: os.pipe() for name in PORTS}
        self.command = self._command(archive)

    def _command(self, archive: Path) -> list[str]:
        guest = self.guest
        words = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-M", "pc,vmport=off,usb=off"]
        words += ["-m", str(guest.memory), "-smp", str(guest.cpus), "-cpu", "max", "-accel", "tcg,thread=multi,tb-size=512"]
        words += ["-kernel", str(unpacked_image(guest.kernel)), "-initrd", str(archive), "-append", ARGUMENTS]
        words += ["-serial", f"file:{self.console}", "-device", "virtio-rng-pci", "-device", "virtio-serial-pci,max_ports=8"]
        for number, (name, (_, end)) in enumerate(self.pipes.items(), 1):
            words += ["-add-fd", f"fd={end},set={number}", "-chardev", f"file,id={name},path=/dev/fdset/{number},append=on"]
            words += ["-device", f"virtserialport,chardev={name},name={name}"]
        shares = [("root", "/", ",readonly=on"), *((f"shared{i}", str(each.resolve()), "") for i, each in enumerate(guest.writable))]
        for tag, path, how in shares:
            words += ["-fsdev", f"local,id={tag},path={path},security_model=passthrough,multidevs=remap{how}"]
            words += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]
        return words

    def status(self) -> int:
        """Run it to its end."""
        ends = [end for _, end in self.pipes.values()]
        try:
            with open(self.log, "wb") as log:
                process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=ends)
        except FileNotFoundError:
            raise CannotBoot("there is no qemu-system-x86_64: expected Debian's qemu-system-x86") from None
        finally:
            for end in ends:
                os.close(end)
        try:
            in_time = self._pass_on(time.monotonic() + self.guest.limit)
        finally:
            process.kill()
            process.wait()
            for start, _ in self.pipes.values():
                os.close(start)
        return self._judge(in_time)

    def _pass_on(self, deadline: float) -> bool:
        """Output and errors to ours until QEMU has closed its ends; whether that was in time."""
        to: dict[int, BinaryIO | None] = {
            self.pipes["out"][0]: sys.stdout.buffer, self.pipes["err"][0]: sys.stderr.buffer, self.pipes["status"][0]: None,
        }  # fmt: skip
        with selectors.DefaultSelector() as selector:
            for start in to:
                selector.register(start, selectors.EVENT_READ)
            while to:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fd)
                        del to[key.fd]
                    elif (stream := to[key.fd]) is None:
                        self.said += data
                    else:
                        stream.write(data)
                        stream.flush()
        return True

    def _judge(self, in_time: bool) -> int:
        ended = re.search(rb"^ended (\d+)", self.said, re.MULTILINE)
        console = self.console.read_text(errors="replace") if self.console.exists() else ""
        complaints = [line for line in console.splitlines() if COMPLAINT.search(line)]
        if ended is None:
            status, why = (DIED, "the guest died") if in_time else (TIME_IS_UP, f"time is up: {self.guest.limit:.0f} s")
            if in_time and b"begun" not in self.said:
                status, why = NOT_STARTED, "the guest did not start"
            print(f"vm: {why}", self.log.read_text(errors="replace")[-TAIL:], console[-TAIL:], sep="\n", file=sys.stderr)
            return status
        if complaints:
            print("vm: the guest's kernel complained:", *complaints[:10], sep="\n    ", file=sys.stderr)
            print(console[-TAIL:], file=sys.stderr)
        return int(ended[1]) or (COMPLAINED if complaints else 0)
