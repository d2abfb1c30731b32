"""The agent's cycle: from facts to action, with a fake GPU source, a fake scheduler and a real state directory."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest

from nodeagent.agent.actions import Actions, DrainRefused
from nodeagent.agent.cycle import RESTORED_BY_HAND, Cycle
from nodeagent.agent.ports import Ports
from nodeagent.agent.reconciler import LOOK_AGAIN
from nodeagent.agent.records import Records
from nodeagent.cli import status_command
from nodeagent.config.model import Config, Health, Limits, Policy, Sharing
from nodeagent.errors import CommandFailed, StateGone
from nodeagent.gpu.facts import ENDED, MigInstance, Process, SiteResult
from nodeagent.health.finding import RecoveryAction
from nodeagent.history.entry import Entry, Keeping
from nodeagent.lock.record import Owner
from nodeagent.lock.store import Store
from nodeagent.metrics.native import render
from nodeagent.policy.decide import BY_ADMIN, DrainRecord
from nodeagent.report import locks_document, status_document
from nodeagent.scheduler.port import Fleet, NodeState
from nodeagent.scheduler.turn import NotOurTurn, Turn, Unshared
from nodeagent.state import events
from nodeagent.state.documents import SNAPSHOT, read_document
from nodeagent.state.files import Directory
from nodeagent.state.hook_conf import Gres
from nodeagent.state.verdict_file import read_verdict
from tests.unit.fake_gpu import FakeGpuSource


class FakeClock:
    """A clock that stands until it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return 1.7e9 + self.now


class EndedTurn(Unshared):
    """A turn that is over before it can be spent."""

    def _is_over(self) -> bool:
        return True


class FakeScheduler:
    """One node of a fleet, as a scheduler would tell it."""

    name = "fake"

    def __init__(self, spares_units: bool = True) -> None:
        self.spares_units = spares_units
        self.state = NodeState(False)
        self.others = Fleet(10, 0)
        self.taken = False
        self.slow = False
        self.turns = 0
        self.asked = 0
        self.broken = False
        self.late = False
        self.drains = 0
        self.looks = 0
        self.over: set[str] = set()
        self.over_here: set[str] = set()
        self.mute = False

    def node_state(self) -> NodeState:
        self.asked += 1
        if self.broken:
            raise CommandFailed(["/usr/bin/sinfo"], None, "")
        return self.state

    def granted(self, owner: Owner) -> tuple[int, ...] | None:
        return None

    def fleets(self) -> tuple[Fleet, ...]:
        return (self.others,)

    def turn(self) -> Turn:
        self.turns += 1
        if self.taken:
            raise NotOurTurn("another node counts and drains at this moment")
        return EndedTurn() if self.slow else Unshared()

    def drain_scope(self) -> str:
        return "node"

    def drain(self, reason: str, scope: str) -> str:
        assert scope == "node"
        self.drains += 1
        if self.late:  # it takes effect, and the answer comes too late
            self.state = NodeState(True, reason)
            raise CommandFailed(["/usr/bin/scontrol"], None, "")
        self.state = NodeState(True, reason)
        return scope

    def resume(self, scope: str) -> None:
        assert scope == "node"
        self.state = NodeState(False)

    def ended_here(self, owners: Iterable[Owner]) -> dict[str, str]:
        return {owner.grant: "it is over here" for owner in owners if owner.job in self.over_here}

    def ended(self, owners: Iterable[Owner]) -> dict[str, str]:
        self.looks += 1
        if self.mute:
            raise CommandFailed(["/usr/bin/squeue"], None, "")
        return {owner.grant: "it is over" for owner in owners if owner.job in self.over}

    def gres(self) -> dict[int, Gres]:
        return {}


class FakeHookConf:
    """Nothing to compile."""

    complete = True

    def __call__(self) -> None:
        raise AssertionError("nothing to compile")


class FakeLog:
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: self.lines.append((event, fields))

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.lines]


