"""The resident agent: one cycle from facts to action, again and again; signals only set flags."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nodeagent.agent.cycle import Cycle
from nodeagent.agent.journal import Log
from nodeagent.agent.notify import Notifier
from nodeagent.clock import Clock
from nodeagent.errors import ConfigError, NodeAgentError, StateGone

_MOST_FAILURES = 5  # cycles in a row that may fail before the watchdog is no longer fed
_SHORTEST_PAUSE = 0.2  # seconds between cycles however many XIDs come


class Page(Protocol):
    """What serves the metrics; told of nothing, it asks the cycle."""

    @property
    def url(self) -> str:
        """Where it listens."""

    def start(self) -> None:
        """Listen, or raise a NodeAgentError."""

    def stop(self) -> None:
        """Stop listening."""


@dataclass
class Flags:
    """What signals asked for."""

    stop: bool = False
    reload: bool = False


class Agent:
    """Runs cycles until it is told to stop.

    `reload` builds a new cycle from the configuration file, or raises: then the old one goes on. `page`,
    set before `run`, is started and stopped with it.
    """

    def __init__(
        self,
        cycle: Cycle,
        clock: Clock,
        log: Log,
        notifier: Notifier,
        reload: Callable[[Cycle], Cycle],
    ) -> None:
        self.cycle = cycle
        self._clock = clock
        self._log = log
        self._notifier = notifier
        self._reload = reload
        self.page: Page | None = None
        self.flags = Flags()
        self._failures = 0
        self._hurried = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        awake, wake = socket.socketpair()
        awake.setblocking(False)
        wake.setblocking(False)
        previous = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        try:
            self.cycle.chronicle.agent("started", pid=os.getpid(), version=self.cycle.version)
            self.cycle.begin()
            self._start_page()
            self._serve(awake)
        finally:
            self._notifier.stopping()
            signal.set_wakeup_fd(previous)
            awake.close()
            wake.close()
            if self.page is not None:
                self.page.stop()
            self.cycle.end()

    def _start_page(self) -> None:
        """Listen; without the address the agent still watches and locks, which matters more than being watched."""
        if self.page is None:
            return
        try:
            self.page.start()
        except NodeAgentError as error:
            self._log.error("listen_failed", why=str(error))
            self.page = None
        else:
            self._log.info("listening", url=self.page.url)

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self.flags.reload = True
        else:
            self.flags.stop = True

    def _serve(self, awake: socket.socket) -> None:
        ready = False
        while not self.flags.stop:
            started = self._clock.monotonic()
            self._one_cycle()
            if not ready:
                ready = True
                self._log.info("agent_ready", pid=os.getpid(), node=self.cycle.node, verdict=self.cycle.summary())
                self._notifier.ready(self.cycle.summary())
            self._notifier.status(self.cycle.summary())
            self._wait(awake, started)
        self._log.info("agent_stopping", node=self.cycle.node)
        self.cycle.chronicle.agent("stopped", pid=os.getpid())

    def _one_cycle(self) -> None:
        if self.flags.reload:
            self.flags.reload = False
            self._do_reload()
        try:
            self.cycle.run()
            self._failures = 0
        except StateGone:
            raise  # nothing that a further cycle could mend
        except Exception as error:  # noqa: BLE001  the loop's boundary: one bad cycle must not end the service
            self._failures += 1
            if isinstance(error, (NodeAgentError, OSError)):
                self._log.error("cycle_failed", why=str(error))
            else:
                self._log.error("cycle_failed", why=repr(error), trace=traceback.format_exc())
        if self._failures < _MOST_FAILURES:  # else the watchdog may try what a fresh start does
            self._notifier.alive()

    def _do_reload(self) -> None:
        self._notifier.reloading(self._clock.monotonic())
        try:
            self.cycle = self._reload(self.cycle)
        except (NodeAgentError, OSError) as error:
            for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
                self._log.error("config_refused", why=problem, note="the old configuration stays in force")
                self.cycle.chronicle.agent("reload refused", why=problem)
        else:
            self._log.info("config_reloaded", node=self.cycle.node)
            self.cycle.chronicle.agent("reloaded")
        self._notifier.ready(self.cycle.summary())

    def _wait(self, awake: socket.socket, started: float) -> None:
        """Wait for the next cycle's time, a signal or an XID, with signs of life for the watchdog in between."""
        deadline = min(started + self.cycle.interval, self.cycle.due)
        hurried, self._hurried = self._hurried, False  # at most one cycle out of turn between two in turn
        with selectors.DefaultSelector() as selector:
            selector.register(awake, selectors.EVENT_READ)
            witness, cleaning = self.cycle.fileno(), self.cycle.cleaning_fileno()
            for fd in (witness, cleaning):
                if fd >= 0:
                    selector.register(fd, selectors.EVENT_READ)
            while not self.flags.stop and not self.flags.reload:
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return
                until_clean = max(0.0, self.cycle.clean_at - self._clock.monotonic())
                nap = min(left, until_clean, self._notifier.watchdog_interval or left)
                woken = until_clean == 0.0
                for key, _ in selector.select(nap):
                    if key.fileobj is awake:
                        _drain(awake)
                    elif key.fileobj == cleaning:
                        woken = True
                    elif self.cycle.witnessed() and not hurried and not self._hurried:
                        self._hurried = True
                        deadline = min(deadline, self._clock.monotonic() + _SHORTEST_PAUSE)
                if woken:
                    self._clean()
                    deadline = min(deadline, self.cycle.due)
                if self._failures < _MOST_FAILURES:
                    self._notifier.alive()

    def _clean(self) -> None:
        try:
            self.cycle.clean()
        except Exception as error:  # noqa: BLE001  the loop's boundary, as in _one_cycle
            self._log.error("cycle_failed", why=repr(error), trace=traceback.format_exc())


def _drain(awake: socket.socket) -> None:
    try:
        while awake.recv(64):
            pass
    except BlockingIOError:
        pass
