"""An administrator's commands under real Slurm: --dry-run says what is then done and changes nothing; maintenance."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.clusters.process import open_directory
from tests.integration.support import require
from tests.integration.test_slurm import Lab
from tests.simulated_node import SimulatedNode, until


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Slurm with two nodes of four GPUs each."""
    require("slurm")
    with open_directory("gna-hand-") as directory, ExitStack() as stack:
        yield Lab(directory, stack)


@pytest.fixture(autouse=True)
def tidied(lab: Lab) -> Iterator[None]:
    """Each test leaves both nodes healthy and in service."""
    yield
    lab.gates.open_all()
    for name, node in lab.nodes.items():
        node.call("maintenance", "off")
        with node.scenario.edit():
            node.scenario.clear_faults()
            node.scenario.heal()
        for index in node.retired():
            node.call("restore", str(index))
        if lab.cluster.node(name).drained:
            node.call("resume")
        until(lambda n=node: not n.retired(), f"{name}: nothing retired")
        until(lambda n=name: not lab.cluster.node(n).drained, f"{name} in service")
    until(lab.all_free, "all units free")


@contextmanager
def resting(lab: Lab) -> Iterator[None]:
    """Stop n1's agent, so that what changes in its files is a command's doing."""
    lab.agents["n1"].send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        lab.agents["n1"].send_signal(signal.SIGCONT)


def everything(lab: Lab) -> tuple[dict[str, tuple[int, bytes]], str]:
    """All of n1's files with what is in them, and what Slurm says of the nodes."""
    places = [lab.nodes["n1"].state_dir, lab.nodes["n1"].directory / "data"]
    files = {
        str(path): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for place in places
        for path in [place, *place.rglob("*")]
        if not path.is_socket() and not path.is_fifo()
    }
    told = lab.cluster.scontrol("show", "node", "-o") + lab.cluster.scontrol("show", "reservation")
    return files, "\n".join(word for word in told.split() if not word.startswith(("CPULoad=", "FreeMem=")))


def deed(node: SimulatedNode, *words: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(node.call(*words, "--json").stdout)
    assert answer["schema"] == "gpu-nodeagent/deed/1" and answer["node"] == "n1"
    return answer


def metric(node: SimulatedNode, name: str) -> float:
    with urllib.request.urlopen(f"{node.url()}/metrics") as page:
        lines = page.read().decode().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"gpu_nodeagent_{name} ")))


DEEDS: Sequence[Sequence[str]] = (
    ("retire", "1", "--reason", "fan is loud"),
    ("restore", "2"),
    ("drain", "--reason", "fan is loud"),
    ("resume",),
    ("maintenance", "on", "--reason", "new fans", "--for", "2h", "--drain"),
    ("maintenance", "off"),
)


def test_a_dry_run_changes_no_file_and_nothing_in_slurm(lab: Lab) -> None:
    node = lab.nodes["n1"]
    node.call("retire", "2", "--reason", "smells")
    until(lambda: lab.cluster.node("n1").drained, "the agent's drain")
    node.call("maintenance", "on", "--reason", "a look")
    with resting(lab):
        before = everything(lab)
        for words in DEEDS:
            answer = node.call(*words, "--dry-run")
            assert answer.returncode == 0, answer.stderr
            assert answer.stdout.rstrip().endswith("nothing was changed")
            plain = deed(node, *words, "--dry-run")
            assert (plain["dry_run"], plain["done"]) == (True, False)
            assert everything(lab) == before, words


def test_what_a_dry_run_of_retire_says_is_what_slurm_is_told(lab: Lab) -> None:
    node = lab.nodes["n1"]
    job, gate = lab.begin("--gres=gpu:2", "-w", "n1")
    gpu = node.status()["gpus"][1]
    said = node.ask("retire", gpu["bus_id"], "--reason", "fan is loud", "--dry-run")
    for words in (f"GPU 1 at {gpu['bus_id']}", gpu["uuid"], f"slurm {job} of alice", "not touched", "restore 1"):
        assert words in said
    plan = deed(node, "retire", "1", "--reason", "fan is loud", "--dry-run")
    [told] = plan["told"]
    assert plan["gpu"]["uuid"] == gpu["uuid"] and plan["gpu"]["holders"][0]["job"] == job
    assert node.call("retire", "1", "--reason", "fan is loud").returncode == 0
    until(lambda: lab.cluster.node("n1").drained, "the agent's drain")
    assert told[:4] == ["/usr/bin/scontrol", "update", "nodename=n1", "state=drain"]
    assert told[4] == f"reason={lab.cluster.node('n1').reason}"
    assert lab.cluster.state(job) == "RUNNING"
    lab.finish(job, gate)


