"""What may take as long as a controller pleases is done beside the cycle: one errand at a time, in a thread."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from threading import Thread
from typing import Protocol

from nodeagent.agent.journal import Log

_PATIENCE = 10.0


class Errands(Protocol):
    """Does one thing at a time."""

    @property
    def busy(self) -> bool:
        """Whether one is under way: the next one has to wait for it."""

    def run(self, work: Callable[[], None]) -> None:
        """Begin it; only while not busy."""

    def close(self) -> None:
        """Wait for the end of the one under way, within a bounded time."""


class AtOnce:
    """Does it in the caller's time: a replay, and tests."""

    busy = False

    def run(self, work: Callable[[], None]) -> None:
        """See Errands: it is done on return."""
        work()

    def close(self) -> None:
        """See Errands: nothing is under way."""


class Beside:
    """Does it in a thread of its own, so that a controller that does not answer keeps no cycle waiting."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._thread = Thread()

    @property
    def busy(self) -> bool:
        """See Errands."""
        return self._thread.is_alive()

    def run(self, work: Callable[[], None]) -> None:
        """See Errands: it is begun on return."""
        self._thread = Thread(target=self._do, args=(work,), name="errand", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """See Errands: what an errand does is recorded before it is done, so it may be cut short."""
        if self.busy:
            self._thread.join(_PATIENCE)

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  the thread's boundary: one bad errand must not be the last one
            self._log.error("errand_failed", why=repr(error), trace=traceback.format_exc())
