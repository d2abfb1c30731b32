"""Real Slurm, real hooks, a real agent on each node; only the GPUs are simulated."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.clusters.slurm_release import RELEASES
from tests.integration.conftest import SlurmUsr
from tests.integration.support import Gates, Leftovers, executable, install_tree, variables
from tests.simulated_node import SimulatedNode, until

NODES = ("n1", "n2")
SETTINGS = """interval: 1s
hooks: {{verdict_max_age: 3s}}
health: {{recover: 2, strikes: {{driver-unresponsive: 1}}}}
limits: {{max_drained: 1}}
cleanup: {{patience: 1s, compute_mode: default}}
scheduler: {{kind: slurm, slurm: {{{slurm}}}}}
drivers: {{path: "{sets}/v{{version}}"}}
"""

pytestmark = pytest.mark.timeout(300)  # the first one may have to make the tree of another release
of_one_release = pytest.mark.parametrize("lab", ["22.05"], indirect=True)
"""Tests of what is the node's own affair, and no release's."""


class Lab:
    """The cluster with an agent on each node. `cluster` are further settings of it (see SlurmCluster)."""

    def __init__(self, directory: Path, stack: ExitStack, **cluster: Any) -> None:
        self.directory = directory
        tree = install_tree(directory)
        hooks = {
            name: executable(directory / name, f"exec {tree}/{stub} --config {directory}/$SLURMD_NODENAME/config.yaml")
            for name, stub in (
                ("prolog", "prolog/slurm"),
                ("epilog", "epilog/slurm"),
                ("task_prolog", "prolog/slurm-task"),
            )
        }
        self.cluster = SlurmCluster(directory, nodes=NODES, gpus=4, **hooks, **cluster)
        self.nodes: dict[str, SimulatedNode] = {}
        self.sets = directory / "sets"
        for name in NODES:
            (directory / name).mkdir(mode=0o755)
            settings = SETTINGS.format(slurm=self.cluster.settings, sets=self.sets)
            self.nodes[name] = SimulatedNode(directory / name, gpus=4, node=name, settings=settings)
        (self.sets / f"v{self.nodes['n1'].scenario.driver}" / "bin").mkdir(parents=True)
        (self.sets / f"v{self.nodes['n1'].scenario.driver}" / "lib").mkdir()
        stack.enter_context(self.cluster)
        self.agents = {name: stack.enter_context(node.agent()) for name, node in self.nodes.items()}
        self.gates = Gates(directory)

    def begin(self, *arguments: str, user: str = "alice", before: str = "") -> tuple[str, Path]:
        """Submit a job that runs until its gate exists; returns when it has begun, which is after `before`."""
        gate, script = self.gates.new()
        job = self.cluster.submit(user, list(arguments), before + script)
        until(lambda: "begun=yes" in self.cluster.output(job), f"job {job} begins")
        return job, gate

    def finish(self, job: str, gate: Path) -> dict[str, str]:
        """Let a job end and return its environment."""
        gate.touch()
        assert self.cluster.wait_state(job) == "COMPLETED"
        return variables(self.cluster.output(job))

    def all_free(self) -> bool:
        """Say whether no unit is held on any node."""
        return all(not node.holders() for node in self.nodes.values())


@pytest.fixture(scope="module", params=RELEASES)
def lab(request: pytest.FixtureRequest, slurm_usr: SlurmUsr) -> Iterator[Lab]:
    """Slurm with two nodes of four GPUs each."""
    usr = slurm_usr(request.param)
    with open_directory("gna-slurm-") as directory, ExitStack() as stack:
        yield Lab(directory, stack, usr=usr)


@pytest.fixture(autouse=True)
def healthy_and_idle(lab: Lab) -> Iterator[None]:
    """Each test finds both nodes healthy, in service and idle, and leaves them so."""
    yield
    lab.gates.open_all()
    for name, node in lab.nodes.items():
        with node.scenario.edit():
            node.scenario.clear_faults()
            node.scenario.heal()
        for index in node.retired():
            node.call("restore", str(index))
        until(lambda n=node: not n.retired(), f"{name}: nothing retired")
        until(lambda n=name: not lab.cluster.node(n).drained, f"{name} in service")
    until(lab.all_free, "all units free")


def test_a_users_job_sees_its_gpus_and_the_lock_knows_the_job(lab: Lab) -> None:
    job, gate = lab.begin("--gres=gpu:2", "-w", "n1")
    gpus = lab.nodes["n1"].status()["gpus"]
    held = [gpu for gpu in gpus if gpu["holders"]]
    assert [gpu["index"] for gpu in held] == [0, 1]
    assert {(gpu["holders"][0]["job"], gpu["holders"][0]["user"]) for gpu in held} == {(job, "alice")}
    assert lab.nodes["n2"].holders() == {}
    seen = lab.finish(job, gate)
    assert seen["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert seen["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == seen["SINGULARITYENV_CUDA_VISIBLE_DEVICES"] == "0,1"
    place = f"{lab.sets}/v{lab.nodes['n1'].scenario.driver}"
    binds = f"{place}/bin:/nvbin:ro,{place}/lib:/nvlib:ro"
    assert seen["APPTAINER_BINDPATH"] == seen["SINGULARITY_BINDPATH"] == binds
    until(lab.all_free, "the lock released")


@of_one_release
def test_jobs_at_once_never_share_a_gpu(lab: Lab) -> None:
    wanted = ((2, "alice"), (1, "bob"), (1, "bob"))
    jobs = [lab.begin(f"--gres=gpu:{count}", "-w", "n1", user=user) for count, user in wanted]
    holders = lab.nodes["n1"].holders()
    assert sorted(holders) == [0, 1, 2, 3]
    assert {job: list(holders.values()).count(job) for job, _ in jobs} == {jobs[0][0]: 2, jobs[1][0]: 1, jobs[2][0]: 1}
    seen = [lab.finish(*job)["CUDA_VISIBLE_DEVICES"].split(",") for job in jobs]
    assert sorted(sum(seen, [])) == ["0", "1", "2", "3"]


@of_one_release
def test_array_tasks_hold_units_of_their_own(lab: Lab) -> None:
    gate, script = lab.gates.new()
    lab.cluster.submit("alice", ["--array=1-4", "--gres=gpu:1", "-w", "n1"], script)
    try:
        until(lambda: len(set(lab.nodes["n1"].holders().values())) == 4, "four tasks hold a unit each")
    finally:
        gate.touch()
    until(lab.all_free, "all tasks released theirs")


@of_one_release
def test_a_cancelled_job_releases_its_units(lab: Lab) -> None:
    job, _ = lab.begin("--gres=gpu:3", "-w", "n1")
    assert len(lab.nodes["n1"].holders()) == 3
    lab.cluster.scancel(job)
    until(lab.all_free, "the cancelled job's units free")


def test_a_step_keeps_the_binding_that_slurm_gave_it(lab: Lab) -> None:
    show = "echo $CUDA_VISIBLE_DEVICES $APPTAINERENV_CUDA_VISIBLE_DEVICES"
    result = lab.cluster.run("alice", ["-w", "n1", "-n4", "--gpus-per-task=1", "--gres=gpu:4", "sh", "-c", show])
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.split("\n")[:4]) == ["0 0", "1 1", "2 2", "3 3"]


@of_one_release
def test_a_job_without_gpus_sees_none_although_it_brought_a_list_along(lab: Lab) -> None:
    result = lab.cluster.run("bob", ["-w", "n1", "env"], env={"CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert variables(result.stdout)["CUDA_VISIBLE_DEVICES"] == "NoDevFiles"


def test_a_fault_under_a_job_drains_the_node_and_its_end_brings_it_back(lab: Lab) -> None:
    node = lab.nodes["n1"]
    job, gate = lab.begin("--gres=gpu:2", "-w", "n1")
    with node.scenario.edit():
        node.scenario.xid(1, 79)
        node.scenario.lose(1)
    until(lambda: lab.cluster.node("n1").drained, "n1 drained")
    reason = lab.cluster.node("n1").reason
    assert reason.startswith("gpu-nodeagent/1: ")
    assert "GPU 1" in reason and "79" in reason and "reboot_node" in reason
    assert node.retired() == [1]
    assert lab.cluster.state(job) == "RUNNING"
    waiting = lab.cluster.submit("bob", ["--gres=gpu:1", "-w", "n1"], "echo ran\n")
    elsewhere, other_gate = lab.begin("--gres=gpu:1", user="bob")
    assert lab.nodes["n2"].holders() and lab.cluster.state(waiting) == "PENDING"
    lab.finish(elsewhere, other_gate)
    lab.finish(job, gate)
    assert lab.cluster.state(waiting) == "PENDING"
    with node.scenario.edit():
        node.scenario.heal(1)
        node.scenario.reinitialise(1)
    until(lambda: not lab.cluster.node("n1").drained, "n1 back in service")
    assert lab.cluster.node("n1").reason == ""
    assert node.retired() == []
    assert lab.cluster.wait_state(waiting) == "COMPLETED"


def test_a_retired_unit_gives_the_job_back_and_the_prolog_drains_nothing(lab: Lab) -> None:
    node, agent = lab.nodes["n1"], lab.agents["n1"]
    agent.send_signal(signal.SIGSTOP)  # it would drain the node, before any job could land on the GPU
    try:
        assert node.call("retire", "0", "--reason", "a test").returncode == 0
        job = lab.cluster.submit("alice", ["--gres=gpu:1", "-w", "n1"], "echo ran\n")
        until(lambda: lab.cluster.job(job).get("Restarts") == "1", "the job requeued")
        assert lab.cluster.output(job) == ""
        assert not lab.cluster.node("n1").drained
        assert json.loads(node.ask("locks", "--json"))["locks"] == []
        interactive = lab.cluster.run("bob", ["--gres=gpu:1", "-w", "n1", "echo", "ran"])
        assert "sent away from n1" in interactive.stderr and "a test" in interactive.stderr
        assert "ran" not in interactive.stdout
    finally:
        agent.send_signal(signal.SIGCONT)
    until(lambda: lab.cluster.node("n1").drained, "the agent drains what Slurm cannot spare")
    assert "a test" in lab.cluster.node("n1").reason
    assert node.call("restore", "0").returncode == 0
    until(lambda: not lab.cluster.node("n1").drained, "n1 back in service")
    lab.cluster.scontrol("update", f"jobid={job}", "StartTime=now")
    assert lab.cluster.wait_state(job) == "COMPLETED"
    assert lab.cluster.output(job) == "ran\n"


def test_an_administrators_reason_is_neither_overwritten_nor_taken_back(lab: Lab) -> None:
    node = lab.nodes["n1"]
    lab.cluster.scontrol("update", "nodename=n1", "state=drain", "reason=fan is loud")
    try:
        node.scenario.lose(2)
        until(lambda: node.retired() == [2], "the lost GPU retired")
        assert lab.cluster.node("n1").reason == "fan is loud"
        node.scenario.heal(2)
        until(lambda: node.retired() == [], "the GPU back")
        assert (lab.cluster.node("n1").drained, lab.cluster.node("n1").reason) == (True, "fan is loud")
    finally:
        lab.cluster.scontrol("update", "nodename=n1", "state=resume")


def test_the_limit_keeps_the_second_node_in_service(lab: Lab) -> None:
    lab.nodes["n1"].scenario.lose(0)
    until(lambda: lab.cluster.node("n1").drained, "n1 drained")
    lab.nodes["n2"].scenario.lose(0)
    until(lambda: "drain_refused" in lab.nodes["n2"].log.read_text(), "the refusal")
    assert lab.nodes["n2"].retired() == [0]
    assert not lab.cluster.node("n2").drained


@of_one_release
def test_a_reload_with_a_mistake_keeps_the_old_configuration(lab: Lab) -> None:
    node, agent = lab.nodes["n2"], lab.agents["n2"]
    node.write_config("intervall: 3\n")
    node.reload(agent)
    until(lambda: "config_refused" in node.log.read_text(), "the refusal")
    assert "did you mean interval" in node.log.read_text()
    node.write_config()
    node.reload(agent)
    until(lambda: "config_reloaded" in node.log.read_text(), "the reload")
    assert agent.poll() is None


@of_one_release
def test_with_the_agent_stopped_jobs_start_and_locks_work_and_it_is_told(lab: Lab) -> None:
    node, agent = lab.nodes["n2"], lab.agents["n2"]
    agent.send_signal(signal.SIGSTOP)
    try:
        until(lambda: node.status()["agent"]["age_s"] > 4, "the verdict stale")
        job, gate = lab.begin("--gres=gpu:1", "-w", "n2")
        assert {lock["job"] for lock in json.loads(node.ask("locks", "--json"))["locks"]} == {job}
        lab.finish(job, gate)
    finally:
        agent.send_signal(signal.SIGCONT)
    until(lambda: "verdict_stale" in node.log.read_text(), "the event in the log")
    assert not lab.cluster.node("n2").drained


@of_one_release
def test_a_lock_whose_epilog_never_ran_is_freed_when_the_next_job_meets_it(lab: Lab) -> None:
    """As when slurmd is killed during the epilog: Slurm never runs it again and calls the job a success."""
    lab.cluster.reconfigure(epilog=executable(lab.directory / "lost-epilog", "exit 0"))
    try:
        lost, gate = lab.begin("--gres=gpu:1", "-w", "n1")
        lab.finish(lost, gate)
    finally:
        lab.cluster.reconfigure(epilog=lab.directory / "epilog")
    node = lab.nodes["n1"]
    assert node.holders() == {0: lost}
    job, gate = lab.begin("--gres=gpu:1", "-w", "n1")
    assert node.holders() == {0: job}, "the prolog has replaced the lost job's lock"
    until(lambda: "lock_reconciled" in node.log.read_text(), "the event in the log")
    assert lab.finish(job, gate)["CUDA_VISIBLE_DEVICES"] == "0"


@of_one_release
def test_what_a_job_left_running_on_its_gpu_is_ended_and_the_gpu_granted_again(lab: Lab) -> None:
    node = lab.nodes["n1"]
    leftovers = Leftovers(node)
    job, gate = lab.begin("--gres=gpu:2", "-w", "n1", before=leftovers.script(0))
    pid = int(variables(lab.cluster.output(job))["left"])
    leftovers.seen(pid)
    node.scenario.set(0, compute_mode=3)
    assert Leftovers.lives(pid)
    lab.finish(job, gate)
    until(lambda: not node.holders(), "the job's units free")
    assert not Leftovers.lives(pid)
    until(lambda: "kind=leftover" in node.log.read_text(), "the event in the log")
    assert node.scenario.get(0, "compute_mode") == 0 and node.retired() == []
    again, gate = lab.begin("--gres=gpu:4", "-w", "n1")
    assert lab.finish(again, gate)["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"


@of_one_release
def test_memory_that_a_job_left_retires_its_gpu_frees_the_rest_and_is_over_when_it_is_gone(lab: Lab) -> None:
    node = lab.nodes["n1"]
    job, gate = lab.begin("--gres=gpu:2", "-w", "n1")
    node.scenario.set(1, memory_used=3 << 30)
    lab.finish(job, gate)
    until(lambda: node.retired() == [1], "GPU 1 retired")
    until(lambda: not node.holders(), "the grant freed")
    reason = node.status()["gpus"][1]["retired"]
    assert reason["check"] == "leftover-memory" and f"left by job {job}" in reason["reason"]
    node.scenario.set(1, memory_used=0)
    until(lambda: node.retired() == [], "GPU 1 back")
    until(lambda: not lab.cluster.node("n1").drained, "n1 back in service")
