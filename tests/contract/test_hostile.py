"""Hostile users against whole hook processes: whatever stands where a hook reads or writes, however it came there.

Each case: the status of the contract in time, no lock of another job touched, nothing written through what was
planted, no program of a user's run as root, one line an event. The environment's part is in test_hook_process.py.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from nodeagent.state import events
from nodeagent.state.hook_conf import HOOK_CONF, Source, read_hook_conf
from tests.contract.test_hook_process import PROMISED, ROOT, Ended, Trap, run, slurm_job, trap, with_strace
from tests.contract.test_link import lay_out, linked_files
from tests.sge_files import SgeJob, packed_job
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
        kinds = [event.kind for event in events.take(self.node.state)]
        assert kinds == ["events_refused"] or len(kinds) == len(lines)
        return kinds

    def mine(self) -> list[int]:
        """Return the GPUs that the test's own job holds."""
        job = b"12" if self.kind == "slurm" else b"603"
        gpus = {uuid(gpu): gpu for gpu in range(self.node.gpus)}
        mine = [path for path in self.owners() if b"job=" + job in path.read_bytes().split(b"\n")]
        return sorted(gpus[path.parent.name] for path in mine)


Stages = Callable[[str], Stage]


@pytest.fixture
def stage_of(tmp_path: Path) -> Iterator[Stages]:
    """Lay stages out, and close what they hold open: there are more cases than a process may have files."""
    made: list[Stage] = []

    def lay_out_stage(kind: str) -> Stage:
        made.append(Stage(tmp_path, kind))
        return made[-1]

    yield lay_out_stage
    for stage in made:
        stage.node.state.close()


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
    "state/wake": IN_ITS_PLACE,
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
    "state/sge-spool": IN_ITS_PLACE,
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
def test_whatever_stands_where_a_hook_reads_or_writes(stage_of: Stages, kind: str, place: str, shape: str) -> None:
    stage = stage_of(kind)
    stage.plant(prepare(stage, place), shape)
    served = shape in {**PLACES, **GRID_ENGINES}[place]
    ended = stage.hook("prolog")
    assert stage.mine() == ([0, 1] if served else [])
    assert ended.status == (0 if kind == "slurm" or served else 99)
    stage.check_others()
    assert stage.hook("epilog").status == 0
    assert stage.mine() == []
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
def test_a_forged_environment_makes_no_job_another(stage_of: Stages, tmp_path: Path, task: str) -> None:
    stage = stage_of("sge")
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


# -- whose words are believed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["config.yaml", "state/hook.conf", "state"])
@pytest.mark.parametrize("shape", ["a user's link", *CHANGED])
@pytest.mark.parametrize("kind", ["slurm", "sge"])
def test_no_program_is_run_that_a_user_names(
    stage_of: Stages, tmp_path: Path, trap: Trap, kind: str, place: str, shape: str
) -> None:
    stage = stage_of(kind)
    evil = tmp_path / "evil"
    evil.mkdir()
    theirs = LaidOutNode(evil, kind, gpus=8, settings="hooks: {wait_for_units: 0}\n")
    for node in (stage.node, theirs):  # what makes a hook run a scheduler's command
        with node.store.exclusive():
            node.store.retire(uuid(0), [("reason", "XID 79")])
        node.compile(**{f"scheduler.{kind}.bin_dir": str(trap.directory)})
    stage.job.file.write_bytes(b"of another form")
    path = tmp_path / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(evil / place, path) if place == "state" else shutil.copy(evil / place, path)
    stage.plant(path, shape)
    theirs.state.close()
    ended = run(f"prolog/{kind}", stage.node, {**trap.environ, **stage.environ})
    assert ended.status == (0 if kind == "slurm" else 99)
    assert ended.seconds < PROMISED
    assert trap.sprung() == []


def test_the_bait_is_taken_where_root_itself_names_it(stage_of: Stages, trap: Trap) -> None:
    stage = stage_of("slurm")
    stage.node.compile(**{"scheduler.slurm.bin_dir": str(trap.directory)})
    with stage.node.store.exclusive():
        stage.node.store.retire(uuid(0), [("reason", "XID 79")])
    run("prolog/slurm", stage.node, stage.environ)
    assert trap.sprung() == ["scontrol"]


@pytest.mark.parametrize("shape", [shape for shape in INSTEAD if shape != "dangling link"])
@pytest.mark.parametrize("stub", ["prolog/slurm", "epilog/slurm", "prolog/sge", "epilog/sge"])
def test_whatever_stands_where_a_linked_hook_is(stage_of: Stages, tmp_path: Path, stub: str, shape: str) -> None:
    place, kind = lay_out(tmp_path / "library"), stub.partition("/")[2]
    stage = stage_of(kind)
    for path in linked_files(place):
        path.unlink()
        INSTEAD[shape](path)
    argv = [str(place / stub), "--config", str(stage.node.config)]
    done = subprocess.run(argv, env=stage.environ, capture_output=True, timeout=PROMISED, check=False)
    damaged = shape == "10⁷ bytes"  # no link at all in the other cases: its modules are searched for
    assert done.returncode == (99 if damaged and stub == "prolog/sge" else 0)
    assert (done.stdout, done.stderr) == (b"", b"")
    assert stage.mine() == ([] if damaged or "epilog" in stub else [0, 1])


