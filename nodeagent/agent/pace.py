"""When a scheduler may be asked again about this node: seldom while nothing changes, and never all nodes at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from math import inf

from nodeagent.clock import Clock

_SHORTEST = 1.0
_FIRST = 6.0
"""Seconds after the first try that failed, as many as it had commands: so a node is at one a second at most."""
_EACH_NODE = 0.6
"""Seconds for each node of a fleet that is full: all of it together asks with three or four commands a second."""


class Pace:
    """The pauses between two looks at the scheduler.

    A pause is of `longest` seconds, less while something waits for its turn or a command failed: from 6 s on, twice as
    long after each try. Where the limit is reached it grows with the fleet. Each is cut to a random part of it, half
    to all: so that not the same node comes first each time, nor all at the same time.
    """

    def __init__(self, clock: Clock, longest: float, pick: Callable[[float, float], float] = random.uniform) -> None:
        self._clock = clock
        self._longest = longest
        self._pick = pick
        self._question: object = None
        self._next = self._earliest = -inf
        self._tries = 0
        self._waits = False
        self.wake = inf
        """When it is to be asked again, by the monotonic clock, if that is before the next cycle: a drain waits for its
        turn, or what is asked has changed just after it was asked."""

    def allows(self, question: object) -> bool:
        """Say whether to ask now: something else is asked than last time, or it is long ago; and note that it is."""
        now = self._clock.monotonic()
        changed = question != self._question
        if now < self._earliest or (not changed and now < self._next):
            if changed or self._waits:
                self.wake = self._earliest
            return False
        self._question = question
        self._next, self._earliest = now + self._part(self._longest), now + _SHORTEST
        return True

    def again(self) -> None:
        """Somebody may have changed what the scheduler knows: ask again soon, whatever is asked."""
        self._question = None

    def calm(self) -> None:
        """Nothing waits for its turn, nothing failed."""
        self._tries = 0
        self._waits = False
        self.wake = inf

    def failed(self) -> None:
        """A command failed."""
        self._hold(min(self._longest, _FIRST * 2**self._tries))
        self._tries += 1

    def not_our_turn(self) -> None:
        """Another node drains at this moment: this will be over soon."""
        self.failed()
        self._waits = True
        self.wake = self._earliest

    def full(self, nodes: int) -> None:
        """Of so many nodes no further one may go."""
        self.calm()
        self._hold(max(self._longest, _EACH_NODE * nodes))

    def _hold(self, pause: float) -> None:
        self._next = self._earliest = self._clock.monotonic() + self._part(pause)

    def _part(self, pause: float) -> float:
        return self._pick(pause / 2, pause)
