"""Turns at draining on controllers that are fakes of ours (tests/integration/test_limit_* ask the real ones).

The fakes do what was seen of the real ones: they add no second object of a name, and Slurm's forgets what has ended.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nodeagent.errors import CommandFailed
from nodeagent.scheduler import sge_turn, slurm_turn
from nodeagent.scheduler.sge_turn import Seen, SgeTurn
from nodeagent.scheduler.slurm_turn import SlurmTurn
from nodeagent.scheduler.turn import NotOurTurn, Turn, length_of


class FakeClock:
    """Seconds that pass when a test says so, and `each` with every command."""

    def __init__(self) -> None:
        self.now = 0.0
        self.each = 0.0

    def __call__(self) -> float:
        return self.now


class FakeController:
    """Named objects of a scheduler: name → what is in it, and when it ends."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.objects: dict[str, tuple[str, float]] = {}
        self.asked: list[str] = []
        self.lose: str = ""
        """Commands with this word take effect, and their answer comes too late."""
        self.refuse: str = ""

    def _begin(self, words: tuple[str, ...]) -> None:
        self.clock.now += self.clock.each
        self.asked.append(" ".join(words))
        if self.refuse and self.refuse in self.asked[-1]:
            raise CommandFailed(words, 1, "Access/permission denied")

    def _end(self, words: tuple[str, ...]) -> None:
        if self.lose and self.lose in " ".join(words):
            raise CommandFailed(words, None, "")

    def scontrol(self, *words: str) -> str:
        """Reservations as slurmctld keeps them."""
        self._begin(words)
        self.objects = {name: one for name, one in self.objects.items() if one[1] > self.clock.now}
        said = dict(word.partition("=")[::2] for word in words)
        name = said.get("reservationname", "")
        if words[0] == "create":
            if name in self.objects:
                raise CommandFailed(words, 1, "Error creating the reservation: Duplicate reservation name")
            self.objects[name] = ("", self.clock.now + 60 * int(said["duration"]))
        elif words[0] == "delete":
            if self.objects.pop(name, None) is None:
                raise CommandFailed(words, 1, "Requested reservation is invalid")
        self._end(words)
        return "".join(f"ReservationName={name} State=ACTIVE\n" for name in self.objects)

    def qconf(self, *words: str) -> str:
        """Checkpointing interfaces as the qmaster keeps them."""
        self._begin(words)
        said = ""
        if words[0] == "-Ackpt":
            text = Path(words[1]).read_text()
            found = dict(line.split(None, 1) for line in text.splitlines())
            name = found["ckpt_name"]
            if name in self.objects:
                raise CommandFailed(words, 1, f'checkpoint interface "{name}" already exists')
            self.objects[name] = (found["ckpt_command"], 0)
        elif words[0] == "-sckptl":
            if not self.objects:
                raise CommandFailed(words, 1, "no ckpt interface definition defined")
            said = "\n".join(self.objects)
        elif words[1] not in self.objects:
            raise CommandFailed(words, 1, f"{words[1]} is not a checkpointing interface definition")
        elif words[0] == "-sckpt":
            said = f"ckpt_name          {words[1]}\nckpt_command       {self.objects[words[1]][0]}\n"
        else:
            del self.objects[words[1]]
        self._end(words)
        return said


