"""The keeper of holders: when it asks, when a node is drained instead, and what a new agent or configuration knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nodeagent.agent.cycle import Cycle
from nodeagent.agent.errand import AtOnce, Errands
from nodeagent.agent.holder import MOST_CYCLES, HolderKeeper
from nodeagent.config.load import load
from nodeagent.config.model import Scheduler, Slurm
from nodeagent.scheduler.slurm_holder import Unsafe
from nodeagent.state.hook_conf import HOOK_CONF, Gres, HookConf
from nodeagent.state.verdict_file import UnitLine
from tests.support import LaidOutNode, uuid
from tests.unit.test_cycle import Bench as Node
from tests.unit.test_cycle import FakeClock, FakeLog, FakeScheduler
from tests.unit.test_slurm_holder import FakeSlurm

NO_PARTITION = Unsafe("there is no partition gpuhold", "make it")


class Bench:
    """A node of four GPUs whose GRES indices are their minors in reverse, with a keeper on it."""

    def __init__(self, directory: Path, retire: str = "holder", more: str = "") -> None:
        directory.chmod(0o755)
        setting = "" if retire == "drain" else f"  slurm: {{retire: {retire}}}\n"
        self.node = LaidOutNode(directory, "slurm", settings=more)
        self.node.compile({0: 3, 1: 2, 2: 1, 3: 0})
        self.node.config.write_text(
            self.node.config.read_text().replace("scheduler: {kind: slurm}\n", f"scheduler:\n  kind: slurm\n{setting}")
        )
        self.config = load(self.node.config).config
        self.slurm = FakeSlurm(gpus=4)
        self.retired: dict[str, dict[str, str]] = {}
        self.clock = FakeClock()
        self.log = FakeLog()
        self.errands: Errands = AtOnce()
        self.keeper = self.new_keeper()

    def new_keeper(self) -> HolderKeeper:
        retired = self.retired_now
        return HolderKeeper(
            self.config, self.slurm, self.node.store, retired, self.clock, self.log, self.errands, lambda: 0.5
        )

    def retired_now(self) -> dict[str, dict[str, str]]:
        return self.retired

    def run(self, cycles: int = 1) -> None:
        for _ in range(cycles):
            self.clock.now += self.config.interval
            self.keeper.survey()
            self.keeper.run()

    def retire(self, *gpus: int) -> None:
        self.retired = {uuid(gpu): {} for gpu in gpus}

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [fields for said, fields in self.log.lines if said == kind]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_retired_gpu_is_held_by_its_index_and_let_go_of_when_it_is_restored(bench: Bench) -> None:
    bench.run()
    bench.retire(1)
    bench.run()
    assert bench.slurm.held() == {2: "SUSPENDED"} and bench.slurm.usable
    assert bench.said("holder_placed") == [{"gpu_uuid": uuid(1), "job": "2", "index": 2}]
    bench.retire(0, 1)
    bench.run()
    assert bench.slurm.held() == {2: "SUSPENDED", 3: "SUSPENDED"}
    bench.retire(0)
    bench.run()
    assert bench.slurm.held() == {3: "SUSPENDED"}
    bench.retire()
    bench.run()
    assert bench.slurm.held() == {}


def test_with_nothing_retired_slurm_is_asked_once_and_its_settings_seldom(bench: Bench) -> None:
    bench.run(300)
    assert (bench.slurm.looks, bench.slurm.surveys) == (1, 1)


def test_one_that_stands_is_looked_at_now_and_then_and_put_right(bench: Bench) -> None:
    bench.retire(1)
    bench.run(2)
    before = bench.slurm.looks
    bench.run(60)
    assert bench.slurm.looks - before == 10, "every sixth cycle"
    bench.slurm.jobs.clear()  # the controller has lost its state
    bench.run(7)
    assert bench.slurm.held() == {2: "SUSPENDED"}


def test_a_running_job_is_waited_for_without_asking_and_its_gpu_taken_when_it_ends(bench: Bench) -> None:
    bench.slurm.used = {2}
    bench.node.hold([1], job="7")
    bench.retire(1)
    bench.run(100)
    assert bench.slurm.commands == [] and bench.slurm.usable
    assert [fields["why"] for fields in bench.said("holder_waits")] == ["index 2: a job has it"]
    assert bench.slurm.looks < 20
    with bench.node.store.exclusive():
        bench.node.store.release(lambda owner: True)
    bench.slurm.used = set()
    bench.run()
    assert bench.slurm.held() == {2: "SUSPENDED"}


def test_an_obstacle_that_is_known_drains_nothing_however_long(bench: Bench) -> None:
    bench.slurm.used = {0, 1, 2, 3}
    bench.retire(1)
    bench.run(10 * MOST_CYCLES)
    assert bench.slurm.usable and bench.said("holder_given_up") == []
    assert len(bench.slurm.commands) < 4 * MOST_CYCLES, "ever more seldom"


def test_a_gpu_that_nobody_has_and_slurm_does_not_give_drains_the_node_and_it_is_told(bench: Bench) -> None:
    bench.slurm.used = {2}  # without a lock
    bench.retire(1)
    bench.run(MOST_CYCLES // 2)
    assert bench.slurm.usable, "not at once"
    bench.run(MOST_CYCLES)
    assert not bench.slurm.usable
    [told] = bench.said("holder_given_up")
    assert told["gpu_uuid"] == uuid(1)
    assert bench.slurm.held() == {}
    bench.slurm.used = set()
    bench.run(13)
    assert bench.slurm.usable and bench.slurm.held() == {2: "SUSPENDED"}, "it was tried on"


def test_a_unit_without_an_index_drains_the_node(bench: Bench) -> None:
    bench.retired = {"GPU-unheard-of": {}}
    bench.run(MOST_CYCLES + 13)
    assert not bench.slurm.usable
    assert bench.said("holder_given_up")[0]["why"] == "its GRES index is not known"
    bench.retire()
    bench.run()
    assert bench.slurm.usable


def test_all_instances_of_a_gpu_are_held_and_one_alone_if_it_alone_is_retired(bench: Bench) -> None:
    lines = list(bench.node.units())
    lines[3:] = [
        UnitLine(f"MIG-{at}", -1, 3, lines[3].bus_id, "H100 MIG", 0, (), "OK", "", uuid(3), (30 + at,)) for at in (0, 1)
    ]
    bench.node.write_verdict(units=tuple(lines))
    bench.node.compile({0: 0, 1: 1, 2: 2, 3: Gres(3, (30,)), 4: Gres(3, (31,))})
    bench.slurm.order = list(range(5))
    bench.retire(3)
    bench.run()
    assert bench.slurm.held() == {3: "SUSPENDED", 4: "SUSPENDED"}
    bench.retired = {"MIG-1": {}}
    bench.run()
    bench.run()
    assert bench.slurm.held() == {4: "SUSPENDED"}


def test_where_holders_are_not_safe_none_is_made_and_those_there_are_end(bench: Bench) -> None:
    bench.retire(1)
    bench.run()
    bench.slurm.problem = NO_PARTITION
    again = bench.keeper = bench.new_keeper()
    bench.run()
    assert not bench.slurm.usable and bench.slurm.held() == {}
    [told] = bench.said("holder_unsafe")
    assert told["why"] == NO_PARTITION.why and "make it" in told["note"]
    looks = bench.slurm.looks
    bench.run(300)
    assert bench.slurm.looks - looks <= 1 and again is bench.keeper
    bench.slurm.problem = None
    bench.run(400)
    assert bench.slurm.usable and bench.slurm.held() == {2: "SUSPENDED"}, "it has looked again by itself"


def test_a_partition_that_is_taken_away_is_noticed_when_a_holder_cannot_be_placed(bench: Bench) -> None:
    bench.run()
    bench.slurm.problem = NO_PARTITION
    bench.slurm.used = {2}
    bench.retire(1)
    bench.run(2)
    assert not bench.slurm.usable


def test_a_controller_that_is_away_changes_nothing_and_is_asked_ever_more_seldom(bench: Bench) -> None:
    bench.retire(1)
    bench.run()
    bench.slurm.away = True
    looks = bench.slurm.looks
    bench.run(200)
    assert bench.slurm.usable
    assert bench.slurm.looks - looks < 40
    assert len(bench.said("holder_failed")) == 1
    bench.slurm.away = False
    bench.slurm.jobs.clear()
    bench.run(13)
    assert bench.slurm.held() == {2: "SUSPENDED"}


def test_a_new_agent_finds_what_the_one_before_it_made(bench: Bench) -> None:
    bench.retire(1)
    bench.run()
    before = dict(bench.slurm.jobs)
    bench.keeper = bench.new_keeper()
    bench.run(3)
    assert bench.slurm.jobs == before
    bench.retire()
    bench.keeper = bench.new_keeper()
    bench.run()
    assert bench.slurm.jobs == {}, "also what was restored while there was none"


def test_a_reload_believes_what_was_known_until_slurm_answers(bench: Bench) -> None:
    bench.slurm.problem = NO_PARTITION
    bench.run()
    bench.slurm.usable = True  # as a new adapter has it
    bench.slurm.away = True
    bench.keeper = bench.keeper.successor(bench.config, bench.slurm, bench.retired_now)
    assert not bench.slurm.usable
    bench.run()
    assert not bench.slurm.usable
    bench.slurm.away, bench.slurm.problem = False, None
    bench.run(7)
    assert bench.slurm.usable


def test_a_site_that_goes_back_to_draining_is_rid_of_its_holders(bench: Bench) -> None:
    bench.retire(1)
    bench.run()
    slurm = replace(bench.config.scheduler.slurm, retire="drain")
    config = replace(bench.config, scheduler=replace(bench.config.scheduler, slurm=slurm))
    bench.keeper = bench.keeper.successor(config, bench.slurm, bench.retired_now)
    assert not bench.slurm.usable
    bench.run()
    assert bench.slurm.held() == {}
    surveys = bench.slurm.surveys
    bench.run(400)
    assert bench.slurm.surveys == surveys


def test_a_dry_run_touches_no_job(tmp_path: Path) -> None:
    bench = Bench(tmp_path, more="policy: {dry_run: true}\n")
    bench.retire(1)
    bench.run(3)
    assert bench.slurm.looks == 0 and bench.slurm.commands == []


class Tied(FakeSlurm):
    """One whose word is the scheduler's, as in the adapter."""

    def __init__(self, scheduler: FakeScheduler) -> None:
        self.scheduler = scheduler
        super().__init__(gpus=4)

    @property
    def usable(self) -> bool:
        return self.scheduler.spares_units

    @usable.setter
    def usable(self, word: bool) -> None:
        self.scheduler.spares_units = word


