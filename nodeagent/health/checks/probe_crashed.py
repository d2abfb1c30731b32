"""probe-crashed: the process that reads NVML died of it.

Source: how the probe process ended (a signal, or by itself before the sweep was done).
Threshold: one sweep; `health.strikes` says how many in a row count.
Severity: UNKNOWN on the GPU at which it died and on those it did not come to, and on the node where it died before any
GPU: a crash in the library proves nothing about a GPU, and nothing in its favour either.
Action: none.
Clears: a sweep that reaches its end.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, Severity
from nodeagent.health.scene import Scene

NAME = "probe-crashed"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield where the probe died and which GPUs were not read because of it."""
    facts = scene.facts
    if facts.crashed is None:
        return
    how = f"was killed by signal {facts.crashed}" if facts.crashed else "ended by itself"
    where = "before any GPU was reached"
    if scene.stopped:
        where = f"at {scene.units[scene.stopped].place}"
    elif facts.hung_index is not None:
        where = f"at GPU {facts.hung_index}, which never told its UUID"
    if not scene.stopped:
        yield Finding(NAME, "", Severity.UNKNOWN, f"the NVML probe {how} {where}")
    for uuid in scene.unread:
        yield Finding(NAME, uuid, Severity.UNKNOWN, f"{scene.units[uuid].place} not read: the NVML probe {how} {where}")
