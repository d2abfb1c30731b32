"""Hooks as whole processes, started as the schedulers start them: what they load, what they trust, when they end."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from nodeagent.state import events
from tests.sge_files import SgeJob
from tests.support import LaidOutNode, uuid

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ("/usr/bin/python3", "-IS")
PROMISED = 2.0
"""Seconds within which every hook ends, whatever happens, besides wait_for_units."""
BLOCK = os.sysconf("SC_PAGE_SIZE")
PATIENCE = 10.0
"""Seconds until a hook that should have ended is given up."""

EXPENSIVE = {
    *("yaml", "structlog", "prometheus_client", "pynvml", "subprocess", "argparse", "dataclasses", "json", "re"),
    *("enum", "typing", "logging", "socket", "ctypes", "site", "collections", "functools", "contextlib", "syslog"),
}

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system: root only")
with_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@dataclass(frozen=True)
class Ended:
    """How a hook ended."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def silent(self) -> bool:
        return (self.out, self.err) == ("", "")


def start(stub: str, node: LaidOutNode, environ: Mapping[str, str], *before: str, cwd: str = "/") -> Running:
    return Running([*before, str(ROOT / stub), "--config", str(node.config)], environ, cwd)


def run(stub: str, node: LaidOutNode, environ: Mapping[str, str], *before: str, cwd: str = "/") -> Ended:
    return start(stub, node, environ, *before, cwd=cwd).end()


class Running:
    """A hook that runs. Its environment is `environ` and nothing else."""

    def __init__(self, argv: list[str], environ: Mapping[str, str], cwd: str) -> None:
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            argv,
            env=dict(environ),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> Ended:
        try:
            out, err = self.process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return Ended(self.process.returncode, out, err, time.monotonic() - self._began)


def slurm_job(job: str = "12", gpus: str = "0-3", **more: str) -> dict[str, str]:
    own = {"SLURM_JOB_ID": job, "SLURM_JOB_GPUS": gpus, "SLURM_JOB_UID": "1000", "SLURM_JOB_USER": "alice"}
    return {**own, "CUDA_VISIBLE_DEVICES": gpus.replace("0-3", "0,1,2,3"), **more}


@pytest.fixture
def slurm(tmp_path: Path) -> LaidOutNode:
    return LaidOutNode(tmp_path, "slurm", gpus=8)


@pytest.fixture
def sge(tmp_path: Path) -> LaidOutNode:
    return LaidOutNode(tmp_path, "sge", gpus=8, settings="hooks: {wait_for_units: 0}\n")


def kinds(node: LaidOutNode) -> list[str]:
    return [event.kind for event in events.take(node.state)]


def left_behind(node: LaidOutNode) -> list[str]:
    """Return whatever lies under locks/."""
    try:
        return sorted(os.listdir(node.state_dir / "locks"))
    except (FileNotFoundError, NotADirectoryError):
        return []


# -- normal paths -----------------------------------------------------------------------------------------------------


def test_slurms_hooks_say_nothing_and_leave_with_0(slurm: LaidOutNode) -> None:
    done = run("prolog/slurm", slurm, slurm_job())
    assert (done.status, done.silent) == (0, True)
    assert slurm.held() == dict.fromkeys(range(4), "12")
    task = run("prolog/slurm-task", slurm, slurm_job())
    assert (task.status, task.err) == (0, "")
    assert "export CUDA_VISIBLE_DEVICES=0,1,2,3\n" in task.out
    assert all(line.startswith("export ") for line in task.out.splitlines())
    done = run("epilog/slurm", slurm, slurm_job())
    assert (done.status, done.silent) == (0, True)
    assert left_behind(slurm) == []
    assert kinds(slurm) == ["grant", "release"]


def test_grid_engines_hooks_say_nothing_and_leave_with_0(sge: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=4)
    done = run("prolog/sge", sge, job.environ)
    assert (done.status, done.silent) == (0, True)
    assert sge.held() == dict.fromkeys(range(4), "603")
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    done = run("epilog/sge", sge, job.environ)
    assert (done.status, done.silent) == (0, True)
    assert left_behind(sge) == []
    assert kinds(sge) == ["grant", "release"]


# -- what they load ---------------------------------------------------------------------------------------------------


