"""row-remapping: the memory's spare rows are taken, waiting to be taken, or used up.

Source: NVML's remapped rows and the histogram of spare rows a bank (GPUs from Ampere on; none with MIG instances).
Threshold: any.
Severity: ERROR for a remapping that failed. WARNING for one that is pending, since error containment keeps it from
future work until the reset (nvml.h, nvmlDeviceGetRemappedRows), and for a bank that has no spare row left.
Action: failed: inspect_hardware (NVIDIA's RMA criterion, "GPU Memory Error Management"); pending: reset_gpu, which
remaps the row; exhausted bank: inspect_hardware.
Clears: pending: the reset. Failed and exhausted are in the board's memory for ever: the board is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "row-remapping"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs whose memory rows are remapped, or can be no more."""
    for uuid, gpu in scene.read.items():
        place = scene.units[uuid].place
        if gpu.remapping_failed:
            evidence = f"remapping of a memory row failed on {place}"
            yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.INSPECT_HARDWARE)
        if gpu.remapping_pending:
            evidence = f"a memory row of {place} is remapped at its next reset"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.RESET_GPU)
        if gpu.remap_banks_exhausted:
            evidence = f"{gpu.remap_banks_exhausted} memory banks of {place} have no spare row left"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
