"""Locks whose epilog never came, on the real schedulers: freed when the job is gone, not before.

Each test makes the loss as a node makes it: daemons, shepherds and hooks killed with -9, job ids used again.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from nodeagent.state import events
from nodeagent.state.documents import SNAPSHOT
from nodeagent.state.files import Directory
from tests.clusters.gridengine import GridEngineCluster
from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.integration.support import Gates, executable, install_tree, require
from tests.simulated_node import SimulatedNode, until

SETTINGS = "interval: 0.3s\nhooks: {{verdict_max_age: 30s, wait_for_units: 20s}}\nscheduler: {scheduler}\n"
EPILOG = """echo $$ >{here}/epilogs
if [ -e {here}/lose ]; then exit 0; fi
while [ -e {here}/stall ]; do sleep 0.05; done
exec {tree}/epilog/slurm --config {config}"""


CONF = "FirstJobId=1\nMaxJobId=20\nMinJobAge=2\n"


class Lab:
    """One node with an agent; `locks` is what the command says."""

    node: SimulatedNode
    agent: subprocess.Popen[bytes]
    gates: Gates

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.gates = Gates(directory)
        (directory / "node").mkdir(mode=0o755)

    def locks(self) -> dict[int, tuple[str, str]]:
        """Return index -> (job, grant), without an agent's help."""
        uuids = [gpu["uuid"] for gpu in self.node.status()["gpus"]]
        found = json.loads(self.node.ask("locks", "--json"))["locks"]
        return {uuids.index(lock["unit"]): (lock["job"], lock["grant"]) for lock in found}

    def jobs(self) -> dict[int, str]:
        """Return index -> job."""
        return {index: job for index, (job, _) in self.locks().items()}

    def cycles(self, count: int = 3) -> None:
        """Let the agent look at everything a few times."""
        path = self.node.state_dir / SNAPSHOT
        for _ in range(count):
            seen = path.stat().st_mtime_ns
            until(lambda seen=seen: path.stat().st_mtime_ns != seen, "the agent's next cycle")  # type: ignore[misc]

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Stop the agent: what is freed meanwhile is a hook's doing."""
        self.agent.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.agent.send_signal(signal.SIGCONT)

    def told(self, kind: str) -> bool:
        """Say whether a hook wrote such an event, or the agent such a line."""
        path = self.node.state_dir / "events"
        return kind in self.node.log.read_text() or (path.exists() and f"\t{kind}\t" in path.read_text())


# -- Slurm ------------------------------------------------------------------------------------------------------------


class SlurmLab(Lab):
    """A cluster with one node of two GPUs and five job ids."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory)
        config = directory / "node" / "config.yaml"
        tree = install_tree(directory)
        epilog = EPILOG.format(here=directory, tree=tree, config=config)
        self.cluster = SlurmCluster(
            directory,
            nodes=("n1",),
            gpus=2,
            prolog=executable(directory / "prolog", f"exec {tree}/prolog/slurm --config {config}"),
            epilog=executable(directory / "epilog", epilog),
            extra_conf=f"{CONF}PrologFlags=Alloc\n",
        )
        settings = SETTINGS.format(scheduler=f"{{kind: slurm, slurm: {{conf: {self.cluster.conf}}}}}")
        self.node = SimulatedNode(directory / "node", gpus=2, node="n1", settings=settings)
        stack.enter_context(self.cluster)
        self.agent = stack.enter_context(self.node.agent())

    def begin(self, *arguments: str) -> tuple[str, Path]:
        """Submit a job of one GPU that runs until its gate exists; returns when it has begun."""
        gate, script = self.gates.new()
        job = self.cluster.submit("alice", ["--gres=gpu:1", *arguments], script)
        until(lambda: "begun=yes" in self.cluster.output(job), f"job {job} begins")
        return job, gate

    def switch(self, name: str, on: bool) -> None:
        """Let epilogs stall in front of ours, or be lost."""
        (self.directory / "epilogs").unlink(missing_ok=True)
        (self.directory / name).touch() if on else (self.directory / name).unlink()

    def epilog_begun(self) -> int:
        """Wait for an epilog and return its process."""
        path = self.directory / "epilogs"
        pid = int(until(lambda: path.exists() and path.read_text().strip(), "an epilog begins"))
        path.unlink()
        return pid

    def die_in_epilog(self, gate: Path) -> None:
        """Let a job end, and kill the node's daemon while the epilog runs, and the epilog."""
        self.switch("stall", True)
        gate.touch()
        epilog = self.epilog_begun()
        self.cluster.kill_slurmd("n1")
        os.kill(epilog, signal.SIGKILL)
        self.switch("stall", False)

    def restart(self, job: str) -> None:
        """Start the node's daemon, and the controller anew: so it asks the node at once what became of the job."""
        self.cluster.start_slurmd("n1")
        self.cluster.kill_slurmctld(signal.SIGTERM)
        self.cluster.start_slurmctld()
        until(lambda: self.cluster.state(job) not in ("RUNNING", "COMPLETING"), f"the controller is done with {job}")
        self.cluster.wait_node("n1", lambda seen: seen.state == "idle")

    def lose(self, job: str, gate: Path) -> None:
        """Let a job end without an epilog of ours."""
        self.switch("lose", True)
        gate.touch()
        self.cluster.wait_state(job)
        self.epilog_begun()
        self.cluster.wait_node("n1", lambda seen: not seen.state.startswith("comp"))
        self.switch("lose", False)


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmLab]:
    require("slurm")
    with open_directory("gna-reconcile-slurm-") as directory, ExitStack() as stack:
        yield SlurmLab(directory, stack)


