"""Real schedulers that are killed, frozen or cut off under a real agent: what is decided is done when they are back."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from nodeagent.config.load import load
from nodeagent.errors import NodeTaken
from nodeagent.scheduler.sge import SgeScheduler
from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.integration import test_gridengine
from tests.integration.support import executable, install_tree, require
from tests.simulated_node import SimulatedNode, until

SETTINGS = """interval: 0.5s
health: {{recover: 2, settle: 0s}}
hooks: {{verdict_max_age: 3s}}
scheduler: {{kind: slurm, command_timeout: 4s, slurm: {{conf: {conf}{more}}}}}
"""
ON_TIME = 2.5
"""Seconds that an agent's last word may be old at most, at an interval of 0.5 s."""


class SlurmLab:
    """One node of a Slurm with hooks; the agent is each test's own."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        tree = install_tree(directory)
        config = directory / "n1" / "config.yaml"
        hooks = {
            name: executable(directory / name, f"exec {tree}/{name}/slurm --config {config}")
            for name in ("prolog", "epilog")
        }
        self.cluster = SlurmCluster(directory, nodes=("n1",), gpus=4, **hooks)
        config.parent.mkdir(mode=0o755)
        self.node = SimulatedNode(config.parent, gpus=4, node="n1", settings=self.settings())
        stack.enter_context(self.cluster)

    def settings(self, more: str = "") -> str:
        """Return the node's settings, with `more` of Slurm's."""
        return SETTINGS.format(conf=self.cluster.conf, more=more)

    @property
    def drained(self) -> bool:
        """Whether Slurm has the node as drained."""
        return self.cluster.node("n1").drained

    def drains(self) -> int:
        """Return how often the controller was told to drain the node for us."""
        log = (self.cluster.logs / "slurmctld.log").read_text(errors="replace")
        return log.count("reason set to: gpu-nodeagent/1: ")

    def trouble(self) -> str:
        """Return what `status` says about the scheduler."""
        return str(self.node.status()["scheduler_problem"] or "")

    def drain_entries(self) -> list[str]:
        """Return what came of each drain, by the history."""
        entries = json.loads(self.node.ask("history", "--json"))["entries"]
        return [entry["after"] for entry in entries if entry["kind"] == "drain"]

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Take munge's socket away: nobody on this node can prove any more who they are."""
        socket = self.cluster.directory / "munge" / "socket"
        socket.rename(socket.with_suffix(".away"))
        try:
            yield
        finally:
            socket.with_suffix(".away").rename(socket)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the controller: it accepts connections and never answers."""
        self.cluster.kill_slurmctld(signal.SIGSTOP)
        try:
            yield
        finally:
            self.cluster.kill_slurmctld(signal.SIGCONT)


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmLab]:
    """Slurm with a node of four GPUs."""
    require("slurm")
    with open_directory("gna-away-") as directory, ExitStack() as stack:
        yield SlurmLab(directory, stack)


@pytest.fixture
def agent(slurm: SlurmLab) -> Iterator[subprocess.Popen[bytes]]:
    """An agent on the healthy node, which is healthy and in service again at the end."""
    with slurm.node.agent() as process:
        yield process
        with slurm.node.scenario.edit():
            slurm.node.scenario.heal()
            for gpu in range(4):
                slurm.node.scenario.reinitialise(gpu)
        until(lambda: not slurm.node.retired(), "nothing retired")
        until(lambda: not slurm.drained, "n1 in service", timeout=90)


def steadily(node: SimulatedNode, seconds: float) -> None:
    """See for some seconds that the agent keeps time and its metrics are served."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert node.status()["agent"]["age_s"] < ON_TIME
        with urlopen(f"{node.url()}/metrics", timeout=ON_TIME) as page:  # noqa: S310  our own agent
            assert b"gpu_nodeagent_gpu_retired{" in page.read()


def test_a_drain_waits_for_a_controller_that_was_killed_and_is_made_once_by_the_next_agent(slurm: SlurmLab) -> None:
    before = slurm.drains()
    slurm.cluster.kill_slurmctld()
    with slurm.node.agent():
        slurm.node.scenario.lose(1)
        until(lambda: slurm.node.retired() == [1], "GPU 1 retired")
        until(lambda: "a drain waits for it since" in slurm.trouble(), "the drain that waits")
        assert slurm.trouble().startswith(("silent", "unreachable"))
        steadily(slurm.node, 2)
    slurm.cluster.start_slurmctld()
    assert not slurm.drained
    job = slurm.cluster.submit("alice", ["--gres=gpu:4", "-w", "n1"], "echo ran\n")
    until(lambda: slurm.cluster.job(job).get("Restarts") == "1", "the prolog refuses with no agent there")
    assert slurm.cluster.output(job) == "" and not slurm.drained
    slurm.cluster.scancel(job)
    with slurm.node.agent():
        until(lambda: slurm.drained, "n1 drained", timeout=90)
        until(lambda: slurm.drain_entries()[-2:] == ["waits", "done"], "the history of both")
        assert not slurm.trouble() and slurm.drains() == before + 1
        slurm.node.scenario.heal(1)
        until(lambda: not slurm.drained, "n1 back in service", timeout=90)


@pytest.mark.usefixtures("agent")
def test_with_the_controller_frozen_the_agent_keeps_time_and_drops_what_is_over_before_it_wakes(
    slurm: SlurmLab,
) -> None:
    before = slurm.drains()
    with slurm.frozen():
        slurm.node.scenario.lose(2)
        until(lambda: "a drain waits for it since" in slurm.trouble(), "the drain that waits")
        assert slurm.trouble().startswith("silent")
        steadily(slurm.node, 3)
        slurm.node.scenario.heal(2)
        until(lambda: not slurm.node.retired(), "GPU 2 back")
        until(lambda: slurm.drain_entries()[-1] == "dropped", "the drain dropped")
    until(lambda: not slurm.trouble(), "the controller's answer", timeout=90)
    assert slurm.drains() == before and not slurm.drained


