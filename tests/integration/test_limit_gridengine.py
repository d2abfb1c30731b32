"""The limit on drained hosts under storms, on a real Grid Engine: many agents that decide at the same instant.

`GPU_NODEAGENT_STORM_NODES` sets how many hosts the last test has (24 by default; a soak does 50 of 100). Hosts are the
qmaster's: but for two of them no daemon runs there, and none is needed to disable their queues.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodeagent.config.model import Config, Limits, Scheduler, Sge
from nodeagent.scheduler.sge import SgeScheduler
from nodeagent.scheduler.sge_turn import DRAINED, TURN
from nodeagent.scheduler.turn import NotOurTurn
from tests.clusters import gridengine_cell as cell
from tests.clusters.gridengine import QUEUE, GridEngineCluster
from tests.clusters.process import open_directory
from tests.integration.storm import Commands, Storm, busiest, report
from tests.integration.support import require

STORM = min(50, int(os.environ.get("GPU_NODEAGENT_STORM_NODES", "24")))
REAL = ("node1", "node2")
FURTHER = tuple(f"h{i}" for i in range(1, max(STORM, 16) - len(REAL) + 1))
EXEC_HOST = """\
hostname {}
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
"""
GROUP = "group_name {}\nhostlist {}\n"
DEADLINE = 90.0
AFTER_A_DEATH = 240.0
WATCHED = 60.0
"""Seconds for which the last test goes on when the limit is reached; a node asks again within a minute."""


class Lab:
    """A cell, and what is disabled in it."""

    def __init__(self, directory: Path, cluster: GridEngineCluster) -> None:
        self.directory = directory
        self.cluster = cluster
        self._storms = 0

    def add(self, option: str, text: str) -> None:
        """`qconf OPTION FILE`."""
        path = self.directory / "object"
        path.write_text(text)
        self.cluster.qconf(option, str(path))

    def config(self, limits: Limits, interval: float = 1.0) -> Config:
        """The agents' configuration."""
        said = self.cluster.environment
        ports = int(said["SGE_QMASTER_PORT"]), int(said["SGE_EXECD_PORT"])
        sge = Sge(root=said["SGE_ROOT"], arch=cell.ARCHITECTURE, qmaster_port=ports[0], execd_port=ports[1])
        return Config(interval=interval, limits=limits, scheduler=Scheduler(kind="sge", sge=sge))

    def commands(self, log: Path, **trouble: float) -> Commands:
        """Commands of an agent on the qmaster's host, where the others' names are known too."""
        return Commands(log, self.cluster.enter(self.cluster.host), **trouble)

    def scheduler(self, host: str, limits: Limits) -> SgeScheduler:
        """What an agent on that host has."""
        return SgeScheduler(self.config(limits), host, self.commands(self.directory / "commands"))

    def storm(self, hosts: int, config: Config, commands: Callable[[Path], Commands] | None = None) -> Storm:
        """A storm of so many hosts."""
        self._storms += 1
        place = self.directory / f"storm{self._storms}"
        return Storm(place, (*REAL, *FURTHER)[:hosts], config, commands or self.commands)

    def drained(self) -> set[str]:
        """The hosts whose queue is disabled."""
        done = self.cluster.command("root", ["qselect", "-qs", "d"])
        return {queue.partition("@")[2] for queue in done.stdout.split()}

    def objects(self) -> set[str]:
        """The names of all checkpointing interfaces."""
        return set(self.cluster.command("root", ["qconf", "-sckptl"]).stdout.split())

    def resume(self) -> None:
        """Give all hosts back, and the turn."""
        self.cluster.qmod("-e", f"{QUEUE}@*")
        for name in self.objects():
            self.cluster.qconf("-dckpt", name)


@pytest.fixture(scope="module")
def cell_of_many() -> Iterator[Lab]:
    """Grid Engine with two exec daemons and more exec hosts without."""
    require("gridengine")
    with open_directory("gna-limit-") as directory, GridEngineCluster(directory, hosts=REAL) as cluster:
        with (directory / "hosts").open("a") as hosts:
            hosts.writelines(f"10.99.1.{at} {name}\n" for at, name in enumerate(FURTHER, 1))
        lab = Lab(directory, cluster)
        for name in FURTHER:
            lab.add("-Ae", EXEC_HOST.format(name))
        cluster.qconf("-aattr", "queue", "hostlist", " ".join(FURTHER), QUEUE)
        yield lab


@pytest.fixture
def lab(cell_of_many: Lab) -> Iterator[Lab]:
    """The cell with nothing disabled and nobody's turn."""
    yield cell_of_many
    cell_of_many.resume()


