"""nvlink-down: fewer NVLinks are up than there were, or than there ought to be.

Source: NVML's state of each link.
Threshold: fewer than were up on that GPU earlier (since boot, driver load or reset); than `health.nvlink.links` (0: not
checked); than there are, on a GPU that has joined an NVSwitch fabric; than on another GPU of the model on the node,
where at least one is up (a GPU without a bridge has none, and that is well). For `health.sustained.share` (0.6) of the
time observed, of which there must be a minute: a neighbour's reset takes links down for a while. A GPU in MIG mode
uses none and is not judged.
Severity: ERROR for links that were up; WARNING for links that never were.
Action: reset_gpu, which trains them anew (NVIDIA's XID catalogue: 74, 136).
Clears: all of them are up.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, Sight, window_length
from nodeagent.health.window import MINUTE, sustained

NAME = "nvlink-down"
FABRIC_COMPLETED = 3


def _wanted(gpu: GpuFacts, scene: Scene, settings: Health) -> int:
    """How many links ought to be up, as far as that can be known."""
    peers = [one.nvlink_active for one in scene.read.values() if one.nvlink_active and _comparable(gpu, one)]
    fabric = gpu.nvlink_total or 0 if gpu.fabric_state == FABRIC_COMPLETED else 0
    return max(settings.nvlink.links, fabric, *(peers if gpu.nvlink_active else ()))


def _comparable(gpu: GpuFacts, other: GpuFacts) -> bool:
    return other.name == gpu.name and other.nvlink_total == gpu.nvlink_total and not other.mig_enabled


def _level(sight: Sight) -> float | None:
    active = sight.gpu.nvlink_active
    if active is None or sight.gpu.mig_enabled:
        return None
    return float(active < max(sight.unit.nvlinks, _wanted(sight.gpu, sight.scene, sight.settings)))


SERIES = {NAME: Series(_level, window_length)}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with links that are down."""
    for uuid, gpu in scene.read.items():
        unit = scene.units[uuid]
        if gpu.nvlink_active is None or gpu.mig_enabled:
            continue
        if not sustained(unit.windows.get(NAME), settings.sustained.share, MINUTE):
            continue
        wanted = max(unit.nvlinks, _wanted(gpu, scene, settings))
        if gpu.nvlink_active >= wanted:
            continue
        severity = Severity.ERROR if gpu.nvlink_active < unit.nvlinks else Severity.WARNING
        evidence = f"{gpu.nvlink_active} of {wanted} NVLinks of {unit.place} are up"
        yield Finding(NAME, uuid, severity, evidence, RecoveryAction.RESET_GPU)
