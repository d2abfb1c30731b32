"""What an agent counts from its start to its end."""

from __future__ import annotations

from collections import Counter

from nodeagent.agent.journal import Log
from nodeagent.gpu.facts import GpuSource
from nodeagent.snapshot import Counters


class Counts:
    """XIDs by (uuid, number), and events of hooks by kind."""

    def __init__(self) -> None:
        self.xids: Counter[tuple[str, int]] = Counter()
        self.hook_events: Counter[str] = Counter()
        self._overruns = 0

    def say_lost(self, source: GpuSource, log: Log) -> None:
        """Say it if XIDs may have been lost since this was last asked."""
        overruns = getattr(source, "overruns", 0)
        if overruns > self._overruns:
            log.warning(
                "xids_lost", times=overruns - self._overruns, why="the kernel log was overwritten before it was read"
            )
        self._overruns = overruns

    def frozen(
        self,
        dropped: int,
        decisions: Counter[tuple[str, str]],
        source: GpuSource,
        site: Counter[tuple[str, str]],
        commands: Counter[tuple[str, str]],
    ) -> Counters:
        """Return them as they are now, with what others count."""
        return Counters(
            dict(self.xids),
            dict(self.hook_events),
            dropped,
            dict(decisions),
            getattr(source, "timeouts", 0),
            getattr(source, "crashes", 0),
            getattr(source, "abandoned", 0),
            getattr(source, "overruns", 0),
            dict(site),
            dict(commands),
        )
