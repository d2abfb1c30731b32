"""When what a check finds counts: so often in a row or within a time, for so long, not just after a boot. Pure.

All times are monotonic seconds of one boot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nodeagent.config.model import Health
from nodeagent.config.values import Within
from nodeagent.health.checks import xid
from nodeagent.health.memory import UnitMemory

AT_ONCE = (xid.NAME,)
"""Checks that report events: one is enough, whatever the settings say."""


@dataclass(frozen=True)
class Tally:
    """How often and since when each check has been finding something on one unit; the fields are UnitMemory's."""

    strikes: Mapping[str, int]
    rows: Mapping[str, float]
    stamps: Mapping[str, tuple[float, ...]]


def tally(unit: UnitMemory, struck: Iterable[str], judged: bool, now: float, settings: Health) -> Tally:
    """Return the tally after a cycle in which the checks `struck` found something.

    A cycle in which the unit could not be read (not `judged`) ends the row of no other check. Of the stamps those are
    kept which can still make up the number within its time, so they are no more than that number.
    """
    strikes = {} if judged else dict(unit.strikes)
    rows = {} if judged else dict(unit.rows)
    windows = {check: rule for check, rule in settings.strikes.items() if isinstance(rule, Within)}
    stamps = {check: unit.stamps.get(check, ()) for check in windows}
    for check in struck:
        strikes[check] = unit.strikes.get(check, 0) + 1
        rows[check] = unit.rows.get(check, now)
        if check in windows:
            stamps[check] = (*stamps[check], now)
    for check, rule in windows.items():
        stamps[check] = tuple(stamp for stamp in stamps[check] if now - stamp < rule.within)[-rule.times :]
    return Tally(strikes, rows, {check: found for check, found in stamps.items() if found})


def missing(check: str, seen: Tally, now: float, settings: Health) -> str:
    """Return what is missing until this check's finding of this cycle counts, in words; empty: it counts."""
    if check in AT_ONCE:
        return ""
    if now < settings.settle:
        return f"counts from {settings.settle:g} s after the boot on"
    rule = settings.strikes.get(check, settings.default_strikes)
    if isinstance(rule, Within):
        found = len(seen.stamps.get(check, ()))
        if found < rule.times:
            return f"seen {found} of {rule.times} times within {rule.within:g} s"
    elif seen.strikes[check] < rule:
        return f"seen {seen.strikes[check]} of {rule} times"
    stood, dwell = now - seen.rows[check], settings.dwell.get(check, 0.0)
    return f"stands for {stood:g} of {dwell:g} s" if stood < dwell else ""


def clean_for(check: str, settings: Health) -> float:
    """Return for how many seconds a unit must have been clean before what the check found is taken back.

    What counts by a number within a time is not taken back before that time has passed: it would come and go.
    """
    rule = settings.strikes.get(check)
    window = rule.within if isinstance(rule, Within) and check not in AT_ONCE else 0.0
    return max(settings.recover_after.get(check, 0.0), window)
