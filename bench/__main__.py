"""`python -m bench [NAME…]`: print the figures beside their limits and leave them in bench/out/report.json.

A missed limit is said, and no failure: the exit status is 0 unless something could not be measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from bench import agent, hooks, jobs, placement, poll, xid
from bench.failure import BenchFailed
from bench.figure import Figure, machine, table, write_report

REPORT = Path(__file__).resolve().parent / "out/report.json"
BUSY = 0.7


def main() -> int:
    """Run the benches that were asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what the product costs.")
    kinds = "hooks|jobs|poll|xid|agent|placement"
    parser.add_argument("which", nargs="*", metavar=kinds, help="what to measure (default: all)")
    parser.add_argument("--runs", type=int, default=200, help="runs of each hook (default: 200)")
    parser.add_argument("--jobs", type=int, default=200, help="jobs in each round on a real Slurm (default: 200)")
    parser.add_argument("--polls", type=int, default=200, help="polls at each cost of an NVML call (default: 200)")
    parser.add_argument("--xids", type=int, default=20, help="XIDs sent to an agent at rest (default: 20)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the agent is watched (default: 60)")
    options = parser.parse_args()
    benches: dict[str, Callable[[], list[Figure]]] = {
        "hooks": lambda: hooks.measure(options.runs),
        "jobs": lambda: jobs.measure(options.jobs),
        "poll": lambda: poll.measure(options.polls),
        "xid": lambda: xid.measure(options.xids),
        "agent": lambda: agent.measure(options.seconds),
        "placement": placement.measure,
    }
    unknown = set(options.which) - set(benches)
    if unknown or options.runs < 1:
        parser.error(f"no such bench: {' '.join(sorted(unknown))}" if unknown else "--runs: at least 1")
    begun = machine()
    print("  ".join(f"{key} {value}" for key, value in begun.items()))
    figures: list[Figure] = []
    for name in options.which or list(benches):
        try:
            found = benches[name]()
        except BenchFailed as error:
            print(f"bench {name}: {error}", file=sys.stderr)
            return 1
        figures += found
        print(f"\n{name}\n{table(found)}", flush=True)
    write_report(REPORT, figures, begun)
    _conclude(figures, float(str(begun["load_1min"])))
    return 0


def _conclude(figures: list[Figure], load: float) -> None:
    missed = [figure.name for figure in figures if figure.verdict == "MISSED"]
    print(f"\n{'MISSED: ' + ', '.join(missed) if missed else 'every limit is kept'}; {REPORT}")
    if load > BUSY:
        print(f"The machine was not quiet (load {load:g} at the start): take these figures again.")


if __name__ == "__main__":
    sys.exit(main())
