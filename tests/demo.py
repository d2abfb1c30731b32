"""`make demo`: one simulated 8-GPU node, three jobs, one GPU that falls off the bus and one that comes back.

No root, no scheduler, no GPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.simnvml import CompilerMissing
from tests.simulated_node import SimulatedNode, running, until


def say(words: str) -> None:
    """Print at once."""
    print(words, flush=True)


def step(words: str) -> None:
    """Announce a step."""
    say(f"\n\033[1m== {words}\033[0m" if sys.stdout.isatty() else f"\n== {words}")


@contextmanager
def job(node: SimulatedNode, directory: Path, name: str, gpus: int) -> Iterator[str]:
    """Run a job that prints what it sees and stays until the block ends; yields its CUDA_VISIBLE_DEVICES."""
    log = directory / f"{name}.out"
    script = 'echo "devices=$CUDA_VISIBLE_DEVICES"; exec sleep 300'
    with running(node.argv("exec", "-n", str(gpus), "--", "/bin/sh", "-c", script), node.environment, log):
        line = until(lambda: next((x for x in log.read_text().splitlines() if x.startswith("devices=")), None), name)
        devices = line.partition("=")[2]
        say(f"{name}: exec -n {gpus} got GPUs {devices}")
        yield devices


def show(node: SimulatedNode) -> None:
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
            node = SimulatedNode(directory, settings="interval: 1s\nhealth: {recover: 2}\n")
        except CompilerMissing as error:
            say(f"the stand-in NVML library cannot be built: {error}")
            return 1
        with node.agent():
            return play(node, directory)


def play(node: SimulatedNode, directory: Path) -> int:
    """The story."""
    step("an agent on a node with 8 simulated H100s")
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
    retire_and_return(node, next(index for index in range(8) if index != victim))
    return farewell(node)


def retire_and_return(node: SimulatedNode, patient: int) -> None:
    """Show that a GPU is taken out for a fault that a reset cures, and that it comes back by itself."""
    step(f"GPU {patient} asks for a reset: it is retired, the node stays")
    with node.scenario.edit():
        node.scenario.require_reset(patient)
    until(lambda: node.status()["gpus"][patient]["retired"], "the GPU retired")
    show(node)
    step(f"GPU {patient} was reset and is found well twice: it is back, and history tells it")
    with node.scenario.edit():
        node.scenario.heal(patient)
    until(lambda: not node.status()["gpus"][patient]["retired"], "the GPU back")
    show(node)
    say(until(lambda: told if "restore" in (told := node.ask("history", str(patient))) else "", "it told").rstrip())


def farewell(node: SimulatedNode) -> int:
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
