"""What a Grid Engine host offers while GPUs are out of service, and what becomes of an administrator's number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nodeagent.agent.capacity import Capacity, Lowered, LoweredFile, lowered, withheld
from nodeagent.agent.errand import AtOnce
from nodeagent.config.model import Config, Scheduler, Sge
from nodeagent.errors import CommandFailed
from nodeagent.lock.record import HOLD, Owner
from nodeagent.scheduler.sge import SgeScheduler
from nodeagent.scheduler.sge_capacity import parse_offer
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import FAILED, OK, UNKNOWN, UnitLine
from tests.unit.test_cycle import Bench, FakeClock, FakeLog

FAULTY = {"reason": "Xid 79"}


def units(*states: str) -> tuple[UnitLine, ...]:
    return tuple(UnitLine(f"GPU-{i}", i, i, "", "", 0, (), state) for i, state in enumerate(states))


ALL_WELL = units(OK, OK, OK, OK)


class FakeHost:
    """An exec host's number. `dies` at a point of the next change: before it, or after it."""

    def __init__(self, number: int | None = 4) -> None:
        self.number = number
        self.dies = ""
        self.asked = 0

    def offered(self) -> int | None:
        self.asked += 1
        return self.number

    def offer(self, count: int) -> None:
        dies, self.dies = self.dies, ""
        if dies == "before":
            raise CommandFailed(["qconf"], 1, "denied")
        self.number = count
        if dies == "after":
            raise CommandFailed(["qconf"], None, "")


class Node:
    """A host whose agent may be started anew."""

    def __init__(self, place: Path, number: int | None = 4) -> None:
        self.host = FakeHost(number)
        self.clock = FakeClock()
        self.log = FakeLog()
        self._file = LoweredFile(Directory(str(place), create=True))
        self.restart()

    def restart(self, may_lower: bool = True) -> None:
        self.capacity = Capacity(self.host, self._file, 60.0, self.clock, self.log, AtOnce(), may_lower)  # type: ignore[arg-type]

    def settle(self, *out: int, lines: tuple[UnitLine, ...] = ALL_WELL) -> int | None:
        """Let the agent look while these GPUs are retired, and return what the host offers then."""
        self.capacity.settle(lines, {f"GPU-{at}": FAULTY for at in out}, {})
        return self.host.number


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "data")


def test_what_is_out_of_service_is_taken_off_and_given_back(node: Node) -> None:
    assert [node.settle(), node.settle(2), node.settle(2, 3), node.settle(3), node.settle()] == [4, 3, 2, 3, 4]


def test_while_nothing_changes_nobody_is_asked(node: Node) -> None:
    node.settle()
    assert node.host.asked == 0
    for _ in range(5):
        node.settle(1)
    assert node.host.asked == 1


def test_the_number_survives_the_agent_and_never_falls_below_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path / "data", number=2)  # a site may offer fewer than there are
    node.settle(0)
    for out, offered in (((0, 1, 2, 3), 0), ((0,), 1), ((), 2)):
        node.restart()
        assert node.settle(*out) == offered


@pytest.mark.parametrize("dies", ["before", "after"])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_change_that_was_cut_short_is_made_once(node: Node, dies: str, restarted: bool) -> None:
    for out, offered in (((2,), 3), ((2, 3), 2), ((3,), 3), ((), 4)):
        node.host.dies = dies
        node.settle(*out)
        asked = node.host.asked
        node.settle(*out)
        assert node.host.asked == asked, "it waits before it tries again"
        node.clock.now += 61
        if restarted:
            node.restart()
        assert node.settle(*out) == offered


def test_an_administrators_number_stays_and_is_what_later_changes_begin_from(node: Node) -> None:
    node.settle(2)
    node.host.number = 8  # they have added some, and knew that one was out
    assert node.settle(2) == 8
    assert node.settle(2, 3) == 7
    assert node.settle(3) == 8
    assert node.settle() == 8
    assert "capacity_of_others" in node.log.kinds()
    assert node.settle(1) == 7


def test_an_administrator_who_puts_the_first_number_back_is_respected(node: Node) -> None:
    node.settle(2)
    node.host.number = 4
    assert [node.settle(2), node.settle(2, 3), node.settle(3), node.settle()] == [4, 3, 4, 4]