class FakeHistory:
    """Keeps entries, in order."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.state = Keeping()
        self.closed = 0

    def record(self, entry: Entry) -> None:
        self.entries.append(entry)

    def keeping(self) -> Keeping:
        return self.state

    def close(self) -> None:
        self.closed += 1

    def of(self, *kinds: str) -> list[Entry]:
        return [entry for entry in self.entries if entry.kind in kinds]


class Bench:
    """A cycle with everything it touches."""

    def __init__(self, directory: Path, spares_units: bool = True, **settings: Any) -> None:
        self.directory = directory
        self.config = Config(health=Health(recover=2), **settings)
        self.source = FakeGpuSource(4)
        self.scheduler = FakeScheduler(spares_units)
        self.clock = FakeClock()
        self.log = FakeLog()
        self.history = FakeHistory()
        self.state = Directory(str(directory / "state"), create=True)
        self.store = Store(self.state)
        self.cycle = self.new_cycle()

    def new_cycle(self) -> Cycle:
        """A cycle as after a start of the agent: it knows only what is in files."""
        records = Records(str(self.directory / "data"))
        limit, boot, history = self.config.limits.max_drained, self.source.boot_id, self.history
        actions = Actions(self.store, records, self.scheduler, limit, boot, history.record)
        ports = Ports(self.state, self.source, self.scheduler, actions, self.clock, self.log, FakeHookConf(), history)
        cycle = Cycle(self.config, "n1", "1.0", ports)
        cycle.begin()
        return cycle

    def run(self, times: int = 1) -> None:
        for _ in range(times):
            self.clock.now += 10
            self.cycle.run()

    def uuid(self, slot: int) -> str:
        return self.source.gpus[slot].uuid


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    tmp_path.chmod(0o755)
    return Bench(tmp_path)


@pytest.fixture
def slurmish(tmp_path: Path) -> Bench:
    tmp_path.chmod(0o755)
    return Bench(tmp_path, spares_units=False)


def test_a_healthy_node_is_told_to_hooks_and_asks_nobody(bench: Bench) -> None:
    bench.run()
    verdict = read_verdict(bench.state)
    assert [(u.unit, u.index, u.minor, u.state) for u in verdict.units] == [
        (bench.uuid(i), i, i, "OK") for i in range(4)
    ]
    assert (verdict.node_state, verdict.interval, verdict.driver) == ("OK", 10.0, "550.54.15")
    bench.run(20)
    assert bench.scheduler.asked == 1, "once at the start, whether a drain of ours stands"
    assert bench.log.lines == []


def test_a_lost_gpu_is_retired_and_comes_back(bench: Bench) -> None:
    bench.run()
    bench.source.lose(2)
    bench.run()
    record = bench.store.retired()[bench.uuid(2)]
    assert (record["by"], record["check"], record["action"]) == ("agent", "gpu-lost", "reboot_node")
    assert not bench.scheduler.state.drained
    assert read_verdict(bench.state).units[2].state == "FAILED"
    bench.source.heal()
    bench.run()
    assert list(bench.store.retired()) == [bench.uuid(2)]
    bench.run(2)
    assert bench.store.retired() == {}
    assert [kind for kind in bench.log.kinds() if kind in ("retire", "restore")] == ["retire", "restore"]


def test_a_retirement_outlives_a_reboot(bench: Bench) -> None:
    bench.run()
    bench.cycle.ports.actions.retire(bench.uuid(1), "by hand", "administrator", RecoveryAction.NONE, BY_ADMIN)
    with bench.store.exclusive():
        bench.store.restore(bench.uuid(1))
    bench.cycle = bench.new_cycle()
    assert bench.store.retired()[bench.uuid(1)]["reason"] == "by hand"
    bench.run(5)
    assert list(bench.store.retired()) == [bench.uuid(1)]


def test_an_xid_outlives_a_restart_of_the_agent_and_ends_with_restore(bench: Bench) -> None:
    bench.run()
    bench.source.xid(0, 79)
    bench.run()
    assert list(bench.store.retired()) == [bench.uuid(0)]
    bench.cycle = bench.new_cycle()
    bench.run(5)
    assert list(bench.store.retired()) == [bench.uuid(0)]
    bench.cycle.ports.actions.restore(bench.uuid(0))
    events.append(bench.state, RESTORED_BY_HAND, units=bench.uuid(0))
    bench.run(5)
    assert bench.store.retired() == {}


def test_repeated_xids_are_counted_and_application_faults_retire_nothing(bench: Bench) -> None:
    bench.run()
    for _ in range(3):
        bench.source.xid(1, 31)
    bench.run()
    assert bench.cycle.snapshot is not None
    assert bench.cycle.snapshot.counters.xids == {(bench.uuid(1), 31): 3}
    assert bench.store.retired() == {}


def test_xids_that_the_kernel_log_may_have_lost_are_told_and_counted(bench: Bench) -> None:
    bench.run()
    bench.source.overruns = 3
    bench.run(2)
    assert [fields["times"] for kind, fields in bench.log.lines if kind == "xids_lost"] == [3]
    assert bench.cycle.snapshot is not None
    assert bench.cycle.snapshot.counters.kernel_log_overruns == 3


def test_a_scheduler_that_cannot_spare_a_gpu_loses_the_node_and_gets_it_back(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.source.require_reset(1)
    slurmish.run()
    state = slurmish.scheduler.state
    assert state.drained and state.reason is not None and state.reason.startswith("gpu-nodeagent/1: ")
    assert "reset_gpu" in state.reason and slurmish.uuid(1)[:12] in state.reason
    slurmish.cycle = slurmish.new_cycle()
    slurmish.source.heal()
    slurmish.run(4)
    assert slurmish.scheduler.state == NodeState(False)
    assert slurmish.store.retired() == {}


def test_a_foreign_reason_stands_and_is_not_taken_back(slurmish: Bench) -> None:
    slurmish.scheduler.state = NodeState(True, "fan is loud")
    slurmish.run()
    slurmish.source.lose(1)
    slurmish.run(3)
    assert slurmish.scheduler.state == NodeState(True, "fan is loud")
    slurmish.source.heal()
    slurmish.run(20)
    assert slurmish.scheduler.state == NodeState(True, "fan is loud")


def test_a_reason_exchanged_by_somebody_is_theirs_from_then_on(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.source.lose(1)
    slurmish.run()
    slurmish.scheduler.state = NodeState(True, "vendor comes on Monday")
    slurmish.source.heal()
    slurmish.run(20)
    assert slurmish.scheduler.state == NodeState(True, "vendor comes on Monday")
    assert slurmish.cycle.ports.actions.records.drain() is None


def test_the_limit_refuses_and_the_refusal_is_told_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, spares_units=False, limits=Limits("2"))
    bench.scheduler.others = Fleet(10, 2)
    bench.run()
    bench.source.lose(1)
    bench.run(30)
    assert not bench.scheduler.state.drained
    assert bench.log.kinds().count("drain_refused") == 1
    assert bench.scheduler.asked <= 14, "the controller is asked seldom while nothing changes"
    bench.scheduler.others = Fleet(10, 1)
    bench.run(7)
    assert bench.scheduler.state.drained


def gauge(bench: Bench, name: str) -> float:
    """A metric without labels, of the last cycle."""
    page = render(bench.cycle.snapshot, {}).decode()
    return float(next(line.split()[1] for line in page.splitlines() if line.startswith(f"gpu_nodeagent_{name} ")))


def test_a_refused_drain_is_seen_till_it_is_made(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, spares_units=False, limits=Limits("2"))
    bench.scheduler.others = Fleet(10, 2, "partition main")
    bench.run()
    assert gauge(bench, "drain_waiting") == 0
    bench.source.lose(1)
    bench.run(10)
    assert gauge(bench, "drain_waiting") == 1
    published = read_document(bench.state, SNAPSHOT)
    document = status_document(published, {}, {}, bench.clock.now, "boot-1", "n1")
    assert document["drain_waits"] == (
        "nothing done: limits.max_drained (2) is reached: 2 of 10 nodes of partition main are out"
    )
    assert bench.scheduler.turns == 0, "who would be refused keeps nobody waiting"
    bench.scheduler.others = Fleet(10, 1)
    bench.run(7)
    assert gauge(bench, "drain_waiting") == 0
    assert bench.scheduler.turns == 1


def test_a_refused_drain_that_is_wanted_no_more_waits_no_more(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, spares_units=False, limits=Limits("0"))
    bench.run()
    bench.source.lose(1)
    bench.run(4)
    assert gauge(bench, "drain_waiting") == 1
    bench.source.heal()
    bench.run(4)
    assert gauge(bench, "drain_waiting") == 0 and not bench.scheduler.state.drained


def test_a_node_whose_turn_it_is_not_tries_again_before_its_next_cycle(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.scheduler.taken = True
    slurmish.source.lose(1)
    slurmish.run()
    assert not slurmish.scheduler.state.drained and gauge(slurmish, "drain_waiting") == 1
    assert 3 <= slurmish.cycle.due - slurmish.clock.now <= 6
    slurmish.run(20)
    assert slurmish.scheduler.turns <= 8, "ever more seldom"
    assert slurmish.log.kinds().count("drain_waits") == 1
    slurmish.scheduler.taken = False
    slurmish.run(7)
    assert slurmish.scheduler.state.drained and gauge(slurmish, "drain_waiting") == 0
    assert slurmish.cycle.due == inf
    assert slurmish.cycle.snapshot is not None
    assert slurmish.cycle.snapshot.counters.decisions["drain", "waiting"] >= 5


def test_a_drain_whose_turn_ended_before_it_is_not_made(slurmish: Bench) -> None:
    """Its record stays till the next look: whether the command was sent is not known by then to who starts anew."""
    slurmish.scheduler.slow = True
    slurmish.run()
    slurmish.source.lose(1)
    slurmish.run()
    assert slurmish.scheduler.drains == 0 and gauge(slurmish, "drain_waiting") == 1
    slurmish.source.heal()
    slurmish.run(4)
    assert gauge(slurmish, "drain_waiting") == 0
    actions = slurmish.cycle.ports.actions
    with pytest.raises(NotOurTurn):
        actions.drain("gpu-nodeagent/1: x", RecoveryAction.NONE)
    assert slurmish.scheduler.drains == 0
    slurmish.run(7)
    assert actions.records.drain() is None


def test_a_controller_that_does_not_answer_costs_nothing_but_a_line(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.scheduler.broken = True
    slurmish.source.lose(1)
    slurmish.run()
    assert list(slurmish.store.retired()) == [slurmish.uuid(1)]
    slurmish.scheduler.broken = False
    slurmish.run(7)
    assert slurmish.scheduler.state.drained


def test_dry_run_decides_and_does_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, spares_units=False, policy=Policy(dry_run=True))
    bench.run()
    bench.source.lose(1)
    bench.run()
    assert bench.store.retired() == {} and not bench.scheduler.state.drained
    assert bench.cycle.snapshot is not None
    assert bench.cycle.snapshot.counters.decisions == {("retire", "dry-run"): 1, ("drain", "dry-run"): 1}


def test_what_hooks_reported_is_logged_and_counted(bench: Bench) -> None:
    events.append(bench.state, "conflict", job="7", why="held\nby another")
    bench.run()
    assert ("hook", {"kind": "conflict", "job": "7", "why": "held\nby another"}) in bench.log.lines
    assert bench.cycle.snapshot is not None
    assert bench.cycle.snapshot.counters.hook_events == {"conflict": 1}


def test_a_lock_of_another_boot_is_freed_and_others_stay(bench: Bench) -> None:
    bench.source.boot_id = "this"
    with bench.store.exclusive():
        for slot, boot in ((0, "earlier"), (1, "this")):
            owner = Owner("slurm", job=str(slot), grant=f"g{slot}", boot_id=boot, units=(bench.uuid(slot),))
            bench.store.claim(owner)
    bench.run()
    assert list(bench.store.owners()) == [bench.uuid(1)]
    assert "lock_reconciled" in bench.log.kinds()


def test_a_drain_by_hand_is_forced_over_the_limit_but_not_over_anothers_reason(slurmish: Bench) -> None:
    actions = slurmish.cycle.ports.actions
    slurmish.scheduler.others = Fleet(10, 10)
    with pytest.raises(DrainRefused, match="max_drained"):
        actions.drain("gpu-nodeagent/1: x", RecoveryAction.NONE)
    assert actions.records.drain() is None
    actions.drain("gpu-nodeagent/1: x", RecoveryAction.NONE, BY_ADMIN, force=True)
    assert actions.records.drain() == DrainRecord("gpu-nodeagent/1: x", RecoveryAction.NONE, BY_ADMIN, "node")
    slurmish.run(20)
    assert slurmish.scheduler.state.drained, "the agent never takes an administrator's drain back"
    slurmish.scheduler.state = NodeState(True, "fan is loud")
    for step in (
        actions.resume,
        lambda: actions.drain("gpu-nodeagent/1: y", RecoveryAction.NONE, BY_ADMIN, force=True),
    ):
        with pytest.raises(DrainRefused, match="fan is loud"):
            step()


def test_the_status_document_of_the_contract(bench: Bench) -> None:
    bench.run()
    bench.source.lose(3)
    bench.run()
    owner = Owner("slurm", job="7", user="alice", grant="g", since=1700000000, boot_id="boot-1", units=(bench.uuid(0),))
    with bench.store.exclusive():
        bench.store.claim(owner)
    published = read_document(bench.state, SNAPSHOT)
    now = bench.clock.now + 2
    document = status_document(published, bench.store.owners(), bench.store.retired(), now, "boot-1", "n1")
    assert document["schema"] == "gpu-nodeagent/status/1" and document["node"] == "n1"
    assert document["agent"]["fresh"] is True and document["agent"]["age_s"] == 2.0
    first, last = document["gpus"][0], document["gpus"][3]
    expected = {
        "uuid",
        "index",
        "minor",
        "bus_id",
        "model",
        "serial",
        "verdict",
        "since",
        "reasons",
        "retired",
        "holders",
    }
    assert expected <= set(first)
    assert first["holders"] == [
        {"scheduler": "slurm", "job": "7", "task": None, "user": "alice", "since": "2023-11-14T22:13:20Z"}
    ]
    assert first["retired"] is None and last["retired"]["by"] == "agent" and last["verdict"] == "FAILED"
    assert set(last["reasons"][0]) == {"check", "severity", "action", "evidence"}
    stale = status_document(published, {}, {}, now + 3600, "boot-1", "n1")
    assert stale["agent"]["fresh"] is False and {gpu["verdict"] for gpu in stale["gpus"]} == {"UNKNOWN"}
    assert status_document(published, {}, {}, now, "another-boot", "n1")["gpus"] == []
    assert status_document(None, {}, {}, now, "boot-1", "n1")["node"] == "n1"


def test_the_locks_document_of_the_contract() -> None:
    held = Owner("sge", job="7", task="2", cluster="c", user="al", grant="g", since=0, units=("GPU-a",))
    document = locks_document({"GPU-a": held, "GPU-b": Owner("hold", grant="h", units=("GPU-b",))})
    assert document["schema"] == "gpu-nodeagent/locks/1"
    assert document["locks"][0] == {
        "unit": "GPU-a",
        "scheduler": "sge",
        "cluster": "c",
        "job": "7",
        "task": "2",
        "user": "al",
        "grant": "g",
        "since": None,
        "state": "held",
    }
    assert document["locks"][1]["state"] == "hold"


def test_a_reload_goes_on_with_what_is_remembered(bench: Bench) -> None:
    bench.run()
    bench.source.xid(0, 79)
    bench.run()
    bench.cycle = bench.cycle.successor(replace(bench.config, interval=20.0), bench.cycle.ports)
    bench.run(3)
    assert list(bench.store.retired()) == [bench.uuid(0)]
    assert bench.cycle.interval == 20.0
    assert bench.cycle.snapshot is not None
    assert bench.cycle.snapshot.counters.xids == {(bench.uuid(0), 79): 1}


def test_an_xid_taken_up_between_cycles_is_judged_in_the_next(bench: Bench) -> None:
    bench.run()
    assert not bench.cycle.witnessed()
    bench.source.xid(2, 79)
    assert bench.cycle.witnessed() and bench.cycle.witnessed()
    bench.run()
    assert list(bench.store.retired()) == [bench.uuid(2)]
    assert not bench.cycle.witnessed()
    assert bench.cycle.snapshot is not None
    assert bench.cycle.snapshot.counters.xids == {(bench.uuid(2), 79): 1}


def test_what_is_known_outlives_an_agent_that_dies_while_it_acts(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.source.xid(0, 79)

    def die() -> NodeState:
        raise KeyboardInterrupt

    slurmish.scheduler.node_state = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        slurmish.run()
    del slurmish.scheduler.node_state  # type: ignore[method-assign]
    slurmish.cycle = slurmish.new_cycle()
    slurmish.run(10)
    assert list(slurmish.store.retired()) == [slurmish.uuid(0)]


@pytest.mark.parametrize("damage", ["format=2\n{}\n", "format=1\nnot json\n", "format=1\n[]\n"])
def test_a_memory_that_cannot_be_read_brings_nothing_back_in_the_same_boot(bench: Bench, damage: str) -> None:
    bench.run()
    bench.source.xid(0, 79)
    bench.run()
    bench.state.replace("memory", damage)
    bench.cycle = bench.new_cycle()
    bench.run(10)
    assert list(bench.store.retired()) == [bench.uuid(0)]
    assert "memory_unreadable" in bench.log.kinds()


def test_after_a_reboot_a_unit_comes_back_only_after_a_retest(bench: Bench) -> None:
    bench.run()
    bench.source.xid(0, 79)
    bench.run()
    bench.state.remove("memory")
    bench.source.boot_id = "boot-2"
    bench.cycle = bench.new_cycle()
    bench.run(2)
    assert list(bench.store.retired()) == [bench.uuid(0)]
    bench.run(1)
    assert bench.store.retired() == {}


def test_a_drain_whose_answer_came_too_late_is_ours_all_the_same(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.scheduler.late = True
    slurmish.source.lose(1)
    slurmish.run()
    assert slurmish.scheduler.state.drained
    slurmish.scheduler.late = False
    slurmish.source.heal()
    slurmish.run(10)
    assert slurmish.scheduler.state == NodeState(False)


def test_a_full_disk_keeps_no_dying_gpu_in_service(slurmish: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    slurmish.run()
    real = Directory.replace

    def full(self: Directory, name: str, text: str, durable: bool = False, mode: int = 0o644) -> None:
        if "/data" in self.path:
            raise OSError(28, "No space left on device")
        real(self, name, text, durable, mode)

    monkeypatch.setattr(Directory, "replace", full)
    slurmish.source.lose(1)
    slurmish.run(2)
    assert list(slurmish.store.retired()) == [slurmish.uuid(1)]
    assert slurmish.scheduler.state.drained
    assert "not_recorded" in slurmish.log.kinds()
    monkeypatch.undo()
    slurmish.run()
    assert list(slurmish.cycle.ports.actions.records.retired()) == [slurmish.uuid(1)]


def test_state_and_record_of_retirements_are_made_equal_again(bench: Bench) -> None:
    bench.run()
    records = bench.cycle.ports.actions.records
    records.put_retired(bench.uuid(0), {"by": BY_ADMIN, "reason": "half done"})
    with bench.store.exclusive():
        bench.store.retire(bench.uuid(1), [("by", BY_ADMIN)])
    bench.run()
    both = sorted([bench.uuid(0), bench.uuid(1)])
    assert sorted(bench.store.retired()) == sorted(records.retired()) == both
    for unit in both:
        assert bench.cycle.ports.actions.restore(unit)
    bench.run()
    assert bench.store.retired() == records.retired() == {}


def test_a_unit_retired_by_hand_takes_a_node_out_that_cannot_spare_it_and_brings_it_back(slurmish: Bench) -> None:
    slurmish.run(5)
    slurmish.cycle.ports.actions.retire(slurmish.uuid(2), "loose cable", "x", RecoveryAction.NONE, BY_ADMIN)
    slurmish.run()
    assert "loose cable" in str(slurmish.scheduler.state.reason)
    slurmish.cycle.ports.actions.restore(slurmish.uuid(2))
    slurmish.run()
    assert slurmish.scheduler.state == NodeState(False)


def test_a_drain_of_ours_without_a_record_is_taken_up_and_an_administrators_is_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    for reason, drained in (
        ("gpu-nodeagent/1: GPU 1 lost; needs reboot_node", False),
        ("gpu-nodeagent/1: by hand", True),
        ("gpu-nodeagent/1: GPU 1 smokes; needs inspect_hardware", True),
        ("fan; needs reboot_node", True),
    ):
        place = tmp_path / str(len(reason))
        place.mkdir(mode=0o755)
        bench = Bench(place, spares_units=False)
        bench.scheduler.state = NodeState(True, reason)
        bench.run(20)
        assert bench.scheduler.state.drained is drained, reason


def test_a_graver_fault_found_later_keeps_the_node_for_inspection(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.source.lose(1)
    slurmish.run()
    slurmish.source.xid(0, 54)
    slurmish.run(8)
    record = slurmish.cycle.ports.actions.records.drain()
    assert record is not None and record.action is RecoveryAction.INSPECT_HARDWARE


def test_a_driver_that_hangs_as_a_whole_takes_the_node_out(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.source.hang()
    slurmish.run(3)
    assert slurmish.scheduler.state.drained
    slurmish.source.heal()
    slurmish.run(10)
    assert slurmish.scheduler.state == NodeState(False)


def test_under_dry_run_hooks_are_told_of_no_failure_and_each_decision_is_said_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, spares_units=False, policy=Policy(dry_run=True))
    bench.run()
    bench.source.lose(1)
    bench.run(5)
    assert [unit.state for unit in read_verdict(bench.state).units] == ["OK", "DEGRADED", "OK", "OK"]
    assert bench.log.kinds().count("retire") == bench.log.kinds().count("drain") == 1


def test_a_short_sweep_does_not_turn_a_gpu_in_mig_mode_into_a_whole_one(bench: Bench) -> None:
    instances = tuple(
        MigInstance(f"MIG-{i:08x}-0000-4000-8000-000000000000", i, 0, profile="3g.40gb", caps=(3 + i, 12 + i))
        for i in range(2)
    )
    bench.source.set(3, mig_enabled=True, mig=instances)
    bench.run()
    names = [unit.unit for unit in read_verdict(bench.state).units]
    assert names == [bench.uuid(0), bench.uuid(1), bench.uuid(2), *(instance.uuid for instance in instances)]
    lines = read_verdict(bench.state).units
    assert {unit.gpu for unit in lines[3:]} == {bench.uuid(3)}
    assert [unit.caps for unit in lines[2:]] == [(), (3, 12), (4, 13)]
    assert {unit.model for unit in lines[3:]} == {f"{lines[0].model} MIG 3g.40gb"}
    assert lines[3].links[3] == 0 and lines[3].links[4] == lines[4].links[3] > max(lines[0].links)
    bench.source.hang(1)
    bench.run()
    assert [unit.unit for unit in read_verdict(bench.state).units] == names
    bench.source.heal()
    bench.source.set(3, mig_enabled=True, mig=())
    bench.run()
    assert [unit.unit for unit in read_verdict(bench.state).units] == names[:3]


def test_hooks_are_told_how_many_jobs_a_gpu_takes_and_status_who_has_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, sharing=Sharing(slots=2, models={"A100|v100": 3, "*": 4}))
    cut = MigInstance("MIG-a", 1, 0, 10 << 30, profile="1g.10gb")
    bench.source.set(0, name="NVIDIA A100-SXM4-80GB", memory_total=80 << 30)
    bench.source.set(3, mig_enabled=True, mig=(cut,))
    bench.run()
    lines = read_verdict(bench.state).units
    assert [(line.slots, line.unit[:3]) for line in lines] == [(3, "GPU"), (4, "GPU"), (4, "GPU"), (1, "MIG")]
    assert (lines[0].memory, lines[3].memory) == (80 << 30, 10 << 30)
    for job, unit, gpu in (
        ("1", f"{bench.uuid(0)}@0", 0),
        ("2", f"{bench.uuid(0)}@2", 0),
        ("3", "MIG-gone", 3),
        ("4", "MIG-a", 3),
    ):
        with bench.store.exclusive():
            bench.store.claim(Owner("sge", job, grant=f"g{job}", units=(unit,), gpus=(bench.uuid(gpu),)))
    published = read_document(bench.state, SNAPSHOT)
    document = status_document(published, bench.store.owners(), {}, bench.clock.now, "boot-1", "n1")
    assert [gpu["slots"] for gpu in document["gpus"]] == [3, 4, 4, 1]
    holders = [[holder["job"] for holder in gpu["holders"]] for gpu in document["gpus"]]
    assert holders == [["1", "2"], [], [], ["4", "3"]]
    rows = status_command._text(document).splitlines()[2:]
    for row, said in zip(rows, ("  2 of 3: sge 1, sge 2  ", "  0 of 4  ", "  0 of 4  ", "  sge 4, sge 3  ")):
        assert said in row
    snapshot = bench.cycle.snapshot
    assert snapshot is not None and snapshot.slots[bench.uuid(0)] == 3


def test_the_lock_of_a_vanished_instance_goes_when_its_job_is_over_and_its_gpu_idle(bench: Bench) -> None:
    owner = Owner("sge", "3", grant="g", run="/x/active_jobs/3.1", units=("MIG-gone",), gpus=(bench.uuid(3),))
    with bench.store.exclusive():
        bench.store.claim(owner)
    bench.source.set(3, mig_enabled=True, mig=(), processes=(Process(4711, 0),))
    bench.run(3)
    assert list(bench.store.owners()) == ["MIG-gone"]
    bench.scheduler.over = {"3"}
    bench.run(2 * LOOK_AGAIN)
    assert list(bench.store.owners()) == ["MIG-gone"] and bench.scheduler.looks > 1  # somebody is still on the GPU
    bench.source.set(3, processes=())
    bench.run(2 * LOOK_AGAIN)
    assert bench.store.owners() == {}


def test_a_state_directory_that_was_removed_ends_the_agent(bench: Bench) -> None:
    bench.run()
    shutil.rmtree(bench.directory / "state")
    with pytest.raises(StateGone):
        bench.run()


def test_counters_of_jobs_that_were_sent_back_are_forgotten_after_a_day(bench: Bench) -> None:
    bench.state.replace("reruns.1.", "..")
    bench.state.replace("reruns.2.", "..")
    os.utime(bench.directory / "state" / "reruns.1.", (0, 0))
    bench.run(7)
    assert [name for name in bench.state.names() if name.startswith("reruns")] == ["reruns.2."]


def test_a_dead_file_server_is_asked_ever_more_seldom(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def hang(*_: object) -> str:
        asked.append(bench.clock.now)
        raise CommandFailed(["/usr/bin/find"], None, "")

    monkeypatch.setattr("nodeagent.agent.driver_set.bind_list", hang)
    bench.run(200)
    pauses = [b - a for a, b in zip(asked, asked[1:])]
    assert len(asked) < 8 and all(b == 2 * a for a, b in zip(pauses, pauses[1:]))
    monkeypatch.setattr("nodeagent.agent.driver_set.bind_list", lambda *_: "/d:/nvbin:ro")
    bench.run(1000)
    assert read_verdict(bench.state).binds == "/d:/nvbin:ro"


def claim(bench: Bench, job: str, slot: int) -> None:
    owner = Owner("slurm", job=job, grant=f"g{job}", boot_id="boot-1", units=(bench.uuid(slot),))
    with bench.store.exclusive():
        bench.store.claim(owner)


def test_a_lock_whose_job_is_over_is_freed_at_the_second_look(bench: Bench) -> None:
    bench.run()
    claim(bench, "7", 0)
    claim(bench, "8", 1)
    bench.scheduler.over = {"7"}
    bench.run(3)
    assert bench.scheduler.looks == 0 and len(bench.store.owners()) == 2, "a controller is asked seldom"
    events.append(bench.state, "conflict", job="9")
    bench.run()
    assert bench.scheduler.looks == 1 and len(bench.store.owners()) == 2
    bench.run()
    assert [owner.job for owner in bench.store.owners().values()] == ["8"]
    assert "lock_reconciled" in bench.log.kinds()


def test_what_the_node_itself_shows_is_looked_at_in_each_cycle(bench: Bench) -> None:
    bench.run()
    claim(bench, "7", 0)
    bench.scheduler.over_here = {"7"}
    bench.run()
    assert len(bench.store.owners()) == 1
    bench.run()
    assert bench.store.owners() == {} and bench.scheduler.looks == 0


def test_a_controller_that_is_away_keeps_no_lock_that_the_node_shows_to_be_over(bench: Bench) -> None:
    claim(bench, "7", 0)
    bench.scheduler.over_here = {"7"}
    bench.scheduler.mute = True
    events.append(bench.state, "conflict", job="9")
    bench.run(2)
    assert bench.store.owners() == {} and "reconcile_failed" in bench.log.kinds()


def test_a_job_that_is_said_to_be_over_once_and_then_runs_keeps_its_lock(bench: Bench) -> None:
    claim(bench, "7", 0)
    bench.scheduler.over = {"7"}
    events.append(bench.state, "conflict", job="9")
    bench.run()
    bench.scheduler.over = set()
    bench.run(100)
    assert len(bench.store.owners()) == 1


def test_a_lock_stays_while_a_process_uses_its_gpu(bench: Bench) -> None:
    claim(bench, "7", 0)
    bench.scheduler.over = {"7"}
    bench.source.set(0, processes=(Process(4711),))
    bench.run(130)
    assert len(bench.store.owners()) == 1
    bench.source.set(0, processes=())
    bench.run(70)
    assert bench.store.owners() == {}


@pytest.mark.parametrize(("uid", "left"), [(os.getuid(), 1), (os.getuid() + 1, 0), ("", 1)])
def test_a_lost_share_is_freed_beside_other_users_processes_only(bench: Bench, uid: object, left: int) -> None:
    share = f"{bench.uuid(0)}@1"
    owner = Owner("slurm", job="7", grant="g7", uid=str(uid), boot_id="boot-1", units=(share,), gpus=(bench.uuid(0),))
    with bench.store.exclusive():
        bench.store.claim(owner)
    bench.scheduler.over = {"7"}
    bench.source.set(0, processes=(Process(os.getpid()),))
    bench.run(2 * LOOK_AGAIN + 10)
    assert len(bench.store.owners()) == left


@pytest.mark.parametrize("place", ["/state", "/data"])
def test_a_directory_that_takes_no_writes_keeps_no_faulty_gpu_in_service(
    slurmish: Bench, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    slurmish.run()
    real = Directory.replace

    def full(self: Directory, name: str, text: str, durable: bool = False, mode: int = 0o644) -> None:
        if self.path.endswith(place):
            raise OSError(28, "No space left on device")
        real(self, name, text, durable, mode)

    monkeypatch.setattr(Directory, "replace", full)
    slurmish.source.lose(1)
    slurmish.run()
    assert slurmish.scheduler.state.drained


def test_a_memory_that_was_never_written_brings_nothing_back_in_the_same_boot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.run()
    bench.source.xid(0, 79)
    bench.run()
    bench.state.remove("memory")
    bench.cycle = bench.new_cycle()
    bench.run(10)
    assert list(bench.store.retired()) == [bench.uuid(0)]
    bench.cycle.ports.actions.restore(bench.uuid(0))
    bench.run(3)
    assert bench.store.retired() == {}


def test_a_lock_stays_while_nobody_can_tell_whether_its_gpu_is_used(bench: Bench) -> None:
    claim(bench, "7", 0)
    bench.scheduler.over = {"7"}
    bench.source.hang()
    bench.run(130)
    assert len(bench.store.owners()) == 1
    bench.source.heal()
    bench.source.lose(0)
    bench.run(130)
    assert len(bench.store.owners()) == 1


def test_xids_of_programs_do_not_set_the_agents_pace(bench: Bench) -> None:
    bench.run()
    bench.source.xid(0, 31)
    assert not bench.cycle.witnessed()
    bench.source.xid(0, 79)
    assert bench.cycle.witnessed()
    bench.run()
    assert bench.cycle.snapshot is not None
    assert bench.cycle.snapshot.counters.xids == {(bench.uuid(0), 31): 1, (bench.uuid(0), 79): 1}


def test_a_reason_that_somebody_added_to_is_theirs(slurmish: Bench) -> None:
    slurmish.run()
    slurmish.source.lose(1)
    slurmish.run()
    ours = slurmish.scheduler.state.reason
    theirs = NodeState(True, f"{ours} -- bob: do NOT resume")
    slurmish.scheduler.state = theirs
    slurmish.source.heal()
    slurmish.run(20)
    slurmish.cycle = slurmish.new_cycle()
    slurmish.run(20)
    assert slurmish.scheduler.state == theirs


def test_a_record_directory_that_is_not_to_be_trusted_keeps_no_faulty_gpu_in_service(slurmish: Bench) -> None:
    slurmish.run()
    (slurmish.directory / "data" / "retired").mkdir(exist_ok=True)
    (slurmish.directory / "data" / "retired").chmod(0o775)
    slurmish.source.lose(1)
    slurmish.run()
    assert list(slurmish.store.retired()) == [slurmish.uuid(1)] and slurmish.scheduler.state.drained
    slurmish.cycle = slurmish.new_cycle()
    slurmish.run()


class FakeSite:
    """The site's checks, as a test says what they said."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter({("nhc", "failed"): 1})
        self.results: tuple[SiteResult, ...] = ()
        self.asked_anew = 0
        self.closed = False
        self.busy: list[bool] = []
        self.resting: list[bool] = []
        self.running = 0

    def step(self, checks: object, is_busy: Callable[[], bool], resting: bool = False) -> tuple[SiteResult, ...]:
        self.busy.append(is_busy())
        self.resting.append(resting)
        return self.results

    def left(self) -> tuple[int, int]:
        return self.running, 0

    def again(self) -> None:
        self.asked_anew += 1

    def close(self) -> None:
        self.closed = True


