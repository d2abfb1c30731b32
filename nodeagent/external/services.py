"""systemd's units that the GPUs need, in systemd's own words. Asked seldom, in a thread: its manager may not answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from nodeagent.clock import Clock
from nodeagent.errors import CommandFailed
from nodeagent.gpu.host import Service
from nodeagent.scheduler.command import Runner, run

SYSTEMCTL = "/usr/bin/systemctl"
EVERY, SELDOM = 30.0, 600.0
"""Seconds between two questions, for each of which a process is started; where nobody answered, and may never."""
TIMEOUT = 5.0
PROPERTIES = ("Id", "LoadState", "ActiveState", "Result", "UnitFileState")


class Services:
    """What systemd said last of some units; nothing where there is no systemd, or it does not answer."""

    def __init__(self, clock: Clock, runner: Runner = run, systemctl: str = SYSTEMCTL) -> None:
        self._clock = clock
        self._runner = runner
        self._systemctl = systemctl
        self._due = float("-inf")
        self._thread: threading.Thread | None = None
        self._found: tuple[Service, ...] = ()

    def step(self, names: Sequence[str], patience: float = 0.0) -> tuple[Service, ...]:
        """Ask again if it is time, and return what was said last; waits `patience` seconds for the answer."""
        now = self._clock.monotonic()
        running = self._thread is not None and self._thread.is_alive()
        if names and not running and now >= self._due and os.access(self._systemctl, os.X_OK):
            self._due = now + EVERY
            self._thread = threading.Thread(target=self._ask, args=(tuple(names),), daemon=True, name="services")
            self._thread.start()
            self._thread.join(patience)
        return tuple(service for service in self._found if service.name in names)

    def _ask(self, names: tuple[str, ...]) -> None:
        units = [f"{name}.service" for name in names]
        argv = [self._systemctl, "show", "--property", ",".join(PROPERTIES), "--", *units]
        try:
            text = self._runner(argv, timeout=TIMEOUT)
            self._found = parse(text, self._clock.monotonic())
        except CommandFailed:
            self._found = ()  # no systemd runs here, or it does not answer: nothing is known
            self._due = self._clock.monotonic() + SELDOM


def parse(text: str, at: float) -> tuple[Service, ...]:
    """Return the services in what `systemctl show` printed then: a block of KEY=VALUE lines a unit, a blank between."""
    found = []
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        name, dot, _ = values.get("Id", "").rpartition(".service")
        if dot:
            load, active, result, file = (values.get(key, "") for key in PROPERTIES[1:])
            found.append(Service(name, load, active, result, file, at))
    return tuple(found)
