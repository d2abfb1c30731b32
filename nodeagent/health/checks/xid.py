"""xid: the driver reported a fault.

Source: NVML's events and the kernel log; the number's meaning and action from `nodeagent.health.xid`.
Threshold: one, at once: no strikes. `health.xid_actions` has the last word on a number's action.
Severity: ERROR for an action of reset_gpu or worse, on the GPU, latched. INFO for all else, for the one cycle: an
application's fault and an unknown number are told and counted and change nothing. A grave XID of a GPU that never told
its UUID: WARNING on the node. NVSwitch faults are `sxid`'s.
Action: the table's, or `health.xid_actions`'.
An XID that was logged while no agent ran counts like any other, unless the GPU has been initialised anew since the last
agent looked: then it is INFO.
Clears (latched ones): another boot; the GPU's energy counter started again, so it was initialised anew; an
administrator's restore. A setting that takes the action away takes the latch away too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health import xid as table
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene, instance

NAME = "xid"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the latched XIDs of each GPU, then what else came in this cycle."""
    for uuid, unit in scene.units.items():
        for latch in unit.latches:
            known = table.look_up(latch.xid, settings.xid_actions)
            if table.latches(known):
                evidence = _evidence(known, unit.place, latch.where, latch.times)
                yield Finding(NAME, uuid, Severity.ERROR, evidence, known.action)
    events = [event for event in scene.facts.xids if event.kind == NAME]
    passing = Counter((scene.unit_of(event), event.xid, event.bus_id, instance(event)) for event in events)
    for (uuid, number, bus_id, where), times in passing.items():
        known = table.look_up(number, settings.xid_actions)
        settled = uuid in scene.units and number not in {latch.xid for latch in scene.units[uuid].latches}
        if uuid and (settled or not table.latches(known)):
            evidence = _evidence(known, scene.units[uuid].place if uuid in scene.units else f"GPU {uuid}", where, times)
            if table.latches(known):
                evidence += " while no agent listened; the GPU has been initialised anew since"
            yield Finding(NAME, uuid, Severity.INFO, evidence, known.action)
        elif not uuid:
            severity = Severity.WARNING if table.latches(known) else Severity.INFO
            evidence = _evidence(
                known, f"a GPU at {bus_id or 'an unknown place'} that never told its UUID", where, times
            )
            yield Finding(NAME, "", severity, evidence, known.action if severity else RecoveryAction.NONE)


def _evidence(known: table.Xid, place: str, where: str, times: int) -> str:
    inside = f" {where}" if where else ""
    return f"XID {known.number} ({known.name}) on {place}{inside}{_times(times)}"


def _times(times: int) -> str:
    return "" if times == 1 else f", {times} times"
