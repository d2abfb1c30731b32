"""One event seen by two witnesses (NVML and the kernel log) is one event. Pure."""

from __future__ import annotations

from collections import deque

from nodeagent.gpu.facts import XidEvent

WINDOW = 5.0
"""Seconds between the two reports of one event."""
_OTHER = {"nvml": "kernel", "kernel": "nvml"}

_Key = tuple[str, str, int, str]


class Witnesses:
    """Pairs each report with at most one of the other witness: what one witness says twice has happened twice.

    A report costs the same however many came before it: thousands at once are no reason to be late.
    """

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._alone: dict[_Key, deque[float]] = {}
        """When (monotonic seconds) what was reported and is not confirmed yet, the first to come at the left."""

    def is_new(self, event: XidEvent) -> bool:
        """Return whether this report is news, False if it confirms what the other witness has reported already."""
        theirs = self._waiting(event, _OTHER[event.source])
        if theirs and theirs[0] - event.monotonic <= self._window:
            theirs.popleft()
            return False
        self._waiting(event, event.source).append(event.monotonic)
        return True

    def _waiting(self, event: XidEvent, source: str) -> deque[float]:
        """Return when that witness has reported the like, without what is too long ago to be the same."""
        key = (event.kind, event.uuid or event.bus_id, event.xid, source)
        stamps = self._alone.setdefault(key, deque())
        while stamps and event.monotonic - stamps[0] > self._window:
            stamps.popleft()
        return stamps
