"""`ctmirror offload install` and `remove` in a kernel that is none: what they say, what they leave, whether they wait, and exit codes. What has to be
done: test_install; in a real kernel: pcap_tests/vm/test_vm_install."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from datapath import doctor
from datapath.commands.offload_install import WAITS
from datapath.commands.tc import ask
from datapath.pipeline.rules import Qdisc
from pcap_tests.test_datapath.command import run
from pcap_tests.test_datapath.test_tc.followed import ONE, THROUGH, Tc

REFUSED = "Operation not supported: not today"


class Here(Tc):
    """Of the commands: a context manager, which knows its interfaces."""

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_) -> None:
        self.closed = True

    def listed(self, hooks):
        hooks = list(hooks)
        for hook in hooks:
            self.devices[hook.device]  # KeyError, as of the kernel's
        return super().listed(hooks)

    def hooks(self):
        return list({key[0]: None for key in self.rules})


@pytest.fixture
def kernel(monkeypatch) -> Here:
    made = Here()
    monkeypatch.setattr(ask, "KernelTc", lambda mark: made)
    monkeypatch.setattr(doctor, "_effective_capabilities", lambda: 1 << 12)
    return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my.tc"
    path.write_text(ONE)
    return path


@pytest.fixture
def alarm():
    """Who waits although nothing went in would wait for ever."""
    late = threading.Timer(10, os.kill, (os.getpid(), signal.SIGTERM))
    late.start()
    yield late
    late.cancel()


@pytest.mark.parametrize("options", [(), ("--until-exit",)])
def test_where_every_rule_is_refused_nothing_stays_and_nothing_is_waited_for(kernel, file, alarm, capfd, options):
    kernel.refuses = {1, 2}
    code, out, err = run(capfd, "offload", "install", file, *options)
    assert alarm.is_alive(), "it has waited"
    assert (code, out) == (1, "rules: 0 added, 0 changed, 0 removed, 2 refused; 0 as they were\n")
    assert err.startswith(f"ctmirror: {file}:") and err.endswith(f"{REFUSED} (and 1 more for the same reason)\n") and len(err.splitlines()) == 1
    assert (kernel.rules, kernel.qdiscs) == ({}, {})


def test_where_every_rule_is_refused_what_was_there_before_stays(kernel, file, capfd):
    kernel.add_qdisc(Qdisc("eth0"))
    kernel.refuses = {1, 2}
    assert run(capfd, "offload", "install", "-q", file)[0] == 1
    assert list(kernel.qdiscs) == ["eth0"]


def test_where_some_are_refused_the_others_stay_with_their_qdisc(kernel, file, capfd):
    kernel.refuses = {2}
    code, out, err = run(capfd, "offload", "install", file)
    assert (code, out) == (1, "rules: 1 added, 0 changed, 0 removed, 1 refused; 0 as they were\n") and err.endswith(f"{REFUSED}\n")
    assert kernel.prios == [1] and list(kernel.qdiscs) == ["eth0"]


def test_rules_of_ours_that_may_not_be_changed_stay(kernel, file, capfd):
    run(capfd, "offload", "install", "-q", file)
    kernel.refuses = {1, 2}
    file.write_text(ONE.replace("goto chain 1", "drop").replace("pass", "drop"))
    code, out, _ = run(capfd, "offload", "install", file)
    assert (code, out) == (1, "rules: 0 added, 0 changed, 0 removed, 2 refused; 0 as they were\n")
    assert kernel.prios == [1, 2] and list(kernel.qdiscs) == ["eth0"]


@pytest.mark.parametrize(("options", "said"), [((), f"ctmirror: {WAITS}\n"), (("-q",), "")])
def test_that_it_waits_is_said(kernel, file, capfd, options, said):
    waiting = threading.Event.wait

    def told(self, timeout=None):
        assert kernel.prios == [1, 2]
        os.kill(os.getpid(), signal.SIGTERM)
        return waiting(self, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading.Event, "wait", told)
        code, _, err = run(capfd, "offload", "install", file, "--until-exit", *options)
    assert (code, err) == (0, said) and (kernel.rules, kernel.qdiscs) == ({}, {})


def test_an_interface_that_is_not_here_is_told_with_its_place(kernel, file, capfd):
    kernel.devices = {}
    code, out, err = run(capfd, "offload", "install", file)
    assert (code, out, err) == (2, "", f"ctmirror: {file}:1:1: no interface eth0 here: expected those of the rules\n")
    file.write_text(THROUGH.partition("\n")[2])  # without the qdisc
    assert run(capfd, "offload", "remove", file)[2] == f"ctmirror: {file}:1:1: no interface eth0 here: expected those of the rules\n"


def test_to_remove_takes_the_right_to_also_where_there_is_nothing(kernel, file, capfd, monkeypatch):
    run(capfd, "offload", "install", "-q", file)
    monkeypatch.setattr(doctor, "_effective_capabilities", lambda: 0)
    for words in ((), (file,)):
        assert run(capfd, "offload", "remove", *words) == (2, "", "ctmirror: TC cannot be changed: not permitted: expected root, or cap_net_admin\n")
    code, out, err = run(capfd, "offload", "remove", "--dry-run")
    assert (code, len(out.splitlines()), err) == (0, 2, "") and kernel.prios == [1, 2]
    monkeypatch.setattr(doctor, "_effective_capabilities", lambda: 1 << 12)
    assert run(capfd, "offload", "remove") == (0, "2 rules removed\n", "") and kernel.prios == []
