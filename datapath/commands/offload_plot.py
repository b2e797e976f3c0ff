"""A plan drawn: the share of bytes in hardware and the entries there, of each scenario, over the capture's time. As PNG, SVG, or HTML around an SVG.

Invariant: the same plan gives the same file. Not here: the figures (offload_plan).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from io import StringIO
from typing import TYPE_CHECKING, Any

from ctcore.errors import CtmirrorError
from datapath.commands.offload_plan import Outcome
from datapath.commands.offload_shown import COLUMNS, row
from datapath.export import naming
from datapath.extras import remedy
from datapath.names import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".html")
STYLES = {"first-come": "-", "by-rate": "--", "by-bytes": ":"}  # by policy
OWN_COLOURS = 10  # of matplotlib; more scenarios than that share a scale of colours
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ctmirror offload plan</title>
<style>body {{ font-family: sans-serif }} td, th {{ padding: 0 1em 0 0; text-align: right }}</style></head>
<body><h1>What hardware takes</h1>
<table><tr>{head}</tr>
{rows}</table>
{figure}</body></html>
"""


def check_plot(name: str) -> None:
    """Raises CtmirrorError for another kind of file, and where nothing can be drawn: before anything is replayed."""
    if os.path.splitext(name)[1].lower() not in ENDINGS:
        raise CtmirrorError(f"{name}: expected a plot's name to end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if find_spec("matplotlib") is None:
        raise CtmirrorError(f"{name}: plots need matplotlib: {remedy('plot')}")


def draw(outcomes: Sequence[Outcome], name: str) -> None:
    """Write the plot of a plan. Raises OutputError."""
    figure = drawn(outcomes)
    ending = os.path.splitext(name)[1].lower()
    with naming(name):
        if ending == ".png":
            figure.savefig(name, format="png", dpi=120)
        else:
            text = svg(figure)
            with open(name, "w", encoding="utf-8") as file:
                file.write(text if ending == ".svg" else page(outcomes, text))


def curves(outcome: Outcome, start: int) -> tuple[list[int], list[float], list[int]]:
    """Seconds since `start`, percent of their bytes in hardware (not a number where none came), and entries."""
    rows = sorted(outcome.series.seconds.items())
    shares = [100 * second.hardware_bytes / second.bytes if second.bytes else float("nan") for _, second in rows]
    return [at - start for at, _ in rows], shares, [second.entries for _, second in rows]


def drawn(outcomes: Sequence[Outcome]) -> Figure:
    """Two graphs, one above the other, with a line a scenario each."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    n = len(outcomes)
    figure = Figure(figsize=(11, 6.5 + n / 10), layout="constrained")
    bytes_, entries = figure.subplots(2, 1, sharex=True)
    start = min((second for outcome in outcomes for second in outcome.series.seconds), default=0)
    lines = []
    for i, outcome in enumerate(outcomes):
        times, shares, held = curves(outcome, start)
        colour = f"C{i}" if n <= OWN_COLOURS else colormaps["turbo"](i / (n - 1))
        look: dict[str, Any] = {"linewidth": 1, "color": colour, "linestyle": STYLES[outcome.scenario.policy]}
        (line,) = bytes_.plot(times, shares, marker=".", markersize=3, **look)
        entries.step(times, held, where="post", **look)
        lines.append(line)
    bytes_.set(ylabel="% of bytes in hardware", ylim=(-2, 102))
    entries.set(ylabel="entries in hardware", xlabel="seconds of the capture")
    entries.set_ylim(bottom=0)
    entries.yaxis.set_major_locator(MaxNLocator(integer=True))
    shown: Any = [printable(outcome.scenario.title).replace("$", r"\$") for outcome in outcomes]
    figure.legend(lines, shown, loc="outside lower center", ncols=2, fontsize="small")
    return figure


def svg(figure: Figure) -> str:
    """Without date and random ids."""
    import matplotlib

    text = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "ctmirror", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def page(outcomes: Sequence[Outcome], figure: str) -> str:
    """A page that needs nothing but itself."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row(outcome)) + "</tr>\n" for outcome in outcomes)
    return PAGE.format(head=head, rows=rows, figure=figure[figure.index("<svg") :])
