"""nvlink-errors: NVLinks lose data on the way, or have to be brought up again.

Source: NVML's totals over a GPU's links of CRC errors, replays and recoveries (field values 38, 45, 52, 59).
Threshold: more than `health.nvlink.errors_per_second` (100) over `health.sustained.window` (10 min), or more than
`…recoveries_per_hour` (0) within an hour. Both are DCGM's: "CRC errors only matter at rates of 100+ per second"; one
recovery is its limit.
Severity: WARNING: nothing is lost; a link that goes down for it is `nvlink-down`'s.
Action: reset_gpu, which trains the links anew.
Clears: fewer in that time.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, hour, window_length

NAME = "nvlink-errors"
RECOVERIES = f"{NAME}:recoveries"
SERIES = {
    NAME: Series(lambda sight: sight.gpu.nvlink_errors, window_length, counter=True),
    RECOVERIES: Series(lambda sight: sight.gpu.nvlink_recoveries, hour, counter=True),
}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs with too many errors on their links."""
    limits, length = settings.nvlink, settings.sustained.window
    for uuid, unit in scene.units.items():
        errors, recoveries = unit.windows.get(NAME), unit.windows.get(RECOVERIES)
        if errors is not None and errors.amount > limits.errors_per_second * length:
            evidence = f"{errors.amount / length:.0f} NVLink errors a second on {unit.place}"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.RESET_GPU)
        if recoveries is not None and recoveries.amount > limits.recoveries_per_hour:
            evidence = f"{recoveries.amount:.0f} NVLink recoveries within an hour on {unit.place}"
            yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.RESET_GPU)
