"""The door of the command `ctmirror`: what is said where the package `datapath` that is found first is somebody else's.

A module of its own, since nothing inside of `datapath` could say it. Not here: the command itself (datapath.cli).
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

USAGE = 2


def main() -> int:
    """Run the command line; the exit code."""
    try:
        from datapath.cli import main as command
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("datapath"):
            raise
        spec = find_spec("datapath")
        place = spec.origin or list(spec.submodule_search_locations or ()) if spec else "nowhere"
        print(
            f"ctmirror: expected its own package datapath, found {place}: another project's comes first; take its folder out of PYTHONPATH, "
            "or use an environment of its own for ctmirror (installing or building again does not help)",
            file=sys.stderr,
        )
        return USAGE
    return command()
