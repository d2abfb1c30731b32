"""Controllers that stand still in the middle of a drain: `make soak` only, as each takes longer than a turn."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from nodeagent.config.model import Limits
from tests.integration.storm import Commands
from tests.integration.test_limit_gridengine import Lab as GridEngineLab
from tests.integration.test_limit_gridengine import cell_of_many
from tests.integration.test_limit_gridengine import lab as on_gridengine
from tests.integration.test_limit_slurm import Lab as SlurmLab
from tests.integration.test_limit_slurm import cluster
from tests.integration.test_limit_slurm import lab as on_slurm

DEADLINE = 90.0
AFTER_A_TURN = 180.0

__all__ = ["cell_of_many", "cluster", "on_gridengine", "on_slurm"]  # fixtures


def stands_still(
    lab: SlurmLab | GridEngineLab, send: Callable[[int], None], entrance: Sequence[str], more: int
) -> None:
    """Stop a controller (`send` it a signal) when the first agent is about to drain; let it go on after 75 s.

    That command lies there until after its turn, and so do those of all others, who ask all the while.
    """
    marker = lab.directory / "stopped"

    def commands(log: Path) -> Commands:
        return Commands(log, entrance, marker=marker, first=lambda: send(signal.SIGSTOP))

    with lab.storm(16, lab.config(Limits("1")), commands) as storm:
        try:
            stopped = storm.wait(marker.exists, "the controller stopped", DEADLINE)
            storm.wait(lambda: time.monotonic() - storm.began > stopped + 75, "longer than a turn", 100)
        finally:
            send(signal.SIGCONT)
        storm.wait(lab.drained, "one drained", AFTER_A_TURN)
        asked = len(storm.commands())
        storm.wait(lambda: len(storm.commands()) > asked + more, "the others asking again", AFTER_A_TURN)
    assert len(lab.drained()) == 1


@pytest.mark.timeout(400)
def test_a_slurmctld_that_stands_still_for_longer_than_a_turn_lets_no_more_go(on_slurm: SlurmLab) -> None:
    stands_still(on_slurm, on_slurm.cluster.kill_slurmctld, (), 64)


@pytest.mark.timeout(400)
def test_a_qmaster_that_stands_still_for_longer_than_a_turn_lets_no_more_go(on_gridengine: GridEngineLab) -> None:
    cluster = on_gridengine.cluster
    stands_still(on_gridengine, cluster.kill_qmaster, cluster.enter(cluster.host), 128)