class Place:
    """A controller and the turns of some nodes at it."""

    def __init__(self, kind: str, window: float = 0.0, timeout: float = 5.0) -> None:
        self.kind = kind
        self.clock = FakeClock()
        self.controller = FakeController(self.clock)
        self.window = window
        self.timeout = timeout
        self._seen: dict[str, Seen] = {}

    def turn(self, node: str) -> Turn:
        """The next turn of a node, which remembers what it has seen."""
        if self.kind == "slurm":
            return SlurmTurn(self.controller.scontrol, node, self.window, self.timeout, self.clock)
        seen = self._seen.setdefault(node, Seen())
        return SgeTurn(self.controller.qconf, node, self.window, self.timeout, seen, self.clock)

    def refused(self, node: str) -> bool:
        """Whether a node that asks now is told that it is another's turn; one that is not gives it back."""
        try:
            with self.turn(node):
                return False
        except NotOurTurn:
            return True

    def lately(self) -> set[str]:
        """The nodes noted as drained."""
        if self.kind == "slurm":
            return slurm_turn.lately_drained(self.controller.scontrol, self.window)
        return sge_turn.lately_drained(self.controller.qconf, self.window)

    def die_in_its_turn(self, node: str) -> None:
        """Take a turn and never be heard of again."""
        self.turn(node).__enter__()


