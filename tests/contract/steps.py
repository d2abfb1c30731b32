"""Two real processes at one state directory, each stopped at every named point of the protocol until told to go on.

A stop costs two pipes, not a sleep: which process runs when is the caller's choice alone. One that finds the flock
taken stops at `busy`, and is let go on only when it has been given back.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TextIO

from nodeagent.hook import epilog, node
from nodeagent.lock.flock import Flock
from nodeagent.lock.store import Store
from nodeagent.state.files import Directory

FOREVER = 3600.0
BEGIN, BUSY, LOCKED, UNLOCKED, RETURNED, RAISED = "begin", "busy", "locked", "unlocked", "returned", "raised"
OVER = (RETURNED, RAISED)

Stop = Callable[[str], None]
Operation = Callable[[Store], object]


class SteppedStore(Store):
    """The store, stopping at each of its points. No wait for the flock ends by itself: time has no say here."""

    __slots__ = ("_stop",)

    def __init__(self, state: Directory, stop: Stop) -> None:
        super().__init__(state)
        self._stop = stop

    def exclusive(self, timeout: float = FOREVER) -> Flock:
        return super().exclusive(FOREVER)

    def trace(self, point: str) -> None:
        self._stop(point)


class Stepped:
    """A process that does operations by name; between two calls of `step` it stands at the point `at`."""

    def __init__(self, state: str, operations: Mapping[str, Operation], store: type[SteppedStore]) -> None:
        down, up = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(down[1])
            os.close(up[0])
            _serve(state, operations, store, os.fdopen(down[0]), os.fdopen(up[1], "w", buffering=1))
        os.close(down[0])
        os.close(up[1])
        self._down, self._up = os.fdopen(down[1], "w", buffering=1), os.fdopen(up[0])
        self.operation = ""
        self.at = RETURNED
        self.inside = False
        self.said = ""

    def start(self, operation: str) -> None:
        """Begin an operation: it stands before its first instruction."""
        self.operation, self.at, self.inside, self.said = operation, BEGIN, False, ""
        print(operation, file=self._down)

    def step(self) -> str:
        """Let it go on to its next point and return that; `said` is then what it returned or raised, if it is over."""
        print(file=self._down)
        self.at, _, self.said = self._up.readline().rstrip("\n").partition(" ")
        if not self.at:
            raise AssertionError(f"{self.operation}: its process ended")
        self.inside = (self.inside or self.at == LOCKED) and self.at != UNLOCKED and self.at not in OVER
        return self.at

    def end(self) -> None:
        """End the process, wherever it stands."""
        os.kill(self.pid, signal.SIGKILL)
        self._down.close()
        self._up.close()
        os.waitpid(self.pid, 0)


def _serve(
    state: str, operations: Mapping[str, Operation], kind: type[SteppedStore], orders: TextIO, told: TextIO
) -> None:
    """Be the process: a line names an operation, each further one lets it go on. Never returns: this is a fork."""

    def stop(point: str) -> None:
        print(point, file=told)
        if not orders.readline():
            os._exit(0)

    try:
        store = kind(Directory(state), stop)
        for module in (node, epilog):  # where hooks make their own
            module.Store = lambda directory: kind(directory, stop)  # type: ignore[attr-defined]
        while name := orders.readline().rstrip("\n"):
            orders.readline()  # the step that begins it
            try:
                print(RETURNED, operations[name](store), file=told)
            except Exception:  # noqa: BLE001  whatever it is, it is the test's to judge
                print(RAISED, " | ".join(traceback.format_exc().splitlines()[-5:]), file=told)
    finally:
        os._exit(0)


def every_order(run: Callable[[Sequence[int]], Sequence[tuple[int, Sequence[int]]]]) -> Iterator[list[int]]:
    """Call `run` once for each order in which two processes can be stepped, and yield that order.

    `run(prefix)` must follow the prefix and then choose the first option each time; it returns what it chose and what
    it could have chosen, step by step.
    """
    prefix: list[int] = []
    while True:
        trail = list(run(prefix))
        yield [chosen for chosen, _ in trail]
        while trail and trail[-1][0] == trail[-1][1][-1]:
            trail.pop()
        if not trail:
            return
        chosen, options = trail[-1]
        prefix = [one for one, _ in trail[:-1]] + [options[options.index(chosen) + 1]]
