"""Real Slurm that shares GPUs out by shards, and gives MIG instances: what it grants is recorded unit by unit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.integration.support import Gates, executable, install_tree, require, variables
from tests.simnvml import fake_roots
from tests.simulated_node import SimulatedNode, until

SETTINGS = """interval: 1s
hooks: {{verdict_max_age: 3s}}
scheduler: {{kind: slurm, slurm: {{conf: {conf}}}}}
"""
SHARDS, CUT = "n1", "n2"
GPUS = 3
SHARDS_A_GPU = 2


class Lab:
    """A node with two shards a GPU, and one whose last GPU is cut in two; an agent on each."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        tree = install_tree(directory)
        hooks = {
            name: executable(directory / name, f"exec {tree}/{stub} --config {directory}/$SLURMD_NODENAME/config.yaml")
            for name, stub in (
                ("prolog", "prolog/slurm"),
                ("epilog", "epilog/slurm"),
                ("task_prolog", "prolog/slurm-task"),
            )
        }
        self.nodes: dict[str, SimulatedNode] = {}
        for name in (SHARDS, CUT):
            (directory / name).mkdir(mode=0o755)
            settings = SETTINGS.format(conf=directory / "slurm.conf")
            self.nodes[name] = SimulatedNode(directory / name, gpus=GPUS, node=name, settings=settings)
        cut = self.nodes[CUT]
        self.instances = cut.scenario.mig(GPUS - 1, ["3g.40gb", "3g.40gb"])
        dev = fake_roots(cut.directory / "roots", cut.scenario)["dev"]
        caps = sorted(int(path.name[len("nvidia-cap") :]) for path in (dev / "nvidia-caps").iterdir())
        first, second = [cap for cap in caps if cap > 2][:2], [cap for cap in caps if cap > 2][2:]  # noqa: PLR2004  1 and 2 are the driver's own
        whole = self.nodes[SHARDS].roots["dev"]
        lines = [
            f"NodeName={SHARDS} Name=gpu File={whole}/nvidia[0-{GPUS - 1}]",
            f"NodeName={SHARDS} Name=shard Count={GPUS * SHARDS_A_GPU}",
            f"NodeName={CUT} Name=gpu File={dev}/nvidia[0-{GPUS - 2}]",
            *(
                f"NodeName={CUT} Name=gpu MultipleFiles="
                + ",".join([f"{dev}/nvidia{GPUS - 1}", *(f"{dev}/nvidia-caps/nvidia-cap{cap}" for cap in caps)])
                for caps in (first, second)
            ),
        ]
        self.cluster = SlurmCluster(
            directory,
            nodes=(SHARDS, CUT),
            gres={SHARDS: f"gpu:{GPUS},shard:{GPUS * SHARDS_A_GPU}", CUT: f"gpu:{GPUS + 1}"},
            gres_conf="".join(f"{line}\n" for line in lines),
            **hooks,
        )
        stack.enter_context(self.cluster)
        for node in self.nodes.values():
            stack.enter_context(node.agent())
        self.gates = Gates(directory)

    def begin(self, *arguments: str) -> tuple[str, Path]:
        """Submit a job that runs until its gate exists; returns when it has begun."""
        gate, script = self.gates.new()
        job = self.cluster.submit("alice", list(arguments), script)
        until(lambda: "begun=yes" in self.cluster.output(job), f"job {job} begins")
        return job, gate

    def seen(self, job: str) -> dict[str, str]:
        """Return a job's environment."""
        return variables(self.cluster.output(job))

    def held(self, node: str) -> dict[str, str]:
        """Return unit → job."""
        locks = json_of(self.nodes[node], "locks")["locks"]
        return {lock["unit"]: lock["job"] for lock in locks}


def json_of(node: SimulatedNode, *words: str) -> dict[str, list[dict[str, str]]]:
    """Return what a command prints as JSON."""
    found: dict[str, list[dict[str, str]]] = json.loads(node.ask(*words, "--json"))
    return found


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The cluster, for all tests of this module."""
    require("slurm")
    with open_directory("gna-units-") as directory, ExitStack() as stack:
        yield Lab(directory, stack)


@pytest.fixture(autouse=True)
def idle(lab: Lab) -> Iterator[None]:
    """Each test leaves both nodes without jobs and locks."""
    yield
    lab.gates.open_all()
    until(lambda: not lab.held(SHARDS) and not lab.held(CUT), "all units free")


def test_jobs_on_shards_hold_shares_of_the_gpus_that_slurm_gave_them(lab: Lab) -> None:
    node = lab.nodes[SHARDS]
    jobs = [lab.begin("--gres=gpu:1", "-w", SHARDS)[0]]
    jobs += [lab.begin("--gres=shard:1", "-w", SHARDS)[0] for _ in range(2 * SHARDS_A_GPU)]
    held = lab.held(SHARDS)
    assert sorted(held.values()) == sorted(jobs)
    for unit, job in held.items():
        gpu, _, number = unit.partition("@")
        index = int(lab.seen(job)["CUDA_VISIBLE_DEVICES"])
        assert gpu == node.scenario.uuid(index)
        assert int(number) in range(SHARDS_A_GPU)
    holders = {gpu["index"]: len(gpu["holders"]) for gpu in node.status()["gpus"]}
    assert sorted(holders.values()) == [1, 2, 2]
    assert "kind=conflict" not in node.log.read_text() and "kind=unmapped" not in node.log.read_text()


def test_jobs_on_instances_hold_them_and_see_their_uuids(lab: Lab) -> None:
    node = lab.nodes[CUT]
    jobs = [lab.begin("--gres=gpu:1", "-w", CUT)[0] for _ in range(GPUS + 1)]
    held = lab.held(CUT)
    uuids = [node.scenario.uuid(index) for index in range(GPUS - 1)]
    assert sorted(held) == sorted([*uuids, *lab.instances]) and sorted(held.values()) == sorted(jobs)
    for unit, job in held.items():
        visible = lab.seen(job)["CUDA_VISIBLE_DEVICES"]
        assert visible == (unit if unit in lab.instances else str(uuids.index(unit)))
    lab.cluster.scancel(held[lab.instances[1]])
    until(lambda: lab.instances[1] not in lab.held(CUT), "the instance is free")
    assert set(lab.held(CUT)) == {*uuids, lab.instances[0]}
    assert "kind=conflict" not in node.log.read_text() and "kind=unmapped" not in node.log.read_text()


def test_a_whole_gpu_that_slurm_gives_away_over_its_shards_is_told(lab: Lab) -> None:
    """22.05.8 does that; a release that does not gives another GPU, and that is recorded."""
    node = lab.nodes[SHARDS]
    sharers = [lab.begin("--gres=shard:1", "-w", SHARDS)[0] for _ in range(SHARDS_A_GPU)]
    job, _ = lab.begin("--gres=gpu:1", "-w", SHARDS)
    gpu = node.scenario.uuid(int(lab.seen(job)["SLURM_JOB_GPUS"]))
    on_it = [holder for unit, holder in lab.held(SHARDS).items() if unit.startswith(gpu)]
    assert on_it in ([job], sharers)
    if on_it != [job]:
        until(lambda: f"job={job}" in _conflicts(node), "the conflict is told")


def _conflicts(node: SimulatedNode) -> str:
    return "".join(line for line in node.log.read_text().splitlines() if "kind=conflict" in line)