def test_a_drain_past_the_limit_says_so_and_stays_until_it_is_resumed(lab: Lab) -> None:
    node = lab.nodes["n1"]
    lab.nodes["n2"].call("drain", "--reason", "the first")
    plan = node.ask("drain", "--reason", "the second", "--dry-run")
    assert "goes past the limit" in plan and "1 of 2 nodes are out, limits.max_drained (1) allows 1" in plan
    done = deed(node, "drain", "--reason", "the second")
    assert done["done"] and lab.cluster.node("n1").reason == done["reason"] == "gpu-nodeagent/1: the second"
    assert "state=resume" in node.ask("resume", "--dry-run")
    for name in ("n1", "n2"):
        assert deed(lab.nodes[name], "resume")["done"] if name == "n1" else lab.nodes[name].call("resume")
        assert not lab.cluster.node(name).drained


def test_another_s_reason_is_told_to_be_in_the_way(lab: Lab) -> None:
    node = lab.nodes["n1"]
    lab.cluster.scontrol("update", "nodename=n1", "state=drain", "reason=fan is loud")
    try:
        for words in (["drain", "--reason", "x"], ["resume"]):
            would, did = node.call(*words, "--dry-run"), node.call(*words)
            assert would.returncode == did.returncode == 69
            assert "fan is loud" in would.stderr and "fan is loud" in did.stderr
    finally:
        lab.cluster.scontrol("update", "nodename=n1", "state=resume")


def test_in_maintenance_nothing_is_taken_out_and_then_what_is_due(lab: Lab) -> None:
    node = lab.nodes["n1"]
    assert node.call("maintenance", "on", "--reason", "new fans", "--for", "2h").returncode == 0
    line = "nothing is taken out or brought back (new fans)"
    assert line in node.ask("status") and line in node.ask("check")
    assert node.status()["maintenance"]["reason"] == "new fans"
    assert json.loads(node.ask("check", "--json"))["maintenance"]["until"]
    node.scenario.lose(2)
    until(lambda: "retire waits=True" in node.log.read_text(), "the retirement told")
    assert node.status()["gpus"][2]["verdict"] == "FAILED" and metric(node, "maintenance") == 1
    assert node.retired() == [] and not lab.cluster.node("n1").drained
    assert "it may retire GPU 2" in node.ask("maintenance", "off", "--dry-run")
    assert node.call("maintenance", "off").returncode == 0
    until(lambda: lab.cluster.node("n1").drained, "what was due done")
    assert node.retired() == [2] and metric(node, "maintenance") == 0
    until(lambda: "ended by an administrator" in node.ask("history", "--kind", "maintenance"), "history")
    entries = json.loads(node.ask("history", "--kind", "maintenance", "--json"))["entries"]
    assert [one["after"] for one in entries[-2:]] == ["on", "off"]
    assert all(one["by"].startswith("admin ") for one in entries)
    assert node.call("maintenance", "off").returncode == 1, "there is none to end"


def test_a_drain_for_maintenance_ends_with_it_and_an_earlier_one_does_not(lab: Lab) -> None:
    node = lab.nodes["n1"]
    node.call("maintenance", "on", "--reason", "new fans", "--drain")
    assert lab.cluster.node("n1").reason == "gpu-nodeagent/1: maintenance: new fans"
    node.call("maintenance", "on", "--reason", "new fans and a board", "--drain")
    assert lab.cluster.node("n1").reason == "gpu-nodeagent/1: maintenance: new fans", "drained once"
    assert "new fans and a board" in node.ask("status")
    assert "resumed" in node.ask("maintenance", "off")
    assert not lab.cluster.node("n1").drained
    node.call("drain", "--reason", "a rack is moved")
    begun = node.call("maintenance", "on", "--drain")
    assert begun.returncode == 0 and "is out of service already" in begun.stderr
    assert "resumed" not in node.ask("maintenance", "off")
    assert lab.cluster.node("n1").reason == "gpu-nodeagent/1: a rack is moved"


def test_maintenance_ends_by_itself_and_the_drain_for_it_stays(lab: Lab) -> None:
    node = lab.nodes["n1"]
    begun = node.ask("maintenance", "on", "--for", "2s", "--drain", "--reason", "quick")
    assert "when its time is over: gpu-nodeagent resume" in begun
    until(lambda: "its time is over" in node.log.read_text(), "its end")
    assert node.status()["maintenance"] is None
    assert lab.cluster.node("n1").drained
    assert node.call("resume").returncode == 0


def test_without_the_agent_it_is_recorded_and_the_next_one_obeys(lab: Lab) -> None:
    node = lab.nodes["n2"]
    agent = lab.agents["n2"]
    agent.send_signal(signal.SIGSTOP)
    try:
        assert node.call("maintenance", "on", "--reason", "while it slept").returncode == 0
        node.scenario.lose(1)
    finally:
        agent.send_signal(signal.SIGCONT)
    until(lambda: "retire waits=True" in node.log.read_text(), "the retirement told")
    assert node.retired() == []


def test_what_makes_no_sense_is_refused(lab: Lab) -> None:
    for words, status in (
        ("maintenance", 64),
        ("maintenance off --for 2h", 64),
        ("maintenance on --for soon", 64),
        ("drain", 64),
        ("drain words --reason others", 64),
        ("retire 9 --dry-run", 64),
        ("restore 1 --dry-run", 1),
    ):
        assert lab.nodes["n1"].call(*words.split()).returncode == status, words
