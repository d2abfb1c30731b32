"""stuck-readings: a GPU says that it works at full load without a process, or works at a low clock for no reason.

Source: NVML's utilisation, processes, SM clock with its greatest, and clocks event reasons.
Threshold: utilisation of 99 % or more while NVML lists no process; below `health.stuck.clock` (0.5) of the greatest SM
clock at 90 % utilisation or more while no reason is named that holds clocks down. Each for `health.sustained.share`
(0.6) of `health.sustained.window` (10 min). GPUs in MIG mode have no utilisation and are not judged.
Severity: WARNING.
Action: reset_gpu.
Clears: less than that share.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, Sight, long_enough, window_length

NAME = "stuck-readings"
LOAD, CLOCK = NAME, f"{NAME}:clock"
FULL, BUSY = 0.99, 0.9
IDLE = 0x1
"""The clocks event reason that says nothing about a GPU that works (nvml.h, nvmlClocksEventReasonGpuIdle)."""


def _load(sight: Sight) -> float | None:
    gpu = sight.gpu
    if gpu.utilization is None or not gpu.processes_known:
        return None
    return float(gpu.utilization >= FULL and not gpu.processes)


def _clock(sight: Sight) -> float | None:
    gpu = sight.gpu
    if gpu.utilization is None or gpu.sm_clock is None or not gpu.sm_clock_max or gpu.slowdown_reasons is None:
        return None
    slow = gpu.sm_clock < sight.settings.stuck.clock * gpu.sm_clock_max and not gpu.slowdown_reasons & ~IDLE
    works = gpu.utilization >= BUSY and (bool(gpu.processes) or not gpu.processes_known)
    return float(works and slow)


SERIES = {LOAD: Series(_load, window_length), CLOCK: Series(_clock, window_length)}
WORDS = {
    LOAD: "says that it works at full load, without a process,",
    CLOCK: "worked at a low clock, for no reason that it names,",
}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs whose load or clock makes no sense."""
    for uuid, unit in scene.units.items():
        for name, words in WORDS.items():
            window = unit.windows.get(name)
            if window is not None and long_enough(window, settings):
                evidence = f"{unit.place} {words} for {window.minutes}"
                yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.RESET_GPU)
