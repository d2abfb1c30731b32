"""Epilogs against what real processes of real users do: hold a device, ignore TERM, come in numbers, not die."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from nodeagent.lock.cleaning import listen
from nodeagent.lock.record import CLEANING, Owner
from nodeagent.lock.store import Store
from nodeagent.state import events
from nodeagent.state.boot import start_time
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import read_verdict
from tests.clusters.process import open_directory
from tests.integration.support import unavailable
from tests.sge_files import SgeJob
from tests.simulated_node import SimulatedNode, until
from tests.support import LaidOutNode, uuid

ROOT = Path(__file__).resolve().parents[2]
JOB = "12"
ALICE, BOB = 34567, 34568
GROUP, OTHERS_GROUP = 20777, 20778
PROMISED = 2.0
MEMORY_DEVICES = {0: (1, 3), 1: (1, 5)}
"""/dev/null and /dev/zero in the place of two GPUs' devices: they open."""
HOLDS = """
import os, signal, sys, time
{prepare}
os.open(sys.argv[1], os.O_RDWR)
os.write(1, b"!")
{then}
while True:
    time.sleep(60)
"""
MANY = """
for _ in range(min(most, 60000) - 10):
    os.dup(0)
for _ in range(5):
    os.fork()
"""
"""Thirty-two processes with as many open files each as they may have."""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


