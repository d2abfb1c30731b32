"""When what a check finds counts: so often in a row or within a time, for so long, not just after a boot. Pure.

All times are monotonic seconds of one boot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nodeagent.config.model import Health
from nodeagent.config.values import Within
from nodeagent.health.checks import sxid, xid
from nodeagent.health.memory import UnitMemory

AT_ONCE = (xid.NAME, sxid.NAME)
"""Checks that report events: one is enough, whatever the settings say."""


@dataclass(frozen=True)
class Tally:
    """How often and since when each check has been finding something on one unit; the fields are UnitMemory's."""

    strikes: Mapping[str, int]
    rows: Mapping[str, float]
    stamps: Mapping[str, tuple[float, ...]]


def tally(unit: UnitMemory, struck: Mapping[str, float], judged: bool, now: float, settings: Health) -> Tally:
    """Return the tally after a cycle in which checks found something: `struck`, check → when that was observed.

    A cycle in which the unit could not be read (not `judged`) ends the row of no other check. An observation that is
    told again is no new strike. Of the stamps those are kept which can still make up the number within its time.
    """
    strikes = {} if judged else dict(unit.strikes)
    rows = {} if judged else dict(unit.rows)
    stamps = {}
    for check in unit.stamps.keys() | struck.keys():
        rule = settings.strikes.get(check)
        found = unit.stamps.get(check, ())
        at = struck.get(check)
        if at is not None:
            is_new = check not in unit.strikes or at not in found
            strikes[check] = unit.strikes.get(check, 0) + is_new
            rows[check] = unit.rows.get(check, min(at, now))  # it may have been seen after the sweep ended
            found = (*found, at) if at not in found else found
        if isinstance(rule, Within):
            found = tuple(stamp for stamp in found if now - stamp < rule.within)[-rule.count :]
        else:
            found = found[-1:] if check in strikes else ()
        if found:
            stamps[check] = found
    return Tally(strikes, rows, stamps)


def missing(check: str, seen: Tally, now: float, settings: Health) -> str:
    """Return what is missing until this check's finding of this cycle counts, in words; empty: it counts."""
    if check in AT_ONCE:
        return ""
    if now < settings.settle:
        return f"counts from {settings.settle:g} s after the boot on"
    rule = settings.strikes.get(check, settings.default_strikes)
    if isinstance(rule, Within):
        found = len(seen.stamps.get(check, ()))
        if found < rule.count:
            return f"seen {found} of {rule.count} times within {rule.within:g} s"
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
