"""A faulty GPU of a real Slurm node is held by a suspended job: the node stays, and no job ever runs on that GPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nodeagent.config.load import load
from nodeagent.scheduler.slurm import SlurmScheduler
from nodeagent.scheduler.slurm_holder import partition_line
from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.integration.support import Gates, executable, install_tree, require
from tests.simulated_node import SimulatedNode, until

NODE = "n1"
GPUS = 8
HOLD = "gpuhold"
PARTITION = f"{partition_line(HOLD, NODE)}\n"
SETTINGS = """interval: 500ms
hooks: {{verdict_max_age: 30s}}
health: {{recover: 2}}
scheduler: {{kind: slurm, slurm: {{conf: {conf}, retire: holder}}}}
"""

pytestmark = pytest.mark.timeout(300)  # 200 jobs take their time where other tests run


class Lab:
    """One node of Slurm's with an agent that may be stopped and started. `cluster` are further settings of it."""

    def __init__(self, directory: Path, stack: ExitStack, conf: str, **cluster: Any) -> None:
        self.directory = directory
        tree = install_tree(directory)
        hooks = {
            name: executable(directory / name, f"exec {tree}/{stub} --config {directory}/{NODE}/config.yaml")
            for name, stub in (("prolog", "prolog/slurm"), ("epilog", "epilog/slurm"))
        }
        self.cluster = SlurmCluster(directory, nodes=(NODE,), gpus=GPUS, extra_conf=conf, **hooks, **cluster)
        (directory / NODE).mkdir(mode=0o755)
        settings = SETTINGS.format(conf=self.cluster.conf)
        self.node = SimulatedNode(directory / NODE, gpus=GPUS, node=NODE, settings=settings)
        stack.enter_context(self.cluster)
        self.gates = Gates(directory)
        self._stack = stack
        self._agent = ExitStack()
        self.start_agent()

    def start_agent(self) -> None:
        """Start an agent; it has spoken once when this returns."""
        self._agent = self._stack.enter_context(ExitStack())
        self._process = self._agent.enter_context(self.node.agent())

    def reload_agent(self) -> None:
        """Have the agent read its configuration again."""
        before = self.node.log.read_text().count("config_reloaded")
        self.node.reload(self._process)
        until(lambda: self.node.log.read_text().count("config_reloaded") > before, "the reload")

    def stop_agent(self) -> None:
        """End the agent."""
        self._agent.close()

    def begin(self, *arguments: str, user: str = "alice") -> tuple[str, Path]:
        """Submit a job that runs until its gate exists; returns when it has begun."""
        gate, script = self.gates.new()
        job = self.cluster.submit(user, list(arguments), script)
        until(lambda: "begun=yes" in self.cluster.output(job), f"job {job} begins")
        return job, gate

    def gpus_of(self, job: str) -> set[int]:
        """Return the indices that Slurm gave a job, by what the job itself saw."""
        lines = self.cluster.output(job).splitlines()
        return {int(at) for line in lines if line.startswith("SLURM_JOB_GPUS=") for at in line.split("=")[1].split(",")}

    def unused(self) -> bool:
        """Say whether the node is in service and nothing of it is in use, by the controller's word.

        `sinfo` may go on to say "mixed" if it was asked in the second in which the last job ended.
        """
        said = self.cluster.scontrol("-d", "show", "node", NODE).split()
        return {"State=IDLE", "CPUAlloc=0", "AllocMem=0", "GresUsed=gpu:0"} <= set(said)

    def holders(self) -> dict[str, str]:
        """Return job → state of all that is in the hidden partition, whatever it is."""
        said = self.cluster.squeue("-a", "-h", "-p", HOLD, "-o", "%A %T")
        return dict(line.split() for line in said.splitlines())

    def held(self) -> dict[str, str]:
        """Return GRES as Slurm writes it → state, of each holder."""
        return {self.cluster.job(job).get("GRES", ""): state for job, state in self.holders().items()}

    def wait_held(self, *indices: int) -> None:
        """Wait until just these are held, each by a suspended job."""
        wanted = {f"gpu:1(IDX:{index})": "SUSPENDED" for index in indices}
        until(lambda: self.held() == wanted, f"{wanted} held, and nothing else")

    def retire(self, *indices: int) -> None:
        """Retire GPUs as an administrator would."""
        for index in indices:
            assert self.node.call("retire", str(index), "--reason", "a test").returncode == 0

    def entries(self, what: str) -> list[str]:
        """Return the units that the state directory has under `locks` or `retired`."""
        place = self.node.state_dir / what
        return sorted(path.name for path in place.glob("[GM]*")) if place.is_dir() else []

    def restore(self) -> None:
        """Make all GPUs well, and give them back."""
        with self.node.scenario.edit():
            self.node.scenario.clear_faults()
            self.node.scenario.heal()
        for unit in self.entries("retired"):
            self.node.call("restore", unit)


