"""memory-held: a GPU's memory is in use, and no process has it.

Source: NVML's memory in use and its lists of processes.
Threshold: more than `health.stuck.held_memory` (512 MiB, as `cleanup.leftover_memory`) while NVML lists no process, for
`health.sustained.share` (0.6) of `health.sustained.window` (10 min). GPUs in MIG mode, and those whose processes NVML
does not list, are not judged.
Severity: WARNING: a job may find too little; what a job left is `cleanup`'s before the GPU is granted again.
Action: reset_gpu.
Clears: less than that share.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, Sight, long_enough, window_length

NAME = "memory-held"
MIB = 1 << 20


def _held(sight: Sight) -> float | None:
    gpu = sight.gpu
    if gpu.memory_used is None or not gpu.processes_known or gpu.mig_enabled:
        return None
    return float(not gpu.processes and gpu.memory_used > sight.settings.stuck.held_memory)


SERIES = {NAME: Series(_held, window_length)}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with memory that nobody has."""
    for uuid, gpu in scene.read.items():
        unit = scene.units[uuid]
        window = unit.windows.get(NAME)
        if window is not None and long_enough(window, settings) and not gpu.mig_enabled:
            now = "unknown" if gpu.memory_used is None else f"{gpu.memory_used // MIB} MiB"
            evidence = f"memory of {unit.place} was in use without a process for {window.minutes} (now: {now})"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.RESET_GPU)
