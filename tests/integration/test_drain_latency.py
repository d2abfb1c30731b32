"""From an XID in the NVML library to what administrators see of it in a real scheduler: the median of twenty.

An agent at rest, at its usual interval of 10 s, is woken by its event set: looking only in its turn it would take 5 s.
The clock runs from the moment at which the stand-in library has the event until the scheduler's own command shows it.
"""

from __future__ import annotations

import random
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.clusters.gridengine import GridEngineCluster
from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.clusters.slurm_release import RELEASES
from tests.integration.conftest import SlurmUsr
from tests.integration.support import require
from tests.integration.test_gridengine import Lab
from tests.simulated_node import SimulatedNode, until

pytestmark = pytest.mark.timeout(600)
TRIES = 20
LIMIT = 1.0
"""Seconds at the median."""
FELL_OFF_THE_BUS = 79
REST = (0.3, 2.0)
"""Seconds between an agent's first verdict and the XID."""
KEEP_ALL = "policy: {reboot_node: tell}\n"
"""Nothing is retired: beside a retired idle GPU XIDs come from the kernel log, and what is measured here is NVML."""
REPORT_TIME = 2
"""Seconds between two reports of the load sensor."""


def medians(what: str, took: list[float]) -> float:
    """Say what was measured, and return the median."""
    middle = statistics.median(took)
    print(f"{what}: median {middle:.3f} s, worst {max(took):.3f} s of {len(took)}")
    return middle


def until_seen(node: SimulatedNode, gpu: int, seen: Callable[[], bool]) -> float:
    """Send an XID to an agent at rest; return the seconds until it is seen."""
    time.sleep(random.uniform(*REST))  # noqa: S311  any moment, and none in step with anything
    began = time.monotonic()
    node.scenario.xid(gpu, FELL_OFF_THE_BUS)
    while not seen():
        assert time.monotonic() < began + 30, node.log.read_text()[-2000:]
    return time.monotonic() - began


def drains(node: SimulatedNode, drained: Callable[[], bool], reopen: Callable[[], object]) -> list[float]:
    """Return the seconds of twenty drains, each by an agent that knows nothing of those before."""
    took = []
    for at in range(TRIES):
        with node.agent():
            took.append(until_seen(node, at % 8, drained))
        for directory in (node.state_dir, node.directory / "data"):
            shutil.rmtree(directory)
        reopen()
        until(lambda: not drained(), "the node is in service again")
    return took


@pytest.mark.parametrize("release", RELEASES)
def test_slurm_shows_the_node_drained_within_a_second(release: str, slurm_usr: SlurmUsr) -> None:
    usr = slurm_usr(release)
    with open_directory("gna-latency-") as directory, SlurmCluster(directory, nodes=("n1",), usr=usr) as cluster:
        (directory / "node").mkdir(mode=0o755)
        settings = f"scheduler: {{kind: slurm, slurm: {{{cluster.settings}}}}}\n"
        node = SimulatedNode(directory / "node", node="n1", settings=settings)

        def drained() -> bool:
            return "DRAIN" in cluster.scontrol("show", "node", "n1").partition("State=")[2].split()[0]

        took = drains(node, drained, lambda: cluster.scontrol("update", "nodename=n1", "state=resume"))
    assert medians(f"Slurm {release}, XID to drained", took) < LIMIT


def test_grid_engine_shows_the_queue_disabled_within_a_second() -> None:
    require("gridengine")
    with open_directory("gna-latency-") as directory, GridEngineCluster(directory) as cluster:
        (directory / "node").mkdir(mode=0o755)
        own = cluster.environment
        sge = f"root: {own['SGE_ROOT']}, qmaster_port: {own['SGE_QMASTER_PORT']}, execd_port: {own['SGE_EXECD_PORT']}"
        settings = f"policy: {{reboot_node: drain}}\nscheduler: {{kind: sge, sge: {{{sge}}}}}\n"
        node = SimulatedNode(directory / "node", node=cluster.host, settings=settings)
        took = drains(node, lambda: "d" in cluster.queue_state(), lambda: cluster.qmod("-e", "*"))
    assert medians("Grid Engine, XID to state d", took) < LIMIT


def faults(lab: Lab, gpus: int) -> list[float]:
    """Return the seconds until the load sensor's number of faulty GPUs shows each of so many faults."""
    return [until_seen(lab.node, gpu, lambda gpu=gpu: lab.faulty() == gpu + 1) for gpu in range(gpus)]  # type: ignore[misc]


def test_the_load_sensor_tells_it_with_its_next_report() -> None:
    """Nothing is waited for but the report: at any moment between two of them, half of their distance."""
    require("gridengine")
    took: list[float] = []
    while len(took) < TRIES:
        with open_directory("gna-latency-") as directory, ExitStack() as stack:
            lab = Lab(directory, stack, offered=8, gpus=8, settings=KEEP_ALL)
            took += faults(lab, min(8, TRIES - len(took)))
    assert medians(f"load sensor asked each {REPORT_TIME} s, XID to qhost -F", took) < REPORT_TIME
