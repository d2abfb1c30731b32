"""What systemd says of the GPUs' services: its words, and that nobody waits for them."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import pytest

from nodeagent.errors import CommandFailed
from nodeagent.external.services import EVERY, Services, parse
from nodeagent.gpu.host import Service

SAID = """Result=exit-code
Id=nvidia-fabricmanager.service
LoadState=loaded
ActiveState=failed
UnitFileState=enabled

Id=nvidia-persistenced.service
LoadState=not-found
ActiveState=inactive
Result=success
UnitFileState=
"""
FM = Service("nvidia-fabricmanager", "loaded", "failed", "exit-code", "enabled", 7.0)
PD = Service("nvidia-persistenced", "not-found", "inactive", "success", "", 7.0)
NAMES = (FM.name, PD.name)


class Hands:
    """A clock and a systemctl; `answer` None fails."""

    def __init__(self, answer: str | None = SAID) -> None:
        self.now = 7.0
        self.answer = answer
        self.asked: list[list[str]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def __call__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        complaints: bool = False,
    ) -> str:
        self.asked.append(list(argv))
        self.may_answer.wait(10.0)
        if self.answer is None:
            raise CommandFailed(list(argv), 1, "not booted with systemd")
        return self.answer


def test_each_unit_is_a_block() -> None:
    assert parse(SAID, 7.0) == (FM, PD)
    assert parse("", 7.0) == parse("Id=x.socket\n\nnonsense\n", 7.0) == ()


def test_systemd_is_asked_twice_a_minute_and_its_last_word_stands() -> None:
    hands = Hands()
    services = Services(hands, hands, "/bin/sh")
    assert services.step(NAMES, 5.0) == (FM, PD)
    assert hands.asked == [
        [
            *("/bin/sh", "show", "--property", "Id,LoadState,ActiveState,Result,UnitFileState", "--"),
            *("nvidia-fabricmanager.service", "nvidia-persistenced.service"),
        ]
    ]
    hands.now += EVERY - 0.1
    assert services.step(NAMES, 5.0) == (FM, PD) and len(hands.asked) == 1
    hands.now += 0.2
    hands.answer = SAID.replace("failed", "active")
    assert [one.active for one in services.step(NAMES, 5.0)] == ["active", "inactive"]
    assert services.step((PD.name,), 5.0)[0].name == PD.name, "only what is asked for"


def test_a_manager_that_does_not_answer_is_not_waited_for_nor_asked_again() -> None:
    hands = Hands()
    hands.may_answer.clear()
    services = Services(hands, hands, "/bin/sh")
    assert services.step(NAMES) == ()
    hands.now += 2 * EVERY
    assert services.step(NAMES) == () and len(hands.asked) == 1
    hands.may_answer.set()


def test_where_nobody_answers_it_is_asked_seldom() -> None:
    hands = Hands(None)
    services = Services(hands, hands, "/bin/sh")
    for _ in range(21):
        assert services.step(NAMES, 5.0) == ()
        hands.now += EVERY + 1
    assert len(hands.asked) == 2


@pytest.mark.parametrize(("answer", "systemctl"), [(None, "/bin/sh"), (SAID, "/nonexistent/systemctl")])
def test_without_systemd_nothing_is_known(answer: str | None, systemctl: str) -> None:
    hands = Hands(answer)
    assert Services(hands, hands, systemctl).step(NAMES, 5.0) == ()


def test_nothing_is_asked_of_nobody() -> None:
    hands = Hands()
    assert Services(hands, hands, "/bin/sh").step((), 5.0) == () and hands.asked == []