class Room:
    """A node of four GPUs, two of which can be opened, and processes that hold them."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.kind = kind
        self.dev = directory / "dev"
        self.dev.mkdir()
        for index, (major, minor) in MEMORY_DEVICES.items():
            os.mknod(self.dev / f"nvidia{index}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
            (self.dev / f"nvidia{index}").chmod(0o666)
        self.node = LaidOutNode(directory, kind, gpus=4)
        self.node.compile(**{"roots.dev": str(self.dev)})
        self.started: list[subprocess.Popen[bytes]] = []
        self.environ = {"SLURM_JOB_ID": JOB}
        self.run = ""
        if kind == "sge":
            job = SgeJob(directory / "spool", JOB)
            (job.directory / "addgrpid").write_text(f"{GROUP}\n")
            self.environ, self.run = job.environ, str(job.directory)

    def lock(self, *indices: int) -> None:
        owner = self.node.hold(indices, self.kind, JOB)
        owner.uid, owner.run = str(ALICE), self.run
        with self.node.store.exclusive():
            for index in indices:
                self.node.store.hand_over(uuid(index), owner)

    def leave(
        self,
        gpu: int = 0,
        user: int = ALICE,
        environ: Mapping[str, str] | None = None,
        groups: Sequence[int] = (),
        prepare: str = "",
        then: str = "",
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        """Start a process that holds a device, by default one of the job's; returns when it does."""
        own = {"SLURM_JOB_ID": JOB} if self.kind == "slurm" else {}
        process = subprocess.Popen(
            ["/usr/bin/python3", "-IS", "-c", HOLDS.format(prepare=prepare, then=then), self.dev / f"nvidia{gpu}"],
            env=own if environ is None else dict(environ),
            user=user,
            group=user,
            extra_groups=list(groups) or ([GROUP] if self.kind == "sge" else []),
            stdout=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            pass_fds=pass_fds,
        )
        self.started.append(process)
        assert process.stdout is not None
        assert process.stdout.read(1) == b"!"
        return process

    def epilog(self) -> float:
        """Run the job's epilog as a whole process; returns seconds."""
        began = time.monotonic()
        argv = [str(ROOT / f"epilog/{self.kind}"), "--config", str(self.node.config)]
        done = subprocess.run(argv, env=self.environ, capture_output=True, timeout=20, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        return time.monotonic() - began

    def told(self) -> dict[str, str]:
        """Return kind → why of the events."""
        return {event.kind: event.fields.get("why", "") for event in events.take(self.node.state)}

    def close(self) -> None:
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture(params=["slurm", "sge"])
def room(request: pytest.FixtureRequest) -> Iterator[Room]:
    if os.geteuid() != 0:
        unavailable("makes devices and processes of other users: root only")
    with open_directory("gna-cleanup-") as directory:
        made = Room(directory, request.param)
        try:
            yield made
        finally:
            made.close()


def ended_by(process: subprocess.Popen[bytes]) -> int:
    return -process.wait(timeout=5)


def test_a_leftover_is_told_to_end_and_one_that_ignores_it_is_killed(room: Room) -> None:
    room.lock(0, 1)
    polite, stubborn = room.leave(0), room.leave(1, prepare=STUBBORN)
    assert room.epilog() < PROMISED
    assert (ended_by(polite), ended_by(stubborn)) == (signal.SIGTERM, signal.SIGKILL)
    assert room.node.held() == {} and room.node.store.retired() == {}
    assert room.told()["leftover"].startswith("2 processes")


def test_what_a_leftover_starts_when_it_is_told_to_end_is_ended_too(room: Room) -> None:
    room.lock(0)
    room.leave(0, prepare="signal.signal(signal.SIGTERM, lambda *_: os.fork() or os.setsid())")
    assert room.epilog() < PROMISED
    until(lambda: not holders(room.dev / "nvidia0"), "nobody holds the device", 5)


def holders(device: Path) -> list[int]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            files = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if str(device) in files:
            found.append(int(pid))
    return found


def test_processes_of_others_on_the_same_device_are_left_alone_and_those_of_the_user_are_told(room: Room) -> None:
    room.lock(0)
    forged = {"SLURM_JOB_ID": JOB, "SGE_JOB_SPOOL_DIR": room.run}
    another_job = {"SLURM_JOB_ID": "13", "SGE_JOB_SPOOL_DIR": "/spool/active_jobs/13.1"}
    others = [
        room.leave(0, BOB, forged, [GROUP]),  # another user, whatever it claims
        room.leave(0, ALICE, another_job, [OTHERS_GROUP]),  # another job of the same user
        room.leave(0, 0, forged, [GROUP]),  # root
        room.leave(1),  # of the job, on a GPU that is not the job's
    ]
    assert room.epilog() < 1.0
    assert [process.poll() for process in others] == [None] * 4
    assert room.node.held() == {}
    assert room.told()["foreign_process"].endswith(f": {others[1].pid}")


def test_fifty_stubborn_processes_are_gone_within_the_epilogs_bound(room: Room) -> None:
    room.lock(0, 1)
    many = [room.leave(number % 2, prepare=STUBBORN) for number in range(50)]
    seconds = room.epilog()
    print(f"{room.kind}: {seconds:.2f} s")
    assert seconds < PROMISED
    assert {ended_by(process) for process in many} == {signal.SIGKILL}
    assert room.node.held() == {} and room.node.store.retired() == {}


def test_a_process_that_does_not_die_retires_its_unit_and_the_rest_is_freed(room: Room, frozen: Path) -> None:
    room.lock(0, 1)
    fd = os.open(frozen, os.O_RDONLY | os.O_DIRECTORY)
    try:
        stuck = room.leave(0, then=f"os.open('x', os.O_CREAT | os.O_WRONLY, dir_fd={fd})", pass_fds=(fd,))
    finally:
        os.close(fd)
    until(lambda: state_of(stuck.pid) == "D", "the process in state D")
    told = f"{stuck.pid}:{start_time(stuck.pid)}"
    polite = room.leave(1)
    try:
        assert room.epilog() < PROMISED
        assert ended_by(polite) == signal.SIGTERM and stuck.poll() is None
    finally:
        subprocess.run(["fsfreeze", "-u", str(frozen)], check=True)
    assert room.node.held() == {}
    if room.kind == "slurm":  # no cgroup here, and the variables of a process in state D are not to be read
        assert room.told()["foreign_process"].endswith(f": {stuck.pid}") and room.node.store.retired() == {}
        return
    ((unit, record),) = room.node.store.retired().items()
    assert (unit, record["check"], record["processes"]) == (uuid(0), "leftover-process", told)
    assert f"not to be ended: {stuck.pid}" in room.told()["leftover"]


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_user_with_many_processes_and_files_does_not_keep_the_epilog(room: Room) -> None:
    """Each has to be looked at, as each might hold the device; the time is kept all the same."""
    room.lock(0)
    most = "import resource; most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]"
    room.leave(1, prepare=f"{most}; resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))\n{MANY}")
    assert room.epilog() < PROMISED
    assert room.node.held() == {}


def test_with_an_agent_there_the_units_are_its_to_free(room: Room) -> None:
    agent = listen(room.node.state)
    try:
        room.lock(0, 1)
        stubborn = room.leave(0, prepare=STUBBORN)
        assert room.epilog() < PROMISED
        assert ended_by(stubborn) == signal.SIGKILL
        owners = room.node.store.owners()
        assert {unit: owner.scheduler for unit, owner in owners.items()} == {uuid(0): CLEANING, uuid(1): CLEANING}
        assert os.read(agent, 8) == b"c"
    finally:
        os.close(agent)


def test_a_running_agent_frees_eight_gpus_long_before_its_next_cycle(tmp_path: Path) -> None:
    settings = "interval: 20s\nscheduler: {kind: local}\ncleanup: {compute_mode: default}\n"
    node = SimulatedNode(tmp_path, gpus=8, settings=settings)
    with node.agent():
        node.scenario.set(3, compute_mode=3)
        state = Directory(str(node.state_dir))
        store = Store(state)
        lines = read_verdict(state).units
        owner = Owner("slurm", job=JOB, grant="g", uid=str(ALICE), units=tuple(line.unit for line in lines))
        took = []
        for _ in range(5):
            with store.exclusive():
                store.claim(owner)
            argv = [str(ROOT / "epilog/slurm"), "--config", str(node.config)]
            subprocess.run(argv, env={"SLURM_JOB_ID": JOB}, check=True, timeout=20)
            began = time.monotonic()
            while store.owners() and time.monotonic() < began + 5:
                time.sleep(0.001)
            took.append(time.monotonic() - began)
        print(f"from the epilog's end to eight free GPUs: {', '.join(f'{1000 * s:.0f} ms' for s in took)}")
        assert max(took) < 2.0 and node.scenario.get(3, "compute_mode") == 0
        assert {event.kind for event in events.take(state)} == {"release"}
