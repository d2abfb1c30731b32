"""Holders: what Slurm's answers mean, which of them are right, and how one gets its GPU; on a Slurm of values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import pytest

from nodeagent.config.model import Config, Scheduler, Slurm
from nodeagent.errors import CommandFailed
from nodeagent.scheduler.holder_placing import hold
from nodeagent.scheduler.slurm import SlurmScheduler
from nodeagent.scheduler.slurm_holder import (
    Holder,
    Unsafe,
    parse_partitions,
    parse_queue,
    partition_line,
    plan,
    time_to_schedule,
    why_busy,
    why_unsafe,
)

A, B = "GPU-a", "GPU-b"
SETTINGS = {
    **{"SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CPU", "GresTypes": "gpu"},
    **{"PreemptType": "preempt/none", "PreemptMode": "OFF", "DefMemPerNode": "UNLIMITED", "DisableRootJobs": "NO"},
}
MAIN = (
    "PartitionName=main AllowGroups=ALL Default=YES DisableRootJobs=NO ExclusiveUser=NO Hidden=NO MaxTime=UNLIMITED"
    " Nodes=n[1-2],login PriorityTier=1 RootOnly=NO OverSubscribe=NO PreemptMode=OFF State=UP JobDefaults=(null)"
    " DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED"
)
HOLD = (
    "PartitionName=gpuhold AllowGroups=ALL Default=NO DisableRootJobs=NO ExclusiveUser=NO Hidden=YES MaxTime=UNLIMITED"
    " Nodes=n[1-2] PriorityTier=65533 RootOnly=YES OverSubscribe=NO PreemptMode=OFF State=UP JobDefaults=(null)"
    " SelectTypeParameters=NONE DefMemPerNode=UNLIMITED MaxMemPerNode=UNLIMITED"
)
"""As `scontrol -o show partition` of 22.05.8 says, shortened."""


def unsafe(
    settings: Mapping[str, str] | None = None, hold: tuple[str, str] = ("", ""), main: tuple[str, str] = ("", "")
) -> Unsafe | None:
    partitions = parse_partitions(f"{MAIN.replace(*main)}\n{HOLD.replace(*hold)}\n")
    return why_unsafe({**SETTINGS, **(settings or {})}, partitions, "gpuhold", "n1")


def test_a_site_on_which_holders_are_safe() -> None:
    assert unsafe() is None
    assert unsafe({"PreemptType": "(null)"}) is None, "as 24.11 says that there is none"
    assert unsafe({"SelectTypeParameters": "CR_CPU_MEMORY", "DefMemPerNode": "1000"}) is None
    limited = ("DefMemPerNode=UNLIMITED", "DefMemPerCPU=100")
    assert unsafe({"SelectTypeParameters": "CR_CPU_MEMORY"}, main=limited) is None


@pytest.mark.parametrize(
    ("there", "instead", "why"),
    [
        ("PartitionName=gpuhold", "PartitionName=other", "no partition gpuhold"),
        ("Nodes=n[1-2]", "Nodes=n[2-9]", "does not have n1"),
        ("Hidden=YES", "Hidden=NO", "Hidden=NO"),
        ("RootOnly=YES", "RootOnly=NO", "RootOnly=NO"),
        ("State=UP", "State=DOWN", "State=DOWN"),
        ("OverSubscribe=NO", "OverSubscribe=FORCE:4", "OverSubscribe=FORCE:4"),
        ("MaxTime=UNLIMITED", "MaxTime=1-00:00:00", "MaxTime=1-00:00:00"),
        ("ExclusiveUser=NO", "ExclusiveUser=YES", "ExclusiveUser=YES"),
        ("PriorityTier=65533", "PriorityTier=0", "higher PriorityTier"),
    ],
)
def test_a_partition_that_will_not_do(there: str, instead: str, why: str) -> None:
    found = unsafe(hold=(there, instead))
    assert found is not None and why in found.why
    assert partition_line("gpuhold", "n1") in found.remedy


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"SelectType": "select/linear"}, "select/linear"),
        ({"PreemptType": "preempt/partition_prio", "PreemptMode": "REQUEUE"}, "preempted"),
        ({"PreemptMode": "GANG"}, "preempted"),
        ({"PreemptType": "preempt/qos"}, "preempted"),
        ({"GresTypes": "gpu,shard"}, "shard"),
        ({"DisableRootJobs": "YES"}, "DisableRootJobs"),
        ({"SelectTypeParameters": "CR_CORE_MEMORY"}, "all memory"),
    ],
)
def test_settings_of_slurm_that_will_not_do(settings: dict[str, str], why: str) -> None:
    found = unsafe(settings)
    assert found is not None and why in found.why and found.remedy


@pytest.mark.parametrize(
    "instead",
    [
        ("OverSubscribe=NO", "OverSubscribe=EXCLUSIVE"),
        ("ExclusiveUser=NO", "ExclusiveUser=YES"),
        ("ExclusiveUser=NO", "ExclusiveUser=NO ExclusiveTopo=YES"),
    ],
)
def test_where_jobs_have_nodes_for_themselves_a_holder_would_close_the_node(instead: tuple[str, str]) -> None:
    found = unsafe(main=instead)
    assert found is not None and "partition main" in found.why
    elsewhere = f"{HOLD}\n{MAIN.replace(*instead).replace('n[1-2],login', 'n[2-9]')}"
    assert why_unsafe(SETTINGS, parse_partitions(elsewhere), "gpuhold", "n1") is None, "not of this node"


def test_only_our_own_jobs_of_this_node_are_holders() -> None:
    said = (
        "12|SUSPENDED|0|gpuhold|gpu-nodeagent/1: n1 GPU-a\n"
        "13|RUNNING|0|gpuhold|gpu-nodeagent/2: n1 GPU-b\n"  # of a later release
        "14|RUNNING|0|gpuhold|gpu-nodeagent/1: n2 GPU-c\n"
        "15|RUNNING|0|gpuhold|a job of an administrator's\n"
        "16|COMPLETING|0|gpuhold|gpu-nodeagent/1: n1 GPU-a\n"
        "\n"
    )
    assert parse_queue(said, "n1") == [
        ("12", "SUSPENDED", "0", "gpuhold", "GPU-a"),
        ("13", "RUNNING", "0", "gpuhold", "GPU-b"),
    ]


NODE = "NodeName=n1 CPUAlloc=2 CPUEfctv=8 CPUTot=8 Gres=gpu:4 GresUsed=gpu:3 RealMemory=1000 AllocMem=0 State=MIXED "


@pytest.mark.parametrize(
    ("there", "instead", "why"),
    [
        ("", "", ""),
        ("State=MIXED", "State=MIXED+PLANNED", ""),
        ("Gres=gpu:4 GresUsed=gpu:3", "Gres=gpu:a:2(S:0),gpu:b:2(S:1) GresUsed=gpu:a:2(IDX:0-1),gpu:b:1(IDX:3)", ""),
        ("Gres=gpu:4 GresUsed=gpu:3", "Gres=gpu:a:2,gpu:b:1 GresUsed=gpu:a:2(IDX:0-1),gpu:b:1(IDX:3)", "all its GPUs"),
        ("GresUsed=gpu:3", "GresUsed=gpu:4", "jobs have all its GPUs"),
        ("CPUAlloc=2", "CPUAlloc=8", "no CPU is free"),
        ("AllocMem=0", "AllocMem=1000", "no memory is free"),
        ("State=MIXED", "State=MIXED+DRAIN", "the node is MIXED+DRAIN"),
        ("State=MIXED", "State=IDLE*", "the node is IDLE*"),
        ("State=MIXED", "State=MIXED+COMPLETING", "a job is ending"),
        ("State=MIXED ", "State=MIXED Reason=State=DOWN CPUAlloc=8 ", ""),
    ],
)
def test_what_keeps_every_job_from_a_gpu(there: str, instead: str, why: str) -> None:
    found = why_busy(NODE.replace(there, instead) if there else NODE, "gpu")
    assert why in found and bool(found) == bool(why)


def holder(job: str, *indices: int, unit: str = A, state: str = "SUSPENDED", **fields: str) -> Holder:
    return Holder(job, unit, state, indices, **{"partition": "gpuhold", "uid": "0", **fields})


@pytest.mark.parametrize(
    ("found", "kept", "suspend", "cancel"),
    [
        (holder("1", 2), True, [], []),
        (holder("1", 2, state="RUNNING"), True, ["1"], []),
        (holder("1", 2, state="CONFIGURING"), True, [], []),
        (holder("1", 2, state="PENDING"), False, [], ["1"]),
        (holder("1", 1), False, [], ["1"]),
        (holder("1", 2, 3), False, [], ["1"]),
        (holder("1"), False, [], ["1"]),
        (holder("1", 2, uid="1000"), False, [], ["1"]),
        (holder("1", 2, partition="old"), False, [], ["1"]),
        (holder("1", 2, unit=B), False, [], ["1"]),
    ],
)
def test_which_holder_is_right(found: Holder, kept: bool, suspend: list[str], cancel: list[str]) -> None:
    todo = plan([found], {2: A}, "gpuhold")
    assert (todo.kept, todo.suspend, todo.cancel) == ({2: "1"} if kept else {}, suspend, cancel)
    assert todo.missing == ([] if kept else [2])


def test_of_two_on_one_index_one_is_kept_and_nothing_is_wanted_when_nothing_is_retired() -> None:
    twice = [holder("1", 2), holder("2", 2)]
    assert plan(twice, {2: A}, "gpuhold").cancel == ["2"]
    assert plan(twice, {}, "gpuhold").cancel == ["1", "2"]


class FakeSlurm:
    """Slurm of one node with some GPUs, as a HolderPort. It gives the first free GPUs in `order`, as many as asked."""

    partition = "gpuhold"

    def __init__(self, gpus: int = 8, used: Collection[int] = (), order: Sequence[int] = ()) -> None:
        self.usable = True
        self.order = list(order or range(gpus))
        self.used = set(used)
        self.jobs: dict[str, Holder] = {}
        self.commands: list[str] = []
        self.looks = 0
        self.surveys = 0
        self.problem: Unsafe | None = None
        self.away = False
        self.defers = False
        self.cpus = gpus
        self.most = 0  # GPUs that holders had at a time
        self._number = 0

    def _answer(self) -> None:
        if self.away:
            raise CommandFailed(["/usr/bin/squeue"], 1, "Unable to contact slurm controller")

    def unsafe(self) -> Unsafe | None:
        self.surveys += 1
        self._answer()
        return self.problem

    def found(self) -> list[Holder]:
        self.looks += 1
        self._answer()
        return list(self.jobs.values())

    def place(self, unit: str, gpus: int, patient: bool = False) -> None:
        self._answer()
        self.commands.append(f"place {gpus}")
        if self.defers and not patient:
            raise CommandFailed(["/usr/bin/salloc"], 1, "Individual job submission scheduling attempts deferred")
        taken = self.used.union(*(one.indices for one in self.jobs.values()))
        free = [index for index in self.order if index not in taken][:gpus]
        running = sum(one.state == "RUNNING" for one in self.jobs.values())
        if len(free) < gpus or running >= self.cpus:
            raise CommandFailed(["/usr/bin/salloc"], 1, "Requested nodes are busy")
        self._number += 1
        job = str(self._number)
        self.jobs[job] = Holder(job, unit, "RUNNING", tuple(sorted(free)), "gpuhold", "0")
        self.most = max(self.most, sum(len(one.indices) for one in self.jobs.values()))

    def suspend(self, job: str) -> None:
        self._answer()
        one = self.jobs[job]
        assert len(one.indices) == 1, "never before its index is known to be right"
        self.commands.append(f"suspend {one.indices[0]}")
        self.jobs[job] = Holder(job, one.unit, "SUSPENDED", one.indices, one.partition, one.uid)

    def cancel(self, job: str) -> None:
        self._answer()
        self.commands.append(f"cancel {','.join(map(str, self.jobs.pop(job).indices))}")

    def obstacle(self) -> str:
        self._answer()
        return "jobs have all its GPUs" if len(self.used) == len(self.order) else ""

    def held(self) -> dict[int, str]:
        """Return index → state of what holders have."""
        return {index: one.state for one in self.jobs.values() for index in one.indices}


def test_the_lowest_index_takes_one_job_and_a_higher_one_takes_two() -> None:
    slurm = FakeSlurm()
    assert hold(slurm, {0: A}, range(8)).settled
    assert slurm.commands == ["place 1", "suspend 0"]
    slurm = FakeSlurm(used=[1, 3])
    outcome = hold(slurm, {5: A}, [0, 2, 4, 5, 6, 7])
    assert slurm.commands == ["place 3", "place 1", "suspend 5", "cancel 0,2,4"]
    assert slurm.held() == {5: "SUSPENDED"}
    assert outcome.kept == {5: "2"} and outcome.cancelled == ["1"] and not outcome.settled, "looked at once more"
    assert hold(slurm, {5: A}, [0, 2, 4, 5, 6, 7]).settled
    assert slurm.commands[4:] == []


def test_two_at_once() -> None:
    slurm = FakeSlurm()
    assert hold(slurm, {2: A, 6: B}, range(8)).kept.keys() == {2, 6}
    assert slurm.held() == {2: "SUSPENDED", 6: "SUSPENDED"}


@pytest.mark.parametrize("order", [(7, 6, 5, 4, 3, 2, 1, 0), (3, 0, 5, 1, 2, 7, 4, 6), (5, 0, 1, 2, 3, 4, 6, 7)])
def test_whatever_order_slurm_has_the_right_one_is_found_and_the_rest_goes_back(order: Sequence[int]) -> None:
    for index in range(8):
        slurm = FakeSlurm(order=order)
        hold(slurm, {index: A}, range(8))
        assert slurm.held() == {index: "SUSPENDED"}, slurm.commands


def test_locks_that_are_not_there_cost_a_try_and_nothing_else() -> None:
    slurm = FakeSlurm(used=[0, 1])
    hold(slurm, {4: A}, range(8))
    assert slurm.held() == {4: "SUSPENDED"}
    slurm = FakeSlurm(used=[0, 1, 2, 3, 5])
    hold(slurm, {7: A}, range(8))
    assert slurm.held() == {7: "SUSPENDED"}


def test_a_slurm_that_defers_all_scheduling_is_given_the_time() -> None:
    slurm = FakeSlurm()
    slurm.defers = True
    hold(slurm, {5: A}, range(8))
    assert slurm.held() == {5: "SUSPENDED"}
    assert [command for command in slurm.commands if "place" in command] == ["place 5"] * 2 + ["place 1"] * 2


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("", 4), ("defer,batch_sched_delay=7,x=1", 8), ("batch_sched_delay=0", 2), ("batch_sched_delay=60", 10)],
)
def test_how_long_slurm_may_take_to_look_through_its_queue(said: str, seconds: int) -> None:
    assert time_to_schedule({"SchedulerParameters": said}) == seconds


def test_two_cpus_are_enough() -> None:
    slurm = FakeSlurm()
    slurm.cpus = 2
    hold(slurm, {7: A}, range(8))
    assert slurm.held() == {7: "SUSPENDED"}


def test_a_job_that_has_the_gpu_is_waited_for_and_nothing_is_asked() -> None:
    slurm = FakeSlurm(used=[2])
    outcome = hold(slurm, {2: A}, [0, 1, 3])
    assert (outcome.missing, outcome.tried, outcome.settled, slurm.commands) == ([2], None, False, [])


def test_a_job_that_has_the_gpu_without_a_lock_is_let_be_and_what_was_taken_goes_back() -> None:
    slurm = FakeSlurm(used=[2])
    outcome = hold(slurm, {2: A}, range(8))
    assert slurm.held() == {} and outcome.tried == 2 and outcome.obstacle == ""
    slurm = FakeSlurm(used=range(8))
    outcome = hold(slurm, {2: A}, range(8))
    assert slurm.held() == {} and outcome.obstacle == "jobs have all its GPUs"


def test_what_an_earlier_agent_left_half_done_is_put_right() -> None:
    slurm = FakeSlurm()
    for _ in range(4):
        slurm.place(A, 1)
    slurm.suspend("2")
    slurm.commands.clear()
    hold(slurm, {3: A}, range(8))
    assert slurm.held() == {3: "SUSPENDED"}
    assert sorted(slurm.commands) == ["cancel 0", "cancel 1", "cancel 2", "suspend 3"]
    slurm = FakeSlurm()
    slurm.place(A, 4)
    hold(slurm, {3: A}, range(8))
    assert slurm.held() == {3: "SUSPENDED"}, "one that has it among others is in the way"


def test_a_slurm_that_gives_the_wrong_one_for_ever_is_not_asked_for_ever() -> None:
    slurm = FakeSlurm(gpus=100)
    outcome = hold(slurm, {50: A}, [50])
    assert outcome.tried == 50 and outcome.missing == [50]
    assert len(slurm.commands) < 20
    hold(slurm, {}, [])
    assert slurm.held() == {}


class Answers:
    """A runner that gives recorded answers, and keeps what it was asked and how long that might take."""

    def __init__(self, **answers: str | CommandFailed) -> None:
        self.answers = answers
        self.asked: list[tuple[Sequence[str], float]] = []

    def __call__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        complaints: bool = False,
    ) -> str:
        self.asked.append((argv, timeout))
        answer = self.answers[argv[0].rpartition("/")[2]]
        if isinstance(answer, CommandFailed):
            raise answer
        return answer


def slurm_of(retire: str = "holder", **answers: str | CommandFailed) -> tuple[SlurmScheduler, Answers]:
    runner = Answers(**answers)
    config = Config(scheduler=Scheduler(kind="slurm", slurm=Slurm(retire=retire)))
    return SlurmScheduler(config, "n1", runner), runner


def test_a_holder_is_asked_for_without_a_step_and_is_not_waited_for() -> None:
    scheduler, runner = slurm_of(salloc="")
    scheduler.holders.place(A, 3)
    [(argv, timeout)] = runner.asked
    assert argv[0] == "/usr/bin/salloc" and timeout < 1
    assert {"--no-shell", "--immediate=1", "--gres=gpu:3", "--mem=1M", "--time=UNLIMITED"} <= set(argv)
    assert "--comment=gpu-nodeagent/1: n1 GPU-a" in argv and argv[argv.index("-w") + 1] == "n1"
    scheduler, runner = slurm_of(salloc=CommandFailed(["salloc"], None, ""), scontrol="SchedulerParameters = defer\n")
    scheduler.holders.place(A, 1, patient=True)
    assert "--immediate=4" in runner.asked[1][0] and 4 < runner.asked[1][1] < 5, (
        "it waits for the prolog: it is ended, and what it got is looked for"
    )
    with pytest.raises(CommandFailed):
        slurm_of(salloc=CommandFailed(["salloc"], 1, "Requested nodes are busy"))[0].holders.place(A, 1)


SHOWN = """JobId=7 JobName=gpu-hold
   UserId=root(0) GroupId=root(0) MCS_label=N/A
   JobState=SUSPENDED Reason=None Dependency=(null)
   JOB_GRES=gpu:1
     Nodes=n1 CPU_IDs=6 Mem=0 GRES=gpu:1(IDX:2)
   MinCPUsNode=1 MinMemoryNode=1M MinTmpDiskNode=0
   Comment=gpu-nodeagent/1: n1 GPU-a
"""


def test_a_holder_is_known_by_slurms_own_word_on_its_index() -> None:
    scheduler, runner = slurm_of(squeue="7|SUSPENDED|0|gpuhold|gpu-nodeagent/1: n1 GPU-a\n", scontrol=SHOWN)
    assert scheduler.holders.found() == [holder("7", 2)]
    assert runner.asked[0][0][:5] == ("/usr/bin/squeue", "-h", "-a", "-u", "0"), "Slurm selects, not squeue"


def test_units_are_spared_only_where_that_is_chosen() -> None:
    assert slurm_of()[0].spares_units
    assert not slurm_of("drain")[0].spares_units


def test_the_holders_partition_does_not_widen_the_fleet_that_a_limit_is_of() -> None:
    rows = ("main|n1", "main|n2", "gpuhold|n1", "gpuhold|n7", "other|n7")
    said = "".join(f"@@{row}|idle|none\n" for row in rows)
    [fleet] = slurm_of(sinfo=said, scontrol="")[0].fleets()
    assert (fleet.name, fleet.nodes) == ("partition main", 2)
