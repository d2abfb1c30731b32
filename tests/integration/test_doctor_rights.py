"""The doctor on rights, against real schedulers: as root and as a user, daemons up and down, and nothing changed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.clusters.cluster import Cluster
from tests.clusters.process import open_directory
from tests.clusters.slurm import SlurmCluster
from tests.integration.support import executable, install_tree, require
from tests.integration.test_gridengine import Lab
from tests.simulated_node import until

NODES = ("n1", "n2")
VOLATILE = ("CPULoad=", "FreeMem=", "LastBusyTime=")
States = dict[str, tuple[str, str]]


class Patient:
    """A node to be examined, on which every user can run the command."""

    def __init__(self, cluster: Cluster, config: Path) -> None:
        self.cluster = cluster
        self.config = config
        self._tree = cluster.directory / "libexec"

    def examine(self, user: str = "root") -> States:
        """Return state and evidence of each of the doctor's lines."""
        path = f"{self._tree}:{_modules(self.cluster.directory)}"
        argv = ["python3", "-B", "-m", "nodeagent.cli.main", "--config", str(self.config), "doctor", "--json"]
        answer = self.cluster.command(user, argv, env={"PYTHONPATH": path}, timeout=90)
        assert answer.returncode in (0, 1, 2), answer.stderr
        return {line["name"]: (line["state"], line["evidence"]) for line in json.loads(answer.stdout)["lines"]}


def _modules(directory: Path) -> Path:
    """Return a directory of the modules that the configuration's reader needs, which every user can read."""
    import yaml

    place = directory / "modules"
    if not place.exists():
        place.mkdir()
        os.symlink(Path(yaml.__file__).parent, place / "yaml")
    return place


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    """Slurm with two nodes and no hooks."""
    require("slurm")
    with open_directory("gna-doctor-") as directory, SlurmCluster(directory, nodes=NODES) as cluster:
        install_tree(directory)
        yield cluster


@pytest.fixture
def patient(slurm: SlurmCluster) -> Patient:
    return Patient(slurm, written(slurm, "n1"))


def written(slurm: SlurmCluster, node: str) -> Path:
    config = slurm.directory / f"{node}.yaml"
    place = slurm.directory / "own"
    config.write_text(
        f"state_dir: {place}/state\ndata_dir: {place}/data\nnode_name: {node}\n"
        f"scheduler: {{kind: slurm, slurm: {{conf: {slurm.conf}}}}}\n"
    )
    return config


def shown(slurm: SlurmCluster) -> list[str]:
    """What Slurm says of its nodes, once each has registered again after a change of its state."""

    def settled() -> str:
        said = slurm.scontrol("show", "node")
        return "" if "BootTime=None" in said or "NOT_RESPONDING" in said else said

    words = until(settled, "the nodes registered").split() + slurm.scontrol("show", "reservation").split()
    return [word for word in words if not word.startswith(VOLATILE)]


def test_root_may_drain_a_user_may_not_and_asking_changes_nothing(slurm: SlurmCluster, patient: Patient) -> None:
    slurm.scontrol("update", "nodename=n2", "state=drain", "reason=fan is loud")
    try:
        before = shown(slurm)
        root, alice = patient.examine(), patient.examine("alice")
        assert shown(slurm) == before and slurm.node("n2").reason == "fan is loud"
    finally:
        slurm.scontrol("update", "nodename=n2", "state=resume")
    for found in (root, alice):
        assert [found[f"slurm-{name}"][0] for name in ("commands", "controller", "node")] == ["ok"] * 3
    assert root["slurm-drain-right"] == ("ok", "root may drain and resume nodes")
    assert alice["slurm-drain-right"] == ("fail", "alice may not drain or resume nodes")
    refused = slurm.command("alice", ["scontrol", "update", "nodename=n1", "state=drain", "reason=x"])
    assert refused.returncode != 0, "and so it is"
    assert not slurm.node("n1").drained


def test_the_probe_is_refused_for_its_name_on_a_drained_node_too(slurm: SlurmCluster, patient: Patient) -> None:
    slurm.scontrol("update", "nodename=n1", "state=drain", "reason=fan is loud")
    try:
        before = shown(slurm)
        assert patient.examine()["slurm-drain-right"][0] == "ok"
        assert shown(slurm) == before and slurm.node("n1").reason == "fan is loud"
    finally:
        slurm.scontrol("update", "nodename=n1", "state=resume")


def test_a_node_that_the_controller_does_not_know(slurm: SlurmCluster) -> None:
    found = Patient(slurm, written(slurm, "n9")).examine()
    assert found["slurm-node"] == ("fail", "no node 'n9' is known")
    assert "slurm-drain-right" not in found


def test_a_controller_that_is_down(slurm: SlurmCluster, patient: Patient) -> None:
    slurm.kill_slurmctld(signal.SIGTERM)
    try:
        for user in ("root", "alice"):
            state, evidence = patient.examine(user)["slurm-controller"]
            assert state == "fail" and "does not answer" in evidence and "DOWN" in evidence
    finally:
        slurm.start_slurmctld()


