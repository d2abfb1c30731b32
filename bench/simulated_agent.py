"""The installed agent on a node of simulated GPUs, with its own probe process, seen from outside."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.failure import BenchFailed
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import VERDICT, read_verdict
from tests.simnvml import Scenario, fake_roots

COMMAND = Path(sys.executable).parent / "gpu-nodeagent"
GPUS = 8
INTERVAL = 10
PATIENCE = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class SimulatedAgent:
    """The agent that runs, seen from outside: /proc and the files that it leaves for hooks. `scenario` is its GPUs."""

    def __init__(self, process: subprocess.Popen[bytes], state: Path, url: str, scenario: Scenario) -> None:
        self.scenario = scenario
        self._process = process
        self._state = state
        self._url = url
        self._seen = 0

    def wait_for_verdict(self, look_every: float = 0.05) -> None:
        """Wait until it has spoken anew, looking again after so many seconds; raises BenchFailed."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BenchFailed(f"the agent has ended with {self._process.returncode}")
            try:
                now = (self._state / VERDICT).stat().st_mtime_ns
            except FileNotFoundError:
                now = 0
            if now not in (0, self._seen):
                self._seen = now
                return
            time.sleep(look_every)
        raise BenchFailed(f"no verdict in {PATIENCE:g} s")

    def states(self) -> dict[str, str]:
        """Return what hooks are told now: UUID -> OK, DEGRADED, FAILED or UNKNOWN."""
        state = Directory(str(self._state))
        try:
            found = read_verdict(state)
        finally:
            state.close()
        return {line.unit: line.state for line in found.units}

    def _pids(self) -> dict[str, int]:
        agent = self._process.pid
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        return {"agent": agent, **{f"probe {at}" if at else "probe": int(pid) for at, pid in enumerate(children)}}

    def processor_seconds(self) -> dict[str, float]:
        """Return what each process has used since it began, user and system."""
        used = {}
        for name, pid in self._pids().items():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used[name] = (int(fields[11]) + int(fields[12])) / _TICKS
        return used

    def pss(self) -> dict[str, float]:
        """Return each process's share of the memory, in MB (10^6 bytes)."""
        sizes = {}
        for name, pid in self._pids().items():
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            sizes[name] = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6
        return sizes

    def scrape(self) -> None:
        """Read the metrics once."""
        with urllib.request.urlopen(self._url, timeout=5) as answer:  # noqa: S310  our own http address
            answer.read()


@contextmanager
def running(interval: float = INTERVAL, settings: str = "") -> Iterator[SimulatedAgent]:
    """Run an agent for as long as the block lasts; `settings` are further lines of its configuration."""
    with (
        tempfile.TemporaryDirectory(prefix="gpu-nodeagent-bench-") as directory,
        _running(Path(directory), interval, settings) as agent,
    ):
        yield agent


@contextmanager
def _running(directory: Path, interval: float, settings: str) -> Iterator[SimulatedAgent]:
    scenario = Scenario(directory / "scenario", gpus=GPUS)
    roots = fake_roots(directory / "roots", scenario)
    port = _free_port()
    config = directory / "config.yaml"
    config.write_text(
        f"state_dir: {directory}/state\ndata_dir: {directory}/data\nnode_name: n1\nlisten: 127.0.0.1:{port}\n"
        f"interval: {interval:g}s\nscheduler: {{kind: local}}\n"
        f"roots: {{proc: {roots['proc']}, sys: {roots['sys']}, dev: {roots['dev']}}}\n{settings}",
        encoding="utf-8",
    )
    if shutil.which(COMMAND) is None:
        raise BenchFailed(f"{COMMAND} is missing; run `make bench`")
    environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **scenario.env}
    log = directory / "log"
    with open(log, "wb") as output:
        argv = [str(COMMAND), "run", "--config", str(config)]
        process = subprocess.Popen(argv, env=environ, cwd="/", stdout=output, stderr=output)
    try:
        yield SimulatedAgent(process, directory / "state", f"http://127.0.0.1:{port}/metrics", scenario)
    except BenchFailed as error:
        raise BenchFailed(f"{error}\n{log.read_text(errors='replace')[-2000:]}") from error
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
