"""The machine's own tc as reader of rules: what it makes of a line is the netlink message it sends to the kernel.

Theory of operation: tc exits before it sends anything if its parser does not take a line, and sends a request if it does, whatever the kernel says of
that. A library of a few lines, compiled here and loaded before libc, writes each message that tc sends to a file. So two lines mean the same to tc if
their messages are equal; and no classifier need be in the kernel. It all happens in a network namespace of this process, whose devices tc looks up.
Not here: what the attributes mean (test_tc_itself), rules.
"""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import subprocess
from pathlib import Path

from datapath.oracle.namespace import Namespace

RTM_NEWQDISC, RTM_NEWTFILTER, RTM_NEWCHAIN = 36, 44, 100
NLA_TYPE = 0x3FFF
PAIRS = (("eth0", "eth1"), ("vf0", "vf1"))

SPY = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/socket.h>
#include <sys/uio.h>
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    const char *name = getenv("TC_SENT");
    int file = name ? open(name, O_WRONLY | O_APPEND) : -1;
    if (file >= 0) {
        if (writev(file, message->msg_iov, message->msg_iovlen) < 0) _exit(99);
        close(file);
    }
    return real(fd, message, flags);
}
"""


class Refused(Exception):
    """tc's parser did not take a line; what it said."""


class Tc:
    """tc in a namespace with DEVICES. close() ends it."""

    def __init__(self, folder: Path) -> None:
        self.library, self.sent = folder / "spy.so", folder / "sent"
        source = folder / "spy.c"
        source.write_text(SPY)
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", self.library, source, "-ldl"], check=True, capture_output=True)
        self.namespace = Namespace()
        with self.namespace.netlink() as netlink:
            for name, peer in PAIRS:
                netlink.link("add", ifname=name, kind="veth", peer={"ifname": peer})

    def close(self) -> None:
        os.close(self.namespace.fd)

    def said(self, *words: str) -> str:
        """What tc prints, on either stream."""
        done = subprocess.run(["tc", *words], capture_output=True, text=True, timeout=10)
        return done.stdout + done.stderr

    def request(self, line: str) -> bytes:
        """The request that tc makes of a line: struct tcmsg and attributes. Raises Refused if it makes none."""
        self.sent.write_bytes(b"")
        words = shlex.split(line)
        assert words[0] == "tc"
        environment = os.environ | {"LD_PRELOAD": str(self.library), "TC_SENT": str(self.sent)}
        with self.namespace.entered():
            done = subprocess.run(words, capture_output=True, text=True, timeout=10, env=environment)
        for kind, body in messages(self.sent.read_bytes()):
            if kind in (RTM_NEWQDISC, RTM_NEWTFILTER, RTM_NEWCHAIN):
                return body
        raise Refused(f"{line}\n{done.stderr}")


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """Netlink messages back to back: type and what is behind the header."""
    found, at = [], 0
    while at < len(data):
        length, kind = struct.unpack_from("IH", data, at)
        found.append((kind, data[at + 16 : at + length]))
        at += length + 3 & ~3
    return found


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type, without their flags; of equal ones the last counts, as for the kernel."""
    found, at = {}, 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("HH", data, at)
        assert length >= 4
        found[kind & NLA_TYPE] = data[at + 4 : at + length]
        at += length + 3 & ~3
    return found


def obstacle() -> str | None:
    """Why tc cannot be asked here, or None."""
    for tool in ("tc", "gcc"):
        if shutil.which(tool) is None:
            return f"there is no {tool}"
    if os.geteuid() != 0:
        return "needs root for a network namespace"
    return None
