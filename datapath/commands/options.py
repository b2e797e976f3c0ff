"""What several sub-commands take: the settings of connection tracking, and types of options that say what was expected.

Not here: the settings' meaning and limits (ctcore.config). Invariant: an option left out is ctcore.config's default, of which there is no copy here.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import click
from click.core import ParameterSource

from ctcore.config import Config
from ctcore.errors import ConfigError
from ctcore.nat_rules import HelperRule, NatRule
from datapath.app import RulesGiven, Tracking
from datapath.rule_text import helper_text, parse_helper, parse_rule, rule_text
from datapath.zones import Places, Zone, limit_flags, limits_of, read_places, read_zone, zone_text


class Number(click.ParamType):
    """A whole number between two bounds."""

    name = "N"

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = int(value)
        except ValueError:
            number = self.low - 1
        if not self.low <= number <= self.high:
            self.fail(f"'{value}': expected a number from {self.low:,} to {self.high:,}", param, ctx)
        return number


class Switch(click.ParamType):
    """0 or 1, as sysctls are written."""

    name = "0|1"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if value not in ("0", "1", False, True):
            self.fail(f"'{value}': expected 0 or 1", param, ctx)
        return value in ("1", True)


class Timeouts(click.ParamType):
    """name=seconds,... The names are checked by Config."""

    name = "NAME=SECONDS,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, int]:
        if isinstance(value, dict):
            return value
        result = {}
        for part in value.removesuffix(",").split(","):
            name, _, seconds = part.partition("=")
            if not seconds.isascii() or not seconds.isdigit():
                self.fail(f"'{part}': expected name=seconds, as in tcp_timeout_established=3600", param, ctx)
            result[name.strip().removeprefix("nf_conntrack_")] = int(seconds)
        return result


class ZoneOption(click.ParamType):
    """A zone, and of which direction it is."""

    name = "N[:original|:reply]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Zone:
        if isinstance(value, tuple):
            return value
        zone = read_zone(value)
        return zone if zone else self.fail(f"'{value}': expected a number from 0 to 65,535, with :original or :reply if of one direction", param, ctx)


class PlacesOption(click.ParamType):
    """A number of connections, of one zone or, where that is allowed, of each."""

    def __init__(self, *, zone_needed: bool) -> None:
        self.zone_needed = zone_needed
        self.name = "ZONE=N" if zone_needed else "[ZONE=]N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Places:
        if isinstance(value, tuple):
            return value
        places = read_places(value, zone_needed=self.zone_needed)
        expected = f"expected {self.name}, a zone up to 65535 and a number of connections, as in 5=1000"
        return places if places else self.fail(f"'{value}': {expected}", param, ctx)


class PlacedOption(click.Option):
    """An option whose values say where on the command line they stood, since the order among several such options matters.

    click gathers the values of each option apart from the others'; what stood before what is known only while it parses.
    """

    def add_to_parser(self, parser: Any, ctx: click.Context) -> None:
        super().add_to_parser(parser, ctx)
        for name in self.opts:
            option = parser._long_opt[name]
            option.process = functools.partial(_process_placed, option.process)


def _process_placed(process: Callable[..., None], value: str, state: Any) -> None:
    process((len(state.order), value), state)


class Nat(click.ParamType):
    """A NAT rule with its place. kind: as in ctcore.nat_rules."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.name = "RULE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, NatRule]:
        place, text = value
        try:
            return place, text if isinstance(text, NatRule) else parse_rule(self.kind, text)
        except ConfigError as error:
            raise click.UsageError(f"--{error}", ctx) from None


class Helper(click.ParamType):
    """A helper, its protocol and port."""

    name = "NAME:PROTO:PORT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> HelperRule:
        try:
            return value if isinstance(value, HelperRule) else parse_helper(value)
        except ConfigError as error:
            raise click.UsageError(f"--{error}", ctx) from None


# Kind, what it says. Of the rules for sources (snat, masquerade) and of those for destinations, the first that matches is taken.
NAT_OPTIONS = (
    ("snat", "Translate the source: '[MATCH =>] A[-B][:p[-q]][,random][,fully-random][,persistent]', repeatable."),
    ("dnat", "Translate the destination, before the source; written in the same way."),
    ("masquerade", "Translate the source to the one address of the interface: '[MATCH =>] A[:p[-q]]'."),
    ("redirect", "Translate the destination to the one address of the interface."),
)

