"""`make corpus`: the whole corpus through the engine; prints its figures and fails where one is not what it must be."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ProcessPoolExecutor

from nodeagent.health.checks import CHECKS
from nodeagent.replay.score import Score, total
from tests.corpus.faults import FAULTS
from tests.corpus.measure import MODELS, Tried, try_day, try_fault, try_neighbour
from tests.corpus.neighbours import NEIGHBOURS

DAYS = 30


def main() -> int:
    """Print the figures; 1 where a fault was missed or a healthy node lost something."""
    begun = time.monotonic()
    faults = [tried for model in MODELS for fault in FAULTS if (tried := try_fault(fault, model)) is not None]
    by_check: dict[str, list[Tried]] = {name: [] for name in CHECKS}
    for tried in faults:
        for detection in tried.score.detections:
            by_check.setdefault(detection.truth.fault, []).append(tried)
    print(f"{'check':24} {'faults':>6} {'found':>6} {'delay median':>13} {'longest':>8}")
    for name, some in ((name, some) for name, some in by_check.items() if some):
        print(_row(name, total([tried.score for tried in some])))
    whole = total([tried.score for tried in faults])
    print(_row("all", whole))
    quiet = [try_neighbour(neighbour, model) for model in MODELS for neighbour in NEIGHBOURS]
    with ProcessPoolExecutor() as pool:
        days = list(pool.map(try_day, range(DAYS)))
    healthy = total([tried.score for tried in days])
    print(f"\nrecall {whole.recall or 0:.1%} of {len(whole.detections)} faults on {len(MODELS)} models (limit 100 %)")
    print(f"precision with faults planted {whole.precision or 0:.1%}")
    print(f"neighbours that took something out: {sum(bool(one.score.false_actions) for one in quiet)} of {len(quiet)}")
    taken = len(healthy.false_actions)
    print(f"false drains and retirements in {healthy.node_days:.1f} healthy node-days: {taken} (limit 0)")
    print(f"passing alarms without an action: {healthy.false_alarms_a_day or 0:.2f} a node-day")
    print(f"{sum(one.story.sweeps for one in faults + quiet + days)} sweeps in {time.monotonic() - begun:.0f} s")
    wrong = [one for one in faults + quiet + days if one.score.missed or one.score.false_actions]
    for one in wrong:
        print(f"  {one.model}: {one.name}: {_why(one)}")
    return 1 if wrong else 0


def _row(name: str, found: Score) -> str:
    delays = found.delays
    median, longest = (f"{found.median_delay:.0f} s", f"{delays[-1]:.0f} s") if delays else ("-", "-")
    return f"{name:24} {len(found.detections):6} {len(delays):6} {median:>13} {longest:>8}"


def _why(one: Tried) -> str:
    missed = [f"missed {truth.fault} of {truth.unit or 'the node'}" for truth in one.score.missed]
    return "; ".join(missed + [f"{at:.0f} s: {decision}" for at, decision in one.score.false_actions])


if __name__ == "__main__":
    sys.exit(main())
