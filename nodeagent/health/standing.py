"""A unit's state from what was found on it, what counts of that, and what is not taken back yet. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.memory import Standing, UnitMemory
from nodeagent.health.rules import clean_for, missing, tally
from nodeagent.state.verdict_file import DEGRADED, FAILED, OK, UNKNOWN


@dataclass(frozen=True)
class Weighed:
    """One unit after one cycle: its memory, with the new state in it, and the findings to show."""

    memory: UnitMemory
    reasons: tuple[Finding, ...]


def weigh(
    unit: UnitMemory,
    findings: Sequence[Finding],
    judged: bool,
    now: float,
    settings: Health,
    unasked: Collection[str] = (),
) -> Weighed:
    """Return the unit's new state.

    `judged` says that the unit could be read in this cycle, so that a check which found nothing means something, but
    for those that have not been asked yet.
    """
    infos = [f for f in findings if f.severity is Severity.INFO]
    grave = [f for f in findings if f.severity is not Severity.INFO]
    seen = tally(unit, {f.check: now if f.at is None else f.at for f in grave}, judged, now, settings)
    lacks = {f.check: missing(f.check, seen, now, settings) for f in grave}
    counted = [f for f in grave if not lacks[f.check]]
    pending = [f for f in grave if lacks[f.check]]
    fresh = _grouped(counted)
    blurred = not judged or any(f.severity is Severity.UNKNOWN for f in grave)
    doubtful = {one.check for one in unit.standing if blurred or one.check in unasked}
    standing = (*fresh, *_held(unit.standing, fresh, pending, doubtful, now, settings))
    unsettled = unit.state in ("", UNKNOWN) or now < settings.settle
    in_doubt = unsettled and (not judged or any(f.severity >= Severity.UNKNOWN for f in pending))
    state = _state(standing, in_doubt)
    shown = [*infos, *(f for one in standing for f in _shown(one, one in fresh, now, settings))]
    if in_doubt:
        shown += [replace(f, evidence=f"{f.evidence} ({lacks[f.check]})", severity=Severity.UNKNOWN) for f in pending]
    since = unit.since if state == unit.state else now
    memory = replace(unit, **vars(seen), standing=standing, state=state, since=since)
    return Weighed(memory, in_order(shown))


def in_order(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return findings as they are shown: the worst first."""
    return tuple(sorted(findings, key=lambda f: (-f.severity, -f.action, f.check, f.evidence)))


def _grouped(faults: Sequence[Finding]) -> tuple[Standing, ...]:
    groups: dict[tuple[str, Severity], list[Finding]] = {}
    for fault in faults:
        groups.setdefault((fault.check, fault.severity), []).append(fault)
    return tuple(Standing(tuple(group)) for group in groups.values())


def _held(
    old: Sequence[Standing],
    fresh: Sequence[Standing],
    pending: Sequence[Finding],
    doubtful: Collection[str],
    now: float,
    settings: Health,
) -> tuple[Standing, ...]:
    """What was found earlier, is not found now, and has not been gone for long enough."""
    held = []
    for one in old:
        if any(_replaces(new, one) for new in fresh):
            continue
        dirty = one.check in doubtful or any(f.severity >= one.severity for f in pending)
        since = one.clean_since if one.clean_since is not None else now
        left = Standing(one.findings) if dirty else replace(one, clean=one.clean + 1, clean_since=since)
        if dirty or left.clean < settings.recover or now - since < clean_for(one.check, settings):
            held.append(left)
    return tuple(held)


def _replaces(new: Standing, old: Standing) -> bool:
    """Whether what is found now is told instead of what was found: not where it only says that nothing is known."""
    graver = new.severity > old.severity and new.severity is not Severity.UNKNOWN
    return new.check == old.check and (graver or new.severity is old.severity)


def _state(standing: Sequence[Standing], doubt: bool) -> str:
    severities = {one.severity for one in standing}
    if Severity.ERROR in severities:
        return FAILED
    if doubt or Severity.UNKNOWN in severities:
        return UNKNOWN
    return DEGRADED if Severity.WARNING in severities else OK


def _shown(one: Standing, is_fresh: bool, now: float, settings: Health) -> tuple[Finding, ...]:
    if is_fresh:
        return one.findings
    time = clean_for(one.check, settings)
    clean = 0.0 if one.clean_since is None else now - one.clean_since
    lasting = f", clean for {clean:g} of {time:g} s" if time else ""
    lacks = f" (not seen now; clean cycles: {one.clean} of {settings.recover}{lasting})"
    return tuple(replace(finding, evidence=finding.evidence + lacks) for finding in one.findings)
