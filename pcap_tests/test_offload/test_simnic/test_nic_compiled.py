"""When a NIC is compiled, and where what is compiled is kept: before the first frame, and nowhere for who can write nowhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from pcap_tests.required import cannot

ROOT = Path(__file__).parents[3]
CAPTURE = ROOT / "pcap_tests" / "captures" / "demo.pcap"
NOBODY = "65534"
READS_ALL = "+dac_read_search"  # wherever the checkout and its Python are

# Kernels that Python calls get a signature when they are compiled, or loaded from where they are kept.
LEFT_TO_COMPILE = """
import gc, sys
from numba.core.dispatcher import Dispatcher
from datapath.commands.offloaded_run import compiled
from datapath.__main__ import main

def known():
    each = [one for one in gc.get_objects() if isinstance(one, Dispatcher) and one.py_func.__module__.startswith("offload.simnic")]
    return {one.py_func.__qualname__: len(one.signatures) for one in each}

compiled()
before = known()
sys.argv = ["ctmirror", "replay", sys.argv[1], "--nic", "tiny", "-q", "--packets", "/dev/null"]
assert main() == 0
assert known() == before, (before, known())
assert min(before[name] for name in ("run", "apply", "next_period", "masked_hash", "index_anew")) == 1, before
"""

WITHOUT_A_FOLDER = """
from offload.simnic.kernel import CACHED
from offload.simnic.parse import be16
import numpy as np
assert CACHED is False
assert be16(np.array([1, 2], dtype=np.uint8), 0) == 258
from datapath.commands import offloaded_run
offloaded_run.SOON, offloaded_run.ready = 0.0, lambda frames: __import__("time").sleep(0.5)
offloaded_run.compiled()
"""


def python(text: str, *argv: str, by: tuple[str, ...] = (), **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environ}
    return subprocess.run([*by, sys.executable, "-c", text, *argv], env=env, capture_output=True, text=True, timeout=120, check=False)


def test_nothing_is_left_to_be_compiled_when_the_first_frame_comes():
    done = python(LEFT_TO_COMPILE, str(CAPTURE))
    assert done.returncode == 0, done.stderr


def test_who_can_write_nowhere_has_a_nic_that_is_not_kept_and_is_told():
    """A service's user: no home, and a folder of the package that is somebody else's."""
    if os.geteuid() != 0:
        cannot("only root becomes somebody else")
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        cannot("there is no setpriv")
    nobody = (setpriv, "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--inh-caps", READS_ALL, "--ambient-caps", READS_ALL)
    done = python(WITHOUT_A_FOLDER, by=nobody, HOME="/nonexistent", NUMBA_CACHE_DIR="")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("ctmirror: compiling the simulated NIC, as at every start") and "NUMBA_CACHE_DIR=FOLDER" in done.stderr
