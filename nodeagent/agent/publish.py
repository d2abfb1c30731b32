"""A verdict in the form in which hooks read it: one line a unit."""

from __future__ import annotations

from nodeagent.gpu.facts import MigInstance, NodeFacts
from nodeagent.health.units import Instances, units_of
from nodeagent.health.verdict import Verdict
from nodeagent.lock.unit import is_unit
from nodeagent.state.verdict_file import DEGRADED, FAILED, UnitLine, VerdictFile

_SAME_GPU = 1_000_000  # instances of one GPU are nearer to each other than any two GPUs (gpu/topology.py: the scale)


def verdict_file(
    verdict: Verdict,
    facts: NodeFacts,
    instances: Instances,
    pid: int = 0,
    interval: float = 0.0,
    binds: str = "",
    dry_run: bool = False,
) -> VerdictFile:
    """Return what hooks read; with `dry_run` they are told of no failure, as they act on it."""
    links = {gpu.uuid: gpu.links for gpu in facts.gpus}
    parts = {instance.uuid: instance for gpu in instances.values() for instance in gpu}
    rows = [
        (unit, name)
        for unit in sorted(verdict.units, key=lambda u: (u.index < 0, u.index, u.bus_id))
        for name in units_of(unit.uuid, instances)
        if is_unit(name)
    ]

    def near(uuid: str, bus_id: str) -> int:
        return links.get(uuid, {}).get(bus_id, 0)

    def told(state: str) -> str:
        return DEGRADED if dry_run and state == FAILED else state

    lines = tuple(
        UnitLine(
            name,
            unit.index if name == unit.uuid else -1,
            unit.minor,
            unit.bus_id,
            _model(unit.model, parts.get(name)),
            unit.numa_node,
            tuple(
                0 if other_name == name else _SAME_GPU if other.uuid == unit.uuid else near(unit.uuid, other.bus_id)
                for other, other_name in rows
            ),
            told(unit.state),
            "; ".join(reason.evidence for reason in unit.reasons),
            unit.uuid,
            parts[name].caps if name in parts else (),
        )
        for unit, name in rows
    )
    why = "; ".join(finding.evidence for finding in verdict.node_findings)
    return VerdictFile(
        verdict.boot_id,
        verdict.monotonic,
        lines,
        pid,
        interval,
        facts.driver,
        binds,
        told(verdict.node_state),
        why,
    )


def _model(gpu: str, instance: MigInstance | None) -> str:
    """Return the model's name as NVML has it: an instance's is its GPU's and the profile."""
    return f"{gpu} MIG {instance.profile}" if instance is not None and instance.profile else gpu
