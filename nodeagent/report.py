"""The JSON documents of the public contract (DESIGN section 6), each with its schema name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any

from nodeagent.health.finding import Finding
from nodeagent.health.units import Instances, units_of
from nodeagent.health.verdict import UnitVerdict, Verdict
from nodeagent.history.entry import Entry
from nodeagent.lock.record import CLEANING, HOLD, MAINTENANCE, UNREADABLE, Owner
from nodeagent.snapshot import Snapshot
from nodeagent.state.maintenance import Maintenance
from nodeagent.state.verdict_file import UNKNOWN

FRESH_INTERVALS = 3


def schema(name: str) -> dict[str, str]:
    """Return the `schema` entry of a document."""
    return {"schema": f"gpu-nodeagent/{name}/1"}


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
        "slot": unit.slot or None,
        "verdict": unit.state,
    }


def published(snapshot: Snapshot, instances: Instances) -> dict[str, Any]:
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
        "drain_waits": snapshot.drain_waits or None,
        "history_problem": snapshot.history.problem or None,
        "scheduler_problem": snapshot.scheduler_problem or None,
        "driver_released": _plain_released(snapshot),
        "node_verdict": verdict.node_state,
        "node_findings": [plain_finding(finding) for finding in verdict.node_findings],
        "gpus": [
            {
                **plain_unit(unit),
                "since": iso(snapshot.wall - (snapshot.monotonic - unit.since)),
                "reasons": [plain_finding(reason) for reason in unit.reasons],
                "slots": snapshot.slots.get(unit.uuid, 1),
                "units": list(units_of(unit.uuid, instances)),
            }
            for unit in verdict.units
        ],
    }


def _plain_released(snapshot: Snapshot) -> dict[str, Any] | None:
    """Return until when the driver is released and how that stands; None where it is not."""
    one = snapshot.released
    if one is None:
        return None
    until = iso(snapshot.wall + (one.until - snapshot.monotonic))
    return {**vars(one), "until": until}


def status_document(
    published: Mapping[str, Any] | None,
    owners: Mapping[str, Owner],
    retired: Mapping[str, Mapping[str, str]],
    now: float,
    boot_id: str,
    node: str,
    maintenance: Maintenance | None = None,
) -> dict[str, Any]:
    """Return `status --json`: what the agent published last, with locks and retirements as they are at this moment.

    `now` is monotonic seconds. A snapshot of another boot counts as none; in one that is not fresh every verdict is
    UNKNOWN, because nobody has looked since.
    """
    if published is not None and published.get("boot_id") != boot_id:
        published = None
    known = published or {}
    age = now - known["monotonic"] if known else None
    fresh = age is not None and age <= FRESH_INTERVALS * known["interval"] + 5
    gpus = []
    for gpu in known.get("gpus", []):
        units = gpu["units"]
        gpus.append(
            {
                **{key: value for key, value in gpu.items() if key != "units"},
                "verdict": gpu["verdict"] if fresh else UNKNOWN,
                "retired": next((dict(retired[unit]) for unit in [gpu["uuid"], *units] if unit in retired), None),
                "holders": [
                    {key: value for key, value in lock_entry(unit, owner).items() if key in _HOLDER_KEYS}
                    for unit, owner in owners.items()
                    if unit in units or owner.gpu_of(unit) == gpu["uuid"]
                ],
            }
        )
    return {
        **schema("status"),
        "node": known.get("node", node),
        "agent": {
            "pid": known.get("pid"),
            "age_s": None if age is None else round(age, 3),
            "fresh": fresh,
            "version": known.get("version"),
        },
        "drained": known.get("drained"),
        "drain_waits": known.get("drain_waits"),
        "maintenance": plain_maintenance(maintenance),
        "history_problem": known.get("history_problem"),
        "scheduler_problem": known.get("scheduler_problem") if fresh else None,
        "driver_released": known.get("driver_released") if fresh else None,
        "node_verdict": known.get("node_verdict", UNKNOWN) if fresh else UNKNOWN,
        "node_findings": known.get("node_findings", []),
        "gpus": gpus,
    }


def plain_maintenance(maintenance: Maintenance | None) -> dict[str, Any] | None:
    """Return a maintenance as JSON has it; `until` is None where it stands until it is ended."""
    if maintenance is None:
        return None
    one = maintenance
    times = {"since": iso(one.since), "until": iso(one.until) if one.until else None}
    return {"by": one.who or None, "reason": one.why or None, **times, "drained": one.drained or None}


def maintenance_line(plain: Mapping[str, Any]) -> str:
    """Return a maintenance, as `plain_maintenance` gives it, as one line for a person."""
    until = f"until {plain['until']}" if plain["until"] else "until `gpu-nodeagent maintenance off`"
    by = f" by {plain['by']}" if plain["by"] else ""
    why = f" ({plain['reason']})" if plain["reason"] else ""
    return f"maintenance since {plain['since']}{by}, {until}: nothing is taken out or brought back{why}"


_HOLDER_KEYS = ("scheduler", "job", "task", "user", "since")
_STATES = {HOLD: "hold", MAINTENANCE: "maintenance", CLEANING: "cleaning", UNREADABLE: "unreadable"}


def lock_entry(unit: str, owner: Owner) -> dict[str, Any]:
    """Return one entry of `locks --json`."""
    return {
        "unit": unit,
        "scheduler": owner.scheduler,
        "cluster": owner.cluster or None,
        "job": owner.job or None,
        "task": owner.task or None,
        "user": owner.user or None,
        "grant": owner.grant,
        "since": iso(owner.since) if owner.since else None,
        "state": _STATES.get(owner.scheduler, "held"),
    }


def locks_document(owners: Mapping[str, Owner]) -> dict[str, Any]:
    """Return `locks --json`."""
    return {**schema("locks"), "locks": [lock_entry(unit, owner) for unit, owner in owners.items()]}


def check_document(verdict: Verdict, offset: float, maintenance: Maintenance | None = None) -> dict[str, Any]:
    """Return `check --json`: `verdict` is the worst of node and GPUs.

    `offset` is wall time minus monotonic time: `since` is when a GPU's verdict began.
    """
    return {
        **schema("check"),
        "verdict": worst_state(verdict),
        "maintenance": plain_maintenance(maintenance),
        "gpus": [
            {
                **plain_unit(unit),
                "since": iso(offset + unit.since),
                "findings": [plain_finding(reason) for reason in unit.reasons],
            }
            for unit in verdict.units
        ],
        "node_findings": [plain_finding(finding) for finding in verdict.node_findings],
    }


_RANK = ("OK", "DEGRADED", "UNKNOWN", "FAILED")


def history_document(node: str, entries: Iterable[Entry]) -> dict[str, Any]:
    """Return `history --json`, oldest first; None for what is not known or does not apply."""
    return {**schema("history"), "node": node, "entries": [_plain_entry(entry) for entry in entries]}


def _plain_entry(entry: Entry) -> dict[str, Any]:
    plain = {key: value if value != "" else None for key, value in vars(entry).items() if key != "again"}
    plain["at"] = iso(entry.at)
    plain["findings"] = list(entry.findings)
    plain["facts"] = dict(entry.facts) or None
    return plain


def worst_state(verdict: Verdict) -> str:
    """Return the worst state of node and GPUs; UNKNOWN ranks below FAILED and above DEGRADED."""
    return max([verdict.node_state, *(unit.state for unit in verdict.units)], key=_RANK.index)
