"""An agent that polls without rest, in a process of its own, and tells the size of itself and of its probe.

    python -m tests.contract.memory_scene CONFIG POLLS CYCLE_EVERY REPORTS

A poll is a sweep of the real probe process and the judgement of it; each CYCLE_EVERY-th is a whole cycle of the agent,
with its files and its history. The clock goes on by the configured interval at each poll, so windows, tidying and
whatever else waits for time to pass has its turn as often as on a node. After each POLLS / REPORTS polls it prints a
`Report` as a line of JSON and waits for a line on stdin, so that its GPUs can be changed in between.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from nodeagent.agent.actions import Actions
from nodeagent.agent.cycle import Cycle, Ports
from nodeagent.agent.journal import open_log
from nodeagent.agent.records import Records
from nodeagent.cli.run_command import HookConfCompiler
from nodeagent.config.load import load
from nodeagent.gpu.probe import ProbeProcess
from nodeagent.health.memory import Memory
from nodeagent.health.verdict import judge
from nodeagent.history.store import Store as HistoryStore
from nodeagent.history.writer import Writer
from nodeagent.lock.store import Store
from nodeagent.scheduler.registry import node_name, scheduler_of
from nodeagent.state.boot import boot_id
from nodeagent.state.files import Directory


@dataclass(frozen=True)
class Size:
    """A process: its private memory in KiB, its descriptors, its threads.

    Private memory (RssAnon), as pages of libraries and files come and go with what other processes do.
    """

    kib: int
    descriptors: int
    threads: int


@dataclass(frozen=True)
class Report:
    """After so many polls."""

    polls: int
    agent: Size
    probe: Size

    @classmethod
    def of_line(cls, line: str) -> Report:
        """Read what `main` printed."""
        plain = json.loads(line)
        return cls(plain["polls"], Size(**plain["agent"]), Size(**plain["probe"]))


class QuickClock:
    """The clock of a node on which an interval passes at each poll."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        """Return seconds since boot."""
        return time.monotonic() + self.ahead

    def wall(self) -> float:
        """Return seconds since 1970."""
        return time.time() + self.ahead


def size_of(pid: int) -> Size:
    """Look at a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Size(int(status["RssAnon"].split()[0]), len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]))


def agent(config_path: str, clock: QuickClock) -> tuple[Cycle, ProbeProcess, Writer]:
    """Put an agent's parts together as `run` does, but for the loop and the page."""
    found = load(Path(config_path))
    config = found.config
    log = open_log("error")
    state = Directory(config.state_dir, create=True)
    Path(config.data_dir).mkdir(parents=True, exist_ok=True)
    compiler = HookConfCompiler(found, state, log)
    compiler()
    history = Writer(lambda: HistoryStore(config.data_dir), config.history.max_age, config.history.max_size, log)
    history.start()
    source = ProbeProcess(config, clock=clock)
    scheduler = scheduler_of(config)
    boot = boot_id(config.roots.proc)
    actions = Actions(
        Store(state), Records(config.data_dir), scheduler, config.limits.max_drained, boot, history.record
    )
    ports = Ports(state, source, scheduler, actions, clock, log, compiler, history)
    return Cycle(config, node_name(config), "test", ports), source, history


def main() -> None:
    """Poll and report."""
    config_path, polls, cycle_every, reports = sys.argv[1], *(int(word) for word in sys.argv[2:5])
    clock = QuickClock()
    cycle, source, _ = agent(config_path, clock)
    cycle.begin()
    memory = Memory()
    for poll in range(1, polls + 1):
        clock.ahead += cycle.interval
        if poll % cycle_every == 1:
            cycle.run()
        else:
            _, memory = judge(memory, source.sample(), cycle.config.health)
        if poll % (polls // reports) == 0:
            gc.collect()
            report = Report(poll, size_of(os.getpid()), size_of(source.pid or 0))
            sys.stdout.write(f"{json.dumps(asdict(report))}\n")
            sys.stdout.flush()
            sys.stdin.readline()
    cycle.end()


if __name__ == "__main__":
    main()