def test_an_allocation_without_a_step_never_loses_its_lock(slurm: SlurmLab) -> None:
    """First of all: once its controller was started anew, Slurm 22.05 runs such prologs without SLURM_JOB_GPUS."""
    said = slurm.cluster.command("alice", ["salloc", "--no-shell", "--gres=gpu:1"]).stderr
    job = said.partition("Granted job allocation ")[2].split()[0]
    until(lambda: list(slurm.jobs().values()) == [job], "the prolog's lock")
    locked = slurm.locks()
    with slurm.asleep():
        slurm.lose(*slurm.begin())
        assert len(slurm.jobs()) == 2
    # what makes the agent ask the controller
    events.append(Directory(str(slurm.node.state_dir)), "conflict", why="a test")
    until(lambda: slurm.locks() == locked, "the lost lock freed")
    slurm.cluster.kill_slurmctld(signal.SIGTERM)
    slurm.cycles()
    slurm.cluster.start_slurmctld()
    assert slurm.locks() == locked
    slurm.cluster.scancel(job)
    until(lambda: slurm.jobs() == {}, "its own epilog frees it")
    slurm.cluster.reconfigure(CONF)  # from here on a prolog runs with the batch script


def test_slurmd_killed_in_mid_epilog(slurm: SlurmLab) -> None:
    job, gate = slurm.begin()
    with slurm.asleep():
        slurm.die_in_epilog(gate)
        slurm.restart(job)
        assert list(slurm.jobs().values()) == [job], "the epilog never runs again"
        following, gate = slurm.begin("--gres=gpu:2")  # its prolog sees that nothing is left of the job
        assert slurm.jobs() == {0: following, 1: following}
    gate.touch()
    until(lambda: slurm.jobs() == {}, "its own epilog frees it")


def test_slurmd_killed_in_mid_epilog_with_the_controller_away(slurm: SlurmLab) -> None:
    job, gate = slurm.begin()
    slurm.cycles()  # the agent sees the batch step
    with slurm.asleep():
        slurm.die_in_epilog(gate)
        slurm.cluster.kill_slurmctld(signal.SIGTERM)
        assert list(slurm.jobs().values()) == [job]
    until(lambda: slurm.jobs() == {}, "the lock freed by what the node shows")
    slurm.cluster.start_slurmctld()
    slurm.restart(job)


