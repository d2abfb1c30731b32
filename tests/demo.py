"""`make demo`: one simulated 8-GPU node, three jobs, one GPU that falls off the bus. No root, no scheduler, no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.simnvml import CompilerMissing, Scenario, build, fake_roots

T = TypeVar("T")
ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "nodeagent.cli.main"]
DEADLINE = 20.0


def say(words: str) -> None:
    """Print at once."""
    print(words, flush=True)


def step(words: str) -> None:
    """Announce a step."""
    say(f"\n\033[1m== {words}\033[0m" if sys.stdout.isatty() else f"\n== {words}")


class Node:
    """The simulated node: a scenario for the stand-in NVML library, a configuration, an agent."""

    def __init__(self, directory: Path) -> None:
        self.scenario = Scenario(directory / "scenario", gpus=8, library=build(ROOT / "build" / "simnvml"))
        roots = fake_roots(directory / "roots", self.scenario)
        self.config = directory / "config.yaml"
        self.environment = {**os.environ, **self.scenario.env, "PYTHONPATH": str(ROOT)}
        self.config.write_text(
            f"state_dir: {directory}/state\ndata_dir: {directory}/data\nnode_name: demo\n"
            "listen: 127.0.0.1:0\ninterval: 1s\nhealth: {recover: 2}\n"
            f"roots: {{proc: {roots['proc']}, sys: {roots['sys']}, dev: {roots['dev']}}}\n"
        )
        self.log = directory / "agent.log"

    def argv(self, *words: str) -> list[str]:
        """Return the command line of a subcommand on this node."""
        return [*COMMAND, "--config", str(self.config), *words]

    def ask(self, *words: str) -> str:
        """Run a subcommand and return what it prints."""
        done = subprocess.run(self.argv(*words), env=self.environment, stdout=subprocess.PIPE, text=True, check=False)
        return done.stdout

    def status(self) -> dict[str, Any]:
        """Return `status --json`."""
        found: dict[str, Any] = json.loads(self.ask("status", "--json"))
        return found

    def url(self) -> str:
        """Return where the agent listens, from its log."""
        for line in self.log.read_text().splitlines():
            for word in line.split():
                if word.startswith("url="):
                    return word.partition("=")[2]
        return ""


def until(condition: Callable[[], T | None], what: str) -> T:
    """Wait for a condition, at most 20 s."""
    deadline = time.monotonic() + DEADLINE
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"did not happen in {DEADLINE:.0f} s: {what}")
        time.sleep(0.1)


@contextmanager
def running(argv: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program for as long as the block lasts."""
    with log.open("wb") as sink:
        process = subprocess.Popen(argv, env=environment, stdout=sink, stderr=sink)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=DEADLINE)


@contextmanager
def job(node: Node, directory: Path, name: str, gpus: int) -> Iterator[str]:
    """Run a job that prints what it sees and stays until the block ends; yields its CUDA_VISIBLE_DEVICES."""
    log = directory / f"{name}.out"
    script = 'echo "devices=$CUDA_VISIBLE_DEVICES"; exec sleep 300'
    with running(node.argv("exec", "-n", str(gpus), "--", "/bin/sh", "-c", script), node.environment, log):
        line = until(lambda: next((x for x in log.read_text().splitlines() if x.startswith("devices=")), None), name)
        devices = line.partition("=")[2]
        say(f"{name}: exec -n {gpus} got GPUs {devices}")
        yield devices


def show(node: Node) -> None:
    """Print the status table."""
    say(node.ask("status").rstrip())


def main() -> int:
    """Run the demonstration; 0 if everything happened as it should."""
    if "--help" in sys.argv:
        say(__doc__ or "")
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-nodeagent-demo-") as name:
        directory = Path(name)
        try:
            node = Node(directory)
        except CompilerMissing as error:
            say(f"the stand-in NVML library cannot be built: {error}")
            return 1
        with running(node.argv("run"), node.environment, node.log):
            return play(node, directory)


def play(node: Node, directory: Path) -> int:
    """The story."""
    step("an agent on a node with 8 simulated H100s")
    until(lambda: node.log.exists() and node.status()["agent"]["fresh"], "a first verdict")
    show(node)
    with job(node, directory, "job-1", 2) as first:
        with job(node, directory, "job-2", 2) as second:
            step("two jobs hold two GPUs each, and never the same ones")
            show(node)
            assert not set(first.split(",")) & set(second.split(","))
            victim = int(first.split(",")[0])
            step(f"GPU {victim} falls off the bus under job-1: XID 79")
            with node.scenario.edit():
                node.scenario.xid(victim, 79)
                node.scenario.lose(victim)
            until(lambda: any(gpu["retired"] for gpu in node.status()["gpus"]), "the GPU retired")
            show(node)
        step("a third job is placed elsewhere: the faulty GPU is granted to nobody")
        with job(node, directory, "job-3", 3) as third:
            assert str(victim) not in third.split(",")
            show(node)
    step("all jobs have ended: what is locked now?")
    until(lambda: "nothing is locked" in node.ask("locks"), "all locks released")
    say(node.ask("locks").rstrip())
    return farewell(node)


def farewell(node: Node) -> int:
    """Say where to look and what to try; on a terminal the node stays up until Ctrl-C."""
    url = node.url()
    with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:  # noqa: S310  our own loopback address
        lines = [line for line in answer.read().decode().splitlines() if "_health{" in line and line.endswith(" 1.0")]
    step("the same for Prometheus")
    say("\n".join(lines))
    command = f".venv/bin/gpu-nodeagent --config {node.config}"
    step("what to try next")
    say(
        f"  {url}/metrics        for Prometheus\n  {url}/               a page for people\n"
        f"  {url}/api/v1/status  status --json\n"
        f"  {command} status\n  {command} locks\n"
        f"  {command} restore 0      the agent retires it again: its fault persists\n"
        "  make test                the same under real Slurm and real Grid Engine"
    )
    if sys.stdout.isatty() and sys.stdin.isatty():
        say("\nThe node stays up until you press Ctrl-C.")
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
