"""Units between two jobs as hooks see them: handed over, taken over, waited for; and whose processes are ended."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.cli.sge_sensor_command import report
from nodeagent.errors import UnitsUnavailable
from nodeagent.hook import cleanup, epilog, prolog
from nodeagent.hook.node import Node
from nodeagent.lock.cleaning import heard, listen, open_attendant
from nodeagent.lock.mark import Mark
from nodeagent.lock.occupancy import with_slots
from nodeagent.lock.reconcile import gone
from nodeagent.lock.record import CLEANING, Owner
from nodeagent.report import lock_entry
from nodeagent.state import events
from nodeagent.state.boot import boot_id
from nodeagent.state.hook_conf import read_hook_conf
from nodeagent.state.verdict_file import read_verdict
from tests.support import LaidOutNode, uuid
from tests.unit.test_processes import NULL, Proc

JOB = "7"


@pytest.fixture
def laid_out(tmp_path: Path) -> LaidOutNode:
    return LaidOutNode(tmp_path, "slurm", gpus=4)


@pytest.fixture
def attendant(laid_out: LaidOutNode) -> Iterator[int]:
    """The agent's end of the FIFO."""
    fd = listen(laid_out.state)
    yield fd
    os.close(fd)


def node_of(laid_out: LaidOutNode, fresh: bool = True) -> Node:
    state = laid_out.state
    return Node(state, boot_id("/proc"), read_hook_conf(state), read_verdict(state), fresh)


def states(laid_out: LaidOutNode) -> dict[int, str]:
    owners = laid_out.store.owners()
    return {index: owners[uuid(index)].scheduler for index in range(laid_out.gpus) if uuid(index) in owners}


def into_cleaning(laid_out: LaidOutNode, *indices: int, job: str = JOB) -> None:
    owner = laid_out.hold(indices, job=job)
    with laid_out.store.exclusive():
        for index in indices:
            laid_out.store.hand_over(uuid(index), owner.cleaning())


def kinds(laid_out: LaidOutNode) -> list[str]:
    return [event.kind for event in events.take(laid_out.state)]


# -- the epilog's end -------------------------------------------------------------------------------------------------


def test_with_an_agent_that_listens_units_go_into_cleaning_and_tell_whose_they_were(
    laid_out: LaidOutNode, attendant: int
) -> None:
    before = laid_out.hold([0, 1])
    laid_out.hold([2], job="8")
    assert epilog.end(laid_out.state, "slurm", "", JOB).keys() == {uuid(0), uuid(1)}
    assert states(laid_out) == {0: CLEANING, 1: CLEANING, 2: "slurm"}
    after = laid_out.store.owners()[uuid(0)]
    assert (after.job, after.grant, after.units) == (before.job, before.grant, before.units)
    assert lock_entry(uuid(0), after)["state"] == "cleaning"
    assert os.read(attendant, 10) == b"c"
    assert epilog.end(laid_out.state, "slurm", "", JOB) == {}
    assert kinds(laid_out) == ["release"]


def test_without_one_they_are_free_at_once(laid_out: LaidOutNode) -> None:
    laid_out.hold([0, 1])
    epilog.end(laid_out.state, "slurm", "", JOB)
    assert states(laid_out) == {}
    os.close(listen(laid_out.state))  # it was there, and is gone: the FIFO is all that is left
    laid_out.hold([0, 1])
    epilog.end(laid_out.state, "slurm", "", JOB)
    assert states(laid_out) == {}


@pytest.mark.usefixtures("attendant")
@pytest.mark.parametrize("broken", ["stale", "no verdict", "no hook.conf", "bad hook.conf", "disabled", "old release"])
def test_whatever_is_broken_the_lock_goes(laid_out: LaidOutNode, broken: str) -> None:
    laid_out.hold([0, 1])
    if broken == "stale":
        laid_out.write_verdict(age=1000)
    elif broken == "no verdict":
        (laid_out.state_dir / "verdict").unlink()
    elif broken == "no hook.conf":
        (laid_out.state_dir / "hook.conf").unlink()
    elif broken == "bad hook.conf":
        (laid_out.state_dir / "hook.conf").write_text("format=9\n")
    elif broken == "disabled":
        laid_out.compile(**{"cleanup.enabled": "no"})
    else:
        conf = read_hook_conf(laid_out.state)
        conf.settings = {key: value for key, value in conf.settings.items() if not key.startswith("cleanup.")}
        laid_out.state.replace("hook.conf", conf.encode())
    epilog.end(laid_out.state, "slurm", "", JOB)
    assert states(laid_out) == {}


