"""A stream of short jobs that tell which GPU each had, and when: whether two ever met, and on which none was."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One job's run: its GPU's index, and the seconds since the epoch between which it had it."""

    gpu: str
    began: float
    ended: float


def script(place: Path, seconds: float) -> str:
    """Return a job's script that writes its run to a file of its own in `place`, which every user may write to."""
    return (
        f"out=$(mktemp {place}/run.XXXXXXXXXX)\n"
        'echo "$CUDA_VISIBLE_DEVICES" >$out; date +%s.%N >>$out\n'
        f"sleep {seconds}\ndate +%s.%N >>$out; mv $out $out.done\n"
    )


def runs(place: Path) -> list[Run]:
    """Return the runs that have ended, in the order in which they began."""
    told = (path.read_text().split() for path in place.glob("run.*.done"))
    return sorted((Run(gpu, float(began), float(ended)) for gpu, began, ended in told), key=lambda run: run.began)


def meetings(found: list[Run]) -> Iterator[tuple[Run, Run]]:
    """Yield the pairs of runs that had one GPU at the same time."""
    last: dict[str, Run] = {}
    for run in found:
        before = last.get(run.gpu)
        if before is not None and run.began < before.ended:
            yield before, run
        last[run.gpu] = run if before is None else max(before, run, key=lambda one: one.ended)


def most_at_once(found: list[Run]) -> int:
    """Return how many runs there were at one moment, at most."""
    changes = sorted([(run.began, 1) for run in found] + [(run.ended, -1) for run in found])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most
