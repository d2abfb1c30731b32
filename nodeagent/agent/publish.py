"""A verdict in the form in which hooks read it: one line a unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nodeagent.config.model import Sharing
from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.units import Instances, units_of
from nodeagent.health.verdict import Verdict
from nodeagent.lock.model import matches
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
    sharing: Sharing | None = None,
) -> VerdictFile:
    """Return what hooks read; with `dry_run` they are told of no failure, as they act on it."""

    def told(state: str) -> str:
        return DEGRADED if dry_run and state == FAILED else state

    why = "; ".join(finding.evidence for finding in verdict.node_findings)
    return VerdictFile(
        verdict.boot_id,
        verdict.monotonic,
        tuple(_lines(verdict, facts, instances, sharing or Sharing(), told)),
        pid,
        interval,
        facts.driver,
        binds,
        told(verdict.node_state),
        why,
    )


def _lines(
    verdict: Verdict, facts: NodeFacts, instances: Instances, sharing: Sharing, told: Callable[[str], str]
) -> Iterator[UnitLine]:
    """Yield the units in the order of their GPUs' indices."""
    links = {gpu.uuid: gpu.links for gpu in facts.gpus}
    memory = {gpu.uuid: gpu.memory_total for gpu in facts.gpus}
    memory.update({instance.uuid: instance.memory_total for gpu in facts.gpus for instance in gpu.mig})
    parts = {instance.uuid: instance for gpu in instances.values() for instance in gpu}
    rows = [
        (unit, name)
        for unit in sorted(verdict.units, key=lambda u: (u.index < 0, u.index, u.bus_id))
        for name in units_of(unit.uuid, instances)
        if is_unit(name)
    ]
    for unit, name in rows:
        near = links.get(unit.uuid, {})
        instance = parts.get(name)
        yield UnitLine(
            name,
            unit.index if instance is None else -1,
            unit.minor,
            unit.bus_id,
            unit.model if instance is None else f"{unit.model} MIG {instance.profile}",  # as NVML names an instance
            unit.numa_node,
            tuple(
                0 if other_name == name else _SAME_GPU if other.uuid == unit.uuid else near.get(other.bus_id, 0)
                for other, other_name in rows
            ),
            told(unit.state),
            "; ".join(reason.evidence for reason in unit.reasons),
            unit.uuid,
            () if instance is None else instance.caps,
            slots_of(unit.model, sharing) if instance is None else 1,
            memory.get(name) or 0,
        )


def slots_of(model: str, sharing: Sharing) -> int:
    """Return how many jobs may share a GPU of that model."""
    return next((slots for pattern, slots in sharing.models.items() if matches(model, pattern)), sharing.slots)


def slots_by_gpu(verdict: Verdict, instances: Instances, sharing: Sharing) -> dict[str, int]:
    """Return for each GPU how many jobs may have it at a time: its shares or its instances."""
    return {
        unit.uuid: len(instances[unit.uuid]) if unit.uuid in instances else slots_of(unit.model, sharing)
        for unit in verdict.units
    }
