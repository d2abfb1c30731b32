"""Hostile users against whole hook processes: whatever stands where a hook reads or writes, however it came there.

Each case: the status of the contract in time, no lock of another job touched, nothing written through what was
planted, no program of a user's run as root, one line an event. The environment's part is in test_hook_process.py.
"""

from __future__ import annotations

import os
import socket
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from nodeagent.state import events
from nodeagent.state.hook_conf import HOOK_CONF, Source, read_hook_conf
from tests.contract.test_hook_process import PROMISED, ROOT, Ended, run, slurm_job, trap
from tests.sge_files import SgeJob
from tests.support import LaidOutNode, uuid

__all__ = ["trap"]

ALICE = 12345
"""A user's number; nobody has to have it."""
HUGE = 10**7
OTHERS = 7
"""The GPU that another job holds."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="plants files of other owners and devices: root only")


def _socket(path: Path) -> None:
    above = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(f"/proc/self/fd/{above}/{path.name}")  # a socket's own path may have 107 characters only
    finally:
        os.close(above)


def _huge(path: Path) -> None:
    path.write_bytes(b"x" * HUGE)


INSTEAD: Mapping[str, Callable[[Path], object]] = {
    "dangling link": lambda path: path.symlink_to("/nowhere/at/all"),
    "FIFO": os.mkfifo,
    "directory": lambda path: path.mkdir(mode=0o755),
    "socket": _socket,
    "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5)),
    "10⁷ bytes": _huge,
}
"""What stands in the place of a file or directory, which is gone."""
CHANGED: Mapping[str, Callable[[Path], object]] = {
    "foreign owner": lambda path: os.chown(path, ALICE, ALICE),
    "writable by its group": lambda path: path.chmod(path.stat().st_mode | 0o020),
    "writable by all": lambda path: path.chmod(path.stat().st_mode | 0o002),
    "writable parent": lambda path: path.parent.chmod(0o777),
}
"""What is done to one that stays."""
LINKED = ("link", "a user's link", "hard link")
"""Other names of a bystander, which says the same as what was there."""
SHAPES = (*INSTEAD, *CHANGED, *LINKED)


class Stage:
    """A node where another job holds a GPU, the job's files, and a bystander that nobody has to touch."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.kind = kind
        self.node = LaidOutNode(directory, kind, gpus=8, settings="hooks: {wait_for_units: 0}\n")
        self.state = self.node.state_dir
        self.job = SgeJob(directory / "spool", gpus=2)
        self.environ = slurm_job(gpus="0-1") if kind == "slurm" else self.job.environ
        self.theirs = self.state / "locks" / self._hold() / "owner"
        self._was = self._account(self.theirs)
        self.bystander = directory / "bystander"

    def _hold(self) -> str:
        [unit] = self.node.hold([OTHERS]).units
        return unit

    @staticmethod
    def _account(path: Path) -> tuple[object, ...]:
        status = path.stat()
        return status.st_ino, status.st_mtime_ns, path.parent.stat().st_ino, path.read_bytes()

    def plant(self, path: Path, shape: str) -> None:
        """Put something hostile in a path's place; what was there moves aside."""
        if shape in CHANGED:
            if not path.exists():
                path.touch(mode=0o644)
            CHANGED[shape](path)
            return
        aside = self.directory / "aside"
        if path.exists():
            path.rename(aside)
        if shape in INSTEAD:
            INSTEAD[shape](path)
            return
        self.bystander = aside
        if not aside.exists():
            aside.write_text("")
        if shape != "hard link":
            path.symlink_to(aside)
            os.lchown(path, *(ALICE, ALICE) if shape == "a user's link" else (0, 0))
        elif aside.is_dir():
            self.bystander = self.directory / "file"
            self.bystander.touch()
            os.link(self.bystander, path)
        else:
            os.link(aside, path)

    def hook(self, when: str) -> Ended:
        """Run a hook and check what holds in every case."""
        said = self.bystander.read_bytes() if self.bystander.is_file() else b""
        ended = run(f"{when}/{self.kind}", self.node, self.environ)
        assert ended.seconds < PROMISED
        assert ended.out == "" and (self.kind == "slurm" or ended.err == "")
        assert len(ended.err.splitlines()) <= 1
        assert self.bystander.read_bytes() == said if self.bystander.is_file() else True
        return ended

    def owners(self) -> list[Path]:
        """Return all locks, wherever they are now."""
        return [path for path in self.directory.rglob("owner") if path.is_file() and not path.is_symlink()]

    def check_others(self) -> None:
        """The other job's lock is the very one that it was."""
        assert self._was in [self._account(path) for path in self.owners()]

    def check_events(self) -> list[str]:
        """Every line is an event; return their kinds."""
        path = self.state / "events"
        if self.state.is_symlink() or path.is_symlink() or not path.is_file() or path.stat().st_size == HUGE:
            return []
        lines = path.read_bytes().splitlines()
        taken = events.take(self.node.state)
        assert len(taken) == len(lines)
        return [event.kind for event in taken]

    def mine(self) -> list[int]:
        """Return the GPUs that the test's own job holds."""
        job = self.environ.get("SLURM_JOB_ID") or self.environ["JOB_ID"]
        gpus = {uuid(gpu): gpu for gpu in range(self.node.gpus)}
        return sorted(gpus[path.parent.name] for path in self.owners() if f"job={job}" in path.read_text().split("\n"))