@contextmanager
def lab_of(conf: str = PARTITION, **cluster: Any) -> Iterator[Lab]:
    """Return a lab whose slurm.conf ends with `conf`; `cluster` are further settings (see SlurmCluster)."""
    require("slurm")
    with open_directory("gna-hold-") as directory, ExitStack() as stack:
        yield Lab(directory, stack, conf, **cluster)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The cluster of most tests here."""
    with lab_of() as lab:
        yield lab


@pytest.fixture(autouse=True)
def as_before(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test leaves no job, no holder and no lock, and a node in service."""
    yield
    if "lab" not in request.fixturenames:
        return
    lab: Lab = request.getfixturevalue("lab")
    lab.gates.open_all()
    lab.cluster.scancel("-u", "alice")
    lab.restore()
    until(lambda: lab.cluster.squeue("-a", "-h") == "", "no trace of a job or a holder")
    until(lab.unused, "the node as before")
    until(lambda: not lab.entries("retired") and not lab.entries("locks"), "nothing retired, no lock")


def hooks_of(lab: Lab) -> str:
    """Return what hooks told the agent."""
    return "".join(f"{line} " for line in lab.node.log.read_text().splitlines() if " hook " in line)


def test_the_faulty_index_is_held_others_jobs_run_on_and_it_is_gone_without_a_trace(lab: Lab) -> None:
    first, _ = lab.begin("--gres=gpu:1")
    second, _ = lab.begin("--gres=gpu:2")
    lab.node.scenario.lose(5)
    lab.wait_held(5)
    [holder] = lab.holders()
    seen = lab.cluster.job(holder)
    assert (seen["UserId"], seen["Partition"], seen["JobName"]) == ("root(0)", HOLD, "gpu-hold")
    assert seen["Comment"] == f"gpu-nodeagent/1: {NODE} {lab.node.scenario.uuid(5)}"
    assert lab.node.retired() == [5] and not lab.cluster.node(NODE).drained
    assert {lab.cluster.state(job) for job in (first, second)} == {"RUNNING"}
    third, _ = lab.begin("--gres=gpu:4", "-c", "6")
    assert lab.gpus_of(third) == {3, 4, 6, 7}, "all other GPUs, and all CPUs: the holder has none"
    assert lab.node.holders() == {0: first, 1: second, 2: second, **dict.fromkeys((3, 4, 6, 7), third)}
    assert HOLD not in lab.cluster.command("alice", ["sinfo"]).stdout
    assert holder not in lab.cluster.command("alice", ["squeue", "-h", "-o", "%A"]).stdout.split()
    assert f"job={holder} " not in hooks_of(lab), "hooks let it be"
    lab.node.scenario.heal(5)
    until(lambda: lab.node.retired() == [], "it is well again")
    until(lambda: lab.holders() == {}, "the holder is gone")
    lab.cluster.scancel(third)
    fourth, _ = lab.begin("--gres=gpu:5")
    assert lab.gpus_of(fourth) == {3, 4, 5, 6, 7}


def test_nobody_but_root_gets_into_the_partition_and_no_job_passes_as_a_holder(lab: Lab) -> None:
    lab.retire(0)
    lab.wait_held(0)
    refused = lab.cluster.command("alice", ["sbatch", "-p", HOLD, "--wrap", "true"])
    assert refused.returncode and "denied" in refused.stderr
    comment = f"gpu-nodeagent/1: {NODE} {lab.node.scenario.uuid(0)}"
    job, _ = lab.begin("-J", "gpu-hold", "--comment", comment, "--gres=gpu:1")
    assert lab.node.holders() == {1: job}, "locked as any other"


