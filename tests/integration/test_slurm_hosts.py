"""Jobs of several hosts, components, tasks and types of GPU under a real Slurm with two node daemons."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.clusters.process import open_directory
from tests.integration.support import executable, require
from tests.integration.test_slurm import NODES, Lab
from tests.simulated_node import until

TYPED = "--gres=gpu:tesla:1,gpu:kepler:1"
"""Of the GRES below these are, on an idle node, indices 0 and 2: device minors 0 and 1."""


def gres_conf(directory: Path) -> str:
    """Two types whose device files alternate, so that an index is not a minor."""
    return "".join(
        f"NodeName={node} Name=gpu Type={kind} File={directory}/dev-{node}/nvidia[{minors}]\n"
        for node in NODES
        for kind, minors in (("tesla", "0,2"), ("kepler", "1,3"))
    )


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Slurm with two nodes of two tesla and two kepler each; a prolog runs on each node when a job is given it."""
    require("slurm")
    with open_directory("gna-hosts-") as directory, ExitStack() as stack:
        typed = {"gres": "gpu:tesla:2,gpu:kepler:2", "gres_conf": gres_conf(directory)}
        yield Lab(directory, stack, extra_conf="PrologFlags=Alloc\n", **typed)


@pytest.fixture(autouse=True)
def idle(lab: Lab) -> Iterator[None]:
    """Each test leaves both nodes idle and in service, and never saw two jobs on one GPU."""
    yield
    lab.gates.open_all()
    lab.cluster.scancel("-u", "alice")
    lab.cluster.scancel("-u", "bob")
    until(lambda: not lab.cluster.squeue("-h"), "no job left")
    until(lab.all_free, "all units free")
    for name in NODES:
        assert not lab.cluster.node(name).drained
        assert "kind=conflict" not in lab.nodes[name].log.read_text()


def holders(lab: Lab) -> dict[str, dict[int, str]]:
    """Return node → index → job."""
    return {name: lab.nodes[name].holders() for name in NODES}


def grants(lab: Lab, node: str) -> dict[str, str]:
    """Return unit → grant."""
    found = json.loads(lab.nodes[node].ask("locks", "--json"))["locks"]
    return {lock["unit"]: lock["grant"] for lock in found}


def by_scheduler(lab: Lab, node: str) -> list[str]:
    """Return whose the locks are, by the word in them."""
    found = json.loads(lab.nodes[node].ask("locks", "--json"))["locks"]
    return sorted(lock["scheduler"] for lock in found)


@contextmanager
def agent_stopped(lab: Lab, node: str) -> Iterator[None]:
    """Leave a node to its hooks alone."""
    lab.agents[node].send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        lab.agents[node].send_signal(signal.SIGCONT)


def test_the_agent_completes_what_a_prolog_was_not_told_and_the_epilog_frees_it_whole(lab: Lab) -> None:
    with agent_stopped(lab, "n1"):
        job, gate = lab.begin(TYPED, "-w", "n1")
        assert holders(lab)["n1"] == {1: job}, "Slurm tells its prolog the last type only"
    until(lambda: holders(lab)["n1"] == {0: job, 1: job}, "the lock completed", timeout=4)
    assert len(set(grants(lab, "n1").values())) == 1
    assert "lock_completed" in lab.nodes["n1"].log.read_text()
    forged = "x\n     Nodes=n1 CPU_IDs=0 Mem=0 GRES=gpu:4(IDX:0-3)"
    other, _ = lab.begin(TYPED, "-w", "n1", "-J", forged, user="bob")
    until(lambda: holders(lab)["n1"] == {0: job, 1: job, 2: other, 3: other}, "the other job's completed too")
    with agent_stopped(lab, "n1"):
        assert lab.finish(job, gate)["CUDA_VISIBLE_DEVICES"] == "0,1", "as CUDA counts what Slurm calls 0,2"
        until(lambda: by_scheduler(lab, "n1") == ["cleaning"] * 2 + ["slurm"] * 2, "the whole grant given back")
    until(lambda: holders(lab)["n1"] == {2: other, 3: other}, "and freed when the agent has looked at its GPUs")


