"""What boots a guest, without booting one: archives, images, the order of modules, and what is made of how a guest ended.

That a guest runs a command, and its time limit, show where it is used (`make test-vm`).
"""

from __future__ import annotations

import lzma
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pcap_tests.vm import image, machine
from pcap_tests.vm.image import BadImage, Entry
from pcap_tests.vm.machine import Guest
from pcap_tests.vm.packages import CannotBoot, Kernel, unpacked

DEPENDENCIES = """\
kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/fscache/fscache.ko.xz
kernel/net/9p/9pnet.ko.xz:
kernel/fs/fscache/fscache.ko.xz:
"""


def test_modules_come_behind_what_they_need():
    order = [image.module_name(path) for path in image.needed(DEPENDENCIES, ["9p", "virtio_pci", "built_in"])]
    assert order == ["fscache", "9pnet", "9p", "virtio", "virtio_ring", "virtio_pci"]


def test_an_archive_is_one_that_cpio_reads(tmp_path):
    data = image.archive([Entry("a/b/file", image.FILE, b"hello"), Entry("a/link", image.LINK, b"b/file"), Entry("empty", image.FOLDER)])
    assert len(data) % 512 == 0 and data.count(b"070701") == 6
    names = [entry for entry in ("a", "a/b", "a/b/file", "a/link", "empty", "TRAILER!!!") if entry.encode() + b"\0" in data]
    assert len(names) == 6
    busybox = Path("/bin/busybox")
    if busybox.exists():
        subprocess.run([busybox, "cpio", "-id"], input=data, cwd=tmp_path, check=True, capture_output=True)
        assert (tmp_path / "a" / "link").read_bytes() == b"hello" and (tmp_path / "empty").is_dir()


def packed(payload: bytes, magic: bytes = b"HdrS") -> bytes:
    """A bzImage with one sector of setup code behind the first one."""
    head = bytearray(2 * 512)
    head[image.SETUP_SECTORS], head[image.MAGIC : image.MAGIC + 4] = 1, magic
    struct.pack_into("<II", head, image.PAYLOAD, 16, len(payload))
    return bytes(head) + bytes(16) + payload


def test_a_kernel_is_found_in_its_image():
    kernel = b"\x7fELF" + bytes(1000)
    assert image.vmlinux(packed(lzma.compress(kernel))) == kernel


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bytes(4096), "no bzImage"),
        (packed(b"\x28\xb5\x2f\xfd" + bytes(50)), "compressed in an unknown way: 28b52ffd0000"),
        (packed(lzma.compress(b"no kernel")), "no ELF file in it"),
    ],
)
def test_what_is_no_image_is_said(data, said):
    with pytest.raises(BadImage, match=said):
        image.vmlinux(data)


def test_a_folder_without_a_kernel_says_what_to_do(tmp_path):
    with pytest.raises(CannotBoot, match="expected `make test-vm`"):
        unpacked(tmp_path)


# --- a guest's end, told by a QEMU that is a script ---------------------------------------------------------------------------------------

QEMU = """#!/bin/sh
# Finds the descriptors of the three ports, and the console, among its arguments; and does what the test says with them.
for word; do
    case $word in
    fd=*,set=1) out=${word%%,*} ;;
    fd=*,set=2) err=${word%%,*} ;;
    fd=*,set=3) status=${word%%,*} ;;
    file:*) console=${word#file:} ;;
    esac
done
out=/dev/fd/${out#fd=}; err=/dev/fd/${err#fd=}; status=/dev/fd/${status#fd=}
"""


@pytest.fixture
def ends(tmp_path, monkeypatch):
    """ends(script, limit=...): the exit status of a guest that does this."""
    (tmp_path / "modules.dep").write_text("")
    kernel = Kernel(tmp_path, "6.1.0-none")
    modules = tmp_path / "lib" / "modules" / kernel.release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("")
    (tmp_path / f"vmlinux-{kernel.release}").write_bytes(b"")
    qemu = tmp_path / "qemu-system-x86_64"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "_files", lambda guest: [])

    def run(script: str, limit: float = 20.0) -> int:
        qemu.write_text(QEMU + script)
        qemu.chmod(0o755)
        return machine.run(Guest(kernel, ["true"], limit))

    return run


def test_a_commands_output_and_status_come_back(ends, capfdbinary):
    assert ends('echo begun >$status; echo hello >$out; echo oh >$err; echo "ended 7" >$status') == 7
    captured = capfdbinary.readouterr()
    assert (captured.out, captured.err) == (b"hello\n", b"oh\n")


def test_a_kernel_that_complains_is_a_failure(ends, capfdbinary):
    assert ends('echo "[1.0] WARNING: CPU: 0" >$console; echo begun >$status; echo "ended 0" >$status') == machine.COMPLAINED
    assert b"WARNING: CPU: 0" in capfdbinary.readouterr().err


@pytest.mark.parametrize(("script", "status"), [("exit 1", machine.NOT_STARTED), ("echo begun >$status; exit 0", machine.DIED)])
def test_a_guest_that_dies_is_told_apart_from_one_that_never_was(ends, script, status):
    assert ends(script) == status


def test_time_is_limited_and_nothing_is_left(ends, tmp_path):
    assert ends(f"echo $$ >{tmp_path}/pid; echo begun >$status; exec sleep 100", limit=1.0) == machine.TIME_IS_UP
    pid = (tmp_path / "pid").read_text().strip()
    assert not Path(f"/proc/{pid}").exists()


def test_the_commands_words_are_passed_on_whole(tmp_path):
    guest = Guest(Kernel(tmp_path, "6.1"), ["sh", "-c", "echo 'a b' \"$X\""], 1.0, ["act_ct"], environment={"X": "it's"})
    script = machine._script(guest)
    assert "exec setsid sh -c 'echo '\"'\"'a b'\"'\"' \"$X\"'" in script
    assert "export X='it'\"'\"'s'" in script and "export CTMIRROR_GUEST=6.1" in script and "@" not in script.split("\n", 1)[1]


def test_the_guests_tests_are_not_collected_here():
    folder = Path(machine.__file__).parent
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "--collect-only", str(folder)], capture_output=True, text=True)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED and "test_" not in done.stdout
