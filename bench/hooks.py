"""What a hook costs a job: each stub as a whole process against a bare interpreter, in the same run.

The library is laid out, compiled and linked as a package installs it, on the kind of file system that /run is. One
round runs the bare interpreter and all five hooks once on each of four nodes, in changing order, so that whatever else
the machine does falls on all alike. Each round has a job of its own, which its epilog ends.
"""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.failure import BenchFailed
from bench.figure import Figure
from bench.place import PYTHON, compiled_library, in_memory
from bench.timing import Times, run_once, system_calls
from nodeagent.isolation.cgroup import directory_of
from nodeagent.isolation.confine import methods
from nodeagent.isolation.devices import NVIDIA_MAJOR
from nodeagent.state import events
from nodeagent.state.hook_conf import Gres
from nodeagent.state.verdict_file import OK, UnitLine
from tests.sge_files import SgeJob
from tests.support import LaidOutNode, uuid

BARE = "bare python3 -IS -c pass"
LIMIT, GOAL = 1.8, "1.6"
LARGE = 1.2
"""The most that a hook may cost on a large node, of what it costs on the usual one."""
ASKED = 4
WARM_UP = 5
MOVES, PAUSE = 15, 0.1
INSTANCES = 4
SAME_GPU = 1_000_000

Step = tuple[str, list[str], dict[str, str]]
"""A command's name, its argv, its environment."""


@dataclass(frozen=True)
class Size:
    """A node: its GPUs, whether each of them is in MIG mode (four instances), how many events wait for the agent.

    With `isolation` its jobs are confined to their GPUs, which is Grid Engine's hooks' business alone.
    """

    name: str
    gpus: int = 8
    mig: bool = False
    events: int = 0
    isolation: str = "none"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The schedulers whose hooks are run on it."""
        return ("slurm", "sge") if self.isolation == "none" else ("sge",)


USUAL = Size("8 GPUs")
CONFINED = tuple(Size(method, isolation=method) for method in ("cgroup-v1", "cgroup-v2"))
SIZES = (USUAL, Size("16 GPUs", 16), Size("64 MIG instances", 16, mig=True), Size("10000 events", events=10_000))


class _Node(LaidOutNode):
    """A laid-out node of that size."""

    def __init__(self, directory: Path, kind: str, size: Size) -> None:
        directory.mkdir(parents=True)
        self._mig = size.mig
        settings = f"isolation: {size.isolation}\nroots: {{dev: {directory / 'dev'}}}\n"
        super().__init__(directory, kind, gpus=size.gpus, settings=settings)
        if size.isolation != "none":
            (directory / "dev").mkdir()
            for minor in range(size.gpus):
                os.mknod(directory / f"dev/nvidia{minor}", stat.S_IFCHR | 0o666, os.makedev(NVIDIA_MAJOR, minor))
        if size.mig:
            self.compile({at: Gres(line.minor, line.caps) for at, line in enumerate(self.units())})
        for number in range(size.events):
            events.append(self.state, "grant", scheduler=kind, job=str(number), user="alice", units=uuid(number % 8))

    def units(self, states: Mapping[int, str] | None = None) -> tuple[UnitLine, ...]:
        if not self._mig:
            return super().units(states)
        places = [(gpu, instance) for gpu in range(self.gpus) for instance in range(INSTANCES)]
        return tuple(
            UnitLine(
                f"MIG-{gpu:08x}-000{instance}-5000-8000-000000000000",
                -1,
                gpu,
                f"0000:{gpu:02x}:00.0",
                "H100 MIG 1g.10gb",
                0,
                tuple(SAME_GPU if other == gpu else 1 for other, _ in places),
                OK,
                gpu=uuid(gpu),
                caps=(100 * gpu + 10 * instance + 3, 100 * gpu + 10 * instance + 4),
            )
            for gpu, instance in places
        )


def measure(runs: int) -> list[Figure]:
    """Run each command `runs` times on each node and return the figures.

    Raises:
        BenchFailed: a hook did not lock or release what it had to.

    """
    with _laid_out() as place:
        for number in range(WARM_UP):
            _round(place, number, {})
        times: dict[tuple[str, str], Times] = {}
        for number in range(WARM_UP, WARM_UP + runs):
            _round(place, number, times)
        calls = _count_calls(place, WARM_UP + runs)
    return _figures(times, calls)


class _Place:
    """The library as installed, and for each size a node for each scheduler."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.library = compiled_library(directory / "lib")
        self.nodes = {
            (size.name, kind): _Node(directory / f"node{at}" / kind, kind, size)
            for at, size in enumerate((*SIZES, *_can_be_had()))
            for kind in size.kinds
        }

    def step(self, stub: str, node: _Node, environ: Mapping[str, str]) -> Step:
        return stub, [str(self.library / stub), "--config", str(node.config)], dict(environ)


def _can_be_had() -> list[Size]:
    """Return the methods of isolation that this process may use here."""
    known = methods()
    return [size for size in CONFINED if os.geteuid() == 0 and not known[size.isolation].why_not(os.getpid())]