# Option, type, what it says. Defaults are read off Config.
SETTINGS = (
    ("tcp_liberal", Switch(), "Accept TCP packets outside the window."),
    ("tcp_loose", Switch(), "Pick up TCP connections in mid-stream."),
    ("tcp_max_retrans", Number(0, 255), "Retransmissions without answer until the timeout is shortened."),
    ("tcp_ignore_invalid_rst", Switch(), "Let RST below what was acknowledged pass the window check."),
    ("checksum", Switch(), "Verify transport checksums; packets with bad ones are invalid."),
    ("acct", Switch(), "Count packets and bytes of each connection."),
    ("max", Number(0, (1 << 26) - 1024), "Most connections at a time; 0 is no limit."),
    ("buckets", Number(1, 1 << 26), "Buckets of the kernel's hash table: when it is full, a victim is looked for in eight of them."),
    ("ipfrag_high_thresh", Number(0, 1 << 30), "Bytes of IPv4 fragments beyond which further ones are dropped."),
    ("frag6_high_thresh", Number(0, 1 << 30), "The same of IPv6."),
    ("ipfrag_max_dist", Number(0, (1 << 31) - 1), "Fragments of a source that may come between two of an IPv4 datagram; 0 is any number."),
    ("seed", Number(0, (1 << 64) - 1), "Seed of keyed hashes and random ports: which connections are evicted when full, where NAT looks for ports."),
)


def _option_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def _merged(timeouts: tuple[dict[str, int], ...]) -> dict[str, int]:
    """All that were given; of two for one name the later."""
    return {name: seconds for given in timeouts for name, seconds in given.items()}


def _flags(context: click.Context, limits: list[str]) -> str:
    """The tracking options given on the command line, in the order of their definition, then limits of zones."""
    words: list[str] = []
    for rule in _rules(context.params):
        words += [f"--{rule.kind}", rule_text(rule)]
    for helper in context.params["helper"]:
        words += ["--helper", helper_text(helper)]
    for name in [field for field, *_ in SETTINGS] + ["timeouts", "zone"]:
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params[name]
        if name == "zone":
            words += ["--zone", zone_text(*value)]
            continue
        text = ",".join(f"{k}={v}" for k, v in _merged(value).items()) if name == "timeouts" else str(int(value))
        words += [_option_name(name), text]
    return shlex.join(words + limits)


def _rules(given: Mapping[str, Any]) -> list[NatRule]:
    """The rules of all four options, in the order of the command line."""
    placed = [one for kind, _ in NAT_OPTIONS for one in given[kind]]
    return [rule for _, rule in sorted(placed, key=lambda one: one[0])]


