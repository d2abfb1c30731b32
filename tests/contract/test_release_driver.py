"""No handle of the agent's is in the way of a GPU reset: a real agent on simulated GPUs, looked at from outside.

The stand-in NVML has the node's /dev/nvidiactl open between nvmlInit and nvmlShutdown, as the real one does.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nodeagent.cli import release_driver_command
from nodeagent.cli.main import main
from nodeagent.lock.record import Owner
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import read_verdict
from tests.simnvml import log_xid
from tests.simulated_node import SimulatedNode, until

INTERVAL = 0.4
LIBRARY = "libnvidia-ml.so"


@pytest.fixture
def node(tmp_path: Path) -> SimulatedNode:
    tmp_path.chmod(0o755)
    made = SimulatedNode(tmp_path, gpus=4, settings=f"interval: {INTERVAL}\nhealth: {{recover: 2, settle: 0}}\n")
    with made.scenario.edit():
        for gpu in range(4):
            made.scenario.set(gpu, persistence=1)
    return made


@pytest.fixture
def agent(node: SimulatedNode) -> Iterator[subprocess.Popen[bytes]]:
    with node.agent() as process:
        yield process


def family(pid: int) -> list[int]:
    """The agent and what it has started."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            for child in (thread / "children").read_text().split():
                found += family(int(child))
    return found


def open_by(node: SimulatedNode, agent: subprocess.Popen[bytes]) -> list[int]:
    """The agent's processes that have a device file of the driver's open now."""
    return [
        pid for pid in family(agent.pid) if any(path.startswith(f"{node.roots['dev']}/nvidia") for path in fds(pid))
    ]


def fds(pid: int) -> Iterator[str]:
    with suppress(OSError):
        for link in list(Path(f"/proc/{pid}/fd").iterdir()):
            with suppress(OSError):
                yield os.readlink(link)


def mapped_by(agent: subprocess.Popen[bytes]) -> list[int]:
    """The agent's processes that have NVML loaded."""
    return [pid for pid in family(agent.pid) if LIBRARY in Path(f"/proc/{pid}/maps").read_text()]


def closed_over(node: SimulatedNode, agent: subprocess.Popen[bytes]) -> bool:
    """Say whether NVML is seen closed, which it is but for the moments of a sweep."""
    return until(lambda: not open_by(node, agent), "NVML to be closed")


def retired(node: SimulatedNode) -> list[int]:
    found = Store(Directory(str(node.state_dir))).retired()
    return [gpu for gpu in node.scenario.slots if node.scenario.uuid(gpu) in found]


@dataclass(frozen=True)
class Done:
    """What became of a subcommand."""

    returncode: int
    stdout: str
    stderr: str


