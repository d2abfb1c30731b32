"""A node that is only remembered: decisions change values here, and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from nodeagent.health.finding import RecoveryAction
from nodeagent.policy.decide import (
    BY_AGENT,
    Decision,
    Drain,
    DrainRecord,
    ForgetDrain,
    Raise,
    Restore,
    Resume,
    Retire,
)
from nodeagent.scheduler.local import LocalScheduler


class RememberedDrain:
    """Our own drain as a value (see agent/decider.py: DrainRecords)."""

    def __init__(self) -> None:
        self.record: DrainRecord | None = None

    def drain(self) -> DrainRecord | None:
        """See DrainRecords."""
        return self.record

    def put_drain(self, record: DrainRecord) -> None:
        """See DrainRecords."""
        self.record = record


class RememberedNode:
    """Carries decisions out on values (see agent/decider.py: Means); no limit is in their way.

    `done` is what was decided since it was emptied last; `boot_id` the boot that a retirement is dated by.
    """

    def __init__(self, spares_units: bool) -> None:
        self.done: list[Decision] = []
        self.boot_id = ""
        self.scheduler = LocalScheduler()
        self.scheduler.spares_units = spares_units
        self.records = RememberedDrain()
        self._retired: dict[str, dict[str, str]] = {}

    def maintenance(self) -> None:
        """See Means: a replay is of what would be done."""

    def publish_retired(self) -> None:
        """See Means: there is one truth only."""

    def retired(self) -> Mapping[str, Mapping[str, str]]:
        """See Means."""
        return dict(self._retired)

    def retire(self, unit: str, reason: str, check: str, action: RecoveryAction) -> None:
        """See Means."""
        record = {"reason": reason, "check": check, "action": action.word, "by": BY_AGENT, "boot_id": self.boot_id}
        self._retired[unit] = record
        self.done.append(Retire(unit, reason, check, action))

    def restore(self, unit: str) -> None:
        """See Means."""
        del self._retired[unit]
        self.done.append(Restore(unit))

    def drain(self, reason: str, action: RecoveryAction) -> None:
        """See Means."""
        self.records.put_drain(DrainRecord(reason, action, scope="node"))
        self.scheduler.drain(reason, "node")
        self.done.append(Drain(reason, action))

    def raise_drain(self, action: RecoveryAction) -> None:
        """See Means."""
        record = self.records.record
        if record is not None:
            self.records.put_drain(DrainRecord(record.reason, action, record.by, record.scope))
        self.done.append(Raise(action))

    def resume(self) -> None:
        """See Means."""
        self.scheduler.resume("node")
        self.records.record = None
        self.done.append(Resume())

    def forget_drain(self) -> None:
        """See Means."""
        self.records.record = None
        self.done.append(ForgetDrain())

    def deed(self, kind: str, unit: str, why: str, *, after: str) -> None:
        """See Means: a replay tells of what is carried out, and carries out all."""
