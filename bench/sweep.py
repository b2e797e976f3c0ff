"""Batch sizes, measured: why BATCH in ctcore/types.pxd is what it is.

    python -m bench.sweep [--flows 1000,100000,1000000] [--batches 16,32,64,128,256,512]

A larger batch gives the memory more time between asking and using; a smaller one leaves more of the first-level cache to the entries. Each line
is the engine's speed and its ratio to the limit kernel with that batch size, the limit kernel using the same.
"""

from __future__ import annotations

import argparse

from datapath.benchmark import apart, measure_engine


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flows", type=numbers, default=[1000, 100_000, 1_000_000])
    parser.add_argument("--batches", type=numbers, default=[16, 32, 64, 128, 256, 512])
    options = parser.parse_args()
    print(f"{'flows':>9} {'batch':>6} {'Mpps':>7} {'ratio':>6}")
    for flows in options.flows:
        for batch in options.batches:
            row = apart(measure_engine, flows, rounds=3, batch=batch)
            print(f"{flows:>9,} {batch:>6} {row['mpps']:>7.2f} {row['ratio_to_limit']:>6.2f}", flush=True)


if __name__ == "__main__":
    main()
