"""Agents of many nodes that see a fault at the same instant: each a process with the real decider and adapter.

Only what they would read of GPUs is left out: all are given the verdict of a driver that is unfit, as after one bad
configuration for all of them.
"""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from pathlib import Path
from typing import Any

from nodeagent.agent.actions import Actions
from nodeagent.agent.decider import Decider
from nodeagent.agent.records import Records
from nodeagent.clock import SystemClock
from nodeagent.config.model import Config
from nodeagent.errors import CommandFailed
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import Verdict
from nodeagent.lock.store import Store
from nodeagent.replay.node import RememberedCommands
from nodeagent.scheduler.command import Asked, Conversation, run
from nodeagent.scheduler.port import Scheduler
from nodeagent.scheduler.sge import SgeScheduler
from nodeagent.scheduler.slurm import SlurmScheduler
from nodeagent.state.files import Directory
from nodeagent.state.verdict_file import FAILED
from tests.simulated_node import until

UNFIT = Finding("driver-init", "", Severity.ERROR, "kernel module and library differ", RecoveryAction.REBOOT_NODE)
DRAINS = ("update", "-d")
"""The word of `scontrol` and of `qmod` that drains."""


def die() -> None:
    """End at once, whatever is left undone."""
    os.kill(os.getpid(), signal.SIGKILL)


class Quiet:
    """A log that nobody reads."""

    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: None


class Commands:
    """Runs a node's commands, where `entrance` leads to, and writes down when each was begun.

    Of `slow` many a command begins late, of `failing` many one fails and does nothing (both shares). Where `marker` is
    a path the first agent that is about to drain does `first` (by default it kills itself): a file there says so.
    """

    def __init__(
        self,
        log: Path,
        entrance: Sequence[str] = (),
        slow: float = 0.0,
        failing: float = 0.0,
        marker: Path | None = None,
        first: Callable[[], None] = die,
    ) -> None:
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._entrance = entrance
        self._slow = slow
        self._failing = failing
        self._marker = marker
        self._first = first

    def __call__(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        timeout: float = 5.0,
        complaints: bool = False,
    ) -> str:
        self.before(argv)
        return run([*self._entrance, *argv], environment, timeout, complaints)

    def converse(
        self, argv: Sequence[str], prompt: str, environment: Mapping[str, str] | None = None, timeout: float = 5.0
    ) -> AbstractContextManager[Asked]:
        """The same with a program that is asked line by line: each line is a command."""
        return _Talk(Conversation([*self._entrance, *argv], prompt, environment, timeout), argv[0], self)

    def before(self, argv: Sequence[str]) -> None:
        """Do what is done before a command."""
        words = [argv[0].rpartition("/")[2], *argv[1:2]]
        if words[-1] in DRAINS and self._marker is not None:
            self._do_if_first(self._marker)
        if random.random() < self._slow:  # noqa: S311  no secret
            time.sleep(random.uniform(0.2, 1.0))  # noqa: S311
        os.write(self._log, f"{time.monotonic()} {' '.join(words)}\n".encode())
        if random.random() < self._failing:  # noqa: S311
            raise CommandFailed(argv, 1, "Unable to contact the controller (connect failure)")

    def _do_if_first(self, marker: Path) -> None:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        self._first()


class _Talk(AbstractContextManager[Asked]):
    def __init__(self, talk: Conversation, program: str, commands: Commands) -> None:
        self._talk = talk
        self._program = program
        self._commands = commands

    def __enter__(self) -> Asked:
        self._talk.__enter__()
        return self

    def __exit__(self, *what: object) -> None:
        self._talk.__exit__(*what)

    def ask(self, *lines: str) -> list[str]:
        for line in lines:
            self._commands.before([self._program, *line.split()])
        return self._talk.ask(*lines)

    def complaints(self) -> str:
        return self._talk.complaints()


