"""pcie-replays: the link to the host sends too much a second time.

Source: NVML's replay counter (since the driver was loaded).
Threshold: more than `health.pcie.replays_per_minute` (8, the most that NVIDIA recommends: DCGM's
DCGM_LIMIT_MAX_PCIREPLAY_RATE) over `health.sustained.window` (10 min).
Severity: WARNING: nothing is lost; such links tend to fail later.
Action: inspect_hardware (riser, slot, seat).
Clears: fewer in that window.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, window_length
from nodeagent.health.window import MINUTE

NAME = "pcie-replays"
SERIES = {NAME: Series(lambda sight: sight.gpu.pcie_replays, window_length, counter=True)}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with too many replays."""
    minutes = settings.sustained.window / MINUTE
    for uuid, unit in scene.units.items():
        window = unit.windows.get(NAME)
        if window is not None and window.amount > settings.pcie.replays_per_minute * minutes:
            evidence = f"{window.amount:.0f} PCIe replays in {minutes:g} minutes on {unit.place}"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
