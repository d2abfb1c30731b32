"""gpu-lost: a GPU has fallen off the bus, or cannot be read at all.

Source: NVML's return code for the GPU (15, `NVML_ERROR_GPU_IS_LOST`); the list of a complete sweep against the GPUs
known earlier in this boot.
Threshold: any. Error 16 is `reset-required`'s.
Severity: ERROR for 15 and for a GPU that is gone from the list; UNKNOWN for any other code, which says that the GPU
could not be read and not why. A GPU that never told its UUID is a finding of the node, unless a GPU that is gone
explains it.
Action: reboot_node (a lost GPU comes back by a reset of the bus at best).
Clears: the GPU answers again. An administrator's restore forgets a GPU that is gone for good.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "gpu-lost"
LOST = 15
RESET_REQUIRED = 16


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs that are lost."""
    for uuid, gpu in scene.read.items():
        if gpu.error is not None and gpu.error != RESET_REQUIRED:
            yield _finding(uuid, scene.units[uuid].place, gpu)
    for uuid in sorted(scene.absent):
        evidence = f"{scene.units[uuid].place} is gone: NVML listed it earlier in this boot and lists it no more"
        yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE)
    for gpu in scene.nameless[len(scene.absent) :]:
        place = f"GPU {'?' if gpu.index is None else gpu.index} {gpu.bus_id}".strip()
        yield _finding("", f"{place} (UUID never read)", gpu)


def _finding(unit: str, place: str, gpu: GpuFacts) -> Finding:
    if gpu.error == LOST:
        evidence = f"{place} is lost: NVML answers 15, it has fallen off the bus"
        return Finding(NAME, unit, Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE)
    if gpu.error == RESET_REQUIRED:
        evidence = f"{place} requires a reset: NVML answers 16"
        return Finding(NAME, unit, Severity.ERROR, evidence, RecoveryAction.RESET_GPU)
    words = " ".join(gpu.error_text.split()) or "no text"
    return Finding(NAME, unit, Severity.UNKNOWN, f"{place} cannot be read: NVML answers {gpu.error} ({words})")
