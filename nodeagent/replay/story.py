"""What happened in a replay: changes of verdict, alarms from their beginning to their end, decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from nodeagent.health.finding import Finding, Severity
from nodeagent.health.verdict import Verdict
from nodeagent.policy.decide import Decision
from nodeagent.replay.engine import Step


@dataclass(frozen=True)
class Change:
    """A unit (empty: the node) got another verdict; the first verdict counts as one unless it is OK."""

    at: float
    unit: str
    index: int
    before: str
    after: str
    reasons: tuple[Finding, ...]


@dataclass(frozen=True)
class Alarm:
    """A check's findings on a unit (empty: the node) counted from `begin` to `end`; `severity` is the worst of them."""

    unit: str
    check: str
    severity: Severity
    begin: float
    end: float

    def stands(self, at: float) -> bool:
        """Say whether it counted at that time."""
        return self.begin <= at <= self.end


@dataclass
class Story:
    """A whole replay in short; grows with what happened, not with the number of sweeps."""

    sweeps: int = 0
    boots: int = 0
    begin: float = 0.0
    end: float = 0.0
    changes: list[Change] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)
    decisions: list[tuple[float, Decision]] = field(default_factory=list)
    verdict: Verdict | None = None


def tell(steps: Iterable[Step]) -> Story:
    """Return the story of all these steps."""
    story = Story()
    boot_id = ""
    standing: dict[tuple[str, str], Alarm] = {}
    for step in steps:
        if not story.sweeps or step.boot_id != boot_id:
            boot_id = step.boot_id
            story.boots += 1
        story.begin = story.begin if story.sweeps else step.at
        story.end = step.at
        story.sweeps += 1
        story.changes += _changes(step.at, story.verdict, step.verdict)
        story.decisions += [(step.at, decision) for decision in step.decisions]
        now = _alarms(step, standing)
        story.alarms += [alarm for key, alarm in standing.items() if key not in now]
        standing = now
        story.verdict = step.verdict
    story.alarms += standing.values()
    story.alarms.sort(key=lambda alarm: (alarm.begin, alarm.unit, alarm.check))
    return story


def _alarms(step: Step, before: dict[tuple[str, str], Alarm]) -> dict[tuple[str, str], Alarm]:
    """Return what counts now, by unit and check; what counted already goes on."""
    found: dict[tuple[str, str], Alarm] = {}
    everything = [("", step.verdict.node_findings), *((unit.uuid, unit.reasons) for unit in step.verdict.units)]
    for unit, reasons in everything:
        for finding in reasons:
            if finding.severity is Severity.INFO:
                continue
            key = unit, finding.check
            old = found.get(key) or before.get(key) or Alarm(unit, finding.check, finding.severity, step.at, step.at)
            found[key] = replace(old, severity=max(old.severity, finding.severity), end=step.at)
    return found


def _changes(at: float, old: Verdict | None, new: Verdict) -> list[Change]:
    before = {unit.uuid: unit.state for unit in old.units} if old is not None else {}
    changes = []
    node_before = old.node_state if old is not None else "OK"
    if new.node_state != node_before:
        changes.append(Change(at, "", -1, node_before, new.node_state, new.node_findings))
    for unit in new.units:
        was = before.get(unit.uuid, "OK")
        if unit.state != was:
            changes.append(Change(at, unit.uuid, unit.index, was, unit.state, unit.reasons))
    return changes
