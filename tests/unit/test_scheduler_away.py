"""The agent while the scheduler does not answer, and after an administrator has resumed the node; with fakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest

from nodeagent.agent.cycle import Cycle
from nodeagent.agent.errand import Beside
from nodeagent.agent.records import PENDING, RESUMED
from nodeagent.config.model import Policy
from nodeagent.errors import CommandFailed, NodeTaken
from nodeagent.history.entry import DRAIN, FORGET_DRAIN
from nodeagent.policy.decide import DrainRecord
from nodeagent.report import published
from nodeagent.scheduler.port import NodeState
from nodeagent.scheduler.reason import parse
from tests.unit.test_cycle import Bench, FakeLog


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A node whose scheduler cannot spare a GPU; it has been looked at for long enough."""
    tmp_path.chmod(0o755)
    found = Bench(tmp_path, spares_units=False)
    found.run(4)
    return found


def memo(bench: Bench, name: str) -> dict[str, str]:
    return bench.cycle.ports.actions.records.memo(name)


def record(bench: Bench) -> DrainRecord | None:
    return bench.cycle.ports.actions.records.drain()


def drains(bench: Bench) -> list[str]:
    return [entry.after for entry in bench.history.of(DRAIN)]


def problem(bench: Bench) -> str | None:
    assert bench.cycle.snapshot is not None
    found: str | None = published(bench.cycle.snapshot, {})["scheduler_problem"]
    return found


# -- away -------------------------------------------------------------------------------------------------------------


def test_what_is_wanted_while_the_scheduler_is_away_is_kept_and_done_once_when_it_is_back(bench: Bench) -> None:
    bench.scheduler.broken = True
    bench.source.lose(1)
    bench.run(3)
    assert list(bench.store.retired()) == [bench.uuid(1)], "hooks grant it no more all the while"
    assert memo(bench, PENDING)["why"] == "silent" and "GPU 1" in memo(bench, PENDING)["reason"]
    assert problem(bench) is not None and "a drain waits" in str(problem(bench))
    bench.cycle = bench.new_cycle()
    bench.run(20)
    assert drains(bench) == ["waits"], "told once, also by the next agent"
    bench.scheduler.broken = False
    bench.run(10)
    assert bench.scheduler.state.drained and bench.scheduler.drains == 1
    assert drains(bench) == ["waits", "done"]
    assert memo(bench, PENDING) == {} and problem(bench) is None
    assert bench.log.kinds().count("scheduler_unavailable") == 2, "once an agent"


def test_a_reason_says_on_which_node_and_since_when_it_was_seen_and_not_since_when_it_was_told(bench: Bench) -> None:
    bench.scheduler.broken = True
    bench.source.lose(1)
    bench.run(10)
    bench.scheduler.broken = False
    bench.run(10)
    said = parse(bench.scheduler.state.reason or "")
    assert said is not None and (said.host, said.action) == ("n1", "reboot_node")
    assert said.since == "2023-11-14T22:30:50Z", "50 s of the clock, when the GPU was lost"


def test_a_drain_that_nobody_wants_any_more_is_dropped_and_told(bench: Bench) -> None:
    bench.scheduler.broken = True
    bench.source.lose(1)
    bench.run(3)
    bench.source.heal()
    bench.run(5)
    assert memo(bench, PENDING) == {} and drains(bench) == ["waits", "dropped"]
    assert problem(bench) is not None
    bench.scheduler.broken = False
    bench.run(20)
    assert bench.scheduler.drains == 0 and record(bench) is None
    assert problem(bench) is None, "it is asked until it answers, though nothing is wanted of it"


def test_a_drain_that_somebody_made_meanwhile_is_theirs_and_nothing_waits(bench: Bench) -> None:
    bench.scheduler.broken = True
    bench.source.lose(1)
    bench.run(3)
    bench.scheduler.broken, bench.scheduler.state = False, NodeState(True, "fan is loud")
    bench.run(10)
    assert bench.scheduler.state.reason == "fan is loud" and memo(bench, PENDING) == {}


def test_it_is_asked_ever_more_seldom(bench: Bench) -> None:
    bench.scheduler.broken = True
    bench.source.lose(1)
    before = bench.scheduler.asked
    bench.run(60)
    assert 10 <= bench.scheduler.asked - before <= 25, "ten minutes"


