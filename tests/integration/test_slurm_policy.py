"""Real Slurm and the policy: a drain that waits for the node to be idle, and a reboot that we ask for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.integration.support import Gates, executable, install_tree, require
from tests.simulated_node import SimulatedNode, until

SETTINGS = """interval: 500ms
health: {{recover: 2, settle: 0}}
scheduler: {{kind: slurm, slurm: {{conf: {conf}}}}}
policy: {{reboot: scheduler, drain_when: idle}}
"""


class Lab:
    """A node of two GPUs; its slurmd is told to reboot it by a program that leaves a file."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        tree = install_tree(directory)
        hooks = {
            name: executable(directory / name, f"exec {tree}/{name}/slurm --config {directory}/n1/config.yaml")
            for name in ("prolog", "epilog")
        }
        self.rebooted = directory / "rebooted"
        program = executable(directory / "reboot", f"echo $(id -un) >> {self.rebooted}")
        conf = f"RebootProgram={program}\nResumeTimeout=120\n"
        self.cluster = SlurmCluster(directory, ("n1",), 2, hooks["prolog"], hooks["epilog"], extra_conf=conf)
        (directory / "n1").mkdir(mode=0o755)
        settings = SETTINGS.format(conf=self.cluster.conf)
        self.node = SimulatedNode(directory / "n1", gpus=2, node="n1", settings=settings)
        self.gates = Gates(directory)
        stack.enter_context(self.cluster)

    def owners(self) -> list[str]:
        """Who holds units: scheduler and user."""
        owners = Store(Directory(str(self.node.state_dir))).owners().values()
        return [f"{owner.scheduler} {owner.user}" for owner in owners]


@pytest.fixture
def lab() -> Iterator[Lab]:
    require("slurm")
    with open_directory("gna-policy-") as directory, ExitStack() as stack:
        yield Lab(directory, stack)


def test_a_node_is_drained_and_rebooted_once_its_job_is_over_and_comes_back(lab: Lab) -> None:
    node, cluster = lab.node, lab.cluster
    with node.agent():
        gate, script = lab.gates.new()
        job = cluster.submit("alice", ["--gres=gpu:1"], script)
        until(lambda: "begun=yes" in cluster.output(job), "the job")
        node.scenario.lose(1)
        until(lambda: node.retired() == [1], "the retirement")
        until(lambda: " drain_waits " in node.log.read_text(), "the drain to wait")
        late = cluster.submit("bob", ["--gres=gpu:1", "--no-requeue"], "echo ran\n")
        assert cluster.wait_state(late) != "COMPLETED", "what is retired is refused"
        assert "ran" not in cluster.output(late)
        assert not cluster.node("n1").drained, "the node is in service meanwhile"
        assert cluster.state(job) == "RUNNING" and not lab.rebooted.exists()
        gate.touch()
        assert cluster.wait_state(job) == "COMPLETED"
        until(lab.rebooted.exists, "RebootProgram")
        assert lab.rebooted.read_text() == "root\n"
        found = cluster.node("n1")
        assert found.state.startswith("reboot") and found.reason.startswith("gpu-nodeagent/1: ")
        assert lab.owners() == ["maintenance reboot"] * 2
    cluster.kill_slurmd("n1")  # the boot: daemons are gone, the kernel is another, the GPU is there again
    boot_id = node.roots["proc"] / "sys/kernel/random/boot_id"
    boot_id.write_text(boot_id.read_text()[:-5] + "0000\n")
    with node.scenario.edit():
        node.scenario.heal()
    issued = datetime.fromisoformat(found.since)  # Slurm believes in a boot of a later second than that of its request
    until(lambda: datetime.now() > issued + timedelta(seconds=2), "the clock to go on")
    cluster.start_slurmd("n1", rebooted=True)
    with node.agent():
        assert lab.owners() == []
        until(lambda: node.retired() == [], "the GPU to be back in service")
        until(lambda: not (node.directory / "data" / "drained").exists(), "our drain to be forgotten")
        cluster.wait_node("n1", lambda seen: seen.state == "idle")
        again = cluster.submit("bob", ["--gres=gpu:2"], "echo ran\n")
        assert cluster.wait_state(again) == "COMPLETED"
    assert lab.rebooted.read_text() == "root\n", "once"
