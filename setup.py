"""Builds the Cython extensions. What belongs to the distribution as a whole stands in pyproject.toml.

Every .pyx of the three packages becomes one extension of the same name. The build fails on Cython's warnings and performance hints.
CTMIRROR_DEBUG=asan builds with AddressSanitizer and bounds checks (see `make asan`).
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

PACKAGES = ("ctcore", "datapath", "offload")
DEBUG = os.environ.get("CTMIRROR_DEBUG", "")
# -fno-strict-aliasing: keys are hashed and compared as words, packets read as whatever their headers say.
FLAGS = {
    "": ["-O3", "-fno-strict-aliasing", "-fno-semantic-interposition", "-fvisibility=hidden"],
    "asan": ["-O1", "-g", "-fno-strict-aliasing", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
}
# Not linked with a sanitizer's runtime: LD_PRELOAD names it, the compiler's for tests, the fuzzer's own (with libFuzzer in it) there.
LINK = {"": [], "asan": []}

if DEBUG not in FLAGS:
    raise SystemExit(f"setup.py: CTMIRROR_DEBUG={DEBUG}: expected one of {', '.join(filter(None, FLAGS))}, or nothing")

Options.warning_errors = True


def extension(path: Path) -> Extension:
    return Extension(str(path.with_suffix("")).replace("/", "."), [str(path)], extra_compile_args=FLAGS[DEBUG], extra_link_args=LINK[DEBUG])


setup(
    ext_modules=cythonize(
        [extension(path) for package in PACKAGES for path in sorted(Path(package).rglob("*.pyx"))],
        compiler_directives={
            "language_level": 3,
            "boundscheck": bool(DEBUG),
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
            "embedsignature": True,
            "show_performance_hints": True,
        },
        build_dir="build/cython",
        nthreads=os.cpu_count() or 1,
    )
)