@pytest.mark.usefixtures("agent")
def test_a_munge_that_does_not_answer_is_told_by_its_name(slurm: SlurmLab) -> None:
    with slurm.cut_off():
        slurm.node.scenario.lose(0)
        until(lambda: slurm.trouble().startswith("authentication: munge"), "the trouble")
        assert "scheduler cannot be asked: authentication: munge" in slurm.node.ask("status")
        assert "scheduler_unavailable" in slurm.node.log.read_text()
    until(lambda: slurm.drained, "n1 drained", timeout=90)


def test_a_command_that_is_not_there_is_told_by_its_name(slurm: SlurmLab, agent: subprocess.Popen[bytes]) -> None:
    slurm.node.settings = slurm.settings(", bin_dir: /nowhere")
    slurm.node.write_config()
    slurm.node.reload(agent)
    try:
        slurm.node.scenario.lose(0)
        until(lambda: slurm.trouble().startswith("missing: "), "the trouble")
        assert "bin_dir" in slurm.trouble()
    finally:
        slurm.node.settings = slurm.settings()
        slurm.node.write_config()
        slurm.node.reload(agent)
    until(lambda: slurm.drained, "n1 drained", timeout=90)


def cycles(node: SimulatedNode, count: int) -> None:
    """Wait until the agent has looked so many times more."""
    for _ in range(count):
        seen = time.monotonic()
        until(lambda seen=seen: node.status()["agent"]["age_s"] < time.monotonic() - seen, "another look")  # type: ignore[misc]


@pytest.mark.usefixtures("agent")
def test_what_an_administrator_resumes_stays_in_service_until_a_fault_shows_again(slurm: SlurmLab) -> None:
    log = slurm.node.log
    slurm.node.scenario.lose(3)
    until(lambda: slurm.drained, "n1 drained")
    told = log.read_text().count("forget_drain")
    slurm.cluster.scontrol("update", "nodename=n1", "state=resume")
    until(lambda: log.read_text().count("forget_drain") == told + 1, "the agent sees it", timeout=60)
    cycles(slurm.node, 3)
    assert not slurm.drained and slurm.node.retired() == [3]
    slurm.node.scenario.heal(3)
    until(lambda: not slurm.node.retired(), "GPU 3 back")
    slurm.node.scenario.lose(3)
    until(lambda: slurm.drained, "n1 drained again")


# -- Grid Engine ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host() -> Iterator[test_gridengine.Lab]:
    """An exec host with an agent."""
    require("gridengine")
    with open_directory("gna-away-sge-") as directory, ExitStack() as stack:
        yield test_gridengine.Lab(directory, stack)


@contextmanager
def unfit(host: test_gridengine.Lab) -> Iterator[Callable[[], bool]]:
    """Make the driver unfit as a whole, which takes a host out; gives what says whether it is out."""
    host.node.scenario.fault("nvmlDeviceGetCount_v2", 18)
    host.node.scenario.fail_init(18)
    try:
        yield lambda: "d" in host.cluster.queue_state()
    finally:
        host.node.scenario.clear_faults()


def test_a_host_is_closed_when_the_qmaster_is_back(host: test_gridengine.Lab) -> None:
    cluster, node = host.cluster, host.node
    for away, back in (
        (cluster.kill_qmaster, cluster.start_qmaster),
        (lambda: cluster.kill_qmaster(signal.SIGSTOP), lambda: cluster.kill_qmaster(signal.SIGCONT)),
    ):
        away()
        with unfit(host) as is_out:
            until(lambda: "a drain waits for it since" in str(node.status()["scheduler_problem"]), "the drain waits")
            assert node.status()["agent"]["age_s"] < ON_TIME + 0.5
            back()
            until(is_out, "the host closed", timeout=90)
            until(lambda: (node.status()["drained"] or "").startswith("gpu-nodeagent/1: "), "the drain in the status")
        until(lambda: "d" not in cluster.queue_state(), "the host open", timeout=90)


def test_a_queue_that_somebody_enables_stays_enabled(host: test_gridengine.Lab) -> None:
    cluster, node = host.cluster, host.node
    with unfit(host) as is_out:
        until(is_out, "the host closed", timeout=90)
        cluster.qmod("-e", f"all.q@{cluster.host}")
        until(lambda: "only if a fault shows again" in node.log.read_text(), "the agent sees it", timeout=60)
        cycles(node, 3)
        assert not is_out()
    until(lambda: node.status()["node_verdict"] == "OK", "the driver is well")


def test_a_queue_that_somebody_disabled_just_before_us_stays_disabled(host: test_gridengine.Lab) -> None:
    cluster = host.cluster
    instance = f"all.q@{cluster.host}"
    scheduler = SgeScheduler(load(host.node.config).config, cluster.host)
    scope = scheduler.drain_scope()
    cluster.qmod("-d", instance)
    try:
        assert scope == instance
        with pytest.raises(NodeTaken):
            scheduler.drain("gpu-nodeagent/1: x", scope)
    finally:
        cluster.qmod("-e", instance)
    assert scheduler.drain("gpu-nodeagent/1: x", scope) == instance
    scheduler.resume(instance)
    assert "d" not in cluster.queue_state()  # the host may not have reported yet, after the qmaster was away
