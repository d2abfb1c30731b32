"""Verdict → decisions: what to retire, restore, drain, resume. Pure: no clock, no file, no process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Union

from nodeagent.config.model import Policy
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.scheduler.port import REASON_PREFIX, NodeState
from nodeagent.state.verdict_file import FAILED, OK, UNKNOWN

BY_AGENT = "agent"
BY_ADMIN = "admin"
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Retire:
    """Grant this unit no more."""

    unit: str
    reason: str
    check: str
    action: RecoveryAction


@dataclass(frozen=True)
class Restore:
    """Grant this unit again."""

    unit: str


@dataclass(frozen=True)
class Drain:
    """Take the node out of the scheduler. `reason` begins with `gpu-nodeagent/1: `."""

    reason: str
    action: RecoveryAction


@dataclass(frozen=True)
class Resume:
    """Give the node back to the scheduler: it was drained by us and is well again."""


@dataclass(frozen=True)
class ForgetDrain:
    """The drain that is recorded as ours stands no more (somebody resumed the node): drop the record."""


Decision = Union[Retire, Restore, Drain, Resume, ForgetDrain]


@dataclass(frozen=True)
class DrainRecord:
    """A drain that this product made: `by` agent or admin, for which recovery action."""

    reason: str
    action: RecoveryAction = RecoveryAction.NONE
    by: str = BY_AGENT


def describe(unit: UnitVerdict) -> str:
    """Return one line that names GPU, fault and recovery action, as it stands in reasons.

    The evidence names the GPU as people know it (index, bus id); the UUID is what identifies it.
    """
    return f"{_evidence(unit.reasons)}; needs {unit.action.word} ({unit.uuid})"


def _evidence(findings: tuple[Finding, ...]) -> str:
    grave = [finding for finding in findings if finding.severity >= Severity.ERROR] or list(findings)
    return "; ".join(" ".join(finding.evidence.split()) for finding in grave) or "no reason given"


def _word(policy: Policy, action: RecoveryAction) -> str:
    return "tell" if action is RecoveryAction.NONE else str(getattr(policy, action.word))


def wanted_drain(verdict: Verdict, policy: Policy, spares_units: bool) -> Drain | None:
    """Return the drain that this verdict asks for, or None.

    The node goes when the driver as a whole is unfit, when the policy says so for a fault, or when a unit ought to be
    retired and the scheduler cannot spare a single one.
    """
    parts: list[tuple[str, RecoveryAction]] = []
    if verdict.node_state == FAILED:
        grave = tuple(f for f in verdict.node_findings if f.severity >= Severity.ERROR)
        action = max((f.action for f in grave), default=RecoveryAction.NONE)
        if grave and _word(policy, action) != "tell":
            parts.append((f"{_evidence(grave)}; needs {action.word}", action))
    for unit in verdict.units:
        word = _word(policy, unit.action) if unit.state == FAILED else "tell"
        if word == "drain" or (word == "retire" and not spares_units):
            parts.append((describe(unit), unit.action))
    if not parts:
        return None
    reason = REASON_PREFIX + "; ".join(text for text, _ in parts)
    return Drain(reason[:_LONGEST_REASON], max(action for _, action in parts))


def decide_units(
    verdict: Verdict, retired: Mapping[str, Mapping[str, str]], policy: Policy
) -> Iterator[Retire | Restore]:
    """Yield what to do with single units.

    What an administrator retired is not touched; neither is what waits for somebody to inspect the hardware.
    """
    for unit in verdict.units:
        record = retired.get(unit.uuid)
        if unit.state == FAILED and record is None and _word(policy, unit.action) != "tell":
            worst = unit.reasons[0].check if unit.reasons else ""
            yield Retire(unit.uuid, describe(unit), worst, unit.action)
        elif record is not None and unit.state not in (FAILED, UNKNOWN) and record.get("by") == BY_AGENT:
            if record.get("action") != RecoveryAction.INSPECT_HARDWARE.word:
                yield Restore(unit.uuid)


def decide_node(
    wanted: Drain | None, record: DrainRecord | None, node: NodeState, verdict: Verdict
) -> Iterator[Drain | Resume | ForgetDrain]:
    """Yield what to do with the node, given how the scheduler has it now.

    Never over somebody else's reason. Resumed is only what is recorded as ours, when nothing asks for the drain any
    more and no unit is in doubt; never what an administrator drained, never after inspect_hardware.
    """
    if wanted is not None:
        if not node.drained:
            yield wanted
        return
    if record is None:
        return
    if not node.drained or node.foreign:
        yield ForgetDrain()
    elif (
        record.by == BY_AGENT
        and record.action is not RecoveryAction.INSPECT_HARDWARE
        and verdict.node_state in (OK, "DEGRADED")
        and all(unit.state not in (FAILED, UNKNOWN) for unit in verdict.units)
    ):
        yield Resume()