def test_a_job_requeued_under_the_same_id_whose_first_epilog_is_lost_has_a_lock_of_its_own(slurm: SlurmLab) -> None:
    job, gate = slurm.begin("--requeue")
    [(_, first)] = slurm.locks().values()
    with slurm.asleep():
        slurm.switch("lose", True)
        slurm.cluster.scontrol("requeue", job)
        slurm.epilog_begun()
        until(lambda: slurm.cluster.state(job) == "PENDING", "the job requeued")
        slurm.cluster.kill_slurmd("n1")
        for path in slurm.cluster.spool("n1").glob("cred_state*"):
            path.unlink()  # by which slurmd runs no second prolog for a job id within two minutes
        slurm.cluster.start_slurmd("n1")
        slurm.cluster.scontrol("update", f"jobid={job}", "StartTime=now")
        until(lambda: first not in {grant for _, grant in slurm.locks().values()}, "the first run's lock replaced")
        assert list(slurm.jobs().values()) == [job]
        slurm.switch("lose", False)
    gate.touch()
    until(lambda: slurm.jobs() == {}, "its own epilog frees it")


def test_a_job_id_used_again_finds_no_lock_of_its_namesake(slurm: SlurmLab) -> None:
    with slurm.asleep():
        old, gate = slurm.begin()
        slurm.lose(old, gate)
        [(_, first)] = slurm.locks().values()
        until(lambda: not slurm.cluster.job(old), "Slurm forgets the job", timeout=70)
        taken = []
        while (job := slurm.cluster.submit("bob", ["--hold", "--gres=gpu:2"], "sleep 60\n")) != old:
            taken.append(job)
        slurm.cluster.scancel(*taken)
        slurm.cluster.scontrol("release", job)
        until(lambda: slurm.jobs() == {0: old, 1: old}, "the lock of the later job")
        assert first not in {grant for _, grant in slurm.locks().values()}
    slurm.cluster.scancel(job)
    until(lambda: slurm.jobs() == {}, "its epilog frees it")


def test_a_reboot_frees_every_lock_although_the_scheduler_still_has_its_job_running(slurm: SlurmLab) -> None:
    job, _ = slurm.begin()
    assert list(slurm.jobs().values()) == [job]
    slurm.agent.kill()
    slurm.cluster.kill_slurmd("n1")
    for pid in slurm.cluster.pids():
        if Path(f"/proc/{pid}/comm").read_text().strip() not in ("slurmctld", "munged"):
            os.kill(pid, signal.SIGKILL)
    (slurm.node.roots["proc"] / "sys/kernel/random/boot_id").write_text("00000000-0000-4000-8000-00000000b007\n")
    with slurm.node.agent():
        until(lambda: slurm.jobs() == {}, "the lock freed")
        assert slurm.cluster.state(job) == "RUNNING", "a ghost"
        slurm.cluster.scancel(job)
        slurm.cluster.start_slurmd("n1")


# -- Grid Engine ------------------------------------------------------------------------------------------------------


class SgeLab(Lab):
    """One exec host with four GPUs, whose device files are devices that anybody can open."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        super().__init__(directory)
        tree = install_tree(directory)
        config = directory / "node" / "config.yaml"
        self.hooks = tuple(f"root@{tree}/{name}/sge --config {config}" for name in ("prolog", "epilog"))
        self.cluster = stack.enter_context(GridEngineCluster(directory, *self.hooks, gpus=8))
        places = {name.lower(): value for name, value in self.cluster.environment.items()}
        sge = "{{root: {sge_root}, qmaster_port: {sge_qmaster_port}, execd_port: {sge_execd_port}}}".format(**places)
        settings = SETTINGS.format(scheduler=f"{{kind: sge, sge: {sge}}}")
        self.node = SimulatedNode(directory / "node", gpus=4, node=self.cluster.host, settings=settings)
        self.devices = [self.node.roots["dev"] / f"nvidia{index}" for index in range(4)]
        for device, minor in zip(self.devices, (3, 5, 7, 9)):  # null, zero, full, urandom
            device.unlink()
            os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, minor))
            device.chmod(0o666)
        self.agent = stack.enter_context(self.node.agent())

    def begin(self, gpus: int, *arguments: str, before: str = "") -> tuple[str, Path]:
        """Submit a job that runs until its gate exists; returns when it has begun."""
        gate, script = self.gates.new()
        job = self.cluster.submit("alice", ["-l", f"gpu={gpus}", *arguments], before + script)
        until(lambda: "begun=yes" in self.cluster.job_output(job), f"job {job} begins")
        return job, gate

    def run(self, job: str) -> Path:
        """Return the spool directory of a job's run."""
        return self.cluster.spool / "active_jobs" / f"{job}.1"

    def kill_run(self, job: str, and_job: bool = True) -> None:
        """End a job's shepherd with -9 and, if asked, the job with it."""
        pids = [int((self.run(job) / "pid").read_text())]
        pids += [int((self.run(job) / "job_pid").read_text())] if and_job else []
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def sge() -> Iterator[SgeLab]:
    require("gridengine")
    with open_directory("gna-reconcile-sge-") as directory, ExitStack() as stack:
        yield SgeLab(directory, stack)