def loaded(*argv: str, environ: Mapping[str, str] | None = None) -> set[str]:
    """Return what a process imports, by the interpreter's own account: `-X importtime` names each on stderr."""
    process = subprocess.run(
        [*PYTHON, "-X", "importtime", *argv],
        env=dict(environ or {}),
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    lines = [line.split("|") for line in process.stderr.splitlines() if line.startswith("import time:")]
    return {columns[-1].strip() for columns in lines}


def check_lean(stub: str, node: LaidOutNode, environ: Mapping[str, str]) -> None:
    names = loaded(str(ROOT / stub), "--config", str(node.config), environ=environ)
    assert {"nodeagent.hook.boundary", "nodeagent.lock.store"} <= names
    assert names & EXPENSIVE == set()
    free = loaded("-c", "import os.path, sys, fcntl, errno, time")
    # encodings.ascii: of a text file opened with that encoding
    assert {name for name in names - free if not name.startswith("nodeagent")} <= {"encodings.ascii"}


def test_slurms_hooks_load_nothing_expensive(slurm: LaidOutNode) -> None:
    for stub, held in (("prolog/slurm", 4), ("prolog/slurm-task", 4), ("epilog/slurm", 0)):
        check_lean(stub, slurm, slurm_job())
        assert len(slurm.held()) == held  # it was the normal path


def test_grid_engines_hooks_load_nothing_expensive(sge: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=4)
    for stub, held in (("prolog/sge", 4), ("epilog/sge", 0)):
        check_lean(stub, sge, job.environ)
        assert len(sge.held()) == held


# -- what they trust --------------------------------------------------------------------------------------------------


class Trap:
    """A user's environment in which everything that a careless root process would run or load leaves a mark."""

    def __init__(self, directory: Path) -> None:
        self.marks = directory / "marks"
        self.directory = directory / "trap"
        self.directory.mkdir()
        self.marks.mkdir(mode=0o777)
        here = str(self.directory)
        for name in ("python3", "python", "env", "sh", "scontrol", "scancel", "qstat", "logger"):
            self._program(name)
        modules = [
            "os",
            "posixpath",
            "fcntl",
            "errno",
            "time",
            "sitecustomize",
            "usercustomize",
            "startup",
            "encodings",
        ]
        minor = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        user_site = self.directory / ".local/lib" / minor / "site-packages"
        user_site.mkdir(parents=True)
        for place in (self.directory, user_site):
            for name in (*modules, "nodeagent", "nodeagent_hook"):
                (place / f"{name}.py").write_text(f"open('{self.marks}/{name}.py', 'w')\n")
        self.environ = {
            "PATH": here,
            "HOME": here,
            "TMPDIR": f"{here}/nowhere",
            "PYTHONPATH": here,
            "PYTHONHOME": here,
            "PYTHONSTARTUP": f"{here}/startup.py",
            "PYTHONUSERBASE": f"{here}/.local",
            "PYTHONINSPECT": "1",
            "PYTHONVERBOSE": "1",
            "PYTHONBREAKPOINT": "startup.run",
            "PYTHONPYCACHEPREFIX": f"{here}/cache",
            "LD_PRELOAD": f"{here}/no-such-library.so",
            "LD_LIBRARY_PATH": here,
            "ENV": f"{here}/startup.py",
            "BASH_ENV": f"{here}/startup.py",
            "IFS": "/",
            "LANG": "xx_XX.nonsense",
            "CUDA_VISIBLE_DEVICES": "7",
            "NVIDIA_VISIBLE_DEVICES": "all",
            "GPU_NODEAGENT_CONFIG": f"{here}/config.yaml",
            "SLURM_CONF": f"{here}/slurm.conf",
            "SGE_ROOT": here,
            "SGE_CELL": "../../trap",
            "SGE_QMASTER_PORT": "1",
        }

    def _program(self, name: str) -> None:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\n: > {self.marks}/{name}\n")
        path.chmod(0o755)

    def sprung(self) -> list[str]:
        cache = [str(path) for path in (self.directory / "cache").glob("*")]
        return sorted(os.listdir(self.marks)) + cache


def complaints(ended: Ended) -> list[str]:
    """Return what stands on stderr besides the loader's word on LD_PRELOAD, which comes before any code of ours."""
    return [line for line in ended.err.splitlines() if "LD_PRELOAD" not in line]


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path)


