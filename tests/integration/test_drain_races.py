"""Draining and resuming against an administrator who does the same at random instants, on a real Slurm.

`scontrol update` has no compare-and-set (docs/decisions/0027-drains-beside-administrators.md): what comes between our
last look and our change, some milliseconds at most, can be overwritten. All else is proved here.
GPU_NODEAGENT_DRAIN_RACES is how many interleavings there are, GPU_NODEAGENT_DRAIN_RACE_SPREAD over how many seconds
the administrator's instants spread.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from nodeagent.config import model
from nodeagent.errors import NodeTaken
from nodeagent.scheduler.slurm import SlurmScheduler
from tests.clusters.process import open_directory
from tests.clusters.slurm import NodeState, SlurmCluster
from tests.integration.support import require
from tests.simulated_node import ROOT

RACES = int(os.environ.get("GPU_NODEAGENT_DRAIN_RACES", "40"))
SPREAD = float(os.environ.get("GPU_NODEAGENT_DRAIN_RACE_SPREAD", "0.1"))
OURS = "gpu-nodeagent/1: on n1: GPU 1 lost; since 2026-11-28T04:25:00Z; needs reboot_node"
WIDEST = 0.05
"""Seconds that a look and a change may lie apart on a machine that is very busy: half of SPREAD would be no proof."""


@dataclass(frozen=True)
class Race:
    """One interleaving: what our side came to, when it began and ended, the same of the administrator's, the end."""

    taken: bool
    began: float
    ended: float
    their_begin: float
    their_end: float
    reason: str
    node: NodeState

    @property
    def overlap(self) -> bool:
        """Whether the two were under way at the same time."""
        return self.their_begin < self.ended and self.began < self.their_end

    @property
    def lost(self) -> bool:
        """Whether the administrator's word does not stand."""
        return not (self.node.drained and self.node.reason == self.reason)


class Arena:
    """One node, our adapter, and an administrator in a process of their own."""

    def __init__(self, cluster: SlurmCluster, administrator: subprocess.Popen[str]) -> None:
        self.cluster = cluster
        slurm = model.Slurm(conf=str(cluster.conf))
        self.scheduler = SlurmScheduler(model.Config(scheduler=model.Scheduler("slurm", 30.0, slurm)), "n1")
        self._administrator = administrator

    def race(self, number: int, *, resume: bool) -> Race:
        """Drain, or resume what we drained, while the administrator drains at a random instant around it."""
        state = ("state=drain", f"reason={OURS}") if resume else ("state=resume",)
        self.cluster.command("root", ["scontrol", "update", "nodename=n1", *state])
        reason = f"fan {number} is loud"
        begin = time.monotonic() + SPREAD / 2 + 0.01
        instant = begin + random.uniform(-0.3, 0.7) * SPREAD  # noqa: S311  no secret
        words = [f"{instant}", "update", "nodename=n1", "state=drain", f"reason={reason}"]
        assert self._administrator.stdin is not None and self._administrator.stdout is not None
        self._administrator.stdin.write("\t".join(words) + "\n")
        self._administrator.stdin.flush()
        time.sleep(max(0.0, begin - time.monotonic()))
        began, taken = time.monotonic(), False
        try:
            if resume:
                self.scheduler.resume("node")
            else:
                self.scheduler.drain(OURS, "node")
        except NodeTaken:
            taken = True
        ended = time.monotonic()
        status, their_begin, their_end = self._administrator.stdout.readline().split("\t")
        assert status == "0"
        return Race(taken, began, ended, float(their_begin), float(their_end), reason, self.cluster.node("n1"))


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    """A node of a Slurm and an administrator."""
    require("slurm")
    with open_directory("gna-races-") as directory, ExitStack() as stack:
        cluster = stack.enter_context(SlurmCluster(directory, nodes=("n1",), gpus=2))
        administrator = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "tests.integration.administrator"],
                cwd=ROOT,
                env={**os.environ, **cluster.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        yield Arena(cluster, administrator)
        assert administrator.stdin is not None
        administrator.stdin.close()


@pytest.mark.timeout(120 + RACES)
@pytest.mark.parametrize("resume", [False, True], ids=["drain", "resume"])
def test_an_administrators_word_stands_but_for_the_instant_between_look_and_change(arena: Arena, resume: bool) -> None:
    races = [arena.race(number, resume=resume) for number in range(RACES)]
    lost = [race for race in races if race.lost]
    found = Counter("lost" if race.lost else "taken" if race.taken else "theirs came after ours" for race in races)
    window = len(lost) / len(races) * SPREAD
    print(f"{'resume' if resume else 'drain'}: {dict(found)} of {RACES}, a window of {window * 1e3:.1f} ms")
    assert all(race.overlap for race in lost), "who came before or after us was heard"
    assert not any(race.taken for race in lost), "where we stood back, their word stands"
    assert window < WIDEST
    assert found["taken"] and found["theirs came after ours"], "the interleavings were of both kinds"


def test_a_reason_of_any_form_that_stands_is_not_touched(arena: Arena) -> None:
    for reason in ("fan is loud", "a 'quoted' \"reason\" | with a pipe", "two\nlines", "scontrol: ", "State=IDLE"):
        arena.cluster.command("root", ["scontrol", "update", "nodename=n1", "state=resume"])
        arena.cluster.scontrol("update", "nodename=n1", "state=drain", f"reason={reason}")
        with pytest.raises(NodeTaken):
            arena.scheduler.drain(OURS, "node")
        with pytest.raises(NodeTaken):
            arena.scheduler.resume("node")
        assert arena.cluster.node("n1").reason == reason


def test_a_long_reason_of_ours_arrives_whole(arena: Arena) -> None:
    arena.cluster.command("root", ["scontrol", "update", "nodename=n1", "state=resume"])
    reason = f"gpu-nodeagent/1: {'GPU 0 lost … ' * 28}; needs reboot_node"
    arena.scheduler.drain(reason, "node")
    assert arena.cluster.node("n1").reason == reason
    arena.scheduler.resume("node")
    assert not arena.cluster.node("n1").drained