@pytest.fixture(params=["slurm", "sge"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each of both schedulers."""
    return Place(request.param)


def test_one_node_at_a_time(place: Place) -> None:
    with place.turn("n1") as turn:
        assert place.refused("n2") and place.refused("n3")
        turn.spend()
    assert place.controller.objects == {}
    assert not place.refused("n2")
    assert place.controller.objects == {}


def test_a_turn_costs_three_commands_and_one_that_is_refused_two_at_most(place: Place) -> None:
    with place.turn("n1") as turn:
        turn.spend()
    assert len(place.controller.asked) == 2, "taken and given back"
    with place.turn("n1"):
        before = len(place.controller.asked)
        assert place.refused("n2")
        assert len(place.controller.asked) - before == {"slurm": 1, "sge": 2}[place.kind]


def test_whoever_refused_the_drain_the_turn_is_given_back(place: Place) -> None:
    for error in (ValueError(), CommandFailed(["scontrol"], 1, "denied")):
        with pytest.raises(type(error)), place.turn("n1"):
            raise error
        assert place.controller.objects == {}


def test_a_drain_that_may_still_take_effect_keeps_the_turn(place: Place) -> None:
    with pytest.raises(CommandFailed), place.turn("n1") as turn:
        turn.spend()
        raise CommandFailed(["scontrol"], None, "")
    place.clock.now += 50
    assert place.refused("n2")


def test_a_look_that_was_not_answered_keeps_nobody_waiting(place: Place) -> None:
    with pytest.raises(CommandFailed), place.turn("n1"):
        raise CommandFailed(["sinfo"], None, "")
    assert not place.refused("n2")


def test_a_slow_holder_does_not_drain_when_its_turn_may_be_over_and_leaves_the_next_ones_alone(place: Place) -> None:
    with pytest.raises(NotOurTurn, match="60 s"), place.turn("n1") as turn:
        assert place.refused("n2")
        place.clock.now += 54
        turn.spend()
        place.clock.now += 7
        assert not place.refused("n2")
        place.die_in_its_turn("n3")
        turn.spend()
    assert place.refused("n2"), "n3 has it still"


def test_the_time_that_taking_a_turn_took_is_part_of_it(place: Place) -> None:
    place.clock.each = 56
    with pytest.raises(NotOurTurn), place.turn("n1") as turn:
        turn.spend()


def test_a_dead_holders_turn_ends_and_only_one_follows(place: Place) -> None:
    place.die_in_its_turn("n1")
    nodes = [f"n{i}" for i in range(2, 8)]
    assert all(place.refused(node) for node in nodes)
    place.clock.now += 59
    assert all(place.refused(node) for node in nodes)
    place.clock.now += 2
    with place.turn("n2"):
        assert all(place.refused(node) for node in nodes)
    assert place.controller.objects == {}
    assert not place.refused("n3")


def test_one_that_was_late_to_see_a_dead_holder_waits_as_long_as_all_did() -> None:
    place = Place("sge")
    place.die_in_its_turn("n1")
    assert place.refused("n2")
    place.clock.now += 61
    assert place.refused("n3"), "for all it knows the turn has just begun"
    assert not place.refused("n2")


def test_successors_that_die_too_are_followed_in_their_turn() -> None:
    place = Place("sge")
    for node in ("n1", "n2", "n3"):
        place.die_in_its_turn(node)
        assert all(place.refused(other) for other in ("n2", "n3", "n4"))
        place.clock.now += 61
    assert len(place.controller.objects) == 3
    with place.turn("n4"):
        assert place.refused("n3")
    assert place.controller.objects == {}


def test_a_turn_given_back_and_taken_again_is_not_taken_for_one_that_never_ended() -> None:
    place = Place("sge")
    for _ in range(20):
        with place.turn("n1"):
            assert place.refused("n2")
        place.clock.now += 10


def test_what_is_refused_for_another_reason_is_a_failure_and_not_anothers_turn(place: Place) -> None:
    place.controller.refuse = {"slurm": "create", "sge": "-Ackpt"}[place.kind]
    with pytest.raises(CommandFailed, match="denied"):
        place.turn("n1").__enter__()
    place.controller.refuse = ""
    place.controller.lose = {"slurm": "create", "sge": "-Ackpt"}[place.kind]
    with pytest.raises(CommandFailed):
        place.turn("n1").__enter__()
    assert place.refused("n2"), "it was taken, for all that is known"


def test_a_turn_that_cannot_be_given_back_does_not_undo_what_was_done_in_it(place: Place) -> None:
    place.controller.refuse = {"slurm": "delete", "sge": "-dckpt"}[place.kind]
    with place.turn("n1") as turn:
        turn.spend()
    assert place.refused("n2")


@pytest.mark.parametrize("kind", ["slurm", "sge"])
def test_a_drain_is_noted_for_the_window(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(kind, window=90.0)
    monkeypatch.setattr("nodeagent.scheduler.sge_turn.time.time", lambda: 1.7e9 + place.clock.now)
    for node in ("n1", "n-2.example", "n1"):
        with place.turn(node) as turn:
            turn.spend()
    assert place.lately() == {"n1", "n-2.example"}
    place.clock.now += 89
    assert place.lately() == {"n1", "n-2.example"}
    place.clock.now += 32  # Slurm counts in minutes
    assert place.lately() == set()
    with place.turn("n3") as turn:
        turn.spend()
    assert place.lately() == {"n3"}
    place.window = 0.0
    assert place.lately() == set()


def test_what_is_noted_and_over_is_removed_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place("sge", window=90.0)
    monkeypatch.setattr("nodeagent.scheduler.sge_turn.time.time", lambda: 1.7e9 + place.clock.now)
    for node in ("n1", "n2", "n3"):
        with place.turn(node) as turn:
            turn.spend()
    place.controller.objects["somebodys-own"] = ("/bin/true", 0)
    left = []
    for _ in range(3):
        place.clock.now += 91
        with place.turn("n9") as turn:
            turn.spend()
        left.append([name for name in place.controller.objects if re.search("n[123]$", name)])
    assert [len(names) for names in left] == [1, 0, 0]
    assert "somebodys-own" in place.controller.objects


@pytest.mark.parametrize(("timeout", "length"), [(0.1, 60), (5.0, 60), (5.1, 120), (10.0, 120), (60.0, 720)])
def test_a_turn_is_long_enough_for_its_commands(timeout: float, length: float) -> None:
    assert length_of(timeout) == length


def test_slurms_reservation_is_of_nothing() -> None:
    place = Place("slurm", timeout=20.0)
    place.turn("n1").__enter__()
    assert place.controller.asked == [
        "create reservation reservationname=gpu-nodeagent-turn starttime=now duration=4 users=root "
        "flags=ANY_NODES burstbuffer=gpu-nodeagent:1"
    ]


def test_grid_engines_objects_leave_no_descriptor_behind(place: Place) -> None:
    before = _descriptors()
    for _ in range(3):
        assert not place.refused("n1")
    assert _descriptors() == before


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
