"""Scheduler adapters on recorded answers of the real commands (tests/integration asks the real ones)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from nodeagent.config.model import Config, Drivers, Limits, Roots, Scheduler, Slurm
from nodeagent.drivers.site_set import bind_list
from nodeagent.errors import CommandFailed, NodeTaken
from nodeagent.lock.record import Owner
from nodeagent.scheduler.port import Fleet, NodeState
from nodeagent.scheduler.sge import SgeScheduler
from nodeagent.scheduler.slurm import (
    SlurmScheduler,
    constrains_devices,
    gives_gpus_to_one_job,
    parse_gres,
    spool_directory,
)

DEFAULT_LIMITS = Limits()
RECORDED = Path(__file__).resolve().parents[1] / "recorded" / "slurmd-G"


class Answers:
    """A runner that gives recorded answers and keeps what it was asked."""

    def __init__(self, **answers: "str | CommandFailed") -> None:
        self.answers = answers
        self.asked: list[Sequence[str]] = []
        self.environment: Mapping[str, str] = {}

    def __call__(
        self,
        argv: Sequence[str],
        environment: "Mapping[str, str] | None" = None,
        timeout: float = 5.0,
        complaints: bool = False,
    ) -> str:
        self.asked.append(argv)
        self.environment = environment or {}
        answer = self.answers[argv[0].rpartition("/")[2]]
        if isinstance(answer, CommandFailed):
            raise answer
        return answer


def slurm(limits: Limits = DEFAULT_LIMITS, **answers: "str | CommandFailed") -> "tuple[SlurmScheduler, Answers]":
    runner = Answers(**answers)
    config = Config(limits=limits, scheduler=Scheduler(kind="slurm", slurm=Slurm(conf="/etc/s.conf")))
    return SlurmScheduler(config, "n1", runner), runner


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("@@idle|none\n", NodeState(False)),
        ("@@mixed|none\n@@mixed|none\n", NodeState(False)),
        ("@@drained|fan | loud\n", NodeState(True, "fan | loud")),
        ("@@draining|two\nlines\n", NodeState(True, "two\nlines")),
        ("@@drained*|gpu-nodeagent/1: x\n", NodeState(True, "gpu-nodeagent/1: x")),
        ("@@down*|PSU swap on Tuesday\n", NodeState(True, "PSU swap on Tuesday")),
        ("@@failing|disk\n", NodeState(True, "disk")),
        ("@@reboot^|gpu-nodeagent/1: x : reboot issued\n", NodeState(True, "gpu-nodeagent/1: x : reboot issued")),
    ],
)
def test_slurms_word_on_a_node(said: str, state: NodeState) -> None:
    scheduler, runner = slurm(sinfo=said)
    assert scheduler.node_state() == state
    assert runner.environment == {"SLURM_CONF": "/etc/s.conf"}


def test_a_node_that_slurm_does_not_know_is_an_error_not_an_idle_one() -> None:
    with pytest.raises(CommandFailed, match="node_name"):
        slurm(sinfo="")[0].node_state()


def test_whose_reason_it_is() -> None:
    assert NodeState(True, "fan").foreign and not NodeState(True, "gpu-nodeagent/1: x").foreign
    assert not NodeState(True, "gpu-nodeagent/2: of a later release").foreign
    assert not NodeState(True, None).foreign and not NodeState(True, "").foreign


SINFO = (
    "@@main|n1|idle|none\n@@main|n2|drained|gpu-nodeagent/1: a\nb\n@@debug|n1|idle|none\n"
    "@@debug|n3|drained|gpu-nodeagent/1: c\n@@debug|n2|drained|gpu-nodeagent/1: a\n"
    "@@other|n4|drained|gpu-nodeagent/1: d\n"
    "@@main|n5|drained|fan\n@@main|n6|down|gpu-nodeagent/1: resumed while it was down\n"
    "@@main|n7|reboot^|gpu-nodeagent/1: e : reboot issued\n@@main|n8|reboot|new kernel\n"
)


def test_each_of_the_nodes_partitions_is_counted_for_itself() -> None:
    assert slurm(sinfo=SINFO)[0].fleets() == (Fleet(6, 2, "partition main"), Fleet(3, 2, "partition debug"))


def test_the_cluster_is_every_node_once() -> None:
    for per in ("cluster", "hostgroup"):
        assert slurm(Limits(per=per), sinfo=SINFO)[0].fleets() == (Fleet(8, 4, "the cluster"),)


def test_a_node_of_no_partition_shares_no_limit() -> None:
    assert slurm(sinfo="@@main|n2|idle|none\n")[0].fleets() == ()


RESERVATIONS = (
    "ReservationName=gpu-nodeagent-drained-n5 StartTime=2026-11-28T04:29:50 Nodes=(null) State=ACTIVE\n"
    "ReservationName=gpu-nodeagent-drained-n1 StartTime=2026-11-28T04:29:50 Nodes=(null) State=ACTIVE\n"
    "ReservationName=gpu-nodeagent-turn StartTime=2026-11-28T04:29:50 Nodes=(null) State=ACTIVE\n"
    "ReservationName=maintenance StartTime=2026-11-28T04:29:50 Nodes=n6 Comment=gpu-nodeagent-drained-n6\n"
)


def test_within_the_window_a_node_counts_although_it_was_resumed() -> None:
    scheduler, runner = slurm(Limits(window=3600), sinfo=SINFO, scontrol=RESERVATIONS)
    assert scheduler.fleets()[0] == Fleet(6, 3, "partition main"), "n2, n7 and n5, and not the node that asks"
    assert runner.asked[1] == ("/usr/bin/scontrol", "-o", "show", "reservation")


def test_gres_indices_run_over_the_records(tmp_path: Path) -> None:
    said = (
        "slurmd: Gres Name=gpu Type=(null) Count=2 Index=0 ID=7696487 File=/nowhere/nvidia[2-3] (null)\n"
        "slurmd: Gres Name=shard Type=(null) Count=8 Index=0 ID=1 File=/nowhere/nvidia[2-3] (null)\n"
        "slurmd-n1: Gres Name=gpu Type=kepler Count=3 Index=0 ID=7696487 File=/nowhere/nvidia[0,5-6] Links=(null)\n"
        "slurmd: Gres Name=gpu Type=(null) Count=2 Index=0 ID=7696487 File=(null) (null)\n"
        "slurmd: Gres Name=gpu Type=(null) Count=1 Index=0 ID=7696487 File=/nowhere/nvidia9 (null)\n"
    )
    assert meaning(said) == {
        0: (2, (), 4),
        1: (3, (), 4),
        2: (0, (), 1),
        3: (5, (), 1),
        4: (6, (), 1),
        7: (9, (), 1),
    }
    assert meaning("") == {}


def meaning(said: str) -> dict[int, tuple[int, tuple[int, ...], int]]:
    return {index: (gres.minor, gres.caps, gres.slots) for index, gres in parse_gres(said, "gpu").items()}


WHOLE = [(0, (), 1), (1, (), 1), (2, (), 1), (3, (), 1)]


@pytest.mark.parametrize(
    ("name", "gpus"),
    [
        # Name=gpu File=nvidia[0-1], then MultipleFiles=nvidia2,nvidia-caps/nvidia-cap21,… twice
        ("mig", [*WHOLE[:2], (2, (21, 22), 1), (2, (30, 31), 1)]),
        # Type=a File=nvidia[0-2], then Type=b MultipleFiles=nvidia3,nvidia-caps/nvidia-cap[12-13]
        ("typed-mig", [*WHOLE[:3], (3, (12, 13), 1)]),
        ("shards", [(minor, (), 2) for minor in range(4)]),
        ("shards-by-file", [(0, (), 6), (1, (), 2), *WHOLE[2:]]),
        ("mps", [(minor, (), 100) for minor in range(4)]),
    ],
)
def test_what_slurmd_prints_of_instances_shards_and_mps(
    name: str, gpus: list[tuple[int, tuple[int, ...], int]]
) -> None:
    said = (RECORDED / f"22.05-{name}.txt").read_text()
    assert meaning(said) == dict(enumerate(gpus))


def test_an_instance_whose_files_stand_in_one_record() -> None:
    """No release is known to print them so, but `File=` of one record is where they are configured."""
    line = "slurmd: Gres Name=gpu Type=b Count=1 ID=7 File=/n/nvidia2,/n/nvidia-caps/nvidia-cap21 Links=(null)\n"
    assert meaning(2 * line) == {0: (2, (21,), 1), 1: (2, (21,), 1)}


@pytest.mark.parametrize(
    ("types", "typed"),
    [(("(null)", "(null)"), False), (("tesla", "tesla"), False), (("tesla", "kepler"), True), (("a", "(null)"), True)],
)
def test_lists_may_be_incomplete_where_gres_are_of_several_types(types: "tuple[str, ...]", typed: bool) -> None:
    lines = [f"slurmd: Gres Name=gpu Type={kind} Count=1 Index=0 ID=7 File=/nowhere/nvidia0 (null)" for kind in types]
    lines.append("slurmd: Gres Name=shard Type=other Count=8 Index=0 ID=1 File=(null) (null)")
    scheduler, runner = slurm(slurmd="\n".join(lines))
    assert scheduler.typed_gres() is typed
    assert [gres.minor for gres in scheduler.gres().values()] == [0, 0]
    assert len(runner.asked) == 1, "slurmd is asked once"


def test_what_a_job_was_granted_is_asked_by_its_number() -> None:
    detail = "   UserId=a\n   JobState=RUNNING\n   JOB_GRES=gpu:1\n     Nodes=n1 CPU_IDs=0 Mem=0 GRES=gpu:1(IDX:3)\n"
    scheduler, runner = slurm(scontrol=f"JobId=7 JobName=x\n{detail}   MinCPUsNode=1\n")
    assert scheduler.granted(Owner("slurm", job="7")) == (3,)
    assert runner.asked == [("/usr/bin/scontrol", "-d", "show", "job", "7")]
    assert scheduler.granted(Owner("sge", job="7")) is None and len(runner.asked) == 1


def test_a_job_that_the_controller_has_forgotten_was_granted_nothing() -> None:
    gone = CommandFailed(["scontrol"], 1, "slurm_load_jobs error: Invalid job id specified")
    assert slurm(scontrol=gone)[0].granted(Owner("slurm", job="7")) is None
    with pytest.raises(CommandFailed):
        slurm(scontrol=CommandFailed(["scontrol"], 1, "Unable to contact slurm controller"))[0].granted(Owner("slurm"))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("X = 1\nConstrainDevices        = yes\n", True),
        ("ConstrainDevices = no\n", False),
        ("TaskPlugin = none\n", False),
    ],
)
def test_whether_slurm_constrains_devices(said: str, answer: bool) -> None:
    assert constrains_devices(slurm(scontrol=said)[0].settings()) is answer


def sge(**answers: "str | CommandFailed") -> "tuple[SgeScheduler, Answers]":
    runner = Answers(**answers)
    return SgeScheduler(Config(), "h1", runner), runner


class Queues:
    """A runner that answers as qselect and qmod do, for queue instances and those of them that are disabled."""

    def __init__(self, instances: "set[str]", disabled: "set[str]") -> None:
        self.instances = instances
        self.disabled = disabled
        self.groups: dict[str, str] = {}
        self.asked_of_groups = 0
        self.environment: Mapping[str, str] = {}

    def __call__(
        self,
        argv: Sequence[str],
        environment: "Mapping[str, str] | None" = None,
        timeout: float = 5.0,
        complaints: bool = False,
    ) -> str:
        program, words = argv[0].rpartition("/")[2], list(argv[1:])
        self.environment = environment or {}
        if program == "qconf":
            self.asked_of_groups += 1
            return self.groups[words[1]] if words[0] == "-shgrp_resolved" else "\n".join(self.groups)
        if program == "qmod":
            known = [word for word in words[1:] if (word in self.disabled) is (words[0] == "-e")]
            (self.disabled.update if words[0] == "-d" else self.disabled.difference_update)(known)
            done = {"-d": "disabled", "-e": "enabled"}[words[0]]
            return "".join(f'root@h1 changed state of "{word}" ({done})\n' for word in known)
        found = self.disabled if "-qs" in words else self.instances
        if "-q" in words:
            host = words[words.index("-q") + 1].partition("@")[2]
            found = {queue for queue in found if queue.endswith(f"@{host}")}
        if not found:
            raise CommandFailed(argv, 1, "")
        return "".join(f"{queue}\n" for queue in sorted(found))


def test_grid_engine_is_asked_in_its_own_environment_only() -> None:
    runner = Queues({"all.q@h1"}, set())
    SgeScheduler(Config(), "h1", runner).node_state()
    assert runner.environment == {"SGE_ROOT": "/var/lib/gridengine", "SGE_CELL": "default", "SGE_ARCH": "lx-amd64"}


def test_a_host_is_out_when_all_its_queues_are() -> None:
    queues = {"all.q@h1", "short.q@h1", "all.q@h2"}
    for disabled, out in ((set(), False), ({"short.q@h1"}, False), ({"all.q@h1", "short.q@h1"}, True)):
        scheduler = SgeScheduler(Config(), "h1", Queues(queues, set(disabled)))
        assert scheduler.node_state() == NodeState(out, None)


HOSTS = {"all.q@h1", "all.q@h2", "short.q@h2", "all.q@h3", "all.q@h4"}


def test_the_fleet_is_all_hosts_and_those_with_a_disabled_queue_are_out() -> None:
    for per in ("partition", "cluster"):
        scheduler = SgeScheduler(Config(limits=Limits(per=per)), "h1", Queues(HOSTS, {"short.q@h2", "all.q@h1"}))
        assert scheduler.fleets() == (Fleet(4, 1, "the cluster"),)


def test_each_host_group_that_has_the_host_is_counted_for_itself() -> None:
    runner = Queues(HOSTS, {"all.q@h2", "all.q@h3"})
    runner.groups = {"@a": "h1 h2 elsewhere", "@b": "h1 h2 h3", "@c": "h3 h4"}
    scheduler = SgeScheduler(Config(limits=Limits(per="hostgroup")), "h1", runner)
    for _ in range(3):
        assert scheduler.fleets() == (Fleet(2, 1, "host group @a"), Fleet(3, 2, "host group @b"))
    assert runner.asked_of_groups == 4, "once an hour"
    alone = SgeScheduler(Config(limits=Limits(per="hostgroup")), "h9", Queues(HOSTS, set()))
    assert alone.fleets() == (Fleet(4, 0, "the cluster"),)


def test_what_an_administrator_disabled_stays_disabled() -> None:
    runner = Queues({"all.q@h1", "short.q@h1", "all.q@h2"}, {"short.q@h1"})
    scheduler = SgeScheduler(Config(), "h1", runner)
    scope = scheduler.drain_scope()
    scheduler.drain("gpu-nodeagent/1: x", scope)
    assert runner.disabled == {"all.q@h1", "short.q@h1"}
    scheduler.resume(scope)
    assert runner.disabled == {"short.q@h1"}


def test_what_an_administrator_disabled_between_our_look_and_our_change_stays_theirs() -> None:
    runner = Queues({"all.q@h1", "short.q@h1"}, set())
    scheduler = SgeScheduler(Config(), "h1", runner)
    scope = scheduler.drain_scope()
    runner.disabled.add("short.q@h1")
    assert scheduler.drain("gpu-nodeagent/1: x", scope) == "all.q@h1"
    scheduler.resume("all.q@h1")
    assert runner.disabled == {"short.q@h1"}
    scope = scheduler.drain_scope()
    runner.disabled.add("all.q@h1")
    with pytest.raises(NodeTaken):
        scheduler.drain("gpu-nodeagent/1: x", scope)


def test_a_qmaster_that_does_not_answer_is_not_an_idle_one() -> None:
    for error in (CommandFailed(["qselect"], 1, "error: commlib error"), CommandFailed(["qselect"], None, "")):
        with pytest.raises(CommandFailed):
            sge(qselect=error)[0].node_state()


@pytest.mark.parametrize(
    ("said", "binds"),
    [
        ("/d/v1.2/bin\n/d/v1.2/lib\n", "/d/v1.2/bin:/nvbin:ro,/d/v1.2/lib:/nvlib:ro"),
        ("/d/v1.2/lib\n", "/d/v1.2:/nvbin:ro,/d/v1.2:/nvlib:ro"),
        ("", "/d/v1.2:/nvbin:ro,/d/v1.2:/nvlib:ro"),
        (CommandFailed(["find"], 1, "No such file"), ""),
    ],
)
def test_a_driver_set_is_named_only_when_it_is_there(said: "str | CommandFailed", binds: str) -> None:
    assert bind_list(Drivers(path="/d/v{version}"), "1.2", Answers(find=said)) == binds


def test_a_server_that_does_not_answer_is_told_from_a_set_that_is_not_there() -> None:
    with pytest.raises(CommandFailed):
        bind_list(Drivers(path="/d/v{version}"), "1.2", Answers(find=CommandFailed(["find"], None, "")))


@pytest.mark.parametrize("version", ["", "..", "1", "1.2/../3", "1.2,x", "1.2.3.4.5"])
def test_no_driver_set_for_what_is_no_version(version: str) -> None:
    assert bind_list(Drivers(path="/d/v{version}"), version, Answers(find="")) == ""


def test_which_slurm_jobs_are_over() -> None:
    scheduler, runner = slurm(squeue="1 RUNNING\n2 COMPLETED\n3 COMPLETING\n4 PENDING\n5 SUSPENDED\n6 CANCELLED\n")
    owners = [Owner("slurm", job=str(job), grant=f"g{job}") for job in range(1, 8)]
    assert sorted(scheduler.ended(owners)) == ["g2", "g4", "g6", "g7"]
    assert scheduler.ended([Owner("hold", grant="h"), Owner("sge", job="2", grant="s")]) == {}
    assert len(runner.asked) == 1


def test_which_grid_engine_jobs_are_over() -> None:
    owners = [
        Owner("sge", job="1", grant="runs", run="/spool/active_jobs/1.1"),
        Owner("sge", job="2", grant="over", run="/spool/active_jobs/2.1"),
        Owner("sge", job="3", grant="unknown", run=""),
        Owner("slurm", job="4", grant="another", run="/spool/active_jobs/4.1"),
    ]
    for trouble in (CommandFailed(["ls"], 2, "No such file or directory"), CommandFailed(["ls"], None, "")):
        with pytest.raises(CommandFailed):
            SgeScheduler(Config(), "h1", Answers(ls=trouble)).ended_here(owners)
    scheduler = SgeScheduler(Config(), "h1", Answers(ls="1.1\n9.1\n"))
    assert list(scheduler.ended_here(owners)) == ["over"]


def test_a_grid_engine_job_whose_shepherd_is_left_is_not_over(tmp_path: Path) -> None:
    owners = [Owner("sge", job="2", grant="over", run="/spool/active_jobs/2.1")]
    scheduler = SgeScheduler(Config(roots=Roots(proc=str(tmp_path))), "h1", Answers(ls="9.1\n"))
    (tmp_path / "40").mkdir()
    (tmp_path / "40" / "cwd").symlink_to("/spool/active_jobs/2.1 (deleted)")
    assert scheduler.ended_here(owners) == {}
    (tmp_path / "40" / "cwd").unlink()
    assert list(scheduler.ended_here(owners)) == ["over"]


CONFIG = "SlurmdSpoolDir          = /var/spool/%n\n"


def test_a_slurm_job_is_over_here_when_the_step_that_lasts_as_long_was_seen_and_is_gone() -> None:
    scheduler, runner = slurm(scontrol=CONFIG, find="n1_1.4294967291 100.5\nn1_2.0 100.5\nn1_3.4294967292 100.5\n")
    owners = [Owner("slurm", job=str(job), grant=f"g{job}", since=100) for job in range(1, 6)]
    assert scheduler.ended_here(owners) == {}
    assert runner.asked[1][1] == "/var/spool/n1"
    runner.answers["find"] = "n1_3.0 101.0\n"  # 3 still has a step, 2 and 4 never had one that says anything
    assert list(scheduler.ended_here(owners)) == ["g1"]
    runner.answers["find"] = ""
    assert list(scheduler.ended_here(owners)) == ["g1", "g3"]
    assert sum(argv[0].endswith("scontrol") for argv in runner.asked) == 1
    assert scheduler.ended_here([]) == {} and scheduler.ended_here(owners) == {}, (
        "what is forgotten has to be seen again"
    )


def test_a_step_of_an_earlier_run_of_the_job_shows_nothing() -> None:
    scheduler, runner = slurm(scontrol=CONFIG, find="n1_1.4294967291 99.9\n")
    owners = [Owner("slurm", job="1", grant="g1", since=100)]
    assert scheduler.ended_here(owners) == {}
    runner.answers["find"] = ""
    assert scheduler.ended_here(owners) == {}


@pytest.mark.parametrize(
    ("types", "mode", "answer"),
    [
        ("gpu", "OFF", True),
        ("gpu,nic", "REQUEUE", True),
        ("gpu,shard", "OFF", False),
        ("gpu,mps", "OFF", False),
        ("gpu", "GANG,SUSPEND", False),
        (None, None, False),
    ],
)
def test_whether_slurm_gives_a_gpu_to_one_job_at_a_time(types: "str | None", mode: "str | None", answer: bool) -> None:
    said = {} if types is None else {"GresTypes": types, "PreemptMode": str(mode)}
    assert gives_gpus_to_one_job(said) is answer
    assert spool_directory({}, "n1") == ""