class Storm:
    """The processes, one a node. As a context it ends them; none is left in its turn."""

    def __init__(self, directory: Path, nodes: Sequence[str], config: Config, commands: Callable[[Path], Commands]):
        self.directory = directory
        self.nodes = tuple(nodes)
        self.began = 0.0
        self._config = config
        self._commands = commands
        self._pids: dict[str, int] = {}
        self._status: dict[str, int] = {}
        directory.mkdir()

    def __enter__(self) -> Storm:
        """Start them; all see the fault at the same instant, `began` (monotonic seconds), which is soon."""
        self.began = time.monotonic() + 0.5 + 0.02 * len(self.nodes)
        for node in self.nodes:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    self._agent(node)
                    status = 0
                except Exception:  # noqa: BLE001  told, and seen by its status
                    traceback.print_exc()
                finally:
                    os._exit(status)  # whatever happened: this process must not go on as a second test
            self._pids[node] = pid
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._pids.keys() - self._status.keys():
            os.kill(self._pids[node], signal.SIGTERM)
        for node in self._pids.keys() - self._status.keys():
            self._status[node] = os.waitpid(self._pids[node], 0)[1]
        assert not any(map(os.WEXITSTATUS, self._status.values())), "an agent failed: see above"

    def wait(self, condition: Callable[[], object], what: str, timeout: float) -> float:
        """Wait until it is so; return for how many seconds the storm had raged by then."""
        until(condition, what, timeout)
        return time.monotonic() - self.began

    def killed(self) -> list[str]:
        """The nodes whose agent was killed."""
        for node in self._pids.keys() - self._status.keys():
            done, status = os.waitpid(self._pids[node], os.WNOHANG)
            if done:
                self._status[node] = status
        return [node for node, status in self._status.items() if os.WIFSIGNALED(status)]

    def commands(self) -> list[tuple[float, str, str]]:
        """What was asked of the controller by now: seconds since the fault, command, node; in order."""
        found = []
        for node in self.nodes:
            log = self.directory / node / "commands"
            for line in log.read_text().splitlines() if log.exists() else ():
                at, _, words = line.partition(" ")
                found.append((float(at) - self.began, words, node))
        return sorted(found)

    def _agent(self, node: str) -> None:
        """An agent's life. Told to end it does so after what it is doing."""
        ended = False

        def end(*_: object) -> None:
            nonlocal ended
            ended = True

        signal.signal(signal.SIGTERM, end)
        place = self.directory / node
        place.mkdir(mode=0o755)
        runner = self._commands(place / "commands")
        scheduler: Scheduler
        if self._config.scheduler.kind == "slurm":
            scheduler = SlurmScheduler(self._config, node, runner, runner.converse)
        else:
            scheduler = SgeScheduler(self._config, node, runner)
        records, store = Records(str(place / "data")), Store(Directory(str(place / "state"), create=True))
        actions = Actions(store, records, scheduler, self._config.limits.max_drained)
        clock = SystemClock()
        decider = Decider(self._config, actions, RememberedCommands([]), clock, Quiet(), node)
        time.sleep(max(0.0, self.began - clock.monotonic()))
        while not ended:
            begun = clock.monotonic()
            decider.pace.wake = inf
            decider.act(Verdict("boot", begun, (), FAILED, (UNFIT,)))
            due = min(begun + self._config.interval, decider.pace.wake)
            while not ended and clock.monotonic() < due:
                time.sleep(min(0.1, max(0.0, due - clock.monotonic())))


def report(commands: Sequence[tuple[float, str, str]], nodes: int) -> str:
    """Say what the controller had to bear: of all nodes together and of the one that asked most."""
    seconds = Counter(int(at) for at, _, _ in commands)
    by_node = Counter(node for _, _, node in commands)
    last = max(at for at, _, _ in commands)
    later = [at for at, _, _ in commands if at > last / 2]
    kinds = ", ".join(f"{count} {words}" for words, count in Counter(words for _, words, _ in commands).most_common())
    return (
        f"{nodes} nodes, {last:.0f} s: {len(commands)} commands, at most {max(seconds.values())} in one second and "
        f"{max(by_node.values())} of one node, {len(later) / (last / 2):.1f} a second in the later half: {kinds}"
    )


def busiest(commands: Sequence[tuple[float, str, str]], within: float) -> int:
    """The most commands that one node gave within so many seconds."""
    times: dict[str, list[float]] = {}
    for at, _, node in commands:
        times.setdefault(node, []).append(at)
    return max(sum(begin <= at < begin + within for at in ats) for ats in times.values() for begin in ats)