def test_the_trap_works(trap: Trap) -> None:
    careless = {**trap.environ, "PYTHONHOME": "", "PYTHONVERBOSE": ""}
    argv = [PYTHON[0], "-c", "import nodeagent_hook"]
    subprocess.run(argv, env=careless, capture_output=True, timeout=PATIENCE, check=False)
    assert trap.sprung() != []


def test_nothing_of_the_users_runs_in_slurms_hooks(slurm: LaidOutNode, trap: Trap) -> None:
    environ = {**trap.environ, **slurm_job(CUDA_VISIBLE_DEVICES="7", SGE_ROOT=str(trap.directory))}
    done = run("prolog/slurm", slurm, environ, cwd=str(trap.directory))
    assert (done.status, done.out, complaints(done)) == (0, "", [])
    assert slurm.held() == dict.fromkeys(range(4), "12")
    task = run("prolog/slurm-task", slurm, {**environ, "CUDA_VISIBLE_DEVICES": "0,1"}, cwd=str(trap.directory))
    assert (task.status, complaints(task)) == (0, [])
    assert "export CUDA_VISIBLE_DEVICES=0,1\n" in task.out
    done = run("epilog/slurm", slurm, environ, cwd=str(trap.directory))
    assert (done.status, done.out, complaints(done)) == (0, "", [])
    assert slurm.held() == {}
    assert trap.sprung() == []


def test_nothing_of_the_users_runs_in_grid_engines_hooks(sge: LaidOutNode, trap: Trap, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=2)
    environ = {**trap.environ, **job.environ, "SLURM_JOB_GPUS": "0-7", "SLURM_JOB_ID": "1", "NHOSTS": "9"}
    done = run("prolog/sge", sge, environ, cwd=str(trap.directory))
    assert (done.status, done.out, complaints(done)) == (0, "", [])
    assert sge.held() == {0: "603", 1: "603"}
    assert job.exported()["CUDA_VISIBLE_DEVICES"] == "0,1"
    done = run("epilog/sge", sge, environ, cwd=str(trap.directory))
    assert (done.status, done.out, complaints(done)) == (0, "", [])
    assert sge.held() == {}
    assert trap.sprung() == []


def test_a_schedulers_command_gets_nothing_of_the_users(slurm: LaidOutNode, trap: Trap, tmp_path: Path) -> None:
    slurm.compile(**{"scheduler.slurm.bin_dir": str(tmp_path / "bin"), "scheduler.slurm.conf": "/site/slurm.conf"})
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin/scontrol"
    scontrol.write_text(
        f'#!/usr/bin/python3 -IS\nimport os\nopen("{tmp_path}/seen", "w").write(repr(dict(os.environ)))\n'
    )
    scontrol.chmod(0o755)
    with slurm.store.exclusive():
        slurm.store.retire(uuid(0), [("reason", "Xid 79")])
    done = run("prolog/slurm", slurm, {**trap.environ, **slurm_job()}, cwd=str(trap.directory))
    assert (done.status, done.out, complaints(done)) == (0, "", [])
    seen = (tmp_path / "seen").read_text()
    assert "'SLURM_CONF': '/site/slurm.conf'" in seen
    assert str(trap.directory) not in seen and "SLURM_JOB" not in seen and "PYTHON" not in seen
    assert trap.sprung() == []


@pytest.mark.parametrize(("stub", "status"), [("prolog/slurm", 0), ("epilog/slurm", 0), ("prolog/sge", 99)])
@pytest.mark.parametrize("words", [["--config"], ["--config", "relative"], ["--config", "/nowhere"], ["x", "y"]])
def test_a_wrong_command_line(stub: str, status: int, words: list[str]) -> None:
    ended = Running([str(ROOT / stub), *words], slurm_job(), "/").end()
    assert (ended.status, ended.out) == (status, "")
    assert ended.seconds < PROMISED


# -- many at once -----------------------------------------------------------------------------------------------------


