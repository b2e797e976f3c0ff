"""--nic PROFILE: a profile by its name or file, or what to type where libraries are missing. Not here: NICs (offload.simnic)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from ctcore.errors import CtmirrorError
from datapath.extras import remedy

if TYPE_CHECKING:
    from offload.simnic.profile import Profile

LIBRARIES = ("numba", "pydantic")


def nic_profile(name: str) -> Profile:
    """Raises CtmirrorError without the libraries, ConfigError for a profile that is none."""
    missing = [library for library in LIBRARIES if find_spec(library) is None]
    if missing:
        raise CtmirrorError(f"NICs are simulated by {' and '.join(missing)}: {remedy('nic')}")
    from offload.simnic.profile import load

    return load(name)
