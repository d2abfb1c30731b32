"""When findings change a verdict and when a verdict is taken back: strikes, and clean cycles. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nodeagent.config.model import Health
from nodeagent.health.checks import xid
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.memory import Standing, UnitMemory
from nodeagent.state.verdict_file import DEGRADED, FAILED, OK, UNKNOWN

AT_ONCE = (xid.NAME,)
"""Checks that report events: one is enough, whatever the settings say."""


@dataclass(frozen=True)
class Weighed:
    """One unit after one cycle: its memory, with the new state in it, and the findings to show."""

    memory: UnitMemory
    reasons: tuple[Finding, ...]


def needed(check: str, settings: Health) -> int:
    """Return how many cycles in a row this check's findings must stand before they count."""
    return 1 if check in AT_ONCE else settings.strikes.get(check, settings.default_strikes)


def weigh(unit: UnitMemory, findings: Sequence[Finding], judged: bool, now: float, settings: Health) -> Weighed:
    """Return the unit's new state.

    `judged` says that the unit could be read in this cycle, so that a check which found nothing means something.
    """
    strikes = _strikes(unit, findings, judged)
    infos = [f for f in findings if f.severity is Severity.INFO]
    grave = [f for f in findings if f.severity is not Severity.INFO]
    counted = [f for f in grave if strikes[f.check] >= needed(f.check, settings)]
    pending = [f for f in grave if f not in counted]
    unknown = [f for f in counted if f.severity is Severity.UNKNOWN]
    fresh = _grouped([f for f in counted if f.severity is not Severity.UNKNOWN])
    blurred = not judged or any(f.severity is Severity.UNKNOWN for f in grave)
    standing = (*fresh, *_held(unit.standing, fresh, pending, blurred, settings.recover))
    in_doubt = unit.state in ("", UNKNOWN) and (not judged or any(f.severity >= Severity.UNKNOWN for f in pending))
    state = _state(standing, bool(unknown) or in_doubt)
    shown = [*infos, *unknown, *(f for one in standing for f in _shown(one, one in fresh, settings.recover))]
    if in_doubt:
        shown += [_waiting(f, strikes[f.check], needed(f.check, settings)) for f in pending]
    memory = replace(
        unit, strikes=strikes, standing=standing, state=state, since=unit.since if state == unit.state else now
    )
    return Weighed(memory, tuple(sorted(shown, key=lambda f: (-f.severity, -f.action, f.check, f.evidence))))


def _strikes(unit: UnitMemory, findings: Sequence[Finding], judged: bool) -> dict[str, int]:
    """Strikes by check; a cycle in which the unit could not be read ends those of no other check."""
    struck = {f.check for f in findings if f.severity is not Severity.INFO}
    kept = {} if judged else dict(unit.strikes)
    return {**kept, **{check: unit.strikes.get(check, 0) + 1 for check in struck}}


def _grouped(faults: Sequence[Finding]) -> tuple[Standing, ...]:
    groups: dict[tuple[str, Severity], list[Finding]] = {}
    for fault in faults:
        groups.setdefault((fault.check, fault.severity), []).append(fault)
    return tuple(Standing(tuple(group)) for group in groups.values())


def _held(
    old: Sequence[Standing], fresh: Sequence[Standing], pending: Sequence[Finding], blurred: bool, recover: int
) -> tuple[Standing, ...]:
    """What was found earlier, is not found now, and has not been gone for long enough."""
    held = []
    for one in old:
        if any(new.check == one.check and new.severity >= one.severity for new in fresh):
            continue
        dirty = blurred or any(f.severity >= one.severity for f in pending)
        one = replace(one, clean=0 if dirty else one.clean + 1)  # noqa: PLW2901
        if one.clean < recover:
            held.append(one)
    return tuple(held)


def _state(standing: Sequence[Standing], doubt: bool) -> str:
    worst = max((one.severity for one in standing), default=Severity.INFO)
    if worst is Severity.ERROR:
        return FAILED
    if doubt:
        return UNKNOWN
    return DEGRADED if worst is Severity.WARNING else OK


def _shown(one: Standing, is_fresh: bool, recover: int) -> tuple[Finding, ...]:
    if is_fresh:
        return one.findings
    missing = f" (not seen now; clean cycles: {one.clean} of {recover})"
    return tuple(replace(finding, evidence=finding.evidence + missing) for finding in one.findings)


def _waiting(finding: Finding, strikes: int, wanted: int) -> Finding:
    evidence = f"{finding.evidence} (seen {strikes} of {wanted} times)"
    return replace(finding, evidence=evidence, severity=Severity.UNKNOWN)