def test_a_running_job_is_waited_for_and_after_it_no_other_gets_the_gpu(lab: Lab) -> None:
    running, gate = lab.begin("--gres=gpu:3")
    lab.retire(1)
    until(lambda: "a job has it" in lab.node.log.read_text(), "the agent waits")
    assert lab.holders() == {} and lab.cluster.state(running) == "RUNNING"
    waiting = [lab.cluster.submit("alice", ["--gres=gpu:1", "-c", "1"], "env\n") for _ in range(GPUS + 4)]
    gate.touch()
    lab.wait_held(1)
    assert lab.cluster.state(running) == "COMPLETED"
    for job in waiting:
        if lab.cluster.job(job).get("Restarts") == "1":  # it got the GPU before the holder did, and was sent away
            lab.cluster.scontrol("update", f"jobid={job}", "StartTime=now")
        assert lab.cluster.wait_state(job) == "COMPLETED"
        assert len(lab.gpus_of(job)) == 1 and 1 not in lab.gpus_of(job)


def test_two_at_once_and_the_whole_node(lab: Lab) -> None:
    lab.node.scenario.lose(2)
    lab.node.scenario.lose(6)
    lab.wait_held(2, 6)
    rest, _ = lab.begin(f"--gres=gpu:{GPUS - 2}")
    assert lab.gpus_of(rest) == {0, 1, 3, 4, 5, 7}
    exclusive = lab.cluster.submit("alice", ["--exclusive"], "env\n")
    lab.cluster.scancel(rest)
    until(lambda: lab.cluster.job(exclusive)["Reason"] == "Resources", "a job that wants all of the node waits")
    lab.restore()
    assert lab.cluster.wait_state(exclusive) == "COMPLETED"


def test_it_outlives_restarts_of_everything_and_is_not_made_twice(lab: Lab) -> None:
    lab.retire(3)
    lab.wait_held(3)
    before = lab.holders()
    lab.stop_agent()
    lab.cluster.restart_slurmd(NODE)
    lab.cluster.kill_slurmctld()
    lab.cluster.start_slurmctld()
    lab.cluster.reconfigure()
    until(lambda: "State=IDLE " in lab.cluster.scontrol("show", "node", NODE), "the node has registered")
    job, _ = lab.begin(f"--gres=gpu:{GPUS - 1}")
    assert 3 not in lab.gpus_of(job)
    lab.start_agent()
    until(lambda: lab.node.log.read_text().count(f"holder_placed gpu_uuid={lab.node.scenario.uuid(3)}") == 2, "found")
    assert lab.holders() == before, "the same job still"


def test_what_went_wrong_while_no_agent_was_there_is_put_right(lab: Lab) -> None:
    lab.retire(3)
    lab.wait_held(3)
    [right] = lab.holders()
    lab.stop_agent()
    killed = SlurmScheduler(load(lab.node.config).config, NODE).holders
    for unit in (lab.node.scenario.uuid(3), "GPU-of-long-ago"):
        killed.place(unit, 1)
    number = lab.cluster.submit("root", ["-p", HOLD, "--gres=gpu:1", "-J", "gpu-hold"], "sleep 300\n")
    lab.cluster.wait_state(number, ["RUNNING"])
    lab.cluster.scontrol("resume", right)
    assert len(lab.holders()) == 4
    lab.start_agent()
    until(lambda: lab.holders() == {right: "SUSPENDED", number: "RUNNING"}, "the wrong ones gone, the right one asleep")
    lab.cluster.scancel(number)
    lab.stop_agent()
    lab.restore()
    assert lab.holders() == {right: "SUSPENDED"}
    lab.start_agent()
    until(lambda: lab.holders() == {}, "what was restored without an agent is let go of by the next one")


def test_a_rebooted_node_has_its_holder(lab: Lab) -> None:
    lab.retire(4)
    lab.wait_held(4)
    lab.stop_agent()
    shutil.rmtree(lab.node.state_dir)
    lab.cluster.kill_slurmd(NODE)
    lab.cluster.start_slurmd(NODE, rebooted=True)
    lab.start_agent()
    lab.wait_held(4)
    job, _ = lab.begin(f"--gres=gpu:{GPUS - 1}")
    assert 4 not in lab.gpus_of(job)


