"""One event seen by two witnesses (NVML and the kernel log) is one event. Pure."""

from __future__ import annotations

from nodeagent.gpu.facts import XidEvent

WINDOW = 5.0
"""Seconds between the two reports of one event."""


class Witnesses:
    """Pairs each report with at most one of the other witness: what one witness says twice has happened twice."""

    def __init__(self, window: float = WINDOW) -> None:
        self._window = window
        self._alone: list[XidEvent] = []
        """Reports not yet confirmed by the other witness, oldest first."""

    def is_new(self, event: XidEvent) -> bool:
        """Return whether this report is news, False if it confirms what the other witness has reported already."""
        self._alone = [old for old in self._alone if event.monotonic - old.monotonic <= self._window]
        for at, old in enumerate(self._alone):
            if old.source != event.source and _same(old, event) and old.monotonic - event.monotonic <= self._window:
                del self._alone[at]
                return False
        self._alone.append(event)
        return True


def _same(one: XidEvent, other: XidEvent) -> bool:
    return (one.kind, one.uuid or one.bus_id, one.xid) == (other.kind, other.uuid or other.bus_id, other.xid)
