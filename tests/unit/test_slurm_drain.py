"""Draining a node of Slurm while somebody else changes it: at each moment of the conversation, by a fake scontrol."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from nodeagent.errors import CommandFailed, NodeTaken
from nodeagent.scheduler.slurm_drain import drain, quotable, resume

OURS = "gpu-nodeagent/1: on n1: GPU 1 lost; since 2026-11-28T04:25:00Z; needs reboot_node"


class Scontrol:
    """A node as scontrol has it; `meddle` is done just before the line of that number (from 0) is carried out."""

    def __init__(self, state: str = "IDLE", reason: str = "") -> None:
        self.state = state
        self.reason = reason
        self.meddle: dict[int, Callable[[], None]] = {}
        self.lines = 0
        self.refusal = ""
        self.said = ""
        self.talks = 0

    def __call__(self) -> Scontrol:
        self.talks += 1
        return self

    def __enter__(self) -> Scontrol:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def complaints(self) -> str:
        said, self.said = self.said, ""
        return said

    def ask(self, *lines: str) -> list[str]:
        return [self._answer(line) for line in lines]

    def _answer(self, line: str) -> str:
        self.meddle.get(self.lines, lambda: None)()
        self.lines += 1
        if line.startswith("show node n1"):
            if not self.state:
                self.said = "Node n1 not found\n"
                return ""
            reason = f"   Reason={self.reason} [root@2026-11-28T04:27:01]\n" if self.reason else ""
            return f"NodeName=n1 Arch=x86_64\n   Gres=gpu:2\n   State={self.state} ThreadsPerCore=1\n{reason}\n"
        if self.refusal:
            self.said = self.refusal
            return ""
        # 24.11 keeps a reason in service unless it is said to be none, 22.05 does not
        found = re.fullmatch(r'update nodename=n1 state=(\w+) reason=(?:none|"([^"\n]*)")', line)
        assert found is not None, line
        self.put("IDLE+DRAIN" if found[1] == "drain" else "IDLE", found[2] or "")
        return ""

    def put(self, state: str, reason: str) -> None:
        self.state, self.reason = state, reason

    def put_back(self, reason: str) -> None:
        """What a drain by another process does."""
        self.put("IDLE+DRAIN", reason)


def test_a_free_node_is_drained_with_our_reason() -> None:
    scontrol = Scontrol()
    drain(scontrol, "n1", OURS, scontrol.put_back)
    assert (scontrol.state, scontrol.reason) == ("IDLE+DRAIN", OURS)


def test_our_own_reason_may_be_exchanged() -> None:
    scontrol = Scontrol("IDLE+DRAIN", "gpu-nodeagent/1: by hand")
    drain(scontrol, "n1", OURS, scontrol.put_back)
    assert scontrol.reason == OURS


@pytest.mark.parametrize("state", ["IDLE+DRAIN", "DOWN*", "MIXED+DRAIN", "FAIL"])
@pytest.mark.parametrize("reason", ["fan is loud", "two\nlines | of [theirs]", ""])
def test_a_node_that_somebody_else_has_is_not_touched(state: str, reason: str) -> None:
    scontrol = Scontrol(state, reason)
    with pytest.raises(NodeTaken) as taken:
        drain(scontrol, "n1", OURS, scontrol.put_back)
    assert taken.value.reason == scontrol.reason == reason and scontrol.state == state


SHOWS_AND_CHANGE = range(5)
"""Two looks, then look, change and look at once: the last look is number 4, the change number 3."""


@pytest.mark.parametrize("moment", SHOWS_AND_CHANGE)
def test_only_what_comes_between_the_last_look_and_the_change_is_lost(moment: int) -> None:
    scontrol = Scontrol()
    scontrol.meddle[moment] = lambda: scontrol.put("IDLE+DRAIN", "fan is loud")
    lost = moment == 3
    if lost:
        drain(scontrol, "n1", OURS, scontrol.put_back)
    else:
        with pytest.raises(NodeTaken, match="fan is loud"):
            drain(scontrol, "n1", OURS, scontrol.put_back)
    assert scontrol.reason == (OURS if lost else "fan is loud")


def test_words_that_were_overwritten_are_not_put_back_over_newer_ones() -> None:
    scontrol = Scontrol()
    scontrol.meddle[2] = lambda: scontrol.put("IDLE+DRAIN", "fan is loud")
    scontrol.meddle[4] = lambda: scontrol.put("IDLE+DRAIN", "fan is exchanged")
    with pytest.raises(NodeTaken):
        drain(scontrol, "n1", OURS, scontrol.put_back)
    assert scontrol.reason == "fan is exchanged"


@pytest.mark.parametrize("moment", SHOWS_AND_CHANGE)
def test_a_resume_gives_nothing_of_somebody_elses_back(moment: int) -> None:
    scontrol = Scontrol("IDLE+DRAIN", OURS)
    scontrol.meddle[moment] = lambda: scontrol.put("IDLE+DRAIN", "fan is loud")
    if moment in (3, 4):  # between the last look and the change; after the change they have drained an idle node
        resume(scontrol, "n1", scontrol.put_back)
    else:
        with pytest.raises(NodeTaken, match="fan is loud"):
            resume(scontrol, "n1", scontrol.put_back)
    assert (scontrol.reason == "fan is loud") is (moment != 3)


def test_a_node_that_is_in_service_already_is_not_resumed() -> None:
    scontrol = Scontrol()
    resume(scontrol, "n1", scontrol.put_back)
    assert scontrol.lines == 2


def test_a_change_that_is_refused_is_an_error_that_says_why() -> None:
    for change, scontrol in ((drain, Scontrol()), (resume, Scontrol("IDLE+DRAIN", OURS))):
        scontrol.refusal = "slurm_update error: Invalid user id\n"
        with pytest.raises(CommandFailed, match="Invalid user id"):
            drain(scontrol, "n1", OURS, scontrol.put_back) if change is drain else resume(
                scontrol, "n1", scontrol.put_back
            )


def test_a_node_that_slurm_does_not_know_is_an_error() -> None:
    with pytest.raises(CommandFailed, match="not found"):
        drain(Scontrol(""), "n1", OURS, print)


def test_a_reason_stands_between_quotes_on_one_line() -> None:
    assert quotable('a "b"\n c; rm -rf /') == "a 'b' c; rm -rf /"