def test_a_controller_that_hangs(slurm: SlurmCluster, patient: Patient) -> None:
    slurm.kill_slurmctld(signal.SIGSTOP)
    try:
        state, evidence = patient.examine()["slurm-controller"]
        assert state == "fail" and "does not answer" in evidence
    finally:
        slurm.kill_slurmctld(signal.SIGCONT)


def test_a_munge_that_is_down_is_told_from_a_controller_that_is(slurm: SlurmCluster, patient: Patient) -> None:
    socket = slurm.directory / "munge" / "socket"
    hidden = socket.with_name("hidden")
    os.rename(socket, hidden)
    try:
        state, evidence = patient.examine()["slurm-controller"]
        assert state == "fail" and "cannot prove who it is" in evidence and str(socket) in evidence
    finally:
        os.rename(hidden, socket)
    assert patient.examine()["slurm-controller"][0] == "ok"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Grid Engine with one host of four GPUs, an agent and its load sensor."""
    require("gridengine")
    with open_directory("gna-doctor-") as directory, ExitStack() as stack:
        yield Lab(directory, stack)


def dump(lab: Lab) -> dict[str, str]:
    """What the qmaster has been told: hosts, managers, operators, the queue and all configurations."""
    options = ("-sh", "-ss", "-sm", "-sel", "-sc", "-sconf", "-ssconf", "-sq all.q")
    found = {option: lab.cluster.qconf(*option.split()) for option in options}
    return {**found, "state": lab.cluster.queue_state(), "operators": operators(lab)}


def operators(lab: Lab) -> str:
    return lab.cluster.command("root", ["qconf", "-so"]).stdout


def test_what_root_and_a_user_may_do_with_grid_engine(lab: Lab) -> None:
    patient = Patient(lab.cluster, lab.node.config)
    before = dump(lab)
    root, alice = patient.examine(), patient.examine("alice")
    assert dump(lab) == before
    for found in (root, alice):
        well = ("commands", "qmaster", "admin-host", "queues", "load-sensor", "admin-user")
        assert {found[f"sge-{name}"][0] for name in well} == {"ok"}, found
        assert "hl:gpu_faulty=0" in found["sge-load-sensor"][1]
    assert root["sge-drain-right"][0] == "ok" and alice["sge-drain-right"][0] == "warn"
    queue = f"all.q@{lab.cluster.host}"
    refused = lab.cluster.command("alice", ["qmod", "-d", queue])
    assert refused.returncode != 0 and lab.cluster.queue_state() == ""
    lab.cluster.qconf("-ao", "alice")
    try:
        assert patient.examine("alice")["sge-drain-right"][0] == "ok"
        assert lab.cluster.command("alice", ["qmod", "-d", queue]).returncode == 0, "an operator's right is enough"
        assert lab.cluster.command("alice", ["qmod", "-e", queue]).returncode == 0
    finally:
        lab.cluster.qconf("-do", "alice")


def test_a_load_sensor_that_is_taken_away_and_set_again(lab: Lab) -> None:
    patient = Patient(lab.cluster, lab.node.config)
    lab.cluster.set_load_sensor(None)
    try:
        until(lambda: lab.value("gpu_faulty") is None, "its values gone")
        state, evidence = patient.examine()["sge-load-sensor"]
        assert state == "warn" and "there is none" in evidence
        lab.cluster.set_load_sensor(
            executable(lab.directory / "mute", "while read line; do echo begin; echo end; done")
        )
        state, evidence = patient.examine()["sge-load-sensor"]
        assert state == "fail" and "nothing of it is heard" in evidence
    finally:
        lab.cluster.set_load_sensor(lab.directory / "sensor")
    until(lambda: lab.value("gpu_faulty") is not None, "the load sensor's report")
    assert patient.examine()["sge-load-sensor"][0] == "ok"


def test_a_qmaster_that_is_down(lab: Lab) -> None:
    patient = Patient(lab.cluster, lab.node.config)
    lab.cluster.kill_qmaster(signal.SIGTERM)
    try:
        for user in ("root", "alice"):
            found = patient.examine(user)
            assert found["sge-qmaster"][0] == "fail" and "does not answer" in found["sge-qmaster"][1]
            assert found["sge-load-sensor"][0] == "warn"
    finally:
        lab.cluster.start_qmaster()


def test_daemons_that_work_as_another_user(lab: Lab) -> None:
    bootstrap = lab.cluster.root / "default/common/bootstrap"
    text = bootstrap.read_text()
    bootstrap.write_text(text.replace("admin_user root", "admin_user sgeadmin"))
    try:
        state, evidence = Patient(lab.cluster, lab.node.config).examine("alice")["sge-admin-user"]
        assert state == "warn" and "sgeadmin" in evidence
    finally:
        bootstrap.write_text(text)
