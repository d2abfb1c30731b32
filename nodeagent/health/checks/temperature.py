"""temperature: a GPU, or its memory, is as hot as it may be.

Source: NVML's margin to the temperature at which the GPU slows itself down; where there is none, its temperature
against NVML's threshold for that; the memory's temperature against its greatest.
Threshold: a margin of at most `health.temperature.margin` (0) or `…memory_margin` (0) degrees; `…fallback` (93 °C, what
other sites use) where NVML names neither margin nor threshold. For `health.sustained.share` (0.6) of
`health.sustained.window` (10 min).
Severity: WARNING: the board protects itself.
Action: inspect_hardware (cooling).
Clears: less than that share.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, Sight, long_enough, window_length

NAME = "temperature"
GPU, MEMORY = NAME, f"{NAME}:memory"


def _gpu(sight: Sight) -> float | None:
    gpu, wanted = sight.gpu, sight.settings.temperature
    if gpu.temperature_margin is not None:
        return float(gpu.temperature_margin <= wanted.margin)
    highest = gpu.slowdown_temperature - wanted.margin if gpu.slowdown_temperature else wanted.fallback
    return None if gpu.temperature is None else float(gpu.temperature >= highest)


def _memory(sight: Sight) -> float | None:
    gpu = sight.gpu
    if gpu.memory_temperature is None or not gpu.memory_max_temperature:
        return None
    return float(gpu.memory_temperature >= gpu.memory_max_temperature - sight.settings.temperature.memory_margin)


SERIES = {GPU: Series(_gpu, window_length), MEMORY: Series(_memory, window_length)}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs that were too hot for most of the window."""
    for uuid, unit in scene.units.items():
        for name, what in ((GPU, "is"), (MEMORY, "has memory")):
            window = unit.windows.get(name)
            if window is not None and long_enough(window, settings):
                evidence = f"{unit.place} {what} too hot: at its limit for {window.minutes}"
                yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
