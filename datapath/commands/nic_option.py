"""--nic PROFILE: a profile by its name or file, or what to type where libraries are missing; and what a mirror of such a NIC waits for.

Not here: NICs (offload.simnic).
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ctcore.errors import CtmirrorError
from datapath.extras import remedy
from offload.mirror_settings import MirrorSettings

if TYPE_CHECKING:
    from offload.simnic.profile import Profile

LIBRARIES = ("numba", "pydantic")
KINDS = "connectx-6dx-sw, connectx-7-hw, tiny, none, perfect, or a TOML file (docs/offload-nic.md)"  # for help, which reads no profiles


def nic_profile(name: str) -> Profile:
    """Raises CtmirrorError without the libraries, ConfigError for a profile that is none."""
    missing = [library for library in LIBRARIES if find_spec(library) is None]
    if missing:
        raise CtmirrorError(f"NICs are simulated by {' and '.join(missing)}: {remedy('nic')}")
    from offload.simnic.profile import load

    return load(name)


def mirror_settings(profile: Profile, policy: str) -> MirrorSettings:
    """Of a mirror of a NIC of this kind: an answer is not lost as long as it can be on its way. So it is waited for longer than the latency, and the
    NIC has no more commands than it does in half of that time: else each that is asked again would lengthen the queue in which others wait."""
    usual = MirrorSettings(policy=policy)
    limit = max(usual.reply_limit, 4 * profile.rates.latency / 1000)
    window = int(profile.rates.inserts * limit / 2) if profile.rates.inserts else usual.window
    return replace(usual, reply_limit=limit, window=min(max(window, 2), usual.window))
