"""sxid: an NVSwitch reported a fault.

Source: the kernel log (`SXid` lines); the number's meaning and reach from `nodeagent.health.sxid`.
Threshold: one, at once: no strikes. `health.sxid_reach` has the last word on a number's reach (none, link, fabric).
Severity: ERROR on the node for what is always fatal to the fabric, latched. WARNING on the node for what is fatal to
one link: the GPU at that link gets an XID 74 of its own. INFO for all else.
Action: reboot_node, which resets all switches and GPUs; none for the others.
Clears (latched ones): another boot; each GPU of the node has been initialised anew since (a reset of all of them resets
the switches); a setting that takes the reach away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health import sxid as table
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.sxid import Reach

NAME = "sxid"
SEVERITIES = {Reach.NONE: Severity.INFO, Reach.LINK: Severity.WARNING}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the switches' faults that stand, then what else came in this cycle."""
    for latch in scene.node.latches:
        known = table.look_up(latch.xid, "", settings.sxid_reach)
        if known.reach is Reach.FABRIC:
            evidence = _evidence(known, latch.where, latch.times)
            yield Finding(NAME, "", Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE)
    switches = [event for event in scene.facts.xids if event.kind == NAME]
    for (number, bus_id, text), times in Counter((one.xid, one.bus_id, one.text) for one in switches).items():
        known = table.look_up(number, text, settings.sxid_reach)
        if known.reach in SEVERITIES:
            yield Finding(NAME, "", SEVERITIES[known.reach], _evidence(known, bus_id, times))


def _evidence(known: table.Sxid, bus_id: str, times: int) -> str:
    often = "" if times == 1 else f", {times} times"
    return f"SXid {known.number} ({known.name}) on NVSwitch {bus_id or 'of unknown place'}{often}"
