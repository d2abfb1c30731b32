"""A node with simulated GPUs and, when asked, a real agent on it: for the demonstration, integration tests, benches."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.simnvml import Scenario, build, fake_roots

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 30.0


def until(condition: Callable[[], T | None], what: str, timeout: float = DEADLINE) -> T:
    """Return what a condition gives as soon as it is true.

    Raises:
        TimeoutError: it did not become true in `timeout` seconds.

    """
    deadline = time.monotonic() + timeout
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"did not happen in {timeout:.0f} s: {what}")
        time.sleep(0.05)


@contextmanager
def running(argv: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for as long as the block lasts; its output is appended to `log`."""
    with log.open("ab") as sink:
        process = subprocess.Popen(argv, env=dict(environment), stdout=sink, stderr=sink, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class SimulatedNode:
    """A scenario for the stand-in NVML library, kernel trees and a configuration, all in one directory."""

    def __init__(
        self,
        directory: Path,
        gpus: int = 8,
        node: str = "demo",
        settings: str = "",
        model: str | Sequence[str] = "H100-80GB",
    ) -> None:
        self.directory = directory
        library = build(ROOT / "build" / "simnvml")
        self.scenario = Scenario(directory / "scenario", gpus=gpus, model=model, library=library)
        with self.scenario.edit():
            for gpu in range(gpus):  # a driver that was loaded long ago: a counter that restarts is seen at once
                self.scenario.set(gpu, energy_mj=5 * 10**9)
        self.roots = fake_roots(directory / "roots", self.scenario)
        self.config = directory / "config.yaml"
        self.state_dir = directory / "state"
        self.log = directory / "agent.log"
        self.environment = {**os.environ, **self.scenario.env, "PYTHONPATH": str(ROOT)}
        self.settings = settings
        self.node = node
        self.entrance: list[str] = []
        """Words before each command, where the node is a namespace."""
        self.write_config()

    def write_config(self, more: str = "") -> None:
        """Write the configuration, with further settings at its end."""
        roots = ", ".join(f"{name}: {path}" for name, path in self.roots.items())
        own = self.settings + more
        if "isolation:" not in own:  # a test that is not about it gets the same on every machine
            own = f"isolation: none\n{own}"
        self.config.write_text(
            f"state_dir: {self.state_dir}\ndata_dir: {self.directory}/data\nnode_name: {self.node}\n"
            f"listen: 127.0.0.1:0\nroots: {{{roots}}}\n{own}"
        )

    def argv(self, *words: str) -> list[str]:
        """Return the command line of a subcommand on this node."""
        return [*self.entrance, sys.executable, "-m", "nodeagent.cli.main", "--config", str(self.config), *words]

    def call(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a subcommand."""
        return subprocess.run(
            self.argv(*words), env=self.environment, capture_output=True, text=True, check=False, timeout=DEADLINE
        )

    def ask(self, *words: str) -> str:
        """Run a subcommand and return what it prints."""
        return self.call(*words).stdout

    def status(self) -> dict[str, Any]:
        """Return `status --json`."""
        found: dict[str, Any] = json.loads(self.ask("status", "--json"))
        return found

    def holders(self) -> dict[int, str]:
        """Return index → job for each GPU that is held."""
        return {gpu["index"]: gpu["holders"][0]["job"] for gpu in self.status()["gpus"] if gpu["holders"]}

    def retired(self) -> list[int]:
        """Return the indices of retired GPUs."""
        return [gpu["index"] for gpu in self.status()["gpus"] if gpu["retired"]]

    @contextmanager
    def agent(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run an agent for as long as the block lasts; ready when the block begins."""
        begun = self._ready_lines()
        with running(self.argv("run"), self.environment, self.log) as process:
            until(lambda: self._ready_lines() > begun or process.poll() is not None, "the agent's first verdict")
            if process.poll() is not None:
                raise RuntimeError(f"the agent ended: {self.log.read_text()[-2000:]}")
            yield process

    def _ready_lines(self) -> int:
        return self.log.read_text().count("agent_ready") if self.log.exists() else 0

    def reload(self, agent: subprocess.Popen[bytes]) -> None:
        """Make the agent read its configuration again."""
        agent.send_signal(signal.SIGHUP)

    def url(self) -> str:
        """Return where the agent listens, from its log."""
        words = [word for line in self.log.read_text().splitlines() for word in line.split() if word.startswith("url=")]
        return words[-1].partition("=")[2] if words else ""
