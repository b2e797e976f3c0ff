"""Giving up rights: once everything is open, a node goes on as another user and without capabilities.

Theory of operation: rights are the thread's in Linux. setresuid(3) of the C library changes all threads, capset(2) only the one that calls it, and a
new thread has those of its maker. So drop() comes when everything is open and before the first thread begins; whoever needs a capability later has
it kept until then, and every thread that does not calls shed() first.

    opening interfaces, sockets, BPF      all there is
    the kernel's connections (adopt)      NET_ADMIN, until they are taken over
    the thread of neighbours              NET_ADMIN: it makes the kernel ask for them
    threads of offloading to TC           NET_ADMIN: filters and connections are the kernel's
    the main thread                       NET_ADMIN if it has something to give back: connections (handover), an interface's GRO
    packets, commands, metrics            none; so an interface that has gone cannot be opened again

What is open stays usable without: AF_XDP, AF_PACKET, tap and BPF links ask for rights when they are made, not when they are used.
Invariants: drop() either does all of it or raises; afterwards no program that is started gets a right back (no_new_privs, an empty bounding set where
the process may empty it).
Not here: which section of the configuration says so (config), the order of a start (service).
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ctcore.errors import ConfigError

# linux/capability.h, linux/prctl.h
CAPABILITIES = {"SETPCAP": 8, "NET_ADMIN": 12, "NET_RAW": 13, "BPF": 39}
NET_ADMIN = frozenset({"NET_ADMIN"})
NONE: frozenset[str] = frozenset()
CAPABILITY_VERSION = 0x20080522
PR_SET_KEEPCAPS, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 8, 24, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
EPERM, EINVAL = 1, 22
THREADS = Path("/proc/self/task")

_libc = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    """32 capabilities; two of these hold all."""

    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def _checked(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise ConfigError(f"privileges: {what}: {os.strerror(number)}")


def mask_of(names: Collection[str]) -> int:
    return sum(1 << CAPABILITIES[name] for name in names)


def permitted() -> int:
    """The capabilities this thread has, a bit each."""
    sets = (_Sets * 2)()
    _checked(_libc.capget(ctypes.byref(_Header(CAPABILITY_VERSION, 0)), sets), "capget")
    return int(sets[0].permitted | sets[1].permitted << 32)


def keep_only(names: Collection[str]) -> None:
    """This thread has no capabilities but these from now on, as far as it has them. Raises ConfigError if the kernel refuses."""
    mask = mask_of(names) & permitted()
    sets = (_Sets * 2)(*(_Sets(word, word, 0) for word in (mask & 0xFFFFFFFF, mask >> 32)))
    _checked(_libc.capset(ctypes.byref(_Header(CAPABILITY_VERSION, 0)), sets), "capset")


@dataclass(frozen=True)
class Account:
    """Whom to become."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def account_of(name: str) -> Account:
    """Raises ConfigError if there is no such user."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        raise ConfigError(f"privileges: user: there is no user {name!r} on this machine") from None
    return Account(name, found.pw_uid, found.pw_gid, tuple(os.getgrouplist(name, found.pw_gid)))


def drop(account: Account | None, keep: Collection[str]) -> None:
    """Become that user, if one is given, and keep these capabilities only. All of the process, which has one thread yet.

    Raises ConfigError if the kernel refuses, RuntimeError if there are other threads, which would keep what they have.
    """
    if len(threads := os.listdir(THREADS)) != 1:
        raise RuntimeError(f"privileges: {len(threads)} threads: expected one")
    if permitted() & mask_of(("SETPCAP",)):  # without it, no_new_privs has to do
        _empty_bounding_set()
    if account is not None and os.getuid() != account.uid:
        _become(account)
    _checked(_libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "ambient capabilities")
    keep_only(keep)
    _checked(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def _empty_bounding_set() -> None:
    """As far as the kernel has capabilities: the first number that it does not know is the end."""
    for number in range(64):
        if _libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
            if ctypes.get_errno() == EINVAL:
                return
            _checked(-1, "bounding set")


def _become(account: Account) -> None:
    _checked(_libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0), "keeping capabilities")
    try:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise ConfigError(f"privileges: user: cannot become {account.name}: {error.strerror}: expected root at the start") from None
    _checked(_libc.prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0), "keeping capabilities")


class Rights:
    """What a node does with its rights, step by step. account: whom to become; wanted: whether anything is to be given up at all."""

    def __init__(self, account: Account | None = None, wanted: bool = False) -> None:
        self.account, self.wanted = account, wanted

    def drop(self) -> None:
        """Everything is open, and no thread has begun. Raises ConfigError, RuntimeError."""
        if self.wanted:
            drop(self.account, NET_ADMIN)

    def begun(self, ends: Collection[str]) -> None:
        """Connections are taken over. ends: what this thread needs in the end."""
        if self.wanted:
            keep_only(ends)

    def shed(self) -> None:
        """The first thing that a thread does which needs nothing."""
        if self.wanted:
            keep_only(NONE)

    def told(self) -> str:
        """What has become of them, for the log."""
        if not self.wanted:
            return "running as root: privileges.user gives that up once everything is open" if os.geteuid() == 0 else ""
        left = ", ".join(sorted(name for name in CAPABILITIES if permitted() & mask_of((name,))))
        return f"running as {user_name()}, {'with ' + left if left else 'without capabilities'}"


def user_name() -> str:
    """Of whom this process is."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def group_names() -> str:
    """The groups of this process, for messages."""
    names = []
    for number in sorted({os.getegid(), *os.getgroups()}):
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            names.append(str(number))
    return ", ".join(names)


def check_access(rules: str, state: str | None) -> None:
    """Whether this process, as it is now, can read its rules again and save its state. Raises ConfigError."""
    if not os.access(rules, os.R_OK, effective_ids=True):
        raise ConfigError(f"rules: {rules}: {user_name()} cannot read it (groups: {group_names()}): expected a file that it can read again at SIGHUP")
    if state is not None:
        folder = Path(state).parent
        if not folder.is_dir():
            raise ConfigError(f"state.file: {folder}: no such folder: expected one of its own, for the connections to be saved in")
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise ConfigError(
                f"state.file: {folder}: {user_name()} cannot write there: expected a folder of its own, for the connections to be saved in"
            )