def test_a_turn_is_one_hosts_and_a_drain_is_noted(lab: Lab) -> None:
    one, other = (lab.scheduler(host, Limits(window=3600.0)) for host in REAL)
    with one.turn() as turn:
        turn.spend()
        noted = next(name for name in lab.objects() if name.startswith(DRAINED))
        assert lab.objects() == {TURN, noted} and noted.endswith("-node1")
        with pytest.raises(NotOurTurn), other.turn():
            raise AssertionError("two turns at once")
        job = lab.cluster.submit("alice", ["-l", "gpu=4,h=node2"])
        lab.cluster.wait_job_gone(job)
    assert lab.objects() == {noted}
    assert [fleet.drained_by_us for fleet in other.fleets()] == [1]
    assert [fleet.drained_by_us for fleet in one.fleets()] == [0], "it may be drained again itself"


def test_each_host_group_is_counted(lab: Lab) -> None:
    lab.add("-Ahgrp", GROUP.format("@few", "node1 h1 h2"))
    lab.add("-Ahgrp", GROUP.format("@more", "@few h3"))
    lab.add("-Ahgrp", GROUP.format("@others", "h4"))
    lab.cluster.qmod("-d", f"{QUEUE}@h2", f"{QUEUE}@h3", f"{QUEUE}@h4")
    fleets = lab.scheduler("node1", Limits(per="hostgroup")).fleets()
    counted = {fleet.name: (fleet.nodes, fleet.drained_by_us) for fleet in fleets}
    assert counted == {"host group @few": (3, 1), "host group @more": (4, 2)}


def test_of_sixteen_that_decide_at_once_as_many_go_as_may(lab: Lab) -> None:
    for limit in (1, 4, 4):
        with lab.storm(16, lab.config(Limits(str(limit)))) as storm:
            storm.wait(lambda: len(lab.drained()) >= limit, f"{limit} hosts drained", DEADLINE)  # noqa: B023
            asked = len(storm.commands())
            storm.wait(lambda: len(storm.commands()) > asked + 64, "the others asking again", DEADLINE)  # noqa: B023
        assert len(lab.drained()) == limit
        assert lab.objects() == set(), "every turn was given back"
        lab.resume()


@pytest.mark.timeout(400)
def test_slow_and_failing_commands_let_no_more_go(lab: Lab) -> None:
    """A turn that could not be given back keeps the others waiting till it ends."""

    def commands(log: Path) -> Commands:
        return lab.commands(log, slow=0.3, failing=0.05)

    with lab.storm(16, lab.config(Limits("3")), commands) as storm:
        storm.wait(lambda: len(lab.drained()) >= 3, "3 hosts drained", AFTER_A_DEATH)
        asked = len(storm.commands())
        storm.wait(lambda: len(storm.commands()) > asked + 64, "the others asking again", DEADLINE)
    assert len(lab.drained()) == 3


@pytest.mark.timeout(400)
def test_one_that_is_killed_in_its_turn_keeps_the_others_from_it_until_that_ends(lab: Lab) -> None:
    marker = lab.directory / "killed"

    def commands(log: Path) -> Commands:
        return Commands(log, lab.cluster.enter(lab.cluster.host), marker=marker)

    with lab.storm(16, lab.config(Limits("3")), commands) as storm:
        storm.wait(marker.exists, "one killed", DEADLINE)
        killed = storm.wait(storm.killed, "its end", DEADLINE)
        assert lab.objects() == {TURN}
        took = storm.wait(lambda: len(lab.drained()) >= 3, "3 other hosts drained", AFTER_A_DEATH)
        asked = len(storm.commands())
        storm.wait(lambda: len(storm.commands()) > asked + 64, "the others asking again", DEADLINE)
        [dead] = storm.killed()
    assert 50 < took - killed, "nobody drained within the minute of the dead one"
    assert len(lab.drained()) == 3 and dead not in lab.drained()
    assert lab.objects() == set(), "what the dead one left is gone"
    print(f"killed after {killed:.1f} s, all drained after {took:.1f} s")


@pytest.mark.timeout(600)
def test_a_storm_of_all_hosts_does_not_load_the_qmaster(lab: Lab) -> None:
    """With the settings as they come: a tenth of the hosts, a cycle of ten seconds."""
    config = lab.config(Limits(), interval=Config.interval)
    most = -(-(len(REAL) + len(FURTHER)) // 10)
    with lab.storm(STORM, config) as storm:
        took = storm.wait(lambda: len(lab.drained()) >= most, f"{most} hosts drained", 120)
        storm.wait(lambda: storm.commands()[-1][0] > took + WATCHED, "what they ask then", 200)
        commands = storm.commands()
    assert len(lab.drained()) == most
    print(f"{most} drained after {took:.1f} s; {report(commands, STORM)}")
    assert busiest(commands, 10.0) <= 14 + 10, "the commands of one drain at once, else one a second"
    quiet = [at for at, _, _ in commands if at > took + 15]
    assert len(quiet) / (WATCHED - 15) < 8, "all together few a second when the limit is reached"
