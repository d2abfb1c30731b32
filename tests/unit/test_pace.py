"""When a scheduler is asked again: by a clock and dice of the test's."""

from __future__ import annotations

import random
from collections import Counter
from math import inf

import pytest

from nodeagent.agent.pace import Pace
from tests.unit.test_cycle import FakeClock


class Bench:
    """A pace, and how long it takes until it allows the same question again."""

    def __init__(self, part: float = 1.0, longest: float = 60.0) -> None:
        self.clock = FakeClock()
        self.pace = Pace(self.clock, longest, lambda low, high: low + part * (high - low))

    def next(self, question: object = "same") -> int:
        """Seconds until the question is allowed."""
        for seconds in range(10_000):
            if self.pace.allows(question):
                return seconds
            self.clock.now += 1
        raise AssertionError("never")


def test_the_same_is_asked_seldom_and_something_else_at_once_but_for_a_second() -> None:
    bench = Bench()
    assert bench.next() == 0
    assert bench.next() == 60
    assert bench.next("other") == 1
    bench.clock.now += 20
    assert bench.next("third") == 0


@pytest.mark.parametrize("trouble", ["failed", "not_our_turn"])
def test_what_fails_is_tried_again_ever_more_seldom_whatever_is_asked_meanwhile(trouble: str) -> None:
    bench = Bench()
    bench.next()
    pauses = []
    for question in ("a", "a", "b", "c", "c", "d"):
        getattr(bench.pace, trouble)()
        pauses.append(bench.next(question))
    assert pauses == [6, 12, 24, 48, 60, 60]
    bench.pace.calm()
    bench.pace.failed()
    assert bench.next("d") == 6


def test_only_who_waits_for_a_turn_wakes_the_agent_for_it() -> None:
    bench = Bench()
    assert bench.pace.wake == inf
    bench.pace.failed()
    assert bench.pace.wake == inf
    bench.pace.not_our_turn()
    due = bench.pace.wake
    assert due == bench.clock.now + 12
    bench.pace.wake = inf  # a cycle has begun before, for another reason
    assert not bench.pace.allows("same") and bench.pace.wake == due
    bench.pace.calm()
    assert bench.pace.wake == inf


def test_what_changes_just_after_it_was_asked_does_not_wait_for_the_next_cycle() -> None:
    bench = Bench()
    bench.next()
    bench.clock.now += 0.4
    assert not bench.pace.allows("same") and bench.pace.wake == inf
    assert not bench.pace.allows("other")
    assert bench.pace.wake == pytest.approx(bench.clock.now + 0.6)
    bench.clock.now = bench.pace.wake
    assert bench.pace.allows("other")


@pytest.mark.parametrize(("nodes", "pause"), [(4, 60), (100, 60), (1000, 600)])
def test_a_full_fleet_as_a_whole_asks_as_often_whatever_its_size(nodes: int, pause: int) -> None:
    bench = Bench()
    bench.next()
    bench.pace.full(nodes)
    assert bench.next("other") == pause


def test_pauses_are_of_chance_from_half_of_them_on() -> None:
    pauses = []
    for part in (0.0, 0.5, 1.0):
        bench = Bench(part)
        bench.next()
        bench.pace.full(10)
        pauses.append(bench.next())
    assert pauses == [30, 45, 60]
    dice = Pace(FakeClock(), 60.0)
    waits = set()
    for _ in range(20):
        dice.not_our_turn()
        waits.add(dice.wake)
    assert len(waits) == 20


def test_room_that_appears_goes_to_each_of_those_that_wait_alike() -> None:
    """Ten nodes at a limit; room comes once in fifty seconds, and who asks first has it."""
    clock, dice = FakeClock(), random.Random(5)  # noqa: S311  no secret
    paces = {node: Pace(clock, 60.0, dice.uniform) for node in range(10)}
    had: Counter[int] = Counter()
    while sum(had.values()) < 300:
        room = True
        for _ in range(100):
            clock.now += 0.5
            for node, pace in paces.items():
                if pace.allows("same"):
                    had[node] += room
                    room = False
                    pace.full(len(paces))
    assert min(had.values()) > 15 and max(had.values()) < 50, had
