"""What the configuration wants done about one GPU, or about the node: its rules, then its words for actions. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from nodeagent.config.model import Policy
from nodeagent.config.policy_rules import DEEDS, DRAIN, IDLE, NOW, RETIRE, TELL, Rule
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.lock.model import matches
from nodeagent.state.verdict_file import FAILED, UNKNOWN

UNRESPONSIVE = "driver-unresponsive"


@dataclass(frozen=True)
class Wish:
    """What is to be done about findings of one subject, which recovery they ask for, and when a drain is to be made."""

    do: str
    action: RecoveryAction
    grounds: tuple[Finding, ...]
    drain_when: str


@dataclass(frozen=True)
class Ruling:
    """What the policy wants about one GPU, or about the node as a whole.

    `wishes` are those that want more than to tell, `runs` the site's commands: name → the finding that it is run for.
    """

    wishes: tuple[Wish, ...]
    runs: Mapping[str, Finding]

    @property
    def do(self) -> str:
        """The gravest of what is wanted: tell, retire or drain."""
        return max((wish.do for wish in self.wishes), key=DEEDS.index, default=TELL)

    @property
    def action(self) -> RecoveryAction:
        """The gravest recovery that is asked for by what is not only told."""
        return max((wish.action for wish in self.wishes), default=RecoveryAction.NONE)

    @property
    def grounds(self) -> tuple[Finding, ...]:
        """The findings that lead to it, the worst first."""
        found = [finding for wish in self.wishes for finding in wish.grounds]
        return tuple(sorted(found, key=lambda finding: (-finding.severity, -finding.action)))

    def drain_when(self, spares_units: bool) -> str:
        """Return when it wants the node drained: now, idle, or empty for not at all.

        A unit that is only to be retired is a reason where the scheduler cannot spare it.
        """
        whens = {wish.drain_when for wish in self.wishes if wish.do == DRAIN or not spares_units}
        return NOW if NOW in whens else IDLE if whens else ""


@dataclass(frozen=True)
class _Subject:
    """A GPU, or the node (`unit` empty), as rules see it.

    `judged` are those of its findings that the words for recovery actions are about; `least` is the action that it asks
    for at least. None are where it is not so bad that anything is done without a rule.
    """

    unit: str
    model: str
    findings: tuple[Finding, ...]
    judged: tuple[Finding, ...] = ()
    least: RecoveryAction = RecoveryAction.NONE


def asked_of(unit: UnitVerdict, verdict: Verdict, policy: Policy) -> RecoveryAction:
    """Return the recovery action that a unit asks for: none while it is not failed, nor unknown for too long."""
    if unit.state == FAILED:
        return unit.action
    if _is_unknown_for_long(unit, verdict, policy):
        return max(unit.action, RecoveryAction.RESET_GPU)
    return RecoveryAction.NONE


def ruling_of_unit(unit: UnitVerdict, verdict: Verdict, policy: Policy) -> Ruling:
    """Return what is wanted about one GPU of this verdict."""
    return _ruling(_unit(unit, verdict, policy), verdict, policy)


def ruling_of_node(verdict: Verdict, policy: Policy) -> Ruling:
    """Return what is wanted about the node as a whole: a wish to retire it is one to drain it."""
    return _ruling(_node(verdict), verdict, policy)


def bad_units(verdict: Verdict, policy: Policy) -> int:
    """Return how many GPUs of the node are failed, or unknown for too long."""
    return sum(unit.state == FAILED or _is_unknown_for_long(unit, verdict, policy) for unit in verdict.units)


def _ruling(subject: _Subject, verdict: Verdict, policy: Policy) -> Ruling:
    wishes: list[Wish] = []
    runs: dict[str, Finding] = {}
    judged = []
    for finding in subject.findings:
        rule = next((one for one in policy.rules if _fits(one, finding, subject, verdict, policy)), Rule())
        when = rule.drain_when or policy.drain_when
        if rule.run:
            runs.setdefault(rule.run, finding)
        if rule.do in (RETIRE, DRAIN):
            wishes.append(Wish(rule.do, finding.action, (finding,), when))
        elif not rule.do and finding in subject.judged:
            judged.append((finding, when))
    if judged or not subject.judged:  # nobody says why, as of a GPU that was never read
        action = max([subject.least, *(finding.action for finding, _ in judged)])
        word = TELL if action is RecoveryAction.NONE else str(getattr(policy, action.word))
        when = NOW if any(when == NOW for _, when in judged) else IDLE if judged else policy.drain_when
        if word != TELL:
            wishes.append(Wish(word, action, tuple(finding for finding, _ in judged), when))
    return Ruling(tuple(wishes), runs)


def _unit(unit: UnitVerdict, verdict: Verdict, policy: Policy) -> _Subject:
    """Return a GPU as rules see it: of one that is unknown for too long, what is not known is an error."""
    if unit.state == FAILED:
        worst = max((finding.severity for finding in unit.reasons), default=Severity.ERROR)
        judged = tuple(finding for finding in unit.reasons if finding.severity is worst)
        return _Subject(unit.uuid, unit.model, unit.reasons, judged)
    if _is_unknown_for_long(unit, verdict, policy):
        least = RecoveryAction.RESET_GPU
        found = tuple(_grave(finding, least) for finding in unit.reasons)
        judged = tuple(finding for finding in found if finding.severity is Severity.ERROR)
        return _Subject(unit.uuid, unit.model, found, judged, least)
    return _Subject(unit.uuid, unit.model, unit.reasons)


def _node(verdict: Verdict) -> _Subject:
    """Return the node as rules see it: where NVML as a whole hangs a job would hang in it as well."""
    findings = verdict.node_findings
    if verdict.node_state == FAILED:
        return _Subject("", "", findings, tuple(f for f in findings if f.severity >= Severity.ERROR))
    if verdict.node_state == UNKNOWN:
        least = RecoveryAction.REBOOT_NODE
        found = tuple(_grave(f, least) if f.check == UNRESPONSIVE else f for f in findings)
        return _Subject("", "", found, tuple(f for f in found if f.check == UNRESPONSIVE))
    return _Subject("", "", findings)


def _is_unknown_for_long(unit: UnitVerdict, verdict: Verdict, policy: Policy) -> bool:
    return unit.state == UNKNOWN and verdict.monotonic - unit.since > policy.unknown_after


def _grave(finding: Finding, least: RecoveryAction) -> Finding:
    if finding.severity is not Severity.UNKNOWN:
        return finding
    return replace(finding, severity=Severity.ERROR, action=max(finding.action, least))


def _fits(rule: Rule, finding: Finding, subject: _Subject, verdict: Verdict, policy: Policy) -> bool:
    if not _is_of(rule, finding, subject):
        return False
    if not rule.units_at_least:
        return True
    others = (_unit(unit, verdict, policy) for unit in verdict.units)
    return bool(subject.unit) and _count(rule, others) >= rule.units_at_least


def _count(rule: Rule, subjects: Iterable[_Subject]) -> int:
    return sum(any(_is_of(rule, finding, one) for finding in one.findings) for one in subjects)


def _is_of(rule: Rule, finding: Finding, subject: _Subject) -> bool:
    """Say whether a finding fits a rule, the number of units apart."""
    return (
        (not rule.check or finding.check in rule.check)
        and finding.severity >= Severity[rule.severity.upper()]
        and (not rule.action or finding.action.word in rule.action)
        and (not rule.model or (bool(subject.unit) and matches(subject.model, rule.model)))
    )
