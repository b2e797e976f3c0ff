"""Everything for the tests that need Debian's stock kernel: fetched, built, booted once, run.

    python -m pcap_tests.vm.suite FOLDER [PYTEST ARGUMENTS]

FOLDER: where kernel, headers and module are kept from one time to the next. Exit status: pytest's, or one of run's. Where modules cannot be built
their tests are reported as not run; CTMIRROR_REQUIRE_KERNEL=1 makes that a failure, as everywhere.
Not here: the steps themselves (packages, module_build, machine).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pcap_tests.required import REQUIRE
from pcap_tests.vm.machine import Guest, run
from pcap_tests.vm.module_build import built, netdevsim
from pcap_tests.vm.packages import CannotBoot, Kernel, fetch
from pcap_tests.vm.run import ended

TESTS = Path(__file__).parent
LIMIT = 900.0  # seconds: an emulated machine on a busy one
# Where the guest's tests find modules.
MODULE, FUNCTIONS, NETDEVSIM = "CTMIRROR_FEIGNED_NIC", "CTMIRROR_FEIGNED_FUNCTIONS", "CTMIRROR_NETDEVSIM"


def main(argv: Sequence[str]) -> int:
    if not argv:
        sys.exit("usage: python -m pcap_tests.vm.suite FOLDER [PYTEST ARGUMENTS]")
    signal.signal(signal.SIGTERM, ended)
    begun = time.monotonic()
    required = os.environ.get(REQUIRE, "")
    environment = {"PYTHONDONTWRITEBYTECODE": "1", REQUIRE: required}
    try:
        kernel = fetch(Path(argv[0]))
        for make in (_ours, _netdevsim):
            try:
                environment |= {name: str(path.resolve()) for name, path in make(kernel).items()}
            except (CannotBoot, OSError, subprocess.SubprocessError) as error:
                print(f"vm: {error}", file=sys.stderr)
                if required == "1":
                    return 1
        # Nothing of the other tests is loaded: what they import would take an emulated machine longer than these tests.
        command = [sys.executable, "-m", "pytest", f"--confcutdir={TESTS}", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", str(TESTS)]
        status = run(Guest(kernel, [*command, *argv[1:]], LIMIT, environment=environment))
    except (CannotBoot, OSError, subprocess.SubprocessError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 125
    print(f"vm: kernel {kernel.release}, {time.monotonic() - begun:.0f} s in all", flush=True)
    return status


def _ours(kernel: Kernel) -> dict[str, Path]:
    made = built(kernel)
    return {MODULE: made["feigned_nic"], FUNCTIONS: made["feigned_functions"]}


def _netdevsim(kernel: Kernel) -> dict[str, Path]:
    return {NETDEVSIM: netdevsim(kernel)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
