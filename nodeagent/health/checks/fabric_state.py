"""fabric-state: a GPU on NVSwitches has not joined their fabric; CUDA does not start on it until it has.

Source: nvmlDeviceGetGpuFabricInfoV: the state (1 not started, 2 in progress, 3 completed) and, when completed, the
status it ended with. GPUs in no fabric (0, or no answer) and GPUs in MIG mode, which need none, are not judged.
Threshold: at once, as a doubt; as a fault after `health.sustained.share` (0.6) of `health.sustained.window` (10 min),
since after a boot the fabric manager takes minutes.
Severity: UNKNOWN, then ERROR.
Action: reboot_node: what has to come up is the node's fabric manager (unit nvidia-fabricmanager), not the GPU.
Clears: it has joined.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from nodeagent.config.model import Health
from nodeagent.gpu.facts import GpuFacts
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, Sight, long_enough, window_length

NAME = "fabric-state"
NOT_STARTED, IN_PROGRESS, COMPLETED = 1, 2, 3
WORDS: Mapping[int | None, str] = {NOT_STARTED: "is not started", IN_PROGRESS: "is in progress"}


def _out(gpu: GpuFacts) -> bool | None:
    if gpu.mig_enabled or gpu.fabric_state not in (NOT_STARTED, IN_PROGRESS, COMPLETED):
        return None
    return gpu.fabric_state != COMPLETED or bool(gpu.fabric_status)


def _level(sight: Sight) -> float | None:
    out = _out(sight.gpu)
    return None if out is None else float(out)


SERIES = {NAME: Series(_level, window_length)}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs that are out of their fabric."""
    for uuid, gpu in scene.read.items():
        if not _out(gpu):
            continue
        unit = scene.units[uuid]
        state = WORDS.get(gpu.fabric_state, f"ended with error {gpu.fabric_status}")
        evidence = f"registration of {unit.place} with the NVLink fabric {state} (is the fabric manager running?)"
        window = unit.windows.get(NAME)
        if window is not None and long_enough(window, settings):
            yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.REBOOT_NODE)
        else:
            yield Finding(NAME, uuid, Severity.UNKNOWN, evidence)
