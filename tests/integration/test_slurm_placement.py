"""A real Slurm of two hosts, set up with what `discover slurm` prints: it bundles, or it spreads, as was asked.

The example is IBM's (GTC 2017): three small jobs, and then one that needs all the GPUs of one node.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.integration.support import install_tree, require
from tests.integration.test_slurm import NODES, SETTINGS
from tests.simulated_node import SimulatedNode, until

SMALL, LARGE = ("--gres=gpu:1",), ("--gres=gpu:4",)


class Site:
    """Two nodes with an agent each, and a Slurm that has been told what `discover slurm` printed on them."""

    def __init__(self, directory: Path, placement: str, stack: ExitStack) -> None:
        self.nodes = {}
        agents = {}
        for name in NODES:
            (directory / name).mkdir(mode=0o755)
            node = self.nodes[name] = SimulatedNode(directory / name, gpus=4, node=name)
            agents[name] = stack.enter_context(node.agent())
        tree = install_tree(directory)
        words = ["discover", "slurm", "--placement", placement, "--hooks", str(tree), "--json"]
        said = {name: json.loads(node.ask(*words))["pieces"] for name, node in self.nodes.items()}
        pieces = {name: {piece["name"]: piece["text"] for piece in said[name]} for name in NODES}
        # Both daemons run on one host: the scripts are made in the test's directory, and choose the node's own path.
        scripts = pieces["n1"]["wrappers"].replace("/etc/slurm/", f"{directory}/")
        scripts = scripts.replace(f"{directory}/n1/", f"{directory}/$SLURMD_NODENAME/")
        subprocess.run(["/bin/sh", "-c", scripts], check=True)
        self.cluster = SlurmCluster(
            directory,
            NODES,
            gres="",
            gres_conf="\n".join(pieces[name]["gres"] for name in NODES) + "\n",
            node_words={name: pieces[name]["node"].partition(" ")[2] for name in NODES},
            partition_words=pieces["n1"]["partition"],
            extra_conf=pieces["n1"]["global"].replace("/etc/slurm/", f"{directory}/") + "\n",
        )
        stack.enter_context(self.cluster)
        for name, node in self.nodes.items():
            node.write_config(SETTINGS.format(slurm=self.cluster.settings, sets=directory / "sets"))
            node.reload(agents[name])
            until(lambda n=node: "config_reloaded" in n.log.read_text(), "hook.conf knows Slurm's GRES")

    def submit(self, *arguments: str) -> str:
        """Submit a job that stays, and return its id when Slurm has placed it, or said that it cannot."""
        job = self.cluster.submit("alice", list(arguments), "sleep 300\n")
        until(lambda: self.place(job) or self.cluster.job(job)["Reason"] == "Resources", f"job {job} considered")
        return job

    def place(self, job: str) -> str:
        """Return the node that a job runs on, empty while it runs on none."""
        found = self.cluster.job(job)
        return found["NodeList"] if found["JobState"] in ("RUNNING", "CONFIGURING") else ""

    def places(self, *jobs: str) -> list[str]:
        """Return where jobs run."""
        return [self.place(job) for job in jobs]

    def held(self) -> dict[str, int]:
        """Return how many GPUs of each node are locked."""
        return {name: len(node.holders()) for name, node in self.nodes.items()}

    def end(self) -> None:
        """End all jobs."""
        self.cluster.scancel("-u", "alice")
        until(lambda: self.held() == {"n1": 0, "n2": 0} and not self.cluster.squeue("-h"), "all free")


@contextmanager
def site(placement: str) -> Iterator[Site]:
    require("slurm")
    with open_directory("gna-place-") as directory, ExitStack() as stack:
        yield Site(directory, placement, stack)


def test_spread_uses_all_nodes_evenly_and_leaves_no_room_for_a_large_job() -> None:
    with site("spread") as slurm:
        small = [slurm.submit(*SMALL) for _ in range(3)]
        assert slurm.places(*small) == ["n1", "n2", "n1"]
        large = slurm.submit(*LARGE)
        assert slurm.place(large) == "", "five GPUs are free, and no four of one node"
        assert slurm.held() == {"n1": 2, "n2": 1}
        slurm.cluster.scancel(small[1])
        until(lambda: slurm.place(large) == "n2", "it was for want of one GPU only")


def test_bundle_keeps_a_node_for_the_large_job_whatever_cpus_are_in_use() -> None:
    with site("bundle") as slurm:
        small = [slurm.submit(*SMALL) for _ in range(3)]
        large = slurm.submit(*LARGE)
        assert slurm.places(*small, large) == ["n1", "n1", "n1", "n2"]
        until(lambda: slurm.held() == {"n1": 3, "n2": 4}, "the locks say so too")
        slurm.end()
        # Slurm's own best fit goes by idle CPUs: after this job it would put the next small ones beside it.
        first, cpus = slurm.submit(*SMALL), slurm.submit("-c4", "-w", "n2")
        small = [first, *(slurm.submit(*SMALL) for _ in range(2))]
        large = slurm.submit(*LARGE)
        assert slurm.places(cpus, *small, large) == ["n2", "n1", "n1", "n1", "n2"]
