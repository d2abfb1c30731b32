"""Locks of jobs with typed GRES: completed by Slurm's word, once, and only while the grant is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeagent.agent.completer import MOST_QUESTIONS, Completer
from nodeagent.errors import AmbiguousAnswer, CommandFailed, NodeAgentError
from nodeagent.hook import epilog
from nodeagent.lock.record import CLEANING, Owner
from nodeagent.state import events
from nodeagent.state.hook_conf import TYPED_GRES
from tests.support import LaidOutNode, uuid


class Controller:
    """Says what was granted to whom, or fails; counts how often it was asked."""

    def __init__(self) -> None:
        self.says: dict[str, tuple[int, ...] | None | NodeAgentError] = {}
        self.asked: list[str] = []

    def granted(self, owner: Owner) -> tuple[int, ...] | None:
        self.asked.append(owner.job)
        said = self.says[owner.job]
        if isinstance(said, NodeAgentError):
            raise said
        return said


class Lines:
    """A log that keeps what it is told."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def __getattr__(self, level: str) -> Any:
        return lambda kind, **_: self.kinds.append(kind)


class Bench:
    """A node whose GRES are typed, with a completer on it."""

    def __init__(self, directory: Path, typed: str = "yes") -> None:
        self.node = LaidOutNode(directory, "slurm", gpus=6)
        # as slurmd tells of two types whose device files alternate: indices 0, 1 are minors 0, 2; indices 2, 3 are 1, 3
        self.node.compile({0: 0, 1: 2, 2: 1, 3: 3, 4: 4, 5: 5}, **{TYPED_GRES: typed})
        self.controller = Controller()
        self.log = Lines()
        self.completer = Completer(self.node.state, self.node.store, self.controller, self.log)

    def told(self) -> list[tuple[str, str, str]]:
        found = events.take(self.node.state)
        return [(event.kind, event.fields.get("job", ""), event.fields.get("units", "")) for event in found]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_the_missing_units_are_added_and_the_epilog_frees_all(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    bench.node.hold([5], job="8")
    bench.controller.says = {"7": (0, 2, 3), "8": (5,)}
    bench.completer.run()
    assert bench.node.held() == {0: "7", 1: "7", 3: "7", 5: "8"}
    owners = [owner for owner in bench.node.store.owners().values() if owner.job == "7"]
    assert {owner.grant for owner in owners} == {"grant7"}
    assert all(set(owner.units) == {uuid(0), uuid(1), uuid(3)} for owner in owners)
    bench.completer.run()
    assert bench.controller.asked == ["7", "8"], "once a grant"
    assert bench.log.kinds == ["lock_completed"] and bench.told() == []
    assert set(epilog.release(bench.node.state, "slurm", "", "7")) == {uuid(0), uuid(1), uuid(3)}
    bench.completer.run()
    assert bench.node.held() == {5: "8"}


@pytest.mark.parametrize("typed", ["no", ""])
def test_where_slurms_lists_are_complete_nobody_is_asked(tmp_path: Path, typed: str) -> None:
    bench = Bench(tmp_path, typed)
    bench.node.hold([1], job="7")
    bench.completer.run()
    assert bench.controller.asked == []


def test_locks_of_others_than_slurm_are_none_of_its_business(bench: Bench) -> None:
    bench.node.hold([0], "sge", "7")
    bench.node.hold([1], "hold", "")
    bench.completer.run()
    assert bench.controller.asked == []


def test_a_unit_that_another_holds_is_a_conflict_told_once_and_added_when_it_is_free(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    bench.node.hold([0], job="lost")
    bench.controller.says = {"7": (0, 2), "lost": None}
    for _ in range(3):
        bench.completer.run()
    assert bench.node.held() == {0: "lost", 1: "7"}
    assert bench.told() == [("conflict", "7", uuid(0))]
    epilog.release(bench.node.state, "slurm", "", "lost")
    bench.completer.run()
    assert bench.node.held() == {0: "7", 1: "7"}
    assert sorted(bench.controller.asked) == ["7", "lost"]


def test_a_unit_that_is_being_cleaned_is_waited_for_in_silence(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    bench.node.hold([0], CLEANING, "6")
    bench.controller.says = {"7": (0, 2)}
    bench.completer.run()
    assert bench.node.held() == {0: "6", 1: "7"} and bench.told() == []
    epilog.release(bench.node.state, CLEANING, "", "6")
    bench.completer.run()
    assert bench.node.held() == {0: "7", 1: "7"}


def test_a_gpu_of_which_somebody_has_a_share_is_not_taken_as_a_whole(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    share = bench.node.store.owners()[uuid(1)].with_units({f"{uuid(0)}@1": uuid(0)})
    share.job, share.grant = "8", "grant8"
    with bench.node.store.exclusive():
        bench.node.store.claim(share)
    bench.controller.says = {"7": (0, 2), "8": ()}
    bench.completer.run()
    assert set(bench.node.store.owners()) == {uuid(1), f"{uuid(0)}@1"}
    assert bench.told() == [("conflict", "7", uuid(0))]


def test_a_retired_unit_in_use_is_locked_and_told(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    with bench.node.store.exclusive():
        bench.node.store.retire(uuid(0), [("reason", "XID 79")])
    bench.controller.says = {"7": (0, 2)}
    bench.completer.run()
    bench.completer.run()
    assert bench.node.held() == {0: "7", 1: "7"}
    assert bench.told() == [("retired_in_use", "7", uuid(0))]


def test_an_index_without_a_gpu_is_told_and_the_rest_added(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    bench.controller.says = {"7": (0, 2, 9)}
    bench.completer.run()
    bench.completer.run()
    assert bench.node.held() == {0: "7", 1: "7"}
    assert bench.told() == [("unmapped", "7", "")]


def test_a_grant_that_ended_while_slurm_was_asked_gets_nothing(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    before = bench.node.store.owners()
    bench.controller.says = {"7": (0, 2)}
    exclusive = bench.node.store.exclusive

    class Late:
        """The store of somebody who waits for the flock while the epilog has it."""

        def exclusive(self) -> Any:
            epilog.release(bench.node.state, "slurm", "", "7")
            return exclusive()

        def __getattr__(self, name: str) -> Any:
            return getattr(bench.node.store, name)

    Completer(bench.node.state, Late(), bench.controller, bench.log).run()  # type: ignore[arg-type]
    assert before and bench.node.held() == {} and bench.log.kinds == []


def test_a_grant_that_is_being_cleaned_up_gets_nothing(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    cleaning = bench.node.store.owners()[uuid(1)].with_units({uuid(4): uuid(4)})
    cleaning.scheduler = CLEANING
    with bench.node.store.exclusive():
        bench.node.store.claim(cleaning)
    bench.controller.says = {"7": (0, 2)}
    bench.completer.run()
    assert bench.node.held() == {1: "7", 4: "7"}


def test_a_controller_that_is_away_is_asked_ever_more_seldom(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    bench.controller.says = {"7": CommandFailed(["/usr/bin/scontrol"], None, "")}
    for _ in range(40):
        bench.completer.run()
    assert 3 < len(bench.controller.asked) < 8
    bench.controller.says = {"7": (0, 2)}
    for _ in range(40):
        bench.completer.run()
    assert bench.node.held() == {0: "7", 1: "7"}


def test_one_job_with_forged_text_keeps_nobody_else_waiting(bench: Bench) -> None:
    bench.node.hold([1], job="7")
    bench.node.hold([3], job="8")
    bench.controller.says = {"7": AmbiguousAnswer("scontrol"), "8": (1, 3)}
    bench.completer.run()
    bench.completer.run()
    assert bench.node.held() == {1: "7", 2: "8", 3: "8"}
    assert bench.log.kinds.count("grant_unclear") == 1 and bench.controller.asked == ["7", "8"]


def test_few_questions_a_cycle(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.node.gpus = 12
    for at in range(12):
        bench.node.hold([at], job=str(at))
        bench.controller.says[str(at)] = None
    bench.completer.run()
    assert len(bench.controller.asked) == MOST_QUESTIONS
    bench.completer.run()
    assert sorted(bench.controller.asked, key=int) == [str(at) for at in range(12)]


def test_a_full_disk_is_said_and_made_up_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.node.hold([1], job="7")
    bench.controller.says = {"7": (0, 2)}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("nodeagent.lock.store.write_new", full)
        bench.completer.run()
    assert bench.log.kinds == ["complete_failed"] and bench.node.held() == {1: "7"}
    bench.completer.run()
    assert bench.node.held() == {0: "7", 1: "7"}
