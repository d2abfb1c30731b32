"""driver-unresponsive: NVML gives no answer in time.

Source: the probe's deadline (`probe_timeout`).
Threshold: one sweep without its end; `health.strikes` (2 by default) says how many in a row count.
Severity: ERROR on the GPU whose calls hang; where it is none that was ever known, ERROR on the node; where NVML hangs
before it comes to any GPU, UNKNOWN on the node. GPUs that the sweep did not come to are UNKNOWN, by the same strikes.
Action: reset_gpu for a GPU that hangs.
Clears: a sweep that answers.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "driver-unresponsive"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield where NVML hangs and which GPUs were not read because of it."""
    facts = scene.facts
    if not facts.hung:
        return
    where = "before any GPU was reached"
    if scene.stopped:
        where = f"at {scene.units[scene.stopped].place}"
        evidence = f"NVML calls hang {where}: no answer in time"
        yield Finding(NAME, scene.stopped, Severity.ERROR, evidence, RecoveryAction.RESET_GPU)
    elif facts.hung_index is not None:
        where = f"at GPU {facts.hung_index}, which never told its UUID"
        evidence = f"NVML calls hang {where}: no answer in time"
        yield Finding(NAME, "", Severity.ERROR, evidence, RecoveryAction.RESET_GPU)
    else:
        yield Finding(NAME, "", Severity.UNKNOWN, "NVML as a whole gives no answer in time")
    for uuid in scene.unread:
        if uuid != scene.stopped:
            yield Finding(NAME, uuid, Severity.UNKNOWN, f"{scene.units[uuid].place} not read: NVML hangs {where}")