def _check(node: _Node, held: int) -> None:
    """Raises BenchFailed unless so many units are held: a hook that failed early would look quick."""
    found = len(node.store.owners())
    if found != held:
        raise BenchFailed(f"{node.config}: {found} units are locked where {held} should be")


@contextmanager
def _laid_out() -> Iterator[_Place]:
    before = Path.cwd()
    with in_memory() as directory:
        try:
            os.chdir("/")
            yield _Place(directory)
        finally:
            os.chdir(before)


def _slurm(place: _Place, node: _Node, number: int) -> list[Step]:
    environ = {
        "PATH": "/usr/bin:/bin",
        "SLURM_JOB_ID": str(number + 1),
        "SLURM_JOB_GPUS": f"0-{ASKED - 1}",
        "SLURM_JOB_UID": "1000",
        "SLURM_JOB_USER": "alice",
        "SLURM_CLUSTER_NAME": "lab",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(ASKED))),
    }
    return [place.step(stub, node, environ) for stub in ("prolog/slurm", "prolog/slurm-task", "epilog/slurm")]


def _sge(place: _Place, node: _Node, number: int) -> list[Step]:
    job = SgeJob(place.directory / "spool", str(number + 1), gpus=ASKED)
    (job.directory / "pid").write_text(f"{os.getpid()}\n")  # this process is the shepherd
    return [place.step(stub, node, job.environ) for stub in ("prolog/sge", "epilog/sge")]


_STEPS = {"slurm": _slurm, "sge": _sge}


def _round(place: _Place, number: int, times: dict[tuple[str, str], Times]) -> None:
    """Run everything once, and see that each prolog locked and each epilog released."""
    parts = [*place.nodes, ("", "")]
    random.Random(number).shuffle(parts)  # noqa: S311  an order, not a secret
    for size, kind in parts:
        if not kind:
            times.setdefault(("", BARE), Times()).add(run_once([PYTHON, "-IS", "-c", "pass"], {}))
            continue
        node = place.nodes[size, kind]
        node.write_verdict()
        for name, argv, environ in _STEPS[kind](place, node, number):
            times.setdefault((size, name), Times()).add(run_once(argv, environ))
            _check(node, 0 if name.startswith("epilog") else ASKED)


def _count_calls(place: _Place, number: int) -> dict[str, int]:
    """Return each hook's system calls beyond the bare interpreter's, on the usual node; nothing without strace."""
    bare = system_calls([PYTHON, "-IS", "-c", "pass"], {}, place.directory)
    if bare is None:
        return {}
    steps = [step for kind, make in _STEPS.items() for step in make(place, place.nodes[USUAL.name, kind], number)]
    return {name: (system_calls(argv, environ, place.directory) or 0) - bare for name, argv, environ in steps}


def _kernels_move(controller: str) -> float:
    """Return the milliseconds for which the kernel keeps whoever moves a process to another cgroup, at the median.

    The first move after a pause waits for all CPUs (a grace period of RCU); one soon after it does not.
    """
    home = directory_of("/proc", os.getpid(), controller)
    place = f"{home}/bench-{os.getpid()}"
    os.mkdir(place)
    times = Times()
    try:
        for _ in range(MOVES):
            time.sleep(PAUSE)
            began = time.perf_counter()
            Path(place, "cgroup.procs").write_text(str(os.getpid()))
            times.add(1000 * (time.perf_counter() - began))
            Path(home, "cgroup.procs").write_text(str(os.getpid()))
    finally:
        os.rmdir(place)
    return times.median


def _figures(times: Mapping[tuple[str, str], Times], calls: Mapping[str, int]) -> list[Figure]:
    bare = times["", BARE]
    found = [Figure("hooks", BARE, bare.median, "ms", note=f"p99 {bare.p99:.2f} ms")]
    names = sorted({name for size, name in times if size}, key=lambda name: (name.rpartition("/")[2], name))
    for name in names:
        one = times[USUAL.name, name]
        extra = f"{calls[name]} system calls more" if name in calls else "strace missing"
        note = f"median {one.median:.2f} ms, p99 {one.p99:.2f} ms; {extra}"
        found.append(Figure("hooks", name, one.median / bare.median, "x", LIMIT, GOAL, note))
    for size in _can_be_had():
        move = _kernels_move("devices" if size.isolation == "cgroup-v1" else "")
        for name in ("prolog/sge", "epilog/sge"):
            one = times[size.name, name]
            note = f"median {one.median:.2f} ms, p99 {one.p99:.2f} ms; the kernel's move alone {move:.2f} ms"
            found.append(Figure("hooks", f"{name}, {size.name}", one.median / bare.median, "x", LIMIT, note=note))
    for size in SIZES[1:]:
        for name in names:
            ratio = times[size.name, name].median / times[USUAL.name, name].median
            found.append(Figure("hooks", f"{name}, {size.name}", ratio, "x", LARGE, note=f"of {USUAL.name}"))
    return found
