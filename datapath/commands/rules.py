"""`ctmirror rules`: a rules file checked, shown, and put into the other form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from datapath.cli import USAGE, complain
from datapath.commands.output import opened, output_option
from datapath.commands.verbosity import verbosity
from datapath.hints import counted
from datapath.names import printable

if TYPE_CHECKING:
    from datapath.pipeline.rules import Ruleset

ACTIONS = {
    "check": "say what is wrong with each file, all of it",
    "show": "what is there, by hook, chain and priority",
    "tc": "as a script of tc lines, everything spelled out",
    "yaml": "as YAML",
    "schema": "the JSON Schema of rules in YAML (takes no file)",
}


@click.command("rules", short_help="rules files: check, show, tc, yaml, schema")
@click.argument("action", metavar="|".join(ACTIONS), type=click.Choice(list(ACTIONS)))
@click.argument("files", nargs=-1, metavar="[FILE...]")
@output_option
@verbosity("No warnings, and nothing of files that are fine.")
def command(action: str, files: tuple[str, ...], output: str | None, quiet: bool, verbose: bool) -> int:
    """Rules: tc filter lines, or the same in YAML, told apart by content. docs/rules.md describes both. `-` is stdin.

    Exit code 2 if a file has an error; warnings are what tc takes and hardly anybody means.

    \b
    Examples:
      ctmirror rules check rules.tc
      ctmirror rules show rules.yaml
      ctmirror rules tc rules.yaml | sh                  install them in this machine's kernel
      tc-generator | ctmirror rules yaml -
      ctmirror rules schema -o rules.schema.json
    """
    if action == "schema":
        if files:
            raise click.UsageError("schema: is the same for all files; expected no file")
        return _schema(output)
    if not files:
        raise click.UsageError(f"rules {action}: expected a file, or - for stdin")
    if action != "check" and len(files) > 1:
        raise click.UsageError(f"rules {action}: expected one file")
    if output and action == "check":
        raise click.UsageError("-o: check prints to stdout; expected show, tc, yaml or schema")
    read = [(name, _read(name, quiet)) for name in files]
    for name, ruleset in read:
        if ruleset is not None:
            _answer(action, name, ruleset, output, quiet)
    return USAGE if any(ruleset is None for _, ruleset in read) else 0


def _read(name: str, quiet: bool) -> Ruleset | None:
    """The rules; None if something is wrong, which is said on stderr."""
    from datapath.pipeline.findings import Findings
    from datapath.pipeline.rules import RuleError
    from datapath.pipeline.rules_file import read

    found, ruleset = Findings(), None
    try:
        ruleset = read(name, found)
    except RuleError as unread:
        found.errors.append(unread)
    for error in found.in_order():
        complain(str(error))
    for line in found.warnings if not quiet else ():
        complain(f"warning: {line}")
    return None if found.errors else ruleset


def _answer(action: str, name: str, ruleset: Ruleset, output: str | None, quiet: bool) -> None:
    if action == "check":
        chains = {(rule.hook, rule.chain) for rule in ruleset.rules}
        if not quiet:
            click.echo(f"{printable(name)}: {counted(len(ruleset.rules), 'rule')} in {counted(len(chains), 'chain')}, ok")
    elif action == "show":
        from datapath.pipeline.show import print_rules

        with opened(output) as file:
            print_rules(ruleset, file)
    else:
        from datapath.pipeline import tc_print, yaml_rules

        with opened(output) as file:
            click.echo(tc_print.print_ruleset(ruleset) if action == "tc" else yaml_rules.dump(ruleset), file=file, nl=False)


def _schema(output: str | None) -> int:
    from datapath.pipeline.yaml_rules import schema_text

    with opened(output) as file:
        click.echo(schema_text(), file=file, nl=False)
    return 0
