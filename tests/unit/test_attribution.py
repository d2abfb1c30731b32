"""Whose the processes on GPUs are: by the kernel's word, and never by that of another process with the same number."""

from __future__ import annotations

import os
import pwd
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nodeagent.clock import SystemClock
from nodeagent.gpu.facts import MigInstance, NodeFacts, Process
from nodeagent.gpu.host import Holder
from nodeagent.job import attribution, names
from nodeagent.job.attribution import Attribution
from nodeagent.job.names import UserNames
from nodeagent.lock.record import Owner
from tests.unit.test_health_facts import gpu, node, uuid
from tests.unit.test_processes import Proc

ME = os.getuid()
SLURM_CGROUP = "0::/system.slice/slurmstepd.scope/job_{job}/step_0/user/task_0\n"
JOB = Owner("slurm", job="17", user="alice", uid=str(ME), grant="g1", units=(uuid(0),), gpus=(uuid(0),))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    made = Proc(tmp_path)
    Path(made.root).mkdir()
    return made


def attribute(proc: Proc, facts: NodeFacts, *owners: Owner, since: float = 0.0) -> NodeFacts:
    """Attribute what a sweep saw that ended `since` seconds ago."""
    of = Attribution(proc.root, (ME,), lambda uid: f"u{uid}", SystemClock())
    facts = replace(facts, monotonic=time.monotonic() - since)
    return of.of(facts, {unit: owner for owner in owners for unit in owner.units})


def test_a_process_of_a_job_bears_its_name(proc: Proc) -> None:
    proc.add(50, cgroup=SLURM_CGROUP.format(job=17))
    facts = attribute(proc, node(gpu(0, processes=(Process(50, 123),))), JOB)
    (process,) = facts.gpus[0].processes
    assert process == Process(50, 123, ME, "alice", "a) b", "slurm 17")
    assert facts.gpus[0].holders == (Holder("slurm", "17", "", "alice", ME),)


def test_a_job_of_slurm_s_is_known_without_a_lock_and_others_are_not(proc: Proc) -> None:
    proc.add(50, cgroup=SLURM_CGROUP.format(job=18))
    proc.add(51, cgroup="0::/user.slice\n", environ="SLURM_JOB_ID=99\0")
    facts = attribute(proc, node(gpu(0, processes=(Process(50), Process(51)))))
    assert [(one.job, one.user) for one in facts.gpus[0].processes] == [("slurm 18", f"u{ME}"), ("", f"u{ME}")]
    assert facts.gpus[0].holders == ()


def test_a_task_of_grid_engine_s_is_known_by_its_group(proc: Proc, tmp_path: Path) -> None:
    run = tmp_path / "active_jobs" / "8.3"
    run.mkdir(parents=True)
    (run / "addgrpid").write_text("20003\n")
    owner = Owner("sge", "8", "3", user="bob", uid=str(ME), grant="g", run=str(run), units=(uuid(1),), gpus=(uuid(1),))
    proc.add(60, status="Groups:\t4 20003 \n")
    proc.add(61, status="Groups:\t4 20004 \n")
    facts = attribute(proc, node(gpu(0), gpu(1, processes=(Process(60), Process(61)))), owner)
    assert [one.job for one in facts.gpus[1].processes] == ["sge 8.3", ""]
    assert (facts.gpus[0].holders, facts.gpus[1].holders) == ((), (Holder("sge", "8", "3", "bob", ME),))


def test_what_a_process_says_of_itself_is_no_proof(proc: Proc) -> None:
    proc.add(50, cgroup="0::/user.slice\n", environ="SLURM_JOB_ID=17\0")
    facts = attribute(proc, node(gpu(0, processes=(Process(50),))), JOB)
    assert facts.gpus[0].processes[0].job == ""


def test_a_run_s_directory_is_read_once(proc: Proc, tmp_path: Path) -> None:
    (tmp_path / "addgrpid").write_text("20003\n")
    owner = Owner("sge", "8", uid=str(ME), grant="g", run=str(tmp_path), units=(uuid(0),), gpus=(uuid(0),))
    proc.add(60, status="Groups:\t20003 \n")
    of = Attribution(proc.root, (ME,), str, SystemClock())
    facts = replace(node(gpu(0, processes=(Process(60),))), monotonic=time.monotonic())
    jobs = [of.of(facts, {uuid(0): owner}).gpus[0].processes[0].job]
    (tmp_path / "addgrpid").unlink()
    jobs.append(of.of(facts, {uuid(0): owner}).gpus[0].processes[0].job)
    assert jobs == ["sge 8", "sge 8"]


def test_a_process_that_is_gone_or_began_after_the_sweep_is_a_number(proc: Proc) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    now = int(time.clock_gettime(time.CLOCK_BOOTTIME) * ticks)
    proc.add(50, start=now)
    proc.add(51, start=now - 30 * ticks)
    facts = attribute(proc, node(gpu(0, processes=(Process(49, 9), Process(50), Process(51)))), JOB, since=5.0)
    assert facts.gpus[0].processes[:2] == (Process(49, 9), Process(50))
    assert facts.gpus[0].processes[2].uid == ME


def test_a_number_given_anew_while_it_was_read_is_a_number(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    proc.add(50, start=7)

    def name_of(root: str, pid: int) -> str:
        (Path(root) / str(pid) / "stat").write_text(f"{pid} (other) S " + "0 " * 18 + "8 0 0\n")
        return "other"

    monkeypatch.setattr(attribution, "name_of", name_of)
    facts = attribute(proc, node(gpu(0, processes=(Process(50, 1),))), JOB)
    assert facts.gpus[0].processes == (Process(50, 1),)


def test_holders_of_shares_and_instances_hold_the_gpu_and_each_is_told_once(proc: Proc) -> None:
    instance = MigInstance("MIG-1", 1, 0)
    share = Owner(
        "local", "5", user="x", uid="", grant="a", units=(f"{uuid(0)}@0", f"{uuid(0)}@1"), gpus=(uuid(0),) * 2
    )
    part = Owner("slurm", "6", user="y", uid=str(ME), grant="b", units=("MIG-1",))
    facts = attribute(proc, node(gpu(0), gpu(1, mig_enabled=True, mig=(instance,))), share, part)
    assert facts.gpus[0].holders == (Holder("local", "5", "", "x", -1),)
    assert facts.gpus[1].holders == (Holder("slurm", "6", "", "y", ME),)


def test_users_have_names_or_their_number() -> None:
    users = UserNames()
    assert users(ME) == pwd.getpwuid(ME).pw_name
    assert users(3_999_999) == "3999999"


def test_a_directory_service_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = threading.Event(), []

    class Directory:
        @staticmethod
        def getpwuid(uid: int) -> pwd.struct_passwd:
            asked.append(uid)
            answer.wait(10.0)
            return pwd.getpwuid(ME)

    monkeypatch.setattr(names, "pwd", Directory)
    monkeypatch.setattr(names, "_PATIENCE", 0.01)
    users = UserNames()
    assert [users(5), users(5), users(6)] == ["5", "5", "6"]
    assert asked == [5]
    answer.set()
