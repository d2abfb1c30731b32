"""Verdict → decisions: what to retire, restore, drain, resume. Pure: no clock, no file, no process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Union

from nodeagent.config.model import Policy
from nodeagent.config.policy_rules import IDLE, TELL
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.policy.faults import occurrences, retirement
from nodeagent.policy.rules import Ruling, asked_of, bad_units, ruling_of_node, ruling_of_unit
from nodeagent.scheduler.port import NodeState
from nodeagent.scheduler.reason import Reason, compose, parse
from nodeagent.state.verdict_file import FAILED, UNKNOWN

BY_AGENT = "agent"
BY_ADMIN = "admin"
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
    """Take the node out of the scheduler, `when_idle` not before. `reason` begins with `gpu-nodeagent/1: `.

    `since` is when the first of its faults was seen (monotonic seconds), `faults` what occurrences of them it is for
    (faults.py): two drains that differ in these only are the same.
    """

    reason: str
    action: RecoveryAction
    when_idle: bool = False
    since: float = field(default=0.0, compare=False)
    faults: frozenset[str] = field(default=frozenset(), compare=False)


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
    """The drain that is recorded as ours stands no more (somebody resumed the node): drop the record.

    `faults` are what it was for and what stands still: for these the node is not drained again.
    """

    faults: frozenset[str] = frozenset()


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


def describe(unit: UnitVerdict, grounds: tuple[Finding, ...] = ()) -> str:
    """Return one line that names GPU and fault: the evidence as people know it (index, bus id), the UUID to be sure.

    `grounds` are the findings that something is done about, if that is not all that is known.
    """
    return f"{_evidence(grounds or unit.reasons)} ({unit.uuid})"


def fault(unit: UnitVerdict, grounds: tuple[Finding, ...] = ()) -> str:
    """Return the words of a drain's reason for one GPU: where it is, short UUID, check, what was seen (`grounds`)."""
    place = f"GPU {unit.index} {unit.bus_id}" if unit.index >= 0 else f"GPU {unit.bus_id}".rstrip()
    told = grounds or unit.reasons
    slot = f" slot {unit.slot}" if unit.slot else ""
    seen = _evidence(told).replace(f" on {place}", "").replace(f"{place} ", "")
    return f"{place}{slot} {unit.uuid[:_SHORT_UUID]} {_checks(_grave(told)) or 'unknown'}: {seen}"


def needs(words: str, action: RecoveryAction) -> str:
    """Return a reason with its recovery action at the end, where `adopted` reads it."""
    return f"{words}; needs {action.word}"


def _grave(findings: tuple[Finding, ...]) -> list[Finding]:
    """Return those that fail a unit, or all where none does."""
    return [finding for finding in findings if finding.severity >= Severity.ERROR] or list(findings)


def _checks(findings: Iterable[Finding]) -> str:
    return ",".join(dict.fromkeys(finding.check for finding in findings))


def _evidence(findings: tuple[Finding, ...]) -> str:
    return "; ".join(" ".join(finding.evidence.split()) for finding in _grave(findings)) or "no reason given"


def adopted(reason: str) -> DrainRecord | None:
    """Return the record of a drain that stands with our reason and of which no record is left (a stateless node).

    Only a reason that the agent itself wrote names the recovery action; an administrator's stays theirs.
    """
    said = parse(reason)
    if said is None or said.action not in _WORDS:
        return None
    return DrainRecord(reason, RecoveryAction.of(said.action), scope="node")


def wanted_drain(
    verdict: Verdict, policy: Policy, spares_units: bool, retired: Mapping[str, Mapping[str, str]]
) -> Drain | None:
    """Return the drain that this verdict asks for, or None.

    The node goes when the policy says so for a fault of a unit or of the node as a whole, or when a unit is retired,
    or ought to be, and the scheduler cannot spare a single one.
    """
    parts: list[tuple[str, RecoveryAction, str]] = []
    since, faults = verdict.monotonic, set[str]()
    of_node = ruling_of_node(verdict, policy)
    if of_node.do != TELL:
        words = f"{_checks(of_node.grounds)}: {_evidence(of_node.grounds)}"
        parts.append((words, of_node.action, of_node.drain_when(spares_units=False)))
        faults |= occurrences(verdict.boot_id, "node", of_node.grounds)
    units = [(unit, ruling_of_unit(unit, verdict, policy)) for unit in verdict.units]
    for uuid, record in retired.items() if not spares_units else ():
        faults.add(retirement(verdict.boot_id, uuid, record))
        if not any(unit.uuid == uuid and _is_ruled(unit, ruling, verdict, policy) for unit, ruling in units):
            known = record.get("action", "")
            asked = RecoveryAction.of(known) if known in _WORDS else RecoveryAction.NONE
            parts.append((record.get("reason", uuid).partition("; needs ")[0], asked, policy.drain_when))
    for unit, ruling in units:
        when = ruling.drain_when(spares_units)
        if when:
            parts.append((fault(unit, ruling.grounds), ruling.action, when))
            faults |= occurrences(verdict.boot_id, unit.uuid, ruling.grounds or unit.reasons)
            since = min(since, unit.since)
    if not parts:
        return None
    action = max(action for _, action, _ in parts)
    reason = compose(Reason("; ".join(text for text, _, _ in parts), action.word))
    return Drain(reason, action, all(when == IDLE for _, _, when in parts), since, frozenset(faults))


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

    Never over somebody else's reason, and not again where somebody has resumed the node. Resumed is only what is
    recorded as ours, when nothing asks for the drain any more and no unit is in doubt; never what an administrator
    drained, never after inspect_hardware was asked for.
    """
    if wanted is not None:
        if not node.drained:
            if record is not None and record.stands:
                yield ForgetDrain(wanted.faults)
            else:
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
        and is_certain(verdict)
        and all(unit.state != FAILED for unit in verdict.units)
        and verdict.node_state != FAILED
    ):
        yield Resume()


def is_certain(verdict: Verdict) -> bool:
    """Say whether it is known of the node and of each unit how it is."""
    return UNKNOWN not in (verdict.node_state, *(unit.state for unit in verdict.units))
