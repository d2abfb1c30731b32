"""A cycle's outcome in the forms in which others read it: the hooks' verdict file and the published snapshot."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

from nodeagent.gpu.facts import GpuFacts, NodeFacts
from nodeagent.health.finding import Finding
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.lock.unit import is_unit
from nodeagent.snapshot import Snapshot
from nodeagent.state.verdict_file import UnitLine, VerdictFile


def verdict_file(
    verdict: Verdict, facts: NodeFacts, pid: int = 0, interval: float = 0.0, binds: str = ""
) -> VerdictFile:
    """Return what hooks read: one line a unit; a GPU in MIG mode is its instances."""
    by_uuid = {gpu.uuid: gpu for gpu in facts.gpus}
    rows = [
        (unit, name, is_instance)
        for unit in sorted(verdict.units, key=lambda u: (u.index < 0, u.index, u.bus_id))
        for name, is_instance in _names(unit, by_uuid.get(unit.uuid))
        if is_unit(name)
    ]
    lines = tuple(
        UnitLine(
            name,
            -1 if is_instance else unit.index,
            unit.minor,
            unit.bus_id,
            unit.model,
            unit.numa_node,
            _links(unit, by_uuid.get(unit.uuid), [other for other, _, _ in rows]),
            unit.state,
            "; ".join(reason.evidence for reason in unit.reasons),
        )
        for unit, name, is_instance in rows
    )
    return VerdictFile(
        verdict.boot_id,
        verdict.monotonic,
        lines,
        pid,
        interval,
        facts.driver,
        binds,
        verdict.node_state,
        "; ".join(finding.evidence for finding in verdict.node_findings),
    )


def _names(unit: UnitVerdict, gpu: GpuFacts | None) -> Iterator[tuple[str, bool]]:
    if gpu is not None and gpu.mig_enabled and gpu.mig:
        yield from ((instance.uuid, True) for instance in gpu.mig)
    else:
        yield unit.uuid, False


def _links(unit: UnitVerdict, gpu: GpuFacts | None, others: list[UnitVerdict]) -> tuple[int, ...]:
    known = gpu.links if gpu is not None else {}
    return tuple(0 if other.uuid == unit.uuid else known.get(other.bus_id, 0) for other in others)


def iso(wall: float) -> str:
    """Return a moment as ISO 8601 in UTC, whole seconds."""
    return datetime.fromtimestamp(wall, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain_finding(finding: Finding) -> dict[str, Any]:
    """Return a finding as JSON has it."""
    return {
        "check": finding.check,
        "severity": finding.severity.name.lower(),
        "action": finding.action.word,
        "evidence": finding.evidence,
    }


def plain_unit(unit: UnitVerdict) -> dict[str, Any]:
    """Return a unit's identity and verdict as JSON has them; None for what is not known."""
    return {
        "uuid": unit.uuid,
        "index": unit.index if unit.index >= 0 else None,
        "minor": unit.minor if unit.minor >= 0 else None,
        "bus_id": unit.bus_id,
        "model": unit.model,
        "serial": unit.serial or None,
        "verdict": unit.state,
    }


def published(snapshot: Snapshot) -> dict[str, Any]:
    """Return the snapshot as `state_dir/snapshot` keeps it: without locks, which are read where they are."""
    verdict = snapshot.verdict
    return {
        "node": snapshot.node,
        "pid": snapshot.pid,
        "version": snapshot.version,
        "boot_id": verdict.boot_id,
        "monotonic": snapshot.monotonic,
        "interval": snapshot.interval,
        "drained": snapshot.drain_reason or None,
        "node_verdict": verdict.node_state,
        "node_findings": [plain_finding(finding) for finding in verdict.node_findings],
        "gpus": [
            {
                **plain_unit(unit),
                "since": iso(snapshot.wall - (snapshot.monotonic - unit.since)),
                "reasons": [plain_finding(reason) for reason in unit.reasons],
                "units": [name for name, _ in _names(unit, _facts_of(snapshot, unit.uuid))],
            }
            for unit in verdict.units
        ],
    }


def _facts_of(snapshot: Snapshot, uuid: str) -> GpuFacts | None:
    return next((gpu for gpu in snapshot.facts.gpus if gpu.uuid == uuid), None)
