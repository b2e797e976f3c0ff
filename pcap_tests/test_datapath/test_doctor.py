"""What doctor finds, what it advises, and that it leaves everything as it was."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from datapath import doctor
from datapath.cli import main
from datapath.doctor import Finding

ROOT = Path(__file__).parents[2]


def test_replay_can_work_where_the_tests_run(capfd):
    assert main(["doctor"]) == 0
    out = capfd.readouterr().out
    assert "replay can work here" in out
    lines = out.splitlines()[: len(doctor.CHECKS)]
    assert all(line.startswith(("ok  ", "missing  ")) for line in lines)
    assert all(" -> " in line for line in lines if line.startswith("missing"))


def test_what_replay_needs_decides_the_exit_code(capfd, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Finding("engine", False, "gone", "build it", needed=True),))
    assert main(["doctor"]) == 1
    assert "missing  engine         gone -> build it" in capfd.readouterr().out


def test_what_only_others_need_does_not(capfd, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: Finding("NIC offload", False, "none", "buy one"),))
    assert main(["doctor"]) == 0


def test_what_can_be_done_is_said_with_what_it_lacks(capfd, monkeypatch):
    findings = [
        *(lambda name=name: Finding(name, True, "there") for name in ("kernel as judge", "pydantic", "privileges", "AF_XDP socket", "BPF")),
        *(lambda name=name: Finding(name, False, "none", "buy one") for name in ("TC flower", "NIC offload")),
    ]
    monkeypatch.setattr(doctor, "CHECKS", findings)
    monkeypatch.setattr("datapath.commands.doctor.tc_rules", lambda: Finding("TC rules", False, "none", "buy one"))
    assert main(["doctor"]) == 0
    assert capfd.readouterr().out.splitlines()[-5:] == [
        "replay can work here", "diff can work here", "run by AF_XDP can work here",
        "offload to the kernel's TC cannot work here: TC flower, TC rules", "offload to a NIC cannot work here: NIC offload",
    ]  # fmt: skip


def test_what_is_named_is_looked_at():
    looked_at = {finding.name for finding in doctor.examine()} | {"TC rules"}
    assert {name for names in doctor.USES.values() for name in names} <= looked_at


def test_a_check_that_breaks_is_a_finding(monkeypatch):
    def broken():
        raise RuntimeError("surprise")

    monkeypatch.setattr(doctor, "CHECKS", (broken,))
    (finding,) = doctor.examine()
    assert (finding.ok, finding.found) == (False, "could not be checked: surprise")


def test_nothing_is_left_behind():
    """Namespaces, interfaces, children and open files are as before."""

    def surroundings():
        return (os.readlink("/proc/self/ns/net"), socket.if_nameindex(), sorted(os.listdir("/proc/self/fd")), os.getcwd())

    before = surroundings()
    list(doctor.examine())
    assert surroundings() == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_stranger_s_datapath_is_recognised(monkeypatch, tmp_path):
    (tmp_path / "datapath").mkdir()
    (tmp_path / "datapath" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = doctor.name_clash()
    assert not finding.ok
    assert finding.needed
    assert str(tmp_path / "datapath") in finding.found


@pytest.fixture
def stranger(tmp_path):
    """A folder with somebody else's package called datapath."""
    (tmp_path / "datapath").mkdir()
    (tmp_path / "datapath" / "__init__.py").write_text("")
    return tmp_path