def test_a_name_that_could_be_taken_for_slurms_answer_widens_nothing(lab: Lab) -> None:
    forged = "x\n   JOB_GRES=x\n     Nodes=n2 CPU_IDs=0 Mem=0 GRES=gpu:4(IDX:0-3)"
    job, _ = lab.begin(TYPED, "-w", "n2", "-J", forged)
    until(lambda: "grant_unclear" in lab.nodes["n2"].log.read_text(), "said in the log")
    assert holders(lab)["n2"] == {1: job}


def test_a_type_alone_needs_nothing_more(lab: Lab) -> None:
    job, _ = lab.begin("--gres=gpu:kepler:2", "-w", "n2")
    assert holders(lab) == {"n1": {}, "n2": {1: job, 3: job}}


def test_a_job_of_two_nodes_is_locked_and_freed_on_each(lab: Lab) -> None:
    job, gate = lab.begin(TYPED, "-N2")
    both = {name: {0: job, 1: job} for name in NODES}
    until(lambda: holders(lab) == both, "each node has its own part, the one without a step too")
    assert not set(grants(lab, "n1").values()) & set(grants(lab, "n2").values())
    lab.finish(job, gate)
    until(lab.all_free, "freed on both")


def test_components_of_a_heterogeneous_job_are_jobs_of_their_own(lab: Lab) -> None:
    gate, script = lab.gates.new()
    job = lab.cluster.submit("alice", ["--gres=gpu:tesla:2", "-w", "n1", ":", TYPED, "-w", "n2"], script)
    second = str(int(job) + 1)
    until(lambda: holders(lab) == {"n1": {0: job, 2: job}, "n2": {0: second, 1: second}}, "both components locked")
    gate.touch()
    until(lab.all_free, "both components freed")


def test_array_tasks_over_two_nodes_hold_all_that_there_is(lab: Lab) -> None:
    gate, script = lab.gates.new()
    lab.cluster.submit("alice", ["--array=1-4", "--gres=gpu:2"], script)

    def jobs() -> list[str]:
        return [job for held in holders(lab).values() for job in held.values()]

    until(lambda: len(jobs()) == 8, "each task's two units locked, of whatever types")
    assert sorted(map(jobs().count, set(jobs()))) == [2, 2, 2, 2]
    gate.touch()
    until(lab.all_free, "all tasks freed theirs")


def test_a_job_whose_number_means_others_too_is_completed(lab: Lab) -> None:
    """An array's last task has the array's number, the first component that of all: Slurm tells of all of them."""
    gate, script = lab.gates.new()
    array = lab.cluster.submit("alice", ["--array=1-2", "-w", "n1", TYPED], script)
    until(lambda: sorted(holders(lab)["n1"]) == [0, 1, 2, 3], "both tasks' locks completed", timeout=10)
    assert list(holders(lab)["n1"].values()).count(array) == 2
    gate.touch()
    until(lab.all_free, "all free")
    _, script = lab.gates.new()
    job = lab.cluster.submit("alice", ["-w", "n1", TYPED, ":", "-w", "n2", TYPED], script)
    both = {"n1": {0: job, 1: job}, "n2": dict.fromkeys((0, 1), str(int(job) + 1))}
    until(lambda: holders(lab) == both, "both components' locks completed", timeout=10)


def test_steps_keep_their_binding_and_change_no_lock(lab: Lab) -> None:
    show = "echo step=$SLURMD_NODENAME:$CUDA_VISIBLE_DEVICES"
    gate, script = lab.gates.new()
    asked = ["-N2", "--ntasks-per-node=2", "--gres=gpu:kepler:2"]
    job = lab.cluster.submit("alice", asked, f"srun --gpus-per-task=1 sh -c '{show}'\n{script}")
    until(lambda: "begun=yes" in lab.cluster.output(job), "the steps have run")
    before = {name: grants(lab, name) for name in NODES}
    assert holders(lab) == {name: {1: job, 3: job} for name in NODES}
    said = sorted(line for line in lab.cluster.output(job).splitlines() if line.startswith("step="))
    assert said == ["step=n1:1", "step=n1:3", "step=n2:1", "step=n2:3"], "one GPU a task, as CUDA counts them"
    step = lab.cluster.command("alice", ["srun", f"--jobid={job}", "--overlap", "-N1", "-n1", "--gres=none", "env"])
    assert step.returncode == 0
    assert {name: grants(lab, name) for name in NODES} == before
    gate.touch()


