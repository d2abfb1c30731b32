"""The verdict of a cycle in which no GPU was asked: that of before, but for the XIDs that came. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nodeagent.config.model import Health
from nodeagent.gpu.facts import NodeFacts
from nodeagent.health.checks import sxid, xid
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.memory import Memory, Standing, UnitMemory
from nodeagent.health.scene import overhear
from nodeagent.health.standing import in_order, weigh
from nodeagent.health.verdict import UnitVerdict, Verdict, of_unit, place
from nodeagent.state.verdict_file import DEGRADED, FAILED


def overheard(before: Verdict, memory: Memory, facts: NodeFacts, settings: Health) -> tuple[Verdict, Memory]:
    """Return the verdict on a node whose driver has been let go, and what the next cycle has to remember.

    `before` is the last verdict, `facts` has XIDs and no GPUs. A grave XID counts at once, on its GPU alone, one of a
    switch on the node; nobody's state changes otherwise. No cycle of these is a clean one: what stood against a GPU has
    to be gone for as long as ever from the next look on.
    """
    scene = overhear(memory, facts, settings)
    found = [*xid.find(scene, settings), *sxid.find(scene, settings)]
    now = facts.monotonic
    old = {unit.uuid: unit for unit in before.units}
    units: dict[str, UnitMemory] = {}
    verdicts: list[UnitVerdict] = []
    for uuid, unit in scene.units.items():
        about = [finding for finding in found if finding.unit == uuid]
        if uuid not in old or _is_news(unit, memory.units.get(uuid), old[uuid]):
            weighed = weigh(unit, about, False, now, settings)
            units[uuid] = weighed.memory
            verdicts.append(of_unit(weighed))
        else:
            units[uuid] = _unclean(unit)
            verdicts.append(replace(old[uuid], reasons=_reasons(old[uuid].reasons, about)))
    about = [finding for finding in found if not finding.unit]
    node, state, reasons = _unclean(scene.node), before.node_state, _reasons(before.node_findings, about)
    if any(finding.severity is not Severity.INFO for finding in about):
        weighed = weigh(scene.node, about, False, now, settings)
        node, state, reasons = weighed.memory, weighed.memory.state, weighed.reasons
    sequence = memory.kernel_sequence if facts.kernel_sequence is None else facts.kernel_sequence
    verdict = Verdict(before.boot_id, now, tuple(sorted(verdicts, key=place)), state, reasons)
    return verdict, replace(memory, node=node, units=units, kernel_sequence=sequence)


def _is_news(unit: UnitMemory, known: UnitMemory | None, before: UnitVerdict) -> bool:
    """Say whether a grave XID came, or an administrator's restore has taken away what stood against the unit."""
    restored = before.state in (FAILED, DEGRADED) and not unit.standing
    return restored or known is None or unit.latches != known.latches


def _unclean(unit: UnitMemory) -> UnitMemory:
    return replace(unit, standing=tuple(Standing(one.findings) for one in unit.standing))


def _reasons(before: Sequence[Finding], found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the reasons of before with the passing XIDs of this cycle in place of those of earlier ones."""
    passing = [finding for finding in found if finding.severity is Severity.INFO]
    events = {(check, Severity.INFO) for check in (xid.NAME, sxid.NAME)}
    lasting = [reason for reason in before if (reason.check, reason.severity) not in events]
    return in_order([*lasting, *passing])