def test_a_clash_is_not_said_to_be_mended_by_building(stranger):
    """In a process of its own, in which the stranger's package is found first and the modules of ours behind it."""
    code = f"import datapath, sys; datapath.__path__.append({str(ROOT / 'datapath')!r}); from datapath.cli import main; sys.exit(main(['doctor']))"
    environment = {**os.environ, "PYTHONPATH": f"{stranger}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=60, env=environment, cwd=stranger)
    lines = {line[9:23].strip(): line for line in done.stdout.splitlines()}
    assert done.returncode == 1, done.stderr
    assert lines["engine"].startswith("missing") and "building again does not help" in lines["engine"]
    assert "make build" not in done.stdout
    assert f"take {stranger} out of PYTHONPATH" in lines["package name"]


@pytest.mark.parametrize(("error", "found", "advice"), [
    (0, "an XDP program can be loaded", ""), (errno.EPERM, "no XDP program can be loaded: Operation not permitted", "cap_bpf"),
    (errno.ENOSYS, "no XDP program can be loaded: Function not implemented", "CONFIG_BPF_SYSCALL"),
])  # fmt: skip
def test_bpf_is_there_if_a_program_can_be_loaded(monkeypatch, error, found, advice):
    monkeypatch.setattr(doctor, "_load_program", lambda _: error)
    finding = doctor.bpf()
    assert (finding.ok, finding.found) == (not error, found)
    assert advice in finding.advice


@pytest.mark.skipif(os.geteuid() != 0 and os.environ.get("CTMIRROR_REQUIRE_KERNEL") != "1", reason="needs root to become somebody else")
def test_without_rights_no_program_can_be_loaded():
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(65534)
        os._exit(0 if doctor._load_program(doctor.BPF_SYSCALL[os.uname().machine]) in (errno.EPERM, errno.EACCES) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("check", [doctor.tc_flower, doctor.tc_ct, doctor.veth])
def test_no_module_is_to_be_loaded_that_is_not_there(monkeypatch, check):
    monkeypatch.setattr(doctor, "_kernel_names", frozenset)
    monkeypatch.setattr(doctor, "Path", lambda *_: Path("/nonexistent"))
    finding = check()
    assert not finding.ok
    assert "modprobe" not in finding.advice and "use a kernel with CONFIG_" in finding.advice


def test_a_distribution_with_that_package_is_named(monkeypatch):
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: {"datapath": ["ctmirror", "datapath-thing"]})
    finding = doctor.name_clash()
    assert not finding.ok
    assert "pip uninstall datapath-thing" in finding.advice


def test_our_own_datapath_is_no_clash(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    assert doctor.name_clash().ok


@pytest.mark.parametrize(("error", "found"), [(errno.EPERM, "not permitted"), (errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))])
def test_a_socket_that_cannot_be_made(monkeypatch, error, found):
    def refused(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(doctor.socket, "socket", refused)
    finding = doctor.xdp_socket()
    assert (finding.ok, finding.found) == (False, found)


def test_the_probe_of_namespaces_reports_what_the_kernel_says(monkeypatch):
    monkeypatch.setattr(doctor, "_try_namespace", lambda: errno.EPERM)
    finding = doctor.namespaces()
    assert (finding.ok, finding.found) == (False, os.strerror(errno.EPERM))


def test_sysctls_that_differ_are_named(monkeypatch, tmp_path):
    (tmp_path / "nf_conntrack_max").write_text("1000\n")
    (tmp_path / "nf_conntrack_udp_timeout").write_text("7\n")
    (tmp_path / "nf_conntrack_tcp_loose").write_text("1\n")
    monkeypatch.setattr(doctor, "SYSCTL", tmp_path)
    assert doctor.conntrack().found == "max 1000; differs from the defaults in udp_timeout=7"


def test_a_module_that_is_nowhere(monkeypatch):
    monkeypatch.setattr(doctor, "_kernel_names", lambda: frozenset({"veth_newlink"}))
    assert doctor._module("x", "no_such_module", "no_such_function", "advice").ok is False
    assert doctor._module("veth", "no_such_module", "veth_newlink", "advice").found == "no_such_module is built in"


@pytest.mark.skipif(os.geteuid() != 0 and os.environ.get("CTMIRROR_REQUIRE_KERNEL") != "1", reason="needs root to become somebody else")
def test_doctor_needs_no_root():
    """In a child that has given up its rights; what it needs was loaded before, for others may not read this tree."""
    list(doctor.examine())
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setuid(65534)
        findings = {finding.name: finding for finding in doctor.examine()}
        told = not findings["privileges"].ok and "uid 65534" in findings["privileges"].found and not findings["namespaces"].ok
        os._exit(0 if told and doctor.healthy(list(findings.values())) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_every_extra_of_users_is_listed_with_what_it_is_for_and_as_new_as_it_has_to_be():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for package, (name, least, purpose) in doctor.EXTRAS.items():
        assert f"{package}>={'.'.join(map(str, least))}" in extras[name]
        assert purpose in doctor.extra(package).found
    needed = {re.split("[>=<;]", requirement)[0] for name, those in extras.items() if name not in ("test", "bench", "fuzz") for requirement in those}
    assert needed == set(doctor.EXTRAS)


@pytest.mark.parametrize("package", doctor.EXTRAS)
def test_a_library_that_is_missing_or_old_is_told_with_the_command_that_brings_it(monkeypatch, package):
    def missing(name):
        raise doctor.metadata.PackageNotFoundError(name)

    for version, said in ((missing, "not installed"), (lambda name: "0.1", "0.1 is older than ")):
        monkeypatch.setattr(doctor.metadata, "version", version)
        finding = doctor.extra(package)
        assert not finding.ok and not finding.needed and finding.found.startswith(said)
        name, _, purpose = doctor.EXTRAS[package]
        assert f"-m pip install 'ctmirror[{name}]', in a clone '.[{name}]': for {purpose}" in finding.advice


def test_tc_is_tried_in_a_namespace_and_says_the_kernels_sentence_or_that_it_works(capfd):
    main(["doctor"])
    (line,) = [line for line in capfd.readouterr().out.splitlines() if line[9:].startswith("TC rules ")]
    assert "tried in a namespace" in line if line.startswith("ok") else " -> use a kernel with flower" in line or " -> run as root" in line


def test_without_a_namespace_nothing_of_tc_is_tried(monkeypatch):
    """What the child does, here."""
    from datapath.commands import offload_probe

    monkeypatch.setattr(offload_probe, "CLONE_NEWNET", 1)  # which unshare(2) refuses
    finding = offload_probe.tc_rules()
    assert not finding.ok and finding.found == "no namespace to try them in: Invalid argument" and finding.advice.startswith("use a kernel with")


def test_who_may_not_try_tc_is_told_to_be_root(monkeypatch):
    """Another kernel would not help."""
    import ctypes
    import errno

    from datapath.commands import offload_probe

    class Libc:
        def unshare(self, flags: int) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    finding = offload_probe.tc_rules()
    assert (finding.ok, finding.found) == (False, "no namespace to try them in: Operation not permitted")
    assert finding.advice == "run as root, to have them tried"
