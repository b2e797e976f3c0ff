"""What a node may do once everything is open: nothing that it does not need, in any of its threads; and all that it has to do works all the same."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
import sys
import time
import urllib.request

import pytest

from ctcore.errors import ConfigError
from datapath.live import privileges
from datapath.live.client import Client
from datapath.live.config import parse
from datapath.live.message import RequestError
from pcap_tests.reachable import command
from pcap_tests.test_datapath.test_live.processes import process
from pcap_tests.test_datapath.test_live.wires import until

NOBODY = pwd.getpwnam("nobody")
NO_CAPABILITIES, NET_ADMIN = f"{0:016x}", f"{1 << 12:016x}"
PASS = "tc qdisc add dev left clsact\ntc filter add dev left ingress prio 1 protocol all flower action ct commit pipe action pass\n"
SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
THREE = "+net_raw,+net_admin,+bpf"
# Runs a command without memory that is written and executed (PR_SET_MDWE, Linux 6.3), as MemoryDenyWriteExecute= of a unit has it.
HARDENED = "import ctypes, os, sys; assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0; os.execv(sys.argv[1], sys.argv[1:])"


@pytest.fixture
def folder(tmp_path):
    """A node's folder, with one for its state that is nobody's own."""
    os.chmod(tmp_path, 0o755)
    (tmp_path / "state").mkdir()
    os.chown(tmp_path / "state", NOBODY.pw_uid, NOBODY.pw_gid)
    (tmp_path / "rules.tc").write_text(PASS)
    return tmp_path


def configure(folder, more: str, driver: str = "xdp-native", routed: bool = False) -> None:
    (folder / "node.toml").write_text(
        f'rules = "rules.tc"\n[[iface]]\nname = "left"\ndriver = "{driver}"\nring = 256\nrouted = {str(routed).lower()}\n'
        f'[control]\nsocket = "{folder}/run/s"\n[state]\nfile = "state/node.state"\n{more}'
    )


def send(wire, n: int) -> None:
    from datapath import craft

    with wire.end() as far:
        for i in range(n):
            far.send(craft.udp("10.0.0.1", "10.0.0.2", 1000 + i, 53, b"?"))


def rights(node) -> list[set[str]]:
    """Of each thread, the main one first: what its sets of capabilities are."""
    return [{fields[each] for each in SETS} for _, fields in sorted(node.threads().items())]


def works(node, wire, folder) -> None:
    """What has to work without rights: packets, commands, other rules, saving."""
    send(wire, 5)
    with Client(f"{folder}/run/s") as client:
        until(lambda: client.ask("count")["count"] == 5, "five connections")
        (folder / "rules.tc").write_text(PASS + PASS.splitlines()[1].replace("prio 1", "prio 2") + "\n")
        node.reload()
        assert client.ask("stats")["rules"]["rules"] == 2
        assert client.ask("save")["connections"] == 5
    about = os.stat(folder / "state/node.state")
    assert (about.st_uid, stat.S_IMODE(about.st_mode)) == (NOBODY.pw_uid, 0o600)
    os.unlink(folder / "state/node.state")
    assert node.stop() == 0
    assert os.path.getsize(folder / "state/node.state") > 0
    assert not (folder / "run/s").exists()


@pytest.mark.parametrize("driver", ["xdp-native", "packet"])
def test_a_node_becomes_another_user_and_has_no_capabilities_in_any_thread(wires, folder, driver):
    wire = wires("left")
    configure(folder, '[privileges]\nuser = "nobody"\n', driver)
    with wire.here.entered(), process(folder) as node:
        threads = node.threads()
        assert len(threads) >= 3
        for fields in threads.values():
            assert fields["Uid"].split() == [str(NOBODY.pw_uid)] * 4 and fields["Gid"].split() == [str(NOBODY.pw_gid)] * 4
            assert fields["Groups"].split() == [str(NOBODY.pw_gid)] and fields["NoNewPrivs"] == "1" and fields["CapBnd"] == NO_CAPABILITIES
        assert rights(node) == [{NO_CAPABILITIES}] * len(threads)
        assert "running as nobody, without capabilities" in node.log()
        works(node, wire, folder)


def test_nothing_is_imported_once_rights_are_gone(wires, folder):
    """The interpreter's own files may be nobody's business: an installation under /root, say. Each import leaves a line in the log."""
    wire = wires("left")
    configure(folder, '[privileges]\nuser = "nobody"\n[metrics]\nlisten = "127.0.0.1:9465"\n[log]\nformat = "json"\n')
    with wire.here.netlink() as netlink:
        netlink.link("set", index=1, state="up")
    with wire.here.entered(), process(folder, PYTHONPROFILEIMPORTTIME="1") as node:
        until(lambda: '"running"' in node.log(), "the end of its beginning")
        before = len(node.log().splitlines())
        send(wire, 5)
        with Client(f"{folder}/run/s") as client:
            until(lambda: client.ask("count")["count"] == 5, "five connections")
            for established in ("keep", "reevaluate"):
                text = PASS.replace("commit", "commit nat src addr 10.0.0.9")
                assert client.load_rules(text, name="new.tc", established=established)["rules"] == 1
            for what in ("save", "stats", "counters", "expectations", "top"):
                client.ask(what)
            with pytest.raises(RequestError):
                client.ask("update", which={"src": "nobody"})
            assert len(list(client.conns("list"))) == 5
        node.reload()
        with urllib.request.urlopen("http://127.0.0.1:9465/metrics") as answer:
            assert b"ctmirror_connections" in answer.read()
        assert [line for line in node.log().splitlines()[before:] if line.startswith("import time:")] == []


def test_of_a_router_the_thread_of_neighbours_alone_may_ask_the_kernel(wires, folder):
    wire = wires("left")
    with wire.here.netlink() as netlink:
        netlink.addr("add", index=netlink.link_lookup(ifname="left")[0], address="10.0.0.254", prefixlen=24)
    configure(folder, '[privileges]\nuser = "nobody"\n[[route]]\nprefix = "10.1.0.0/16"\nvia = "10.0.0.9"\n', routed=True)
    with wire.here.entered(), process(folder) as node:
        first, *others = rights(node)
        assert first == {NO_CAPABILITIES} and len(others) >= 3
        assert sorted(others, key=len, reverse=True) == [{NO_CAPABILITIES, NET_ADMIN}] + [{NO_CAPABILITIES}] * (len(others) - 1)
        with wire.end() as far:  # the kernel was made to ask for the gateway
            until(lambda: b"\x08\x06" in (frame := far.recv(2048))[12:14] and frame.endswith(bytes([10, 0, 0, 9])), "who has 10.0.0.9?")
        assert node.stop() == 0


def test_what_has_to_be_given_back_keeps_the_main_thread_s_right(wires, folder):
    """GRO, which generic XDP turned off."""
    wire = wires("left")
    configure(folder, '[privileges]\nuser = "nobody"\n', "xdp-generic")
    with wire.here.entered(), process(folder) as node:
        first, *others = rights(node)
        assert first == {NO_CAPABILITIES, NET_ADMIN} and others == [{NO_CAPABILITIES}] * len(others)
        assert node.stop() == 0


def test_three_capabilities_are_enough_and_go(wires, folder):
    """As a unit or a container gives them: no root at all."""
    if shutil.which("setpriv") is None:
        pytest.fail("setpriv (util-linux) is missing: it gives a process ambient capabilities")
    wire = wires("left")
    configure(folder, "[privileges]\ndrop = true\n[memory]\nchunks = 1024\n")
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY.pw_uid, NOBODY.pw_gid)
    as_nobody = [
        shutil.which("setpriv"), "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--inh-caps=-all," + THREE, "--ambient-caps=-all," + THREE,
        "--bounding-set=-all," + THREE,
        sys.executable, "-c", HARDENED,
    ]  # fmt: skip
    with wire.here.entered(), process(folder, before=as_nobody) as node:
        assert rights(node) == [{NO_CAPABILITIES}] * len(node.threads())
        assert "left: XDP in the driver" in node.log()
        works(node, wire, folder)


def test_connections_are_taken_from_the_kernel_and_given_back_all_the_same(wires, folder):
    """Which asks for a right at the beginning and at the end: the main thread alone has it meanwhile."""
    from ctcore.config import Config
    from ctcore.tracker import Tracker
    from datapath.live import kernel_conntrack

    wire = wires("left")
    configure(folder, '[privileges]\nuser = "nobody"\n')
    with wire.here.entered():
        with process(folder, "--adopt-kernel-conntrack", "--handover") as node:
            first, *others = rights(node)
            assert first == {NO_CAPABILITIES, NET_ADMIN} and others == [{NO_CAPABILITIES}] * len(others)
            send(wire, 5)
            with Client(f"{folder}/run/s") as client:
                until(lambda: client.ask("count")["count"] == 5, "five connections")
            assert node.stop() == 0
            assert "the kernel's connections taken over" in node.log() and "connections handed over to the kernel" in node.log()
        tracker = Tracker(Config())
        kernel_conntrack.adopt([tracker], time.time_ns())
        assert tracker.count == 5
        with process(folder, "--adopt-kernel-conntrack") as node, Client(f"{folder}/run/s") as client:
            assert client.ask("count")["count"] == 5


def started(folder, *more: str) -> tuple[int, str]:
    """The exit code and the last line of a node that does not start."""
    argv = command([sys.executable, "-m", "datapath", "run", "--config", str(folder / "node.toml"), *more], folder)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr.splitlines()[-1]


def test_what_would_not_work_later_is_said_at_the_start(wires, folder):
    with wires("left").here.entered():
        configure(folder, '[privileges]\nuser = "nobody"\n')
        os.chown(folder / "state", 0, 0)
        code, said = started(folder)
        assert code == 2 and said.startswith(f"ctmirror: state.file: {folder}/state: nobody cannot write there: expected a folder")
        os.chown(folder / "state", NOBODY.pw_uid, -1)
        os.chmod(folder / "rules.tc", 0o600)
        code, said = started(folder)
        assert code == 2 and said.startswith(f"ctmirror: rules: {folder}/rules.tc: nobody cannot read it (groups: nogroup): expected")
        configure(folder, '[privileges]\nuser = "nobody-of-that-name"\n')
        assert started(folder) == (2, "ctmirror: privileges: user: there is no user 'nobody-of-that-name' on this machine")
    assert not (folder / "run/s").exists(), "a socket of a node that did not start"


def test_without_the_section_it_stays_what_it_is_and_says_so(wires, folder):
    configure(folder, "")
    with wires("left").here.entered(), process(folder) as node:
        assert {fields["Uid"].split()[0] for fields in node.threads().values()} == {"0"}
        assert "running as root: privileges.user gives that up once everything is open" in node.log()


def test_rights_go_before_there_are_threads():
    code = "import threading, time\nfrom datapath.live import privileges\nthreading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
    done = subprocess.run([sys.executable, "-c", code + "privileges.drop(None, ())"], capture_output=True, text=True)
    assert "privileges: 2 threads: expected one" in done.stderr


def test_nobody_becomes_somebody_else_without_being_root():
    code = "import os\nfrom datapath.live import privileges as p\nroot = p.account_of('root')\nos.setresuid(65534, 65534, 65534)\np.drop(root, ())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "cannot become root: Operation not permitted: expected root at the start" in done.stderr


HEAD = 'rules = "node.tc"\n[[iface]]\nname = "eth0"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[privileges]\nuser = 0\n", "n:5: privileges.user: 0: expected a text"),
        ('[privileges]\ngroup = "x"\n', "n:5: privileges.group: no such setting"),
        ('[privileges]\nuser = ""\n', "n:5: privileges.user: '': "),
    ],
)
def test_what_is_wrong_with_the_section_is_said_by_line(text, said):
    with pytest.raises(ConfigError) as caught:
        parse(HEAD + text, "n")
    assert str(caught.value).startswith(said)


def test_masks():
    assert privileges.mask_of(["NET_ADMIN", "BPF"]) == 1 << 12 | 1 << 39


PROGRAMS = """
from datapath.live import privileges
privileges.drop(None, {"NET_ADMIN", "NET_RAW", "BPF"})
from datapath.live.xdp_filter import EVERYTHING, Filter, Steering
many = tuple(f"10.{i}.0.0/16" for i in range(20)) + tuple(f"2001:db8:{i:x}::/48" for i in range(20))
ports = (("tcp", 22), ("udp", 53), ("sctp", 9), ("tcp", 443))
for wanted in (Filter(), EVERYTHING, Filter(syn_rate=200_000), Filter(ports=ports), Filter(prefixes=many[:3], local=many[-3:]),
               Filter(ports=ports, prefixes=many, local=many, syn_rate=5000, vlans=True, other_types=True, passed_types=frozenset({0x88CC}))):
    Steering(wanted).close()
    print("loaded")
"""


def test_three_capabilities_load_the_program_of_any_filter(interfaces):
    """Without CAP_PERFMON the verifier is stricter with a packet's address."""
    done = subprocess.run([sys.executable, "-c", PROGRAMS], capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["loaded"] * 6, "")
