"""hardware-slowdown: the board holds its clocks down against heat, for want of power, or for no reason that it names.

Source: NVML's clocks event reasons (nvml.h, nvmlClocksEventReason*): 0x40 thermal, 0x80 power brake (from outside:
power supply or chassis), 0x8 hardware slowdown without either. Slowdown by software (power cap 0x4, thermal 0x20) is
how a GPU works and is not counted.
Threshold: `health.sustained.share` (0.6) of `health.sustained.window` (10 min), each reason by itself: a bump is none.
gpud's threshold is the same.
Severity: WARNING: jobs run, slower.
Action: inspect_hardware.
Clears: less than that share.
"""

from __future__ import annotations

from collections.abc import Iterator

from nodeagent.config.model import Health
from nodeagent.health.finding import Finding, RecoveryAction, Severity
from nodeagent.health.scene import Scene
from nodeagent.health.series import Series, Sight, long_enough, window_length

NAME = "hardware-slowdown"
SLOWDOWN, THERMAL, POWER_BRAKE = 0x8, 0x40, 0x80
UNNAMED, HEAT, BRAKE = NAME, f"{NAME}:thermal", f"{NAME}:power-brake"
CAUSES = {
    HEAT: "against heat (cooling)",
    BRAKE: "by its power brake (power supply)",
    UNNAMED: "for a reason that it does not name",
}


def _level(sight: Sight, mask: int, named: int) -> float | None:
    """Whether the reasons, as far as `mask` lets them through, are those."""
    reasons = sight.gpu.slowdown_reasons
    return None if reasons is None else float(reasons & mask == named)


SERIES = {
    UNNAMED: Series(lambda sight: _level(sight, SLOWDOWN | THERMAL | POWER_BRAKE, SLOWDOWN), window_length),
    HEAT: Series(lambda sight: _level(sight, THERMAL, THERMAL), window_length),
    BRAKE: Series(lambda sight: _level(sight, POWER_BRAKE, POWER_BRAKE), window_length),
}


def find(scene: Scene, settings: Health) -> Iterator[Finding]:
    """Yield the GPUs that were slowed by their hardware for most of the window."""
    for uuid, unit in scene.units.items():
        for name, cause in CAUSES.items():
            window = unit.windows.get(name)
            if window is not None and long_enough(window, settings):
                evidence = f"{unit.place} was slowed by its hardware {cause} for {window.minutes}"
                yield Finding(NAME, uuid, Severity.WARNING, evidence, RecoveryAction.INSPECT_HARDWARE)
