"""site-NAME: one of the site's own checks found something; NAME is the site's.

Source: the exit status and the output of a program of the site's (`checks`), as `nodeagent.external` ran it.
Threshold: any exit status but 0, and each line of output that is a JSON object with evidence, severity, action, unit.
`health.strikes` for `site-NAME` counts runs of the check, not cycles.
Severity: that of `checks.NAME.severity`, or the line's own. A check that is broken, hangs, dies by a signal or speaks
gibberish says nothing about a GPU: WARNING on the node, which takes nothing out of service.
Action: `checks.NAME.action`, or the line's own.
Clears: a run that says nothing of it. Until there is one after the agent's start, and while the check does not work,
nothing is taken back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from nodeagent.config.model import Health
from nodeagent.gpu.facts import BROKEN, HUNG, NOT_YET, SiteResult
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "site"
NOT_RUN = (126, 127)
"""Exit statuses by which shells say that a program could not be run."""
MOST_FINDINGS = 64
_LONGEST = 300
_GPU_NUMBER = re.compile(r"\bGPU[ #:=]*(\d{1,3})\b", re.IGNORECASE)


def check_name(name: str) -> str:
    """Return the name of the check under which its findings, strikes and times go."""
    return f"{NAME}-{name}"


def unasked(scene: Scene) -> frozenset[str]:
    """Return the checks of the site that have told nothing: not run since the agent's start, or they do not work."""
    return frozenset(check_name(one.name) for one in scene.facts.site if one.kind == NOT_YET or _trouble(one))


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield what each check of the site's said last."""
    for result in scene.facts.site:
        if result.kind == NOT_YET:
            continue
        trouble = _trouble(result)
        if trouble:
            yield _broken(result, trouble)
        else:
            yield from _said(scene, result)


def _trouble(result: SiteResult) -> str:
    """Why the run says nothing about the node; empty if it does."""
    if result.kind == BROKEN:
        return result.why or "could not be run"
    if result.kind == HUNG:
        return f"did not end within {result.timeout:g} s and was ended"
    if result.status is not None and result.status < 0:
        return f"was ended by signal {-result.status}"
    if result.status in NOT_RUN:
        return f"could not run (exit status {result.status}): {_first_line(result.output)}"
    return ""


def _said(scene: Scene, result: SiteResult) -> Iterator[Finding]:
    told, gibberish = [], ""
    for line in result.output.splitlines():
        if line.lstrip().startswith("{"):
            try:
                told.append(_from_line(scene, result, json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                gibberish = gibberish or line
    yield from told[:MOST_FINDINGS]
    if gibberish:
        yield _broken(result, f"said what is not understood: {_shortened(gibberish)}")
    if result.status != 0 and not any(finding.severity is not Severity.INFO for finding in told):
        yield from _from_text(scene, result)


def _from_line(scene: Scene, result: SiteResult, line: dict[str, Any]) -> Finding:
    """A finding that the check has put into JSON; raises where it is none."""
    severity = Severity[str(line.get("severity", result.severity)).upper()]
    action = RecoveryAction.of(str(line.get("action", result.action)))
    evidence, named = _shortened(str(line["evidence"])), str(line.get("unit", ""))
    unit = _unit(scene, named)
    if named and not unit:
        evidence = f"{evidence} (on {named[:60]}, which is no GPU of this node)"
    return Finding(check_name(result.name), unit, severity, evidence, action, result.monotonic)


def _from_text(scene: Scene, result: SiteResult) -> Iterator[Finding]:
    """The first line of the output, about the node or about the GPUs that the output names."""
    severity, action = Severity[result.severity.upper()], RecoveryAction.of(result.action)
    lines = [line for line in result.output.splitlines() if line.strip() and not line.lstrip().startswith("{")]
    about: dict[str, str] = {}
    if result.unit_from == "text":
        for line in lines:
            for unit in _named(scene, line):
                about.setdefault(unit, line)
    for unit, line in (about or {"": lines[0] if lines else ""}).items():
        evidence = f"{result.name}: {_shortened(line) or 'no word'} (exit status {result.status})"
        yield Finding(check_name(result.name), unit, severity, evidence, action, result.monotonic)


def _broken(result: SiteResult, why: str) -> Finding:
    evidence = f"the site's check {result.name} {_shortened(why)}"
    return Finding(check_name(result.name), "", Severity.WARNING, evidence, at=result.monotonic)


def _unit(scene: Scene, name: str) -> str:
    """The GPU that a check means by a UUID, a bus id or an index; empty: none."""
    word = name.strip().lower()
    for uuid, unit in scene.units.items():
        named = word in (uuid.lower(), unit.bus_id.lower()) or (unit.index >= 0 and word == str(unit.index))
        if word and named:
            return uuid
    return ""


def _named(scene: Scene, line: str) -> Iterator[str]:
    numbers = {int(number) for number in _GPU_NUMBER.findall(line)}
    for uuid, unit in scene.units.items():
        words = [word.lower() for word in (uuid, unit.bus_id) if word]
        if unit.index in numbers or any(word in line.lower() for word in words):
            yield uuid


def _first_line(output: str) -> str:
    return next((line for line in output.splitlines() if line.strip()), "no word")


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    return "".join(c for c in words if c.isprintable())[:_LONGEST]
