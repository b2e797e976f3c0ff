"""Debian's stock kernel and what boots it, fetched by apt: the kernel image, the headers that a module is built against, QEMU, busybox, kmod.

    python -m pcap_tests.vm.packages FOLDER

Theory of operation: tools are installed, kernel and headers are only unpacked below FOLDER, so that nothing of this machine's own kernel changes.
Which version: the one that Debian's linux-image-amd64 stands for today; headers are asked for by the same version, so that they always match. A
folder that has that version is left as it is, and one that was being filled when somebody pressed Ctrl-C is not taken for whole.
Not here: how it is booted (machine, run), the module (module_build).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

META = "linux-image-amd64"
# Commands, and the packages they come from.
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86", "busybox": "busybox-static", "depmod": "kmod", "tc": "iproute2", "conntrack": "conntrack", "gcc": "gcc",
    "make": "make", "ethtool": "ethtool",
}  # fmt: skip
PATIENCE = 600  # seconds for one call of apt


class CannotBoot(Exception):
    """What is missing, in a line."""


class Kernel(NamedTuple):
    """An unpacked kernel. release: as uname -r has it."""

    folder: Path
    release: str

    @property
    def image(self) -> Path:
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.folder / "lib" / "modules" / self.release

    @property
    def headers(self) -> Path:
        return self.folder / "usr" / "src" / f"linux-headers-{self.release}"


def unpacked(folder: Path) -> Kernel:
    """The kernel that is in a folder. Raises CannotBoot if there is none."""
    done = folder / "release"
    if not done.exists():
        raise CannotBoot(f"{folder}: no kernel there: expected `make test-vm` to have fetched one")
    return Kernel(folder, done.read_text().strip())


def fetch(folder: Path) -> Kernel:
    """Install the tools, and unpack kernel and headers below the folder, unless they are there. Raises CannotBoot."""
    if shutil.which("apt-get") is None:
        raise CannotBoot("there is no apt-get: the guest is Debian's kernel, which is fetched by apt")
    _install({package for command, package in TOOLS.items() if shutil.which(command) is None})
    names = _depends(META)
    if not names:
        raise CannotBoot(f"{META} depends on no kernel: expected Debian's")
    release = names[0].removeprefix("linux-image-")
    try:
        if (found := unpacked(folder)).release == release:
            return found
    except CannotBoot:
        pass
    shutil.rmtree(folder, ignore_errors=True)
    headers = _headers(release)
    _unpack(folder, [f"linux-image-{release}", *headers])
    _install({name for package in headers for name in _depends(package) if not name.startswith("linux-") and not _is_installed(name)})
    kernel = Kernel(folder, release)
    _point_headers(kernel)
    _run(["depmod", "-b", str(folder), release])
    (folder / "release").write_text(release + "\n")
    return kernel


def kernel_source(kernel: Kernel, folder: str) -> dict[str, bytes]:
    """The files of one folder of the kernel's sources, without those below it. The package of all sources is fetched, and is gone again; it is that
    of the kernel's series, whose interfaces to modules stay. Raises CannotBoot."""
    series = ".".join(kernel.release.split(".")[:2])
    with tempfile.TemporaryDirectory(prefix="ctmirror-source-") as name:
        place = Path(name)
        _updated(["apt-get", "download", "-q", f"linux-source-{series}"], place)
        (package,) = place.glob("*.deb")
        _run(["dpkg-deb", "-x", str(package), name])
        (packed,) = place.glob("usr/src/*.tar.*")
        _run(["tar", "-x", "-f", str(packed), "-C", name, f"linux-source-{series}/{folder}"])
        return {path.name: path.read_bytes() for path in (place / f"linux-source-{series}" / folder).iterdir() if path.is_file()}


def _install(packages: Collection[str]) -> None:
    if packages:
        _updated(["apt-get", "install", "-y", "-q", "--no-install-recommends", *sorted(packages)])


def _is_installed(package: str) -> bool:
    return "install ok installed" in _run(["dpkg-query", "-W", "-f", "${Status}", package], tolerant=True)


def _headers(release: str) -> list[str]:
    """What is unpacked to build a module: the headers and those of their dependencies that are the kernel's. The compiler they name is installed."""
    top = f"linux-headers-{release}"
    return [top, *(name for name in _depends(top) if name.startswith("linux-"))]


def _unpack(folder: Path, packages: Sequence[str]) -> None:
    files = folder / "packages"
    files.mkdir(parents=True)
    _updated(["apt-get", "download", "-q", *packages], files)
    for each in sorted(files.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(each), str(folder)])
    shutil.rmtree(files)


def _point_headers(kernel: Kernel) -> None:
    """Debian's headers name each other by where they are installed, and here they are not."""
    for name in ("Makefile", ".kernelvariables"):
        file = kernel.headers / name
        if file.exists():
            file.write_text(file.read_text().replace("/usr/src/", f"{kernel.folder.resolve()}/usr/src/"))


def _depends(package: str) -> list[str]:
    """The packages that one depends on; after a look at what the archive has today, if it is not known."""
    for again in (False, True):
        if again:
            _run(["apt-get", "update", "-q"])
        lines = _run(["apt-cache", "depends", package], tolerant=True).splitlines()
        if lines:
            return [line.split()[-1] for line in lines if line.strip().startswith("Depends:")]
    raise CannotBoot(f"apt knows no {package}: expected the archive of Debian")


def _updated(command: Sequence[str], folder: Path | None = None) -> None:
    """A command of apt; if it fails, once more with new lists of packages."""
    try:
        _run(command, folder)
    except CannotBoot:
        _run(["apt-get", "update", "-q"])
        _run(command, folder)


def _run(command: Sequence[str], folder: Path | None = None, tolerant: bool = False) -> str:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, env=environment)
    if done.returncode and not tolerant:
        raise CannotBoot(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1:
        sys.exit("usage: python -m pcap_tests.vm.packages FOLDER")
    try:
        kernel = fetch(Path(argv[0]))
    except (CannotBoot, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"no kernel to boot: {error}")
    print(f"kernel {kernel.release} in {kernel.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
