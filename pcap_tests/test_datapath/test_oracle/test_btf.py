"""The kernel's types: found by name, and named where they are not there."""

from __future__ import annotations

import struct

import pytest

from datapath.errors import KernelError
from datapath.oracle import btf
from datapath.oracle.btf import MAGIC, Types

STRUCT, UNION, INT, CONST, TYPEDEF, ENUM = 4, 5, 1, 10, 8, 6


class Image:
    """BTF written by hand: types count from 1 in the order of their adding."""

    def __init__(self) -> None:
        self.names, self.types = b"\0", b""

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.names += text.encode() + b"\0"
        return len(self.names) - len(text) - 1

    def add(self, kind: int, name: str, size_or_type: int, *tail: int, members: int = 0) -> None:
        self.types += struct.pack("<III", self.name(name), kind << 24 | members, size_or_type) + struct.pack(f"<{len(tail)}I", *tail)

    def bytes(self) -> bytes:
        head = struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, 0, len(self.types), len(self.types), len(self.names))
        return head + self.types + self.names


@pytest.fixture
def types() -> Types:
    """struct point { int x; const union { int y; struct { int deep; }; }; }; typedef struct point spot; enum { ZERO, SEVEN = 7 }"""
    image = Image()
    image.add(INT, "int", 4, 32)  # 1
    image.add(STRUCT, "", 4, image.name("deep"), 1, 0, members=1)  # 2
    image.add(UNION, "", 4, image.name("y"), 1, 0, 0, 2, 0, members=2)  # 3
    image.add(CONST, "", 3)  # 4
    image.add(STRUCT, "point", 8, image.name("x"), 1, 0, 0, 4, 32, members=2)  # 5
    image.add(STRUCT, "line", 16, image.name("from"), 5, 0, image.name("to"), 5, 64, members=2)  # 6
    image.add(TYPEDEF, "spot", 5)  # 7
    image.add(ENUM, "numbers", 4, image.name("ZERO"), 0, image.name("SEVEN"), 7, members=2)  # 8
    return Types(image.bytes())


def test_members_are_found_through_structs_unions_and_qualifiers(types: Types) -> None:
    assert types.offset("point", "x") == 0 and types.offset("point", "y") == 4 and types.offset("point", "deep") == 4
    assert types.offset("line", "to.x") == 8 and types.offset("line", "to.deep") == 12
    assert types.size("line") == 16 and types.typedef("spot") == 7 and types.enum_value("SEVEN") == 7


@pytest.mark.parametrize(
    "ask",
    [
        lambda types: types.offset("point", "z"),
        lambda types: types.offset("circle", "x"),
        lambda types: types.size("spot"),
        lambda types: types.typedef("point"),
        lambda types: types.enum_value("EIGHT"),
    ],
)
def test_what_is_not_there_is_named(types: Types, ask) -> None:
    with pytest.raises(KernelError, match=r"this kernel.*(z|circle|spot|point|EIGHT)"):
        ask(types)


def test_a_kernel_that_does_not_describe_itself(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(btf, "VMLINUX", tmp_path / "vmlinux")
    btf.kernel_types.cache_clear()
    try:
        with pytest.raises(KernelError, match="vmlinux: No such file or directory: expected a kernel with CONFIG_DEBUG_INFO_BTF"):
            btf.kernel_types()
        (tmp_path / "vmlinux").write_bytes(b"\x7fELF" + bytes(40))
        with pytest.raises(KernelError, match="expected BTF"):
            btf.kernel_types()
    finally:
        btf.kernel_types.cache_clear()
