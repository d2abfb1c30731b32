"""A turn at counting and draining: one node of a cluster at a time; what is common to all schedulers."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType

from nodeagent.errors import CommandFailed, NodeAgentError

_MINUTE = 60.0
_COMMANDS = 12
"""Commands from taking a turn to draining, at most: Grid Engine's, with a window."""


class NotOurTurn(NodeAgentError):
    """Another node counts and drains at this moment, or our own time for it is over: it is tried again soon."""

    exit_code = 69

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(why)

    def __str__(self) -> str:
        return f"not drained yet: {self.why}"


def length_of(timeout: float) -> float:
    """Return how long a turn lasts (seconds): whole minutes, as Slurm counts, in which its slowest commands fit."""
    return max(1, math.ceil(_COMMANDS * timeout / _MINUTE)) * _MINUTE


class Turn(ABC):
    """One node's turn, as a context: entered, nobody else has one; left, it is given back.

    It ends by itself `length_of(timeout)` seconds after it was begun, for the sake of those whose holder has died.
    `timeout` is the longest that one command of ours takes. A drain whose command did not end may still take effect:
    then the turn is not given back, so that nobody counts before that.
    """

    def __init__(self, timeout: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.length = length_of(timeout)
        self._timeout = timeout
        self._monotonic = monotonic
        self._begun = 0.0
        self._spent = False

    def __enter__(self) -> Turn:
        """Take the turn.

        Raises:
            NotOurTurn: another has it.
            CommandFailed: the scheduler gives none.

        """
        self._begun = self._monotonic()  # before it is asked for: the scheduler counts from later on
        self._take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Give the turn back, if that is known to be harmless."""
        unknown = isinstance(error, CommandFailed) and error.status is None
        if (unknown and self._spent) or self._is_over():
            return
        try:
            self._give_back()
        except CommandFailed:
            pass  # what was done in it is done; it ends by itself

    def spend(self) -> None:
        """Note at the scheduler that this node is drained now; the last thing before it is.

        Raises:
            NotOurTurn: so little time is left that the drain might come after the turn's end.
            CommandFailed: it could not be noted.

        """
        self._note()
        if self._is_over():
            raise NotOurTurn(f"the scheduler's commands took most of the {self.length:g} s of our turn")
        self._spent = True

    def _is_over(self) -> bool:
        return self._monotonic() - self._begun > self.length - self._timeout

    @abstractmethod
    def _take(self) -> None:
        """Take it at the scheduler."""

    @abstractmethod
    def _give_back(self) -> None:
        """Give it back."""

    @abstractmethod
    def _note(self) -> None:
        """Note this drain for as long as `limits.window` asks."""


class Unshared(Turn):
    """The turn of a node that shares no limit: nobody is asked for it."""

    def __init__(self) -> None:
        super().__init__(0.0)

    def _take(self) -> None:
        """There is nobody to ask."""

    def _give_back(self) -> None:
        """There is nobody to tell."""

    def _note(self) -> None:
        """There is nobody to tell."""
