"""The clock as a port: durations by the monotonic clock, dates only for people."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What the agent asks of a clock."""

    def monotonic(self) -> float:
        """Seconds since boot; never jumps; shared by all processes of this boot."""

    def wall(self) -> float:
        """Seconds since the epoch; may jump; only for what people read."""


class SystemClock:
    """The kernel's clocks."""

    def monotonic(self) -> float:
        """See Clock."""
        return time.monotonic()

    def wall(self) -> float:
        """See Clock."""
        return time.time()
