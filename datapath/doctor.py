"""What this machine can do: a list of checks, each with what was found and what to do about what is missing.

Nothing is changed: namespaces are tried in a child process that ends at once, sockets are closed as they are opened, files are only read.
Not here: using any of it. A check is a function that returns a Finding; a new one is written and listed in CHECKS.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import platform
import re
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from datapath.extras import remedy

AF_XDP = 44
CAPABILITIES = {12: "net_admin", 13: "net_raw", 21: "sys_admin", 38: "perfmon", 39: "bpf"}
NEEDED_CAPABILITIES = (12, 13, 39)
CLONE_NEWNET = 0x40000000
BPF_SYSCALL = {"x86_64": 321, "aarch64": 280}
PROG_LOAD, PROG_TYPE_XDP = 5, 6
BPF_KERNEL = "use a kernel with CONFIG_BPF_SYSCALL"
BPF_ADVICE = {
    errno.EPERM: "run as root, or with cap_bpf and cap_net_admin",
    errno.ENOMEM: "raise the limit of locked memory (ulimit -l), which kernels before 5.11 count",
}
SIOCETHTOOL, ETHTOOL_GSTRINGS, ETHTOOL_GFEATURES, ETHTOOL_GSSET_INFO, ETH_SS_FEATURES = 0x8946, 0x1B, 0x3A, 0x37, 4
OWN_MODULES = ("capture.pyx", "worker.pyx")  # one of them, or its compiled form, tells our datapath from a stranger's
SYSCTL = Path("/proc/sys/net/netfilter")


@dataclass(frozen=True)
class Finding:
    """One line of the answer. ok: whether it is there; advice: what to do if not; needed: whether replay needs it."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    needed: bool = False


def python_version() -> Finding:
    return Finding("Python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or later", needed=True)


def numpy_version() -> Finding:
    try:
        import numpy
    except ImportError as error:
        return Finding("NumPy", False, str(error), "pip install 'numpy>=2'", needed=True)
    return Finding("NumPy", int(numpy.__version__.split(".")[0]) >= 2, numpy.__version__, "pip install 'numpy>=2'", needed=True)


def engine() -> Finding:
    """The compiled modules: loadable, and in agreement with the texts they are made from."""
    try:
        from ctcore import Config, Tracker, reasons
        from datapath import PcapSource, Pipeline  # noqa: F401

        Tracker(Config(max=16))
    except Exception as error:
        advice = "build it: make build, or pip install ctmirror again"
        if _strangers():
            advice = "see package name below; building again does not help"
        return Finding("engine", False, " ".join(str(error).split()), advice, needed=True)
    return Finding("engine", True, f"compiled, {len(reasons.NAMES)} reason codes", needed=True)


def name_clash() -> Finding:
    """Another distribution may install a top-level package `datapath` as well; the one that comes first on sys.path wins."""
    others = _strangers()
    owners = sorted(set(metadata.packages_distributions().get("datapath", [])) - {"ctmirror"})
    if not others and not owners:
        return Finding("package name", True, "the only package called datapath is ctmirror's", needed=True)
    found = f"another package called datapath: {', '.join(map(str, others)) or 'of ' + ', '.join(owners)}"
    listed = {Path(entry).absolute() for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry}
    folders = [str(place.parent) for place in others if place.parent.absolute() in listed]
    names = " ".join(owners) or "the project it belongs to"
    instead = f"take {' and '.join(folders)} out of PYTHONPATH" if folders else f"pip uninstall {names}"
    return Finding("package name", False, found, f"use an environment of its own for ctmirror, or {instead}", needed=True)


def _strangers() -> list[Path]:
    """Where on sys.path a package called datapath is that is not ours."""
    return [place for entry in dict.fromkeys(sys.path) if _is_other(place := Path(entry or ".") / "datapath")]


def _is_other(place: Path) -> bool:
    if not (place / "__init__.py").is_file():
        return False
    names = {entry.name for entry in place.iterdir()}
    return not any(own in names or any(n.startswith(own.removesuffix("pyx")) and n.endswith(".so") for n in names) for own in OWN_MODULES)


