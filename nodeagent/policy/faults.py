"""Which occurrence of a fault this is: what somebody has resumed the node in spite of is known again by it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from nodeagent.health.finding import Finding, Severity

_EVENTS = ("xid", "sxid")
"""Checks whose findings are latched events: another one of them is another fault, told by its words."""
_LONGEST = 120


def occurrences(boot_id: str, unit: str, reasons: Iterable[Finding]) -> set[str]:
    """Return a word for each thing that makes a unit fail.

    A unit of which nothing is known has one too. The same word in the next cycle is the same occurrence, standing
    still. It is another one when it was gone in between, with another boot, and for an event with the next such event
    (its words count how often it came).
    """
    grave = [finding for finding in reasons if finding.severity >= Severity.ERROR]
    return {f"{boot_id}/{unit}/{_which(finding)}" for finding in grave} or {f"{boot_id}/{unit}/unknown"}


def retirement(boot_id: str, unit: str, record: Mapping[str, str]) -> str:
    """Return the word for a unit being retired, as its record tells it."""
    return f"{boot_id}/{unit}/retired-{record.get('since', '')}"


def _which(finding: Finding) -> str:
    seen = finding.evidence.partition(" (not seen now")[0]  # on its way to being over it is the same still
    words = f"-{seen}" if finding.check in _EVENTS else ""
    return re.sub(r"[^\w.:,-]+", "_", finding.check + words)[:_LONGEST]