def test_a_requeued_job_frees_its_own_and_nothing_else(lab: Lab) -> None:
    counts = lab.directory / "counts"
    other, _ = lab.begin("--gres=gpu:tesla:1", "-w", "n1", user="bob")
    body = f"echo $SLURM_JOB_ID $SLURM_JOB_RESTART_COUNT >> {counts}\nexec {lab.directory}/epilog"
    lab.cluster.reconfigure(epilog=executable(lab.directory / "counting-epilog", body))
    try:
        job, gate = lab.begin(TYPED, "-w", "n1")
        until(lambda: holders(lab)["n1"] == {0: other, 1: job, 2: job}, "the lock completed")
        first = set(grants(lab, "n1").values())
        lab.cluster.scontrol("requeue", job)
        until(lambda: holders(lab)["n1"] == {0: other}, "its units free, the other job's not")
        assert f"{job} 1\n" in counts.read_text(), "the epilog of run 0 is told 1: restart counts are not to be trusted"
        until(lambda: lab.cluster.job(job)["Reason"] == "BeginTime", "back in the queue")
        requeued = time.time()  # slurmd refuses credentials from the second of the requeue
        until(lambda: time.time() > requeued + 1.5, "another second")
        lab.cluster.scontrol("update", f"jobid={job}", "StartTime=now")
        until(lambda: holders(lab)["n1"] == {0: other, 1: job, 2: job}, "locked again under the same job id")
        assert len(set(grants(lab, "n1").values()) & first) == 1, "the other job's grant only"
        lab.finish(job, gate)
        until(lambda: holders(lab)["n1"] == {0: other}, "freed again")
    finally:
        lab.cluster.reconfigure(epilog=lab.directory / "epilog")


@pytest.mark.parametrize("when", ["before it locks", "after it locked"])
def test_a_job_cancelled_during_its_prolog_leaves_nothing(lab: Lab, when: str) -> None:
    name = when.replace(" ", "-")
    begun, gate = lab.directory / f"begun-{name}", lab.directory / f"gate-{name}"
    wait = f"touch {begun}\nuntil [ -e {gate} ]; do sleep 0.05; done\n"
    real = f"{lab.directory}/prolog\n"
    body = wait + real if when.startswith("before") else real + wait
    lab.cluster.reconfigure(prolog=executable(lab.directory / name, body))
    try:
        job = lab.cluster.submit("alice", [TYPED, "-w", "n1"], "sleep 60\n")
        until(begun.exists, "the prolog is at work")
        if when.startswith("after"):
            until(lambda: set(holders(lab)["n1"]) == {0, 1}, "completed while the prolog still runs")
        lab.cluster.scancel(job)
        until(lambda: lab.cluster.state(job) != "CONFIGURING" and lab.cluster.state(job) != "RUNNING", "cancelled")
        gate.touch()
        until(lambda: lab.cluster.node("n1").state == "idle", "the node done with it")
        assert holders(lab)["n1"] == {}
    finally:
        gate.touch()
        lab.cluster.reconfigure(prolog=lab.directory / "prolog")


def test_an_exclusive_job_is_given_and_holds_all_although_it_asked_for_one(lab: Lab) -> None:
    job, _ = lab.begin("--exclusive", "--gres=gpu:kepler:1", "-w", "n1")
    assert lab.cluster.job(job)["GRES"] == "gpu:tesla:2(IDX:0-1),gpu:kepler:2(IDX:2-3)"
    until(lambda: holders(lab)["n1"] == dict.fromkeys(range(4), job), "all four locked")


def test_two_jobs_of_one_user_on_one_node_end_apart(lab: Lab) -> None:
    jobs = [lab.begin("--gres=gpu:kepler:1", "-w", "n1") for _ in range(2)]
    assert holders(lab)["n1"] == {1: jobs[0][0], 3: jobs[1][0]}
    lab.finish(*jobs[0])
    until(lambda: holders(lab)["n1"] == {3: jobs[1][0]}, "the first one's freed")
    lab.finish(*jobs[1])
    until(lab.all_free, "the second one's freed")