def test_a_number_that_was_changed_while_one_was_out_is_not_raised_when_it_is_back(node: Node) -> None:
    node.settle(2)
    node.host.number = 1
    assert node.settle() == 1
    assert node.settle(0) == 0


def test_where_it_may_not_be_lowered_any_more_what_was_taken_is_given_back(node: Node) -> None:
    node.settle(2)
    node.restart(may_lower=False)
    assert node.settle(2) == 4
    assert node.settle(2, 3) == 4


def test_of_a_node_of_which_nothing_is_known_nothing_is_changed(node: Node) -> None:
    node.settle(2)
    assert node.settle(2, lines=()) == node.settle(lines=()) == 3


def test_a_host_that_does_not_say_what_it_offers_is_told_of_once(tmp_path: Path) -> None:
    node = Node(tmp_path / "data", number=None)
    for _ in range(3):
        assert node.settle(1) is None
        node.clock.now += 61
    assert node.log.kinds() == ["capacity_failed"]
    assert node.host.asked == 3


def test_a_record_that_cannot_be_read_changes_nothing(node: Node, tmp_path: Path) -> None:
    node.settle(2)
    (tmp_path / "data" / "lowered").write_text("format=1\nbase=4\n")
    assert node.settle() == 3
    assert node.log.kinds()[-1] == "capacity_failed"


def test_what_is_withheld_is_what_no_job_may_get() -> None:
    lines = units(OK, FAILED, UNKNOWN, "DEGRADED", OK)
    lines[4].slots = 3
    retired = {"GPU-0": FAULTY, "GPU-9": FAULTY}  # the last one is gone
    job, hold = Owner("sge", job="7", grant="g"), Owner(HOLD, grant="h")
    assert withheld(lines, {}, {}) == 2
    assert withheld(lines, retired, {"GPU-3": job, "GPU-1": hold}) == 4
    assert withheld(lines, retired, {"GPU-3": hold, "GPU-4@1": hold}) == 6


def test_lowered_keeps_its_base_over_any_number_of_changes() -> None:
    record = lowered(None, 8, 3)
    assert record == Lowered(8, 5, 3, 0, 8)
    assert lowered(record, 8, 3) == record, "it was not made"
    assert lowered(record, 5, 1) == Lowered(8, 7, 1, 0, 5)


@pytest.mark.parametrize(
    ("said", "offered"),
    [
        ("hostname n1\ncomplex_values        gpu=4,slots=8\n", 4),
        ("complex_values        slots=8,gpu=4.000000\nload_values gpu=7\n", 4),
        ("complex_values        slots=8, \\\n                      gpu=3\n", 3),
        ("complex_values        gpus=3,my_gpu=2\n", None),
        ("complex_values        NONE\n", None),
        ("load_values           gpu=4\n", None),
    ],
)
def test_what_a_host_offers_is_read_as_qconf_writes_it(said: str, offered: int | None) -> None:
    assert parse_offer(said, "gpu") == offered


@pytest.mark.parametrize("value", ["4.5", "many", "1e400", "nan"])
def test_a_number_that_is_none_is_an_error(value: str) -> None:
    with pytest.raises(CommandFailed):
        parse_offer(f"complex_values gpu={value}\n", "gpu")


class Heard:
    """A capacity that only listens."""

    def __init__(self) -> None:
        self.said: list[int] = []

    def settle(self, *what: Any) -> None:
        self.said.append(withheld(*what))


def test_a_cycle_tells_of_what_it_has_just_retired(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    bench, heard = Bench(tmp_path), Heard()
    bench.cycle.ports.capacity = heard  # type: ignore[assignment]
    bench.run()
    bench.source.lose(1)
    bench.run()
    assert heard.said == [0, 1]


def test_a_host_whose_retired_gpus_drain_it_spares_none() -> None:
    kinds = ("sensor", "complex_values", "drain")
    configs = [Config(scheduler=Scheduler(kind="sge", sge=Sge(retire=kind))) for kind in kinds]
    assert [SgeScheduler(config, "h1").spares_units for config in configs] == [True, True, False]