def test_what_the_site_s_checks_say_is_acted_upon_and_asked_anew_after_a_restore(bench: Bench) -> None:
    site = FakeSite()
    bench.cycle._surroundings.site = site  # type: ignore[assignment]
    bench.run(3)
    line = f'{{"unit": "{bench.uuid(1)}", "evidence": "slow", "action": "reset_gpu"}}'
    site.results = (SiteResult("nhc", ENDED, 1000.0, 1, line),)
    bench.run()
    assert set(bench.store.retired()) == {bench.uuid(1)}
    assert bench.store.retired()[bench.uuid(1)]["check"] == "site-nhc"
    assert bench.cycle.snapshot is not None
    assert bench.cycle.snapshot.counters.site_checks == {("nhc", "failed"): 1}
    bench.cycle.ports.actions.restore(bench.uuid(1))
    events.append(bench.state, RESTORED_BY_HAND, units=bench.uuid(1))
    site.results = (SiteResult("nhc"),)
    bench.run()
    assert site.asked_anew == 1 and not bench.store.retired()
    bench.cycle.end()
    assert site.closed


def test_a_node_is_busy_while_any_unit_is_held(bench: Bench) -> None:
    site = FakeSite()
    bench.cycle._surroundings.site = site  # type: ignore[assignment]
    bench.run()
    with bench.store.exclusive():
        bench.store.claim(Owner("sge", "7", grant="g7", units=(bench.uuid(0),), gpus=(bench.uuid(0),)))
    bench.run()
    assert site.busy == [False, True]


def test_a_reload_goes_on_with_the_checks_that_run(bench: Bench) -> None:
    site = FakeSite()
    bench.cycle._surroundings.site = site  # type: ignore[assignment]
    new = bench.cycle.successor(bench.config, bench.cycle.ports)
    new.run()
    assert site.busy == [False]


def test_an_agent_goes_on_in_the_kernel_s_log_where_the_one_before_it_was(bench: Bench) -> None:
    bench.run()
    bench.new_cycle()
    assert bench.source.resumed is None, "nothing is known of the log"
    bench.source.kernel_sequence = 41
    bench.run()
    bench.source.kernel_sequence = 99
    bench.new_cycle()
    assert bench.source.resumed == (bench.source.boot_id, 41)
