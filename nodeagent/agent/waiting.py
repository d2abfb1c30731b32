"""What stands between a decision and the node: a scheduler that is away, and an administrator who knows better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from nodeagent.agent.journal import Log
from nodeagent.agent.records import PENDING, RESUMED
from nodeagent.clock import Clock
from nodeagent.errors import NodeAgentError
from nodeagent.history.entry import DRAIN
from nodeagent.report import iso
from nodeagent.scheduler.trouble import Trouble

WAITS, DROPPED = "waits", "dropped"
"""What came of a drain that could not be made: it waits for the scheduler; it is not wanted any more."""


class Memos(Protocol):
    """What outlives the agent (agent/records.py: Records)."""

    def memo(self, name: str) -> Mapping[str, str]:
        """Return what is noted under a name; empty: nothing."""

    def put_memo(self, name: str, fields: Mapping[str, str]) -> None:
        """Note it; empty fields remove it."""


class Teller(Protocol):
    """Who has the memos, and tells history (agent/actions.py: Actions)."""

    @property
    def records(self) -> Memos:
        """What outlives the agent."""

    def deed(self, kind: str, unit: str, why: str, *, after: str) -> None:
        """Tell of what came of a decision that was not carried out."""


class Waiting:
    """Remembers, on disk, a drain that waits for the scheduler and the faults that a node was resumed in spite of."""

    def __init__(self, actions: Teller, clock: Clock, log: Log) -> None:
        self._actions = actions
        self._clock = clock
        self._log = log
        self.trouble: Trouble | None = None
        """Why the scheduler could not be asked when it was asked last."""

    def successor(self, actions: Teller) -> Waiting:
        """Return the one that goes on with another configuration: it asks at once."""
        new = Waiting(actions, self._clock, self._log)
        new.trouble = self.trouble
        return new

    # -- the scheduler is away ----------------------------------------------------------------------------------------

    def failed(self, trouble: Trouble, reason: str) -> None:
        """The scheduler did not do it. `reason` is of the drain that waits for it; empty: none does."""
        if self.trouble is None or self.trouble.kind != trouble.kind:
            self._log.error("scheduler_unavailable", kind=trouble.kind, remedy=trouble.remedy)
        self.trouble = trouble
        if reason and not self._memo(PENDING):
            fields = {"reason": reason, "since": iso(self._clock.wall()), "why": trouble.kind}
            self._note(PENDING, fields)
            self._log.warning("drain_waits", why=reason, trouble=trouble.kind)
            self._actions.deed(DRAIN, "", f"{trouble.kind}: {reason}", after=WAITS)

    def answered(self) -> None:
        """The scheduler has answered."""
        if self.trouble is not None:
            self._log.warning("scheduler_available")
        self.trouble = None

    def settled(self) -> None:
        """What was wanted is done, or refused, or done already by somebody: nothing waits."""
        self._note(PENDING, {})

    def over(self) -> None:
        """No drain is wanted: one that waits is dropped, and that is told."""
        waiting = self._memo(PENDING)
        if waiting:
            self._note(PENDING, {})
            self._log.warning("drain_dropped", why=waiting.get("reason", ""))
            why = f"the fault was over before the scheduler came back: {waiting.get('reason', '')}"
            self._actions.deed(DRAIN, "", why, after=DROPPED)

    def problem(self) -> str:
        """Return one line for a person about what is in the way; empty: nothing."""
        if self.trouble is None:
            return ""
        waiting = self._memo(PENDING)
        drain = f"; a drain waits for it since {waiting['since']}" if waiting.get("since") else ""
        return f"{self.trouble.kind}: {self.trouble.remedy}{drain}"

    # -- an administrator has resumed the node ------------------------------------------------------------------------

    def is_waived(self, faults: frozenset[str]) -> bool:
        """Say whether the node was resumed in spite of all of these."""
        return bool(faults) and faults <= self._waived()

    def stands(self, faults: frozenset[str]) -> None:
        """These are all that stand now: what is not among them asks for a drain when it shows again."""
        waived = self._waived()
        if waived - faults:
            self._note(RESUMED, {"faults": " ".join(sorted(waived & faults))} if waived & faults else {})

    def _waived(self) -> frozenset[str]:
        return frozenset(self._memo(RESUMED).get("faults", "").split())

    def _memo(self, name: str) -> Mapping[str, str]:
        return self._actions.records.memo(name)

    def _note(self, name: str, fields: Mapping[str, str]) -> None:
        try:
            if fields or self._memo(name):
                self._actions.records.put_memo(name, fields)
        except (NodeAgentError, OSError) as error:
            self._log.error("not_recorded", why=str(error))
