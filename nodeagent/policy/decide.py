"""Verdict → decisions: what to retire, restore, drain, resume. Pure: no clock, no file, no process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Union

from nodeagent.config.model import Policy
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.policy.faults import occurrences, retirement
from nodeagent.scheduler.port import NodeState
from nodeagent.scheduler.reason import Reason, compose, parse
from nodeagent.state.verdict_file import FAILED, UNKNOWN

BY_AGENT = "agent"
BY_ADMIN = "admin"
UNRESPONSIVE = "driver-unresponsive"
_WORDS = {action.word for action in RecoveryAction}
_SHORT_UUID = 12  # `GPU-` and eight digits: as unambiguous on a node as the whole, and a person can compare it


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
    """Take the node out of the scheduler. `reason` begins with `gpu-nodeagent/1: `.

    `since` is when the first of its faults was seen (monotonic seconds), `faults` what occurrences of them it is for
    (faults.py): two drains that differ in these only are the same.
    """

    reason: str
    action: RecoveryAction
    since: float = field(default=0.0, compare=False)
    faults: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True)
class Resume:
    """Give the node back to the scheduler: it was drained by us and is well again."""


@dataclass(frozen=True)
class ForgetDrain:
    """The drain that is recorded as ours stands no more (somebody resumed the node): drop the record.

    `faults` are what it was for and what stands still: for these the node is not drained again.
    """

    faults: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Raise:
    """The node that we drained needs more than was known then: the record is to say so."""

    action: RecoveryAction


Decision = Union[Retire, Restore, Drain, Resume, ForgetDrain, Raise]


@dataclass(frozen=True)
class DrainRecord:
    """A drain that this product made: `by` agent or admin, for which recovery action, and what it closed.

    It `stands` once the scheduler has been seen to have it; before that it may have been lost on the way.
    """

    reason: str
    action: RecoveryAction = RecoveryAction.NONE
    by: str = BY_AGENT
    scope: str = ""
    stands: bool = True


def signed(drain: Drain, host: str, since: str) -> Drain:
    """Return a drain whose reason also says on which host it is, and since when (UTC, ISO 8601)."""
    said = parse(drain.reason)
    return drain if said is None else replace(drain, reason=compose(replace(said, host=host, since=since)))


def describe(unit: UnitVerdict) -> str:
    """Return one line that names GPU and fault: the evidence as people know it (index, bus id), the UUID to be sure."""
    return f"{_evidence(unit.reasons)} ({unit.uuid})"


def fault(unit: UnitVerdict) -> str:
    """Return the words of a drain's reason for one GPU: where it is, short UUID, check, and what was seen."""
    place = f"GPU {unit.index} {unit.bus_id}" if unit.index >= 0 else f"GPU {unit.bus_id}".rstrip()
    grave = [finding for finding in unit.reasons if finding.severity >= Severity.ERROR] or list(unit.reasons)
    checks = ",".join(dict.fromkeys(finding.check for finding in grave))
    slot = f" slot {unit.slot}" if unit.slot else ""
    seen = _evidence(unit.reasons).replace(f" on {place}", "").replace(f"{place} ", "")
    return f"{place}{slot} {unit.uuid[:_SHORT_UUID]} {checks or 'unknown'}: {seen}"


def needs(words: str, action: RecoveryAction) -> str:
    """Return a reason with its recovery action at the end, where `adopted` reads it."""
    return f"{words}; needs {action.word}"


def _evidence(findings: tuple[Finding, ...]) -> str:
    grave = [finding for finding in findings if finding.severity >= Severity.ERROR] or list(findings)
    return "; ".join(" ".join(finding.evidence.split()) for finding in grave) or "no reason given"


def _word(policy: Policy, action: RecoveryAction) -> str:
    return "tell" if action is RecoveryAction.NONE else str(getattr(policy, action.word))


def adopted(reason: str) -> DrainRecord | None:
    """Return the record of a drain that stands with our reason and of which no record is left (a stateless node).

    Only a reason that the agent itself wrote names the recovery action; an administrator's stays theirs.
    """
    said = parse(reason)
    if said is None or said.action not in _WORDS:
        return None
    return DrainRecord(reason, RecoveryAction.of(said.action), scope="node")


def _unfit(verdict: Verdict) -> tuple[tuple[Finding, ...], RecoveryAction]:
    """Return what makes the driver as a whole unfit, and what it needs; nothing if it is fit."""
    if verdict.node_state == FAILED:
        grave = tuple(f for f in verdict.node_findings if f.severity >= Severity.ERROR)
        return grave, max((f.action for f in grave), default=RecoveryAction.NONE)
    if verdict.node_state == UNKNOWN:  # NVML as a whole hangs: a job would hang in it as well
        return tuple(f for f in verdict.node_findings if f.check == UNRESPONSIVE), RecoveryAction.REBOOT_NODE
    return (), RecoveryAction.NONE