def test_under_dry_run_nothing_waits(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench = Bench(tmp_path, spares_units=False, policy=Policy(dry_run=True))
    bench.scheduler.broken = True
    bench.run()
    bench.source.lose(1)
    bench.run(5)
    assert memo(bench, PENDING) == {} and problem(bench) is not None


class Held:
    """Errands whose end a test decides."""

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    @property
    def busy(self) -> bool:
        return self.work is not None

    def run(self, work: Callable[[], None]) -> None:
        assert self.work is None
        self.work = work

    def close(self) -> None:
        work, self.work = self.work, None
        if work is not None:
            work()


def test_an_answer_that_comes_too_late_neither_drains_nor_resumes(bench: Bench) -> None:
    errands = Held()
    bench.cycle = Cycle(bench.config, "n1", "1.0", replace(bench.cycle.ports, errands=errands))
    bench.run()
    errands.close()
    bench.source.lose(1)
    bench.run()
    bench.source.heal()
    bench.run(5)
    bench.scheduler.broken = True
    errands.close()
    assert memo(bench, PENDING) == {}, "well again before it was known that the scheduler does not answer"
    bench.scheduler.broken = False
    bench.source.lose(1)
    bench.run(10)
    bench.source.heal()
    bench.run(5)
    errands.close()
    assert bench.scheduler.drains == 0, "well again before the scheduler said anything"
    bench.source.lose(1)
    bench.run()
    errands.close()
    assert bench.scheduler.state.drained
    bench.source.heal()
    bench.run(4)
    assert errands.busy
    bench.source.lose(1)
    bench.run()
    errands.close()
    assert bench.scheduler.state.drained, "failed again before the scheduler said anything"


def test_an_errand_keeps_nobody_waiting_and_a_bad_one_is_not_the_last() -> None:
    log, held, ended = FakeLog(), Event(), Event()
    errands = Beside(log)
    errands.run(lambda: (held.wait(10), ended.set())[1])
    assert errands.busy and not ended.is_set()
    held.set()
    errands.close()
    assert ended.is_set() and not errands.busy
    errands.run(lambda: {}["no such"])
    errands.close()
    assert log.kinds() == ["errand_failed"]
    ended.clear()
    errands.run(ended.set)
    errands.close()
    assert ended.is_set()


# -- taken at the last moment -----------------------------------------------------------------------------------------


def test_a_node_that_is_taken_between_look_and_change_is_not_recorded_as_ours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(reason: str, scope: str) -> str:
        bench.scheduler.state = NodeState(True, "fan is loud")
        raise NodeTaken("fan is loud")

    monkeypatch.setattr(bench.scheduler, "drain", taken)
    bench.source.lose(1)
    bench.run()
    assert record(bench) is None and "drain_refused" in bench.log.kinds()
    bench.source.heal()
    bench.run(20)
    assert bench.scheduler.state == NodeState(True, "fan is loud")


def test_a_drain_stands_only_once_it_was_seen(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(reason: str, scope: str) -> str:
        raise CommandFailed(["scontrol"], None, "")

    with monkeypatch.context() as patch:
        patch.setattr(bench.scheduler, "drain", lost)
        bench.source.lose(1)
        bench.run()
    found = record(bench)
    assert found is not None and not found.stands
    bench.run(10)
    assert bench.scheduler.state.drained, "it is made again: nobody has resumed what never stood"
    found = record(bench)
    assert found is not None and found.stands


# -- resumed by hand --------------------------------------------------------------------------------------------------


def drained_and_resumed(bench: Bench) -> None:
    bench.source.xid(1, 79)
    bench.run()
    assert bench.scheduler.state.drained
    bench.scheduler.state = NodeState(False)  # scontrol update state=resume
    bench.run(20)


def test_a_resume_by_hand_is_respected_while_the_same_fault_stands(bench: Bench) -> None:
    drained_and_resumed(bench)
    assert not bench.scheduler.state.drained and bench.scheduler.drains == 1
    assert record(bench) is None and "xid" in memo(bench, RESUMED)["faults"]
    bench.cycle = bench.new_cycle()
    bench.run(20)
    assert not bench.scheduler.state.drained, "also by the next agent"
    assert list(bench.store.retired()) == [bench.uuid(1)], "the GPU is granted to nobody all the same"
    told = [entry.evidence for entry in bench.history.of(FORGET_DRAIN)]
    assert len(told) == 1 and "only if a fault shows again" in told[0]


def test_the_same_xid_again_drains_it_again(bench: Bench) -> None:
    drained_and_resumed(bench)
    bench.source.xid(1, 79)
    bench.run(7)
    assert bench.scheduler.state.drained and bench.scheduler.drains == 2


def test_a_fault_elsewhere_drains_it_again(bench: Bench) -> None:
    drained_and_resumed(bench)
    bench.source.lose(3)
    bench.run(7)
    assert bench.scheduler.state.drained


def test_a_fault_that_was_gone_and_comes_back_drains_it_again(bench: Bench) -> None:
    bench.source.lose(1)
    bench.run()
    bench.scheduler.state = NodeState(False)
    bench.run(20)
    assert not bench.scheduler.state.drained
    bench.source.heal()
    bench.run(5)
    assert memo(bench, RESUMED) == {} and bench.store.retired() == {}
    bench.source.lose(1)
    bench.run(7)
    assert bench.scheduler.state.drained


def test_another_boot_drains_it_again(bench: Bench) -> None:
    drained_and_resumed(bench)
    bench.source.boot_id = "boot-2"  # the GPU is retired as before, and looks well
    bench.cycle = bench.new_cycle()
    bench.run()
    assert bench.scheduler.state.drained


def test_our_own_resume_command_is_respected_like_the_schedulers(bench: Bench) -> None:
    bench.source.lose(1)
    bench.run()
    bench.cycle.ports.actions.resume(by="admin")
    assert not bench.scheduler.state.drained
    bench.run(20)
    assert not bench.scheduler.state.drained and record(bench) is None