def whereabouts() -> Iterator[tuple[str, str]]:
    """Which files would be used: the interpreter, and each package as it is found first."""
    yield "interpreter", sys.executable
    for name in ("ctcore", "datapath", "offload"):
        spec = find_spec(name)
        yield name, (spec.origin or "?") if spec else "not found"


# By package: the extra that brings it, the least version of it, and what it is for.
EXTRAS = {
    "pyarrow": ("arrow", (15,), "Arrow and Parquet files"),
    "pydantic": ("rules", (2, 11), "rules in YAML, network policies, a node's settings, simulated NICs"),
    "PyYAML": ("rules", (6,), "rules in YAML, and network policies"),
    "prometheus-client": ("metrics", (0, 21), "metrics of a node"),
    "numba": ("nic", (0, 60), "simulated NICs: replay --nic, offload plan, why and audit"),
    "matplotlib": ("plot", (3, 8), "plots: offload plan --plot"),
}


def extra(package: str) -> Finding:
    """Whether a library is there that only some commands need, and new enough."""
    name, least, purpose = EXTRAS[package]
    shown, advice = package.partition("-")[0], f"{remedy(name)}: for {purpose}"
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError:
        return Finding(shown, False, "not installed", advice)
    if tuple(int(part) for part in re.findall(r"[0-9]+", version)[: len(least)]) < least:
        return Finding(shown, False, f"{version} is older than {'.'.join(map(str, least))}", advice)
    return Finding(shown, True, f"{version}, for {purpose}")


def arrow() -> Finding:
    return extra("pyarrow")


def models() -> Finding:
    return extra("pydantic")


def yaml() -> Finding:
    return extra("PyYAML")


def metrics() -> Finding:
    return extra("prometheus-client")


def compiler() -> Finding:
    return extra("numba")


def plots() -> Finding:
    return extra("matplotlib")


def kernel() -> Finding:
    release = platform.release()
    numbers = [int(part) for part in release.split("-")[0].split(".")[:2] if part.isdigit()]
    return Finding("kernel", platform.system() == "Linux" and numbers >= [5, 9], f"{platform.system()} {release}", "AF_XDP needs Linux 5.9 or later")


def _effective_capabilities() -> int:
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("CapEff:")).split()[1], 16)
    return 0


def holds(capability: str) -> bool:
    """Whether this process has one of CAPABILITIES, by name."""
    return any(_effective_capabilities() >> bit & 1 for bit, name in CAPABILITIES.items() if name == capability)


def privileges() -> Finding:
    held = _effective_capabilities()
    names = [name for bit, name in CAPABILITIES.items() if held >> bit & 1]
    who = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
    enough = all(held >> bit & 1 for bit in NEEDED_CAPABILITIES)
    return Finding("privileges", enough, f"{who}, with {', '.join(names) or 'none of the capabilities that matter'}",
                   "run as root, or with cap_net_admin, cap_net_raw and cap_bpf (replay needs none of them)")  # fmt: skip


def xdp_socket() -> Finding:
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW).close()
    except PermissionError:
        return Finding("AF_XDP socket", False, "not permitted", "run as root, or with cap_net_raw")
    except OSError as error:
        return Finding("AF_XDP socket", False, error.strerror or str(error), "use a kernel with CONFIG_XDP_SOCKETS")
    return Finding("AF_XDP socket", True, "can be created")


def bpf() -> Finding:
    """Loads the least XDP program there is, "pass", attached to nothing and gone with its descriptor."""
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        return Finding("BPF", False, f"unknown machine {platform.machine()}", "x86_64 and aarch64 are supported")
    error = _load_program(number)
    if error:
        return Finding("BPF", False, f"no XDP program can be loaded: {os.strerror(error)}", BPF_ADVICE.get(error, BPF_KERNEL))
    return Finding("BPF", True, "an XDP program can be loaded")


