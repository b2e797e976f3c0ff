"""What a test does where this machine has not what it needs. Loads nothing but pytest, for the guest of pcap_tests.vm has it, too."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRE = "CTMIRROR_REQUIRE_KERNEL"


def cannot(text: str) -> NoReturn:
    """This machine cannot run a test: it is skipped and says why. CTMIRROR_REQUIRE_KERNEL=1 makes it fail: nothing is left out quietly."""
    if os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{REQUIRE}=1, but {text}")
    pytest.skip(text)
