"""An administrator's commands under real Grid Engine: --dry-run on load sensor and qmod, and maintenance."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.clusters.process import open_directory
from tests.integration.support import require
from tests.integration.test_gridengine import Lab
from tests.simulated_node import until


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Grid Engine with one host of four GPUs."""
    require("gridengine")
    with open_directory("gna-hand-") as directory, ExitStack() as stack:
        yield Lab(directory, stack)


@pytest.fixture(autouse=True)
def tidied(lab: Lab) -> Iterator[None]:
    """Each test leaves the host healthy, open and idle."""
    yield
    lab.node.call("maintenance", "off")
    lab.node.call("resume")
    lab.tidy()
    until(lambda: lab.cluster.queue_state() == "", "the queue open")


def reported(said: str, host: str) -> dict[str, str]:
    """Return name → value of the load report that a dry run tells of."""
    lines = [line.strip().split(":", 2) for line in said.splitlines() if line.startswith(f"  {host}:")]
    return {name: value for _, name, value in lines}


def test_what_a_dry_run_of_retire_says_is_what_the_load_sensor_reports(lab: Lab) -> None:
    host = lab.cluster.host
    before = {path: path.read_bytes() for path in lab.node.state_dir.rglob("retired/*")}
    told = reported(lab.node.ask("retire", "1", "--reason", "fan is loud", "--dry-run"), host)
    assert (told["gpu"], told["gpu_faulty"], told["gpu_reason"]) == ("3", "1", "fan is loud")
    assert lab.faulty() == 0 and lab.node.retired() == []
    assert {path: path.read_bytes() for path in lab.node.state_dir.rglob("retired/*")} == before
    assert lab.node.call("retire", "1", "--reason", "fan is loud").returncode == 0
    until(lambda: lab.value("gpu_reason") == "fan is loud", "the load sensor's report")
    assert float(lab.value("gpu") or 0) == 3 and lab.faulty() == 1
    back = reported(lab.node.ask("restore", "1", "--dry-run"), host)
    assert (back["gpu"], back["gpu_faulty"], back["gpu_reason"]) == ("4", "0", "none")


def test_a_drain_is_told_with_the_queue_instances_that_it_closes(lab: Lab) -> None:
    queue = f"all.q@{lab.cluster.host}"
    plan = json.loads(lab.node.ask("drain", "--reason", "a rack is moved", "--dry-run", "--json"))
    [told] = plan["told"]
    assert told[0].endswith("/qmod") and told[1:] == ["-d", queue] and lab.cluster.queue_state() == ""
    job, gate = lab.begin("-l", "gpu=1")
    assert lab.node.call("drain", "--reason", "a rack is moved").returncode == 0
    assert lab.cluster.queue_state() == "d"
    until(lambda: lab.cluster.state(job) == "r", "the job runs on, as its host has reported by now")
    back = json.loads(lab.node.ask("resume", "--dry-run", "--json"))
    assert [told[1:] for told in back["told"]] == [["-e", queue]] and lab.cluster.queue_state() == "d"
    lab.finish(job, gate)
    assert lab.node.call("resume").returncode == 0
    assert lab.cluster.queue_state() == ""


def test_in_maintenance_a_lost_gpu_stays_and_a_drain_for_it_ends_with_it(lab: Lab) -> None:
    assert lab.node.call("maintenance", "on", "--reason", "new fans", "--drain").returncode == 0
    assert lab.cluster.queue_state() == "d"
    lab.node.scenario.lose(2)
    until(lambda: "waits=True" in lab.node.log.read_text(), "the retirement told")
    assert lab.node.retired() == []
    assert "resumed" in lab.node.ask("maintenance", "off")
    assert lab.cluster.queue_state() == ""
    until(lambda: lab.node.retired() == [2], "what was due done")