@pytest.mark.usefixtures("attendant")
def test_what_cannot_be_handed_over_is_freed(laid_out: LaidOutNode, monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out.hold([0, 1])

    def full(_: object, unit: str, __: Owner) -> None:
        if unit == uuid(1):
            raise OSError(28, "no space")
        real(laid_out.store, unit, laid_out.store.owners()[unit].cleaning())

    real = type(laid_out.store).hand_over
    monkeypatch.setattr(type(laid_out.store), "hand_over", full)
    epilog.end(laid_out.state, "slurm", "", JOB)
    assert states(laid_out) == {0: CLEANING}


def test_a_file_in_the_place_of_the_fifo_is_no_agent(laid_out: LaidOutNode) -> None:
    (laid_out.state_dir / "wake").write_text("")
    assert open_attendant(laid_out.state) == -1
    fd = listen(laid_out.state)  # the agent puts a FIFO there
    woken = open_attendant(laid_out.state)
    assert woken >= 0
    heard(fd)
    os.close(fd)
    os.close(woken)


# -- the next prolog --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("attendant")
def test_slurms_prolog_waits_for_a_unit_in_cleaning_and_then_takes_it_over(
    laid_out: LaidOutNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prolog, "CLEANING_WAIT", 0.1)
    into_cleaning(laid_out, 0, 1)
    node = node_of(laid_out)
    owner = node.owner("slurm", "9")
    done = prolog.record(node, owner, [unit for unit in laid_out.units() if unit.unit != uuid(1)][:1])
    assert (done.locked, done.conflicts, done.unfit) == ((uuid(0),), [], [])
    assert laid_out.held() == {0: "9", 1: JOB} and states(laid_out) == {0: "slurm", 1: CLEANING}
    assert "cleaning_unfinished" in kinds(laid_out)


@pytest.mark.usefixtures("attendant")
def test_slurms_prolog_goes_on_as_soon_as_the_agent_has_freed_it(
    laid_out: LaidOutNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    into_cleaning(laid_out, 0)

    def agent(_: float) -> None:
        with laid_out.store.exclusive():
            laid_out.store.release(lambda owner: owner.scheduler == CLEANING)

    monkeypatch.setattr(prolog.time, "sleep", agent)
    node = node_of(laid_out)
    assert prolog.record(node, node.owner("slurm", "9"), laid_out.units()[:1]).locked == (uuid(0),)
    assert kinds(laid_out) == []


@pytest.mark.usefixtures("attendant")
def test_of_a_full_shared_gpu_only_the_shares_in_cleaning_are_taken_over(
    laid_out: LaidOutNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prolog, "CLEANING_WAIT", 0.05)
    node = node_of(laid_out)
    line = with_slots(laid_out.units()[0], 2)
    assert node.verdict is not None
    node.verdict.units = (line,)
    shares = [f"{uuid(0)}@{k}" for k in (0, 1)]
    with laid_out.store.exclusive():
        for share, owner in zip(shares, (node.owner("slurm", "8"), node.owner("slurm", "9").cleaning())):
            owner.units = (share,)
            laid_out.store.claim(owner)
    assert prolog.record(node, node.owner("slurm", "10"), [line]).locked == (shares[1],)
    assert {unit: owner.job for unit, owner in laid_out.store.owners().items()} == dict(zip(shares, ("8", "10")))


@pytest.mark.parametrize("gone_how", ["no reader", "stale"])
def test_where_no_agent_cleans_any_more_prologs_take_over_at_once(laid_out: LaidOutNode, gone_how: str) -> None:
    fd = listen(laid_out.state)
    if gone_how == "no reader":
        os.close(fd)
    into_cleaning(laid_out, 0, 1, 2)
    node = node_of(laid_out, fresh=gone_how != "stale")
    assert prolog.record(node, node.owner("slurm", "9"), laid_out.units()[:1]).locked == (uuid(0),)
    assert len(prolog.take(node, node.verdict, node.owner("sge", "10"), 3, 0.0)) == 3  # type: ignore[arg-type]
    assert states(laid_out) == {0: "slurm", 1: "sge", 2: "sge", 3: "sge"}


@pytest.mark.usefixtures("attendant")
def test_a_choice_waits_for_units_in_cleaning_also_where_it_would_not_wait(
    laid_out: LaidOutNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prolog, "CLEANING_WAIT", 0.05)
    monkeypatch.setattr(prolog, "_POLL", 0.01)
    into_cleaning(laid_out, 0, 1)
    node = node_of(laid_out)
    assert node.verdict is not None
    assert {unit.unit for unit in prolog.take(node, node.verdict, node.owner("sge", "9"), 2, 0.0)} == {uuid(2), uuid(3)}
    with pytest.raises(UnitsUnavailable):
        prolog.take(node, node.verdict, node.owner("sge", "10"), 2, 0.0)
    assert states(laid_out) == {0: CLEANING, 1: CLEANING, 2: "sge", 3: "sge"}


# -- whom it concerns -------------------------------------------------------------------------------------------------


def test_reconciling_frees_what_is_in_cleaning_only_from_another_boot() -> None:
    owner = Owner("slurm", job="1", grant="g", pid="10", pid_start="5", boot_id="now", units=("GPU-a", "GPU-b"))
    assert gone({"GPU-a": owner.cleaning()}, "now", lambda _: "", {"g": "its job is over"}) == {}
    assert gone({"GPU-a": owner.cleaning()}, "later", lambda _: "").keys() == {"g"}
    # part of it is the job's still, as after a crash of the epilog: that is no incomplete grant
    assert gone({"GPU-a": owner.cleaning(), "GPU-b": owner}, "now", lambda _: "") == {}


def test_the_sensor_counts_what_is_about_to_be_free_as_free(laid_out: LaidOutNode) -> None:
    units = laid_out.units({3: "FAILED"})
    owners = {uuid(0): Owner("sge", job="1", grant="g"), uuid(1): Owner(CLEANING, job="2", grant="h")}
    assert "gpu:2" in list(report(units, {}, owners, "gpu"))


# -- whose process it is ----------------------------------------------------------------------------------------------


def mark(scheduler: str = "slurm", uid: int = os.getuid(), **fields: str) -> Mark:
    return Mark(Owner(scheduler, job=JOB, grant="g", uid=str(uid), **fields), str(os.getuid()))  # type: ignore[arg-type]


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def test_slurms_cgroup_proves_a_job_and_goes_before_what_the_user_can_forge(proc: Proc) -> None:
    proc.add(1, "nvidia0", cgroup="0::/system.slice/slurmstepd.scope/job_7/step_0/user/task_0\n")
    proc.add(2, "nvidia0", cgroup="5:devices:/slurm/uid_1000/job_7/step_batch\n0::/\n")
    proc.add(3, "nvidia0", cgroup="0::/system.slice/slurmstepd.scope/job_8/step_0\n", environ="SLURM_JOB_ID=7\0")
    proc.add(4, "nvidia0", cgroup="0::/system.slice/slurmstepd.scope/job_77/step_0\n")
    proc.add(5, "nvidia0", cgroup="0::/user.slice\n", environ="SLURM_JOB_ID=7\0SLURM_CLUSTER_NAME=lab\0")
    proc.add(6, "nvidia0", cgroup="0::/user.slice\n", environ="SLURM_JOB_ID=8\0")
    proc.add(7, "nvidia0")
    assert [pid for pid in range(1, 8) if mark().is_on(proc.root, pid)] == [1, 2, 5]
    assert [pid for pid in range(1, 8) if mark(cluster="other").is_on(proc.root, pid)] == [1, 2]


def test_grid_engines_additional_group_proves_a_run_and_without_it_its_spool_directory(
    proc: Proc, tmp_path: Path
) -> None:
    run = tmp_path / "active_jobs" / "7.1"
    run.mkdir(parents=True, mode=0o755)
    proc.add(1, "nvidia0", status="Groups:\t100 20007\n")
    proc.add(2, "nvidia0", status="Groups:\t100 20008\n", environ=f"SGE_JOB_SPOOL_DIR={run}\0")
    assert [pid for pid in (1, 2) if mark("sge", run=str(run)).is_on(proc.root, pid)] == [2]
    (run / "config").write_text("stdout_path=/x\nadd_grp_id=20008\nadd_grp_id=20007\n")  # the first is the user's
    assert [pid for pid in (1, 2) if mark("sge", run=str(run)).is_on(proc.root, pid)] == [1]
    (run / "addgrpid").write_text("20008\n")
    assert [pid for pid in (1, 2) if mark("sge", run=str(run)).is_on(proc.root, pid)] == [2]
    (run / "addgrpid").chmod(0o666)  # anybody's word
    assert [pid for pid in (1, 2) if mark("sge", run=str(run)).is_on(proc.root, pid)] == [1]


def test_of_a_process_in_state_d_no_variable_is_read(proc: Proc) -> None:
    proc.add(1, "nvidia0", environ="SLURM_JOB_ID=7\0")
    assert mark().is_on(proc.root, 1)
    thread = Path(proc.root, "1", "task", "2")
    thread.mkdir(parents=True)
    (thread / "stat").write_text("2 (a) D 1\n")
    assert not mark().is_on(proc.root, 1)


def test_a_number_that_is_another_process_by_now_is_not_signalled(monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getpid()
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(pid))
    process = cleanup.find("/proc", me)
    assert process is not None
    assert not cleanup.send("/proc", cleanup.Process(me, "1"), os.getuid(), 0)
    assert not cleanup.send("/proc", process, os.getuid() + 1, 0)
    assert cleanup.send("/proc", process, os.getuid(), 0)  # by a pidfd, where there are any
    assert sent in ([], [me])


def test_a_process_that_does_not_die_is_told_by_the_deadline_and_others_are_named(
    proc: Proc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "owner_uid", lambda _, pid: 1000 if pid < 4 else 2000)
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(cleanup, "send", lambda _, process, __, number: signals.append((process.pid, number)))
    proc.add(1, "nvidia0", environ="SLURM_JOB_ID=7\0")
    proc.add(2, "nvidia0", environ="SLURM_JOB_ID=8\0")
    proc.add(3, "other", environ="SLURM_JOB_ID=7\0")
    proc.add(4, "nvidia0", environ="SLURM_JOB_ID=7\0")
    began = cleanup.time.monotonic()
    left = cleanup.end_processes(proc.root, mark(uid=1000), [NULL], began + 0.1)
    assert 0.1 <= cleanup.time.monotonic() - began < 0.5
    assert [(process.pid, devices) for process, devices in left.stuck] == [(1, {NULL})]
    assert (left.foreign, left.ended) == ({2}, 0)
    assert signals == [(1, 15), (1, 9)]


@pytest.mark.parametrize("owner", [mark(uid=0), mark("local", uid=1000), mark("cleaning", uid=1000)])
def test_roots_jobs_and_those_of_no_scheduler_have_nothing_ended(proc: Proc, owner: Mark) -> None:
    proc.add(1, "nvidia0", environ="SLURM_JOB_ID=7\0")
    left = cleanup.end_processes(proc.root, owner, [NULL], cleanup.time.monotonic() + 5)
    assert (left.stuck, left.ended) == ([], 0)


def test_a_unit_with_a_process_that_does_not_die_is_retired_and_the_rest_is_freed(
    laid_out: LaidOutNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    proc = Proc(tmp_path)
    (Path(proc.root) / "sys/kernel/random").mkdir(parents=True)
    (Path(proc.root) / "sys/kernel/random/boot_id").write_text(boot_id("/proc"))
    proc.add(1, "nvidia0", start=77, environ="SLURM_JOB_ID=7\0")
    laid_out.compile(**{"roots.proc": proc.root, "roots.dev": str(tmp_path)})
    owner = laid_out.hold([0, 1])
    owner.uid = "1000"
    with laid_out.store.exclusive():
        for index in (0, 1):
            laid_out.store.hand_over(uuid(index), owner)
    monkeypatch.setattr(cleanup, "owner_uid", lambda *_: 1000)
    monkeypatch.setattr(cleanup, "send", lambda *_: True)
    monkeypatch.setattr(epilog, "_ENDING", 0.1)
    epilog.end(laid_out.state, "slurm", "", JOB)
    assert states(laid_out) == {}
    (record,) = laid_out.store.retired().items()
    assert record[0] == uuid(0) and record[1]["check"] == "leftover-process" and record[1]["processes"] == "1:77"
    assert "process 1 of job 7 does not die" in record[1]["reason"] and record[1]["by"] == "agent"