@pytest.mark.parametrize("problem", [None, NO_PARTITION])
def test_in_the_cycle_of_the_fault_the_gpu_is_held_or_the_node_drained(tmp_path: Path, problem: Unsafe | None) -> None:
    tmp_path.chmod(0o755)
    scheduler = Scheduler(kind="slurm", slurm=Slurm(retire="holder"))
    node = Node(tmp_path, scheduler=scheduler)
    node.state.replace(HOOK_CONF, HookConf({}, (), {index: Gres(index) for index in range(4)}).encode())
    slurm = Tied(node.scheduler)
    slurm.problem = problem
    node.cycle = Cycle(node.config, "n1", "1.0", replace(node.cycle.ports, holders=slurm))
    node.cycle.begin()
    node.source.lose(2)
    node.run()
    assert list(node.store.retired()) == [node.uuid(2)]
    assert slurm.held() == ({} if problem else {2: "SUSPENDED"})
    assert node.scheduler.state.drained == bool(problem)
    again = node.cycle.successor(node.config, node.cycle.ports)
    assert slurm.usable == (not problem), "a reload knows what was known"
    again.run()
    assert slurm.held() == ({} if problem else {2: "SUSPENDED"})


class Slow:
    """Begins what it is given, and has it done when it is told to."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    @property
    def busy(self) -> bool:
        return bool(self.work)

    def run(self, work: Callable[[], None]) -> None:
        assert not self.busy
        self.work.append(work)

    def close(self) -> None:
        self.work.pop()()


def test_no_cycle_waits_for_slurm_and_one_question_is_asked_at_a_time(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    slow = bench.errands = Slow()
    bench.keeper = bench.new_keeper()
    bench.retire(1)
    bench.run(5)
    assert (bench.slurm.surveys, bench.slurm.looks, len(slow.work)) == (0, 0, 1)
    slow.close()
    bench.run(5)
    assert (bench.slurm.surveys, bench.slurm.looks) == (1, 0)
    slow.close()
    assert bench.slurm.held() == {2: "SUSPENDED"}
    bench.retire()
    bench.run()
    slow.close()
    assert bench.slurm.held() == {}
