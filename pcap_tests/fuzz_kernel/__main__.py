"""make fuzz-kernel: judge fresh traces, print the summary; exit 1 if any differ, 2 if the kernel cannot be asked."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from datapath.errors import KernelError
from pcap_tests.fuzz_kernel.campaign import PLANS, Campaign, summary


@click.command()
@click.option("--seconds", type=float, default=None, help="how long; 60 if --traces is not given either")
@click.option("--traces", type=int, default=None, help="how many traces")
@click.option("--seed", type=int, default=None, help="of all traces; drawn from the clock if not given")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("build/fuzz-kernel"), help="where differing traces are written as scenarios")
@click.option("--plan", type=click.Choice(sorted(PLANS)), default="plain", show_default=True, help="what the traces are about")
def main(seconds: float | None, traces: int | None, seed: int | None, folder: Path, plan: str) -> None:
    """Compare the engine with the running kernel on random traffic."""
    seed = int(time.time()) if seed is None else seed
    campaign = Campaign(seed, folder, plan=PLANS[plan])
    try:
        tally = campaign.run(traces=traces, seconds=60 if seconds is None and traces is None else seconds)
    except KernelError as error:
        print(f"fuzz-kernel: {error}", file=sys.stderr)
        sys.exit(2)
    print("\n".join(summary(seed, tally)))
    sys.exit(1 if tally.differing else 0)


if __name__ == "__main__":
    main()
