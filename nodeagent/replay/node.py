"""A node that is only remembered: decisions change values here, and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

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
    RunCommand,
)
from nodeagent.scheduler.local import LocalScheduler


class RememberedDrain:
    """Our own drain as a value (see agent/decider.py: DrainRecords)."""

    def __init__(self) -> None:
        self.record: DrainRecord | None = None
        self._memos: dict[str, Mapping[str, str]] = {}

    def drain(self) -> DrainRecord | None:
        """See DrainRecords."""
        return self.record

    def put_drain(self, record: DrainRecord) -> None:
        """See DrainRecords."""
        self.record = record

    def memo(self, name: str) -> Mapping[str, str]:
        """See DrainRecords."""
        return self._memos.get(name, {})

    def put_memo(self, name: str, fields: Mapping[str, str]) -> None:
        """See DrainRecords."""
        self._memos[name] = fields


class RememberedCommands:
    """The site's commands as values (see agent/decider.py: Commands): none is run; `done` is what would have been."""

    def __init__(self, done: list[Decision]) -> None:
        self.begun: set[tuple[str, str]] = set()
        self._done = done

    def begin(self, decision: RunCommand) -> None:
        """See Commands."""
        self.begun.add(decision.key)
        self._done.append(decision)

    def forget(self, keys: Collection[tuple[str, str]]) -> None:
        """See Commands."""
        self.begun.difference_update(keys)


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
        self.commands = RememberedCommands(self.done)
        self._retired: dict[str, dict[str, str]] = {}

    def busy(self) -> bool:
        """See Means: a recording has no locks, so nothing waits for jobs to end."""
        return False

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
            self.records.put_drain(replace(record, action=action))
        self.done.append(Raise(action))

    def resume(self) -> None:
        """See Means."""
        self.scheduler.resume("node")
        self.records.record = None
        self.done.append(Resume())

    def forget_drain(self, faults: Collection[str] = ()) -> None:
        """See Means: nobody resumes such a node by hand."""
        self.records.record = None
        self.done.append(ForgetDrain())

    def deed(self, kind: str, unit: str, why: str, *, after: str) -> None:
        """See Means: a replay tells of what is carried out, and carries out all."""