def test_of_32_at_once_8_get_one_gpu_each(sge: LaidOutNode, tmp_path: Path) -> None:
    jobs = [SgeJob(tmp_path / "spool", str(number), gpus=1) for number in range(101, 133)]
    running = [start("prolog/sge", sge, job.environ) for job in jobs]
    ended = [hook.end() for hook in running]
    assert all(one.silent for one in ended)
    served = [job for job, one in zip(jobs, ended) if one.status == 0]
    assert sorted(one.status for one in ended) == [0] * 8 + [99] * 24
    assert sorted(job.exported()["CUDA_VISIBLE_DEVICES"] for job in served) == [str(gpu) for gpu in range(8)]
    for job in served:
        mine = int(job.exported()["CUDA_VISIBLE_DEVICES"])
        assert sge.held()[mine] == job.environ["JOB_ID"]
    ended = [hook.end() for hook in [start("epilog/sge", sge, job.environ) for job in served]]
    assert all(one.status == 0 and one.silent for one in ended)
    assert left_behind(sge) == []


# -- bounded time, nothing half done ----------------------------------------------------------------------------------


def check_slurm_gives_way(node: LaidOutNode) -> None:
    for stub in ("prolog/slurm", "epilog/slurm"):
        ended = run(stub, node, slurm_job())
        assert (ended.status, ended.out) == (0, "")
        assert ended.seconds < PROMISED
        assert left_behind(node) == []


def check_sge_gives_way(node: LaidOutNode, job: SgeJob) -> None:
    before = job.exported()
    for stub, status in (("prolog/sge", 99), ("epilog/sge", 0)):
        ended = run(stub, node, job.environ)
        assert ended.status == status
        assert ended.silent  # Grid Engine would put it into the user's output
        assert ended.seconds < PROMISED
        assert left_behind(node) == []
    assert job.exported() == before


def test_somebody_sits_on_the_flock_of_a_slurm_node(slurm: LaidOutNode) -> None:
    with slurm.store.exclusive():
        check_slurm_gives_way(slurm)


def test_somebody_sits_on_the_flock_of_a_grid_engine_node(sge: LaidOutNode, tmp_path: Path) -> None:
    with sge.store.exclusive():
        check_sge_gives_way(sge, SgeJob(tmp_path / "spool"))


