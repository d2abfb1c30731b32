"""What the agent costs a node at rest: processor time and memory of both its processes, eight simulated GPUs.

The agent is the installed command with its own probe process; NVML is the stand-in library, so the driver's share is
not in the figures. A scrape of the metrics every 15 s is, as a Prometheus server makes it.
"""

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
from bench.figure import Figure
from tests.simnvml import Scenario, fake_roots

COMMAND = Path(sys.executable).parent / "gpu-nodeagent"
GPUS = 8
INTERVAL = 10
SCRAPE_EVERY = 15.0
PATIENCE = 60.0
CPU_LIMIT = 1.0
PSS_LIMIT = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


def measure(seconds: float) -> list[Figure]:
    """Watch an agent at rest for at least `seconds` and return the figures.

    Raises:
        BenchFailed: the agent did not come up, or did not go on.

    """
    with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-bench-") as directory, _running(Path(directory)) as agent:
        agent.wait_for_verdict()
        agent.wait_for_verdict()  # the second cycle: what the first one imported and built is behind it
        return _watch(agent, seconds)


def _watch(agent: _Agent, seconds: float) -> list[Figure]:
    began = time.monotonic()
    before = agent.processor_seconds()
    largest: dict[str, float] = {}
    cycles = scrapes = 0
    scrape_at = began + SCRAPE_EVERY
    while time.monotonic() < began + seconds:
        agent.wait_for_verdict()
        cycles += 1
        if time.monotonic() >= scrape_at:
            agent.scrape()
            scrapes += 1
            scrape_at = time.monotonic() + SCRAPE_EVERY
        sizes = agent.pss()
        if sum(sizes.values()) > sum(largest.values()):
            largest = sizes
    took = time.monotonic() - began
    after = agent.processor_seconds()
    if after.keys() != before.keys():
        raise BenchFailed(f"the agent's processes changed: {sorted(before)} before, {sorted(after)} after")
    used = {name: (after[name] - before[name]) / took * 100 for name in after}
    note = f"{took:.0f} s, {cycles} cycles, {scrapes} scrapes"
    found = [Figure("agent", "processor, both processes", sum(used.values()), "%", CPU_LIMIT, note=note)]
    found += [Figure("agent", f"processor, {name}", share, "%") for name, share in used.items()]
    found.append(Figure("agent", "memory (PSS), both processes", sum(largest.values()), "MB", PSS_LIMIT))
    found += [Figure("agent", f"memory (PSS), {name}", size, "MB") for name, size in largest.items()]
    return found


class _Agent:
    """The agent that runs, seen from outside: /proc and the files that it leaves for hooks."""

    def __init__(self, process: subprocess.Popen[bytes], verdict: Path, url: str) -> None:
        self._process = process
        self._verdict = verdict
        self._url = url
        self._seen = 0

    def wait_for_verdict(self) -> None:
        """Wait until it has spoken anew; raises BenchFailed."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise BenchFailed(f"the agent has ended with {self._process.returncode}")
            try:
                now = self._verdict.stat().st_mtime_ns
            except FileNotFoundError:
                now = 0
            if now not in (0, self._seen):
                self._seen = now
                return
            time.sleep(0.05)
        raise BenchFailed(f"no verdict in {PATIENCE:g} s")

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
def _running(directory: Path) -> Iterator[_Agent]:
    scenario = Scenario(directory / "scenario", gpus=GPUS)
    roots = fake_roots(directory / "roots", scenario)
    port = _free_port()
    config = directory / "config.yaml"
    config.write_text(
        f"state_dir: {directory}/state\ndata_dir: {directory}/data\nnode_name: n1\nlisten: 127.0.0.1:{port}\n"
        f"interval: {INTERVAL}\nscheduler: {{kind: local}}\n"
        f"roots: {{proc: {roots['proc']}, sys: {roots['sys']}, dev: {roots['dev']}}}\n",
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
        yield _Agent(process, directory / "state/verdict", f"http://127.0.0.1:{port}/metrics")
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