def _once(context: click.Context, param: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option that may be there once: the last of several would win, and nobody would notice."""
    if len(values) > 1:
        more = "; tc lines of several files may be put together by cat, and read from -" if param.name == "rules_file" else ""
        raise click.UsageError(f"{param.opts[0]}: is there {len(values)} times: expected it once{more}")
    return values[0] if values else None


RULES_OPTIONS = (
    click.option(
        "--rules",
        "rules_file",
        metavar="FILE",
        multiple=True,
        callback=_once,
        help="Go through rules (tc lines or YAML), which say what is tracked, and where packets go.",
    ),
    click.option(
        "--device",
        metavar="DEV[:ingress|:egress]",
        multiple=True,
        callback=_once,
        help="Where packets arrive whose capture does not name a device of the rules; with a direction all of them, else those that went out, as the "
        "capture says, at its egress.  [default: the only one with rules at its ingress]",
    ),
    click.option("--no-flowtable", is_flag=True, help="Let every packet go through the rules, those of established connections as well."),
)
# What a rule says for itself: options that a replay through rules does not take, and what is written there instead.
SAID_BY_RULES = {
    "zone": "ct zone N",
    "helper": "ct commit helper ipv4-tcp-ftp",
    **dict.fromkeys(("snat", "masquerade"), "ct commit nat src addr A"),
    **dict.fromkeys(("dnat", "redirect"), "ct commit nat dst addr A"),
}


def rules_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of rules to a command with tracking options, whose `tracking` has them then."""

    @functools.wraps(command)
    def wrapper(*, rules_file: str | None, device: str | None, no_flowtable: bool, tracking: Tracking, **others: Any) -> Any:
        if rules_file is None and (device or no_flowtable):
            raise click.UsageError(f"{'--device' if device else '--no-flowtable'}: expected --rules with it")
        if rules_file is not None:
            tracking = with_rules(tracking, rules_file, device, not no_flowtable)
        return command(tracking=tracking, **others)

    for option in reversed(RULES_OPTIONS):
        wrapper = option(wrapper)
    return wrapper


def refuse_said_by_rules(by: str) -> None:
    """Raises UsageError for options that only rules can say. by: the option that has packets go through rules."""
    context = click.get_current_context()
    for option, instead in SAID_BY_RULES.items():
        if context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{_option_name(option)}: not with {by}, where actions say it: expected `{instead}` in the rules")
    if context.params.get("clock", "capture") != "capture":
        raise click.UsageError(f"--clock wall: expected it without {by}: rules go by the packets' own time")


def with_rules(tracking: Tracking, name: str, device: str | None, flowtable: bool) -> Tracking:
    """The same with the rules of a file. Raises UsageError for options that only rules can say."""
    from datapath.hooks import DIRECTIONS, check_device, read_hook
    from datapath.pipeline.findings import Findings
    from datapath.pipeline.rules_file import read

    refuse_said_by_rules("--rules")
    found = Findings()
    ruleset = read(name, found)
    found.check()
    flags = ["--rules", name, *(["--device", device] if device else []), *([] if flowtable else ["--no-flowtable"])]
    hook = read_hook(device) if device else None
    if hook is not None:
        check_device(ruleset, hook)
    fixed = device is not None and device.rpartition(":")[2] in DIRECTIONS
    given = RulesGiven(ruleset, name, hook, flowtable, fixed)
    return replace(tracking, rules=given, flags=" ".join(filter(None, (tracking.flags, shlex.join(flags)))))


CLOCK = click.option(
    "--clock", type=click.Choice(["capture", "wall"]), default="capture", help="Whose time: the packets' or now.  [default: capture]"
)


def tracking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of connection tracking; the function gets them as one argument `tracking`."""
    for option in (
        click.option("--zone-reserve", "zone_reserves", type=PlacesOption(zone_needed=True), multiple=True,
                     help="Places of --max that belong to a zone, whatever the others do. Repeatable."),
        click.option("--zone-limit", "zone_limits", type=PlacesOption(zone_needed=False), multiple=True,
                     help="Most connections of each zone, or of one. Repeatable.  [default: no limit]"),
    ):  # fmt: skip
        command = option(command)
    return CLOCK(tracking_options_but_clock(command))


def tracking_options_but_clock(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a command that compares with the kernel, which has a clock of its own and no limits of zones."""

    @functools.wraps(command)
    def wrapper(*, zone: Zone, timeouts: tuple[dict[str, int], ...], clock: Literal["capture", "wall"] = "capture", **others: Any) -> Any:
        context = click.get_current_context()
        settings = {name: others.pop(name) for name, *_ in SETTINGS}
        limit, limits = limits_of(others.pop("zone_limits", ()))
        zones: dict[str, Any] = {
            "zone_dir": zone[1],
            "zone_limit": limit,
            "zone_limits": limits,
            "zone_reserves": dict(others.pop("zone_reserves", ())),
        }
        nat = _rules({kind: others.pop(kind) for kind, _ in NAT_OPTIONS})
        config = Config(**settings, **zones, timeouts=_merged(timeouts), nat=tuple(nat), helpers=others.pop("helper"))
        return command(tracking=Tracking(config, zone[0], clock, _flags(context, limit_flags(config))), **others)

    for name, kind, text in reversed(SETTINGS):
        default = getattr(Config, name)
        wrapper = click.option(_option_name(name), name, type=kind, default=default, help=f"{text}  [default: {int(default)}]")(wrapper)
    wrapper = click.option(
        "--helper", type=Helper(), multiple=True, help="Let a helper read the connections to a port, as in ftp:tcp:21. Repeatable."
    )(wrapper)
    for rule, text in reversed(NAT_OPTIONS):
        wrapper = click.option(f"--{rule}", rule, type=Nat(rule), cls=PlacedOption, multiple=True, help=text)(wrapper)
    for option in (
        click.option("--timeouts", type=Timeouts(), multiple=True, help="Timeouts by their sysctl names without nf_conntrack_. Repeatable."),
        click.option(
            "--zone",
            type=ZoneOption(),
            default="0",
            help="Conntrack zone of the packets, or of one direction's tuples.  [default: 0]",
        ),
    ):
        wrapper = option(wrapper)
    return wrapper
