"""Resets and reboots: when they are made, how often, and what is held meanwhile. No process is started here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nodeagent.agent import resetter
from nodeagent.config.model import Config, Policy
from nodeagent.config.model import Scheduler as SchedulerSettings
from nodeagent.config.policy_rules import SiteCommand
from nodeagent.errors import CommandFailed
from nodeagent.external.child import Outcome, Program
from nodeagent.gpu.facts import ENDED, HUNG, MigInstance, Process
from nodeagent.health.finding import RecoveryAction
from nodeagent.history.entry import DRY_RUN, REBOOT, RESET
from nodeagent.lock.record import Owner
from nodeagent.policy.decide import DrainRecord, RunCommand
from nodeagent.policy.repair import DAY, PAUSE, may_reboot
from nodeagent.scheduler.port import NodeState, Reboots
from nodeagent.scheduler.slurm import SlurmScheduler
from nodeagent.state import events
from nodeagent.state.maintenance import Maintenance
from tests.unit.test_cycle import Bench, FakeScheduler

RESETTING = Policy(reset="on")


class FakeRun:
    """A run that ends when the test says so."""

    all: list[FakeRun] = []
    fine = Outcome(ENDED, 0, "GPU was reset\n")

    def __init__(self, program: Program) -> None:
        self.program = program
        self.outcome: Outcome | None = None
        self.begun = self.closed = self.stopped = False
        FakeRun.all.append(self)

    def begin(self) -> None:
        self.begun = True

    def is_over(self) -> bool:
        return self.outcome is not None

    def close(self) -> None:
        self.closed = True

    def stop(self, wait: float = 0.0) -> None:
        self.stopped = True


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeRun]]:
    monkeypatch.setattr(resetter, "Run", FakeRun)
    monkeypatch.setattr(FakeRun, "all", [])
    yield FakeRun.all


def bench_of(place: Path, policy: Policy = RESETTING, spares_units: bool = True) -> Bench:
    place.chmod(0o755)
    bench = Bench(place, spares_units, policy=policy)
    bench.run(4)
    return bench


def held(bench: Bench) -> dict[str, str]:
    return {unit: f"{owner.scheduler} {owner.user}" for unit, owner in bench.store.owners().items()}


def claim(bench: Bench, scheduler: str, unit: str) -> None:
    with bench.store.exclusive():
        bench.store.claim(Owner(scheduler, job="7", grant="g", boot_id=bench.source.boot_id, units=(unit,)))


# -- a reset -----------------------------------------------------------------------------------------------------------


def test_a_retired_gpu_is_reset_under_a_lock_with_the_driver_let_go_and_comes_back(
    tmp_path: Path, runs: list[FakeRun]
) -> None:
    bench = bench_of(tmp_path)
    unit = bench.uuid(1)
    bench.source.require_reset(1)
    bench.run()
    assert unit in bench.store.retired() and held(bench) == {unit: "maintenance reset"} and not runs
    bench.run()
    [run] = runs
    assert run.begun and run.program.command == ("/usr/bin/nvidia-smi", "--gpu-reset", "-i", unit)
    assert run.program.timeout == 120.0
    samples = bench.source.samples
    bench.run(3)
    assert bench.source.samples == samples and not bench.source.open, "no sweep while it runs"
    assert held(bench) == {unit: "maintenance reset"} and len(runs) == 1
    bench.source.heal()
    run.outcome = FakeRun.fine
    bench.run()
    assert run.closed and held(bench) == {}
    assert unit in bench.store.retired(), "the usual rules bring it back"
    bench.run()
    assert bench.source.samples == samples + 1
    bench.run(3)
    assert bench.store.retired() == {} and len(runs) == 1
    [entry] = bench.history.of(RESET)
    assert (entry.unit, entry.after, entry.evidence) == (unit, "done", "exit status 0: GPU was reset")


def test_off_is_the_default_and_a_dry_run_says_it_once(tmp_path: Path, runs: list[FakeRun]) -> None:
    (tmp_path / "off").mkdir(mode=0o755)
    bench = bench_of(tmp_path / "off", Policy())
    bench.source.require_reset(1)
    bench.run(5)
    assert runs == [] and held(bench) == {} and not bench.history.of(RESET)
    (tmp_path / "dry").mkdir(mode=0o755)
    bench = bench_of(tmp_path / "dry")
    bench.source.require_reset(1)
    claim(bench, "hold", bench.uuid(1))
    bench.run()
    bench.cycle.config = bench.config = Config(health=bench.config.health, policy=Policy(reset="on", dry_run=True))
    bench.cycle = bench.cycle.successor(bench.config, bench.cycle.ports)
    with bench.store.exclusive():
        bench.store.release(lambda owner: True)
    bench.run(4)
    assert runs == [] and held(bench) == {}
    assert [entry.after for entry in bench.history.of(RESET)] == [DRY_RUN]


@pytest.mark.parametrize("why", ["job", "hold", "process", "admin", "mig", "inspect", "maintenance"])
def test_a_gpu_is_not_reset_while(tmp_path: Path, runs: list[FakeRun], why: str) -> None:
    bench = bench_of(tmp_path)
    unit = bench.uuid(1)
    if why in ("job", "hold"):
        claim(bench, "slurm" if why == "job" else why, unit)
    if why == "admin":
        bench.cycle.ports.actions.retire(unit, "mine", "", RecoveryAction.RESET_GPU, by="admin")
    if why == "process":
        bench.source.set(1, processes=(Process(7),), processes_known=True)
    if why == "mig":
        bench.source.set(1, mig_enabled=True, mig=(MigInstance("MIG-1", 1, 0),))
        bench.run()
    if why == "maintenance":
        bench.cycle.ports.actions.retire(unit, "reset", "", RecoveryAction.RESET_GPU)
        bench.cycle.ports.actions.begin_maintenance(Maintenance("alice"))
    bench.source.xid(1, 62)  # asks for a reset, and the GPU answers
    if why == "inspect":
        bench.source.xid(1, 140, text="inspect")
        bench.config = Config(
            health=Config().health.__class__(recover=2, xid_actions={140: "inspect_hardware"}), policy=RESETTING
        )
        bench.cycle = bench.cycle.successor(bench.config, bench.cycle.ports)
    bench.run(4)
    assert unit in bench.store.retired() and runs == []
    assert "maintenance reset" not in held(bench).values()


def test_resets_are_bounded_also_over_a_restart_and_apart_from_each_other(tmp_path: Path, runs: list[FakeRun]) -> None:
    bench = bench_of(tmp_path, Policy(reset="on", reset_tries=3))
    bench.source.require_reset(1)
    begun = []
    for cycle in range(60):
        bench.run()
        for run in runs:
            run.outcome = run.outcome or Outcome(ENDED, 1, "in use")
        if len(runs) > len(begun):
            begun.append(bench.clock.now)
        if cycle == 30:
            bench.cycle = bench.new_cycle()
    assert len(runs) == 3 and held(bench) == {}
    assert all(later - earlier >= 60 for earlier, later in zip(begun, begun[1:]))
    assert [(entry.after, entry.evidence) for entry in bench.history.of(RESET)] == [
        ("failed", "exit status 1: in use")
    ] * 3
    assert bench.uuid(1) in bench.store.retired()
    bench.cycle.ports.actions.restore(bench.uuid(1), by="admin")  # a new retirement is a new beginning
    bench.source.heal()
    bench.run(4)
    bench.source.require_reset(1)
    assert bench.store.retired() == {}


def test_a_driver_that_cannot_be_let_go_is_told_and_given_back(tmp_path: Path, runs: list[FakeRun]) -> None:
    bench = bench_of(tmp_path)
    bench.source.stuck = 1
    bench.source.require_reset(1)
    bench.run(7)
    assert runs == [] and held(bench) == {}
    [entry] = bench.history.of(RESET)
    assert entry.after == "failed" and "could not let go of the driver" in entry.evidence
    assert bench.cycle.snapshot is not None
    bench.run()
    assert bench.cycle.snapshot.released is None


def test_an_administrator_who_wants_the_driver_goes_first(tmp_path: Path, runs: list[FakeRun]) -> None:
    bench = bench_of(tmp_path)
    events.append(bench.state, "release_driver", request="mine", by="root", seconds="100")
    bench.source.xid(1, 62)
    bench.run(5)
    assert bench.uuid(1) in bench.store.retired() and runs == [] and held(bench) == {}


def test_what_an_agent_that_was_killed_held_is_given_back(tmp_path: Path, runs: list[FakeRun]) -> None:
    bench = bench_of(tmp_path)
    bench.source.require_reset(1)
    bench.run(2)
    assert held(bench) == {bench.uuid(1): "maintenance reset"}
    claim(bench, "hold", bench.uuid(2))
    with bench.store.exclusive():
        bench.store.claim(Owner("maintenance", grant="admin", user="root", units=(bench.uuid(3),)))
    bench.cycle = bench.new_cycle()
    assert held(bench) == {bench.uuid(2): "hold ", bench.uuid(3): "maintenance root"}


def test_the_agents_end_ends_a_reset(tmp_path: Path, runs: list[FakeRun]) -> None:
    bench = bench_of(tmp_path)
    bench.source.require_reset(1)
    bench.run(2)
    bench.cycle.end()
    assert runs[0].stopped and held(bench) == {}


def test_a_reload_goes_on_with_a_reset(tmp_path: Path, runs: list[FakeRun]) -> None:
    bench = bench_of(tmp_path)
    bench.source.require_reset(1)
    bench.run(2)
    bench.cycle = bench.cycle.successor(bench.config, bench.cycle.ports)
    runs[0].outcome = Outcome(HUNG)
    bench.run()
    assert held(bench) == {} and len(runs) == 1
    assert bench.history.of(RESET)[0].evidence == "did not end within 120 s and was ended"


# -- a reboot ----------------------------------------------------------------------------------------------------------


class Rebooting(FakeScheduler):
    """A scheduler that can have its node rebooted."""

    def __init__(self) -> None:
        super().__init__(spares_units=False)
        self.reboots: list[str] = []
        self.refuses = False

    def reboot(self, reason: str) -> None:
        self.reboots.append(reason)
        if self.refuses:
            raise CommandFailed(["/usr/bin/scontrol"], 1, "no")


def rebooting(place: Path, **words: Any) -> tuple[Bench, Rebooting]:
    place.chmod(0o755)
    bench = Bench(place, policy=Policy(**{"reboot": "scheduler", **words}))
    bench.scheduler = scheduler = Rebooting()
    bench.cycle = bench.new_cycle()
    bench.run(4)
    return bench, scheduler


def test_a_node_that_we_drained_for_a_reboot_is_rebooted_when_it_is_idle(tmp_path: Path) -> None:
    bench, scheduler = rebooting(tmp_path)
    claim(bench, "slurm", bench.uuid(0))
    bench.source.lose(1)  # a GPU that is lost asks for a reboot
    bench.run(20)
    assert scheduler.state.drained and scheduler.reboots == [], "a job runs"
    asked = scheduler.asked
    with bench.store.exclusive():
        bench.store.release(lambda owner: True)
    bench.run()
    assert scheduler.reboots == [scheduler.state.reason] and scheduler.asked <= asked + 2
    assert held(bench) == {bench.uuid(slot): "maintenance reboot" for slot in range(4)}, "nobody gets anything now"
    bench.run(10)
    assert len(scheduler.reboots) == 1
    [entry] = bench.history.of(REBOOT)
    assert entry.after == "done"
    bench.source.heal()
    bench.run(4)
    assert not scheduler.state.drained and held(bench) == {}, "it is well without: the units are free again"


def test_reboots_are_bounded_also_over_the_reboot(tmp_path: Path) -> None:
    bench, scheduler = rebooting(tmp_path)
    scheduler.refuses = True
    bench.source.lose(1)
    bench.run(30)
    bench.cycle = bench.new_cycle()
    bench.run(300)
    assert len(scheduler.reboots) == 2
    assert [entry.after for entry in bench.history.of(REBOOT)] == ["failed", "failed"]
    bench.clock.now += DAY
    bench.run()
    assert len(scheduler.reboots) == 3


def test_the_times_between_two_reboots() -> None:
    policy = Policy(reboot_tries=2)
    assert may_reboot(policy, [], 1e9) and may_reboot(policy, [1e9 - PAUSE], 1e9)
    assert not may_reboot(policy, [1e9 - PAUSE + 1], 1e9)
    assert not may_reboot(policy, [1e9 - PAUSE, 1e9 - 2 * PAUSE], 1e9)
    assert may_reboot(policy, [1e9 - PAUSE, 1e9 - DAY], 1e9)


@pytest.mark.parametrize(
    "why", ["off", "dry run", "hold", "share", "admin", "foreign", "reset", "inspect", "maintenance"]
)
def test_a_node_is_not_rebooted(tmp_path: Path, why: str) -> None:
    words = {"off": {"reboot": "off"}, "dry run": {"dry_run": True}}.get(why, {})
    bench, scheduler = rebooting(tmp_path, **words)
    records = bench.cycle.ports.actions.records
    if why in ("admin", "dry run", "maintenance"):
        reason = "gpu-nodeagent/1: x; needs reboot_node"
        by = "admin" if why == "admin" else "agent"
        records.put_drain(DrainRecord(reason, RecoveryAction.REBOOT_NODE, by, "node"))
        scheduler.state = NodeState(True, reason)
    if why == "maintenance":
        bench.cycle.ports.actions.begin_maintenance(Maintenance("alice"))
    if why == "hold":
        claim(bench, "hold", bench.uuid(0))
    if why == "share":
        claim(bench, "local", f"{bench.uuid(0)}@1")
    if why == "foreign":
        reason = "gpu-nodeagent/1: x; needs reboot_node"
        records.put_drain(DrainRecord(reason, RecoveryAction.REBOOT_NODE, "agent", "node"))
        scheduler.state = NodeState(True, "fan is loud")
    if why == "reset":
        bench.source.require_reset(1)
    else:
        bench.source.lose(1)
    if why == "inspect":
        records.put_drain(DrainRecord("gpu-nodeagent/1: x", RecoveryAction.INSPECT_HARDWARE, "agent", "node"))
        scheduler.state = NodeState(True, "gpu-nodeagent/1: x")
    bench.run(10)
    assert scheduler.reboots == [] and "maintenance reboot" not in held(bench).values()
    assert [entry.after for entry in bench.history.of(REBOOT)] == ([DRY_RUN] if why == "dry run" else [])
    assert scheduler.asked < 10, "the controller is not asked in each cycle"


def test_a_sites_command_reboots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = {"power": SiteCommand(("/nonexistent/power",))}
    bench, scheduler = rebooting(tmp_path, reboot="command", reboot_command="power", commands=command)
    begun: list[RunCommand] = []
    monkeypatch.setattr(bench.cycle._commands, "begin", begun.append)
    bench.source.lose(1)
    bench.run(5)
    assert [(run.command, run.unit, run.do) for run in begun] == [("power", "", "reboot")]
    assert scheduler.reboots == []


def test_slurm_is_asked_to_reboot_in_one_command() -> None:
    said: list[tuple[str, ...]] = []

    def runner(argv: Any, *_: Any, **__: Any) -> str:
        said.append(tuple(argv))
        return ""

    slurm = SlurmScheduler(Config(scheduler=SchedulerSettings(kind="slurm")), "n1", runner)
    assert isinstance(slurm, Reboots)
    slurm.reboot("gpu-nodeagent/1: GPU 1 is lost")
    words = ("reboot", "ASAP", "nextstate=resume", "reason=gpu-nodeagent/1: GPU 1 is lost", "n1")
    assert said == [("/usr/bin/scontrol", *words)]
