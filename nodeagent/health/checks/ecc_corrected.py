"""ecc-corrected: the GPU's memory gives wrong data so often that ECC is kept busy correcting it.

Source: NVML's volatile and aggregate counts of corrected errors.
Threshold: more than `health.memory_errors.corrected_per_hour` (10 million) within an hour; more than
`…corrected_total` (50 million) in the board's life. Other sites' checks let 10 to 50 million pass since the last load
of the driver. Errors from before the first reading are in the total alone.
Severity: WARNING: nothing was lost (NVIDIA's catalogue ignores the XID of a high rate, 92, too).
Action: inspect_hardware.
Clears: an hour with fewer; the total never falls: the board is replaced, or the site allows more.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, hour

NAME = "ecc-corrected"
SERIES = {NAME: Series(lambda sight: sight.gpu.ecc_corrected, hour, counter=True)}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with too many corrected errors."""
    limits = settings.memory_errors
    for uuid, unit in scene.units.items():
        window = unit.windows.get(NAME)
        if window is not None and window.amount > limits.corrected_per_hour:
            evidence = f"{window.amount:.0f} corrected ECC errors within an hour on {unit.place}"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
    for uuid, gpu in scene.read.items():
        if gpu.ecc_corrected_total is not None and gpu.ecc_corrected_total > limits.corrected_total:
            evidence = f"{gpu.ecc_corrected_total} corrected ECC errors in the life of {scene.units[uuid].place}"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