FREE, DEBRIS = f"state/locks/{uuid(5)}", f"state/locks/.new-0123456789abcdef-{uuid(5)}"
SPOOLED = "spool/active_jobs/603.1"
ALL = frozenset(SHAPES)
HARMLESS = frozenset({"hard link"})
"""A second name of a file of root's, for a file that is read: it says what it said."""
IN_ITS_PLACE = ALL - {"writable parent"}

# Where it stands → what may stand there and the job is served all the same. Anything else, and nothing is locked.
PLACES: Mapping[str, frozenset[str]] = {
    "config.yaml": HARMLESS,
    "conf.d/10-site.yaml": ALL,
    "state": frozenset(),
    "state/hook.conf": HARMLESS,
    "state/verdict": HARMLESS,
    "state/events": IN_ITS_PLACE,
    "state/events.dropped": IN_ITS_PLACE,
    "state/lock": frozenset({"10⁷ bytes"}),
    "state/locks": frozenset(),
    FREE: IN_ITS_PLACE,
    DEBRIS: IN_ITS_PLACE,
    "state/retired": frozenset(),
    f"state/retired/{uuid(5)}": IN_ITS_PLACE,
    "state/isolation": IN_ITS_PLACE,
    "state/isolation/0123456789abcdef": ALL,
    "state/isolation/.0123456789abcdef.1": ALL,
}
"""Places that hooks of both schedulers come to."""
GRID_ENGINES: Mapping[str, frozenset[str]] = {
    "state/reruns.603.": IN_ITS_PLACE,
    f"{SPOOLED}/environment": frozenset({"10⁷ bytes"}),
    f"{SPOOLED}/pe_hostfile": IN_ITS_PLACE,
    f"{SPOOLED}/pid": IN_ITS_PLACE,
    SPOOLED: frozenset({"link"}),
    "spool/jobs/00/0000/0603.1": HARMLESS,
    "spool/jobs/00": frozenset({"link"}),
}
DIRECTORIES = {"state", "state/locks", "state/retired", "state/isolation", SPOOLED, "spool/jobs/00"}
CASES = [
    (kind, place, shape)
    for kind, places in (("slurm", PLACES), ("sge", {**PLACES, **GRID_ENGINES}))
    for place in places
    for shape in SHAPES
    if not (shape == "directory" and place in DIRECTORIES)
]


def prepare(stage: Stage, place: str) -> Path:
    """Make what a hook would find there on its way."""
    path = stage.directory / place
    if place in ("state/retired", "state/isolation"):
        path.mkdir(mode=0o755)
    elif place.startswith("conf.d"):
        path.parent.mkdir()
        path.write_text("interval: 10s\n")
        status = path.stat()
        conf = read_hook_conf(stage.node.state)
        conf.sources = (Source(str(path), status.st_mtime_ns, status.st_size, ""),)
        stage.node.state.replace(HOOK_CONF, conf.encode())
    elif place == "state/events.dropped":
        with open(stage.state / "events", "wb") as file:
            start = b"1.0\tfill\twhy="
            file.write(start.ljust(events.CAP - 1, b"x") + b"\n")  # so that the next one is dropped
            os.fchmod(file.fileno(), 0o600)
    elif place.startswith("state/"):
        path.parent.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize(("kind", "place", "shape"), CASES)
def test_whatever_stands_where_a_hook_reads_or_writes(tmp_path: Path, kind: str, place: str, shape: str) -> None:
    stage = Stage(tmp_path, kind)
    stage.plant(prepare(stage, place), shape)
    served = shape in {**PLACES, **GRID_ENGINES}[place]
    ended = stage.hook("prolog")
    assert stage.mine() == ([0, 1] if served else [])
    assert ended.status == (0 if kind == "slurm" or served else 99)
    stage.check_others()
    assert stage.hook("epilog").status == 0
    stage.check_others()
    stage.check_events()


# -- which job it is --------------------------------------------------------------------------------------------------


def under_a_shepherd(stage: Stage, job: SgeJob, when: str, forged: Mapping[str, str]) -> int:
    """Run a hook as Grid Engine's shepherd does: in the job's directory, below a process of that name."""
    shepherd = stage.directory / "sge_shepherd"
    if not shepherd.exists():
        shepherd.symlink_to("/bin/sh")
    command = f"{ROOT}/{when}/sge --config {stage.node.config}; exit $?"
    argv = [str(shepherd), "-c", command]
    return subprocess.run(argv, env={**job.environ, **forged}, cwd=job.directory, timeout=20, check=False).returncode


@pytest.mark.parametrize("task", ["", "1", "3"])
def test_a_forged_environment_makes_no_job_another(tmp_path: Path, task: str) -> None:
    stage = Stage(tmp_path, "sge")
    victim, mine = (SgeJob(tmp_path / "spool", job, task, gpus=2) for job in ("500", "603"))
    for job in (victim, mine):
        forged = {**victim.environ, "SGE_TASK_ID": "17" if task == "3" else victim.environ["SGE_TASK_ID"]}
        assert under_a_shepherd(stage, job, "prolog", forged) == 0
    found = [(owner.job, owner.task) for owner in stage.node.store.owners().values()]
    assert found == [("500", task)] * 2 + [("603", task)] * 2 + [("7", "")]
    assert mine.exported()["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert under_a_shepherd(stage, mine, "epilog", victim.environ) == 0
    assert [owner.job for owner in stage.node.store.owners().values()] == ["500", "500", "7"]
    stage.check_others()
