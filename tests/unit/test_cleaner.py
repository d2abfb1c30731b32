"""The agent between two jobs: what it frees, tends and retires, with fake GPUs and a real state directory."""

from __future__ import annotations

import os
import select
from math import inf
from pathlib import Path
from typing import Any

import pytest

from nodeagent.config.model import Cleanup, Policy
from nodeagent.gpu.facts import MigInstance, Process
from nodeagent.health.finding import RecoveryAction
from nodeagent.lock.cleaning import open_attendant, wake
from nodeagent.lock.record import Owner
from nodeagent.state.boot import start_time
from tests.unit.fake_gpu import GIB
from tests.unit.test_cycle import Bench

ME = str(os.getpid())
UID = str(os.getuid() or 4711)


class Room(Bench):
    """A node whose jobs have just handed their units over."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        settings.setdefault("cleanup", Cleanup(patience=10.0))
        super().__init__(directory, **settings)
        self.run()

    def uuid(self, slot: int) -> str:
        return self.source.gpus[slot].uuid

    def hand_over(self, *units: str, job: str = "7", scheduler: str = "cleaning") -> None:
        owner = Owner(scheduler, job=job, grant=f"grant{job}", uid=UID, boot_id=self.source.boot_id, units=units)
        with self.store.exclusive():
            self.store.claim(owner)

    def clean(self, after: float = 0.0) -> None:
        self.clock.now += after
        self.cycle.clean()

    def held(self) -> set[str]:
        return set(self.store.owners())

    def retired(self) -> dict[str, str]:
        return {unit: record["check"] for unit, record in self.store.retired().items()}


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


def test_a_clean_unit_is_freed_at_once_and_jobs_units_are_not_touched(room: Room) -> None:
    room.hand_over(room.uuid(0), room.uuid(1))
    room.hand_over(room.uuid(2), job="8", scheduler="slurm")
    room.clean()
    assert room.held() == {room.uuid(2)}
    assert room.cycle.clean_at == inf and room.retired() == {}


def test_an_epilog_wakes_the_agent_by_a_byte_and_without_units_it_does_nothing(room: Room) -> None:
    fd = room.cycle.cleaning_fileno()
    assert select.select([fd], [], [], 0)[0] == []
    wake(open_attendant(room.state))
    assert select.select([fd], [], [], 1)[0] == [fd]
    looks = room.source.looks
    room.clean()
    assert select.select([fd], [], [], 0)[0] == [] and room.source.looks == looks
    room.cycle.end()
    assert open_attendant(room.state) == -1


def test_leftover_memory_retires_the_unit_after_the_patience_and_frees_the_rest_at_once(room: Room) -> None:
    room.source.set(1, memory_used=3 * GIB)
    room.hand_over(room.uuid(0), room.uuid(1))
    room.clean()
    assert room.held() == {room.uuid(1)} and room.retired() == {}
    assert room.cycle.clean_at == pytest.approx(room.clock.now + 0.05)
    room.clean(after=9.9)
    assert room.held() == {room.uuid(1)} and room.cycle.clean_at == pytest.approx(room.clock.now + 1.0)
    room.clean(after=0.2)
    assert room.held() == set() and room.retired() == {room.uuid(1): "leftover-memory"}
    record = room.store.retired()[room.uuid(1)]
    assert "job 7" in record["reason"] and "3072 MiB" in record["reason"] and record["action"] == "reset_gpu"
    assert room.cycle.ports.actions.records.retired()[room.uuid(1)] == record


def test_what_is_retired_for_leftovers_comes_back_when_they_are_gone_and_not_before(room: Room) -> None:
    room.source.set(1, memory_used=3 * GIB)
    room.hand_over(room.uuid(1))
    room.clean()
    room.clean(after=11)
    room.run(5)
    assert room.retired() == {room.uuid(1): "leftover-memory"}
    room.source.set(1, memory_used=0)
    room.run()
    assert room.retired() == {}


def test_a_process_of_the_jobs_retires_and_the_unit_stays_out_as_long_as_it_lives(room: Room) -> None:
    room.source.set(0, processes=(Process(999_999_999, GIB),), memory_used=GIB)
    room.hand_over(room.uuid(0))
    room.clean()
    room.clean(after=11)
    assert room.retired() == {room.uuid(0): "leftover-process"} and room.held() == set()
    room.run(4)
    assert room.retired() == {room.uuid(0): "leftover-process"}
    room.source.set(0, processes=(), memory_used=0)
    room.run()
    assert room.retired() == {}


def test_what_a_hook_retired_for_a_process_stays_out_until_that_very_process_is_gone(room: Room) -> None:
    def retire(start: str) -> None:
        facts = {"reason": "r", "check": "leftover-process", "action": "reboot_node", "by": "agent"}
        with room.store.exclusive():
            room.store.retire(room.uuid(0), {**facts, "processes": f"{ME}:{start}"}.items())

    retire(start_time(ME))
    room.run(5)
    assert room.retired() == {room.uuid(0): "leftover-process"}
    with room.store.exclusive():
        room.store.restore(room.uuid(0))
        room.cycle.ports.actions.records.drop_retired(room.uuid(0))
    retire("1")  # another process has its number by now
    room.run(2)
    assert room.retired() == {}


def test_an_agent_that_starts_goes_on_with_what_it_finds(room: Room) -> None:
    room.hand_over(room.uuid(0))
    room.cycle.end()
    room.source.set(0, memory_used=GIB)
    room.cycle = room.new_cycle()
    room.run()
    assert room.held() == {room.uuid(0)} and room.cycle.clean_at < inf
    room.source.set(0, memory_used=0)
    room.clean(after=0.1)
    assert room.held() == set()


def test_a_reload_keeps_listening_and_its_patience(room: Room) -> None:
    room.source.set(0, memory_used=GIB)
    room.hand_over(room.uuid(0))
    room.clean()
    room.clock.now += 11
    room.cycle = room.cycle.successor(room.config, room.cycle.ports)
    assert open_attendant(room.state) >= 0
    room.clean()
    assert room.retired() == {room.uuid(0): "leftover-memory"}


def test_a_gpu_that_does_not_answer_stays_in_cleaning_and_is_not_asked_in_between(room: Room) -> None:
    room.source.hang(0)
    room.run()
    room.hand_over(room.uuid(0))
    looks = room.source.looks
    room.clean(after=60)
    room.clean(after=60)
    assert room.held() == {room.uuid(0)} and room.retired() == {} and room.cycle.clean_at == inf
    assert room.source.looks <= looks + 2
    room.clock.now += 700  # policy.unknown_after
    room.run(2)
    assert room.store.retired().keys() == {room.uuid(0)} and room.held() == set()


def test_on_a_shared_gpu_nothing_is_judged_or_touched_while_others_are_on_it(tmp_path: Path) -> None:
    room = Room(tmp_path, cleanup=Cleanup(compute_mode="default"))
    room.source.set(0, memory_used=40 * GIB, processes=(Process(999_999_999, GIB),))
    room.hand_over(f"{room.uuid(0)}@0")
    room.hand_over(f"{room.uuid(0)}@1", job="8", scheduler="slurm")
    room.clean()
    assert room.held() == {f"{room.uuid(0)}@1"} and room.source.wishes == []
    with room.store.exclusive():
        room.store.release(lambda owner: True)
    room.source.set(0, memory_used=0, processes=())
    room.hand_over(f"{room.uuid(0)}@1", job="9")
    room.clean()
    assert room.held() == set() and room.source.wishes == [(room.uuid(0), {"compute_mode": "default"})]


def test_an_instance_is_judged_by_its_own_memory_and_one_that_is_gone_is_freed(room: Room) -> None:
    instances = (MigInstance("MIG-a", 1, 0, 10 * GIB, GIB), MigInstance("MIG-b", 2, 0, 10 * GIB, 0))
    room.source.set(0, mig_enabled=True, mig=instances, memory_used=2 * GIB)
    room.run()
    room.hand_over("MIG-a", "MIG-b", "MIG-gone")
    room.clean()
    assert room.held() == {"MIG-a"}
    room.clean(after=11)
    assert room.held() == set() and room.retired() == {"MIG-a": "leftover-memory"}


def test_modes_are_brought_back_only_on_a_clean_gpu_and_a_refusal_is_said_once(tmp_path: Path) -> None:
    room = Room(tmp_path, cleanup=Cleanup(compute_mode="default", persistence="on"))
    room.source.refused = {"compute_mode": "Insufficient Permissions"}
    room.source.set(0, memory_used=GIB)
    room.hand_over(room.uuid(0))
    room.clean()
    assert room.source.wishes == []
    room.source.set(0, memory_used=0)
    for _ in range(2):
        room.clean(after=0.1)
        assert room.held() == set()
        room.hand_over(room.uuid(0))
    assert room.source.wishes[0] == (room.uuid(0), {"compute_mode": "default", "persistence": "on"})
    kinds = room.log.kinds()
    assert kinds.count("mode_refused") == 1 and "mode_restored" in kinds


def test_dry_run_retires_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    room = Room(tmp_path, policy=Policy(dry_run=True))
    room.source.set(0, memory_used=GIB)
    room.hand_over(room.uuid(0))
    room.clean()
    room.clean(after=11)
    assert (room.held(), room.retired()) == (set(), {}) and "retire" in room.log.kinds()


def test_a_unit_that_is_retired_anyway_is_freed(room: Room) -> None:
    room.source.set(0, memory_used=GIB)
    room.cycle.ports.actions.retire(room.uuid(0), "a test", "", RecoveryAction.NONE, "admin")
    room.hand_over(room.uuid(0))
    room.clean()
    assert room.held() == set()


def test_a_unit_that_a_prolog_has_taken_over_meanwhile_stays_that_jobs(room: Room) -> None:
    room.hand_over(room.uuid(0))
    look = room.source.look

    def look_and_lose(uuids: Any) -> Any:
        found = look(uuids)
        with room.store.exclusive():
            room.store.release(lambda owner: True)
        room.hand_over(room.uuid(0), job="9", scheduler="slurm")
        return found

    room.source.look = look_and_lose  # type: ignore[method-assign]
    room.clean()
    assert {unit: owner.job for unit, owner in room.store.owners().items()} == {room.uuid(0): "9"}
