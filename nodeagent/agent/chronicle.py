"""One story: what a cycle brings that is new goes to the journal and to history, from the same values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from nodeagent.agent.actions import retirement
from nodeagent.agent.journal import Log
from nodeagent.clock import Clock
from nodeagent.gpu.facts import GpuFacts, NodeFacts, XidEvent
from nodeagent.gpu.plain import to_plain
from nodeagent.health import sxid
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.memory import Memory, UnitMemory
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.health.xid import look_up
from nodeagent.history.entry import AGENT, DONE, REASONS, VERDICT, XID, Entry, History, Keeping, from_event
from nodeagent.report import plain_finding
from nodeagent.state.events import Event
from nodeagent.state.verdict_file import OK


class Chronicle:
    """Tells journal and history. Shared by all cycles of one agent."""

    def __init__(self, node: str, boot_id: str, history: History, clock: Clock, log: Log) -> None:
        self._node = node
        self._boot_id = boot_id
        self._history = history
        self._clock = clock
        self._log = log
        self._begun = False
        self._said: dict[str, frozenset[str]] = {}
        self._units: Mapping[str, UnitVerdict] = {}
        self.record = history.record

    def keeping(self) -> Keeping:
        """Return how history is being kept."""
        return self._history.keeping()

    def close(self) -> None:
        """Write what waits."""
        self._history.close()

    def agent(self, what: str, **about: object) -> None:
        """The agent has started, stopped, or read its configuration again."""
        words = " ".join(f"{key}={value}" for key, value in about.items())
        self.record(Entry(self._clock.wall(), AGENT, self._boot_id, after=what, evidence=words))

    def retired(self, records: Mapping[str, Mapping[str, str]]) -> None:
        """What is retired at the agent's start: history may have missed it."""
        for unit, record in records.items():
            self.record(retirement(unit, record))

    def by_hand(self, event: Event) -> None:
        """An administrator's deed, as a command told it."""
        entry = from_event(event.fields, event.at, self._boot_id)
        if entry is None:
            return
        about = {"gpu_uuid": entry.unit, "check": entry.check, "why": entry.evidence}
        about["after"] = entry.after if entry.after != DONE else ""
        self._log.warning(entry.kind, by=entry.by, **{key: value for key, value in about.items() if value})
        self.record(entry)

    def cycle(self, facts: NodeFacts, before: Memory, verdict: Verdict) -> None:
        """Tell what is new in a verdict. `before` is what was remembered before it was made."""
        self._units = {unit.uuid: unit for unit in verdict.units}
        self._xids(facts)
        known = before.units if before.boot_id == verdict.boot_id else {}
        gpus = {gpu.uuid: gpu for gpu in facts.gpus}
        for unit in verdict.units:
            self._unit(unit, known.get(unit.uuid), gpus.get(unit.uuid), verdict)
        self._of_node(before.node.state if before.boot_id == verdict.boot_id else "", facts, verdict)
        self._begun = True

    def _xids(self, facts: NodeFacts) -> None:
        """Each is in the journal; history has one entry a cycle and number, with how often it came."""
        for event in facts.xids:
            self._log.warning("xid", gpu_uuid=event.uuid, xid=event.xid, seen_by=event.source)
        numbers = Counter((event.kind, event.uuid, event.xid) for event in facts.xids)
        first: dict[tuple[str, str, int], XidEvent] = {}
        for event in facts.xids:
            first.setdefault((event.kind, event.uuid, event.xid), event)
        for key, event in first.items():
            known = look_up(event.xid, {}) if event.kind == "xid" else sxid.look_up(event.xid, event.text, {})
            about = known.name if event.kind == "xid" else f"NVSwitch: {known.name}"
            evidence = f"{event.kind.upper()} {event.xid}: {about}" + (f": {event.text}" if event.text else "")
            unit = self._units.get(event.uuid)
            self.record(
                Entry(
                    self._at(event.monotonic),
                    XID,
                    facts.boot_id,
                    event.uuid,
                    unit.index if unit is not None else None,
                    event.bus_id or (unit.bus_id if unit is not None else ""),
                    unit.serial if unit is not None else "",
                    check=str(event.xid),
                    by=event.source,
                    evidence=evidence,
                    count=numbers[key],
                )
            )

    def _unit(self, unit: UnitVerdict, known: UnitMemory | None, gpu: GpuFacts | None, verdict: Verdict) -> None:
        before = known.state if known is not None else ""
        changed = (before or OK) != unit.state
        checks = _grave(unit.reasons)
        others = checks != self._said.get(unit.uuid, checks)
        self._said[unit.uuid] = checks
        why = "; ".join(reason.evidence for reason in unit.reasons)
        check = unit.reasons[0].check if unit.reasons else ""
        about = {"gpu_uuid": unit.uuid, "check": check, "verdict": unit.state, "index": unit.index, "why": why}
        if changed:
            self._log.warning("verdict_changed", **about)
        elif others:
            self._log.info("reasons_changed", **about)
        if changed or others or not self._begun or not before:
            moved = changed or not self._begun or not before
            self.record(
                Entry(
                    self._at(unit.since if moved else verdict.monotonic),
                    VERDICT if moved else REASONS,
                    verdict.boot_id,
                    unit.uuid,
                    unit.index if unit.index >= 0 else None,
                    unit.bus_id,
                    unit.serial,
                    before,
                    unit.state,
                    facts=to_plain(gpu) if gpu is not None else {},
                    again=not self._begun or not before,
                    **_judgement(unit.reasons),
                )
            )

    def _of_node(self, before: str, facts: NodeFacts, verdict: Verdict) -> None:
        why = "; ".join(finding.evidence for finding in verdict.node_findings)
        changed = (before or OK) != verdict.node_state
        if changed:
            self._log.warning("verdict_changed", node=self._node, verdict=verdict.node_state, why=why)
        if changed or not self._begun:
            self.record(
                Entry(
                    self._at(verdict.monotonic),
                    VERDICT,
                    verdict.boot_id,
                    before=before,
                    after=verdict.node_state,
                    facts=_of_driver(facts),
                    again=not self._begun,
                    **_judgement(verdict.node_findings),
                )
            )

    def _at(self, monotonic: float) -> float:
        """Return a moment of this boot as wall time, as `status` does."""
        return self._clock.wall() - (self._clock.monotonic() - monotonic)


def _of_driver(facts: NodeFacts) -> dict[str, Any]:
    names = ("driver", "kernel_driver", "nvml_error", "nvml_error_text", "hung", "crashed", "pci")
    values = {name: getattr(facts, name) for name in names}
    return {name: value for name, value in values.items() if value is not None and value is not False and value != ""}


def _grave(reasons: tuple[Finding, ...]) -> frozenset[str]:
    return frozenset(reason.check for reason in reasons if reason.severity is not Severity.INFO)


def _judgement(reasons: tuple[Finding, ...]) -> dict[str, Any]:
    worst = reasons[0] if reasons else None
    return {
        "check": worst.check if worst is not None else "",
        "severity": worst.severity.name.lower() if worst is not None else "",
        "action": max(reason.action for reason in reasons).word if reasons else "",
        "evidence": "; ".join(reason.evidence for reason in reasons),
        "findings": tuple(plain_finding(reason) for reason in reasons),
    }
