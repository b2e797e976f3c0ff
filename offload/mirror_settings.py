"""What may be set of a mirror, with Linux's or safe values. Not here: what it does with them (mirror), what hardware can (backends)."""

from __future__ import annotations

from dataclasses import dataclass

from ctcore.errors import ConfigError

POLICIES = ("first-come", "by-rate", "by-bytes")


@dataclass(frozen=True)
class MirrorSettings:
    """Settings of a Mirror. Raises ConfigError, naming the field and what it may be."""

    policy: str = "first-come"  # full hardware refuses newcomers; or the flow of the least rate, or bytes, has to make room
    clearly: float = 2.0  # times as much the newcomer has to have: flows of about the same shall not replace each other forever
    look: int = 64  # flows looked at to find the one that has to go; the next search goes on where this one has ended
    reply_limit: float = 10.0  # seconds after which an answer is taken for lost
    tries: int = 3  # times that a lost install is asked for, before whatever may have come of it is destroyed
    backoff: float = 1.0  # seconds before a refused flow is tried again; twice as many after each refusal
    backoff_most: float = 64.0
    probe: float = 0.1  # seconds between two installs that are tried in hardware that is full, as long as nothing leaves it
    window: int = 65_536  # commands that hardware may have taken and not answered

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"policy = {self.policy!r}: expected one of {', '.join(POLICIES)}")
        for name, least, most in (
            ("clearly", 1, 1e6), ("look", 1, 1 << 20), ("reply_limit", 0.001, 86_400), ("tries", 1, 100), ("backoff", 0.001, 86_400),
            ("backoff_most", self.backoff, 86_400), ("probe", 0, 60), ("window", 2, 1 << 30),
        ):  # fmt: skip
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"{name} = {getattr(self, name)!r}: expected a number from {least:g} to {most:g}")
