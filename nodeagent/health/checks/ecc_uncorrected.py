"""ecc-uncorrected: the GPU's memory or caches gave data that ECC could not correct.

Source: NVML's volatile count of uncorrected errors (since the driver initialised the GPU), and the aggregate one.
Threshold: a rise of more than `health.uncorrected_ecc_per_hour` (0: any rise) within an hour. Errors from before the
first reading are not held against a GPU: nobody knows when they were. More than
`health.memory_errors.uncorrected_total` (0: not checked) in the board's life: whether it has had too many is said
better by `row-remapping`, `retired-pages` and `sram-errors`, by NVIDIA's own criteria.
Severity: ERROR, kept until it clears; WARNING for the board's life.
Action: reset_gpu: retires the page or remaps the row; inspect_hardware for the board's life.
Clears: the count starts anew (a reset, a driver reload, a boot); an administrator's restore. The total never falls.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "ecc-uncorrected"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs whose count of uncorrected errors rose."""
    for uuid, unit in scene.units.items():
        if unit.ecc is not None and unit.ecc.tripped:
            rise = unit.ecc.last - unit.ecc.baseline
            evidence = f"{rise} new uncorrected ECC errors (double bit) on {unit.place}"
            yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.RESET_GPU)
    most = settings.memory_errors.uncorrected_total
    for uuid, gpu in scene.read.items() if most else ():
        if gpu.ecc_uncorrected_total is not None and gpu.ecc_uncorrected_total > most:
            evidence = f"{gpu.ecc_uncorrected_total} uncorrected ECC errors in the life of {scene.units[uuid].place}"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