def test_a_holder_that_somebody_ended_is_made_anew(lab: Lab) -> None:
    lab.retire(1)
    lab.wait_held(1)
    [first] = lab.holders()
    lab.cluster.scancel(first)
    until(lambda: first not in lab.holders(), "ended")
    lab.wait_held(1)


def test_two_hundred_jobs_on_seven_gpus_and_none_on_the_eighth(lab: Lab) -> None:
    lab.retire(2)
    lab.wait_held(2)
    ran = lab.directory / "ran"
    ran.touch()
    ran.chmod(0o666)
    script = f"echo $SLURM_JOB_ID $SLURM_JOB_GPUS >> {ran}\n"
    lab.cluster.submit("alice", ["--array=1-200", "--gres=gpu:1", "-o", "/dev/null"], script)
    until(lambda: len(ran.read_text().splitlines()) >= 200, "200 jobs have run", timeout=200)
    rows = [line.split() for line in ran.read_text().splitlines()]
    assert len({job for job, _ in rows}) == len(rows) == 200
    assert {int(gpu) for _, gpu in rows} == set(range(GPUS)) - {2}
    assert "gave_back" not in lab.node.log.read_text().rpartition("holder_placed")[2]
    assert not lab.cluster.node(NODE).drained


def test_without_the_partition_the_node_is_drained_and_a_reload_finds_it_when_it_is_there(lab: Lab) -> None:
    lab.cluster.reconfigure(extra_conf="")
    said = lab.node.ask("doctor")
    assert "warn  slurm-holder: a retired GPU drains the node: there is no partition gpuhold" in said
    assert PARTITION.strip() in said, "and what to type"
    lab.reload_agent()
    lab.retire(1)
    until(lambda: lab.cluster.node(NODE).drained, "drained, as Slurm cannot spare one GPU")
    assert lab.cluster.node(NODE).reason.startswith("gpu-nodeagent/1: ")
    assert "holder_unsafe" in lab.node.log.read_text()
    lab.restore()
    until(lambda: not lab.cluster.node(NODE).drained, "back in service")
    lab.cluster.reconfigure(extra_conf=PARTITION.replace("OverSubscribe=NO", "OverSubscribe=FORCE"))
    assert "OverSubscribe=FORCE" in lab.node.ask("doctor")
    lab.cluster.reconfigure(extra_conf=PARTITION)
    assert "ok    slurm-holder" in lab.node.ask("doctor")
    lab.reload_agent()
    lab.retire(1)
    lab.wait_held(1)
    assert not lab.cluster.node(NODE).drained


MEMORY = "SelectTypeParameters=CR_CPU_Memory\nDefMemPerCPU=50\nPrologFlags=Alloc\n"
"""Alloc: prologs run when a job is given its node, as with Contain, so also for a holder, which has no step."""


def test_where_memory_is_counted_and_processes_are_kept_in_cgroups_if_version_1_is_here() -> None:
    with lab_of(MEMORY + PARTITION, cgroups=Path("/sys/fs/cgroup/devices").is_dir()) as lab:
        running, _ = lab.begin("--gres=gpu:1")
        lab.node.scenario.lose(4)
        lab.wait_held(4)
        assert "gave_back" not in hooks_of(lab), "nor refused what it has"
        job, _ = lab.begin(f"--gres=gpu:{GPUS - 2}", "-c", "7", "--mem=900")
        assert lab.gpus_of(job) == {1, 2, 3, 5, 6, 7}
        lab.cluster.scancel(job, running)
        most = lab.cluster.submit("alice", ["--mem=999"], "env\n")
        assert lab.cluster.wait_state(most) == "COMPLETED"
        whole = lab.cluster.submit("alice", ["--mem=0"], "env\n")
        until(lambda: lab.cluster.job(whole)["Reason"] == "Resources", "one that wants all memory waits")
        lab.restore()
        assert lab.cluster.wait_state(whole) == "COMPLETED"
        until(lambda: lab.cluster.squeue("-a", "-h") == "", "no trace")
