"""A GPU reset by a real agent on simulated GPUs. The program that resets is the test's: there is no GPU here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
from tests.simulated_node import SimulatedNode, until

INTERVAL = 0.4
RESET = """#!/usr/bin/python3 -I
import json, os, sys, time
here, dev, uuid = os.path.dirname(sys.argv[0]), sys.argv[1], sys.argv[2]
users = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        continue
    users += [pid for link in links if link.startswith(f"{dev}/nvidia")]
owner = open(f"{here}/state/locks/{uuid}/owner").read()
with open(f"{here}/seen.new", "w") as file:
    json.dump({"uuid": uuid, "users": users, "owner": owner}, file)
os.rename(f"{here}/seen.new", f"{here}/seen")
while not os.path.exists(f"{here}/go"):
    time.sleep(0.05)
"""


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    tmp_path.chmod(0o755)
    program = tmp_path / "reset"
    program.write_text(RESET)
    program.chmod(0o755)
    settings = f"interval: {INTERVAL}\nhealth: {{recover: 2, settle: 0}}\npolicy:\n  reset: on\n"
    made = SimulatedNode(tmp_path, gpus=3, settings=settings)
    made.settings += f"  reset_command: [{program}, {made.roots['dev']}, '{{uuid}}']\n"
    made.write_config()
    with made.scenario.edit():
        for gpu in range(3):
            made.scenario.set(gpu, persistence=1)
    return made


def test_a_gpu_that_asks_for_it_is_reset_while_nothing_of_the_agents_is_open(node: SimulatedNode) -> None:
    with node.agent():
        node.scenario.xid(2, 62)
        seen = json.loads(
            until((node.directory / "seen").exists, "the reset") and (node.directory / "seen").read_text()
        )
        assert (seen["uuid"], seen["users"]) == (node.scenario.uuid(2), [])
        assert "scheduler=maintenance\n" in seen["owner"] and "user=reset\n" in seen["owner"]
        assert node.retired() == [2]
        node.scenario.reinitialise(2)
        (node.directory / "go").touch()
        until(lambda: " reset_ended " in node.log.read_text(), "the agent to take note")
        until(lambda: node.retired() == [], "the GPU to be back in service")
    assert Store(Directory(str(node.state_dir))).owners() == {}
    entries = json.loads(node.ask("history", "--json", "--kind", "reset"))["entries"]
    assert [(entry["unit"], entry["after"]) for entry in entries] == [(node.scenario.uuid(2), "done")]
    assert node.log.read_text().count(" reset_begun ") == 1


def test_an_agent_that_is_killed_meanwhile_leaves_no_lock(node: SimulatedNode) -> None:
    store = Store(Directory(str(node.state_dir), create=True))
    with node.agent() as agent:
        node.scenario.xid(2, 62)
        until((node.directory / "seen").exists, "the reset")
        agent.kill()
        agent.wait()
    assert [owner.scheduler for owner in store.owners().values()] == ["maintenance"]
    (node.directory / "go").touch()  # what the agent left running ends
    node.settings = node.settings.replace("reset: on", "reset: off")
    node.write_config()
    with node.agent():
        assert store.owners() == {}
        assert node.retired() == [2]
    assert os.path.exists(node.directory / "state" / "resets"), "how often it was tried outlives the agent"
