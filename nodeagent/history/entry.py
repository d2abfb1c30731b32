"""What history keeps: one entry a change or a deed, how far it is being written, and how a command tells the agent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

VERDICT, REASONS, XID = "verdict", "reasons", "xid"
RETIRE, RESTORE = "retire", "restore"
DRAIN, RESUME, RAISE_DRAIN, FORGET_DRAIN = "drain", "resume", "raise_drain", "forget_drain"
COMMAND, RESET, REBOOT = "run_command", "reset", "reboot"
MAINTENANCE = "maintenance"
AGENT, HISTORY = "agent", "history"
KINDS = (
    *(VERDICT, REASONS, XID, RETIRE, RESTORE, DRAIN, RESUME, RAISE_DRAIN, FORGET_DRAIN, MAINTENANCE),
    *(COMMAND, RESET, REBOOT, AGENT, HISTORY),
)
DONE, REFUSED, DRY_RUN, WAITS, FAILED = "done", "refused", "dry-run", "waits", "failed"
ON, OFF = "on", "off"
BY_HAND = "by_hand"
"""The event by which a command tells what an administrator did: only the agent writes history."""


@dataclass(frozen=True)
class Entry:
    """One thing that happened.

    `at` is wall time in seconds. `unit` is a GPU or a part of one, empty for the node; `index`, `bus_id` and `serial`
    are those of its GPU, where they are known. `before` and `after` are verdicts; of a deed `after` is what came of it
    (done, refused, dry-run, waits, failed), of maintenance on or off. `check`, `severity` and `action` are those of the
    gravest finding. `by` is who did it: agent, epilog, or admin with a name. `count` is how often an XID came in one
    cycle. `findings` and `facts` (of that GPU, as they were read) are plain JSON values.

    `again`: it may be in history already. A verdict is then written only if the unit's last one is another, or is not
    OK and of another boot; anything else only if there is none of that kind, unit and time.
    """

    at: float
    kind: str
    boot_id: str = ""
    unit: str = ""
    index: int | None = None
    bus_id: str = ""
    serial: str = ""
    before: str = ""
    after: str = ""
    check: str = ""
    severity: str = ""
    action: str = ""
    by: str = "agent"
    evidence: str = ""
    count: int = 1
    findings: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    again: bool = False


@dataclass(frozen=True)
class Keeping:
    """How history is being kept: `problem` (empty: none) why it is not, entries `dropped`, `size` in bytes if known."""

    problem: str = ""
    dropped: int = 0
    size: int | None = None


class History(Protocol):
    """Where entries go. No method waits for a disk."""

    def record(self, entry: Entry) -> None:
        """Keep an entry; what cannot be kept is counted."""

    def keeping(self) -> Keeping:
        """Return how it goes."""

    def close(self) -> None:
        """Write what waits, within a bounded time."""


class NoHistory:
    """Keeps nothing."""

    def record(self, entry: Entry) -> None:
        """See History."""

    def keeping(self) -> Keeping:
        """See History."""
        return Keeping()

    def close(self) -> None:
        """See History."""


def as_event(entry: Entry, user: str) -> dict[str, str]:
    """Return the fields of the BY_HAND event for something that an administrator did."""
    named = {"action": entry.kind, "units": entry.unit, "why": entry.evidence, "check": entry.check}
    return {**named, "after": entry.after, "needs": entry.action, "since": f"{entry.at:.3f}", "user": user}


def from_event(fields: Mapping[str, str], at: float, boot_id: str) -> Entry | None:
    """Return what an administrator did, as `as_event` wrote it at that time; None if it cannot be read."""
    kind = fields.get("action", "")
    if kind not in (RETIRE, RESTORE, DRAIN, RESUME, MAINTENANCE):
        return None
    try:
        at = float(fields.get("since", at))
    except ValueError:
        return None
    return Entry(
        at,
        kind,
        boot_id,
        unit=fields.get("units", ""),
        after=fields.get("after", DONE),
        check=fields.get("check", ""),
        action=fields.get("needs", ""),
        by=f"admin {fields.get('user', '')}".strip(),
        evidence=fields.get("why", ""),
        again=True,
    )
