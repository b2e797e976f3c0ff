"""The running kernel's own description of its types (BTF): where members lie and what number a function has.

Nothing of a kernel's layout is written down in this project: what is read from it by offset is looked up here, so that another kernel either works
or is named as lacking something.
Not here: programs that use the offsets (probes). Invariant: a name that is not found raises KernelError and says which one.
Format: Documentation/bpf/btf.rst of Linux.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from pathlib import Path

import numpy as np

from datapath.errors import KernelError

VMLINUX = Path("/sys/kernel/btf/vmlinux")
MAGIC = 0xEB9F
STRUCT, UNION, ENUM, TYPEDEF = 4, 5, 6, 8
QUALIFIERS = (TYPEDEF, 9, 10, 11, 18)  # typedef, volatile, const, restrict, type tag: the type behind them counts
# Words behind the three common ones, by kind: (fixed, for each of vlen members).
TAILS = {1: (1, 0), 3: (3, 0), 4: (0, 3), 5: (0, 3), 6: (0, 2), 13: (0, 2), 14: (1, 0), 15: (0, 3), 17: (1, 0), 19: (0, 3)}


class Types:
    """The types of one kernel image, by name."""

    def __init__(self, data: bytes) -> None:
        magic, _, _, header, types_at, types_size, names_at, names_size = struct.unpack_from("<HBBIIIII", data)
        if magic != MAGIC:
            raise KernelError(f"{VMLINUX}: expected BTF of a little-endian kernel")
        self.names = data[header + names_at : header + names_at + names_size]
        self.words = np.frombuffer(data, "<u4", types_size // 4, header + types_at).tolist()
        self.starts = self._starts()
        self.by_name: dict[tuple[int, int], int] = {}
        for number, at in enumerate(self.starts):
            if number:
                self.by_name.setdefault((self.words[at + 1] >> 24 & 0x1F, self.words[at]), number)

    def _starts(self) -> list[int]:
        """Where each type begins in words; types count from 1."""
        words, at, starts = self.words, 0, [0]
        while at < len(words):
            starts.append(at)
            info = words[at + 1]
            fixed, each = TAILS.get(info >> 24 & 0x1F, (0, 0))
            at += 3 + fixed + each * (info & 0xFFFF)
        return starts

    def _number(self, kind: int, name: str) -> int:
        """The number of the first type of this name."""
        at = self.names.find(b"\0" + name.encode() + b"\0")
        while at >= 0:
            if (kind, at + 1) in self.by_name:
                return self.by_name[kind, at + 1]
            at = self.names.find(b"\0" + name.encode() + b"\0", at + 1)
        raise KernelError(
            f"this kernel has no {'type' if kind == TYPEDEF else 'struct'} {name}: expected Linux 6.4 or later with nf_conntrack built in"
        )

    def typedef(self, name: str) -> int:
        """Its number; a program attaches to tracepoint x under that of btf_trace_x."""
        return self._number(TYPEDEF, name)

    def enum_value(self, name: str) -> int:
        """The value of an enumerator. KernelError if no enum has one of this name."""
        at = self.names.find(b"\0" + name.encode() + b"\0") + 1
        for start in self.starts[1:]:
            info = self.words[start + 1]
            if info >> 24 & 0x1F == ENUM:
                for i in range(start + 3, start + 3 + 2 * (info & 0xFFFF), 2):
                    if self.words[i] == at:
                        return self.words[i + 1]
        raise KernelError(f"this kernel has no {name}: expected Linux 6.4 or later with nf_conntrack built in")

    def size(self, name: str) -> int:
        """Bytes of `struct name`."""
        return self.words[self.starts[self._number(STRUCT, name)] + 2]

    def _behind(self, number: int) -> int:
        while self.words[self.starts[number] + 1] >> 24 & 0x1F in QUALIFIERS:
            number = self.words[self.starts[number] + 2]
        return number

    def _member(self, number: int, name: str) -> tuple[int, int] | None:
        """Offset in bits and type of a member, looked for in members without a name as well."""
        at = self.starts[number]
        flagged = self.words[at + 1] >> 31
        for i in range(self.words[at + 1] & 0xFFFF):
            called, kind, offset = self.words[at + 3 + 3 * i : at + 6 + 3 * i]
            offset &= 0xFFFFFF if flagged else 0xFFFFFFFF
            kind = self._behind(kind)
            if called == 0 and self.words[self.starts[kind] + 1] >> 24 & 0x1F in (STRUCT, UNION):
                inner = self._member(kind, name)
                if inner:
                    return offset + inner[0], inner[1]
            elif self.names.startswith(name.encode() + b"\0", called):
                return offset, kind
        return None

    def offset(self, struct_name: str, path: str) -> int:
        """Bytes from the beginning of `struct struct_name` to a member; path: names joined by dots."""
        number, bits = self._number(STRUCT, struct_name), 0
        for name in path.split("."):
            found = self._member(number, name)
            if found is None:
                raise KernelError(f"this kernel's struct {struct_name} has no {path}: expected Linux 6.4 or later")
            bits, number = bits + found[0], found[1]
        return bits // 8


@lru_cache(1)
def kernel_types() -> Types:
    """Those of the running kernel. KernelError if it does not tell."""
    try:
        data = VMLINUX.read_bytes()
    except OSError as error:
        raise KernelError(f"{VMLINUX}: {error.strerror}: expected a kernel with CONFIG_DEBUG_INFO_BTF") from None
    return Types(data)
