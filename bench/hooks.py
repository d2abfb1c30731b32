"""What a hook costs a job: each stub as a whole process against a bare interpreter, in the same run.

The library is laid out and compiled as a package installs it, on the kind of file system that /run is. One round runs
the bare interpreter and all five hooks once, Slurm's and Grid Engine's in changing order, so that whatever else the
machine does falls on all alike. Each round has a job of its own, which its epilog ends.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.failure import BenchFailed
from bench.figure import Figure
from bench.place import PYTHON, compiled_library, in_memory
from bench.timing import Times, run_once, system_calls
from tests.sge_files import SgeJob
from tests.support import LaidOutNode

BARE = "bare python3 -IS -c pass"
LIMIT = 2.5
GOAL = "1.6-1.8"
GPUS = 8
ASKED = 4
WARM_UP = 5

Step = tuple[str, list[str], dict[str, str]]
"""A command's name, its argv, its environment."""


def measure(runs: int) -> list[Figure]:
    """Run each command `runs` times and return the figures.

    Raises:
        BenchFailed: a hook did not lock or release what it had to.

    """
    with _laid_out() as place:
        place.node_of["slurm"].write_verdict()
        for number in range(WARM_UP):
            _round(place, number, {})
        times: dict[str, Times] = {}
        for number in range(WARM_UP, WARM_UP + runs):
            _round(place, number, times)
        calls = _count_calls(place, WARM_UP + runs)
    return _figures(times, calls)


class _Place:
    """The library as installed, and one node for each scheduler, with eight GPUs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.library = compiled_library(directory / "lib")
        self.node_of = {}
        for kind in ("slurm", "sge"):
            (directory / kind).mkdir()
            self.node_of[kind] = LaidOutNode(directory / kind, kind, gpus=GPUS)

    def step(self, stub: str, kind: str, environ: Mapping[str, str]) -> Step:
        argv = [str(self.library / stub), "--config", str(self.node_of[kind].config)]
        return stub, argv, dict(environ)

    def check(self, kind: str, held: int) -> None:
        """Raises BenchFailed unless so many units are held: a hook that failed early would look quick."""
        found = len(self.node_of[kind].held())
        if found != held:
            raise BenchFailed(f"{kind}: {found} GPUs are locked where {held} should be")


@contextmanager
def _laid_out() -> Iterator[_Place]:
    before = Path.cwd()
    with in_memory() as directory:
        try:
            os.chdir("/")
            yield _Place(directory)
        finally:
            os.chdir(before)


def _slurm(place: _Place, number: int) -> list[Step]:
    environ = {
        "PATH": "/usr/bin:/bin",
        "SLURM_JOB_ID": str(number + 1),
        "SLURM_JOB_GPUS": f"0-{ASKED - 1}",
        "SLURM_JOB_UID": "1000",
        "SLURM_JOB_USER": "alice",
        "SLURM_CLUSTER_NAME": "lab",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(ASKED))),
    }
    return [place.step(stub, "slurm", environ) for stub in ("prolog/slurm", "prolog/slurm-task", "epilog/slurm")]


def _sge(place: _Place, number: int) -> list[Step]:
    job = SgeJob(place.directory / "spool", str(number + 1), gpus=ASKED)
    return [place.step(stub, "sge", job.environ) for stub in ("prolog/sge", "epilog/sge")]


def _round(place: _Place, number: int, times: dict[str, Times]) -> None:
    """Run everything once, and see that each prolog locked and each epilog released."""
    for node in place.node_of.values():
        node.write_verdict()
    bare = [(BARE, [PYTHON, "-IS", "-c", "pass"], dict[str, str]())]
    parts = [("", bare), ("slurm", _slurm(place, number)), ("sge", _sge(place, number))]
    random.Random(number).shuffle(parts)  # noqa: S311  an order, not a secret
    for kind, steps in parts:
        for name, argv, environ in steps:
            times.setdefault(name, Times()).add(run_once(argv, environ))
            if kind:
                place.check(kind, 0 if name.startswith("epilog") else ASKED)


def _count_calls(place: _Place, number: int) -> dict[str, int]:
    """Return each hook's system calls beyond the bare interpreter's; nothing without strace."""
    bare = system_calls([PYTHON, "-IS", "-c", "pass"], {}, place.directory)
    if bare is None:
        return {}
    steps = [*_slurm(place, number), *_sge(place, number)]
    return {name: (system_calls(argv, environ, place.directory) or 0) - bare for name, argv, environ in steps}


def _figures(times: Mapping[str, Times], calls: Mapping[str, int]) -> list[Figure]:
    bare = times[BARE]
    found = [Figure("hooks", BARE, bare.median, "ms", note=f"p99 {bare.p99:.2f} ms")]
    for name in sorted(set(times) - {BARE}, key=lambda name: (name.rpartition("/")[2].partition("-")[0], name)):
        one = times[name]
        extra = f"{calls[name]} system calls more" if name in calls else "strace missing"
        note = f"median {one.median:.2f} ms, p99 {one.p99:.2f} ms; {extra}"
        found.append(Figure("hooks", name, one.median / bare.median, "x", LIMIT, GOAL, note))
    return found