def _load_program(number: int) -> int:
    """Load `r0 = XDP_PASS; exit` by the system call of this number; 0, or the errno. Instructions: RFC 9669 5."""
    import ctypes

    code = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    program, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack("=IIQQ", PROG_TYPE_XDP, len(code) // 8, ctypes.addressof(program), ctypes.addressof(licence)).ljust(128, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    fd = libc.syscall(ctypes.c_long(number), ctypes.c_int(PROG_LOAD), buffer, ctypes.c_uint(len(attributes)))
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
    return 0


def conntrack() -> Finding:
    """The running kernel's tracker, if it is there, and how its settings differ from our defaults."""
    if not (SYSCTL / "nf_conntrack_max").exists():
        return Finding("nf_conntrack", False, "not loaded", "modprobe nf_conntrack, to see where its settings differ from the defaults here")
    from ctcore import spec

    strange = []
    for name, usual in {**spec.timeouts(), "tcp_be_liberal": 0, "tcp_loose": 1, "checksum": 1}.items():
        with suppress(OSError, ValueError):
            value = int((SYSCTL / f"nf_conntrack_{name}").read_text())
            strange += [f"{name}={value}"] if value != usual else []
    limit = (SYSCTL / "nf_conntrack_max").read_text().strip()
    differs = "; differs from the defaults in " + ", ".join(strange) if strange else "; timeouts as by default"
    return Finding("nf_conntrack", True, f"max {limit}{differs}")


def nftables() -> Finding:
    """A netlink socket to nfnetlink, and the module behind it."""
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12).close()
    except OSError as error:
        return Finding("nftables", False, error.strerror or str(error), "use a kernel with CONFIG_NF_TABLES")
    return _module("nftables", "nf_tables", "nft_do_chain", "use a kernel with CONFIG_NF_TABLES")


def namespaces() -> Finding:
    """A child makes a network namespace of its own and ends: nothing remains."""
    child = os.fork()
    if child == 0:
        os._exit(_try_namespace())
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code:
        return Finding("namespaces", False, os.strerror(code) if code > 0 else "the probe was killed", "run as root, to record traffic")
    return Finding("namespaces", True, "a network namespace can be made")


def _try_namespace() -> int:
    try:
        if hasattr(os, "unshare"):
            os.unshare(CLONE_NEWNET)
        else:
            import ctypes

            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET):
                return ctypes.get_errno()
    except OSError as error:
        return error.errno or 1
    return 0


@cache
def _kernel_names() -> frozenset[str]:
    """Names of the running kernel's functions, loaded modules included: they tell what is built in where no list of modules is at hand."""
    with suppress(OSError):
        return frozenset(line.split()[2] for line in Path("/proc/kallsyms").read_text().splitlines())
    return frozenset()


def _module(name: str, module: str, function: str, advice: str) -> Finding:
    """Whether a kernel module is loaded, built in (one of its functions is there), or can be loaded."""
    if Path(f"/sys/module/{module}").exists():
        return Finding(name, True, f"{module} is there")
    if function in _kernel_names():
        return Finding(name, True, f"{module} is built in")
    with suppress(OSError):
        listing = Path("/lib/modules") / platform.release() / "modules.dep"
        if any(f"/{module}.ko" in line.split(":")[0] for line in listing.read_text().splitlines()):
            return Finding(name, True, f"{module} can be loaded")
    return Finding(name, False, f"{module} is neither in the kernel nor among its modules", advice)


def judge() -> Finding:
    """Whether the running kernel can be asked, as `ctmirror diff` does: everything is tried, in namespaces of its own, and is gone again."""
    try:
        from datapath.oracle.oracle import obstacle
    except ImportError as error:
        return Finding("kernel as judge", False, str(error), "pip install ctmirror again")
    why = obstacle()
    return Finding("kernel as judge", not why, why or "ctmirror diff works", "needed for ctmirror diff and check --judge kernel")


def veth() -> Finding:
    return _module("veth", "veth", "veth_newlink", "use a kernel with CONFIG_VETH, to record and compare traffic")


def tc_flower() -> Finding:
    return _module("TC flower", "cls_flower", "fl_classify", "use a kernel with CONFIG_NET_CLS_FLOWER, for offload through TC")


