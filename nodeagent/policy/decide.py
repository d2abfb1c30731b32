"""Verdict → decisions: what to retire, restore, drain, resume. Pure: no clock, no file, no process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Union

from nodeagent.config.model import Policy
from nodeagent.config.policy_rules import IDLE, TELL
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.policy.rules import Ruling, asked_of, bad_units, ruling_of_node, ruling_of_unit
from nodeagent.scheduler.port import REASON_PREFIX, NodeState
from nodeagent.state.verdict_file import FAILED, OK, UNKNOWN

BY_AGENT = "agent"
BY_ADMIN = "admin"
_WORDS = {action.word for action in RecoveryAction}
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
    """Take the node out of the scheduler, `when_idle` not before. `reason` begins with `gpu-nodeagent/1: `."""

    reason: str
    action: RecoveryAction
    when_idle: bool = False


@dataclass(frozen=True)
class AwaitIdle:
    """The node is to be drained as soon as no job holds a unit of it: one decision, whatever is added to its reason."""

    reason: str = field(compare=False)
    action: RecoveryAction = field(compare=False)


@dataclass(frozen=True)
class Resume:
    """Give the node back to the scheduler: it was drained by us and is well again."""


@dataclass(frozen=True)
class ForgetDrain:
    """The drain that is recorded as ours stands no more (somebody resumed the node): drop the record."""


@dataclass(frozen=True)
class Raise:
    """The node that we drained needs more than was known then: the record is to say so."""

    action: RecoveryAction


@dataclass(frozen=True)
class RunCommand:
    """Run a command of the site's because of a fault on a unit (empty: of the node).

    One decision as long as the fault stands, whatever else is said of it: `finding` is what it is run for, `about` the
    unit with all its `findings` (or the node's), `do` what is done besides, `bad_units` how many GPUs of the node are
    failed.
    """

    command: str
    unit: str
    finding: Finding = field(compare=False)
    about: UnitVerdict | None = field(default=None, compare=False)
    findings: tuple[Finding, ...] = field(default=(), compare=False)
    do: str = field(default=TELL, compare=False)
    bad_units: int = field(default=0, compare=False)

    @property
    def key(self) -> tuple[str, str]:
        """What tells one such decision from another."""
        return self.command, self.unit


Decision = Union[Retire, Restore, Drain, AwaitIdle, Resume, ForgetDrain, Raise, RunCommand]


@dataclass(frozen=True)
class DrainRecord:
    """A drain that this product made: `by` agent or admin, for which recovery action, and what it closed."""

    reason: str
    action: RecoveryAction = RecoveryAction.NONE
    by: str = BY_AGENT
    scope: str = ""


def describe(unit: UnitVerdict, grounds: tuple[Finding, ...] = ()) -> str:
    """Return one line that names GPU and fault: the evidence as people know it (index, bus id), the UUID to be sure.

    `grounds` are the findings that something is done about, if that is not all that is known.
    """
    return f"{_evidence(grounds or unit.reasons)} ({unit.uuid})"


def needs(words: str, action: RecoveryAction) -> str:
    """Return a reason with its recovery action at the end, where `adopted` reads it."""
    return f"{words}; needs {action.word}"


def _evidence(findings: tuple[Finding, ...]) -> str:
    grave = [finding for finding in findings if finding.severity >= Severity.ERROR] or list(findings)
    return "; ".join(" ".join(finding.evidence.split()) for finding in grave) or "no reason given"


def adopted(reason: str) -> DrainRecord | None:
    """Return the record of a drain that stands with our reason and of which no record is left (a stateless node).

    Only a reason that the agent itself wrote names the recovery action; an administrator's stays theirs.
    """
    word = reason.rpartition("; needs ")[2]  # to the very end: with a word of anybody's behind it, it is theirs
    if not reason.startswith(REASON_PREFIX) or word not in _WORDS:
        return None
    return DrainRecord(reason, RecoveryAction.of(word), scope="node")


def wanted_drain(
    verdict: Verdict, policy: Policy, spares_units: bool, retired: Mapping[str, Mapping[str, str]]
) -> Drain | None:
    """Return the drain that this verdict asks for, or None.

    The node goes when the policy says so for a fault of a unit or of the node as a whole, or when a unit is retired,
    or ought to be, and the scheduler cannot spare a single one.
    """
    parts: list[tuple[str, RecoveryAction, str]] = []
    of_node = ruling_of_node(verdict, policy)
    if of_node.do != TELL:
        parts.append((_evidence(of_node.grounds), of_node.action, of_node.drain_when(spares_units=False)))
    units = [(unit, ruling_of_unit(unit, verdict, policy)) for unit in verdict.units]
    for uuid, record in retired.items() if not spares_units else ():
        if not any(unit.uuid == uuid and _is_ruled(unit, ruling, verdict, policy) for unit, ruling in units):
            known = record.get("action", "")
            asked = RecoveryAction.of(known) if known in _WORDS else RecoveryAction.NONE
            parts.append((record.get("reason", uuid).partition("; needs ")[0], asked, policy.drain_when))
    for unit, ruling in units:
        when = ruling.drain_when(spares_units)
        if when:
            parts.append((describe(unit, ruling.grounds), ruling.action, when))
    if not parts:
        return None
    action = max(action for _, action, _ in parts)
    words = "; ".join(" ".join(text.split()) for text, _, _ in parts)[:_LONGEST_REASON]
    return Drain(needs(REASON_PREFIX + words, action), action, all(when == IDLE for _, _, when in parts))


def _is_ruled(unit: UnitVerdict, ruling: Ruling, verdict: Verdict, policy: Policy) -> bool:
    """Say whether what is done about a retired unit follows from its state now, not from why it was retired."""
    return ruling.do != TELL or asked_of(unit, verdict, policy) is not RecoveryAction.NONE


def decide_units(
    verdict: Verdict, retired: Mapping[str, Mapping[str, str]], policy: Policy
) -> Iterator[Retire | Restore]:
    """Yield what to do with single units.

    What an administrator retired is not touched; neither is what waits for somebody to inspect the hardware.
    """
    for unit in verdict.units:
        record = retired.get(unit.uuid)
        ruling = ruling_of_unit(unit, verdict, policy)
        if ruling.do != TELL:
            if record is None:
                first = (*ruling.grounds, *unit.reasons)[:1]
                reason = needs(describe(unit, ruling.grounds), ruling.action)
                yield Retire(unit.uuid, reason, first[0].check if first else "", ruling.action)
        elif record is not None and unit.state not in (FAILED, UNKNOWN) and record.get("by") == BY_AGENT:
            if record.get("action") != RecoveryAction.INSPECT_HARDWARE.word:
                yield Restore(unit.uuid)


def decide_commands(verdict: Verdict, policy: Policy) -> Iterator[RunCommand]:
    """Yield the site's commands that are to have been run, as long as what they are run for stands."""
    bad = bad_units(verdict, policy)
    of_node = ruling_of_node(verdict, policy)
    for command, found in of_node.runs.items():
        yield RunCommand(command, "", found, None, verdict.node_findings, of_node.do, bad)
    for unit in verdict.units:
        ruling = ruling_of_unit(unit, verdict, policy)
        for command, found in ruling.runs.items():
            yield RunCommand(command, unit.uuid, found, unit, unit.reasons, ruling.do, bad)


def decide_node(
    wanted: Drain | None, record: DrainRecord | None, node: NodeState, verdict: Verdict, busy: bool = False
) -> Iterator[Drain | AwaitIdle | Resume | ForgetDrain | Raise]:
    """Yield what to do with the node, given how the scheduler has it now; `busy` while a job holds a unit.

    Never over somebody else's reason. Resumed is only what is recorded as ours, when nothing asks for the drain any
    more and no unit is in doubt; never what an administrator drained, never after inspect_hardware was asked for.
    """
    if wanted is not None:
        if not node.drained:
            yield AwaitIdle(wanted.reason, wanted.action) if wanted.when_idle and busy else wanted
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
        and verdict.node_state in (OK, "DEGRADED")
        and all(unit.state not in (FAILED, UNKNOWN) for unit in verdict.units)
    ):
        yield Resume()