@pytest.mark.parametrize("instead", ["nothing", "a file", "a link", "a FIFO"])
@pytest.mark.parametrize("kind", ["slurm", "sge"])
def test_no_state_directory(tmp_path: Path, kind: str, instead: str) -> None:
    node = LaidOutNode(tmp_path, kind)
    os.rename(node.state_dir, tmp_path / "elsewhere")
    if instead == "a file":
        node.state_dir.touch(mode=0o444)
    elif instead == "a link":
        node.state_dir.symlink_to("elsewhere")
    elif instead == "a FIFO":
        os.mkfifo(node.state_dir)
    if kind == "slurm":
        check_slurm_gives_way(node)
    else:
        check_sge_gives_way(node, SgeJob(tmp_path / "spool"))
    assert not (tmp_path / "elsewhere/locks").exists()
    if instead == "nothing":
        spool = ["sge-spool"] if kind == "sge" else []
        assert sorted(os.listdir(node.state_dir)) == ["events", "lock", "locks", *spool]
        assert os.listdir(node.state_dir / "locks") == []


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB where the state directory is to be."""
    place = tmp_path / "state"
    place.mkdir()
    argv = ["/bin/mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "gpu-nodeagent-test", str(place)]
    if subprocess.run(argv, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["/bin/umount", "--lazy", str(place)], check=True)


def fill(place: Path, spare: int) -> None:
    """Write the file system full but for `spare` blocks."""
    with open(place / "filler", "wb", buffering=0) as file:
        try:
            while file.write(bytes(BLOCK)):
                pass
        except OSError:
            file.truncate(file.tell() - spare * BLOCK)


@as_root
@pytest.mark.parametrize("kind", ["slurm", "sge"])
@pytest.mark.parametrize("trouble", ["full", "full after one lock", "read-only"])
def test_the_state_directory_cannot_be_written(small: Path, tmp_path: Path, kind: str, trouble: str) -> None:
    node = LaidOutNode(tmp_path, kind)
    if trouble.startswith("full"):
        fill(small, spare=int(trouble != "full"))
    else:
        subprocess.run(["/bin/mount", "-o", "remount,ro", str(small)], check=True)
    if kind == "slurm":
        check_slurm_gives_way(node)
    else:
        check_sge_gives_way(node, SgeJob(tmp_path / "spool"))


@pytest.mark.parametrize("name", ["config.yaml", "state/hook.conf", "state/verdict", "state/lock", "state/events"])
@pytest.mark.parametrize("kind", ["slurm", "sge"])
def test_a_fifo_where_a_file_should_be_holds_nobody_up(tmp_path: Path, kind: str, name: str) -> None:
    node = LaidOutNode(tmp_path, kind)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    environ = slurm_job() if kind == "slurm" else SgeJob(tmp_path / "spool").environ
    for when in ("prolog", "epilog"):
        ended = run(f"{when}/{kind}", node, environ)
        assert ended.status in (0, 99)
        assert ended.seconds < PROMISED
    assert left_behind(node) == []


def test_the_jobs_environment_cannot_be_written(sge: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool")
    (job.directory / "environment").unlink()
    ended = run("prolog/sge", sge, job.environ)
    assert (ended.status, ended.silent) == (99, True)
    assert left_behind(sge) == []


# -- killed -----------------------------------------------------------------------------------------------------------


def check_usable(node: LaidOutNode, spool: Path, killed: SgeJob) -> None:
    """After `killed` lost its prolog: others are served, never with what it may still hold, and no unit is lost."""
    theirs = set(node.held())
    assert set(node.held().values()) <= {killed.environ["JOB_ID"]}
    other = SgeJob(spool, "500", gpus=4)
    assert run("prolog/sge", node, other.environ).status == 0
    held = node.held()
    assert {gpu for gpu, job in held.items() if job != "500"} == theirs
    assert list(held.values()).count("500") == 4
    assert run("epilog/sge", node, killed.environ).status == 0
    assert set(node.held().values()) == {"500"}
    assert run("epilog/sge", node, other.environ).status == 0
    everything = SgeJob(spool, "600", gpus=8)
    assert run("prolog/sge", node, everything.environ).status == 0
    assert node.held() == dict.fromkeys(range(8), "600")
    assert run("epilog/sge", node, everything.environ).status == 0
    assert left_behind(node) == []


def test_prologs_killed_at_random_moments(sge: LaidOutNode, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    whole = SgeJob(spool, "400", gpus=4)
    typical = run("prolog/sge", sge, whole.environ).seconds
    assert run("epilog/sge", sge, whole.environ).status == 0
    moments = random.Random(20240229)  # noqa: S311  which moments: the same ones each time
    statuses = set()
    for number in range(1, 51):
        job = SgeJob(spool, str(number), gpus=4)
        hook = start("prolog/sge", sge, job.environ)
        time.sleep(moments.uniform(0.5, 1.1) * typical)
        hook.process.kill()
        statuses.add(hook.end().status)
        check_usable(sge, spool, job)
    assert -signal.SIGKILL in statuses


@with_strace
@pytest.mark.parametrize("call", ["mkdirat", "fchmod", "write", "renameat", "unlinkat", "flock"])
def test_prologs_killed_before_each_change_of_the_state(sge: LaidOutNode, tmp_path: Path, call: str) -> None:
    spool = tmp_path / "spool"
    for nth in range(1, 20):
        job = SgeJob(spool, str(nth), gpus=3)
        tracer = ("strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}")
        ended = run("prolog/sge", sge, job.environ, *tracer, "-e", f"inject={call}:signal=KILL:when={nth}")
        if ended.status == 0:  # there is no such call left
            assert nth > 1
            return
        assert ended.status in (-signal.SIGKILL, 128 + signal.SIGKILL), ended
        check_usable(sge, spool, job)
    pytest.fail(f"more than 20 calls of {call}")


def test_the_same_job_comes_again_after_a_kill(sge: LaidOutNode, tmp_path: Path) -> None:
    job = SgeJob(tmp_path / "spool", gpus=4)
    assert run("prolog/sge", sge, job.environ).status == 0
    shutil.rmtree(sge.state_dir / "locks" / uuid(2))
    (sge.state_dir / "locks" / uuid(3) / "owner").unlink()
    (sge.state_dir / "locks" / f".new-0123456789abcdef-{uuid(5)}").mkdir()
    assert run("prolog/sge", sge, job.environ).status == 0
    assert sge.held() == dict.fromkeys(range(4), "603")
    assert left_behind(sge) == [uuid(gpu) for gpu in range(4)]
