"""`ctmirror bench`: figures of this machine, for people and as JSON. The measuring itself is datapath.benchmark's and benchmark_rules's."""

from __future__ import annotations

import sys
from typing import Any

import click
import orjson

from datapath.commands.options import Number
from datapath.commands.verbosity import verbosity
from datapath.export import STDOUT


class Numbers(click.ParamType):
    """Numbers of something, separated by commas."""

    name = "N,..."

    def __init__(self, what: str, example: str) -> None:
        self.what, self.example = what, example

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        if isinstance(value, list):
            return value
        parts = value.split(",")
        if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            self.fail(f"'{value}': expected numbers of {self.what}, as in {self.example}", param, ctx)
        return [int(part) for part in parts]


FLOWS = Numbers("connections", "1000,100000")


def _check(name: str | None) -> None:
    """Measuring takes long: whether its figures can be written is found out before."""
    if name and name != STDOUT:
        with open(name, "ab"):
            pass


# What a name ends with, the unit that it stands for, and what the number is of that unit.
UNITS = (("_per_s", "M/s", 1e-6), ("_mpps", "Mpps", 1), ("_s", "s", 1))
# Figures whose names in JSON say too little for people: what they are of.
WORDS = {
    "ratio": "speed beside the first number of rules",
    "first_mpps": "first packets of flows_mpps",
    "seconds": "in all_s",
}


def figure(name: str, value: Any) -> str:
    """A figure for people: `handshakes 0.80 M/s` for handshakes_per_s 797000.0. Numbers have three digits that count, and never an exponent."""
    name = WORDS.get(name, name)
    if not isinstance(value, float):
        return f"{name} {value}"
    suffix, unit, factor = next((one for one in UNITS if name.endswith(one[0])), ("", "", 1))
    return f"{name.removesuffix(suffix)} {_digits(value * factor)} {unit}".rstrip()


def _digits(value: float) -> str:
    decimals = next((n for n in range(7) if abs(value) * 10**n >= 99.5), 2 if value == 0 else 6)
    return f"{value:,.{min(decimals, 2 if abs(value) >= 0.1 else 6)}f}"


def _write(result: dict[str, Any], name: str | None, quiet: bool) -> None:
    """The figures as lines for people unless quiet, and as JSON to a file; where that is stdout, the lines go to stderr."""
    for section, rows in () if quiet else result.items():
        for row in rows if isinstance(rows, list) else [rows]:
            text = "  ".join(figure(key, value) for key, value in row.items())
            click.echo(f"{section}: {text}", err=name == STDOUT)
    if name:
        data = orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        if name == STDOUT:
            sys.stdout.buffer.write(data)
        else:
            with open(name, "wb") as file:
                file.write(data)


@click.group("bench", short_help="measure the engine, rules or a replay")
@verbosity("No figures but the JSON.")
@click.pass_context
def command(context: click.Context, quiet: bool, verbose: bool) -> None:
    """Measure the engine, rules, or the replay of a capture, on this machine.

    \b
    Examples:
      ctmirror bench engine --flows 1000,100000,1000000 --json engine.json
      ctmirror bench rules --rules 10,10000 --json rules.json
      ctmirror bench replay office.pcap --runs 5
    """
    context.obj = quiet


@command.command("engine")
@click.option("--flows", type=FLOWS, default="1000,100000,1000000", help="Connections to measure with.  [default: 1000,100000,1000000]")
@click.option("--json", "output", metavar="[OUT]", is_flag=False, flag_value=STDOUT, help="Write the figures as JSON, without a name to stdout.")
@click.option("--nat", is_flag=True, help="Also with every connection source-translated and every packet rewritten.")
@verbosity("No figures but the JSON.")
@click.pass_obj
def engine_command(silent: bool, flows: list[int], output: str | None, nat: bool, quiet: bool, verbose: bool) -> None:
    """Packets and set-ups a second and bytes a connection, beside the limit of this machine.

    \b
    Examples:
      ctmirror bench engine
      ctmirror bench engine --flows 1000 --json
      ctmirror bench engine --nat                      what address translation costs
    """
    from datapath import benchmark

    _check(output)
    _write(benchmark.engine(flows, nat=nat), output, quiet or silent)


@command.command("rules")
@click.option("--flows", type=FLOWS, default="1000,100000,1000000", help="Connections to measure with.  [default: 1000,100000,1000000]")
@click.option("--rules", "numbers", type=Numbers("rules", "10,10000"), default="10,10000", help="Rules to measure with.  [default: 10,10000]")
@click.option("--json", "output", metavar="[OUT]", is_flag=False, flag_value=STDOUT, help="Write the figures as JSON, without a name to stdout.")
@verbosity("No figures but the JSON.")
@click.pass_obj
def rules_command(silent: bool, flows: list[int], numbers: list[int], output: str | None, quiet: bool, verbose: bool) -> None:
    """Packets and new connections a second through a stateful firewall of two chains, and how long its rules take to be read and compiled.

    \b
    Examples:
      ctmirror bench rules
      ctmirror bench rules --flows 100000 --rules 10,1000,10000 --json rules.json
    """
    from datapath import benchmark_rules

    _check(output)
    _write(benchmark_rules.rules(flows, numbers), output, quiet or silent)


@command.command("replay")
@click.argument("capture")
@click.option("--runs", type=Number(1, 1000), default=3, metavar="N", help="How often to replay it.  [default: 3]")
@click.option("--json", "output", metavar="[OUT]", is_flag=False, flag_value=STDOUT, help="Write the figures as JSON, without a name to stdout.")
@verbosity("No figures but the JSON.")
@click.pass_obj
def replay_command(silent: bool, capture: str, runs: int, output: str | None, quiet: bool, verbose: bool) -> None:
    """Packets a second of the whole command on a capture.

    \b
    Examples:
      ctmirror bench replay office.pcap
      ctmirror bench replay office.pcap --runs 9 --json replay.json
    """
    from datapath import benchmark

    _check(output)
    _write(benchmark.replay(capture, runs), output, quiet or silent)