def asked_of(unit: UnitVerdict, verdict: Verdict, policy: Policy) -> RecoveryAction:
    """Return the recovery action that a unit asks for: none while it is not failed, nor unknown for too long."""
    if unit.state == FAILED:
        return unit.action
    if unit.state == UNKNOWN and verdict.monotonic - unit.since > policy.unknown_after:
        return max(unit.action, RecoveryAction.RESET_GPU)
    return RecoveryAction.NONE


def wanted_drain(
    verdict: Verdict, policy: Policy, spares_units: bool, retired: Mapping[str, Mapping[str, str]]
) -> Drain | None:
    """Return the drain that this verdict asks for, or None.

    The node goes when the driver as a whole is unfit, when the policy says so for a fault, or when a unit is retired,
    or ought to be, and the scheduler cannot spare a single one.
    """
    parts: list[tuple[str, RecoveryAction]] = []
    since, faults = verdict.monotonic, set[str]()
    grave, action = _unfit(verdict)
    if grave and _word(policy, action) != "tell":
        checks = ",".join(dict.fromkeys(finding.check for finding in grave))
        parts.append((f"{checks}: {_evidence(grave)}", action))
        faults |= occurrences(verdict.boot_id, "node", grave)
    for uuid, record in retired.items() if not spares_units else ():
        faults.add(retirement(verdict.boot_id, uuid, record))
        if not any(unit.uuid == uuid and asked_of(unit, verdict, policy) for unit in verdict.units):
            known = record.get("action", "")
            asked = RecoveryAction.of(known) if known in _WORDS else RecoveryAction.NONE
            parts.append((record.get("reason", uuid).partition("; needs ")[0], asked))
    for unit in verdict.units:
        asked = asked_of(unit, verdict, policy)
        word = _word(policy, asked)
        if word == "drain" or (word == "retire" and not spares_units):
            parts.append((fault(unit), asked))
            faults |= occurrences(verdict.boot_id, unit.uuid, unit.reasons)
            since = min(since, unit.since)
    if not parts:
        return None
    action = max(action for _, action in parts)
    reason = compose(Reason("; ".join(text for text, _ in parts), action.word))
    return Drain(reason, action, since, frozenset(faults))


def decide_units(
    verdict: Verdict, retired: Mapping[str, Mapping[str, str]], policy: Policy
) -> Iterator[Retire | Restore]:
    """Yield what to do with single units.

    What an administrator retired is not touched; neither is what waits for somebody to inspect the hardware.
    """
    for unit in verdict.units:
        record = retired.get(unit.uuid)
        asked = asked_of(unit, verdict, policy)
        if record is None and _word(policy, asked) != "tell":
            worst = unit.reasons[0].check if unit.reasons else ""
            yield Retire(unit.uuid, needs(describe(unit), asked), worst, asked)
        elif record is not None and unit.state not in (FAILED, UNKNOWN) and record.get("by") == BY_AGENT:
            if record.get("action") != RecoveryAction.INSPECT_HARDWARE.word:
                yield Restore(unit.uuid)


def decide_node(
    wanted: Drain | None, record: DrainRecord | None, node: NodeState, verdict: Verdict
) -> Iterator[Drain | Resume | ForgetDrain | Raise]:
    """Yield what to do with the node, given how the scheduler has it now.

    Never over somebody else's reason, and not again where somebody has resumed the node. Resumed is only what is
    recorded as ours, when nothing asks for the drain any more and no unit is in doubt; never what an administrator
    drained, never after inspect_hardware was asked for.
    """
    if wanted is not None:
        if not node.drained:
            yield wanted if record is None or not record.stands else ForgetDrain(wanted.faults)
        elif record is not None and not node.foreign and wanted.action > record.action:
            yield Raise(wanted.action)
        return
    if record is None:
        return
    edited = node.reason is not None and node.reason != record.reason and bool(node.reason)
    if node.foreign or edited or (not node.drained and node.reason is not None):
        yield ForgetDrain()
    elif (
        record.by == BY_AGENT
        and record.action is not RecoveryAction.INSPECT_HARDWARE
        and is_certain(verdict)
        and all(unit.state != FAILED for unit in verdict.units)
        and verdict.node_state != FAILED
    ):
        yield Resume()


def is_certain(verdict: Verdict) -> bool:
    """Say whether it is known of the node and of each unit how it is."""
    return UNKNOWN not in (verdict.node_state, *(unit.state for unit in verdict.units))