def test_a_job_id_that_wrapped_finds_no_lock_of_its_namesake(sge: SgeLab) -> None:
    with sge.asleep():
        sge.cluster.set_prolog(sge.hooks[0], None)
        old, gate = sge.begin(1)
        gate.touch()
        sge.cluster.wait_job_gone(old)
        sge.cluster.set_prolog(*sge.hooks)
        assert (old, sge.jobs()) == ("1", {0: "1"})
        sge.cluster.kill_execd()
        sge.cluster.kill_qmaster(signal.SIGTERM)
        (sge.directory / "qmaster" / "jobseqnum").write_text("9999998\n")
        sge.cluster.start_qmaster()
        sge.cluster.start_execd()
        last = sge.cluster.submit("alice", [], "exit 0\n")
        sge.cluster.wait_job_gone(last)
        job, gate = sge.begin(2)
        assert (last, job) == ("9999999", "1")
        assert sge.jobs() == {0: "1", 1: "1"} and len({grant for _, grant in sge.locks().values()}) == 1
    gate.touch()
    until(lambda: sge.jobs() == {}, "its epilog frees it")


def test_a_rescheduled_job_and_the_one_that_takes_its_place_share_nothing(sge: SgeLab) -> None:
    """`qmod -rj` frees the count at once, while the old run and its epilog still go on."""
    job, gate = sge.begin(4, "-r", "y")
    [first] = {grant for _, grant in sge.locks().values()}
    sge.cluster.qmod("-rj", job)
    until(lambda: first not in {grant for _, grant in sge.locks().values()}, "the first run's lock freed")
    until(lambda: len(sge.locks()) == 4, "the second run's lock", timeout=60)
    assert set(sge.jobs().values()) == {job}
    sge.cycles()
    assert set(sge.jobs().values()) == {job}
    gate.touch()
    until(lambda: sge.jobs() == {}, "its epilog frees it")


def test_execd_and_shepherds_killed_and_a_prolog_judges_by_itself(sge: SgeLab) -> None:
    """Of two jobs one dies with its shepherd; the other goes on as an orphan, with its GPU open."""
    dead, _ = sge.begin(2)
    orphan, gate = sge.begin(1, before=f"exec 3<{sge.devices[2]}\n")
    assert sge.jobs() == {0: dead, 1: dead, 2: orphan}
    holder = int((sge.run(orphan) / "job_pid").read_text())
    (sge.node.roots["proc"] / str(holder)).symlink_to(f"/proc/{holder}")  # the one process that this /proc shows
    with sge.asleep():
        sge.cluster.kill_execd()
        sge.kill_run(dead)
        sge.kill_run(orphan, and_job=False)
        sge.cluster.start_execd()
        until(lambda: not sge.run(dead).exists() and not sge.run(orphan).exists(), "execd tidies up", timeout=120)
        assert sge.jobs() == {0: dead, 1: dead, 2: orphan}
        following, end = sge.begin(3)
        assert sge.jobs() == {0: following, 1: following, 2: orphan, 3: following}
        assert sge.told("lock_reconciled")
    sge.cycles()
    assert sge.jobs()[2] == orphan, "the agent sees the open device too"
    gate.touch()
    until(lambda: 2 not in sge.jobs(), "the orphan's lock freed once it is gone")
    end.touch()
    until(lambda: sge.jobs() == {}, "all free")
