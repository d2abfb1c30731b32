"""power-readout: what the board says of its power cannot be so.

Source: NVML's power and the enforced limit.
Threshold: 0 W; more than twice the limit; no value any more from a GPU that gave one earlier, while its temperature is
still read. For `health.sustained.share` (0.6) of `health.sustained.window` (10 min).
Severity: WARNING: the sensor, or what it measures, is amiss; accounts of energy are wrong meanwhile.
Action: inspect_hardware.
Clears: less than that share.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, Sight, long_enough, window_length

NAME = "power-readout"
TIMES_THE_LIMIT = 2


def _absurd(sight: Sight) -> float | None:
    gpu = sight.gpu
    if gpu.power is None:
        silent = sight.window is not None and gpu.error is None and gpu.temperature is not None
        return 1.0 if silent else None
    if gpu.power_limit and gpu.power > TIMES_THE_LIMIT * gpu.power_limit:
        return 1.0
    return float(gpu.power <= 0)


SERIES = {NAME: Series(_absurd, window_length)}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs whose power made no sense for most of the window."""
    for uuid, unit in scene.units.items():
        window = unit.windows.get(NAME)
        if window is None or not long_enough(window, settings):
            continue
        gpu = scene.read.get(uuid)
        said = "no value" if gpu is None or gpu.power is None else f"{gpu.power:g} W"
        evidence = f"power of {unit.place} made no sense for {window.minutes} (now: {said})"
        yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