def call(node: SimulatedNode, *words: str) -> Done:
    """Run a subcommand in this process, which is quicker than `node.call`."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(["--config", str(node.config), *words])
        except SystemExit as leaving:  # argparse's way
            status = int(str(leaving.code))
    return Done(status, out.getvalue(), err.getvalue())


def released(node: SimulatedNode) -> Any:
    """What `status --json` says of it."""
    return json.loads(call(node, "status", "--json").stdout)["driver_released"]


def page(node: SimulatedNode, path: str = "/metrics") -> str:
    with urllib.request.urlopen(node.url().rstrip("/") + path, timeout=10) as answer:
        return answer.read().decode()


def verdict(node: SimulatedNode) -> Any:
    return read_verdict(Directory(str(node.state_dir)))


def test_between_two_sweeps_nvml_is_open(node: SimulatedNode, agent: subprocess.Popen[bytes]) -> None:
    """What the other tests rely on: that an open NVML is seen from outside."""
    (probe,) = until(lambda: open_by(node, agent), "NVML to be open")
    assert mapped_by(agent) == [probe]


def test_the_driver_is_released_and_taken_back(node: SimulatedNode, agent: subprocess.Popen[bytes]) -> None:
    states = [unit.state for unit in verdict(node).units]
    links = [unit.links for unit in verdict(node).units]
    done = node.call("release-driver", "--for", "5m")
    assert (done.returncode, done.stderr) == (0, "")
    assert "released until 20" in done.stdout and "--back" in done.stdout
    assert (open_by(node, agent), mapped_by(agent), family(agent.pid)) == ([], [], [agent.pid])
    seen = verdict(node).monotonic
    until(lambda: verdict(node).monotonic > seen + 2 * INTERVAL, "the verdict to be said again")
    assert [unit.state for unit in verdict(node).units] == states == ["OK"] * 4
    assert [unit.links for unit in verdict(node).units] == links
    assert family(agent.pid) == [agent.pid]
    assert released(node)["until"] in done.stdout
    assert "driver released until" in call(node, "status").stdout
    text = page(node)
    assert "gpu_nodeagent_driver_released 1.0" in text and "gpu_nodeagent_up 1.0" in text
    assert "gpu_nodeagent_gpu_up{" not in text and "gpu_nodeagent_gpu_temperature_celsius{" not in text
    assert f'gpu_nodeagent_gpu_health{{uuid="{node.scenario.uuid(0)}",verdict="OK"}} 1.0' in text
    assert "The driver is released" in page(node, "/")
    back = call(node, "release-driver", "--back")
    assert (back.returncode, back.stdout) == (0, "the agent has looked at the GPUs again\n")
    assert open_by(node, agent) and released(node) is None
    assert "gpu_nodeagent_gpu_temperature_celsius{" in page(node)
    log = node.log.read_text()
    assert log.count("driver_released") == log.count("driver_taken_back") == 1
    history = call(node, "history").stdout
    assert "driver released" in history and "driver taken back" in history


def test_an_xid_counts_while_the_driver_is_released(node: SimulatedNode, agent: subprocess.Popen[bytes]) -> None:
    assert call(node, "release-driver").returncode == 0
    log_xid(node.roots, node.scenario, 2, 79)
    log_xid(node.roots, node.scenario, 1, 31)
    until(lambda: retired(node) == [2], "the retirement for an XID")
    assert [unit.state for unit in verdict(node).units] == ["OK", "OK", "FAILED", "OK"]
    assert (open_by(node, agent), family(agent.pid)) == ([], [agent.pid])


def test_a_reset_in_the_meantime_brings_the_gpu_back(node: SimulatedNode, agent: subprocess.Popen[bytes]) -> None:
    node.scenario.xid(2, 62)
    until(lambda: retired(node) == [2], "the retirement")
    assert call(node, "release-driver").returncode == 0
    node.scenario.reinitialise(2)
    assert retired(node) == [2]
    assert call(node, "release-driver", "--back").returncode == 0
    until(lambda: retired(node) == [], "the GPU to be back in service")


def test_a_sites_check_that_has_the_driver_open_is_ended_and_begins_again(node: SimulatedNode) -> None:
    check = node.directory / "check"
    opening = f"os.open({str(node.roots['dev'] / 'nvidiactl')!r}, os.O_PATH)"
    check.write_text(f"#!/usr/bin/python3\nimport os, time\n{opening}\ntime.sleep(600)\n")
    check.chmod(0o755)
    node.write_config(f"checks: {{long: {{command: [{check}], interval: 1h, timeout: 1h}}}}\n")
    with node.agent() as agent:
        until(lambda: len(open_by(node, agent)) == 2, "probe and check to have the driver open")
        assert call(node, "release-driver").returncode == 0
        assert family(agent.pid) == [agent.pid]
        seen = verdict(node).monotonic
        until(lambda: verdict(node).monotonic > seen + 2 * INTERVAL, "further cycles")
        assert family(agent.pid) == [agent.pid]
        assert call(node, "release-driver", "--back").returncode == 0
        until(lambda: len(open_by(node, agent)) == 2, "both to have it open again")


def test_it_survives_a_reload_and_its_time_runs_out_by_itself(node: SimulatedNode) -> None:
    node.settings = "interval: 30s\n"  # nothing here waits for a cycle's turn
    node.write_config()
    with node.agent() as agent:
        assert call(node, "release-driver", "--for", "3s").returncode == 0
        node.reload(agent)
        until(lambda: "config_reloaded" in node.log.read_text(), "the reload")
        assert released(node) is not None and open_by(node, agent) == []
        until(lambda: open_by(node, agent), "NVML to be opened again")
        until(lambda: released(node) is None, "the status to say so")
    assert 'driver_taken_back why="the time is over"' in node.log.read_text()


def test_a_restart_ends_it(node: SimulatedNode) -> None:
    with node.agent():
        assert call(node, "release-driver").returncode == 0
    with node.agent() as agent:
        until(lambda: open_by(node, agent), "NVML to be open")
        assert released(node) is None


def test_without_an_agent_there_is_nothing_to_release(node: SimulatedNode) -> None:
    done = call(node, "release-driver")
    assert done.returncode == 0 and "nothing to release" in done.stdout
    assert call(node, "release-driver", "--back").returncode == 69
    with node.agent():
        pass
    done = call(node, "release-driver")
    assert done.returncode == 0 and "nothing to release" in done.stdout
    for words in (("--for", "16m"), ("--for", "0"), ("--for", "soon"), ("--for", "1m", "--back")):
        assert call(node, "release-driver", *words).returncode == 64, words


def test_an_agent_that_does_not_answer_is_said(
    node: SimulatedNode, agent: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    node.write_config("probe_timeout: 100ms\n")  # for the command's patience
    monkeypatch.setattr(release_driver_command, "RELEASE_TIMEOUT", 0.0)
    monkeypatch.setattr(release_driver_command, "_SLACK", 0.0)
    os.kill(agent.pid, signal.SIGSTOP)
    try:
        done = call(node, "release-driver")
    finally:
        os.kill(agent.pid, signal.SIGCONT)
    assert done.returncode == 69 and "has not answered" in done.stderr


def test_another_user_has_no_right(node: SimulatedNode, monkeypatch: pytest.MonkeyPatch) -> None:
    with node.agent():
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4711)
        done = call(node, "release-driver")
    assert done.returncode == 77 and "try as root" in done.stderr


def test_a_retired_idle_gpu_is_let_go_between_two_sweeps(node: SimulatedNode, agent: subprocess.Popen[bytes]) -> None:
    probe = until(lambda: open_by(node, agent), "NVML to be open")
    call(node, "retire", "3")
    until(lambda: "driver_lent" in node.log.read_text(), "NVML to be let go")
    assert closed_over(node, agent)
    seen = verdict(node).monotonic
    until(lambda: verdict(node).monotonic > seen + 2 * INTERVAL, "further sweeps")
    assert "gpu_nodeagent_gpu_temperature_celsius{" in page(node), "they are sweeps"
    assert family(agent.pid) == [agent.pid, *probe], "the same probe process all the while"
    assert closed_over(node, agent)
    log_xid(node.roots, node.scenario, 0, 79)
    until(lambda: retired(node) == [0, 3], "the kernel log to be heard")
    call(node, "restore", "3")
    node.scenario.reinitialise(0)
    until(lambda: retired(node) == [], "all to be back in service")
    until(lambda: 'driver_kept why="no retired GPU is idle"' in node.log.read_text(), "NVML to be kept open")
    until(lambda: open_by(node, agent), "NVML to be open")


def test_it_stays_open_where_gpus_would_be_set_up_at_each_sweep(node: SimulatedNode) -> None:
    node.scenario.set(1, persistence=0)
    with node.agent() as agent:
        call(node, "retire", "3")
        until(lambda: "driver_kept" in node.log.read_text(), "the reason to be said")
        assert open_by(node, agent) and "driver_lent" not in node.log.read_text()


def boot(node: SimulatedNode) -> str:
    return (node.roots["proc"] / "sys/kernel/random/boot_id").read_text().strip()


def test_a_clean_up_between_two_sweeps_lets_go_again(node: SimulatedNode) -> None:
    node.write_config("cleanup: {compute_mode: default}\n")
    node.scenario.set(1, compute_mode=3)
    with node.agent() as agent:
        call(node, "retire", "3")
        until(lambda: "driver_lent" in node.log.read_text(), "NVML to be let go")
        store = Store(Directory(str(node.state_dir)))
        owner = Owner("cleaning", job="7", grant="g", boot_id=boot(node), units=(node.scenario.uuid(1),))
        with store.exclusive():
            store.claim(owner)
        until(lambda: not store.owners(), "the unit to be freed")
        assert node.scenario.get(1, "compute_mode") == 0
        assert closed_over(node, agent)
