"""Zones as the command line has them: a number with its direction, limits, reserves; read and written.

Not here: what they mean (ctcore.zones), click (commands.options).
"""

from __future__ import annotations

from collections.abc import Iterable

from ctcore.config import ZONE_DIRS, Config

MAX_ZONE = 65535
ONE_WAY = tuple(name for name in ZONE_DIRS if name != "both")
ALL = None  # for whom a limit is that names no zone

Zone = tuple[int, str]
Places = tuple[int | None, int]  # a zone, or ALL, and a number of connections


def read_zone(text: str) -> Zone | None:
    """N, N:original or N:reply; None for anything else."""
    number, colon, direction = text.partition(":")
    if number.isascii() and number.isdigit() and int(number) <= MAX_ZONE and (direction in ONE_WAY if colon else True):
        return int(number), direction or "both"
    return None


def zone_text(zone: int, direction: str) -> str:
    return str(zone) if direction == "both" else f"{zone}:{direction}"


def read_places(text: str, *, zone_needed: bool) -> Places | None:
    """ZONE=N, or N for all zones where that is allowed; None for anything else."""
    zone, equals, number = text.rpartition("=")
    named = read_zone(zone) if equals else (ALL, "both")
    if named is None or named[1] != "both" or (zone_needed and not equals) or not (number.isascii() and number.isdigit()):
        return None
    return named[0], int(number)


def limits_of(given: Iterable[Places]) -> tuple[int, dict[int, int]]:
    """That of all zones, and those of single ones. Of two for one zone the later counts."""
    limits = dict(given)
    return limits.pop(ALL, 0), {zone: number for zone, number in limits.items() if zone is not None}


def limit_flags(config: Config) -> list[str]:
    """The limits and reserves as words of the command line."""
    words = ["--zone-limit", str(config.zone_limit)] if config.zone_limit else []
    for option, numbers in (("--zone-limit", config.zone_limits), ("--zone-reserve", config.zone_reserves)):
        for zone, number in numbers.items():
            words += [option, f"{zone}={number}"]
    return words
