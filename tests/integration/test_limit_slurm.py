"""The limit on drained nodes under storms, on a real Slurm: many agents that decide at the same instant.

`GPU_NODEAGENT_STORM_NODES` sets how many nodes the last test has (24 by default; a soak does 100).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeagent.config.model import Config, Limits, Scheduler, Slurm
from nodeagent.scheduler.slurm import SlurmScheduler
from nodeagent.scheduler.slurm_turn import DRAINED, TURN
from nodeagent.scheduler.turn import NotOurTurn
from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.integration.storm import Commands, Storm, busiest, report
from tests.integration.support import require

STORM = int(os.environ.get("GPU_NODEAGENT_STORM_NODES", "24"))
REAL = ("n1", "n2")
FURTHER = tuple(f"m{i}" for i in range(1, max(STORM, 16) - len(REAL) + 1))
"""Nodes that the controller has and no daemon serves: draining one needs none."""
DEADLINE = 60.0
AFTER_A_DEATH = 240.0
WATCHED = 60.0
"""Seconds for which the last test goes on when the limit is reached; a node asks again within a minute."""


class Lab:
    """A cluster, and what is drained in it."""

    def __init__(self, directory: Path, cluster: SlurmCluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self._storms = 0

    def config(self, limits: Limits, interval: float = 1.0) -> Config:
        """The agents' configuration."""
        slurm = Slurm(conf=str(self.cluster.conf))
        return Config(interval=interval, limits=limits, scheduler=Scheduler(kind="slurm", slurm=slurm))

    def storm(self, nodes: int, config: Config, commands: Callable[[Path], Commands] = Commands) -> Storm:
        """A storm of so many nodes."""
        self._storms += 1
        return Storm(self.directory / f"storm{self._storms}", (*REAL, *FURTHER)[:nodes], config, commands)

    def drained(self) -> set[str]:
        """The nodes that are drained by us."""
        said = self.cluster.sinfo("-N", "-h", "-p", "fleet", "-o", "%N|%T|%E")
        rows = (line.split("|", 2) for line in said.splitlines())
        return {node for node, state, reason in rows if "drain" in state and reason.startswith("gpu-nodeagent/1: ")}

    def reservations(self) -> set[str]:
        """Their names."""
        return set(re.findall(r"^ReservationName=(\S+)", self.cluster.scontrol("-o", "show", "reservation"), re.M))

    def resume(self) -> None:
        """Give all nodes back, and the turn."""
        for node in self.drained():
            self.cluster.scontrol("update", f"nodename={node}", "state=resume")
        for name in self.reservations():
            self.cluster.scontrol("delete", f"reservationname={name}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Lab]:
    """Slurm with two node daemons and more nodes without."""
    require("slurm")
    words = "NodeHostname=elsewhere NodeAddr=127.0.0.1 Gres=gpu:4 State=DOWN"
    nodes = "".join(f"NodeName={node} Port={1024 + at} {words}\n" for at, node in enumerate(FURTHER))
    extra = f"{nodes}PartitionName=fleet Nodes={','.join((*REAL, *FURTHER))} State=UP\nSlurmdTimeout=0\n"
    with open_directory("gna-limit-") as directory, SlurmCluster(directory, nodes=REAL, extra_conf=extra) as cluster:
        cluster.scontrol("update", f"nodename={','.join(FURTHER)}", "state=resume")  # to idle, though nobody answers
        yield Lab(directory, cluster)


@pytest.fixture
def lab(cluster: Lab) -> Iterator[Lab]:
    """The cluster with nothing drained and nobody's turn."""
    yield cluster
    cluster.resume()


def test_a_turn_takes_nothing_from_anybody(lab: Lab) -> None:
    config = lab.config(Limits(window=3600.0))
    one, other = (SlurmScheduler(config, node) for node in REAL)
    with one.turn() as turn:
        turn.spend()
        assert lab.reservations() == {TURN, DRAINED + "n1"}
        with pytest.raises(NotOurTurn), other.turn():
            raise AssertionError("two turns at once")
        jobs = [lab.cluster.submit("alice", ["-w", node, "--exclusive", "--gres=gpu:4"]) for node in REAL]
        assert [lab.cluster.wait_state(job) for job in jobs] == ["COMPLETED", "COMPLETED"]
    assert lab.reservations() == {DRAINED + "n1"}
    assert {fleet.name: fleet.drained_by_us for fleet in other.fleets()} == {"partition main": 1, "partition fleet": 1}
    assert [fleet.drained_by_us for fleet in one.fleets()] == [0, 0], "it may be drained again itself"


def test_of_sixteen_that_decide_at_once_as_many_go_as_may(lab: Lab) -> None:
    for limit in (1, 4, 4):
        with lab.storm(16, lab.config(Limits(str(limit)))) as storm:
            storm.wait(lambda: len(lab.drained()) >= limit, f"{limit} nodes drained", DEADLINE)  # noqa: B023
            asked = len(storm.commands())
            storm.wait(lambda: len(storm.commands()) > asked + 32, "the others asking again", DEADLINE)  # noqa: B023
        assert len(lab.drained()) == limit
        assert lab.reservations() == set(), "every turn was given back"
        lab.resume()


@pytest.mark.timeout(400)
def test_slow_and_failing_commands_let_no_more_go(lab: Lab) -> None:
    """A turn that could not be given back keeps the others waiting till it ends."""

    def commands(log: Path) -> Commands:
        return Commands(log, slow=0.5, failing=0.1)

    with lab.storm(16, lab.config(Limits("3")), commands) as storm:
        storm.wait(lambda: len(lab.drained()) >= 3, "3 nodes drained", AFTER_A_DEATH)
        asked = len(storm.commands())
        storm.wait(lambda: len(storm.commands()) > asked + 32, "the others asking again", DEADLINE)
    assert len(lab.drained()) == 3


@pytest.mark.timeout(400)
def test_one_that_is_killed_in_its_turn_keeps_the_others_from_it_until_that_ends(lab: Lab) -> None:
    marker = lab.directory / "killed"

    def commands(log: Path) -> Commands:
        return Commands(log, marker=marker)

    with lab.storm(16, lab.config(Limits("3")), commands) as storm:
        storm.wait(marker.exists, "one killed", DEADLINE)
        killed = storm.wait(storm.killed, "its end", DEADLINE)
        assert lab.reservations() == {TURN}
        took = storm.wait(lambda: len(lab.drained()) >= 3, "3 other nodes drained", AFTER_A_DEATH)
        asked = len(storm.commands())
        storm.wait(lambda: len(storm.commands()) > asked + 32, "the others asking again", DEADLINE)
        [dead] = storm.killed()
    assert 50 < took - killed, "nobody drained within the minute of the dead one"
    assert len(lab.drained()) == 3 and dead not in lab.drained()
    print(f"killed after {killed:.1f} s, all drained after {took:.1f} s")


@pytest.mark.timeout(600)
def test_a_storm_of_all_nodes_does_not_load_the_controller(lab: Lab) -> None:
    """With the settings as they come: a tenth of the nodes, a cycle of ten seconds."""
    config = lab.config(Limits(), interval=Config.interval)
    most = -(-STORM // 10)
    lab.cluster.checked("sdiag", "--reset")
    with lab.storm(STORM, config) as storm:
        took = storm.wait(lambda: len(lab.drained()) >= most, f"{most} nodes drained", 120)
        storm.wait(lambda: storm.commands()[-1][0] > took + WATCHED, "what they ask then", 200)
        commands = storm.commands()
    assert len(lab.drained()) == most
    told = lab.cluster.checked("sdiag").partition("by message type")[2].partition("by user")[0]
    calls = sum(int(count) for count in re.findall(r"count:(\d+)", told))
    print(f"{most} drained after {took:.1f} s; {report(commands, STORM)}; {calls} calls at slurmctld")
    assert busiest(commands, 10.0) <= 12 + 10, "the commands of one drain at once, else one a second"
    quiet = [at for at, _, _ in commands if at > took + 15]
    assert len(quiet) / (WATCHED - 15) < 5, "all together few a second when the limit is reached"