def tc_ct() -> Finding:
    return _module("TC act_ct", "act_ct", "tcf_ct_act", "use a kernel with CONFIG_NET_ACT_CT, for offload through TC")


def huge_pages() -> Finding:
    """Transparent huge pages: tables of many connections miss the TLB less."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return Finding("huge pages", False, "no transparent huge pages", "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE, for speed")
    chosen = text[text.find("[") + 1 : text.find("]")]
    advice = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled, for speed with many connections"
    return Finding("huge pages", chosen != "never", f"transparent: {chosen}", advice)


def nics() -> Finding:
    """Interfaces whose feature hw-tc-offload can be switched on, or is."""
    names = [name for _, name in socket.if_nameindex() if name != "lo"]
    able = {name: state for name in names if (state := tc_offload(name))}
    if not able:
        return Finding(
            "NIC offload", False, f"none of {', '.join(names) or 'no interfaces'} has hw-tc-offload", "needs a NIC that offloads flower and ct"
        )
    return Finding("NIC offload", True, ", ".join(f"{name} ({state})" for name, state in able.items()))


def _ethtool(control: socket.socket, name: str, command: bytes) -> bytes:
    """One ethtool request; `command` is its buffer, which the kernel fills."""
    buffer = array.array("B", command)
    address, _ = buffer.buffer_info()
    fcntl.ioctl(control, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), address))
    return buffer.tobytes()


def tc_offload(name: str) -> str:
    """ "on", "off", or nothing if the interface has no such feature."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control, suppress(OSError):
        info = _ethtool(control, name, struct.pack("=IIQI", ETHTOOL_GSSET_INFO, 0, 1 << ETH_SS_FEATURES, 0))
        (count,) = struct.unpack_from("=I", info, 16)
        strings = _ethtool(control, name, struct.pack("=III", ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count) + bytes(32 * count))
        features = [strings[12 + 32 * i : 44 + 32 * i].split(b"\0")[0].decode() for i in range(count)]
        if "hw-tc-offload" not in features:
            return ""
        blocks = (count + 31) // 32
        state = _ethtool(control, name, struct.pack("=II", ETHTOOL_GFEATURES, blocks) + bytes(16 * blocks))
        at = features.index("hw-tc-offload")
        available, _, active, _ = struct.unpack_from("=4I", state, 8 + 16 * (at // 32))
        bit = 1 << at % 32
        return "on" if active & bit else "off" if available & bit else ""
    return ""


CHECKS: tuple[Callable[[], Finding], ...] = (
    python_version, numpy_version, engine, name_clash, arrow, models, yaml, metrics, compiler, plots, kernel, privileges, xdp_socket, bpf, conntrack,
    nftables, namespaces, veth, judge, tc_flower, tc_ct, huge_pages, nics,
)  # fmt: skip


def examine(more: Iterable[Callable[[], Finding]] = ()) -> Iterator[Finding]:
    """Every check's finding, and those of more. A check that fails in a way nobody thought of is a finding too."""
    for check in (*CHECKS, *more):
        try:
            yield check()
        except Exception as error:
            yield Finding(check.__name__, False, f"could not be checked: {' '.join(str(error).split())}", "please report this")


# Beside replay: what can be done, and which findings it takes.
USES = {
    "diff": ("kernel as judge",),
    "run by AF_XDP": ("pydantic", "privileges", "AF_XDP socket", "BPF"),
    "offload to the kernel's TC": ("privileges", "TC flower", "TC act_ct", "TC rules"),
    "offload to a NIC": ("NIC offload",),
}


def uses(findings: list[Finding]) -> Iterator[tuple[str, list[str]]]:
    """What can be done, with the names of what is missing for it; nothing of what was not looked at."""
    missing = {finding.name for finding in findings if not finding.ok}
    for use, names in USES.items():
        if any(finding.name in names for finding in findings):
            yield use, [name for name in names if name in missing]


def healthy(findings: list[Finding]) -> bool:
    """Whether replay can work."""
    return all(finding.ok for finding in findings if finding.needed)
