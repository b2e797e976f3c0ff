"""The command `ctmirror`: names its sub-commands and turns whatever goes wrong into one line and an exit code.

Not here: what a sub-command does; each is a module of datapath.commands, imported when it is called for, so that --help costs nothing.
Invariant: no exception leaves main(). Exit 0: fine; 1: the answer is "no"; 2: usage or input; 130: interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from ctcore.errors import CtmirrorError
from datapath.names import printable

# The one-line helps stand here and not in the modules, which are not imported for `ctmirror --help`.
COMMANDS = {
    "replay": "run captures through connection tracking and say what it says of each packet",
    "check": "run scenarios, or compare captures with saved packet records",
    "explain": "one packet stage by stage, or one connection's life, with the reason and its rule",
    "rules": "rules of the pipeline, as tc lines or YAML: check, show, convert",
    "diff": "captures through ctmirror and through the running kernel, packet by packet; prints the differences",
    "states": "the protocol tables, timeouts and reason codes as text, Markdown or Mermaid",
    "policy": "Kubernetes network policies as rules, and what they say of one connection",
    "offload": "what NICs would take of captures, or have of a live node, and why not more; rules in the kernel's TC",
    "run": "the live datapath: packets of real interfaces through rules",
    "conntrack": "conntrack(8) for a running node: list, change, delete connections, follow events",
    "stats": "what a running node has counted",
    "top": "the busiest connections of a running node",
    "control": "other rules, another log level for a running node",
    "save": "have a running node save its connections",
    "doctor": "what this machine can do, and what to do about what is missing",
    "bench": "measure the engine, rules, or the replay of a capture",
}
# NumPy's linear algebra would start a thread for every core, which nothing here needs and every start would pay for.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Modules are many objects that all stay; looking for garbage among them every 700 takes a tenth of the start.
gc.set_threshold(100_000)

USAGE, INTERRUPTED = 2, 130
BARE = getattr(click.exceptions, "NoArgsIsHelpError", ())  # a group without a command; before click 8.2 it printed the help by itself
TRACEBACK = "CTMIRROR_TRACEBACK"


class Commands(click.Group):
    """A group whose commands are modules, imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"datapath.commands.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"ctmirror {version('ctmirror')}")
        ctx.exit()


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version and exit.")
def cli() -> None:
    """Linux connection tracking in userspace: what conntrack says of each packet of a capture, and why.

    \b
    Examples:
      ctmirror replay office.pcap                        a summary for people
      ctmirror replay office.pcap --packets - | head     one JSON record a packet
      ctmirror explain office.pcap --packet 3481         why that packet was judged as it was
      sudo ctmirror diff office.pcap                     would this machine's kernel say the same?
    """


def complain(text: str) -> None:
    """One line on stderr, whatever the text contains. Blanks are kept: they may be in the name of a file."""
    print("ctmirror: " + printable(" ".join(line.strip() for line in text.splitlines())), file=sys.stderr, flush=True)


def _usage(error: click.ClickException) -> str:
    """click's message as our one line, pointing to the help of the command it is about."""
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    return f"{message} (see {context.command_path} --help)" if context else message


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code."""
    _replace_closed()
    try:
        result = cli.main(args=None if argv is None else list(argv), prog_name="ctmirror", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        if isinstance(error, BARE):
            error.show()  # the help, to be read: on stderr, for it was not asked for
        else:
            complain(_usage(error))
    except CtmirrorError as error:
        complain(str(error))
    except (BrokenPipeError, SystemExit):
        # Whoever read our output has seen enough; click and rich say that by SystemExit.
        return 0
    except OSError as error:
        # The files that are written are named in their errors (export), so this one can only be about stdout.
        complain(f"{error.filename or 'stdout: cannot be written'}: {error.strerror or error}")
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:
        # A fault of ours, not the user's; still one line, and the rest for whoever looks for it.
        if os.environ.get(TRACEBACK):
            raise
        complain(f"internal error: {type(error).__name__}: {error}; {TRACEBACK}=1 shows where; please report it")
    finally:
        _leave_stdout()
    return USAGE


def _replace_closed() -> None:
    """What we were started without (>&-) becomes the null device: Python has None there, and the next file opened would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (it stays open as long as the process lives)


def _leave_stdout() -> None:
    """What stdout does not take now is dropped: Python would try again at exit, and complain once more."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