# -- texts of a user's ------------------------------------------------------------------------------------------------

TEXTS = {
    "lines": "a\n1.0\tgrant\tjob=7\nformat=1\nunits=GPU-1\r\x0b\x0c\x1c\x85\u2028\u2029end",
    "pairs": "job=7 units=GPU-1 task=%0Ajob=7",
    "shell": "x; touch /; `id` $(id) && \"q\" 'q' | a > b",
    "bytes": "\udcff\udc85\n\udcc3\udc80",
    "long": "x" * 100_000,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_in_slurms_variables(stage_of: Stages, text: str) -> None:
    stage = stage_of("slurm")
    theirs = {"SLURM_JOB_USER": text, "SLURM_JOB_UID": text, "SLURM_JOB_RESTART_COUNT": text}
    theirs |= {"SLURM_JOB_NAME": text, "SLURM_JOB_COMMENT": text}
    stage.environ.update(theirs)
    assert stage.hook("prolog").status == 0
    assert stage.mine() == [0, 1]
    assert stage.hook("epilog").status == 0
    assert stage.mine() == []
    for name in ("SLURM_JOB_ID", "SLURM_JOB_GPUS"):
        for when in ("prolog", "epilog"):
            stage.environ = {**slurm_job(gpus="0-1"), **theirs, name: text}
            assert stage.hook(when).status == 0
            assert stage.mine() == []
    stage.check_others()
    assert stage.check_events() == ["grant", "release", "malformed_request"]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_in_a_tasks_environment_become_no_lines_of_slurms(tmp_path: Path, text: str) -> None:
    node = LaidOutNode(tmp_path, "slurm", settings=f"roots: {{sys: {tmp_path}/sys}}\n")
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("1.2\n")
    node.write_verdict(driver="1.2", binds="/site/bin:/nvbin:ro")
    for name in ("CUDA_VISIBLE_DEVICES", "APPTAINER_BINDPATH", "SINGULARITY_BINDPATH", "SLURM_JOB_NAME"):
        done = run("prolog/slurm-task", node, {**slurm_job(gpus="0"), name: text})
        assert (done.status, done.err) == (0, "")
        assert {line.partition("=")[0] for line in done.out.split("\n") if line} <= {
            f"export {prefix}{variable}"
            for variable in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "APPTAINER_BINDPATH", "SINGULARITY_BINDPATH")
            for prefix in ("", "APPTAINERENV_", "SINGULARITYENV_")
        }


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_in_a_job_of_grid_engine(stage_of: Stages, text: str) -> None:
    stage = stage_of("sge")
    said = text.encode("utf-8", "surrogateescape")
    for request, status in ((("gpu", said, 2.0, 1), 0), (("gpu", said, 1e300, 1), 100), (("gpu", said, -1.0, 1), 100)):
        stage.job.file.write_bytes(packed_job([request], user=said, strings=[said, b"gpu=4"]))  # type: ignore[arg-type]
        (stage.job.directory / "environment").write_bytes(b"X=" + said + b"\nCUDA_VISIBLE_DEVICES=0,1,2,3\n")
        ended = run("prolog/sge", stage.node, {**stage.environ, "JOB_NAME": text, "REQUEST": text})
        assert (ended.status, ended.out, len(ended.err.splitlines())) == (status, "", int(status == 100))
        assert stage.mine() == ([] if status else [0, 1])
        last = (stage.job.directory / "environment").read_bytes().split(b"\nCUDA_VISIBLE_DEVICES=")[-1].split(b"\n")[0]
        assert last == (b"0,1,2,3" if status else b"0,1")
        assert stage.hook("epilog").status == 0
        assert stage.mine() == []
    stage.check_others()
    assert stage.check_events() == ["grant", "release", "malformed_request", "malformed_request"]


# -- directories of a user's ------------------------------------------------------------------------------------------


@with_strace
@pytest.mark.parametrize("stub", ["prolog/slurm", "epilog/slurm", "prolog/sge", "epilog/sge"])
def test_no_directory_of_a_users_is_looked_into(stage_of: Stages, tmp_path: Path, trap: Trap, stub: str) -> None:
    """What a user plants there, be it a link or a FIFO, can do nothing: no system call names a file in it."""
    stage = stage_of(stub.partition("/")[2])
    calls = tmp_path / "calls"
    environ = {name: value for name, value in trap.environ.items() if not name.startswith("LD_")}  # ld.so's own affair
    tracer = ["/usr/bin/strace", "-f", "-y", "-s", "4096", "-e", "trace=%file", "-o", str(calls)]
    done = run(stub, stage.node, {**environ, **stage.environ}, *tracer, cwd=str(trap.directory))
    assert done.status == 0
    lines = [line for line in calls.read_text().splitlines() if re.search(r"\d+ +(?!execve|getcwd)\w+\(", line)]
    assert any(str(stage.state) in line for line in lines)
    plain = [re.sub(r'AT_FDCWD<[^>]*>, (?="/)', "", line) for line in lines]
    assert [line for line in plain if str(trap.directory) in line or re.search(r'\w\("[^/]', line)] == []
