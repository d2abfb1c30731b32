"""sram-errors: a GPU's caches gave so many uncorrectable errors that NVIDIA takes the board back.

Source: nvmlDeviceGetSramEccErrorStatus, `bThresholdExceeded` (drivers from 550 on). Its limit is that of NVIDIA's field
diagnostic: more than 4 unique errors in a bank with parity, more than 2 in one with SEC-DED.
Threshold: NVIDIA's.
Severity: ERROR.
Action: inspect_hardware.
Clears: never by itself: the board is replaced.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene

NAME = "sram-errors"


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs whose caches have failed too often."""
    for uuid, gpu in scene.read.items():
        if gpu.sram_threshold_exceeded:
            evidence = f"uncorrectable errors in the caches of {scene.units[uuid].place} exceed NVIDIA's limit"
            yield Finding(NAME, uuid, Severity.ERROR, evidence, RecoveryAction.INSPECT_HARDWARE)
