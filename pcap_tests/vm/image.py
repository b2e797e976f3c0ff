"""What QEMU boots: the kernel out of its compressed image, and an archive of files that the kernel begins with (initramfs).

The kernel is unpacked here, since the guest would need seconds to do so itself. Not here: packages, QEMU (machine).
"""

from __future__ import annotations

import lzma
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

# offsets in a bzImage (Documentation/x86/boot.rst): sectors of setup code, magic, where the payload is behind the protected-mode code, its length
SETUP_SECTORS, MAGIC, PAYLOAD = 0x1F1, 0x202, 0x248
SECTOR = 512
FOLDER, FILE, LINK, DEVICE = 0o040755, 0o100644, 0o120777, 0o020600
EXECUTABLE = 0o100755


class BadImage(Exception):
    """Not an image of a kernel that is understood here."""


def vmlinux(image: bytes) -> bytes:
    """The ELF file in a bzImage that is compressed by xz or gzip. Raises BadImage."""
    if image[MAGIC : MAGIC + 4] != b"HdrS":
        raise BadImage("no bzImage: expected HdrS at 0x202")
    offset, length = struct.unpack_from("<II", image, PAYLOAD)
    start = ((image[SETUP_SECTORS] or 4) + 1) * SECTOR + offset
    packed = image[start : start + length]
    if packed.startswith(b"\xfd7zXZ\0"):
        found = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x1f\x8b"):
        found = zlib.decompress(packed, 31)
    else:
        raise BadImage(f"compressed in an unknown way: {packed[:6].hex()}")
    if not found.startswith(b"\x7fELF"):
        raise BadImage("no ELF file in it")
    return found


# --- the archive ------------------------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A file of an archive. device: major and minor number."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def archive(entries: Iterable[Entry]) -> bytes:
    """A cpio archive of the "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst), with the folders that files lie in."""
    out = bytearray()
    for number, entry in enumerate([*_with_folders(entries), Entry("TRAILER!!!", 0)], 1):
        name = entry.name.encode() + b"\0"
        fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += bytes(-len(out) % 4) + entry.data
        out += bytes(-len(out) % 4)
    return bytes(out + bytes(-len(out) % SECTOR))


def _with_folders(entries: Iterable[Entry]) -> Iterator[Entry]:
    made: set[str] = set()
    for entry in entries:
        parts = entry.name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in made:
                made.add(folder)
                yield Entry(folder, FOLDER)
        if entry.mode == FOLDER:
            made.add(entry.name)
        yield entry


# --- modules ----------------------------------------------------------------------------------------------------------------------------


def needed(listing: str, names: Iterable[str]) -> list[str]:
    """The modules of these names and all that they need, in the order in which they are loaded. listing: modules.dep. What is built in is not
    there."""
    depends = {path: rest.split() for path, _, rest in (line.partition(":") for line in listing.splitlines() if line)}
    by_name = {module_name(path): path for path in depends}
    found: dict[str, None] = {}
    for name in names:
        path = by_name.get(name)
        if path is not None:
            found |= dict.fromkeys([*reversed(depends[path]), path])
    return list(found)


def module_name(path: str) -> str:
    return re.sub(r"\.ko.*", "", Path(path).name).replace("-", "_")


def module_bytes(path: Path) -> bytes:
    """A module as insmod of busybox takes it."""
    data = path.read_bytes()
    return lzma.decompress(data) if path.suffix == ".xz" else data
