"""Runs a command under Debian's stock kernel, which has what the running one may lack: flower, act_ct, flow tables.

    python -m pcap_tests.vm.run --kernel FOLDER [--limit SECONDS] [--modules A,B] [--writable FOLDER] -- COMMAND...

The command finds this machine's files at their places, and may write anywhere: what it writes is gone afterwards, but for folders named by
--writable. Exit status: the command's; 123: the guest's kernel complained; 124: time was up; 125: the guest did not start; 126: it died.
Not here: where the kernel comes from (packages), how a guest is run (machine).
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pcap_tests.vm.machine import Guest, run
from pcap_tests.vm.packages import CannotBoot, unpacked


def ended(number: int, frame: FrameType | None) -> NoReturn:
    """Whoever ends us ends QEMU, too."""
    raise SystemExit(128 + number)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", type=Path, required=True, help="folder that pcap_tests.vm.packages has filled")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds until the guest is ended")
    parser.add_argument("--modules", default="", help="modules to load before, with commas between")
    parser.add_argument("--writable", type=Path, action="append", default=[], help="folder that is shared to be written")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, ended)
    modules = [name for name in options.modules.split(",") if name]
    try:
        return run(Guest(unpacked(options.kernel), options.command, options.limit, modules, options.writable))
    except (CannotBoot, OSError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
