"""The site's commands as a real agent runs them: whatever such a program does, the agent goes on, and tells it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from nodeagent.agent.site_commands import document
from nodeagent.config.load import load
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict
from nodeagent.policy.decide import RunCommand
from nodeagent.state.documents import read_document
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import read_verdict
from tests.simulated_node import SimulatedNode, until

INTERVAL = 0.3
FINE, HANGS, FAILS, FORKS, FLOODS, WELL = range(6)
SCRIPT = f"""#!/bin/sh
cd $(dirname $0)
cat > told.$$
index=$(sed 's/.*"index": \\([0-9]*\\).*/\\1/' told.$$)
mv told.$$ told.$index
echo $index >> ran
stray() {{ setsid sh -c 'echo $$ >> strays; exec sleep 300'; }}
case $index in
{FINE}) echo paged ;;
{HANGS}) trap '' TERM INT HUP; while :; do sleep 60; done ;;
{FAILS}) echo no pager >&2; exit 3 ;;
{FORKS}) for i in 1 2 3 4 5 6 7 8; do stray & done; until [ $(wc -l < strays) = 8 ]; do sleep 0.05; done ;;
{FLOODS}) head -c 50000000 /dev/zero | tr '\\0' x; exit 7 ;;
esac
"""


def node_of(place: Path, script: str, timeout: str = "3s", policy: str = "") -> SimulatedNode:
    place.chmod(0o755)
    path = place / "page"
    path.write_text(script)
    path.chmod(0o755)
    return SimulatedNode(
        place,
        gpus=6,
        settings=f"interval: {INTERVAL}\nhealth: {{recover: 2, settle: 0}}\n"
        f"policy:\n  commands: {{page: {{command: [{path}, --now], timeout: {timeout}}}}}\n"
        f"  rules: [{{check: gpu-lost, run: page}}]\n{policy}",
    )


def lose(node: SimulatedNode, *gpus: int) -> None:
    with node.scenario.edit():
        for gpu in gpus:
            node.scenario.lose(gpu)


def ran(place: Path) -> list[str]:
    with suppress(FileNotFoundError):
        return sorted((place / "ran").read_text().split())
    return []


def beat(node: SimulatedNode) -> float:
    return read_verdict(Directory(str(node.state_dir))).monotonic


def some_cycles(node: SimulatedNode, count: int = 4) -> None:
    """Return when the agent has said its word so many times more."""
    for _ in range(count):
        seen = beat(node)
        until(lambda seen=seen: beat(node) > seen, "the agent's next word")


def lines(node: SimulatedNode, event: str) -> dict[str, str]:
    """Return UUID → line of the log, of each such event."""
    found = [line for line in node.log.read_text().splitlines() if f" {event} " in line]
    by_gpu = {line.partition("gpu_uuid=")[2].split()[0]: line for line in found}
    assert len(by_gpu) == len(found), "once each"
    return by_gpu


def test_whatever_a_command_does_the_agent_goes_on_and_tells_it(tmp_path: Path) -> None:
    node = node_of(tmp_path, SCRIPT)
    uuid = node.scenario.uuid
    with node.agent():
        lose(node, FINE, HANGS, FAILS, FORKS, FLOODS)
        until(lambda: ran(tmp_path) == ["0", "1", "2", "3", "4"], "all to have begun, though four only at a time")
        before = beat(node)
        until(lambda: len(lines(node, "command_failed")) == 3, "what failed to be told")
        until(lambda: len(lines(node, "command_ended")) == 2, "what ended to be told")
        assert beat(node) - before > 2 * INTERVAL, "the agent went on while one of them hung"
        ended, failed = lines(node, "command_ended"), lines(node, "command_failed")
        assert 'why="exit status 0: paged"' in ended[uuid(FINE)]
        assert "exit status 0" in ended[uuid(FORKS)]
        assert "did not end within 3 s and was ended" in failed[uuid(HANGS)]
        assert 'why="exit status 3: no pager"' in failed[uuid(FAILS)]
        assert "exit status 7: xxx" in failed[uuid(FLOODS)] and len(failed[uuid(FLOODS)]) < 1000
        strays = [int(pid) for pid in (tmp_path / "strays").read_text().split()]
        assert len(strays) == 8 and not any(Path(f"/proc/{pid}/cwd").exists() for pid in strays)
        metrics = urllib.request.urlopen(f"{node.url()}/metrics", timeout=10).read().decode()
        for result, count in (("ended", 2), ("failed", 2), ("hung", 1)):
            line = f'gpu_nodeagent_site_command_runs_total{{command="page",result="{result}"}} {count}.0'
            assert line in metrics, result
        some_cycles(node)
        assert sorted(node.retired()) == [0, 1, 2, 3, 4]
    told = json.loads((tmp_path / f"told.{FINE}").read_text())
    assert (told["schema"], told["node"], told["do"], told["check"]) == (
        *("gpu-nodeagent/command/1", "demo", "retire", "gpu-lost"),
    )
    assert (told["gpu"]["uuid"], told["gpu"]["index"]) == (uuid(FINE), FINE) and told["bad_gpus"] == 5
    history = json.loads(node.ask("history", "--json", "--kind", "run_command"))["entries"]
    assert sorted((entry["unit"], entry["after"]) for entry in history) == sorted(
        (uuid(gpu), "done" if gpu in (FINE, FORKS) else "failed") for gpu in range(WELL)
    )
    with node.agent() as agent:  # the faults stand: neither a restart nor a reload is a new decision
        node.reload(agent)
        until(lambda: "config_reloaded" in node.log.read_text(), "the reload")
        some_cycles(node)
    assert ran(tmp_path) == ["0", "1", "2", "3", "4"]


def test_a_dry_run_runs_nothing_and_changes_nothing(tmp_path: Path) -> None:
    node = node_of(tmp_path, SCRIPT, policy="  dry_run: true\n")
    with node.agent() as agent:
        lose(node, FINE)
        until(lambda: "run_command" in node.log.read_text(), "it to be told")
        some_cycles(node)
        log = node.log.read_text()
        assert log.count(" run_command ") == 1 and "dry_run=True" in log.partition(" run_command ")[2].splitlines()[0]
        assert (ran(tmp_path), node.retired()) == ([], [])
        assert read_document(Directory(str(node.state_dir)), "commands") is None
        node.settings = node.settings.replace("dry_run: true", "dry_run: false")
        node.write_config()
        node.reload(agent)
        until(lambda: ran(tmp_path) == ["0"], "what stands to be acted upon once it is no dry run any more")
        until(lambda: node.retired() == [FINE], "the retirement")


def test_a_command_that_the_agents_end_cut_short_is_begun_again(tmp_path: Path) -> None:
    hang = '#!/bin/sh\necho $$ >> "$(dirname $0)/ran"\nexec sleep 300\n'
    node = node_of(tmp_path, hang, timeout="5m")
    with node.agent():
        lose(node, FINE)
        [first] = until(lambda: ran(tmp_path), "it to have begun")
    assert not Path(f"/proc/{first}/cwd").exists()
    with node.agent() as agent:
        [second] = until(lambda: set(ran(tmp_path)) - {first}, "it to have begun again")
        agent.send_signal(signal.SIGKILL)  # killed, it can tell nobody: what was noted counts
        agent.wait()
    with suppress(ProcessLookupError):
        os.kill(int(second), signal.SIGKILL)  # the service's cgroup is what ends it on a node
    with node.agent():
        some_cycles(node)
    assert len(ran(tmp_path)) == 2


@pytest.mark.parametrize("way", ["missing", "mode"])
def test_a_command_that_cannot_be_trusted_or_started_is_told(tmp_path: Path, way: str) -> None:
    node = node_of(tmp_path, SCRIPT)
    path = tmp_path / "page"
    path.unlink() if way == "missing" else path.chmod(0o777)
    with node.agent():
        lose(node, FINE)
        until(lambda: lines(node, "command_failed"), "it to be told")
        some_cycles(node)
        [line] = lines(node, "command_failed").values()
    assert "cannot be started" in line and ran(tmp_path) == []


EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples" / "policy"


def test_the_example_tells_what_a_command_reads(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    tmp_path.chmod(0o755)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "conf.d" / "50.yaml").write_text((EXAMPLES / "policy.yaml").read_text())
    policy = load(tmp_path / "config.yaml").config.policy
    assert [rule.run for rule in policy.rules] == ["", "tell-syslog", "tell-syslog"]
    logger, program = tmp_path / "logger", tmp_path / "tell-syslog"
    logger.write_text(f'#!/bin/sh\nfor word; do echo "$word"; done > {tmp_path}/logged\nexit 4\n')
    program.write_text((EXAMPLES / "tell-syslog").read_text().replace("/usr/bin/logger", str(logger)))
    for path in (logger, program):
        path.chmod(0o755)
    finding = Finding("xid", "GPU-a", Severity.ERROR, "XID 79 on GPU 3", RecoveryAction.INSPECT_HARDWARE)
    about = UnitVerdict("GPU-a", "FAILED", 0.0, (finding,), 3)
    for unit, where in ((about, "n1 GPU 3 (GPU-a)"), (None, "n1")):
        text = json.dumps(document(RunCommand("x", "", finding, unit, (finding,), "drain", 1), "n1", 0.0))
        argv = [program, policy.commands["tell-syslog"].command[1]]
        assert subprocess.run(argv, input=text, text=True, check=False, timeout=30).returncode == 4
        words = f"{where}: XID 79 on GPU 3; needs inspect_hardware, done: drain"
        assert (tmp_path / "logged").read_text().splitlines() == ["-t", "gpu-policy", "-p", "daemon.err", "--", words]
